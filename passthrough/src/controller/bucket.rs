//! Ceilings: so many operations and bytes in a second.

use crate::command::{Class, DecodedCommand};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// What may be saved up: what comes in this many nanoseconds.
const BURST: u64 = SECOND / 50;

/// A bucket that fills at a rate, up to a fiftieth of a second's worth (and one at least), and that can be overdrawn: whoever takes more than there is waits until
/// it has come.
///
/// Counted in units of a nanosecond times the rate, so that nothing is lost by rounding however often it is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    /// Units in a second; 0 for no ceiling.
    rate: u64,
    /// Billionths of a unit.
    level: i64,
    /// When it was filled last, in nanoseconds.
    filled: u64,
}

impl Bucket {
    /// A full bucket; without a rate, one that never empties.
    pub(crate) fn new(rate: Option<u64>, now: u64) -> Self {
        let rate = rate.unwrap_or(0);
        let mut bucket = Self {
            rate,
            level: 0,
            filled: now,
        };
        bucket.level = bucket.capacity();
        bucket
    }

    fn capacity(&self) -> i64 {
        let saved = i64::try_from(self.rate.saturating_mul(BURST)).unwrap_or(i64::MAX);
        saved.max(SECOND as i64)
    }

    /// Whole units that may be taken at `now`; 0 while it is overdrawn.
    #[inline]
    pub(crate) fn available(&mut self, now: u64) -> u64 {
        if self.rate == 0 {
            return u64::MAX;
        }
        self.fill(now)
    }

    fn fill(&mut self, now: u64) -> u64 {
        let passed = now.saturating_sub(self.filled);
        self.filled = self.filled.max(now);
        let come = i64::try_from(passed.saturating_mul(self.rate)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(come).min(self.capacity());
        u64::try_from(self.level / SECOND as i64).unwrap_or(0)
    }

    /// Takes units, whether they are there or not.
    #[inline]
    pub(crate) fn take(&mut self, units: u64) {
        if self.rate != 0 {
            let taken = i64::try_from(units.saturating_mul(SECOND)).unwrap_or(i64::MAX);
            self.level = self.level.saturating_sub(taken);
        }
    }
}

/// Bytes that a range of Dataset Management costs at most. A controller only notes which blocks are deallocated: it costs far less than to write them, and clients deallocate whole slices.
pub(super) const RANGE_COST: u64 = 256 << 10;

/// Bytes that a command which moves no data of the client's costs: those of the blocks that it has the controller read or write.
#[cold]
pub(super) fn cost(command: &DecodedCommand<'_>, block_shift: u8) -> u64 {
    let bytes = command
        .extents
        .iter()
        .map(|extent| extent.blocks.saturating_mul(1 << block_shift));
    let touched: u64 = match command.class {
        // What Copy reads, and what it writes.
        Class::Verify | Class::WriteZeroes | Class::Poison | Class::Copy => bytes.sum(),
        Class::Deallocate => bytes.map(|bytes| bytes.min(RANGE_COST)).sum(),
        _ => 0,
    };
    touched.max(command.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rate_it_never_empties() {
        let mut bucket = Bucket::new(None, 0);
        bucket.take(u64::MAX);
        assert_eq!(bucket.available(0), u64::MAX);
    }

    #[test]
    fn it_gives_its_rate_over_time_however_often_it_is_asked() {
        for step in [1, 7, 1_000, 999_983, 20_000_000] {
            let mut bucket = Bucket::new(Some(30_000), 0);
            let (mut now, mut taken) = (0, 0);
            while now < SECOND {
                let some = bucket.available(now).min(3);
                bucket.take(some);
                taken += some;
                now += step.max(1_000);
            }
            // A burst of a fiftieth, and a second's worth; no more than three at each look.
            let most = (30_000 + 600).min(3 * SECOND.div_ceil(step.max(1_000)));
            assert!(
                taken <= most && taken + 8 >= most.min(30_000),
                "step {step}: {taken}"
            );
        }
    }

    #[test]
    fn what_is_overdrawn_is_waited_for() {
        let mut bucket = Bucket::new(Some(1_000_000), 0);
        assert_eq!(bucket.available(0), 20_000);
        bucket.take(1_020_000);
        assert_eq!(bucket.available(SECOND - 1), 0);
        assert_eq!(bucket.available(SECOND + 2_000), 2);
        // A clock that goes back gives nothing and takes nothing.
        assert_eq!(bucket.available(SECOND), 2);
        assert_eq!(
            bucket.available(100 * SECOND),
            20_000,
            "no more than a burst"
        );
    }

    #[test]
    fn a_slow_rate_gives_one_at_a_time() {
        let mut bucket = Bucket::new(Some(2), 0);
        assert_eq!(bucket.available(0), 1);
        bucket.take(1);
        assert_eq!(bucket.available(SECOND / 2 - 1), 0);
        assert_eq!(bucket.available(SECOND / 2), 1);
        assert_eq!(bucket.available(9 * SECOND), 1);
    }
}
