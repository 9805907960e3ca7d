//! What both kinds of streams are: a position in a file, with a cache below and hooks beside it.

use super::hooks::{Event, Facts, Hook, Hooks};
use super::route::{Asked, Got, OpenFile, Put, Route};
use super::{Error, Mode, Result};
use crate::cache::{Cache, Compared, Hit, Key as CacheKey, Pieces, Seen, Trust, Version};
use crate::clock::Moment;
use crate::span::Span;
use bytes::Bytes;
use std::fmt;
use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The part of a stream that is the same for [`FileIoStream`](super::FileIoStream) and
/// [`AsyncFileIoStream`](super::AsyncFileIoStream), which both dereference to it.
///
/// Nothing here waits for bytes. The methods that ask the source with a stat(2) say so: on a source that may hang, call
/// those of an asynchronous stream from `spawn_blocking`.
pub struct Cursor {
    pub(super) route: Arc<Route>,
    pub(super) open: Option<Arc<OpenFile>>,
    pub(super) pos: u64,
    /// Counts the moves of the position that the user asked for.
    pub(super) moves: u64,
    /// What the last read or write of this stream saw.
    seen: Option<Seen>,
    pub(super) followed: Moment,
    pub(super) hooks: Arc<Hooks>,
    /// All bytes read so far, if that was asked for.
    collected: Option<Vec<u8>>,
    /// A drop must not block the thread that it happens on.
    #[cfg(feature = "async")]
    pub(super) closes_elsewhere: bool,
}

impl Cursor {
    pub(super) fn new(route: Route, hooks: Hooks, keep_read_bytes: bool) -> Cursor {
        Cursor {
            followed: route.cache.clock().now(),
            route: Arc::new(route),
            open: None,
            pos: 0,
            moves: 0,
            seen: None,
            hooks: Arc::new(hooks),
            collected: keep_read_bytes.then(Vec::new),
            #[cfg(feature = "async")]
            closes_elsewhere: false,
        }
    }

    /// The path, as it was given.
    pub fn path(&self) -> &Path {
        &self.route.path
    }

    /// How the file is opened.
    pub fn mode(&self) -> Mode {
        self.route.mode
    }

    /// Most bytes that one sized read, or one step of a write, moves.
    pub fn chunk_size(&self) -> usize {
        self.route.chunk_size
    }

    /// The cache that it reads and writes through.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.route.cache
    }

    /// Is the file open?
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Open the file. One that is open stays as it is. The position is 0, or where [`Cursor::update_pos`] put it; with
    /// a mode that appends, the end of the file.
    pub fn open(&mut self) -> Result<()> {
        if self.open.is_none() {
            let open = self.route.open()?;
            self.opened(open)?;
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, open: Arc<OpenFile>) -> Result<()> {
        self.followed = self.route.cache.clock().now();
        if self.route.mode.appends() {
            self.pos = self.route.size(&open, self.followed)?;
        }
        self.open = Some(open);
        Ok(())
    }

    pub(super) fn closed(&mut self) -> Option<Arc<OpenFile>> {
        self.pos = 0;
        self.seen = None;
        self.open.take()
    }

    pub(super) fn file(&self) -> Result<&Arc<OpenFile>> {
        let closed = || Error::Closed(self.route.path.clone());
        self.open.as_ref().ok_or_else(closed)
    }

    pub(super) fn readable(&self) -> Result<&Arc<OpenFile>> {
        if !self.route.mode.reads() {
            return Err(Error::NotReadable(self.route.path.clone()));
        }
        self.file()
    }

    pub(super) fn writable(&self) -> Result<&Arc<OpenFile>> {
        if !self.route.mode.writes() {
            return Err(Error::NotWritable(self.route.path.clone()));
        }
        self.file()
    }

    /// The position: offset of the next byte that is read or written.
    pub fn tell(&self) -> u64 {
        self.pos
    }

    /// The position, as [`Cursor::tell`].
    pub fn get_pos(&self) -> u64 {
        self.pos
    }

    /// Set the position. Nothing is asked: the file may be closed, and end before it.
    pub fn update_pos(&mut self, pos: u64) {
        self.moves += 1;
        self.pos = pos;
    }

    /// Move the position forward, as [`Cursor::update_pos`].
    pub fn increment_pos(&mut self, by: u64) {
        self.update_pos(self.pos.saturating_add(by));
    }

    /// Move the position; returns the new one. `SeekFrom::End` asks for the file's size with a stat(2), unless the
    /// cache knows it.
    pub fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let open = self.file()?;
        let end = match to {
            SeekFrom::End(_) => self.route.size(open, self.followed)?,
            SeekFrom::Start(_) | SeekFrom::Current(_) => 0,
        };
        self.seek_with(to, end)
    }

    /// As [`Cursor::seek`], in a file of `end` bytes.
    pub(super) fn seek_with(&mut self, to: SeekFrom, end: u64) -> Result<u64> {
        let target = match to {
            SeekFrom::Start(pos) => i128::from(pos),
            SeekFrom::Current(by) => i128::from(self.pos) + i128::from(by),
            SeekFrom::End(by) => i128::from(end) + i128::from(by),
        };
        // What the kernel takes as an offset (off_t).
        let pos = i64::try_from(target).ok().filter(|&pos| pos >= 0);
        self.update_pos(pos.ok_or(Error::Position(target))? as u64);
        Ok(self.pos)
    }

    /// Modification time of the file that the path leads to now, from stat(2); `None` when there is none.
    pub fn current_mtime(&self) -> Result<Option<SystemTime>> {
        let stat = self.route.stat()?;
        Ok(stat.map(|stat| {
            let nanos = Duration::from_nanos(u64::from(stat.mtime.nanos));
            let secs = Duration::from_secs(stat.mtime.secs.unsigned_abs());
            if stat.mtime.secs < 0 {
                UNIX_EPOCH - secs + nanos
            } else {
                UNIX_EPOCH + secs + nanos
            }
        }))
    }

    /// Was the file changed, replaced or removed by somebody else since this stream last read or wrote it? `false`
    /// before that, as there is nothing to compare with.
    ///
    /// Asks with one stat(2) and compares all that it says of a change: device and inode, size, mtime, and ctime, which
    /// no program can set back (but chmod(2) moves it, too). A source that cannot be reached is an error, not a change.
    pub fn is_modified(&self) -> Result<bool> {
        match &self.seen {
            None => Ok(false),
            Some(seen) => {
                let stat = self.route.stat()?;
                Ok(stat.map(|stat| Version::of(&stat)) != Some(seen.version))
            }
        }
    }

    /// Name of a read at `pos`, `path:pos:size`. `None` is all the rest, printed as -1. Nothing is allocated.
    pub fn make_cache_key(&self, pos: u64, size: Option<usize>) -> CacheKey {
        self.route.key(match size {
            Some(size) => Span::new(pos, size as u64),
            None => Span::from(pos),
        })
    }

    /// Names of the slots that hold bytes of the open file, in order. They do not overlap.
    pub fn cache_keys(&self) -> Vec<CacheKey> {
        let keys = |open: &Arc<OpenFile>| self.route.cache.keys(open.id());
        self.open.as_ref().map(keys).unwrap_or_default()
    }

    /// The bytes that a read of `size` would return here, if all of them are cached and current. Neither the position
    /// moves nor do hooks fire. Slots that are stale are dropped, for which the source is asked with a stat(2) as often
    /// as the cache's `ttl` says.
    pub fn cache_get(&mut self, size: Option<usize>) -> Result<Option<Bytes>> {
        let span = self.route.span(self.pos, size);
        let open = self.file()?.clone();
        if let Some(hit) = self.hit(&open, span) {
            return Ok(Some(hit.pieces.into_bytes()));
        }
        let hit = self.hit_compared(&open, span)?;
        Ok(hit.map(|hit| hit.pieces.into_bytes()))
    }

    /// Keep `data` as the result of a read of `size` at `pos`, as far as nothing of it is cached yet.
    ///
    /// The caller says that these are the file's bytes, as of this stream's last read. When the file has changed since,
    /// they are not kept.
    pub fn cache_set(&mut self, pos: u64, size: Option<usize>, data: &Bytes) -> Result<()> {
        let open = self.file()?.clone();
        match self.ask(&open)? {
            Asked::Compared(Compared::Unsettled) | Asked::Replaced => return Ok(()),
            Asked::Compared(_) => {}
        }
        let now = self.route.cache.seen(open.id());
        let Some(now) = now.filter(|now| self.seen.is_none_or(|seen| seen == *now)) else {
            return Ok(());
        };
        let data = data.slice(..size.unwrap_or(data.len()).min(data.len()));
        self.route.cache.put(open.id(), now, pos, &data);
        self.seen = Some(now);
        Ok(())
    }

    /// `data` was written at `pos` in the file by other means than a stream or mount of this cache: patch the slots that
    /// it overlaps, and keep it as one. (A write through the stream has done so already.)
    ///
    /// The caller says that nothing else of the file has changed since it was last read: the other slots stay, too.
    pub fn cache_patch_on_write(&mut self, pos: u64, data: &Bytes) -> Result<()> {
        let open = self.file()?.clone();
        let cache = &self.route.cache;
        let ticket = cache.begin_write(open.id(), Span::new(pos, data.len() as u64));
        let backing = open.file.backing();
        let stat = backing.fd().and_then(|fd| backing.source().stat(&fd, true));
        let stat = stat.map_err(|error| self.route.os_error(error))?;
        ticket.commit(data, Version::of(&stat));
        self.seen = Some(self.route.stamped(&stat));
        Ok(())
    }

    /// Register `f` for `event`, one of [`VALID_EVENTS`](super::VALID_EVENTS). It is called after each read or write
    /// with the facts of the stream, the bytes and their number. Hooks are called in the order of registration.
    pub fn hook(
        &mut self,
        event: &str,
        f: impl Fn(&Facts, &Bytes, usize) + Send + Sync + 'static,
    ) -> Result<&mut Self> {
        Arc::make_mut(&mut self.hooks).add(event.parse()?, Hook::call(f));
        Ok(self)
    }

    /// As [`Cursor::hook`], with a closure that returns a future. An asynchronous stream awaits it before the operation
    /// returns; a synchronous one spawns it on the runtime that is running, or runs it to its end when there is none.
    #[cfg(feature = "async")]
    pub fn hook_async<F, R>(&mut self, event: &str, f: F) -> Result<&mut Self>
    where
        F: Fn(Facts, Bytes, usize) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Arc::make_mut(&mut self.hooks).add(event.parse()?, Hook::start(f));
        Ok(self)
    }

    /// Call the hooks of `event` with `data`, as if it had just been read or written at the position.
    pub fn fire_hooks(&self, event: &str, data: &Bytes) -> Result<()> {
        let facts = self.facts(event.parse()?, self.pos);
        self.hooks.fire(&facts, data);
        Ok(())
    }

    pub(super) fn facts(&self, event: Event, pos: u64) -> Facts {
        Facts {
            event,
            path: self.route.path.clone(),
            pos,
        }
    }

    /// All bytes that this stream has read so far, one read behind the other; `None` unless the builder's
    /// [`keep_read_bytes`](super::Builder::keep_read_bytes) asked for it.
    pub fn total_read_bytes(&self) -> Option<&[u8]> {
        self.collected.as_deref()
    }

    /// From memory, while what is cached is believed without asking.
    pub(super) fn hit(&self, open: &OpenFile, span: Span) -> Option<Hit> {
        let ttl = self.route.cache.ttl();
        if ttl.is_zero() {
            return None;
        }
        let hit = open.file.hit(span, Trust::Ttl)?;
        (!self.route.follows || hit.at.since(self.followed) < ttl).then_some(hit)
    }

    /// From memory, after asking the source.
    pub(super) fn hit_compared(&mut self, open: &OpenFile, span: Span) -> Result<Option<Hit>> {
        Ok(match self.ask(open)? {
            Asked::Replaced | Asked::Compared(Compared::Unsettled) => None,
            Asked::Compared(_) => open.file.hit(span, Trust::Any),
        })
    }

    fn ask(&mut self, open: &OpenFile) -> Result<Asked> {
        let now = self.route.cache.clock().now();
        let asked = self.route.ask(open);
        let asked = asked.map_err(|error| self.route.os_error(error))?;
        if !matches!(asked, Asked::Replaced) {
            self.followed = now;
        }
        Ok(asked)
    }

    /// Take over what a job of [`Route::read`] found.
    pub(super) fn landed(&mut self, got: Got) -> Bytes {
        self.seen = got.seen;
        self.followed = got.followed;
        self.open = Some(got.open);
        got.bytes
    }

    /// Take over what was found in the cache.
    pub(super) fn take(&mut self, hit: Hit) -> Pieces {
        self.seen = Some(hit.seen);
        hit.pieces
    }

    /// The bytes of a read at the position are on their way to the caller.
    pub(super) fn has_read(&mut self, pieces: &Pieces) {
        self.pos += pieces.len() as u64;
        if let Some(collected) = &mut self.collected {
            for piece in pieces.iter() {
                collected.extend_from_slice(piece);
            }
        }
    }

    pub(super) fn has_written(&mut self, put: &Put) {
        if put.seen.is_some() {
            self.seen = put.seen;
        }
    }

    pub(super) fn changed(&mut self, stat: &crate::sys::Stat) {
        self.seen = Some(self.route.stamped(stat));
    }
}

/// Closes. What close(2) has to say then goes to the log: call `close` to hear it.
impl Drop for Cursor {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let route = self.route.clone();
        let close = move || {
            if let Err(error) = route.close(&open) {
                tracing::error!("closing a stream that was dropped: {error}");
            }
        };
        #[cfg(feature = "async")]
        if self.closes_elsewhere
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn_blocking(close));
            return;
        }
        close();
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("path", &self.route.path)
            .field("mode", &self.route.mode)
            .field("is_open", &self.is_open())
            .field("pos", &self.pos)
            .field("hooks", &self.hooks)
            .finish_non_exhaustive()
    }
}
