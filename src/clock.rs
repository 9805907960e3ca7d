//! Time as a parameter: the system's clocks, or one that a test moves by hand.
//!
//! Two times are needed. [`Clock::now`] is monotonic and measures how long something has been trusted.
//! [`Clock::wall`] is compared with the timestamps of files (see "racy timestamps" in the `cache` module).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point of monotonic time, in nanoseconds since the clock was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(u64);

impl Moment {
    /// Time from `earlier` to this moment; zero when it is not earlier.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clocks.
    System(Instant),
    /// Nanoseconds that only [`Clock::advance`] moves; the wall clock then stands at `Moment` past `wall`.
    Manual {
        /// Nanoseconds passed.
        passed: Arc<AtomicU64>,
        /// Wall time at zero.
        wall: SystemTime,
    },
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock::System(Instant::now())
    }

    /// A clock that stands still until it is moved.
    pub fn manual(wall: SystemTime) -> Clock {
        Clock::Manual {
            passed: Arc::new(AtomicU64::new(0)),
            wall,
        }
    }

    /// Move a manual clock. The system's clock cannot be moved; it stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual { passed, .. } = self {
            passed.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
        }
    }

    /// Monotonic now.
    pub fn now(&self) -> Moment {
        Moment(match self {
            Clock::System(start) => start.elapsed().as_nanos() as u64,
            Clock::Manual { passed, .. } => passed.load(Ordering::SeqCst),
        })
    }

    /// Wall clock in nanoseconds since 1970, as file timestamps count.
    pub fn wall(&self) -> i128 {
        let wall = match self {
            Clock::System(_) => SystemTime::now(),
            Clock::Manual { passed, wall } => {
                *wall + Duration::from_nanos(passed.load(Ordering::SeqCst))
            }
        };
        match wall.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(100));
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.now().since(start), Duration::from_millis(1500));
        assert_eq!(start.since(clock.now()), Duration::ZERO);
        assert_eq!(clock.wall(), 101_500_000_000);
    }
}
