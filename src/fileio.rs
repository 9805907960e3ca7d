//! The cached file streams: files as positions and bytes, with the cache of the mount below and hooks beside it.
//!
//! A [`FileIoStream`] is for threads, an [`AsyncFileIoStream`] for tokio tasks. Both read and write through the same
//! data path as the mount ([`crate::file`]): what one stream has read is warm for all, what one has written is seen by
//! all as soon as the write has returned, and patches what is cached instead of emptying it.
//!
//! ```
//! use std::io::SeekFrom;
//! use warmfs::fileio::FileIoStream;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("data.bin");
//! std::fs::write(&path, "hello world")?;
//!
//! let mut stream = FileIoStream::builder(&path).mode("r+b").open_now(true).build()?;
//! stream.hook("on_read", |facts, _data, count| {
//!     println!("read {count} bytes at {} from {}", facts.pos, facts.path.display());
//! })?;
//! assert_eq!(stream.read(Some(5))?, "hello");
//! assert_eq!(stream.read(None)?, " world");
//! stream.seek(SeekFrom::Start(6))?;
//! stream.write(b"there")?;
//! stream.seek(SeekFrom::Start(0))?;
//! assert_eq!(stream.read(None)?, "hello there");
//! stream.close()?; // says what close(2) had to say; a drop closes, too, and can only log it
//! # Ok(())
//! # }
//! ```
//!
//! The same for tasks:
//!
//! ```
//! # #[cfg(feature = "async")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! use warmfs::fileio::AsyncFileIoStream;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("data.bin");
//! let mut stream = AsyncFileIoStream::builder(&path).mode("w+b").build_async()?;
//! stream.async_open().await?;
//! stream.hook_async("on_write", |facts, _data, count| async move {
//!     println!("wrote {count} bytes at {}", facts.pos); // may await
//! })?;
//! stream.write(b"hello").await?;
//! stream.update_pos(0);
//! assert_eq!(stream.read(None).await?, "hello");
//! stream.close().await?;
//! # Ok(())
//! # })
//! # }
//! # #[cfg(not(feature = "async"))]
//! # fn main() {}
//! ```
//!
//! # When cached bytes are believed
//!
//! [`FILE_CACHE`] asks the file system at each access, with one stat(2), whether the file is still the one that was
//! read: device and inode, size, mtime and ctime. A cache with a `ttl` asks that seldom and answers from memory alone in
//! between: `Cache::shared(64 << 20, Duration::from_secs(1))`. Changes made through streams and mounts of the same cache
//! are seen at once either way. Bytes that were read within a clock tick (10 ms; 2 s where timestamps are whole
//! seconds) of the file's last change are read once more, as a second change in that tick would leave no trace.
//!
//! A mount in the same process and a stream share what they hold when they share the cache:
//! [`Mounted::cache`](crate::mount::Mounted::cache). The kernel's own pages of that mount learn of a stream's writes
//! within the mount's `ttl`.
//!
//! # Names
//!
//! The streams are modelled on the Python module `duck.utils.fileio`. Where each of its names went:
//!
//! | Python | here |
//! |---|---|
//! | `FileIOStream(filepath, chunk_size, open_now, mode)` | [`FileIoStream::new`], [`FileIoStream::builder`] and [`Builder`]; modes are [`Mode`] |
//! | `AsyncFileIOStream` | [`AsyncFileIoStream`], [`Builder::build_async`] |
//! | `to_async_fileio_stream` | [`to_async_fileio_stream`] |
//! | `FILE_CACHE`, an `InMemoryCache` | [`FILE_CACHE`], a [`Cache`]; [`Builder::cache`] for another |
//! | `VALID_EVENTS` | [`VALID_EVENTS`], [`Event`] |
//! | `open`, `is_open`, `close` | [`Cursor::open`], [`Cursor::is_open`], [`FileIoStream::close`] |
//! | `async_open`, `await close()` | [`AsyncFileIoStream::async_open`], [`AsyncFileIoStream::close`] |
//! | `with`, `__del__` | `Drop`, which closes and logs what it could not report |
//! | `async with`: `__aenter__`, `__aexit__` | `async_open().await` and `close().await`, or `Drop` |
//! | `read(size=-1)`, `await read()` | [`FileIoStream::read`], [`AsyncFileIoStream::read`]; -1 is `None` |
//! | `write(data)`, `await write()` | [`FileIoStream::write`], [`AsyncFileIoStream::write`] |
//! | `io.IOBase` | `Read`, `Write`, `Seek`, `BufRead`; tokio's `AsyncRead`, `AsyncWrite`, `AsyncSeek` |
//! | `seek(offset, whence)` | [`Cursor::seek`] with [`std::io::SeekFrom`] |
//! | `tell`, `get_pos`, `update_pos`, `increment_pos` | [`Cursor::tell`], [`Cursor::get_pos`], [`Cursor::update_pos`], [`Cursor::increment_pos`] |
//! | `current_mtime` | [`Cursor::current_mtime`]; 0.0 is `None` |
//! | `is_modified` | [`Cursor::is_modified`] |
//! | `make_cache_key` | [`Cursor::make_cache_key`], a [`CacheKey`] |
//! | `cache_get`, `cache_set`, `cache_patch_on_write` | [`Cursor::cache_get`], [`Cursor::cache_set`], [`Cursor::cache_patch_on_write`] |
//! | `hook(event, fn)` | [`Cursor::hook`]; a coroutine function: [`Cursor::hook_async`] |
//! | `fn(stream, data, byte_count)` | `f(facts, data, count)` with [`Facts`] |
//! | `fire_hooks`, `fire_hooks_async` | [`Cursor::fire_hooks`], [`AsyncFileIoStream::fire_hooks_async`] |
//! | `raise_if_in_async_context` | [`FileIoStream::raise_if_in_async_context`], [`Builder::allow_in_async_context`] |
//! | `_total_read_bytes` | [`Cursor::total_read_bytes`], with [`Builder::keep_read_bytes`] |
//!
//! What is different on purpose: slots never overlap, and a read of any span is a hit when slots cover it; a write patches
//! slots at its boundaries, too, and leaves all others valid; the cache is bounded in bytes; the position is right
//! after a hit; and a stream that only reads goes on with the new file when its path is replaced
//! ([`Builder::follow_replaced`]).

#[cfg(feature = "async")]
mod asynchronous;
mod builder;
mod cursor;
mod error;
mod hooks;
mod mode;
mod route;
mod stream;

#[cfg(feature = "async")]
pub use asynchronous::{AsyncFileIoStream, to_async_fileio_stream};
pub use builder::{Builder, CHUNK_SIZE_DEFAULT};
pub use cursor::Cursor;
pub use error::{Error, Result};
pub use hooks::{Event, Facts, VALID_EVENTS};
pub use mode::Mode;
pub use stream::FileIoStream;

pub use crate::cache::Key as CacheKey;

use crate::cache::Cache;
use crate::config;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// The cache that streams share unless they are given another: 256 MiB at most, and compared with the file at each
/// access.
pub static FILE_CACHE: LazyLock<Arc<Cache>> =
    LazyLock::new(|| Cache::shared(config::MEMORY_DEFAULT, Duration::ZERO));
