//! Replays access traces through the cache and through models of other orders of eviction, and prints the hit rates.
//!
//! ```sh
//! scripts/replay        # makes the traces, builds this, runs it
//! cargo run --release --example replay -- --memory BYTES FILE...
//! ```
//!
//! A trace is a text file of lines `file pos size` (see scripts/traces). Files that are read from the beginning on are
//! fetched in slots of 128 KiB, as read-ahead does; of files that are read at random each piece is a slot of its own.
//! What is counted are *uses*: the first piece of a slot that a pass reads; the rest of that pass hits in any order.
//! The cache gets every piece, the models get the uses. All pay [`SLOT_OVERHEAD`] for each slot; for names of what they
//! let go the cache pays, too, and the models do not.

use bytes::Bytes;
use lru::LruCache;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use warmfs::cache::{Cache, FileId, Found, OpenRecord, SLOT_OVERHEAD, Step, Trust, Version};
use warmfs::clock::Clock;
use warmfs::span::Span;
use warmfs::stats::Stats;
use warmfs::sys::Time;

/// What one request of the kernel reads ahead.
const SLOT: u64 = 128 << 10;
/// What every fill brings: what the bytes are does not matter here.
static ZEROS: [u8; 4 << 20] = [0; 4 << 20];

/// One read, within one slot.
struct Piece {
    slot: usize,
    part: Span,
    /// The slot's first in this pass.
    is_use: bool,
}

struct Slot {
    file: usize,
    span: Span,
}

impl Slot {
    fn cost(&self) -> u64 {
        self.span.size + SLOT_OVERHEAD
    }
}

#[derive(Default)]
struct Trace {
    slots: Vec<Slot>,
    pieces: Vec<Piece>,
    /// Where each file ends.
    ends: Vec<u64>,
}

fn parse(text: &str) -> Option<Vec<(usize, Span)>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace().map(str::parse::<u64>);
            let mut word = || words.next()?.ok();
            Some((word()? as usize, Span::new(word()?, word()?)))
        })
        .collect()
}

impl Trace {
    fn new(reads: &[(usize, Span)]) -> Trace {
        let mut trace = Trace::default();
        let files = reads.iter().map(|read| read.0 + 1).max().unwrap_or(0);
        trace.ends.resize(files, 0);
        let mut random = HashSet::new();
        let mut goes_on: Vec<u64> = vec![0; files];
        for &(file, span) in reads {
            trace.ends[file] = trace.ends[file].max(span.end());
            if span.pos != 0 && span.pos != goes_on[file] {
                random.insert(file);
            }
            goes_on[file] = span.end();
        }
        let mut names = HashMap::new();
        for &(file, span) in reads {
            let mut at = span.pos;
            while at < span.end() {
                let whole = if random.contains(&file) {
                    span
                } else {
                    Span::new(at / SLOT * SLOT, SLOT).clip(trace.ends[file])
                };
                let slot = *names.entry((file, whole)).or_insert_with(|| {
                    trace.slots.push(Slot { file, span: whole });
                    trace.slots.len() - 1
                });
                let part = Span::between(at, span.end()).intersect(whole);
                trace.pieces.push(Piece {
                    slot,
                    part,
                    is_use: part.pos == whole.pos,
                });
                at = part.end();
            }
        }
        trace
    }
}

/// The cache itself, without a source below it.
struct Real {
    cache: Arc<Cache>,
    records: Vec<OpenRecord>,
}

impl Real {
    fn new(trace: &Trace, limit: u64) -> Real {
        // The wall clock is ahead of all timestamps, so that no slot is racy.
        let clock = Clock::manual(SystemTime::now() + Duration::from_secs(3600));
        let stats = Arc::new(Stats::default());
        let cache = Arc::new(Cache::new(limit, Duration::from_secs(1), clock, stats));
        let open = |(file, &size): (usize, &u64)| {
            let id = FileId {
                dev: 1,
                ino: file as u64,
            };
            let record = cache.open(id, || file.to_string().into());
            let time = Time { secs: 1, nanos: 1 };
            let version = Version {
                id,
                size,
                mtime: time,
                ctime: time,
            };
            cache.finish_check(cache.begin_check(id), version);
            record
        };
        let records = trace.ends.iter().enumerate().map(open).collect();
        Real { cache, records }
    }

    fn read(&self, slot: &Slot, part: Span) -> bool {
        let id = self.records[slot.file].id();
        if let Found::Hit(_) = self.cache.get(id, part, Trust::Any) {
            return true;
        }
        if let Step::Lead(fill) = self.cache.next(id, slot.span) {
            let bytes = Bytes::from_static(&ZEROS).slice(..fill.span().size as usize);
            fill.wanted(part).complete(bytes);
        }
        false
    }
}

/// An order of eviction: is the slot there? If not, it comes in.
trait Order {
    fn name(&self) -> String;
    fn read(&mut self, slot: usize, cost: u64) -> bool;
}

/// A list with the sum of its costs; the front is the most recent.
struct List {
    slots: LruCache<usize, u64>,
    bytes: u64,
}

impl List {
    fn new() -> List {
        List {
            slots: LruCache::unbounded(),
            bytes: 0,
        }
    }
    fn push(&mut self, slot: usize, cost: u64) {
        self.bytes += cost;
        self.slots.put(slot, cost);
    }
    fn pop(&mut self) -> Option<(usize, u64)> {
        let (slot, cost) = self.slots.pop_lru()?;
        self.bytes -= cost;
        Some((slot, cost))
    }
    fn remove(&mut self, slot: usize) -> bool {
        let cost = self.slots.pop(&slot);
        self.bytes -= cost.unwrap_or(0);
        cost.is_some()
    }
    fn touch(&mut self, slot: usize) -> bool {
        self.slots.promote(&slot)
    }
    fn trim(&mut self, limit: u64) {
        while self.bytes > limit && self.pop().is_some() {}
    }
}

struct Lru {
    limit: u64,
    list: List,
}

impl Order for Lru {
    fn name(&self) -> String {
        "LRU".into()
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if self.list.touch(slot) {
            return true;
        }
        self.list.push(slot, cost);
        self.list.trim(self.limit);
        false
    }
}

/// Segmented LRU: a second use moves a slot to the protected part at once.
struct Slru {
    limit: u64,
    percent: u64,
    probation: List,
    protected: List,
}

impl Order for Slru {
    fn name(&self) -> String {
        format!("SLRU {} %", self.percent)
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if self.protected.touch(slot) {
            return true;
        }
        let hit = self.probation.remove(slot);
        if hit {
            self.protected.push(slot, cost);
            while self.protected.bytes > self.limit * self.percent / 100
                && let Some((slot, cost)) = self.protected.pop()
            {
                self.probation.push(slot, cost);
            }
        } else {
            self.probation.push(slot, cost);
            while self.probation.bytes + self.protected.bytes > self.limit
                && self.probation.pop().is_some()
            {}
        }
        hit
    }
}

/// Yang and others 2023: a small and a main FIFO and the names of what left the small one.
struct S3Fifo {
    limit: u64,
    small: List,
    main: List,
    ghosts: List,
    /// The names kept are those of so much, in hundredths of the limit.
    reach: u64,
    uses: HashMap<usize, u8>,
}

impl Order for S3Fifo {
    fn name(&self) -> String {
        format!("S3-FIFO, names of {} %", self.reach)
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if let Some(uses) = self.uses.get_mut(&slot) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        self.uses.insert(slot, 0);
        if self.ghosts.remove(slot) {
            self.main.push(slot, cost);
        } else {
            self.small.push(slot, cost);
        }
        while self.small.bytes + self.main.bytes > self.limit {
            let from_small = self.small.bytes > self.limit / 10 || self.main.bytes == 0;
            let list = if from_small {
                &mut self.small
            } else {
                &mut self.main
            };
            let Some((slot, cost)) = list.pop() else {
                break;
            };
            let uses = self.uses.get_mut(&slot).expect("it is there");
            if *uses > 0 {
                *uses = if from_small { 0 } else { *uses - 1 };
                self.main.push(slot, cost);
            } else {
                self.uses.remove(&slot);
                if from_small {
                    self.ghosts.push(slot, cost);
                    self.ghosts.trim(self.limit * self.reach / 100);
                }
            }
        }
        false
    }
}

/// Zhang and others 2024: one FIFO, a hand that goes from old to new and passes by what was used.
struct Sieve {
    limit: u64,
    bytes: u64,
    /// By time of arrival.
    queue: BTreeSet<(u64, usize)>,
    slots: HashMap<usize, (u64, bool)>,
    hand: u64,
    now: u64,
}

impl Order for Sieve {
    fn name(&self) -> String {
        "SIEVE".into()
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if let Some((_, used)) = self.slots.get_mut(&slot) {
            *used = true;
            return true;
        }
        self.now += 1;
        while self.bytes + cost > self.limit {
            let next = self.queue.range((self.hand, 0)..).next();
            let Some(&(came, slot)) = next.or_else(|| self.queue.first()) else {
                break;
            };
            self.hand = came + 1;
            let (cost, used) = self.slots.get_mut(&slot).expect("it is there");
            if !std::mem::take(used) {
                self.bytes -= *cost;
                self.slots.remove(&slot);
                self.queue.remove(&(came, slot));
            }
        }
        self.bytes += cost;
        self.slots.insert(slot, (cost, false));
        self.queue.insert((self.now, slot));
        false
    }
}

/// Megiddo and Modha 2003: both parts with ghosts, which move the border between them.
struct Arc2 {
    limit: u64,
    border: u64,
    once: List,
    often: List,
    once_ghosts: List,
    often_ghosts: List,
}

impl Arc2 {
    fn make_room(&mut self, cost: u64) {
        while self.once.bytes + self.often.bytes + cost > self.limit {
            let from_once = self.once.bytes > self.border || self.often.bytes == 0;
            let (list, ghosts) = if from_once {
                (&mut self.once, &mut self.once_ghosts)
            } else {
                (&mut self.often, &mut self.often_ghosts)
            };
            let Some((slot, cost)) = list.pop() else {
                break;
            };
            ghosts.push(slot, cost);
        }
    }
}

impl Order for Arc2 {
    fn name(&self) -> String {
        "ARC".into()
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if self.often.touch(slot) {
            return true;
        }
        if self.once.remove(slot) {
            self.often.push(slot, cost);
            return true;
        }
        let (a, b) = (self.once_ghosts.bytes, self.often_ghosts.bytes);
        let known = if self.once_ghosts.remove(slot) {
            self.border = (self.border + cost * (b / a.max(1)).max(1)).min(self.limit);
            true
        } else if self.often_ghosts.remove(slot) {
            self.border = self.border.saturating_sub(cost * (a / b.max(1)).max(1));
            true
        } else {
            false
        };
        self.make_room(cost);
        if known {
            self.often.push(slot, cost);
        } else {
            self.once.push(slot, cost);
        }
        self.once_ghosts
            .trim(self.limit.saturating_sub(self.once.bytes));
        let rest = self.limit * 2 - self.once.bytes - self.often.bytes - self.once_ghosts.bytes;
        self.often_ghosts.trim(rest);
        false
    }
}

/// Johnson and Shasha 1994: a FIFO of a quarter, names for half of the memory, an LRU of those that came back.
struct TwoQ {
    limit: u64,
    fresh: List,
    names: List,
    main: List,
}

impl Order for TwoQ {
    fn name(&self) -> String {
        "2Q".into()
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        if self.main.touch(slot) || self.fresh.slots.contains(&slot) {
            return true;
        }
        if self.names.remove(slot) {
            self.main.push(slot, cost);
        } else {
            self.fresh.push(slot, cost);
        }
        while self.fresh.bytes + self.main.bytes > self.limit {
            if self.fresh.bytes > self.limit / 4 || self.main.bytes == 0 {
                let Some((slot, cost)) = self.fresh.pop() else {
                    break;
                };
                self.names.push(slot, cost);
                self.names.trim(self.limit / 2);
            } else {
                self.main.pop();
            }
        }
        false
    }
}

/// Belady: what is used farthest in the future goes, or does not even come in. With slots of different sizes this is no
/// strict bound, but no order without foresight comes near it.
struct Foresight {
    limit: u64,
    bytes: u64,
    uses: Vec<VecDeque<usize>>,
    by_next: BTreeSet<(usize, usize)>,
    costs: HashMap<usize, u64>,
}

impl Foresight {
    fn new(trace: &Trace, limit: u64) -> Foresight {
        let mut uses = vec![VecDeque::new(); trace.slots.len()];
        for (at, piece) in trace.pieces.iter().enumerate().filter(|(_, p)| p.is_use) {
            uses[piece.slot].push_back(at);
        }
        Foresight {
            limit,
            bytes: 0,
            uses,
            by_next: BTreeSet::new(),
            costs: HashMap::new(),
        }
    }
}

impl Order for Foresight {
    fn name(&self) -> String {
        "(foresight)".into()
    }
    fn read(&mut self, slot: usize, cost: u64) -> bool {
        let now = self.uses[slot].pop_front().expect("a use of the trace");
        let hit = self.by_next.remove(&(now, slot));
        let next = self.uses[slot].front().copied().unwrap_or(usize::MAX);
        self.by_next.insert((next, slot));
        if !hit {
            self.bytes += cost;
            self.costs.insert(slot, cost);
        }
        while self.bytes > self.limit
            && let Some((_, slot)) = self.by_next.pop_last()
        {
            self.bytes -= self.costs.remove(&slot).unwrap_or(0);
        }
        hit
    }
}

fn orders(trace: &Trace, limit: u64) -> Vec<Box<dyn Order>> {
    let slru = |percent| -> Box<dyn Order> {
        Box::new(Slru {
            limit,
            percent,
            probation: List::new(),
            protected: List::new(),
        })
    };
    let s3_fifo = |reach| -> Box<dyn Order> {
        Box::new(S3Fifo {
            limit,
            small: List::new(),
            main: List::new(),
            ghosts: List::new(),
            reach,
            uses: HashMap::new(),
        })
    };
    vec![
        Box::new(Lru {
            limit,
            list: List::new(),
        }),
        slru(50),
        slru(80),
        slru(90),
        s3_fifo(90),
        s3_fifo(300),
        Box::new(Sieve {
            limit,
            bytes: 0,
            queue: BTreeSet::new(),
            slots: HashMap::new(),
            hand: 0,
            now: 0,
        }),
        Box::new(TwoQ {
            limit,
            fresh: List::new(),
            names: List::new(),
            main: List::new(),
        }),
        Box::new(Arc2 {
            limit,
            border: 0,
            once: List::new(),
            often: List::new(),
            once_ghosts: List::new(),
            often_ghosts: List::new(),
        }),
        Box::new(Foresight::new(trace, limit)),
    ]
}

/// Shares of the uses, and of their bytes, that were hits.
#[derive(Default)]
struct Rates {
    uses: [u64; 2],
    bytes: [u64; 2],
}

impl Rates {
    fn count(&mut self, hit: bool, size: u64) {
        self.uses[usize::from(hit)] += 1;
        self.bytes[usize::from(hit)] += size;
    }
    fn cell(&self) -> String {
        let percent =
            |[misses, hits]: [u64; 2]| 100.0 * hits as f64 / (misses + hits).max(1) as f64;
        format!("{:.1} / {:.1}", percent(self.uses), percent(self.bytes))
    }
}

/// Name and result of every order, the cache's first.
fn replay(trace: &Trace, limit: u64) -> Vec<(String, String)> {
    let real = Real::new(trace, limit);
    let mut rates = Rates::default();
    for piece in &trace.pieces {
        let slot = &trace.slots[piece.slot];
        let hit = real.read(slot, piece.part);
        if piece.is_use {
            rates.count(hit, slot.span.size);
        }
    }
    real.cache.assert_invariants();
    let mut rows = vec![("**the cache**".to_owned(), rates.cell())];
    for mut order in orders(trace, limit) {
        let mut rates = Rates::default();
        for piece in trace.pieces.iter().filter(|piece| piece.is_use) {
            let slot = &trace.slots[piece.slot];
            rates.count(order.read(piece.slot, slot.cost()), slot.span.size);
        }
        rows.push((order.name(), rates.cell()));
    }
    rows
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut limit = 16 << 20;
    if arguments.next_if_eq("--memory").is_some() {
        limit = arguments.next().ok_or("--memory needs a number")?.parse()?;
    }
    let (mut head, mut rule) = ("| order".to_owned(), "|---".to_owned());
    let mut table: Vec<(String, String)> = Vec::new();
    for path in arguments {
        let name = Path::new(&path).file_stem().unwrap_or_default();
        head += &format!(" | {}", name.display());
        rule += "|---:";
        let text = std::fs::read_to_string(&path)?;
        let reads = parse(&text).ok_or_else(|| format!("{path}: a line is not: file pos size"))?;
        let rows = replay(&Trace::new(&reads), limit);
        table.resize(rows.len(), Default::default());
        for (line, (name, cell)) in table.iter_mut().zip(rows) {
            line.0 = name;
            line.1 += &format!(" | {cell}");
        }
    }
    println!("{head} |\n{rule}|");
    for (name, cells) in table {
        println!("| {name}{cells} |");
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::FAILURE
        }
    }
}
