//! How a stream is made.

use super::cursor::Cursor;
use super::hooks::{Facts, Hook, Hooks};
use super::route::Route;
use super::stream::FileIoStream;
use super::{Error, FILE_CACHE, Mode, Result};
use crate::backing::{Intercept, Source};
use crate::cache::Cache;
use bytes::Bytes;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes that one sized read or one step of a write moves: 2 MiB, as in the Python module that the streams are
/// modelled on.
pub const CHUNK_SIZE_DEFAULT: usize = 2 << 20;

/// Settings of a stream; [`Builder::build`] or [`Builder::build_async`] makes it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use warmfs::fileio::FileIoStream;
///
/// let dir = tempfile::tempdir()?;
/// let mut log = FileIoStream::builder(dir.path().join("log"))
///     .mode("a+b")
///     .open_now(true)
///     .hook("on_write", |facts, _data, count| println!("{count} bytes at {}", facts.pos))
///     .build()?;
/// log.write(b"started\n")?;
/// log.close()?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Builder {
    path: PathBuf,
    chunk_size: usize,
    open_now: bool,
    mode: Result<Mode>,
    cache: Option<Arc<Cache>>,
    hooks: Hooks,
    unknown_event: Option<Error>,
    intercept: Option<Arc<dyn Intercept>>,
    blocks_runtimes: bool,
    follows: bool,
    keep_read_bytes: bool,
}

impl Builder {
    /// Of a stream of the file at `path`, opened for reading.
    pub fn new(path: impl AsRef<Path>) -> Builder {
        Builder {
            path: path.as_ref().to_owned(),
            chunk_size: CHUNK_SIZE_DEFAULT,
            open_now: false,
            mode: Ok(Mode::READ),
            cache: None,
            hooks: Hooks::default(),
            unknown_event: None,
            intercept: None,
            blocks_runtimes: false,
            follows: true,
            keep_read_bytes: false,
        }
    }

    /// Most bytes that one sized read or one step of a write moves; [`CHUNK_SIZE_DEFAULT`] otherwise.
    pub fn chunk_size(mut self, bytes: usize) -> Builder {
        self.chunk_size = bytes;
        self
    }

    /// Open the file when the stream is made. Otherwise `open` does.
    pub fn open_now(mut self, open_now: bool) -> Builder {
        self.open_now = open_now;
        self
    }

    /// A mode of Python's `open`: see [`Mode`].
    pub fn mode(mut self, mode: &str) -> Builder {
        self.mode = mode.parse();
        self
    }

    /// The cache to read and write through, instead of [`FILE_CACHE`].
    pub fn cache(mut self, cache: Arc<Cache>) -> Builder {
        self.cache = Some(cache);
        self
    }

    /// Register a hook: see [`Cursor::hook`].
    pub fn hook(
        self,
        event: &str,
        f: impl Fn(&Facts, &Bytes, usize) + Send + Sync + 'static,
    ) -> Builder {
        self.add(event, Hook::call(f))
    }

    /// Register a hook that returns a future: see [`Cursor::hook_async`].
    #[cfg(feature = "async")]
    pub fn hook_async<F, R>(self, event: &str, f: F) -> Builder
    where
        F: Fn(Facts, Bytes, usize) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.add(event, Hook::start(f))
    }

    fn add(mut self, event: &str, hook: Hook) -> Builder {
        match event.parse() {
            Ok(event) => self.hooks.add(event, hook),
            Err(error) => self.unknown_event = Some(error),
        }
        self
    }

    /// Let a synchronous stream block the thread of a tokio runtime that it is used in. In `spawn_blocking` that does
    /// no harm.
    pub fn allow_in_async_context(mut self, allow: bool) -> Builder {
        self.blocks_runtimes = allow;
        self
    }

    /// A stream that only reads goes on with the new file when its path leads to another one (an editor that saves by
    /// write-and-rename), within the cache's `ttl`. With `false` it stays with the file that it opened. A stream that
    /// writes always does.
    pub fn follow_replaced(mut self, follow: bool) -> Builder {
        self.follows = follow;
        self
    }

    /// Keep a copy of all bytes that the stream reads, for [`Cursor::total_read_bytes`].
    pub fn keep_read_bytes(mut self, keep: bool) -> Builder {
        self.keep_read_bytes = keep;
        self
    }

    /// See, delay or fail the stream's calls on the file system: for tests, and to see what the cache saves.
    pub fn intercept(mut self, intercept: Arc<dyn Intercept>) -> Builder {
        self.intercept = Some(intercept);
        self
    }

    /// A synchronous stream.
    pub fn build(self) -> Result<FileIoStream> {
        let (open_now, blocks_runtimes) = (self.open_now, self.blocks_runtimes);
        let mut cursor = self.cursor()?;
        if open_now {
            cursor.open()?;
        }
        Ok(FileIoStream::from_cursor(cursor, blocks_runtimes))
    }

    /// An asynchronous stream. With [`Builder::open_now`] the file is opened here, without an await; on a source that
    /// may be slow use [`async_open`](super::AsyncFileIoStream::async_open).
    #[cfg(feature = "async")]
    pub fn build_async(self) -> Result<super::AsyncFileIoStream> {
        let open_now = self.open_now;
        let mut cursor = self.cursor()?;
        if open_now {
            cursor.open()?;
        }
        Ok(super::AsyncFileIoStream::from_cursor(cursor))
    }

    fn cursor(self) -> Result<Cursor> {
        if let Some(error) = self.unknown_event {
            return Err(error);
        }
        if self.chunk_size == 0 {
            return Err(Error::ChunkSize);
        }
        let mode = self.mode.clone()?;
        Ok(self.cursor_in(mode))
    }

    /// With what needs no check: that of [`Builder::new`] as it is.
    pub(super) fn plain_cursor(self) -> Cursor {
        self.cursor_in(Mode::READ)
    }

    fn cursor_in(self, mode: Mode) -> Cursor {
        let cache = self.cache.unwrap_or_else(|| FILE_CACHE.clone());
        let route = Route {
            source: Arc::new(Source::everywhere(self.intercept, cache.stats().clone())),
            // It fails for an empty path, and for any if there is no current directory: then open says so.
            target: std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()),
            path: self.path.into(),
            mode,
            chunk_size: self.chunk_size,
            cache,
            follows: self.follows && !mode.writes(),
        };
        Cursor::new(route, self.hooks, self.keep_read_bytes)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("path", &self.path)
            .field("mode", &self.mode)
            .field("chunk_size", &self.chunk_size)
            .field("hooks", &self.hooks)
            .finish_non_exhaustive()
    }
}
