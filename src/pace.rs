//! How long something usually takes: a running median.
//!
//! Each sample moves it by a sixteenth, so that it follows a source that slows down within a few dozen answers, and one
//! answer in a thousand during which the thread was not scheduled leaves no trace, as it would in a mean.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A running median of times, for any thread.
#[derive(Default, Debug)]
pub struct Pace(AtomicU64);

impl Pace {
    /// One more took this long.
    pub fn note(&self, took: Duration) {
        let took = took.as_nanos() as u64;
        let usual = self.0.load(Ordering::Relaxed);
        let next = match usual {
            0 => took,
            _ if took > usual => usual + usual / 16 + 1,
            _ => usual - usual / 16,
        };
        self.0.store(next, Ordering::Relaxed);
    }

    /// What is usual; zero before the first sample.
    pub fn usual(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hiccup_is_not_the_usual() {
        let pace = Pace::default();
        assert_eq!(pace.usual(), Duration::ZERO);
        for took in [10, 10, 9000, 10, 11] {
            pace.note(Duration::from_millis(took));
        }
        assert!(
            pace.usual() < Duration::from_millis(12),
            "{:?}",
            pace.usual()
        );
        for _ in 0..100 {
            pace.note(Duration::from_millis(100));
        }
        assert!(
            pace.usual() > Duration::from_millis(90),
            "{:?}",
            pace.usual()
        );
    }
}
