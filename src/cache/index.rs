//! The one index: records by file, slots by position. Plain data under the cache's mutex; nothing here blocks, calls
//! out or frees a large buffer (what is dropped is returned). Which slot goes first is said by [`Order`].
//!
//! Invariants, checked by `assert_invariants`:
//! 1. Slots of a record do not overlap, none is empty, none reaches behind the size of its version.
//! 2. `order` has exactly one entry for each slot that is not pinned, with its cost.
//! 3. `used` is the sum of all slots' bytes and overhead, and at most `limit` with the names that `order` keeps;
//!    `pinned` that of the pinned ones, and at most half of it, so that evicting the others is always enough.
//! 4. A record without slots, opens and writers does not exist, unless its file is pinned.

use super::flight::Flight;
use super::order::{Order, Reads};
use super::{Compared, FileId, Key, Seen, Version, whole};
use crate::clock::Moment;
use crate::span::Span;
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a slot costs beside its bytes: its place in the two maps and the buffer's header, measured with
/// 4 KiB slots (210 to 245 bytes) and rounded up.
pub const SLOT_OVERHEAD: u64 = 256;

#[derive(Debug)]
struct Slot {
    bytes: Bytes,
    /// Filled within a tick of the file's last change: not believed beyond the next comparison.
    racy: bool,
    /// Not to be evicted: has no entry in `order`.
    pinned: bool,
    reads: Reads,
    /// Fetched ahead, and not read so far.
    unread: Cell<bool>,
}

impl Slot {
    /// It is read; returns how many bytes turn out to have been fetched ahead for good.
    fn touch(&self) -> u64 {
        if self.unread.replace(false) {
            self.bytes.len() as u64
        } else {
            0
        }
    }
}

#[derive(Debug)]
struct Record {
    path: Arc<Path>,
    /// `None`: unknown, so that no slot can be kept, and the next comparison drops what there is.
    version: Option<Version>,
    checked: Option<Moment>,
    /// For how long a comparison is believed.
    trust: Duration,
    generation: u64,
    writers: u32,
    opens: u32,
    slots: BTreeMap<u64, Slot>,
    flights: SmallVec<[(u64, Arc<Flight>); 2]>,
    /// Some slot may be racy.
    racy: bool,
    /// New slots are pinned, as long as there is room for that.
    pinned: bool,
}

/// Buffers taken out of the index, to be freed by the caller outside the lock, and what is to be told of that.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    pub(super) bytes: Vec<Bytes>,
    /// How many of them went to stay under the limit.
    pub(super) evicted: u64,
    /// Bytes of those that were fetched ahead and never read.
    pub(super) unread: u64,
    /// Their names, when somebody wants to know.
    pub(super) keys: Vec<Key>,
    /// The file that turned out to have been changed by somebody else.
    pub(super) stale: Option<Arc<Path>>,
}

impl Dropped {
    /// Number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.bytes.iter().map(|bytes| bytes.len() as u64).sum()
    }
}

/// The cached bytes of a span, in one or more pieces.
#[derive(Clone, Debug, Default)]
pub struct Pieces(SmallVec<[Bytes; 2]>);

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Pieces {
        let mut pieces = Pieces::default();
        pieces.push(bytes);
        pieces
    }
}

impl Pieces {
    /// Add the next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.0.push(bytes);
        }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copy as much as fits; returns how much.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in &self.0 {
            let part = piece.len().min(buffer.len() - done);
            buffer[done..done + part].copy_from_slice(&piece[..part]);
            done += part;
        }
        done
    }

    /// As one buffer: without a copy when it is one piece.
    pub fn into_bytes(mut self) -> Bytes {
        match self.0.len() {
            0 => Bytes::new(),
            1 => self.0.swap_remove(0),
            _ => whole::of(self.iter(), self.len()),
        }
    }
}

pub(super) enum Next {
    Cached(Bytes),
    Join(Arc<Flight>),
    Gap {
        gap: Span,
        generation: u64,
        flight: Arc<Flight>,
    },
    End,
}

#[derive(Debug)]
pub(super) struct Index {
    records: HashMap<FileId, Record>,
    order: Order,
    used: u64,
    pinned: u64,
    limit: u64,
    /// For how long a comparison is believed at first.
    ttl: Duration,
    /// Files that are pinned.
    pins: usize,
    /// Bytes fetched ahead that were read since somebody took this count.
    pub(super) ahead_used: u64,
    /// Somebody wants to know the names of what is evicted.
    pub(super) watched: bool,
}

fn cost(bytes: &Bytes) -> u64 {
    bytes.len() as u64 + SLOT_OVERHEAD
}

fn slot_span(pos: u64, slot: &Slot) -> Span {
    Span::new(pos, slot.bytes.len() as u64)
}

/// A part of a buffer to be kept for long: copied when sharing would hold much more memory than it counts.
fn keep(part: Bytes, whole: usize) -> Bytes {
    if part.len() * 2 < whole {
        Bytes::copy_from_slice(&part)
    } else {
        part
    }
}

impl Record {
    fn end(&self) -> u64 {
        self.version.map_or(0, |version| version.size)
    }

    /// The slot that holds `pos`.
    fn slot_at(&self, pos: u64) -> Option<(u64, &Slot)> {
        let (&start, slot) = self.slots.range(..=pos).next_back()?;
        slot_span(start, slot)
            .covers(Span::new(pos, 1))
            .then_some((start, slot))
    }

    /// Start of every slot that shares a byte with `span`.
    fn overlapped(&self, span: Span) -> SmallVec<[u64; 8]> {
        if span.is_empty() {
            return SmallVec::new();
        }
        let from = match self.slot_at(span.pos) {
            Some((start, _)) => start,
            None => span.pos,
        };
        self.slots
            .range(from..span.end().max(from))
            .map(|(&start, _)| start)
            .collect()
    }
}

impl Index {
    pub(super) fn new(limit: u64, ttl: Duration) -> Index {
        Index {
            ttl,
            records: HashMap::new(),
            order: Order::new(limit),
            used: 0,
            pinned: 0,
            limit,
            pins: 0,
            ahead_used: 0,
            watched: false,
        }
    }

    pub(super) fn acquire(&mut self, id: FileId, path: impl FnOnce() -> PathBuf) {
        self.record(id, path).opens += 1;
    }

    fn record(&mut self, id: FileId, path: impl FnOnce() -> PathBuf) -> &mut Record {
        self.records.entry(id).or_insert_with(|| Record {
            path: path().into(),
            version: None,
            checked: None,
            trust: self.ttl,
            generation: 0,
            writers: 0,
            opens: 0,
            slots: BTreeMap::new(),
            flights: SmallVec::new(),
            racy: false,
            pinned: false,
        })
    }

    pub(super) fn release(&mut self, id: FileId) {
        if let Some(record) = self.records.get_mut(&id) {
            record.opens -= 1;
        }
        self.retire(id);
    }

    /// Invariant 4.
    fn retire(&mut self, id: FileId) {
        let idle = self
            .records
            .get(&id)
            .is_some_and(|r| r.opens == 0 && r.writers == 0 && r.slots.is_empty() && !r.pinned);
        if idle {
            self.records.remove(&id);
        }
    }

    pub(super) fn rename(&mut self, id: FileId, path: &Path) {
        if let Some(record) = self.records.get_mut(&id) {
            record.path = path.into();
        }
    }

    pub(super) fn is_trusted(&self, id: FileId, now: Moment) -> bool {
        self.records.get(&id).is_some_and(|record| {
            let checked = record.checked.filter(|_| record.version.is_some());
            checked.is_some_and(|then| now.since(then) < record.trust)
        })
    }

    pub(super) fn holds(&self, id: FileId) -> bool {
        self.records
            .get(&id)
            .is_some_and(|r| !r.slots.is_empty() || !r.flights.is_empty())
    }

    pub(super) fn version(&self, id: FileId) -> Option<Version> {
        self.records.get(&id)?.version
    }

    pub(super) fn is_racy(&self, id: FileId) -> bool {
        self.records.get(&id).is_some_and(|record| record.racy)
    }

    pub(super) fn generation(&self, id: FileId) -> (u64, u32) {
        self.records
            .get(&id)
            .map_or((0, 0), |r| (r.generation, r.writers))
    }

    pub(super) fn seen(&self, id: FileId) -> Option<Seen> {
        let record = self.records.get(&id)?;
        Some(Seen {
            version: record.version?,
            generation: record.generation,
        })
    }

    pub(super) fn covers(&self, id: FileId, span: Span) -> bool {
        let Some(record) = self
            .records
            .get(&id)
            .filter(|record| record.version.is_some())
        else {
            return false;
        };
        let span = span.clip(record.end());
        let mut at = span.pos;
        while at < span.end() {
            match record.slot_at(at) {
                Some((start, slot)) => at = slot_span(start, slot).end(),
                None => return false,
            }
        }
        true
    }

    pub(super) fn covered(&mut self, id: FileId, span: Span) -> Option<(Pieces, Seen)> {
        let record = self.records.get_mut(&id)?;
        let seen = Seen {
            version: record.version?,
            generation: record.generation,
        };
        let span = span.clip(record.end());
        let mut pieces = Pieces::default();
        let mut touched: SmallVec<[u64; 4]> = SmallVec::new();
        let mut at = span.pos;
        while at < span.end() {
            let (start, slot) = record.slot_at(at)?;
            let part = slot_span(start, slot).intersect(Span::between(at, span.end()));
            pieces.push(slot.bytes.slice(part.within(start)));
            self.ahead_used += slot.touch();
            touched.push(start);
            at = part.end();
        }
        for start in touched {
            if let Some(slot) = record.slots.get_mut(&start) {
                note_read(&mut self.order, id, start, slot, span);
            }
        }
        Some((pieces, seen))
    }

    /// Is every byte of `span` that the file has in some slot? It will be read soon, so it is not to be evicted before that;
    /// but it does not count as read.
    pub(super) fn keeps(&mut self, id: FileId, span: Span) -> bool {
        let Some(record) = self.records.get(&id) else {
            return false;
        };
        let span = span.clip(record.end());
        let mut at = span.pos;
        while at < span.end() {
            let Some((start, slot)) = record.slot_at(at) else {
                return false;
            };
            at = slot_span(start, slot).end();
            self.order.touch(&(id, start), false);
        }
        true
    }

    /// The next step from the start of `span` on, of a reader, or of a fetch that is `ahead` of readers.
    pub(super) fn next(&mut self, id: FileId, span: Span, ahead: bool) -> Next {
        let Some(record) = self.records.get_mut(&id) else {
            return Next::End;
        };
        // Without a version nothing says where the file ends: the read finds out.
        let span = match record.version {
            Some(version) => span.clip(version.size),
            None => span,
        };
        if span.is_empty() {
            return Next::End;
        }
        if let Some((start, slot)) = record.slot_at(span.pos) {
            let part = slot_span(start, slot).intersect(span);
            let bytes = slot.bytes.slice(part.within(start));
            if ahead {
                self.order.touch(&(id, start), false);
            } else if let Some(slot) = record.slots.get_mut(&start) {
                self.ahead_used += slot.touch();
                note_read(&mut self.order, id, start, slot, part);
            }
            return Next::Cached(bytes);
        }
        let joinable = record.flights.iter().find(|(generation, flight)| {
            *generation == record.generation && flight.span().covers(Span::new(span.pos, 1))
        });
        if let Some((_, flight)) = joinable {
            if !ahead {
                flight.join();
            }
            return Next::Join(flight.clone());
        }
        let next_slot = record.slots.range(span.pos..).next();
        let gap = span.clip(next_slot.map_or(u64::MAX, |(&start, _)| start));
        // Nor what others are fetching already.
        let current = record
            .flights
            .iter()
            .filter(|(g, _)| *g == record.generation);
        let starts = current.map(|(_, flight)| flight.span().pos);
        let next_flight = starts.filter(|&start| start > gap.pos).min();
        let gap = gap.clip(next_flight.unwrap_or(u64::MAX));
        let flight = Arc::new(Flight::new(gap, ahead));
        record.flights.push((record.generation, flight.clone()));
        Next::Gap {
            gap,
            generation: record.generation,
            flight,
        }
    }

    pub(super) fn end_flight(&mut self, id: FileId, flight: &Arc<Flight>) {
        if let Some(record) = self.records.get_mut(&id) {
            record.flights.retain(|(_, f)| !Arc::ptr_eq(f, flight));
        }
    }

    /// Clause 1. `wanted`: the part of `span` that somebody reads; the rest is fetched ahead.
    pub(super) fn complete_fill(
        &mut self,
        id: FileId,
        span: Span,
        wanted: Span,
        generation: u64,
        (bytes, unread): (&Bytes, bool),
        wall: i128,
    ) -> Dropped {
        let mut dropped = Dropped::default();
        let Some(record) = self.records.get_mut(&id) else {
            return dropped;
        };
        let Some(version) = record.version else {
            return dropped;
        };
        if record.generation != generation || record.opens == 0 {
            return dropped;
        }
        // The gap may have been filled meanwhile by a reader of a wider span; what is there is as good.
        let racy = version.is_racy(wall);
        let filled = Span::new(span.pos, bytes.len() as u64).clip(version.size);
        self.insert_gaps(id, filled, wanted, (bytes, unread), racy, &mut dropped);
        self.enforce_limit(&mut dropped);
        dropped
    }

    /// Keep those parts of `span` that no slot has; `data` begins at `span.pos`. Of them, `wanted` is being read.
    fn insert_gaps(
        &mut self,
        id: FileId,
        span: Span,
        wanted: Span,
        (data, unread): (&Bytes, bool),
        racy: bool,
        dropped: &mut Dropped,
    ) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        record.racy |= racy;
        let mut at = span.pos;
        while at < span.end() {
            if let Some((start, slot)) = record.slot_at(at) {
                at = slot_span(start, slot).end();
                continue;
            }
            let next_slot = record.slots.range(at..).next();
            let gap =
                Span::between(at, span.end()).clip(next_slot.map_or(u64::MAX, |(&start, _)| start));
            let bytes = keep(data.slice(gap.within(span.pos)), data.len());
            if cost(&bytes) > self.limit {
                dropped.bytes.push(bytes);
            } else {
                let pinned = record.pinned && self.pinned + cost(&bytes) <= self.limit / 2;
                self.used += cost(&bytes);
                if pinned {
                    self.pinned += cost(&bytes);
                } else {
                    self.order.insert((id, gap.pos), cost(&bytes));
                }
                let mut reads = Reads::default();
                reads.note(gap.intersect(wanted).within(gap.pos), bytes.len());
                let slot = Slot {
                    bytes,
                    racy,
                    pinned,
                    reads,
                    unread: Cell::new(unread),
                };
                record.slots.insert(gap.pos, slot);
            }
            at = gap.end();
        }
    }

    fn enforce_limit(&mut self, dropped: &mut Dropped) {
        while self.bytes_used() > self.limit {
            let Some((id, pos)) = self.order.pop() else {
                return;
            };
            if let Some(record) = self.records.get_mut(&id)
                && let Some(slot) = record.slots.remove(&pos)
            {
                self.used -= cost(&slot.bytes);
                dropped.unread += slot.touch();
                if self.watched {
                    dropped.keys.push(Key {
                        path: record.path.clone(),
                        pos,
                        size: slot.bytes.len() as u64,
                    });
                }
                dropped.bytes.push(slot.bytes);
                dropped.evicted += 1;
            }
            self.retire(id);
        }
    }

    /// The slot is out of its record.
    fn uncount(&mut self, id: FileId, pos: u64, slot: &Slot) {
        self.used -= cost(&slot.bytes);
        if slot.pinned {
            self.pinned -= cost(&slot.bytes);
        } else {
            self.order.remove(&(id, pos));
        }
    }

    fn remove_slot(&mut self, id: FileId, pos: u64, dropped: &mut Dropped) {
        if let Some(record) = self.records.get_mut(&id)
            && let Some(slot) = record.slots.remove(&pos)
        {
            self.uncount(id, pos, &slot);
            dropped.bytes.push(slot.bytes);
        }
    }

    fn remove_all(&mut self, id: FileId, dropped: &mut Dropped) {
        if let Some(record) = self.records.get(&id) {
            let all: Vec<u64> = record.slots.keys().copied().collect();
            for pos in all {
                self.remove_slot(id, pos, dropped);
            }
        }
    }

    /// Forget the bytes of `span`; what slots have outside of it stays.
    fn cut(&mut self, id: FileId, span: Span, dropped: &mut Dropped) {
        let Some(record) = self.records.get(&id) else {
            return;
        };
        for start in record.overlapped(span) {
            let Some(slot) = self
                .records
                .get_mut(&id)
                .and_then(|r| r.slots.remove(&start))
            else {
                continue;
            };
            self.uncount(id, start, &slot);
            let whole = slot_span(start, &slot);
            let before = Span::between(whole.pos, span.pos.min(whole.end()));
            let after = Span::between(span.end().max(whole.pos), whole.end());
            for part in [before, after] {
                if part.is_empty() {
                    continue;
                }
                let bytes = keep(slot.bytes.slice(part.within(start)), slot.bytes.len());
                let (racy, mut pinned) = (slot.racy, slot.pinned);
                // A slot that is cut in two has one overhead more.
                pinned &= self.pinned + cost(&bytes) <= self.limit / 2;
                self.used += cost(&bytes);
                if pinned {
                    self.pinned += cost(&bytes);
                } else {
                    self.order.insert((id, part.pos), cost(&bytes));
                }
                if let Some(record) = self.records.get_mut(&id) {
                    let unread = slot.unread.clone();
                    let slot = Slot {
                        bytes,
                        racy,
                        pinned,
                        reads: Reads::default(),
                        unread,
                    };
                    record.slots.insert(part.pos, slot);
                }
            }
            dropped.bytes.push(slot.bytes);
        }
    }

    /// The generation, and how many writes are under way with this one.
    pub(super) fn begin_write(&mut self, id: FileId) -> (u64, u32) {
        match self.records.get_mut(&id) {
            Some(record) => {
                record.writers += 1;
                (record.generation, record.writers)
            }
            None => (0, 1),
        }
    }

    /// Clauses 2 and 3. `data`: the bytes now at `span`, `None` when unknown; `after`: the version then,
    /// `None` when the write failed.
    pub(super) fn end_write(
        &mut self,
        id: FileId,
        span: Span,
        generation: u64,
        data: Option<&Bytes>,
        after: Option<Version>,
        now: Moment,
    ) -> Dropped {
        let mut dropped = Dropped::default();
        let Some(record) = self.records.get_mut(&id) else {
            return dropped;
        };
        let sole = record.generation == generation;
        record.generation += 1;
        record.writers -= 1;
        let Some(after) = after else {
            // What a failed write left behind is not known: nothing can be stamped any more.
            record.version = None;
            record.checked = None;
            self.remove_all(id, &mut dropped);
            self.retire(id);
            return dropped;
        };
        record.version = match record.version {
            _ if sole => Some(after),
            // Of concurrent writes, the one that saw the latest timestamps saw the final state.
            Some(version) => Some(version.later(after)),
            // One of them failed, and this one may have looked before that.
            None => None,
        };
        record.checked = Some(now);
        let end = record.end();
        match data {
            Some(data) if sole => {
                let written = Span::new(span.pos, data.len() as u64);
                for start in record.overlapped(written) {
                    if let Some(slot) = record.slots.get_mut(&start) {
                        patch(slot, start, written, data);
                        slot.racy |= after.is_coarse();
                        // Used, but not read: what a build writes is often read back once and never again.
                        self.order.touch(&(id, start), false);
                    }
                }
                // Coarse timestamps cannot tell our write from a stranger's a moment later.
                self.insert_gaps(
                    id,
                    written,
                    Span::new(span.pos, 0),
                    (data, false),
                    after.is_coarse(),
                    &mut dropped,
                );
                self.cut(id, Span::between(written.end(), span.end()), &mut dropped);
            }
            _ => self.cut(id, span, &mut dropped),
        }
        // A version of another writer may end before our bytes do (invariant 1).
        self.cut(id, Span::from(end), &mut dropped);
        self.enforce_limit(&mut dropped);
        self.retire(id);
        dropped
    }

    pub(super) fn compare(
        &mut self,
        id: FileId,
        (generation, writers): (u64, u32),
        begun: Moment,
        version: Version,
    ) -> (Compared, Dropped) {
        let mut dropped = Dropped::default();
        let Some(record) = self.records.get_mut(&id) else {
            return (Compared::Changed, dropped);
        };
        if writers > 0 || record.writers > 0 || record.generation != generation {
            return (Compared::Unsettled, dropped);
        }
        let same = record.version == Some(version);
        record.checked = Some(begun);
        if same {
            if !record.racy {
                return (Compared::Same, dropped);
            }
            record.racy = false;
            let racy: Vec<u64> = record
                .slots
                .iter()
                .filter_map(|(&pos, slot)| slot.racy.then_some(pos))
                .collect();
            if racy.is_empty() {
                return (Compared::Same, dropped);
            }
            record.generation += 1;
            for pos in racy {
                self.remove_slot(id, pos, &mut dropped);
            }
        } else {
            let new = record.version.is_none() && record.slots.is_empty();
            record.version = Some(version);
            record.trust = self.ttl;
            record.racy = false;
            record.generation += 1;
            if new {
                return (Compared::New, dropped);
            }
            if !record.slots.is_empty() {
                dropped.stale = Some(record.path.clone());
            }
            self.remove_all(id, &mut dropped);
        }
        self.retire(id);
        (Compared::Changed, dropped)
    }

    pub(super) fn confirm(&mut self, version: Version, when: Moment, trust: Duration) {
        let Some(record) = self.records.get_mut(&version.id) else {
            return;
        };
        if record.writers > 0 {
            return;
        }
        record.trust = trust;
        if record.version != Some(version) {
            record.checked = None;
        } else if !record.racy && record.checked.is_none_or(|then| then < when) {
            record.checked = Some(when);
        }
    }

    pub(super) fn restamp(&mut self, before: Version, after: Version, now: Moment) {
        if let Some(record) = self.records.get_mut(&after.id)
            && record.version == Some(before)
            && record.writers == 0
            && before.size == after.size
        {
            record.version = Some(after);
            record.checked = Some(now);
        }
    }

    pub(super) fn distrust(&mut self, id: FileId) {
        if let Some(record) = self.records.get_mut(&id) {
            record.checked = None;
        }
    }

    pub(super) fn forget(&mut self, id: FileId) -> Dropped {
        if let Some(record) = self.records.get_mut(&id) {
            record.generation += 1;
        }
        self.evict(id)
    }

    pub(super) fn evict(&mut self, id: FileId) -> Dropped {
        let mut dropped = Dropped::default();
        self.remove_all(id, &mut dropped);
        self.retire(id);
        dropped
    }

    /// Keep the file's slots out of eviction, those that it has and those to come, as far as half of the limit goes.
    /// False when `pins_max` files are pinned already.
    pub(super) fn pin(
        &mut self,
        id: FileId,
        path: impl FnOnce() -> PathBuf,
        pins_max: usize,
    ) -> bool {
        if self.records.get(&id).is_some_and(|record| record.pinned) {
            return true;
        }
        if self.pins >= pins_max {
            return false;
        }
        self.pins += 1;
        let room = self.limit / 2;
        let mut pinned = self.pinned;
        let mut taken = Vec::new();
        let record = self.record(id, path);
        record.pinned = true;
        for (&pos, slot) in &mut record.slots {
            if pinned + cost(&slot.bytes) <= room {
                pinned += cost(&slot.bytes);
                slot.pinned = true;
                taken.push(pos);
            }
        }
        self.pinned = pinned;
        for pos in taken {
            self.order.remove(&(id, pos));
        }
        true
    }

    pub(super) fn unpin(&mut self, id: FileId) {
        let Some(record) = self.records.get_mut(&id).filter(|record| record.pinned) else {
            return;
        };
        record.pinned = false;
        self.pins -= 1;
        for (&pos, slot) in record.slots.iter_mut().filter(|(_, slot)| slot.pinned) {
            slot.pinned = false;
            self.pinned -= cost(&slot.bytes);
            self.order.insert((id, pos), cost(&slot.bytes));
        }
        self.retire(id);
    }

    pub(super) fn keys(&self, id: FileId) -> Vec<Key> {
        let Some(record) = self.records.get(&id) else {
            return Vec::new();
        };
        record
            .slots
            .iter()
            .map(|(&pos, slot)| Key {
                path: record.path.clone(),
                pos,
                size: slot.bytes.len() as u64,
            })
            .collect()
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.limit
    }

    pub(super) fn bytes_used(&self) -> u64 {
        self.used + self.order.names_bytes()
    }

    pub(super) fn bytes_pinned(&self) -> u64 {
        self.pinned
    }

    pub(super) fn files_below(&self, dir: &Path) -> Vec<FileId> {
        let below = |record: &Record| !record.slots.is_empty() && record.path.starts_with(dir);
        let files = self.records.iter().filter(|(_, record)| below(record));
        files.map(|(id, _)| *id).collect()
    }

    pub(super) fn assert_invariants(&self) {
        let (mut used, mut slots, mut pinned, mut pins) = (0, 0, 0, 0);
        for (id, record) in &self.records {
            let mut end = 0;
            for (&pos, slot) in &record.slots {
                assert!(pos >= end, "slots of {id:?} overlap at {pos}");
                assert!(!slot.bytes.is_empty(), "empty slot of {id:?} at {pos}");
                let evictable = self.order.contains(&(*id, pos));
                assert_ne!(evictable, slot.pinned, "slot at {pos}: in order or pinned");
                end = pos + slot.bytes.len() as u64;
                used += cost(&slot.bytes);
                if slot.pinned {
                    pinned += cost(&slot.bytes);
                } else {
                    slots += 1;
                }
            }
            if let Some(version) = record.version {
                assert!(end <= version.size, "slots of {id:?} reach behind its end");
            }
            pins += usize::from(record.pinned);
            assert!(
                record.opens > 0 || record.writers > 0 || record.pinned || !record.slots.is_empty(),
                "empty record of {id:?}"
            );
        }
        assert_eq!(used, self.used, "bytes counted");
        assert_eq!(
            (pinned, pins),
            (self.pinned, self.pins),
            "bytes and files pinned"
        );
        assert!(self.pinned <= self.limit / 2, "more pinned than allowed");
        assert_eq!(
            (slots, used - pinned),
            self.order.total(),
            "slots and bytes in order"
        );
        self.order.assert_invariants();
        assert!(self.bytes_used() <= self.limit, "limit overshot");
    }
}

/// The bytes of `span` that the slot has are being handed out.
fn note_read(order: &mut Order, id: FileId, start: u64, slot: &mut Slot, span: Span) {
    let part = slot_span(start, slot).intersect(span).within(start);
    let again = slot.reads.note(part, slot.bytes.len());
    if !slot.pinned {
        order.touch(&(id, start), again);
    }
}

/// Write `data`, which begins at `span.pos`, into the part of the slot that it overlaps: in place when
/// nobody reads the slot at this moment, else in a copy that takes its place.
fn patch(slot: &mut Slot, start: u64, span: Span, data: &Bytes) {
    let part = slot_span(start, slot).intersect(span);
    let mut owned = match std::mem::take(&mut slot.bytes).try_into_mut() {
        Ok(owned) => owned,
        Err(shared) => BytesMut::from(&shared[..]),
    };
    owned[part.within(start)].copy_from_slice(&data[part.within(span.pos)]);
    slot.bytes = owned.freeze();
}
