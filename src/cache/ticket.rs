//! The coherence rule, all of it: what a read may leave in the cache while writes go on.
//!
//! Each record has one *generation*, bumped in the same critical section that touches its slots, whenever a
//! write ends, well or badly. Then:
//!
//! 1. A [`Fill`] is kept only if the generation did not move since it began.
//! 2. A [`Write`] that commits patches the slots only if the generation did not move since it began;
//!    otherwise it drops what it overlaps.
//! 3. A write ticket that is dropped unfinished is a failed write: the version is unknown from then on, so
//!    drop all, bump. Forgetting to finish is safe.
//! 4. A reader joins a flight only if that flight began in the current generation (see `flight`).
//!
//! A changed version is a stranger's write of everything: drop all, bump. While a write is under way a
//! reader may see old or new bytes; after it returned, never old ones. The tests below run every
//! interleaving of small histories against a plain array, and removing any clause fails them.

use super::{Cache, FileId, Flight, Version};
use crate::error::Error;
use crate::span::Span;
use bytes::Bytes;
use nix::errno::Errno;
use std::sync::Arc;

/// Right and duty to read one gap from the source. Dropped unfinished, it fails the readers that joined.
#[derive(Debug)]
pub struct Fill {
    cache: Arc<Cache>,
    id: FileId,
    span: Span,
    wanted: Span,
    generation: u64,
    flight: Arc<Flight>,
}

impl Fill {
    pub(super) fn new(
        cache: Arc<Cache>,
        id: FileId,
        span: Span,
        generation: u64,
        flight: Arc<Flight>,
    ) -> Fill {
        Fill {
            cache,
            id,
            span,
            wanted: span,
            generation,
            flight,
        }
    }

    /// What to read.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Only `part` is wanted now; what is fetched beside it is not used before it is read. Unless this is called, all
    /// of the span is wanted.
    pub fn wanted(mut self, part: Span) -> Fill {
        self.wanted = part;
        self
    }

    /// The bytes from `span().pos` on, fewer than asked when the file ends there. They are kept if the
    /// rule allows; whoever joined gets them either way.
    pub fn complete(self, bytes: Bytes) {
        let wall = self.cache.clock.wall();
        let mut index = self.cache.index.lock();
        // A reader joins under the same lock.
        let (is_ahead, joined) = (self.flight.is_ahead(), self.flight.is_joined());
        let is_unread = is_ahead && !joined;
        let wanted = if is_unread {
            Span::new(self.span.pos, 0)
        } else {
            self.wanted
        };
        let evicted = index.complete_fill(
            self.id,
            self.span,
            wanted,
            self.generation,
            (&bytes, is_unread),
            wall,
        );
        drop(index);
        let stats = &self.cache.stats;
        if is_ahead {
            stats.ahead_bytes.add(bytes.len() as u64);
        }
        if is_ahead && joined {
            stats.ahead_used_bytes.add(bytes.len() as u64);
        }
        self.cache.settle(evicted);
        self.flight.land(Ok(bytes));
    }

    /// The source failed; those who joined get the same error.
    pub fn fail(self, error: Error) {
        // First: who tries again by himself must not meet this flight again.
        let mut index = self.cache.index.lock();
        index.end_flight(self.id, &self.flight);
        drop(index);
        self.flight.land(Err(error));
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.cache.index.lock().end_flight(self.id, &self.flight);
        // Does nothing when the flight has landed.
        self.flight.land(Err(Error::new(Errno::EIO, "read")));
    }
}

/// A write under way.
#[derive(Debug)]
pub struct Write {
    cache: Arc<Cache>,
    id: FileId,
    span: Span,
    generation: u64,
    /// No other write was under way when it began.
    is_alone: bool,
    ended: bool,
}

impl Write {
    pub(super) fn new(
        cache: Arc<Cache>,
        id: FileId,
        span: Span,
        (generation, writers): (u64, u32),
    ) -> Write {
        Write {
            cache,
            id,
            span,
            generation,
            is_alone: writers == 1,
            ended: false,
        }
    }

    /// `data` is now in the source at the start of the span. Patches the slots that it overlaps in place, keeps
    /// what no slot has as new ones, and drops what is left of the span.
    pub fn commit(mut self, data: &Bytes, after: Version) {
        debug_assert!(data.len() as u64 <= self.span.size);
        self.end(Some(data), Some(after));
    }

    /// `data` was appended, and the file ended right behind the start of the span plus its size afterwards. So it
    /// is at the start of the span, unless another change of ours was under way: then that says nothing.
    pub fn commit_append(mut self, data: &Bytes, after: Version) {
        let is_alone = self.is_alone && self.cache.index.lock().generation(self.id).1 == 1;
        self.end(is_alone.then_some(data), Some(after));
    }

    /// The source did what was asked to the span, but with which bytes is not known here: drop the overlap.
    pub fn commit_unknown(mut self, after: Version) {
        self.end(None, Some(after));
    }

    /// The file now ends at `after.size`. The span is `[new size, ...)`: slots behind it are cut off.
    pub fn commit_truncate(self, after: Version) {
        self.commit_unknown(after);
    }

    fn end(&mut self, data: Option<&Bytes>, after: Option<Version>) {
        self.ended = true;
        let now = self.cache.clock.now();
        let dropped = self.cache.index.lock().end_write(
            self.id,
            self.span,
            self.generation,
            data,
            after,
            now,
        );
        self.cache.settle(dropped);
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.ended {
            self.end(None, None);
        }
    }
}

#[cfg(test)]
mod tests;
