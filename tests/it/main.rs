//! What warmfs promises, tried on real mounts by the program itself.
//!
//! Each test makes its own source and its own mount, and takes both down again, also when it fails. Where the source
//! must hang or break it is `examples/slow_source`, which runs inside this process. A test that cannot mount fails
//! and says why. Those in `as_root` switch users or make devices, which only root can.
//!
//! Besides warmfs they need: `setfattr`, `getfattr`, `setfacl`, `getfacl`, `setpriv`, `unshare` and `python3` (for calls
//! that need a second process, or that no crate here offers without `unsafe`).

#![cfg(target_os = "linux")]

mod ahead;
mod as_root;
mod cli;
mod coherence;
mod faults;
mod fixture;
mod hang;
mod hooks;
mod memory;
mod refusals;
mod signals;
mod surface;
mod walks;
mod warm;
mod watched;

#[path = "../../examples/slow_source/fs.rs"]
mod slow_source;
