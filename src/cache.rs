//! The cache: bytes of files in memory, and when they may be believed. The only door to the slots.
//!
//! Vocabulary. A *slot* is bytes kept under one [`Key`] `path:pos:size`; slots of one file never overlap. A
//! *record* is what all opens of one file share: its version, its generation and its slots. It belongs to
//! the file (device and inode), so two hard links are one record, and a rename carries it along. A
//! [`Version`] is what `stat` says of the file.
//!
//! Promises:
//! * May be lost, never wrong. Nothing here fails: what cannot be kept is a miss.
//! * The bytes of a record are those of its version. They are handed out while the record was compared with
//!   the source less than `ttl` ago, or by a caller who has just compared it ([`Trust`]).
//! * A changed version is a stranger's write: all slots are dropped.
//! * Memory is bounded: bytes plus [`SLOT_OVERHEAD`] for each slot stay at or under the limit. What was read once goes
//!   before what was read again, and the least recently used of those first.
//! * Coherence under concurrent reads and writes is the business of the tickets, [`Fill`] and [`Write`], and
//!   is stated in their module.
//!
//! **Racy timestamps.** File systems stamp changes with a clock that ticks (every 1 to 10 ms on Linux, every
//! second on some servers, every two on FAT), so a second change within the tick of the first leaves no
//! trace in `stat`. As git does in its index, a slot that was filled within a tick of the file's last
//! change is not trusted beyond the next comparison: it is dropped there and read again.
//!
//! Locking: one mutex around the index; inside it only lookups and moves. Buffers are freed outside.

mod flight;
mod index;
mod order;
mod spare;
mod ticket;
mod whole;

pub use flight::Flight;
pub use index::{Pieces, SLOT_OVERHEAD};
pub use ticket::{Fill, Write};

use crate::clock::{Clock, Moment};
use crate::span::Span;
use crate::stats::Stats;
use crate::sys::{Stat, Time};
use bytes::{Bytes, BytesMut};
use index::Index;
use parking_lot::Mutex;
use spare::Spare;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A file, whatever its names: device and inode number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// What `stat` says of a file's content: two equal versions mean the same bytes (but see "racy timestamps"
/// in the module's text).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// The file.
    pub id: FileId,
    /// Its size in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of content or attributes. A program can set mtime back, but not this.
    pub ctime: Time,
}

impl Version {
    /// The version in a stat.
    pub fn of(stat: &Stat) -> Version {
        Version {
            id: FileId {
                dev: stat.dev,
                ino: stat.ino,
            },
            size: stat.size,
            mtime: stat.mtime,
            ctime: stat.ctime,
        }
    }

    /// Granularity of the file system's timestamps, as far as this one shows: whole seconds in both times
    /// mean a coarse clock (FAT counts in twos), else one tick of the slowest common kernel (HZ=100).
    fn tick(&self) -> i128 {
        if self.is_coarse() {
            2_000_000_000
        } else {
            10_000_000
        }
    }

    pub(crate) fn is_coarse(&self) -> bool {
        self.mtime.nanos == 0 && self.ctime.nanos == 0
    }

    /// Could the file change once more, after `wall`, without any trace in the version?
    pub(crate) fn is_racy(&self, wall: i128) -> bool {
        let (ctime, mtime) = (self.ctime.as_nanos(), self.mtime.as_nanos());
        // A ctime in the future means a server whose clock is ahead: nothing can be told, so: racy. An
        // mtime in the future was set by a program and says nothing.
        wall - ctime < self.tick() || (ctime < mtime && mtime <= wall && wall - mtime < self.tick())
    }

    /// The later of two versions that both describe the file after some of several concurrent writes.
    fn later(self, other: Version) -> Version {
        if (other.ctime, other.mtime, other.size) >= (self.ctime, self.mtime, self.size) {
            other
        } else {
            self
        }
    }
}

/// Name of a slot, or of a read, printed as `path:pos:size`. A size that reaches to the end of all files means
/// "all the rest", and is printed as -1.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Path of the file as it was opened first, or renamed to last.
    pub path: Arc<Path>,
    /// Offset of the first byte.
    pub pos: u64,
    /// Number of bytes.
    pub size: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.path.display(), self.pos)?;
        if Span::new(self.pos, self.size).end() == u64::MAX {
            f.write_str("-1")
        } else {
            write!(f, "{}", self.size)
        }
    }
}

/// How long ago the record must have been compared with the source for its bytes to be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Less than `ttl` ago.
    Ttl,
    /// The caller has compared it in this very operation, or knows that the source does not answer.
    Any,
}

/// A state of a record: bytes that were read in one belong to the file as long as the record is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What the source said of the file.
    pub version: Version,
    pub(crate) generation: u64,
}

/// Cached bytes, and what they are bytes of.
#[derive(Debug)]
pub struct Hit {
    /// The bytes.
    pub pieces: Pieces,
    /// The state of the record that they were taken from.
    pub seen: Seen,
    /// When.
    pub at: Moment,
}

/// What [`Cache::get`] found.
#[derive(Debug)]
pub enum Found {
    /// All of the span that lies before the end of file.
    Hit(Hit),
    /// Not all of it is here, or it is too old to be believed.
    Miss,
}

/// The next step of a read that [`Cache::next`] found at the start of a span.
#[derive(Debug)]
pub enum Step {
    /// These bytes are cached.
    Cached(Bytes),
    /// Nobody is reading this gap: read it and complete the ticket.
    Lead(Fill),
    /// Somebody is: wait for the flight.
    Join(Arc<Flight>),
    /// The span begins at or behind the end of file.
    End,
}

/// Result of comparing a record with the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// Nothing changed.
    Same,
    /// The record held nothing, and has a version from now on.
    New,
    /// Somebody else changed the file (or may have, in a racy tick): slots were dropped.
    Changed,
    /// Writes of ours were under way, so the comparison says nothing. The record is as it was.
    Unsettled,
}

/// A comparison under way, from [`Cache::begin_check`].
#[derive(Clone, Copy, Debug)]
pub struct Check {
    id: FileId,
    generation: u64,
    writers: u32,
    begun: Moment,
}

/// Told of what leaves the cache without anybody having asked for it. Called without any lock held; must not block.
pub trait Observe: Send + Sync + 'static {
    /// A slot went, to make room.
    fn evicted(&self, key: Key);
    /// The source had changed this file; its slots went.
    fn stale(&self, path: Arc<Path>);
}

/// Most files that are pinned at once: a record of one that has no slots costs some 200 bytes.
const PINS_MAX: usize = 65_536;

/// The cache. Shared by all faces; one is enough for a process.
pub struct Cache {
    index: Mutex<Index>,
    spare: Spare,
    observer: std::sync::OnceLock<std::sync::Weak<dyn Observe>>,
    clock: Clock,
    stats: Arc<Stats>,
    ttl: Duration,
}

/// Keeps a record alive while a file is open; records of closed files live as long as their slots.
pub struct OpenRecord {
    cache: Arc<Cache>,
    id: FileId,
}

impl OpenRecord {
    /// The file.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The cache that it is in.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.cache.index.lock().release(self.id);
    }
}

impl Cache {
    /// A cache of at most `bytes_max` bytes whose records are believed for `ttl` after a comparison.
    pub fn new(bytes_max: u64, ttl: Duration, clock: Clock, stats: Arc<Stats>) -> Cache {
        Cache {
            index: Mutex::new(Index::new(bytes_max, ttl)),
            spare: Spare::default(),
            observer: std::sync::OnceLock::new(),
            clock,
            stats,
            ttl,
        }
    }

    /// A cache for streams, on the machine's clocks and with counters of its own.
    pub fn shared(bytes_max: u64, ttl: Duration) -> Arc<Cache> {
        Arc::new(Cache::new(
            bytes_max,
            ttl,
            Clock::system(),
            Arc::new(Stats::default()),
        ))
    }

    /// Tell `observer` from now on; the first one stays.
    pub fn set_observer(&self, observer: std::sync::Weak<dyn Observe>) {
        if self.observer.set(observer).is_ok() {
            self.index.lock().watched = true;
        }
    }

    /// Count, tell and free what was taken out of the index, whose lock is gone.
    fn settle(&self, mut dropped: index::Dropped) {
        self.stats.evicted_slots.add(dropped.evicted);
        self.stats.ahead_lost_bytes.add(dropped.unread);
        self.spare.keep(std::mem::take(&mut dropped.bytes));
        if dropped.keys.is_empty() && dropped.stale.is_none() {
            return;
        }
        if let Some(observer) = self.observer.get().and_then(std::sync::Weak::upgrade) {
            for key in dropped.keys {
                observer.evicted(key);
            }
            if let Some(path) = dropped.stale {
                observer.stale(path);
            }
        }
    }

    /// A buffer of `size` bytes to read into, with anything in it.
    pub(crate) fn buffer(&self, size: usize) -> BytesMut {
        self.spare.take(size)
    }

    /// How long a comparison is believed.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Most bytes that it holds.
    pub fn bytes_max(&self) -> u64 {
        self.index.lock().bytes_max()
    }

    /// The clock that it measures with.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The record of `id`, made when there is none. `path` names its slots.
    pub fn open(self: &Arc<Self>, id: FileId, path: impl FnOnce() -> PathBuf) -> OpenRecord {
        self.index.lock().acquire(id, path);
        OpenRecord {
            cache: self.clone(),
            id,
        }
    }

    /// The file is now called `path`.
    pub fn rename(&self, id: FileId, path: &Path) {
        self.index.lock().rename(id, path);
    }

    /// Bytes of `span`, clipped at end of file, if all of them are here and believed.
    pub fn get(&self, id: FileId, span: Span, trust: Trust) -> Found {
        let now = self.clock.now();
        let mut index = self.index.lock();
        if trust == Trust::Ttl && !index.is_trusted(id, now) {
            return Found::Miss;
        }
        match index.covered(id, span) {
            Some((pieces, seen)) => {
                let used = std::mem::take(&mut index.ahead_used);
                drop(index);
                self.stats.ahead_used_bytes.add(used);
                self.stats.hits.add(1);
                self.stats.hit_bytes.add(pieces.len() as u64);
                Found::Hit(Hit {
                    pieces,
                    seen,
                    at: now,
                })
            }
            None => Found::Miss,
        }
    }

    /// Are all bytes of `span` here that lie before the end of file? Nobody reads them by that.
    pub fn covers(&self, id: FileId, span: Span) -> bool {
        self.index.lock().covers(id, span)
    }

    /// One step of a read from the start of `span` on: cached bytes, or what to do about their absence.
    /// The lookup, the search for a flight and the start of one are one critical section.
    pub fn next(self: &Arc<Self>, id: FileId, span: Span) -> Step {
        let step = self.index.lock().next(id, span, false);
        self.step(id, step)
    }

    /// As [`Cache::next`], for a fetch that no reader waits for so far: what is cached does not count as used by it, and
    /// readers who join it do not take its failure for theirs.
    pub(crate) fn next_ahead(self: &Arc<Self>, id: FileId, span: Span) -> Step {
        let step = self.index.lock().next(id, span, true);
        self.step(id, step)
    }

    fn step(self: &Arc<Self>, id: FileId, step: index::Next) -> Step {
        match step {
            index::Next::Cached(bytes) => Step::Cached(bytes),
            index::Next::Join(flight) => Step::Join(flight),
            index::Next::End => Step::End,
            index::Next::Gap {
                gap,
                generation,
                flight,
            } => Step::Lead(Fill::new(self.clone(), id, gap, generation, flight)),
        }
    }

    /// Keep those of `spans` that are not cached as a whole. What is cached is not evicted soon.
    pub(crate) fn retain_missing<A: smallvec::Array<Item = Span>>(
        &self,
        id: FileId,
        spans: &mut smallvec::SmallVec<A>,
    ) {
        let mut index = self.index.lock();
        spans.retain(|span| !index.keeps(id, *span));
    }

    /// Was the record compared with the source less than `ttl` ago?
    pub fn is_trusted(&self, id: FileId) -> bool {
        let now = self.clock.now();
        self.index.lock().is_trusted(id, now)
    }

    /// Has the record any slot, or will it soon (a read is under way)? Then a write must first make sure that
    /// nobody else changed the file, or stamping the record with its own version would hide that change for
    /// ever.
    pub fn holds(&self, id: FileId) -> bool {
        self.index.lock().holds(id)
    }

    /// The version that the record's bytes belong to.
    pub fn version(&self, id: FileId) -> Option<Version> {
        self.index.lock().version(id)
    }

    /// Has the record bytes that the next comparison drops even if it finds nothing changed?
    pub(crate) fn is_racy(&self, id: FileId) -> bool {
        self.index.lock().is_racy(id)
    }

    /// The state of the record: its version, and how many changes of ours it has seen.
    pub fn seen(&self, id: FileId) -> Option<Seen> {
        self.index.lock().seen(id)
    }

    /// Keep `bytes`, which the caller read at `pos` while the record was in the state `seen`. Dropped when it is in
    /// another one by now.
    pub fn put(&self, id: FileId, seen: Seen, pos: u64, bytes: &Bytes) {
        let wall = self.clock.wall();
        let span = Span::new(pos, bytes.len() as u64);
        let mut index = self.index.lock();
        if index.seen(id) != Some(seen) {
            return;
        }
        let evicted = index.complete_fill(id, span, span, seen.generation, (bytes, false), wall);
        drop(index);
        self.settle(evicted);
    }

    /// Begin to compare the record with the source: call this, then `stat`, then [`Cache::finish_check`].
    pub fn begin_check(&self, id: FileId) -> Check {
        let begun = self.clock.now();
        let (generation, writers) = self.index.lock().generation(id);
        Check {
            id,
            generation,
            writers,
            begun,
        }
    }

    /// Compare: `version` is what the source said after [`Cache::begin_check`].
    pub fn finish_check(&self, check: Check, version: Version) -> Compared {
        let (compared, dropped) = self.index.lock().compare(
            check.id,
            (check.generation, check.writers),
            check.begun,
            version,
        );
        if compared == Compared::Changed {
            self.stats.stale_records.add(1);
        }
        self.settle(dropped);
        compared
    }

    /// The source was seen with `version` at `when`, in passing (a lookup, a listing). If the record has that
    /// very version it counts as compared then. If it has another it is believed no longer: the kernel, told of
    /// the new attributes, drops its pages once, and must not be given the old bytes again.
    /// `trust`: for how long a comparison of this file is believed from now on.
    pub fn confirm(&self, version: Version, when: Moment, trust: Duration) {
        self.index.lock().confirm(version, when, trust);
    }

    /// A change of the attributes through us, which moved ctime (and maybe mtime) but no byte:
    /// carry the slots over to the new version. `before` is the version just before the change.
    pub fn restamp(&self, before: Version, after: Version) {
        let now = self.clock.now();
        self.index.lock().restamp(before, after, now);
    }

    /// Begin a write of `span`.
    pub fn begin_write(self: &Arc<Self>, id: FileId, span: Span) -> Write {
        let begun = self.index.lock().begin_write(id);
        Write::new(self.clone(), id, span, begun)
    }

    /// The file ended before its version says: somebody cut it. Nothing of the record is believed until it
    /// is compared again.
    pub fn distrust(&self, id: FileId) {
        self.index.lock().distrust(id);
    }

    /// Forget all slots of a file, and what reads that are under way will bring.
    pub fn forget(&self, id: FileId) {
        let dropped = self.index.lock().forget(id);
        drop(dropped);
    }

    /// Drop all slots of a file; returns how many bytes they had.
    pub fn evict(&self, id: FileId) -> u64 {
        let dropped = self.index.lock().evict(id);
        dropped.len()
    }

    /// Files that have slots and were last known by a name below `dir`.
    pub fn files_below(&self, dir: &Path) -> Vec<FileId> {
        self.index.lock().files_below(dir)
    }

    /// Keep the slots of a file out of eviction, those that it has and those to come, until [`Cache::unpin`]. All pinned
    /// slots together have half of the memory; what goes beyond that is evicted as usual. False when too many files
    /// are pinned already. `path` names its slots.
    pub fn pin(&self, id: FileId, path: impl FnOnce() -> PathBuf) -> bool {
        self.index.lock().pin(id, path, PINS_MAX)
    }

    /// The file's slots are evicted as all others are.
    pub fn unpin(&self, id: FileId) {
        self.index.lock().unpin(id);
    }

    /// Names of all slots of a file, in order.
    pub fn keys(&self, id: FileId) -> Vec<Key> {
        self.index.lock().keys(id)
    }

    /// Bytes held, with [`SLOT_OVERHEAD`] for each slot, and the names of what was let go: what the limit is compared
    /// with.
    pub fn bytes_used(&self) -> u64 {
        self.index.lock().bytes_used()
    }

    /// Bytes of it that are pinned.
    pub fn bytes_pinned(&self) -> u64 {
        self.index.lock().bytes_pinned()
    }

    /// Check every invariant of the index, for tests and debugging: panics with what is broken.
    pub fn assert_invariants(&self) {
        self.index.lock().assert_invariants();
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("ttl", &self.ttl)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn at(secs: i64, nanos: u32) -> Time {
        Time { secs, nanos }
    }

    fn version(mtime: Time, ctime: Time) -> Version {
        Version {
            id: FileId { dev: 1, ino: 2 },
            size: 8,
            mtime,
            ctime,
        }
    }

    fn cache(ttl: Duration) -> (Arc<Cache>, Clock) {
        let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(1000));
        let cache = Cache::new(1 << 20, ttl, clock.clone(), Arc::new(Stats::default()));
        (Arc::new(cache), clock)
    }

    fn fill(cache: &Arc<Cache>, id: FileId, span: Span, byte: u8) {
        match cache.next(id, span) {
            Step::Lead(fill) => fill.complete(Bytes::from(vec![byte; span.size as usize])),
            other => panic!("expected a gap, got {other:?}"),
        }
    }

    #[test]
    fn a_record_is_believed_for_its_ttl_and_no_longer() {
        let (cache, clock) = cache(Duration::from_secs(1));
        let version = version(at(10, 5), at(10, 5));
        let record = cache.open(version.id, || "f".into());
        let check = cache.begin_check(record.id());
        assert_eq!(cache.finish_check(check, version), Compared::New);
        fill(&cache, record.id(), Span::new(0, 8), 7);
        clock.advance(Duration::from_millis(999));
        assert!(matches!(
            cache.get(record.id(), Span::new(2, 4), Trust::Ttl),
            Found::Hit(_)
        ));
        clock.advance(Duration::from_millis(1));
        assert!(matches!(
            cache.get(record.id(), Span::new(2, 4), Trust::Ttl),
            Found::Miss
        ));
        let check = cache.begin_check(record.id());
        assert_eq!(cache.finish_check(check, version), Compared::Same);
        assert!(matches!(
            cache.get(record.id(), Span::new(2, 400), Trust::Ttl),
            Found::Hit(hit) if hit.pieces.len() == 6
        ));
        assert_eq!(cache.keys(record.id())[0].to_string(), "f:0:8");
    }

    /// Two changes in one tick of the file system's clock look like one. The slot filled between them
    /// must not outlive the next comparison, although that finds the same version.
    #[test]
    fn a_slot_filled_within_a_tick_of_the_change_is_read_again() {
        for (changed, racy) in [
            (at(999, 999_000_000), true),
            (at(999, 900_000_000), false),
            (at(999, 0), true),
            (at(997, 0), false),
            (at(5000, 1), true),
        ] {
            let (cache, clock) = cache(Duration::from_secs(1));
            let version = version(changed, changed);
            let record = cache.open(version.id, || "f".into());
            let check = cache.begin_check(record.id());
            cache.finish_check(check, version);
            fill(&cache, record.id(), Span::new(0, 8), 7);
            clock.advance(Duration::from_secs(3));
            let check = cache.begin_check(record.id());
            let expected = if racy {
                Compared::Changed
            } else {
                Compared::Same
            };
            assert_eq!(cache.finish_check(check, version), expected, "{changed:?}");
            assert_eq!(cache.holds(record.id()), !racy);
        }
    }

    #[test]
    fn an_mtime_set_into_the_future_is_no_race() {
        let version = version(at(9_000_000, 1), at(10, 1));
        assert!(!version.is_racy(1_000_000_000_000));
    }

    #[test]
    fn a_closed_file_keeps_its_slots_and_an_empty_record_goes() {
        let (cache, _clock) = cache(Duration::from_secs(1));
        let version = version(at(10, 5), at(10, 5));
        let record = cache.open(version.id, || "f".into());
        let check = cache.begin_check(record.id());
        cache.finish_check(check, version);
        fill(&cache, version.id, Span::new(0, 8), 7);
        drop(record);
        assert!(cache.holds(version.id));
        cache.evict(version.id);
        assert_eq!(cache.version(version.id), None);
        assert_eq!(cache.bytes_used(), 0);
        cache.assert_invariants();
    }

    const FILE: u64 = 64 << 10;

    /// A megabyte of memory, in front of files of 64 KiB in one slot each.
    struct Files {
        cache: Arc<Cache>,
        open: Vec<OpenRecord>,
    }

    impl Files {
        fn new(count: u64) -> Files {
            let (cache, _clock) = cache(Duration::from_secs(1));
            let open = |ino| {
                let id = FileId { dev: 1, ino };
                let record = cache.open(id, || ino.to_string().into());
                let version = Version {
                    id,
                    size: FILE,
                    ..version(at(10, 5), at(10, 5))
                };
                cache.finish_check(cache.begin_check(id), version);
                record
            };
            let open = (0..count).map(open).collect();
            Files { cache, open }
        }

        /// Was the span there? If not, the whole file is fetched for it.
        fn read_span(&self, file: usize, span: Span) -> bool {
            let id = self.open[file].id();
            if let Found::Hit(_) = self.cache.get(id, span, Trust::Any) {
                return true;
            }
            match self.cache.next(id, Span::new(0, FILE)) {
                Step::Lead(fill) => fill
                    .wanted(span)
                    .complete(Bytes::from_static(&[7; FILE as usize])),
                other => panic!("expected a gap, got {other:?}"),
            }
            self.cache.assert_invariants();
            false
        }

        fn read(&self, file: usize) -> bool {
            self.read_span(file, Span::new(0, FILE))
        }

        /// A pass in pieces, as a program reads with O_DIRECT.
        fn read_in_pieces(&self, file: usize) {
            for pos in (0..FILE).step_by(4096) {
                self.read_span(file, Span::new(pos, 4096));
            }
        }

        fn holds(&self, file: usize) -> bool {
            self.cache.holds(self.open[file].id())
        }
    }

    #[test]
    fn a_backup_that_reads_everything_once_leaves_the_working_set() {
        let files = Files::new(200);
        let hot = 0..8;
        for _ in 0..2 {
            hot.clone().for_each(|file| files.read_in_pieces(file));
        }
        (0..200).for_each(|file| files.read_in_pieces(file));
        for file in hot {
            assert!(files.read(file), "{file} went");
        }
        assert!(files.cache.stats().evicted_slots.get() > 150);
        assert!(files.cache.bytes_used() <= files.cache.bytes_max());
    }

    #[test]
    fn a_slot_used_twice_survives_a_scan_and_one_used_once_does_not() {
        let files = Files::new(60);
        files.read(0);
        files.read(1);
        assert!(files.read(1));
        (2..60).for_each(|file| assert!(!files.read(file)));
        assert!(!files.holds(0));
        assert!(files.read(1));
    }

    #[test]
    fn reading_one_slot_in_pieces_is_one_use() {
        let files = Files::new(60);
        files.read_in_pieces(0);
        (1..60).for_each(|file| files.read_in_pieces(file));
        assert!(!files.holds(0));
    }

    #[test]
    fn what_was_fetched_ahead_is_used_when_it_is_read() {
        let files = Files::new(60);
        files.read_span(0, Span::new(0, 4096));
        // The first read of most of it.
        assert!(files.read_span(0, Span::new(4096, FILE - 4096)));
        (1..40).for_each(|file| assert!(!files.read(file)));
        assert!(!files.holds(0));
    }

    /// A build writes most of its files to be read once.
    #[test]
    fn what_was_written_is_found_and_goes_when_it_was_read_once() {
        let files = Files::new(60);
        let id = files.open[0].id();
        let before = files.cache.version(id).expect("a version");
        let write = files.cache.begin_write(id, Span::new(0, FILE));
        write.commit(&Bytes::from_static(&[8; FILE as usize]), before);
        (1..10).for_each(|file| assert!(!files.read(file)));
        assert!(files.read(0));
        (10..60).for_each(|file| assert!(!files.read(file)));
        assert!(!files.holds(0));
    }

    #[test]
    fn pinned_slots_stay_whatever_the_order() {
        let files = Files::new(60);
        let id = files.open[0].id();
        files.read(0);
        assert!(files.cache.pin(id, || "0".into()));
        for _ in 0..3 {
            (1..60).for_each(|file| {
                files.read(file);
            });
        }
        assert!(files.read(0));
        files.cache.unpin(id);
        (1..60).for_each(|file| {
            files.read(file);
        });
        assert!(!files.holds(0));
    }

    /// Something is fetched ahead in the middle of what a reader asks for: he fetches what is before and behind it.
    #[test]
    fn a_gap_ends_where_another_flight_begins() {
        let (cache, _clock) = cache(Duration::from_secs(1));
        let version = version(at(10, 5), at(10, 5));
        let record = cache.open(version.id, || "f".into());
        let check = cache.begin_check(record.id());
        cache.finish_check(check, version);
        let Step::Lead(ahead) = cache.next_ahead(version.id, Span::new(3, 2)) else {
            panic!("nothing is cached");
        };
        let Step::Lead(before) = cache.next(version.id, Span::new(0, 8)) else {
            panic!("nothing is cached");
        };
        assert_eq!(before.span(), Span::new(0, 3));
        assert!(
            matches!(cache.next(version.id, Span::new(3, 5)), Step::Join(flight) if flight.is_ahead())
        );
        let Step::Lead(behind) = cache.next(version.id, Span::new(5, 3)) else {
            panic!("nothing is cached");
        };
        assert_eq!(behind.span(), Span::new(5, 3));
        for fill in [behind, ahead, before] {
            let size = fill.span().size as usize;
            fill.complete(Bytes::from(vec![1; size]));
        }
        assert_eq!(cache.keys(version.id).len(), 3);
        assert_eq!(cache.stats().ahead_bytes.get(), 2);
        assert_eq!(cache.stats().ahead_used_bytes.get(), 2, "somebody joined");
        cache.assert_invariants();
    }

    #[test]
    fn what_is_fetched_ahead_is_used_or_lost() {
        let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(1000));
        let stats = Arc::new(Stats::default());
        let room = 2 * (SLOT_OVERHEAD + 2);
        let cache = Arc::new(Cache::new(
            room,
            Duration::from_secs(1),
            clock,
            stats.clone(),
        ));
        let version = version(at(10, 5), at(10, 5));
        let record = cache.open(version.id, || "f".into());
        let check = cache.begin_check(record.id());
        cache.finish_check(check, version);
        let ahead = |pos| match cache.next_ahead(version.id, Span::new(pos, 2)) {
            Step::Lead(fill) => fill.complete(Bytes::from_static(b"ab")),
            other => panic!("expected a gap, got {other:?}"),
        };
        ahead(0);
        ahead(2);
        assert!(matches!(
            cache.get(version.id, Span::new(0, 2), Trust::Any),
            Found::Hit(_)
        ));
        ahead(4);
        ahead(6);
        let unread = cache
            .keys(version.id)
            .iter()
            .filter(|key| key.pos > 0)
            .count();
        assert_eq!(stats.ahead_bytes.get(), 8);
        assert_eq!(stats.ahead_used_bytes.get(), 2);
        assert_eq!(stats.ahead_lost_bytes.get(), 6 - 2 * unread as u64);
    }
}
