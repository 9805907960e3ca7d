//! The synchronous stream.

#[cfg(feature = "async")]
use super::Error;
use super::cursor::Cursor;
use super::hooks::Event;
use super::{Builder, Result};
use crate::cache::Pieces;
use bytes::Bytes;
use std::io::{self, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// Where the windows that [`BufRead`](io::BufRead) shows end: at multiples of this. As large as what BufReader reads at
/// once would be too small for a slow source; this is half of the kernel's own read-ahead (128 KiB).
const WINDOW: u64 = 64 << 10;

/// A file as a stream of bytes, read and written through the cache.
///
/// What it has in common with the asynchronous one is in [`Cursor`], which it dereferences to: position, cache and hooks.
/// Every other stream and thread of the process that uses the same cache sees a write as soon as it has returned.
///
/// The methods of its own, `read`, `write` and `seek`, have other signatures than those of the traits [`io::Read`],
/// [`io::Write`] and [`io::Seek`], which it implements, too: where a method is called by name on a stream, its own is
/// meant.
#[derive(Debug)]
pub struct FileIoStream {
    pub(super) cursor: Cursor,
    /// What `fill_buf` has lent.
    window: Bytes,
    blocks_runtimes: bool,
}

impl FileIoStream {
    /// A stream of the file at `path`, to be opened for reading.
    pub fn new(path: impl AsRef<Path>) -> FileIoStream {
        FileIoStream::from_cursor(Builder::new(path).plain_cursor(), false)
    }

    /// A stream with settings of its own.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path)
    }

    pub(super) fn from_cursor(cursor: Cursor, blocks_runtimes: bool) -> FileIoStream {
        FileIoStream {
            cursor,
            window: Bytes::new(),
            blocks_runtimes,
        }
    }

    /// An error with this text, if the caller runs in a tokio runtime, which a read that waits would block.
    pub fn raise_if_in_async_context(&self, message: &str) -> Result<()> {
        #[cfg(feature = "async")]
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(Error::InAsyncContext(message.to_owned()));
        }
        let _ = message;
        Ok(())
    }

    fn may_block(&self, method: &str) -> Result<()> {
        #[cfg(feature = "async")]
        if !self.blocks_runtimes && tokio::runtime::Handle::try_current().is_ok() {
            return Err(Error::InAsyncContext(format!(
                "FileIoStream::{method} may block, and was called in an asynchronous context; use \
                 AsyncFileIoStream (to_async_fileio_stream makes one of this), or, as in spawn_blocking, \
                 allow it with Builder::allow_in_async_context"
            )));
        }
        let _ = (method, self.blocks_runtimes);
        Ok(())
    }

    /// Read `size` bytes, at most `chunk_size`, or with `None` all the rest. Fewer than asked come only at the end of
    /// the file, where the result is empty.
    ///
    /// The bytes are shared with the cache, not copied, when one slot has them all. Held for long they keep that slot's
    /// memory; copy what is to stay.
    pub fn read(&mut self, size: Option<usize>) -> Result<Bytes> {
        let pieces = self.pieces(size)?;
        self.cursor.has_read(&pieces);
        let bytes = pieces.into_bytes();
        self.fire(Event::Read, bytes.len(), &bytes);
        Ok(bytes)
    }

    /// The bytes from the position on, which stays.
    fn pieces(&mut self, size: Option<usize>) -> Result<Pieces> {
        self.may_block("read")?;
        let cursor = &mut self.cursor;
        let span = cursor.route.span(cursor.pos, size);
        let open = cursor.readable()?;
        if let Some(hit) = cursor.hit(open, span) {
            return Ok(cursor.take(hit));
        }
        let got = cursor.route.read(open, span, cursor.followed)?;
        Ok(cursor.landed(got).into())
    }

    fn fire(&self, event: Event, count: usize, data: &Bytes) {
        if !self.cursor.hooks.is_empty(event) {
            let facts = self.cursor.facts(event, self.cursor.pos - count as u64);
            self.cursor.hooks.fire(&facts, data);
        }
    }

    /// Write `data` at the position, or at the end of the file when the mode appends; returns how many bytes are in
    /// the file now. Fewer than given means that the next one met an error, which the next write will report.
    ///
    /// When it returns the bytes are in the file, as after write(2); [`FileIoStream::sync`] puts them on the disk. The
    /// slots that they overlap are patched, and the bytes written are cached.
    pub fn write(&mut self, data: &[u8]) -> Result<usize> {
        self.may_block("write")?;
        let data = Bytes::copy_from_slice(data);
        let cursor = &mut self.cursor;
        let open = cursor.writable()?;
        let put = cursor.route.write(open, cursor.pos, data.clone())?;
        cursor.pos = put.end;
        cursor.has_written(&put);
        self.fire(Event::Write, put.count, &data.slice(..put.count));
        Ok(put.count)
    }

    /// Move the position: see [`Cursor::seek`].
    pub fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.cursor.seek(to)
    }

    /// Cut or extend the file. The position stays.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        self.may_block("truncate")?;
        let open = self.cursor.writable()?;
        let cut = open.file.truncate(size);
        let stat = cut.map_err(|error| self.cursor.route.os_error(error))?;
        self.cursor.changed(&stat);
        Ok(())
    }

    /// Wait until everything that was written is on the disk (fsync(2)).
    pub fn sync(&mut self) -> Result<()> {
        self.may_block("sync")?;
        let backing = self.cursor.file()?.file.backing();
        let synced = backing
            .fd()
            .and_then(|fd| backing.source().sync(&fd, false));
        synced.map_err(|error| self.cursor.route.os_error(error))
    }

    /// Close the file, and report what close(2) of a network file system has to say about earlier writes. A closed
    /// stream stays closed. It can be opened again.
    pub fn close(&mut self) -> Result<()> {
        self.window = Bytes::new();
        match self.cursor.closed() {
            Some(open) => self.cursor.route.close(&open),
            None => Ok(()),
        }
    }
}

impl Deref for FileIoStream {
    type Target = Cursor;

    fn deref(&self) -> &Cursor {
        &self.cursor
    }
}

impl DerefMut for FileIoStream {
    fn deref_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }
}

impl io::Read for FileIoStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pieces = self.pieces(Some(buffer.len()))?;
        if !self.cursor.hooks.is_empty(Event::Read) {
            pieces = pieces.into_bytes().into();
        }
        self.cursor.has_read(&pieces);
        let count = pieces.copy_to(buffer);
        if !self.cursor.hooks.is_empty(Event::Read) {
            self.fire(Event::Read, count, &pieces.into_bytes());
        }
        Ok(count)
    }
}

impl io::Write for FileIoStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(FileIoStream::write(self, data)?)
    }

    /// Does nothing: what was written is in the file. [`FileIoStream::sync`] is fsync(2).
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for FileIoStream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        Ok(self.cursor.seek(to)?)
    }
}

/// Each `fill_buf` looks at the cache anew, so no change is missed, and lends the bytes of a slot where they are. The
/// `on_read` hooks get what is consumed.
impl io::BufRead for FileIoStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let pos = self.cursor.pos;
        let rest = WINDOW - pos % WINDOW;
        let pieces = self.pieces(Some(rest as usize))?;
        self.window = pieces.iter().next().cloned().unwrap_or_default();
        Ok(&self.window)
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.window.len());
        let used = self.window.split_to(count);
        if count > 0 {
            self.cursor.has_read(&used.clone().into());
            self.fire(Event::Read, count, &used);
        }
    }
}
