//! Byte ranges of a file: all offset arithmetic of the crate, and nothing else.
//!
//! A [`Span`] is half open, `[pos, pos + size)`. Its end saturates at `u64::MAX`, so a span to "the end of
//! whatever there is" can be written as [`Span::from`] without overflow checks at the caller.

use std::fmt;

/// The bytes `[pos, pos + size)` of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub pos: u64,
    /// Number of bytes.
    pub size: u64,
}

impl Span {
    /// Every byte that a file can have.
    pub const ALL: Span = Span {
        pos: 0,
        size: u64::MAX,
    };

    /// `size` bytes from `pos` on.
    pub const fn new(pos: u64, size: u64) -> Span {
        Span { pos, size }
    }

    /// `[start, end)`; empty at `start` when `end` lies before it.
    pub const fn between(start: u64, end: u64) -> Span {
        Span {
            pos: start,
            size: end.saturating_sub(start),
        }
    }

    /// Everything from `pos` on.
    pub const fn from(pos: u64) -> Span {
        Span::between(pos, u64::MAX)
    }

    /// Offset behind the last byte.
    pub const fn end(self) -> u64 {
        self.pos.saturating_add(self.size)
    }

    /// True when there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// True when both have a byte in common.
    pub fn overlaps(self, other: Span) -> bool {
        self.pos.max(other.pos) < self.end().min(other.end())
    }

    /// True when `other` lies inside.
    pub fn covers(self, other: Span) -> bool {
        self.pos <= other.pos && other.end() <= self.end()
    }

    /// The bytes that both have; empty when they have none.
    pub fn intersect(self, other: Span) -> Span {
        Span::between(self.pos.max(other.pos), self.end().min(other.end()))
    }

    /// The part below `end`: a read clipped at end of file.
    pub fn clip(self, end: u64) -> Span {
        Span::between(self.pos.min(end), self.end().min(end))
    }

    /// This span as a range of indices into a buffer whose first byte is at `base`.
    ///
    /// The span must lie in the buffer; sizes of buffers fit `usize` by construction.
    pub fn within(self, base: u64) -> std::ops::Range<usize> {
        debug_assert!(self.pos >= base);
        let start = (self.pos - base) as usize;
        start..start + self.size as usize
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.pos, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_saturate_instead_of_wrapping() {
        let tail = Span::from(10);
        assert_eq!(tail.end(), u64::MAX);
        assert_eq!(Span::new(u64::MAX, 5).end(), u64::MAX);
        assert_eq!(tail.clip(12), Span::new(10, 2));
        assert!(Span::between(9, 3).is_empty());
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let a = Span::new(0, 4);
        assert!(!a.overlaps(Span::new(4, 4)));
        assert!(a.overlaps(Span::new(3, 1)));
        assert!(!a.overlaps(Span::new(2, 0)));
        assert_eq!(a.intersect(Span::new(2, 9)), Span::new(2, 2));
        assert!(a.intersect(Span::new(7, 9)).is_empty());
        assert_eq!(Span::new(6, 2).within(4), 2..4);
    }
}
