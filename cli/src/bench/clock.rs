//! A clock cheap enough to be read for every I/O: the time stamp counter, where it can be trusted.
#![allow(unsafe_code)] // Reading the counter is an intrinsic without a safe form.

use std::time::{Duration, Instant};

/// How far two measurements of the counter's rate may differ.
const RATE_TOLERANCE: f64 = 1e-3;
/// How long each of them takes.
const CALIBRATION: Duration = Duration::from_millis(10);
/// How often both clocks are read to find one moment of both.
const ATTEMPTS: u32 = 16;
/// Fraction bits of [`Clock::multiplier`].
const SHIFT: u32 = 32;

/// Turns stamps into nanoseconds. Stamps of different clocks must not be mixed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
    /// Nanoseconds per tick, as a fixed-point number with [`SHIFT`] fraction bits.
    multiplier: u64,
}

/// What stamps come from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Ticks of the time stamp counter.
    Counter(Counter),
    /// Nanoseconds of the monotonic clock.
    Monotonic(Monotonic),
}

/// Something that gives stamps. A loop that is compiled for one kind of them need not ask which it has.
pub trait Stamps: Copy {
    /// The current stamp.
    fn stamp(&self) -> u64;
}

/// The time stamp counter.
#[derive(Clone, Copy, Debug)]
pub struct Counter(());

impl Stamps for Counter {
    #[inline]
    fn stamp(&self) -> u64 {
        read_counter()
    }
}

/// The monotonic clock since some moment.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic(Instant);

impl Stamps for Monotonic {
    #[inline]
    fn stamp(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

impl Clock {
    /// A clock on the time stamp counter if this machine has one whose rate does not change, else on
    /// the monotonic clock. Takes 20 ms of measuring.
    #[must_use]
    pub fn calibrated() -> Self {
        let steady = || {
            let (first, second) = (measure_rate()?, measure_rate()?);
            // A counter that stands still in idle states or follows the core's frequency shows here,
            // also where a hypervisor hides the flag that promises it does not.
            let close = (first / second - 1.0).abs() <= RATE_TOLERANCE;
            if close {
                Self::with_rate(f64::midpoint(first, second))
            } else {
                None
            }
        };
        counter_is_plausible()
            .then(steady)
            .flatten()
            .unwrap_or_else(Self::monotonic)
    }

    /// A clock on the monotonic clock of the operating system.
    #[must_use]
    pub fn monotonic() -> Self {
        Self {
            source: Source::Monotonic(Monotonic(Instant::now())),
            multiplier: 1 << SHIFT,
        }
    }

    /// A clock on the time stamp counter by which a nanosecond takes 2^32 ticks, so that nothing that hangs on time happens during a
    /// run. For counting the instructions of a run, which must not depend on how long it takes.
    #[must_use]
    pub const fn nearly_standing() -> Self {
        Self {
            source: Source::Counter(Counter(())),
            multiplier: 1,
        }
    }

    /// For a counter of so many ticks per nanosecond.
    fn with_rate(rate: f64) -> Option<Self> {
        let nanoseconds = 1.0 / rate;
        let multiplier = (nanoseconds * (1_u64 << SHIFT) as f64).round();
        // 1 MHz to 100 GHz: anything else is no time stamp counter.
        (0.01..=1000.0).contains(&nanoseconds).then_some(Self {
            source: Source::Counter(Counter(())),
            multiplier: multiplier as u64,
        })
    }

    /// What stamps come from.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The current stamp.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        match self.source {
            Source::Counter(counter) => counter.stamp(),
            Source::Monotonic(monotonic) => monotonic.stamp(),
        }
    }

    /// One moment by the operating system's clock, and its stamp: both of the same moment, also where others take the processor in between.
    #[must_use]
    pub fn moment(&self) -> (Instant, u64) {
        match self.source {
            Source::Counter(_) => read_both(),
            Source::Monotonic(Monotonic(since)) => {
                let now = Instant::now();
                (now, now.duration_since(since).as_nanos() as u64)
            }
        }
    }

    /// Nanoseconds between two stamps; 0 if `end` is before `start`, which happens by a few ticks
    /// when the operating system moves the thread to another core in between.
    #[inline]
    #[must_use]
    pub const fn nanoseconds(&self, start: u64, end: u64) -> u64 {
        let ticks = end.saturating_sub(start);
        ((ticks as u128 * self.multiplier as u128) >> SHIFT) as u64
    }

    /// How many stamps make `duration`.
    #[must_use]
    pub const fn ticks(&self, duration: Duration) -> u64 {
        let ticks = (duration.as_nanos() << SHIFT) / self.multiplier as u128;
        if ticks > u64::MAX as u128 {
            u64::MAX
        } else {
            ticks as u64
        }
    }

    /// What it reads, for the report.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.source {
            Source::Counter(_) => "tsc",
            Source::Monotonic(_) => "monotonic",
        }
    }
}

/// Ticks per nanosecond over [`CALIBRATION`].
fn measure_rate() -> Option<f64> {
    let (from, from_ticks) = read_both();
    while from.elapsed() < CALIBRATION {
        std::hint::spin_loop();
    }
    let (to, to_ticks) = read_both();
    let ticks = to_ticks.checked_sub(from_ticks)?;
    (ticks > 0).then(|| ticks as f64 / to.duration_since(from).as_nanos() as f64)
}

/// Both clocks at one moment: of several attempts the one that was least interrupted.
fn read_both() -> (Instant, u64) {
    let attempt = || {
        let before = read_counter();
        let now = Instant::now();
        let gap = read_counter().saturating_sub(before);
        (gap, now, before + gap / 2)
    };
    let mut best = attempt();
    for _ in 1..ATTEMPTS {
        let next = attempt();
        if next.0 < best.0 {
            best = next;
        }
    }
    (best.1, best.2)
}

#[cfg(target_arch = "x86_64")]
fn counter_is_plausible() -> bool {
    use core::arch::x86_64::__cpuid;
    const HYPERVISOR: u32 = 1 << 31;
    const INVARIANT_TSC: u32 = 1 << 8;
    const POWER_LEAF: u32 = 0x8000_0007;
    let largest = __cpuid(0x8000_0000).eax;
    let invariant = largest >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT_TSC != 0;
    // Hypervisors often hide the flag because the machine might migrate; the measurement decides.
    invariant || __cpuid(1).ecx & HYPERVISOR != 0
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn read_counter() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux leaves it enabled in user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter_is_plausible() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn read_counter() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_agrees_with_the_monotonic_one() {
        for clock in [Clock::calibrated(), Clock::monotonic()] {
            let ratio = || {
                let (from, start) = clock.moment();
                std::thread::sleep(Duration::from_millis(30));
                let (to, end) = clock.moment();
                let measured = clock.nanoseconds(start, end) as f64;
                measured / to.duration_since(from).as_nanos() as f64
            };
            // The system's clock may just be set right, but not always.
            let ratios: Vec<_> = (0..5).map(|_| ratio()).collect();
            let agrees = ratios.iter().any(|ratio| (0.98..=1.02).contains(ratio));
            assert!(agrees, "{}: {ratios:?}", clock.name());
        }
    }

    #[test]
    fn ticks_and_nanoseconds_are_inverse() {
        for clock in [Clock::calibrated(), Clock::monotonic()] {
            for duration in [
                Duration::from_micros(3),
                Duration::from_secs(5),
                Duration::from_secs(86_400),
            ] {
                let back = clock.nanoseconds(7, 7 + clock.ticks(duration)) as f64;
                assert!(
                    (back / duration.as_nanos() as f64 - 1.0).abs() < 1e-2,
                    "{duration:?}: {back}"
                );
            }
            assert_eq!(clock.ticks(Duration::MAX), u64::MAX);
        }
    }

    #[test]
    fn time_never_runs_backwards() {
        assert_eq!(Clock::monotonic().nanoseconds(10, 9), 0);
    }
}
