//! The time, as whoever polls tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock that its owner sets, once in a round of polling, so that nobody asks the system for the time in between. Clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    elapsed: Arc<AtomicU64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that shows the present time, and goes on showing it until it is set.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            elapsed: Arc::default(),
        }
    }

    /// Sets it. A time before the one that it shows is not taken.
    #[inline]
    pub fn set(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        // Relaxed: it orders nothing, and one thread sets it.
        self.elapsed.fetch_max(elapsed, Ordering::Relaxed);
    }

    /// Nanoseconds since the clock was made.
    #[inline]
    #[must_use]
    pub fn nanoseconds(&self) -> u64 {
        self.elapsed.load(Ordering::Relaxed)
    }

    /// The moment that is so many nanoseconds after the clock was made.
    #[inline]
    #[must_use]
    pub fn instant(&self, nanoseconds: u64) -> Instant {
        self.start + Duration::from_nanos(nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_what_it_was_set_to_and_never_goes_back() {
        let clock = Clock::new();
        let other = clock.clone();
        assert_eq!(clock.nanoseconds(), 0);
        let later = clock.start + Duration::from_millis(5);
        clock.set(later);
        assert_eq!(other.nanoseconds(), 5_000_000);
        assert_eq!(other.instant(other.nanoseconds()), later);
        clock.set(clock.start);
        assert_eq!(other.nanoseconds(), 5_000_000);
    }
}
