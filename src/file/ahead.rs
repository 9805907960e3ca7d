//! Fetching ahead of programs: what [`Streams`] plans for an open file, done in parallel on the pool for that.
//!
//! Promises:
//! * A reader never waits for it: nothing is reserved before its fetch starts, so who needs bytes that are still queued
//!   fetches them himself, and who comes while they are under way joins.
//! * A limit on everything. All windows together have at most half of the memory tier, shared by the files that are read
//!   ahead of at the time. What is in flight has at most a quarter of it, and one thread for each unit. When slots are
//!   evicted before they were read, there is less room than that: the windows halve, and grow again slowly.
//! * A source that answers at once is not read ahead of: handing over costs more than it saves. See [`QUICK`].
//! * A failure is nobody's error. It closes the window to its smallest, until reading goes on.

use super::{Data, FETCH_BYTES_MAX};
use crate::cache::{Cache, Step};
use crate::clock::Moment;
use crate::prefetch::{Fetched, Plan, Streams, UNIT};
use crate::span::Span;
use crate::stats::Stats;
use crate::workers::Pool;
use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A source that usually reads a unit faster than this is not read ahead of. On a virtual machine with ext4 a unit took 10 us
/// from the page cache and 200 us (nine in ten below 270) from the disk at random places; below sequential reads the kernel
/// reads ahead by itself. Handing over to a thread costs up to 54 us each time (see `patience::HERE_MAX`), so there is
/// little to gain below this. A guess between those figures, not an optimum that was searched for.
const QUICK: Duration = Duration::from_micros(300);

/// For so long a file counts as being read ahead of after its last refill.
const ACTIVE_FOR: Duration = Duration::from_secs(1);

/// Reads ahead of the programs of one mount.
pub struct Ahead {
    pool: Pool,
    readahead: u64,
    memory: u64,
    stats: Arc<Stats>,
    /// Running median of the time in which the source reads up to a unit, in nanoseconds; 0 before the first.
    usual: AtomicU64,
    /// Longest window that a file may have now.
    window_max: AtomicU64,
    /// Bytes that are being fetched.
    in_flight: AtomicU64,
    share: Mutex<Share>,
}

/// How the room for windows is shared out. Looked at when a window is refilled, not at every read.
#[derive(Debug)]
struct Share {
    /// Bytes of all windows together.
    room: u64,
    /// Bytes evicted unread until it was made smaller last, and until the last refill.
    lost: (u64, u64),
    since: Moment,
    /// Number of the period that began then.
    period: u64,
    /// Files with refills in this period, and in the one before.
    active: (u64, u64),
}

impl Ahead {
    /// Read up to `readahead` bytes ahead on `pool`, for files that are kept in `cache`.
    pub fn new(cache: &Cache, pool: Pool, readahead: u64) -> Ahead {
        let memory = cache.bytes_max();
        // Less than a unit would be none.
        let readahead = if readahead > 0 {
            readahead.max(UNIT)
        } else {
            0
        };
        Ahead {
            pool,
            readahead,
            memory,
            stats: cache.stats().clone(),
            usual: AtomicU64::new(0),
            window_max: AtomicU64::new(readahead.min(memory / 2)),
            in_flight: AtomicU64::new(0),
            share: Mutex::new(Share {
                room: memory / 2,
                lost: (0, 0),
                since: cache.clock().now(),
                period: 1,
                active: (0, 0),
            }),
        }
    }

    /// The source took so long to read `size` bytes.
    pub(super) fn took(&self, time: Duration, size: u64) {
        let units = size.div_ceil(UNIT).max(1);
        let took = (time.as_nanos() as u64 / units).max(1);
        let usual = self.usual.load(Ordering::Relaxed);
        // Each read moves it by a quarter: a dozen reads after a server's own cache has run out it is known to be slow.
        let next = match usual {
            0 => took,
            _ if took > usual => usual + usual / 4 + 1,
            _ => usual - usual / 4,
        };
        self.usual.store(next, Ordering::Relaxed);
    }

    fn is_quick(&self) -> bool {
        let usual = self.usual.load(Ordering::Relaxed);
        usual != 0 && u128::from(usual) < QUICK.as_nanos()
    }

    fn window_max(&self) -> u64 {
        if self.is_quick() {
            return 0;
        }
        self.window_max.load(Ordering::Relaxed)
    }

    /// A window is refilled, or cannot be, of a file that was counted as active last in the period `counted`.
    fn share_out(&self, now: Moment, counted: &AtomicU64) {
        let mut share = self.share.lock();
        if now.since(share.since) >= ACTIVE_FOR {
            share.since = now;
            share.period += 1;
            share.active = (0, share.active.0);
        }
        if counted.swap(share.period, Ordering::Relaxed) != share.period {
            share.active.0 += 1;
        }
        let files = share.active.0.max(share.active.1).max(1);
        let (most, least) = (self.memory / 2, files * UNIT);
        let lost = self.stats.ahead_lost_bytes.get();
        if lost - share.lost.0 > share.room / 8 {
            share.room = (share.room / 2).max(least).min(most);
            share.lost.0 = lost;
        } else if lost == share.lost.1 {
            share.room = (share.room + UNIT).min(most);
        }
        share.lost.1 = lost;
        let window = (share.room / files).min(self.readahead);
        self.window_max.store(window, Ordering::Relaxed);
    }

    /// Room for a unit among the bytes in flight. There always is for one.
    fn take_off(&self, size: u64) -> Option<InFlight<'_>> {
        let before = self.in_flight.fetch_add(size, Ordering::Relaxed);
        let in_flight = InFlight { ahead: self, size };
        (before == 0 || before + size <= self.memory / 4).then_some(in_flight)
    }
}

struct InFlight<'a> {
    ahead: &'a Ahead,
    size: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let in_flight = &self.ahead.in_flight;
        in_flight.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// What reads one open file ahead.
pub(super) struct Runner {
    pub(super) ahead: Arc<Ahead>,
    /// The file's key in the pool.
    key: u64,
    streams: Arc<Mutex<Streams>>,
    /// The period in which it was counted as active last.
    counted: AtomicU64,
}

impl Runner {
    pub(super) fn new(ahead: Arc<Ahead>, key: u64) -> Runner {
        Runner {
            ahead,
            key,
            streams: Arc::default(),
            counted: AtomicU64::new(0),
        }
    }

    /// `span` of a file of `size` bytes was read from memory.
    pub(super) fn hit(&self, data: &Arc<Data>, span: Span, size: u64) {
        self.read(data, span, size, true);
    }

    /// `span` is read, and missing. Returns what to fetch for it, which has it all, and most for one request.
    pub(super) fn miss(&self, data: &Arc<Data>, span: Span) -> (Span, u64) {
        let Some(version) = data.cache().version(data.record.id()) else {
            // Nothing says where the file ends, and nothing can be kept.
            return (span, FETCH_BYTES_MAX);
        };
        let plan = self.read(data, span, version.size, false);
        if version.size <= UNIT && version.size <= self.ahead.memory / 4 {
            return (Span::new(0, version.size), UNIT);
        }
        if self.ahead.is_quick() {
            return (plan.demand, FETCH_BYTES_MAX);
        }
        // The reader begins with the first unit; what helpers have not begun when he comes to it he fetches, too.
        let mut rest: SmallVec<[Span; 8]> = smallvec![];
        let mut at = plan.demand.pos.saturating_add(UNIT);
        while at < plan.demand.end() {
            rest.push(Span::new(at, UNIT).clip(plan.demand.end()));
            at += UNIT;
        }
        data.cache().retain_missing(data.record.id(), &mut rest);
        for unit in rest {
            let (data, ahead) = (Arc::downgrade(data), self.ahead.clone());
            self.ahead.pool.submit(self.key, move || {
                if let Some(data) = data.upgrade() {
                    fetch(&data, &ahead, unit);
                }
            });
        }
        (plan.demand, UNIT)
    }

    fn read(&self, data: &Arc<Data>, span: Span, size: u64, hit: bool) -> Plan {
        let stats = &self.ahead.stats;
        stats.asked_bytes.add(span.clip(size).size);
        let window_max = self.ahead.window_max();
        let mut plan = self.streams.lock().read(span, size, window_max, hit);
        if !plan.ahead.is_empty() {
            self.ahead
                .share_out(data.cache().clock().now(), &self.counted);
            self.submit(data, &mut plan);
        }
        plan
    }

    /// Hand over what is planned and not in memory yet.
    fn submit(&self, data: &Arc<Data>, plan: &mut Plan) {
        let planned = plan.ahead.len();
        let cache = data.cache();
        cache.retain_missing(data.record.id(), &mut plan.ahead);
        let stream = plan.stream;
        let known = (planned - plan.ahead.len()) as u32;
        if known > 0 {
            self.streams.lock().skip(stream, known);
        }
        for &unit in &plan.ahead {
            // Closing the file ends what is queued for it.
            let (data, streams) = (Arc::downgrade(data), Arc::downgrade(&self.streams));
            let ahead = self.ahead.clone();
            self.ahead.pool.submit(self.key, move || {
                let (Some(data), Some(streams)) = (data.upgrade(), streams.upgrade()) else {
                    return;
                };
                if streams.lock().begin(stream, unit) {
                    let fetched = fetch(&data, &ahead, unit);
                    streams.lock().end(stream, unit, fetched);
                }
            });
        }
    }
}

/// Bring what of `unit` nobody has or fetches.
pub(super) fn fetch(data: &Arc<Data>, ahead: &Ahead, unit: Span) -> Fetched {
    let (cache, id) = (data.cache(), data.record.id());
    let mut at = unit.pos;
    while at < unit.end() {
        if cache.version(id).is_none() {
            // It would not be kept.
            return Fetched::No;
        }
        let Some(_in_flight) = ahead.take_off(unit.size) else {
            return Fetched::No;
        };
        match cache.next_ahead(id, Span::between(at, unit.end())) {
            Step::Cached(bytes) => at += bytes.len() as u64,
            Step::Join(flight) => at = flight.span().end(),
            Step::End => break,
            Step::Lead(fill) => {
                at = fill.span().end();
                match data.lead(fill, Some(ahead)) {
                    Ok(bytes) if bytes.is_empty() => break,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!("reading ahead: {error}");
                        return Fetched::Failed;
                    }
                }
            }
        }
    }
    Fetched::Yes
}
