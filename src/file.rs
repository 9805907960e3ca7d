//! The data path: everything that moves file bytes goes through [`CachedFile`].
//!
//! The kernel's face and the streams are only different ways to call `read_at` and `write_at`, so they
//! cannot differ in what they see. Promises:
//! * [`CachedFile::read_cached`] answers from memory or not at all: no system call, no waiting.
//! * [`CachedFile::read_at`] returns what the source holds, as believed for at most `ttl`; fewer bytes than
//!   asked only at the end of file. A cache that fails is a slower read, not an error.
//! * [`CachedFile::write_at`] returns when the bytes are in the source (in its page cache, as write(2) does;
//!   `sync` for the disk). Then every reader sees them. An error or a short write is reported as it is.
//! * With [`Ahead`], reading runs ahead of a program that reads on, and a long miss is fetched in parallel.

mod ahead;

pub use ahead::Ahead;

use crate::backing::BackingFile;
use crate::cache::{
    Cache, Compared, FileId, Fill, Found, Hit, OpenRecord, Pieces, Step, Trust, Version,
};
use crate::error::Result;
use crate::hooks::Served;
use crate::span::Span;
use crate::sys::Stat;
use ahead::Runner;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// Most that one read of the source asks for: what the kernel asks of us at most (1 MiB, `max_pages`).
/// A longer gap is read in several steps, so that no slot, and no copy under the lock, is larger.
const FETCH_BYTES_MAX: u64 = 1 << 20;

/// How often a write compares the file before it gives up what is cached, when other writes keep ending
/// meanwhile.
const COMPARE_TRIES: u32 = 3;

/// How often a read compares the file, when other comparisons or writes keep ending meanwhile.
const READ_TRIES: u32 = 2;

/// An open file with the cache in front of it.
pub struct CachedFile {
    data: Arc<Data>,
    runner: Option<Runner>,
}

/// What fetches ahead share with the open file. They do not keep it open.
struct Data {
    record: OpenRecord,
    backing: BackingFile,
}

/// A write or other change that went through, and the file's stat right after it.
#[derive(Clone, Copy, Debug)]
pub struct Changed<T> {
    /// What the operation returned.
    pub value: T,
    /// The file after it.
    pub stat: Stat,
}

impl CachedFile {
    /// `backing` as seen through its record.
    pub fn new(record: OpenRecord, backing: BackingFile) -> CachedFile {
        CachedFile {
            data: Arc::new(Data { record, backing }),
            runner: None,
        }
    }

    /// Read ahead of the program that has it open, from now on; `key` is the file's in the pool.
    pub fn reading_ahead(self, ahead: Option<&Arc<Ahead>>, key: u64) -> CachedFile {
        let runner = ahead.map(|ahead| Runner::new(ahead.clone(), key));
        CachedFile { runner, ..self }
    }

    /// The file's identity.
    pub fn id(&self) -> FileId {
        self.data.record.id()
    }

    /// The file of the source.
    pub fn backing(&self) -> &BackingFile {
        &self.data.backing
    }

    fn cache(&self) -> &Arc<Cache> {
        self.data.cache()
    }

    /// From memory alone, when all of the span is there and `trust` allows it.
    pub fn read_cached(&self, span: Span, trust: Trust) -> Option<Bytes> {
        self.hit(span, trust).map(|hit| hit.pieces.into_bytes())
    }

    /// As [`CachedFile::read_cached`], for a program that reads: what it will read next is fetched ahead.
    pub fn read_known(&self, span: Span, trust: Trust) -> Option<Bytes> {
        let hit = self.hit(span, trust)?;
        if let Some(runner) = &self.runner {
            runner.hit(&self.data, span, hit.seen.version.size);
        }
        Some(hit.pieces.into_bytes())
    }

    /// As [`CachedFile::read_cached`], with the pieces as they are.
    pub fn hit(&self, span: Span, trust: Trust) -> Option<Hit> {
        match self.cache().get(self.id(), span, trust) {
            Found::Hit(hit) => Some(hit),
            Found::Miss => None,
        }
    }

    /// Read `span`; shorter at end of file.
    pub fn read_at(&self, span: Span) -> Result<Bytes> {
        self.read_served(span).map(|(bytes, _)| bytes)
    }

    /// As [`CachedFile::read_at`], and where the bytes came from.
    pub fn read_served(&self, span: Span) -> Result<(Bytes, Served)> {
        let compared = self.compare_to_read()?;
        if compared == Compared::Same
            && let Some(bytes) = self.read_known(span, Trust::Any)
        {
            return Ok((bytes, Served::Memory));
        }
        let bytes = self.read_compared(span, compared)?;
        Ok((bytes, Served::Source))
    }

    /// Compare the record unless it is believed. A comparison that was overtaken is made once more: another one, of the same
    /// file being opened, may have ended meanwhile, and what is read without one is not kept.
    fn compare_to_read(&self) -> Result<Compared> {
        for _ in 0..READ_TRIES {
            if self.cache().is_trusted(self.id()) {
                return Ok(Compared::Same);
            }
            match self.compare(true)? {
                Compared::Unsettled => {}
                settled => return Ok(settled),
            }
        }
        Ok(Compared::Unsettled)
    }

    /// As [`CachedFile::read_at`], by a caller who has just compared the record, with this result.
    pub fn read_compared(&self, span: Span, compared: Compared) -> Result<Bytes> {
        if compared == Compared::Unsettled {
            // Writes of ours overtook the comparison. What the source says now is right in any case.
            return self.read_uncached(span);
        }
        if let Some(bytes) = self.read_known(span, Trust::Any) {
            return Ok(bytes);
        }
        self.cache().stats().misses.add(1);
        let (wide, step) = match &self.runner {
            Some(runner) => runner.miss(&self.data, span),
            None => (span, FETCH_BYTES_MAX),
        };
        self.read_missing(span, wide, step)
    }

    /// As [`CachedFile::read_compared`], for one who knows all that he will read: nothing is read ahead of him.
    pub fn read_exactly(&self, span: Span, compared: Compared) -> Result<Bytes> {
        match compared {
            Compared::Unsettled => self.read_uncached(span),
            _ => self.read_missing(span, span, FETCH_BYTES_MAX),
        }
    }

    /// Read `span`, and what else of `wide` one request of `step` bytes brings with it.
    fn read_missing(&self, span: Span, wide: Span, step: u64) -> Result<Bytes> {
        let mut pieces = Pieces::default();
        let mut at = wide.pos;
        let mut has_failed_ahead = false;
        while at < span.end() {
            let rest = Span::between(at, wide.end()).clip(at.saturating_add(step));
            let piece = match self.cache().next(self.id(), rest) {
                Step::Cached(bytes) => bytes,
                Step::End => break,
                Step::Join(flight) => match flight.wait(at) {
                    Ok(landed) => {
                        let wanted = rest.clip(flight.span().end());
                        landed.slice(..landed.len().min(wanted.size as usize))
                    }
                    // What failed ahead of us is not our error: we ask ourselves.
                    Err(_) if flight.is_ahead() && !has_failed_ahead => {
                        has_failed_ahead = true;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                Step::Lead(fill) => {
                    let ahead = self.runner.as_ref().map(|runner| &*runner.ahead);
                    self.data.lead(fill, ahead)?
                }
            };
            if piece.is_empty() {
                break;
            }
            let got = Span::new(at, piece.len() as u64);
            at = got.end();
            let asked = got.intersect(span);
            if !asked.is_empty() {
                pieces.push(piece.slice(asked.within(got.pos)));
            }
        }
        Ok(pieces.into_bytes())
    }

    fn read_uncached(&self, span: Span) -> Result<Bytes> {
        let mut pieces = Pieces::default();
        let mut at = span.pos;
        while at < span.end() {
            let step = Span::between(at, span.end()).clip(at.saturating_add(FETCH_BYTES_MAX));
            let piece = self.data.read_source(step)?;
            at += piece.len() as u64;
            let ended = (piece.len() as u64) < step.size;
            pieces.push(piece);
            if ended {
                break;
            }
        }
        Ok(pieces.into_bytes())
    }

    /// Compare the record with the source now. `fresh`: see [`crate::backing::Source::stat`].
    pub fn compare(&self, fresh: bool) -> Result<Compared> {
        let check = self.cache().begin_check(self.id());
        let fd = self.data.backing.fd()?;
        let stat = self.data.backing.source().stat(&fd, fresh)?;
        Ok(self.cache().finish_check(check, Version::of(&stat)))
    }

    /// Write all of `data` at `pos`; returns how many bytes went in. With `append` the source puts them at
    /// the end of the file, wherever that is by now, and `pos` is what the caller believed it to be.
    pub fn write_at(&self, pos: u64, data: Bytes, append: bool) -> Result<Changed<usize>> {
        let fd = self.data.backing.fd()?;
        let source = self.data.backing.source();
        self.compare_before_write()?;
        let size = data.len() as u64;
        // An append may land behind `pos`, so everything from there on is at stake.
        let at_stake = if append {
            Span::from(pos)
        } else {
            Span::new(pos, size)
        };
        let ticket = self.cache().begin_write(self.id(), at_stake);
        let put = if append {
            source.append(&fd, &data)?
        } else {
            source.write(&fd, &data, pos)?
        };
        let stat = source.stat(&fd, false)?;
        let after = Version::of(&stat);
        let landed = pos + put as u64;
        if append && stat.size != landed {
            ticket.commit_unknown(after);
        } else if append {
            ticket.commit_append(&data.slice(..put), after);
        } else {
            ticket.commit(&data.slice(..put), after);
        }
        Ok(Changed { value: put, stat })
    }

    /// Cut or extend the file.
    pub fn truncate(&self, size: u64) -> Result<Stat> {
        let fd = self.data.backing.fd()?;
        self.change(Span::from(size), || {
            self.data.backing.source().truncate(&fd, size)
        })
        .map(|changed| changed.stat)
    }

    /// Do something to the bytes of `span` in the source whose result is not known here (punch a hole,
    /// copy a range): as a write, but the bytes are dropped instead of patched.
    pub fn change<T>(
        &self,
        span: Span,
        operation: impl FnOnce() -> Result<T>,
    ) -> Result<Changed<T>> {
        let fd = self.data.backing.fd()?;
        self.compare_before_write()?;
        let ticket = self.cache().begin_write(self.id(), span);
        let value = operation()?;
        let stat = self.data.backing.source().stat(&fd, false)?;
        ticket.commit_unknown(Version::of(&stat));
        Ok(Changed { value, stat })
    }

    /// Our write will stamp the record with its own version. If a stranger changed the file since the last
    /// comparison, that stamp would declare what we hold to be current for ever; so look first. A record
    /// that holds nothing has nothing to lose.
    fn compare_before_write(&self) -> Result<()> {
        for _ in 0..COMPARE_TRIES {
            if !self.cache().holds(self.id()) || self.compare(false)? != Compared::Unsettled {
                return Ok(());
            }
        }
        // Writes of ours keep overtaking the comparison: then there is nothing to be declared current.
        self.cache().forget(self.id());
        Ok(())
    }
}

impl Data {
    fn cache(&self) -> &Arc<Cache> {
        self.record.cache()
    }

    /// Do what the ticket is for.
    fn lead(&self, fill: Fill, ahead: Option<&Ahead>) -> Result<Bytes> {
        let gap = fill.span();
        let begun = ahead.map(|ahead| (ahead, Instant::now()));
        match self.read_source(gap) {
            Ok(bytes) => {
                if let Some((ahead, begun)) = begun {
                    ahead.took(begun.elapsed(), gap.size);
                }
                if (bytes.len() as u64) < gap.size {
                    // The version promised more: somebody cut the file.
                    self.cache().distrust(self.record.id());
                }
                fill.complete(bytes.clone());
                Ok(bytes)
            }
            Err(error) => {
                fill.fail(error);
                Err(error)
            }
        }
    }

    fn read_source(&self, span: Span) -> Result<Bytes> {
        let fd = self.backing.fd()?;
        let mut buffer = self.cache().buffer(span.size as usize);
        let got = self.backing.source().read(&fd, &mut buffer, span.pos)?;
        if got == buffer.len() {
            return Ok(buffer.freeze());
        }
        // A buffer that is mostly empty would hold more memory than the cache counts; and what is behind the end is not
        // of this file.
        Ok(Bytes::copy_from_slice(&buffer[..got]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Call, Intercept, Source};
    use crate::clock::Clock;
    use crate::error::Error;
    use crate::stats::Stats;
    use nix::errno::Errno;
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;
    use std::time::Duration;

    /// Fails the calls of one kind.
    #[derive(Default)]
    struct Failing(Mutex<Option<(Call, Errno)>>);

    impl Intercept for Failing {
        fn before(&self, call: Call) -> nix::Result<()> {
            match *self.0.lock().expect("not poisoned") {
                Some((failing, errno)) if failing == call => Err(errno),
                _ => Ok(()),
            }
        }
    }

    struct World {
        dir: tempfile::TempDir,
        file: CachedFile,
        cache: Arc<Cache>,
        clock: Clock,
        failing: Arc<Failing>,
    }

    fn world(content: &[u8]) -> World {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f");
        std::fs::write(&path, content).expect("write");
        let stats = Arc::new(Stats::default());
        let failing = Arc::new(Failing::default());
        let source = Source::open(dir.path(), Some(failing.clone()), stats.clone()).expect("open");
        // A wall clock an hour ahead of every timestamp: no slot is racy.
        let clock = Clock::manual(std::time::SystemTime::now() + Duration::from_secs(3600));
        let cache = Arc::new(Cache::new(
            1 << 20,
            Duration::from_secs(1),
            clock.clone(),
            stats,
        ));
        let fd: OwnedFd = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open")
            .into();
        let source = Arc::new(source);
        let id = Version::of(&source.stat(&fd, true).expect("stat")).id;
        let record = cache.open(id, || path);
        let file = CachedFile::new(record, BackingFile::opened(source, Arc::new(fd)));
        World {
            dir,
            file,
            cache,
            clock,
            failing,
        }
    }

    #[test]
    fn a_second_read_asks_the_source_for_nothing() {
        let w = world(b"hello world");
        assert_eq!(
            &w.file.read_at(Span::new(0, 100)).expect("read")[..],
            b"hello world"
        );
        let calls = w.cache.stats().source_calls.get();
        assert_eq!(
            &w.file.read_at(Span::new(6, 5)).expect("read")[..],
            b"world"
        );
        assert_eq!(w.cache.stats().source_calls.get(), calls);
        assert_eq!(w.cache.stats().hits.get(), 1);
    }

    #[test]
    fn a_write_patches_the_slot_it_overlaps_and_keeps_it_warm() {
        let w = world(b"0123456789");
        w.file.read_at(Span::new(0, 10)).expect("read");
        w.file
            .write_at(3, Bytes::from_static(b"XYZ"), false)
            .expect("write");
        let fetched = w.cache.stats().fetched_bytes.get();
        assert_eq!(
            &w.file.read_at(Span::new(0, 10)).expect("read")[..],
            b"012XYZ6789"
        );
        assert_eq!(w.cache.stats().fetched_bytes.get(), fetched);
        assert_eq!(
            std::fs::read(w.dir.path().join("f")).expect("read"),
            b"012XYZ6789"
        );
        assert_eq!(w.cache.keys(w.file.id()).len(), 1);
        w.cache.assert_invariants();
    }

    /// A foreign change within the ttl, then a write of ours elsewhere in the file: stamping the record
    /// with our version used to hide the foreign bytes until the next foreign change.
    #[test]
    fn our_own_write_does_not_bless_a_strangers_change() {
        let w = world(b"0123456789");
        w.file.read_at(Span::new(0, 10)).expect("read");
        let path = w.dir.path().join("f");
        std::fs::write(&path, b"abcdefghij").expect("write");
        w.file
            .write_at(9, Bytes::from_static(b"!"), false)
            .expect("write");
        assert_eq!(
            &w.file.read_at(Span::new(0, 10)).expect("read")[..],
            b"abcdefghi!"
        );
    }

    #[test]
    fn an_unreachable_source_fails_misses_and_keeps_the_slots() {
        let w = world(b"0123456789");
        w.file.read_at(Span::new(0, 4)).expect("read");
        *w.failing.0.lock().expect("not poisoned") = Some((Call::Read, Errno::EIO));
        assert_eq!(
            w.file
                .read_at(Span::new(0, 8))
                .expect_err("must fail")
                .errno(),
            Errno::EIO
        );
        assert_eq!(&w.file.read_at(Span::new(0, 4)).expect("read")[..], b"0123");
        *w.failing.0.lock().expect("not poisoned") = Some((Call::Write, Errno::ENOSPC));
        let error = w
            .file
            .write_at(0, Bytes::from_static(b"no"), false)
            .expect_err("must fail");
        assert_eq!(error.errno(), Errno::ENOSPC);
        *w.failing.0.lock().expect("not poisoned") = None;
        assert_eq!(
            &w.file.read_at(Span::new(0, 10)).expect("read")[..],
            b"0123456789"
        );
    }

    #[test]
    fn a_strangers_change_is_seen_when_the_ttl_has_passed() {
        let w = world(b"old content");
        w.file.read_at(Span::new(0, 11)).expect("read");
        std::fs::write(w.dir.path().join("f"), b"NEW").expect("write");
        assert_eq!(&w.file.read_at(Span::new(0, 3)).expect("read")[..], b"old");
        w.clock.advance(Duration::from_secs(1));
        assert_eq!(&w.file.read_at(Span::new(0, 11)).expect("read")[..], b"NEW");
        assert_eq!(w.cache.stats().stale_records.get(), 1);
    }

    #[test]
    fn cutting_and_extending_reads_zeros() {
        let w = world(b"0123456789");
        w.file.read_at(Span::new(0, 10)).expect("read");
        w.file.truncate(4).expect("truncate");
        assert_eq!(
            &w.file.read_at(Span::new(0, 10)).expect("read")[..],
            b"0123"
        );
        w.file.truncate(6).expect("truncate");
        assert_eq!(
            &w.file.read_at(Span::new(0, 10)).expect("read")[..],
            b"0123\0\0"
        );
        w.cache.assert_invariants();
    }

    #[test]
    fn an_append_that_lands_elsewhere_is_not_believed_to_be_here() {
        let w = world(b"0123");
        let fd: OwnedFd = std::fs::File::options()
            .write(true)
            .read(true)
            .open(w.dir.path().join("f"))
            .expect("open")
            .into();
        let appender = CachedFile::new(
            w.cache.open(w.file.id(), || "f".into()),
            BackingFile::opened(w.file.backing().source().clone(), Arc::new(fd)),
        );
        w.file.read_at(Span::new(0, 4)).expect("read");
        appender
            .write_at(4, Bytes::from_static(b"ab"), true)
            .expect("append");
        assert_eq!(w.cache.keys(w.file.id()).len(), 2);
        // The kernel still believes that the file ends at 4.
        appender
            .write_at(4, Bytes::from_static(b"cd"), true)
            .expect("append");
        assert_eq!(
            &w.file.read_at(Span::new(0, 9)).expect("read")[..],
            b"0123abcd"
        );
        w.cache.assert_invariants();
    }

    /// Something read ahead of a program fails just when the program comes there: it is told what the source says to
    /// itself, not what it said before.
    #[test]
    fn who_joins_a_failed_fetch_ahead_asks_himself() {
        let w = world(b"0123456789");
        w.file.compare(true).expect("stat");
        let Step::Lead(fill) = w.cache.next_ahead(w.file.id(), Span::new(2, 4)) else {
            panic!("nothing is cached");
        };
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| w.file.read_at(Span::new(0, 10)));
            // From before the gap on it leads by itself; then it joins, unless the fetch has failed by then.
            while w.cache.keys(w.file.id()).is_empty() {
                std::thread::yield_now();
            }
            fill.fail(Error::new(Errno::EIO, "read"));
            let bytes = reader.join().expect("no panic").expect("read");
            assert_eq!(&bytes[..], b"0123456789");
        });
        // Up to the flight, the flight, and what was behind it: nothing overlaps.
        assert_eq!(w.cache.stats().fetched_bytes.get(), 10);
        w.cache.assert_invariants();
    }
}
