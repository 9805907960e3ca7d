//! The order of eviction: a segmented LRU, so that what is read once does not push out what is used.
//!
//! New slots enter *probation*. A slot that is read again is marked, and goes to the *protected* part when its turn to
//! be evicted comes; the protected part has at most [`PROTECTED_PERCENT`] of the limit, and what it can no longer hold
//! goes back to the front of probation, unmarked. The victim is always the end of probation. A backup, an indexer or a
//! copy of a film therefore passes through probation alone.
//!
//! Moving late instead of at the second read has two reasons: a hit costs what it costs in a plain LRU (one move in one
//! list, no allocation), and nothing is decided before memory is short.
//!
//! What counts as a second read is the business of [`Reads`]: a pass over a slot in many pieces is one use.
//!
//! Invariants, checked by `assert_invariants`:
//! 1. A slot is in one of the two parts.
//! 2. `protected_bytes` is the cost of the slots in the protected part, and at most `protected_max`.

use super::FileId;
use lru::LruCache;

/// Share of the limit that is kept from those that were read once.
const PROTECTED_PERCENT: u64 = 80;

/// Most slots that one eviction moves before it takes the next for good, whatever its mark: the lock is held meanwhile
/// (256 moves are some 30 us). What is lost by that is one used slot of 257, and only when all of memory was read again
/// since the last eviction.
const MOVES_MAX: u32 = 256;

/// A slot: its file, and where it begins.
pub(super) type Place = (FileId, u64);

/// Where a slot stands in the order, to be handed on to what remains of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Standing {
    #[default]
    New,
    Used,
    Protected,
}

#[derive(Debug)]
struct Candidate {
    cost: u64,
    /// Read again since it came here.
    used: bool,
}

#[derive(Debug)]
pub(super) struct Order {
    probation: LruCache<Place, Candidate>,
    /// With the cost of each.
    protected: LruCache<Place, u64>,
    protected_bytes: u64,
    protected_max: u64,
}

impl Order {
    /// The order of slots that cost `limit` at most together.
    pub(super) fn new(limit: u64) -> Order {
        Order {
            probation: LruCache::unbounded(),
            protected: LruCache::unbounded(),
            protected_bytes: 0,
            // In this order, as a limit may be so large that the product would overflow.
            protected_max: limit / 100 * PROTECTED_PERCENT,
        }
    }

    /// A slot that is not in the order yet, as the one to go last of its part.
    pub(super) fn insert(&mut self, place: Place, cost: u64, standing: Standing) {
        if standing == Standing::Protected && self.protected_bytes + cost <= self.protected_max {
            self.protected.put(place, cost);
            self.protected_bytes += cost;
        } else {
            let used = standing != Standing::New;
            self.probation.put(place, Candidate { cost, used });
        }
    }

    /// The slot was read or written; `again`: read for a second time.
    pub(super) fn touch(&mut self, place: &Place, again: bool) {
        match self.probation.get_mut(place) {
            Some(candidate) => candidate.used |= again,
            None => {
                self.protected.promote(place);
            }
        }
    }

    /// The slot is gone, or not to be evicted. Where it stood.
    pub(super) fn remove(&mut self, place: &Place) -> Standing {
        if let Some(candidate) = self.probation.pop(place) {
            if candidate.used {
                Standing::Used
            } else {
                Standing::New
            }
        } else if let Some(cost) = self.protected.pop(place) {
            self.protected_bytes -= cost;
            Standing::Protected
        } else {
            Standing::New
        }
    }

    /// Take out the slot to be evicted next.
    pub(super) fn pop(&mut self) -> Option<Place> {
        for _ in 0..MOVES_MAX {
            let Some((place, candidate)) = self.probation.pop_lru() else {
                break;
            };
            if !candidate.used || candidate.cost > self.protected_max {
                return Some(place);
            }
            self.protect(place, candidate.cost);
        }
        if let Some((place, _)) = self.probation.pop_lru() {
            return Some(place);
        }
        let (place, cost) = self.protected.pop_lru()?;
        self.protected_bytes -= cost;
        Some(place)
    }

    fn protect(&mut self, place: Place, cost: u64) {
        self.protected_bytes += cost;
        while self.protected_bytes > self.protected_max
            && let Some((place, cost)) = self.protected.pop_lru()
        {
            self.protected_bytes -= cost;
            self.probation.put(place, Candidate { cost, used: false });
        }
        self.protected.put(place, cost);
    }

    /// How many slots are in it, and what they cost.
    pub(super) fn total(&self) -> (usize, u64) {
        let waiting: u64 = self.probation.iter().map(|(_, c)| c.cost).sum();
        (
            self.probation.len() + self.protected.len(),
            waiting + self.protected_bytes,
        )
    }

    pub(super) fn contains(&self, place: &Place) -> bool {
        self.probation.contains(place) || self.protected.contains(place)
    }

    pub(super) fn assert_invariants(&self) {
        for (place, _) in &self.protected {
            assert!(
                !self.probation.contains(place),
                "{place:?} is in both parts"
            );
        }
        let bytes: u64 = self.protected.iter().map(|(_, cost)| cost).sum();
        assert_eq!(bytes, self.protected_bytes, "bytes protected");
        assert!(bytes <= self.protected_max, "more protected than allowed");
    }
}

/// Which parts of a slot have been read since it came: tells a second read from the rest of the first.
///
/// Programs read a slot in pieces: one by one, or several at once in any order (the kernel's read-ahead). All of that is
/// one use. A slot is split into at most 64 equal parts of at least a page; a part counts as read when its last byte
/// was, and a read that begins in such a part is a second one. Small pieces read over and over without ever reaching the end of
/// their part are not found: they still move to the front of probation each time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Reads(u64);

impl Reads {
    /// The bytes of `part`, of a slot of `size`, are read. Was their first one read before?
    pub(super) fn note(&mut self, part: std::ops::Range<usize>, size: usize) -> bool {
        const PAGE_SHIFT: u32 = 12;
        if part.is_empty() {
            return false;
        }
        // The least power of two of which 64 make up the slot.
        let shift = (size.div_ceil(64).next_power_of_two().ilog2()).max(PAGE_SHIFT);
        let first = part.start >> shift;
        let again = self.0 >> first & 1 == 1;
        let behind = if part.end >= size {
            ((size - 1) >> shift) + 1
        } else {
            part.end >> shift
        };
        let upto = |n: usize| u64::MAX.checked_shr(64 - n as u32).unwrap_or(0);
        self.0 |= upto(behind) & !upto(first);
        again
    }
}
