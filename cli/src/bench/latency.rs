//! Where the loop counts latencies: a histogram that costs a dozen instructions per value.
//!
//! It has the classes of a high dynamic range histogram with three digits, but counts ticks of the clock as they come,
//! and does nothing else. Nanoseconds, means and percentiles are made from it when the run is over.

use hdrhistogram::Histogram;

use super::{clock::Clock, statistics::latency_histogram};
use crate::error::{Error, Kind};

/// Below 2^11 every value has a class of its own; above, each doubling has 2^10 classes.
const LINEAR_BITS: u32 = 11;
const CLASS_BITS: u32 = LINEAR_BITS - 1;
/// Classes for every 64-bit value.
const CLASSES: usize = ((u64::BITS - LINEAR_BITS + 2) as usize) << CLASS_BITS;

/// Counts of latencies in ticks of a [`Clock`].
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: vec![0; CLASSES],
        }
    }
}

impl Latencies {
    /// Counts one. What is as large as a small negative number counts as 0: a thread that is moved to another core can
    /// see the counter a few ticks behind.
    #[inline]
    pub fn record(&mut self, ticks: u64) {
        // There is a class for every value: the test never fails, and is cheaper than proving so.
        if let Some(count) = self.counts.get_mut(class_of(ticks)) {
            *count += 1;
        }
    }

    /// How many were counted. Looks at every class.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The same in nanoseconds, for statistics.
    ///
    /// # Errors
    /// [`Kind::Environment`] if there is no memory for it.
    pub fn histogram(&self, clock: &Clock) -> Result<Histogram<u64>, Error> {
        let mut histogram = latency_histogram()?;
        let highest = histogram.high();
        for (class, &count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let ticks = middle_of(class);
            let ticks = if ticks > i64::MAX as u64 { 0 } else { ticks };
            let nanoseconds = clock.nanoseconds(0, ticks).min(highest);
            histogram.record_n(nanoseconds, count).map_err(|error| {
                Error::new(
                    Kind::Environment,
                    format!("cannot count a latency of {nanoseconds} ns: {error}"),
                )
            })?;
        }
        Ok(histogram)
    }
}

#[inline]
const fn class_of(ticks: u64) -> usize {
    let shift = (ticks | ((1 << LINEAR_BITS) - 1)).ilog2() - CLASS_BITS;
    ((shift as usize) << CLASS_BITS) + (ticks >> shift) as usize
}

/// The middle of a class's values.
const fn middle_of(class: usize) -> u64 {
    let Some(shift) = (class >> CLASS_BITS).checked_sub(1) else {
        return class as u64;
    };
    let lowest = ((class - (shift << CLASS_BITS)) as u64) << shift;
    lowest + (1_u64 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_consecutive_and_complete() {
        assert_eq!(
            (class_of(0), class_of(2047), class_of(2048), class_of(2050)),
            (0, 2047, 2048, 2049)
        );
        assert_eq!(class_of(u64::MAX), CLASSES - 1);
        for class in 0..CLASSES {
            assert_eq!(class_of(middle_of(class)), class);
        }
    }

    #[test]
    fn statistics_are_those_of_the_values() {
        let clock = Clock::monotonic();
        let mut latencies = Latencies::default();
        for value in 1..=1000_u64 {
            latencies.record(value * 1000);
        }
        let histogram = latencies.histogram(&clock).unwrap();
        assert_eq!((latencies.count(), histogram.len()), (1000, 1000));
        let close = |value: f64, expected: f64| (value / expected - 1.0).abs() < 2e-3;
        assert!(close(histogram.mean(), 500_500.0), "{}", histogram.mean());
        assert!(close(histogram.stdev(), 288_675.0), "{}", histogram.stdev());
        assert!(close(histogram.value_at_percentile(99.0) as f64, 990_000.0));
        assert!(
            close(histogram.min() as f64, 1000.0) && close(histogram.max() as f64, 1_000_000.0)
        );
    }

    #[test]
    fn a_latency_beyond_the_histogram_is_kept_at_its_end() {
        let mut latencies = Latencies::default();
        latencies.record(1 << 62);
        let histogram = latencies.histogram(&Clock::monotonic()).unwrap();
        assert_eq!(histogram.len(), 1);
        assert!(histogram.max() >= histogram.high());
    }

    #[test]
    fn a_counter_that_lags_behind_gives_no_latency() {
        let mut latencies = Latencies::default();
        latencies.record(100_u64.wrapping_sub(103));
        let histogram = latencies.histogram(&Clock::monotonic()).unwrap();
        assert_eq!((histogram.len(), histogram.max()), (1, 0));
    }

    proptest::proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn a_class_is_narrow(ticks: u64) {
            let middle = middle_of(class_of(ticks));
            proptest::prop_assert!(middle.abs_diff(ticks) <= ticks / 2048);
        }
    }
}
