//! The order of eviction: a segmented LRU with a memory for what it let go.
//!
//! New slots enter *probation*. A slot that is read again is marked, and goes to the *protected* part when its turn to
//! be evicted comes; what that part can no longer hold goes back to the front of probation, unmarked. The victim is the
//! end of probation. A backup or an indexer, which reads everything once, passes through probation alone.
//!
//! Moving late instead of at the second read has two reasons: a hit costs what it costs in a plain LRU (one move in one
//! list, no allocation), and nothing is decided before memory is short.
//!
//! Of slots that went, the *names* are kept for a while. A slot that comes back is protected at once if it was used
//! later than the last of the protected ones (or if there is room): its time between two uses is then the shorter
//! one. Otherwise those that are there stay, so that a loop larger than the memory keeps a part of itself instead of
//! nothing. Each coming back also moves the *border* between the parts: one that deserved protection and was let go
//! asks for more probation, one that was away for longer asks for less. A scan has no names and moves nothing.
//!
//! What counts as a second read is the business of [`Reads`]. scripts/replay compares this order with others.
//!
//! Invariants, checked by `assert_invariants`:
//! 1. A slot is in one of the two parts, and its name is not among the `names`.
//! 2. `protected_bytes` is the cost of the slots in the protected part, and at most `border`.
//! 3. `border` is between the least and the most of the protected part; there are at most `names_max` names.

use super::FileId;
use lru::LruCache;
use std::num::NonZeroUsize;

/// What a name costs: its place in a map and a list (some 100 bytes), rounded up.
const NAME_BYTES: u64 = 128;

/// Names have at most this part of the limit: as many as it holds slots of 3 KiB. Were there fewer than slots, new work
/// that goes round in a loop might never come back in time to be noticed, and what was protected once would stay.
const NAMES_PART: u64 = 25;

/// Fewer names than this are none: in a cache of so few slots they would cost one of them and find nothing.
const NAMES_MIN: usize = 16;

/// Most slots that one eviction moves before it takes the next for good, whatever its mark: the lock is held meanwhile.
/// What is lost by that is one used slot of 257, and only when all of memory was read again since the last eviction.
const MOVES_MAX: u32 = 256;

/// A slot: its file, and where it begins.
pub(super) type Place = (FileId, u64);

#[derive(Clone, Copy, Debug)]
struct Stay {
    cost: u64,
    last: Tick,
    /// Read again since it came to probation.
    used: bool,
}

/// A time of use: how many slots had come in by then. Comparisons hold over two billion of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Tick(u32);

impl Tick {
    fn is_after(self, other: Tick) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() > 0
    }
}

#[derive(Debug)]
pub(super) struct Order {
    probation: LruCache<Place, Stay>,
    protected: LruCache<Place, Stay>,
    protected_bytes: u64,
    /// Most bytes of the protected part now.
    border: u64,
    /// At least 40 % of the limit are kept from what is read once, however the border moves: less, and one odd hour of
    /// work that moves on would undo the protection. 60 % instead cost such work 3 of 55 hits in a hundred.
    border_min: u64,
    /// 90 % at most. 95 % won another 3 hits in a hundred in loops alone, and leave read-ahead too little: with 64 MiB
    /// a tenth is less than the window of one fast reader.
    border_max: u64,
    /// When those that went were used last.
    names: LruCache<Place, Tick>,
    names_max: usize,
    now: Tick,
}

impl Order {
    /// The order of slots that cost `limit` at most together, names included.
    pub(super) fn new(limit: u64) -> Order {
        let names_max = match usize::try_from(limit / NAMES_PART / NAME_BYTES) {
            Ok(few) if few < NAMES_MIN => 0,
            Ok(names) => names,
            Err(_) => usize::MAX,
        };
        let border_max = limit - limit / 10;
        Order {
            probation: LruCache::unbounded(),
            protected: LruCache::unbounded(),
            protected_bytes: 0,
            border: border_max,
            border_min: limit / 5 * 2,
            border_max,
            names: LruCache::sparse(NonZeroUsize::new(names_max).unwrap_or(NonZeroUsize::MIN)),
            names_max,
            now: Tick::default(),
        }
    }

    /// A slot comes in.
    pub(super) fn insert(&mut self, place: Place, cost: u64) {
        self.now.0 = self.now.0.wrapping_add(1);
        let stay = Stay {
            cost,
            last: self.now,
            used: false,
        };
        let was_used = self.names.pop(&place);
        if was_used.is_some_and(|last| self.deserves(last, cost)) {
            self.protect(place, stay);
        } else {
            self.probation.put(place, stay);
        }
    }

    /// Is a slot to be protected that was used at `last` and then let go? Moves the border, and when the answer is no,
    /// never below what is protected.
    fn deserves(&mut self, last: Tick, cost: u64) -> bool {
        if self.protected_bytes + cost <= self.border {
            return true;
        }
        let oldest = self.protected.peek_lru().map(|(_, stay)| stay.last);
        let is_later = oldest.is_some_and(|oldest| last.is_after(oldest));
        if !is_later {
            self.border = self.border.saturating_add(cost).min(self.border_max);
            return false;
        }
        if cost > self.border_min {
            return false;
        }
        self.border = self.border.saturating_sub(cost).max(self.border_min);
        true
    }

    /// The slot was read or written; `again`: read for a second time.
    pub(super) fn touch(&mut self, place: &Place, again: bool) {
        if let Some(stay) = self.probation.get_mut(place) {
            stay.last = self.now;
            stay.used |= again;
        } else if let Some(stay) = self.protected.get_mut(place) {
            stay.last = self.now;
        }
    }

    /// The slot is gone, or not to be evicted from now on.
    pub(super) fn remove(&mut self, place: &Place) {
        if self.probation.pop(place).is_none()
            && let Some(stay) = self.protected.pop(place)
        {
            self.protected_bytes -= stay.cost;
        }
    }

    /// Take out the slot to be evicted next.
    pub(super) fn pop(&mut self) -> Option<Place> {
        let (place, stay) = self.victim()?;
        if self.names_max > 0 {
            self.names.put(place, stay.last);
        }
        Some(place)
    }

    fn victim(&mut self) -> Option<(Place, Stay)> {
        for _ in 0..MOVES_MAX {
            let Some((place, stay)) = self.probation.pop_lru() else {
                break;
            };
            if !stay.used || stay.cost > self.border {
                return Some((place, stay));
            }
            self.protect(place, stay);
        }
        self.probation.pop_lru().or_else(|| {
            let (place, stay) = self.protected.pop_lru()?;
            self.protected_bytes -= stay.cost;
            Some((place, stay))
        })
    }

    /// Its cost is at most `border`.
    fn protect(&mut self, place: Place, stay: Stay) {
        self.protected_bytes += stay.cost;
        while self.protected_bytes > self.border
            && let Some((place, stay)) = self.protected.pop_lru()
        {
            self.protected_bytes -= stay.cost;
            let used = false;
            self.probation.put(place, Stay { used, ..stay });
        }
        self.protected.put(place, stay);
    }

    /// What the names cost.
    pub(super) fn names_bytes(&self) -> u64 {
        self.names.len() as u64 * NAME_BYTES
    }

    /// How many slots are in it, and what they cost.
    pub(super) fn total(&self) -> (usize, u64) {
        let all = self.probation.iter().chain(self.protected.iter());
        all.fold((0, 0), |(count, bytes), (_, stay)| {
            (count + 1, bytes + stay.cost)
        })
    }

    pub(super) fn contains(&self, place: &Place) -> bool {
        self.probation.contains(place) || self.protected.contains(place)
    }

    pub(super) fn assert_invariants(&self) {
        for (place, _) in &self.protected {
            assert!(!self.probation.contains(place), "{place:?} in both parts");
        }
        for (place, _) in &self.names {
            assert!(!self.contains(place), "{place:?} is here and let go");
        }
        let bytes: u64 = self.protected.iter().map(|(_, stay)| stay.cost).sum();
        assert_eq!(bytes, self.protected_bytes, "bytes protected");
        assert!(bytes <= self.border, "more protected than allowed");
        assert!((self.border_min..=self.border_max).contains(&self.border));
        assert!(self.names.len() <= self.names_max, "too many names");
    }
}

/// Which parts of a slot have been read since it came: tells a second read from the rest of the first.
///
/// Programs read a slot in pieces: one by one, or several at once in any order (the kernel's read-ahead). All of that
/// is one use. A slot is split into at most 64 equal parts of at least a page; a part counts as read when its last
/// byte was, and a read that begins in such a part is a second one. Small pieces read over and over without ever
/// reaching the end of their part are not found: they still move to the front of probation each time.
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000_000;
    /// The limit holds 96 and the names of those that went.
    const COST: u64 = 10_000;

    fn place(n: u64) -> Place {
        (FileId { dev: 1, ino: n }, 0)
    }

    /// An order under a limit of its own, as the index keeps it.
    struct World {
        order: Order,
        used: u64,
    }

    impl World {
        fn new() -> World {
            World {
                order: Order::new(LIMIT),
                used: 0,
            }
        }

        /// One use of slot `n`: was it there?
        fn read(&mut self, n: u64) -> bool {
            let hit = self.order.contains(&place(n));
            if hit {
                self.order.touch(&place(n), true);
            } else {
                self.order.insert(place(n), COST);
                self.used += COST;
                while self.used + self.order.names_bytes() > LIMIT {
                    assert!(self.order.pop().is_some());
                    self.used -= COST;
                }
            }
            self.order.assert_invariants();
            hit
        }

        fn hits(&mut self, slots: impl IntoIterator<Item = u64>) -> usize {
            slots.into_iter().filter(|&n| self.read(n)).count()
        }
    }

    #[test]
    fn a_scan_passes_by_what_was_read_twice() {
        let mut w = World::new();
        w.hits(0..40);
        assert_eq!(w.hits(0..40), 40);
        assert_eq!(w.hits(1000..9000), 0);
        assert_eq!(w.hits(0..40), 40);
    }

    #[test]
    fn without_a_second_read_the_oldest_goes_first() {
        let mut w = World::new();
        w.hits(0..90);
        w.order.touch(&place(0), false);
        w.hits(90..110);
        assert!(w.read(0));
        assert!(!w.read(1));
    }

    /// A plain LRU has no hit here at all.
    #[test]
    fn a_loop_larger_than_the_memory_keeps_a_part_of_itself() {
        let mut w = World::new();
        w.hits(0..115);
        w.hits(0..115);
        for _ in 0..5 {
            assert!(w.hits(0..115) > 70);
        }
    }

    #[test]
    fn work_that_moves_on_takes_over_what_was_protected() {
        let mut w = World::new();
        for _ in 0..3 {
            w.hits(0..85);
        }
        for _ in 0..8 {
            w.hits(1000..1060);
        }
        assert_eq!(w.hits(1000..1060), 60);
    }

    #[test]
    fn a_slot_as_large_as_the_limit_comes_and_goes() {
        let mut order = Order::new(LIMIT);
        for n in 0..4 {
            order.insert(place(n % 2), LIMIT);
            order.touch(&place(n % 2), true);
            order.assert_invariants();
            assert_eq!(order.pop(), Some(place(n % 2)));
            order.assert_invariants();
        }
        assert_eq!(order.pop(), None);
    }

    #[test]
    fn sizes_and_removals_at_random_keep_the_invariants() {
        // A linear congruential generator: the same numbers in each run.
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut order = Order::new(LIMIT);
        for _ in 0..20_000 {
            let n = place(random(60));
            match random(4) {
                0 => order.remove(&n),
                1 if !order.contains(&n) => order.insert(n, 1 + random(LIMIT / 2)),
                _ => order.touch(&n, random(2) == 0),
            }
            while order.total().1 + order.names_bytes() > LIMIT {
                assert!(order.pop().is_some());
            }
            order.assert_invariants();
        }
    }

    #[test]
    fn one_eviction_moves_a_bounded_number_of_slots() {
        let mut order = Order::new(1 << 30);
        for n in 0..2000 {
            order.insert(place(n), 1);
            order.touch(&place(n), true);
        }
        assert_eq!(order.pop(), Some(place(u64::from(MOVES_MAX))));
        assert_eq!(order.protected.len(), MOVES_MAX as usize);
    }

    #[test]
    fn ticks_wrap() {
        assert!(Tick(1).is_after(Tick(u32::MAX)));
        assert!(!Tick(u32::MAX).is_after(Tick(1)));
        assert!(!Tick(7).is_after(Tick(7)));
    }

    #[test]
    fn a_pass_in_pieces_is_one_read_and_the_next_a_second() {
        for size in [1, 100, 4096, 5000, 131_072, 262_145, 1 << 20, 5_000_001] {
            for piece in [1 + size / 100, 4096, 100_000, size] {
                let mut reads = Reads::default();
                let pass = |reads: &mut Reads| -> Vec<bool> {
                    (0..size)
                        .step_by(piece)
                        .map(|at| reads.note(at..size.min(at + piece), size))
                        .collect()
                };
                let first = pass(&mut reads);
                assert!(first.iter().all(|again| !again), "{piece} of {size}");
                let second = pass(&mut reads);
                assert!(second.iter().all(|&again| again), "{piece} of {size}");
            }
        }
    }

    #[test]
    fn pieces_in_any_order_are_one_read() {
        const SIZE: usize = 1 << 20;
        let mut reads = Reads::default();
        for at in [0, 3, 1, 2, 7, 6, 5, 4] {
            let at = at * SIZE / 8;
            assert!(!reads.note(at..at + SIZE / 8, SIZE));
        }
        assert!(reads.note(SIZE - 1..SIZE, SIZE));
        assert!(!reads.note(5..5, SIZE));
    }
}
