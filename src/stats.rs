//! Counters of what the cache and the source did. Relaxed atomics: each is exact, a set read together
//! may be some operations apart.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Add `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one mount (or one library cache) has done since it began.
#[derive(Default, Debug)]
pub struct Stats {
    /// Reads answered from slots alone.
    pub hits: Counter,
    /// Reads that had to ask the source for bytes.
    pub misses: Counter,
    /// Bytes answered from slots.
    pub hit_bytes: Counter,
    /// Bytes that programs asked the mount for, as far as the files have them.
    pub asked_bytes: Counter,
    /// Bytes read from the source.
    pub fetched_bytes: Counter,
    /// Of these, bytes that were read ahead of programs.
    pub ahead_bytes: Counter,
    /// Of these, bytes of slots that were read later, in whole or in part.
    pub ahead_used_bytes: Counter,
    /// Bytes that were read ahead, and went to make room before anybody had read them.
    pub ahead_lost_bytes: Counter,
    /// Bytes written to the source.
    pub written_bytes: Counter,
    /// Slots dropped to stay under the memory limit.
    pub evicted_slots: Counter,
    /// Records whose file was found changed by someone else.
    pub stale_records: Counter,
    /// System calls made on the source.
    pub source_calls: Counter,
    /// Answers given from the cache past their ttl because the source did not answer in time.
    pub served_unchecked: Counter,
}
