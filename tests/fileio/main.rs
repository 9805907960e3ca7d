//! The file streams: one test for each sentence of what they are described to do, and a random comparison with a plain
//! vector of bytes.

mod described;
mod examples;
mod hooks;
mod property;
mod support;
mod tasks;
mod traits;
mod world;
