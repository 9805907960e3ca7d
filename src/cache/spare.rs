//! Buffers of slots that were evicted, for the next reads of the source.
//!
//! A program that reads more than the cache holds evicts a slot for each that it fills. Taking the memory of the one for the
//! other saves the system calls, page faults and zeroing of a fresh buffer: a third of the daemon's time in such a run.
//! What is in a spare buffer are bytes of another file: who takes it overwrites all, or passes on only what he wrote.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

/// Buffers kept: one for each of the usual number of requests in flight, 4 MiB of the usual size.
const KEPT_MAX: usize = 32;

/// Smaller ones the allocator keeps itself.
const SIZE_MIN: usize = 64 << 10;

/// Larger ones are rare, and would hold much memory.
const SIZE_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<BytesMut>>);

impl Spare {
    /// Keep what nobody else uses of these.
    pub(super) fn keep(&self, evicted: Vec<Bytes>) {
        for bytes in evicted {
            if !(SIZE_MIN..=SIZE_MAX).contains(&bytes.len()) {
                continue;
            }
            let Ok(buffer) = bytes.try_into_mut() else {
                continue;
            };
            let mut kept = self.0.lock();
            if kept.len() == KEPT_MAX {
                return;
            }
            kept.push(buffer);
        }
    }

    /// A buffer of exactly `size` bytes, with anything in it.
    pub(super) fn take(&self, size: usize) -> BytesMut {
        let mut kept = self.0.lock();
        let fitting = kept.iter().rposition(|buffer| buffer.len() == size);
        let found = fitting.map(|index| kept.swap_remove(index));
        drop(kept);
        found.unwrap_or_else(|| BytesMut::zeroed(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_nobody_uses_is_taken_again() {
        let spare = Spare::default();
        let bytes = BytesMut::zeroed(SIZE_MIN).freeze();
        let (at, in_use) = (bytes.as_ptr(), bytes.clone());
        spare.keep(vec![bytes]);
        assert_ne!(spare.take(SIZE_MIN).as_ptr(), at, "somebody reads it");
        spare.keep(vec![in_use]);
        assert_ne!(spare.take(SIZE_MIN + 1).len(), SIZE_MIN);
        assert_eq!(spare.take(SIZE_MIN).as_ptr(), at);
    }

    #[test]
    fn there_is_a_limit() {
        let spare = Spare::default();
        let bytes = || BytesMut::zeroed(SIZE_MIN).freeze();
        spare.keep((0..100).map(|_| bytes()).collect());
        assert_eq!(spare.0.lock().len(), KEPT_MAX);
        spare.keep(vec![Bytes::from(vec![0; 10])]);
    }
}
