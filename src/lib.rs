//! warmfs: a cached, writable view of a slow directory.
//!
//! This crate is the `warmfs` program and the library below it. A *source* directory is mirrored at a *mount
//! point*; what programs read there comes from memory when it can, and what they write goes to the source
//! before the write returns, and keeps the cache warm instead of emptying it.
//!
//! # The idea in six sentences
//!
//! 1. Everything that moves file bytes is one path, [`file::CachedFile`]; what calls it (the kernel through [`fuse`],
//!    programs through the streams of [`fileio`]) cannot see anything else.
//! 2. The cache is keyed `path:pos:size` ([`cache::Key`]) and may always be lost, never be wrong.
//! 3. Coherence lives in two tickets, [`cache::Fill`] and [`cache::Write`], and nowhere else.
//! 4. An answer that is cached never waits long for the source ([`patience`]).
//! 5. A write goes to the source, then patches the slots that it overlaps, in place.
//! 6. Unreachable is not deleted: an error from the source is no proof that a file is gone or changed.
//!
//! # Map
//!
//! A file uses only files of lower floors, or listed below it on its own.
//!
//! | floor | modules |
//! |---|---|
//! | 5 shell | [`cli`] what was typed; [`daemon`] the process; [`mount`] builds all parts and takes them down; [`warm`] programs that ask a mount |
//! | 4 faces | [`fuse`] request, overlay call, event, reply; [`fileio`] streams; [`patience`] how long the source is waited for |
//! | 3 meaning | [`overlay`] lookup, open, read, rename ... runs without FUSE |
//! | 2 data path | [`mod@file`] the only way to the bytes; `file::ahead` reads ahead of programs |
//! | 1 engine | [`cache`] records, slots, tickets; `prefetch` what a program will read next; [`hooks`] rules, events, plugins; [`notices`] what the system tells of changes |
//! | 0 ground | [`backing`] every system call on the source; [`workers`] threads; [`ask`] what programs may ask of a mount; [`config`] settings and limits; [`span`], [`sys`], [`error`], [`clock`], [`pace`], [`stats`] |
//!
//! # Invariants worth knowing
//!
//! * `unsafe` is in [`sys`] only.
//! * No lock is held during a system call on the source, and none while anything is sent to the kernel.
//! * An event is in the queue of its plugin before the program that caused it gets its answer ([`hooks`]).
//! * FUSE threads: at most half of them are ever at the source ([`config::FUSE_THREADS`]).
//! * What runs ahead of programs (`file::ahead`, and walks and sweeps in [`overlay`]) has threads of its own. No program waits for
//!   it, but for an answer that it has asked for already; no error of it reaches one.
//! * Lock order: `renames` before `inodes` (both in [`overlay`]); the cache's index is locked last and alone.
//!
//! # As a library
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use warmfs::{backing::Source, cache::Cache, clock::Clock, config, overlay::{NodeId, Overlay}, span::Span};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("greeting"), "hello")?;
//!
//! let stats = Arc::new(warmfs::stats::Stats::default());
//! let source = Source::open(dir.path(), None, stats.clone())?;
//! let cache = Cache::new(1 << 20, Duration::from_secs(1), Clock::system(), stats.clone());
//! let overlay = Overlay::new(Arc::new(source), Arc::new(cache), &config::limits(1024))?;
//!
//! let caller = warmfs::overlay::Caller { uid: 0, gid: 0, pid: 0 };
//! let file = overlay.lookup(NodeId::ROOT, "greeting".as_ref())?;
//! let open = overlay.open(caller, file.node, 0)?;
//! assert_eq!(&overlay.read(open.handle, Span::new(0, 100))?[..], b"hello");
//! assert_eq!(&overlay.read(open.handle, Span::new(1, 3))?[..], b"ell");
//! assert_eq!(stats.hits.get(), 1);
//! drop(overlay.release(open.handle));
//! # Ok(())
//! # }
//! ```

pub mod ask;
pub mod backing;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod error;
pub mod file;
pub mod fileio;
pub mod fuse;
pub mod hooks;
pub mod mount;
pub mod notices;
pub mod overlay;
pub mod pace;
pub mod patience;
mod prefetch;
pub mod span;
pub mod stats;
pub mod sys;
pub mod warm;
pub mod workers;
