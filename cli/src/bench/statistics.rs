//! What one job measured, and how jobs are merged.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::error::{Error, Kind};

/// The longest latency that is told apart from longer ones, in nanoseconds.
const LONGEST: u64 = 1_000_000_000_000;
/// Decimal digits of a latency that the histogram keeps.
const DIGITS: u8 = 3;

/// The batch sizes that fio tells apart: 0, up to 4, 8, 16, 32, 64, and more.
pub const BATCHES: usize = 7;
/// The depths that fio tells apart: 1, 2, 4, 8, 16, 32, and 64 or more.
pub const DEPTHS: usize = 7;

/// An empty histogram of latencies in nanoseconds, whose size never changes: recording does not allocate.
///
/// # Errors
/// [`Kind::Environment`] if there is no memory for it.
pub fn latency_histogram() -> Result<Histogram<u64>, Error> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).map_err(|error| {
        Error::new(
            Kind::Environment,
            format!("cannot make a histogram: {error}"),
        )
    })
}

/// Number of I/Os between two looks at an empty completion queue, by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batches(pub [u64; BATCHES]);

impl Batches {
    /// Counts a batch of `size`.
    #[inline]
    pub const fn record(&mut self, size: u64) {
        let index = match size {
            0 => 0,
            1..=4 => 1,
            5..=8 => 2,
            9..=16 => 3,
            17..=32 => 4,
            33..=64 => 5,
            _ => 6,
        };
        self.0[index] += 1;
    }

    /// The percentage of each size class.
    #[must_use]
    pub fn percentages(&self) -> [f64; BATCHES] {
        let total: u64 = self.0.iter().sum();
        self.0.map(|count| percentage(count, total))
    }
}

/// What the operating system counted for a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Context switches.
    pub context_switches: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// Page faults that did not.
    pub minor_faults: u64,
}

impl CpuUse {
    /// What the calling thread has used so far; zeros if the kernel does not tell.
    #[must_use]
    pub fn of_this_thread() -> Self {
        use nix::sys::resource::{UsageWho, getrusage};
        fn unsigned<T: TryInto<u64>>(value: T) -> u64 {
            value.try_into().unwrap_or(0)
        }
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
            return Self::default();
        };
        let duration = |time: nix::sys::time::TimeVal| {
            Duration::from_secs(unsigned(time.tv_sec()))
                + Duration::from_micros(unsigned(time.tv_usec()))
        };
        Self {
            user: duration(usage.user_time()),
            system: duration(usage.system_time()),
            context_switches: unsigned(usage.voluntary_context_switches())
                + unsigned(usage.involuntary_context_switches()),
            major_faults: unsigned(usage.major_page_faults()),
            minor_faults: unsigned(usage.minor_page_faults()),
        }
    }

    /// What was used since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            context_switches: self
                .context_switches
                .saturating_sub(earlier.context_switches),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
        }
    }

    fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.system += other.system;
        self.context_switches += other.context_switches;
        self.major_faults += other.major_faults;
        self.minor_faults += other.minor_faults;
    }
}

/// Rates seen at regular times while a job ran, in I/Os per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

/// Least, greatest, mean, and deviation of [`Samples`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the sample.
    pub deviation: f64,
}

impl Samples {
    /// Their spread; zeros without samples.
    #[must_use]
    pub fn spread(&self) -> Spread {
        let (Some(min), Some(max)) = (
            self.0.iter().copied().reduce(f64::min),
            self.0.iter().copied().reduce(f64::max),
        ) else {
            return Spread::default();
        };
        let count = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / count;
        let squares: f64 = self.0.iter().map(|sample| (sample - mean).powi(2)).sum();
        let deviation = if self.0.len() > 1 {
            (squares / (count - 1.0)).sqrt()
        } else {
            0.0
        };
        Spread {
            min,
            max,
            mean,
            deviation,
        }
    }

    /// Sums samples taken at the same times.
    fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0.0);
        }
        for (sum, sample) in self.0.iter_mut().zip(&other.0) {
            *sum += sample;
        }
    }
}

/// What one job measured, or several merged.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Number of jobs.
    pub jobs: u32,
    /// I/Os that succeeded.
    pub ios: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// From the first submission to the last completion.
    pub runtime: Duration,
    /// Latencies in nanoseconds, from submission to completion as the job saw them.
    pub latency: Histogram<u64>,
    /// Submissions by the number of I/Os then in flight, themselves included.
    pub depths: [u64; DEPTHS],
    /// Completions taken between two looks at an empty queue.
    pub batches: Batches,
    /// What the threads used.
    pub cpu: CpuUse,
    /// The rates seen meanwhile.
    pub samples: Samples,
}

impl JobResult {
    /// I/Os per second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        per_second(self.ios, self.runtime)
    }

    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.runtime)
    }

    /// The bytes of one I/O.
    #[must_use]
    pub fn bytes_per_io(&self) -> f64 {
        if self.ios == 0 {
            0.0
        } else {
            self.bytes as f64 / self.ios as f64
        }
    }

    /// Adds another job that ran at the same time: the longest runtime counts.
    ///
    /// # Errors
    /// [`Kind::Environment`] if the histograms do not fit each other.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        self.latency.add(&other.latency).map_err(|error| {
            Error::new(
                Kind::Environment,
                format!("cannot merge histograms: {error}"),
            )
        })?;
        self.jobs += other.jobs;
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.runtime = self.runtime.max(other.runtime);
        for (sum, count) in self.depths.iter_mut().zip(other.depths) {
            *sum += count;
        }
        for (sum, count) in self.batches.0.iter_mut().zip(other.batches.0) {
            *sum += count;
        }
        self.cpu.add(&other.cpu);
        self.samples.add(&other.samples);
        Ok(())
    }

    /// The percentage of submissions at each depth.
    #[must_use]
    pub fn depth_percentages(&self) -> [f64; DEPTHS] {
        let total: u64 = self.depths.iter().sum();
        self.depths.map(|count| percentage(count, total))
    }

    /// The percentage of latencies at or below each of `bounds` (ascending, nanoseconds) and above
    /// the one before; the last element is what lies above all.
    #[must_use]
    pub fn latency_shares(&self, bounds: &[u64]) -> Vec<f64> {
        let mut counts = vec![0_u64; bounds.len() + 1];
        for value in self.latency.iter_recorded() {
            let index = bounds.partition_point(|bound| *bound < value.value_iterated_to());
            if let Some(count) = counts.get_mut(index) {
                *count += value.count_at_value();
            }
        }
        counts
            .into_iter()
            .map(|count| percentage(count, self.latency.len()))
            .collect()
    }
}

/// The index of a depth among those that fio tells apart.
#[must_use]
pub const fn depth_class(depth: u64) -> usize {
    match depth {
        0 | 1 => 0,
        2..=3 => 1,
        4..=7 => 2,
        8..=15 => 3,
        16..=31 => 4,
        32..=63 => 5,
        _ => 6,
    }
}

fn percentage(count: u64, total: u64) -> f64 {
    if total == 0 {
        0.0
    } else {
        count as f64 * 100.0 / total as f64
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn job(latencies: &[u64], runtime: Duration) -> JobResult {
        let mut latency = latency_histogram().unwrap();
        for &value in latencies {
            latency.saturating_record(value);
        }
        let ios = latencies.len() as u64;
        let mut depths = [0; DEPTHS];
        depths[depth_class(32)] = ios;
        JobResult {
            jobs: 1,
            ios,
            bytes: ios * 4096,
            runtime,
            latency,
            depths,
            batches: Batches::default(),
            cpu: CpuUse {
                user: Duration::from_secs(1),
                ..CpuUse::default()
            },
            samples: Samples(vec![10.0, 20.0]),
        }
    }

    #[test]
    fn merged_jobs_are_one_population() {
        let mut merged = job(&[1000, 2000], Duration::from_secs(1));
        merged
            .merge(&job(&[3000, 4000], Duration::from_secs(2)))
            .unwrap();
        assert_eq!((merged.jobs, merged.ios, merged.bytes), (2, 4, 16384));
        assert_eq!(merged.runtime, Duration::from_secs(2));
        assert_eq!(merged.iops(), 2.0);
        assert_eq!(merged.bytes_per_second(), 8192.0);
        assert!((merged.latency.mean() - 2500.0).abs() < 2.0);
        assert_eq!((merged.latency.min(), merged.latency.len()), (1000, 4));
        assert_eq!(merged.cpu.user, Duration::from_secs(2));
        assert_eq!(merged.samples.0, [20.0, 40.0]);
        assert_eq!(
            merged.depth_percentages(),
            [0.0, 0.0, 0.0, 0.0, 0.0, 100.0, 0.0]
        );
    }

    #[test]
    fn an_empty_job_has_no_rates() {
        let empty = job(&[], Duration::ZERO);
        assert_eq!(
            (empty.iops(), empty.bytes_per_second(), empty.bytes_per_io()),
            (0.0, 0.0, 0.0)
        );
        assert!(
            empty
                .latency_shares(&[10, 20])
                .iter()
                .all(|share| *share == 0.0)
        );
    }

    #[test]
    fn shares_are_of_half_open_ranges() {
        let job = job(&[10, 11, 20, 900], Duration::from_secs(1));
        assert_eq!(job.latency_shares(&[10, 20, 30]), [25.0, 50.0, 0.0, 25.0]);
    }

    #[test]
    fn a_latency_beyond_the_histogram_is_kept_at_its_end() {
        let job = job(&[u64::MAX], Duration::from_secs(1));
        assert_eq!(job.latency.len(), 1);
        assert!(job.latency.max() >= LONGEST);
    }

    #[test]
    fn spread_of_samples() {
        let spread = Samples(vec![1.0, 2.0, 3.0, 4.0]).spread();
        assert_eq!((spread.min, spread.max, spread.mean), (1.0, 4.0, 2.5));
        assert!((spread.deviation - 1.290_994).abs() < 1e-6);
        assert_eq!(Samples::default().spread(), Spread::default());
        assert_eq!(Samples(vec![7.0]).spread().deviation, 0.0);
    }

    #[test]
    fn classes_are_those_of_fio() {
        let classes: Vec<_> = [1, 2, 3, 4, 8, 16, 31, 32, 63, 64, 1000]
            .map(depth_class)
            .into();
        assert_eq!(classes, [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 6]);
        let mut batches = Batches::default();
        for size in [0, 1, 4, 5, 8, 9, 16, 32, 33, 64, 65] {
            batches.record(size);
        }
        assert_eq!(batches.0, [1, 2, 2, 2, 1, 2, 1]);
        assert!((batches.percentages().iter().sum::<f64>() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn this_thread_uses_processor_time() {
        let before = CpuUse::of_this_thread();
        let start = std::time::Instant::now();
        // In some time of the clock others may have had the processor.
        loop {
            let used = CpuUse::of_this_thread().since(&before);
            if used.user + used.system > Duration::ZERO {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            std::hint::spin_loop();
        }
    }
}
