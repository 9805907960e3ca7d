//! How far a run got.

use super::files_word;
use indicatif::{BinaryBytes, ProgressBar};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Counters; each is exact, a set read together may be some files apart.
#[derive(Default)]
pub(super) struct Tally {
    /// Files that were found and fit, and their bytes.
    pub(super) files_found: AtomicU64,
    pub(super) bytes_found: AtomicU64,
    /// Files that are done, well or not.
    pub(super) files_done: AtomicU64,
    /// Bytes that need nothing more.
    pub(super) bytes_done: AtomicU64,
    /// Of these, what was there already and what the source was asked for.
    pub(super) cached: AtomicU64,
    pub(super) fetched: AtomicU64,
    /// Files that are wholly in the cache.
    pub(super) files_warm: AtomicU64,
    /// There is nothing more to be found.
    pub(super) is_walked: AtomicBool,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Tally {
    /// The bar says it. A plus sign: more may be found.
    pub(super) fn show(&self, bar: &ProgressBar) {
        let is_walked = self.is_walked.load(Ordering::Relaxed);
        let more = if is_walked { "" } else { "+" };
        let found = get(&self.bytes_found);
        bar.set_length(found);
        bar.set_position(get(&self.bytes_done).min(found));
        bar.set_message(format!(
            "{}{more} {}/{}{more} files",
            BinaryBytes(found),
            get(&self.files_done),
            get(&self.files_found),
        ));
    }

    /// One line.
    pub(super) fn summary(&self, took: Duration, is_interrupted: bool) -> String {
        let (cached, fetched) = (get(&self.cached), get(&self.fetched));
        let files = get(&self.files_warm);
        let warm = format!(
            "{} {}, {}: {} from the source in {:.1} s, {} there already",
            files,
            files_word(files),
            BinaryBytes(cached + fetched),
            BinaryBytes(fetched),
            took.as_secs_f64(),
            BinaryBytes(cached),
        );
        if is_interrupted {
            format!("interrupted; warm are {warm}; the same command goes on from here")
        } else {
            format!("warm: {warm}")
        }
    }
}
