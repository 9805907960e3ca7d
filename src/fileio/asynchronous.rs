//! The asynchronous stream: the synchronous one's operations, awaited.
//!
//! Promises:
//! * What is cached and believed is given at once, on the task that asks. On a file system of the machine's own, the
//!   stat(2) that makes it believed is made there, too: of a file that is open it waits for nothing. All else runs on
//!   the runtime's threads for blocking work.
//! * Any future may be dropped at any await. A read that was cancelled has not moved the position. A write that was
//!   cancelled before it began (never polled, or while it waited for one before it) has not happened; later it happens
//!   all the same, and what the stream does next comes after it: file, position and cache then say that it happened, and
//!   an error of it is reported by the next write, flush or close.
//! * Hooks are awaited one after the other, before the operation returns. Those of a cancelled read may have run.
//!
//! One operation at most is under way for a stream; it is kept in the stream, not in the future that began it.

use super::cursor::Cursor;
use super::hooks::Event;
use super::route::{Got, OpenFile, Put, Route};
use super::stream::FileIoStream;
use super::{Builder, Error, Result};
use crate::cache::{Hit, Pieces};
use crate::span::Span;
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::io::{self, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

/// How often a read through [`AsyncRead`] is made again because a write ended meanwhile. A read that began after the
/// poll before the last is current for every program that does not drop its futures time and again.
const READ_TRIES: u32 = 3;

type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An operation that was begun.
enum Pending {
    /// A read and its hooks, for the `tries`th time.
    Read {
        span: Span,
        tries: u32,
        job: Job<Result<Got>>,
    },
    /// A write. `moves`: of the cursor when it began; if the user has moved the position since, that counts.
    Write {
        moves: u64,
        data: Bytes,
        job: Job<Result<Put>>,
    },
    /// The hooks of a write that is done.
    Hooks { count: usize, job: Job<()> },
    /// Finding the end of the file, to seek from it.
    End(Job<Result<u64>>),
}

/// A file as a stream of bytes for asynchronous programs (tokio), read and written through the cache.
///
/// `open`, `seek` and `tell` are those of [`Cursor`] and need no await; `read`, `write` and `close` do. Futures may be
/// dropped at any await; the position, the cache and the file then agree. After a `write` that was dropped half-way the
/// next operation waits for its end.
pub struct AsyncFileIoStream {
    cursor: Cursor,
    pending: Option<Pending>,
    /// Of a write whose future is gone.
    failed: Option<Error>,
    seeking: Option<SeekFrom>,
}

/// The same stream, for an asynchronous program: with its hooks, its position and the open file.
pub fn to_async_fileio_stream(stream: FileIoStream) -> AsyncFileIoStream {
    AsyncFileIoStream::from_cursor(stream.cursor)
}

/// A read whose future may be dropped: what it would have brought is of then, and not for a later one.
struct Reading<'a>(&'a mut AsyncFileIoStream);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if matches!(self.0.pending, Some(Pending::Read { .. })) {
            self.0.pending = None;
        }
    }
}

/// Run `work` on a thread that may block.
fn elsewhere<T: Send + 'static>(
    route: &Arc<Route>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Job<Result<T>>> {
    let gone = Error::NoRuntime(route.path.clone());
    let Ok(runtime) = Handle::try_current() else {
        return Err(gone);
    };
    let running = runtime.spawn_blocking(work);
    Ok(Box::pin(async move {
        match running.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(gone),
        }
    }))
}

impl AsyncFileIoStream {
    /// A stream of the file at `path`, to be opened for reading.
    pub fn new(path: impl AsRef<Path>) -> AsyncFileIoStream {
        AsyncFileIoStream::from_cursor(Builder::new(path).plain_cursor())
    }

    /// A stream with settings of its own; end with [`Builder::build_async`].
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path)
    }

    pub(super) fn from_cursor(mut cursor: Cursor) -> AsyncFileIoStream {
        cursor.closes_elsewhere = true;
        AsyncFileIoStream {
            cursor,
            pending: None,
            failed: None,
            seeking: None,
        }
    }

    /// As [`Cursor::open`], on a thread that may block.
    pub async fn async_open(&mut self) -> Result<()> {
        if self.cursor.is_open() {
            return Ok(());
        }
        let route = self.cursor.route.clone();
        let open = elsewhere(&route.clone(), move || route.open())?.await?;
        self.cursor.opened(open)
    }

    /// As [`FileIoStream::read`].
    pub async fn read(&mut self, size: Option<usize>) -> Result<Bytes> {
        let reading = Reading(self);
        let pieces = poll_fn(|cx| reading.0.poll_pieces(cx, size, READ_TRIES)).await?;
        Ok(pieces.into_bytes())
    }

    /// As [`FileIoStream::write`].
    pub async fn write(&mut self, data: &[u8]) -> Result<usize> {
        self.settle().await?;
        self.begin_write(Bytes::copy_from_slice(data))?;
        poll_fn(|cx| self.poll_settle(cx)).await
    }

    /// Move the position: see [`Cursor::seek`]. On a source that may be slow, let `tokio::io::AsyncSeekExt` look for the
    /// end of the file.
    pub fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.cursor.seek(to)
    }

    /// As [`FileIoStream::truncate`].
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        self.settle().await?;
        let (route, open) = (self.cursor.route.clone(), self.cursor.writable()?.clone());
        let cut = move || {
            open.file
                .truncate(size)
                .map_err(|error| route.os_error(error))
        };
        let stat = elsewhere(&self.cursor.route, cut)?.await?;
        self.cursor.changed(&stat);
        Ok(())
    }

    /// As [`FileIoStream::sync`].
    pub async fn sync(&mut self) -> Result<()> {
        self.settle().await?;
        let (route, open) = (self.cursor.route.clone(), self.cursor.file()?.clone());
        let sync = move || {
            let backing = open.file.backing();
            let synced = backing
                .fd()
                .and_then(|fd| backing.source().sync(&fd, false));
            synced.map_err(|error| route.os_error(error))
        };
        elsewhere(&self.cursor.route, sync)?.await
    }

    /// As [`FileIoStream::close`]. Once it has begun, the stream is closed.
    pub async fn close(&mut self) -> Result<()> {
        let settled = self.settle().await;
        self.pending = None;
        let closed = match self.cursor.closed() {
            Some(open) => {
                let route = self.cursor.route.clone();
                elsewhere(&self.cursor.route, move || route.close(&open))?.await
            }
            None => Ok(()),
        };
        settled.and(closed)
    }

    /// Call the hooks of `event` with `data`, as if it had just been read or written at the position, and await them.
    pub async fn fire_hooks_async(&self, event: &str, data: &Bytes) -> Result<()> {
        let facts = self.cursor.facts(event.parse()?, self.cursor.pos);
        self.cursor.hooks.await_all(&facts, data).await;
        Ok(())
    }

    /// Wait for what an earlier future left behind; its error, if it was a write that failed.
    async fn settle(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_settle_earlier(cx)).await;
        self.failed.take().map_or(Ok(()), Err)
    }

    fn poll_settle_earlier(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(error) = ready!(self.poll_settle(cx)) {
            self.failed = Some(error);
        }
        Poll::Ready(())
    }

    /// Go on with a write that is under way, to its end: how many bytes it wrote.
    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if let Some(Pending::Write { moves, data, job }) = &mut self.pending {
            let outcome = ready!(job.as_mut().poll(cx));
            let (moves, mut data) = (*moves, std::mem::take(data));
            self.pending = None;
            let put = outcome?;
            data.truncate(put.count);
            self.cursor.has_written(&put);
            if self.cursor.moves == moves {
                self.cursor.pos = put.end;
            }
            let facts = self.cursor.facts(Event::Write, put.end - put.count as u64);
            if !self.cursor.hooks.has_async(Event::Write) {
                self.cursor.hooks.fire(&facts, &data);
                return Poll::Ready(Ok(put.count));
            }
            let hooks = self.cursor.hooks.clone();
            self.pending = Some(Pending::Hooks {
                count: put.count,
                job: Box::pin(async move { hooks.await_all(&facts, &data).await }),
            });
        }
        if let Some(Pending::Hooks { count, job }) = &mut self.pending {
            ready!(job.as_mut().poll(cx));
            let count = *count;
            self.pending = None;
            return Poll::Ready(Ok(count));
        }
        Poll::Ready(Ok(0))
    }

    fn begin_write(&mut self, data: Bytes) -> Result<()> {
        let (route, open) = (self.cursor.route.clone(), self.cursor.writable()?.clone());
        let (pos, sent) = (self.cursor.pos, data.clone());
        let job = elsewhere(&self.cursor.route, move || route.write(&open, pos, sent))?;
        self.pending = Some(Pending::Write {
            moves: self.cursor.moves,
            data,
            job,
        });
        Ok(())
    }

    /// Read at the position, which moves when the bytes are here and the hooks have seen them. `tries` is
    /// [`READ_TRIES`] when nothing is under way that an earlier future has begun.
    fn poll_pieces(
        &mut self,
        cx: &mut Context<'_>,
        size: Option<usize>,
        mut tries: u32,
    ) -> Poll<Result<Pieces>> {
        loop {
            ready!(self.poll_settle_earlier(cx));
            let wanted = self.cursor.route.span(self.cursor.pos, size);
            if let Some(Pending::Read {
                span,
                tries: tried,
                job,
            }) = &mut self.pending
                && *span == wanted
            {
                let outcome = ready!(job.as_mut().poll(cx));
                tries = *tried;
                self.pending = None;
                let got = outcome?;
                // What a dropped future has begun goes on in the next one, which must not miss a write in between.
                let is_current = got.seen == self.cursor.route.cache.seen(got.open.id());
                if is_current || tries >= READ_TRIES {
                    let pieces = self.cursor.landed(got).into();
                    self.cursor.has_read(&pieces);
                    return Poll::Ready(Ok(pieces));
                }
                tries += 1;
            }
            self.pending = None;
            let open = self.cursor.readable()?.clone();
            let job = match self.try_hit(&open, wanted) {
                Some(hit) if !self.cursor.hooks.has_async(Event::Read) => {
                    return Poll::Ready(Ok(self.finish_hit(wanted, hit)));
                }
                hit => self.begin_read(open, wanted, hit)?,
            };
            self.pending = Some(Pending::Read {
                span: wanted,
                tries,
                job,
            });
        }
    }

    /// What can be had without waiting.
    fn try_hit(&mut self, open: &OpenFile, span: Span) -> Option<Hit> {
        let hit = self.cursor.hit(open, span);
        if hit.is_some() || !open.is_local {
            return hit;
        }
        // An error will be met again, and reported, on the way that waits.
        self.cursor.hit_compared(open, span).ok().flatten()
    }

    fn finish_hit(&mut self, span: Span, hit: Hit) -> Pieces {
        let mut pieces = self.cursor.take(hit);
        if !self.cursor.hooks.is_empty(Event::Read) {
            let data = pieces.into_bytes();
            let facts = self.cursor.facts(Event::Read, span.pos);
            self.cursor.hooks.fire(&facts, &data);
            pieces = data.into();
        }
        self.cursor.has_read(&pieces);
        pieces
    }

    /// A read that has to wait: for the bytes, or only for hooks.
    fn begin_read(
        &self,
        open: Arc<OpenFile>,
        span: Span,
        hit: Option<Hit>,
    ) -> Result<Job<Result<Got>>> {
        let (route, followed) = (self.cursor.route.clone(), self.cursor.followed);
        let facts = self.cursor.facts(Event::Read, span.pos);
        let hooks = self.cursor.hooks.clone();
        let got = match hit {
            Some(hit) => {
                let got = Got {
                    bytes: hit.pieces.into_bytes(),
                    seen: Some(hit.seen),
                    open,
                    followed,
                };
                Box::pin(std::future::ready(Ok(got)))
            }
            None => elsewhere(&self.cursor.route, move || {
                route.read(&open, span, followed)
            })?,
        };
        Ok(Box::pin(async move {
            let got = got.await?;
            hooks.await_all(&facts, &got.bytes).await;
            Ok(got)
        }))
    }
}

impl Deref for AsyncFileIoStream {
    type Target = Cursor;

    fn deref(&self) -> &Cursor {
        &self.cursor
    }
}

impl DerefMut for AsyncFileIoStream {
    fn deref_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }
}

impl AsyncRead for AsyncFileIoStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pieces = ready!(self.poll_pieces(cx, Some(buffer.remaining()), 1))?;
        for piece in pieces.iter() {
            buffer.put_slice(piece);
        }
        Poll::Ready(Ok(()))
    }
}

/// As `tokio::fs::File` does, `write` takes the bytes and returns; the next operation waits until they are in the file,
/// and an error is reported by the next write, flush or shutdown.
impl AsyncWrite for AsyncFileIoStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let count = data.len().min(self.cursor.chunk_size());
        self.begin_write(Bytes::copy_from_slice(&data[..count]))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_settle_earlier(cx));
        let failed = self.failed.take();
        Poll::Ready(failed.map_or(Ok(()), |error| Err(error.into())))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl AsyncSeek for AsyncFileIoStream {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        self.cursor.file()?;
        self.seeking = Some(to);
        Ok(())
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        ready!(self.poll_settle_earlier(cx));
        let this = &mut *self;
        let Some(to) = this.seeking else {
            return Poll::Ready(Ok(this.cursor.pos));
        };
        let open = this.cursor.file()?.clone();
        let end = match to {
            SeekFrom::End(_) if !open.is_local => {
                if !matches!(this.pending, Some(Pending::End(_))) {
                    let (route, followed) = (this.cursor.route.clone(), this.cursor.followed);
                    let job = elsewhere(&this.cursor.route, move || route.size(&open, followed))?;
                    this.pending = Some(Pending::End(job));
                }
                let Some(Pending::End(job)) = &mut this.pending else {
                    return Poll::Ready(Ok(this.cursor.pos));
                };
                let end = ready!(job.as_mut().poll(cx));
                this.pending = None;
                end
            }
            SeekFrom::End(_) => this.cursor.route.size(&open, this.cursor.followed),
            SeekFrom::Start(_) | SeekFrom::Current(_) => Ok(0),
        };
        this.seeking = None;
        Poll::Ready(Ok(this.cursor.seek_with(to, end?)?))
    }
}

impl std::fmt::Debug for AsyncFileIoStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncFileIoStream")
            .field("cursor", &self.cursor)
            .field("is_busy", &self.pending.is_some())
            .finish_non_exhaustive()
    }
}
