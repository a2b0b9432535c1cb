//! How long commands take: drawn per command, in the time of the clock or of the steps.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::random::Random;

/// The longest latency that can be asked for.
const LONGEST: Duration = Duration::from_secs(60);

/// What a latency may look like, as errors say it.
pub(crate) const LATENCY: &str = "a duration up to 60s such as 80us, a range such as 50us..2ms, exp:80us for exponentially distributed ones with that mean, or 0";
/// What a duration may look like, as errors say it.
pub(crate) const DURATION: &str = "a duration from 1ns to 60s such as 500ns, 80us or 2ms";

/// How long a kind of command takes, on top of what the back end takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// No longer.
    #[default]
    None,
    /// Always the same; `80us`.
    Fixed(Duration),
    /// Any in the range, all equally likely; `50us..2ms`.
    Between(Duration, Duration),
    /// Exponentially distributed with this mean, at most twenty times as long; `exp:80us`.
    Exponential(Duration),
}

impl Latency {
    /// Nanoseconds that the next command takes.
    pub(crate) fn draw(self, random: &mut Random) -> u64 {
        let nanoseconds = |duration: Duration| duration.as_nanos() as u64;
        match self {
            Latency::None => 0,
            Latency::Fixed(duration) => nanoseconds(duration),
            Latency::Between(least, most) => {
                let (least, most) = (nanoseconds(least), nanoseconds(most));
                least + random.below((most - least).saturating_add(1))
            }
            Latency::Exponential(mean) => {
                let factor = -random.unit().ln();
                (nanoseconds(mean) as f64 * factor.min(20.0)) as u64
            }
        }
    }

    pub(crate) fn check(self) -> bool {
        match self {
            Latency::None => true,
            Latency::Fixed(duration) | Latency::Exponential(duration) => duration <= LONGEST,
            Latency::Between(least, most) => least <= most && most <= LONGEST,
        }
    }
}

/// Reads a whole number with its unit.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit = match text.get(digits.len()..)? {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "" if number == 0 => 1,
        _ => return None,
    };
    let duration = Duration::from_nanos(number.checked_mul(unit)?);
    (duration <= LONGEST).then_some(duration)
}

/// The shortest text that [`duration`] reads back.
pub(crate) fn duration_text(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    for (unit, name) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")] {
        if nanoseconds > 0 && nanoseconds.is_multiple_of(unit) {
            return format!("{}{name}", nanoseconds / unit);
        }
    }
    format!("{nanoseconds}ns")
}

impl FromStr for Latency {
    type Err = ();

    fn from_str(text: &str) -> Result<Latency, ()> {
        let latency = if let Some(mean) = text.strip_prefix("exp:") {
            Latency::Exponential(duration(mean).ok_or(())?)
        } else if let Some((least, most)) = text.split_once("..") {
            Latency::Between(duration(least).ok_or(())?, duration(most).ok_or(())?)
        } else {
            match duration(text).ok_or(())? {
                Duration::ZERO => Latency::None,
                fixed => Latency::Fixed(fixed),
            }
        };
        latency.check().then_some(latency).ok_or(())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Latency::None => f.write_str("0"),
            Latency::Fixed(duration) => f.write_str(&duration_text(duration)),
            Latency::Between(least, most) => {
                write!(f, "{}..{}", duration_text(least), duration_text(most))
            }
            Latency::Exponential(mean) => write!(f, "exp:{}", duration_text(mean)),
        }
    }
}

/// How long each kind of command takes. A command's data moves at once; its completion is what comes late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latencies {
    /// Read; key `latency.read`.
    pub read: Latency,
    /// Write; key `latency.write`.
    pub write: Latency,
    /// Flush; key `latency.flush`.
    pub flush: Latency,
    /// Every other I/O command; key `latency.other`.
    pub other: Latency,
    /// Admin commands; key `latency.admin`.
    pub admin: Latency,
    /// What random ones start from: the same seed and the same commands have the same latencies. Key `latency.seed`.
    pub seed: u64,
    /// How much time a step is where the controller is stepped and not run by a thread; key `latency.step`.
    pub step: Duration,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            read: Latency::None,
            write: Latency::None,
            flush: Latency::None,
            other: Latency::None,
            admin: Latency::None,
            seed: 1,
            step: Duration::from_micros(1),
        }
    }
}

impl Latencies {
    /// Whether no command takes longer than it must.
    pub(crate) fn none(&self) -> bool {
        [self.read, self.write, self.flush, self.other, self.admin]
            .iter()
            .all(|latency| *latency == Latency::None)
    }

    /// That of a command.
    pub(crate) fn of(&self, sqid: u16, opcode: u8) -> Latency {
        match (sqid, opcode) {
            (0, _) => self.admin,
            (_, 0x00) => self.flush,
            (_, 0x01) => self.write,
            (_, 0x02) => self.read,
            _ => self.other,
        }
    }
}

/// The time by which completions are kept back, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Clock {
    /// When the thread began that runs the controller; `None` where it is stepped.
    since: Option<Instant>,
    step: u64,
}

impl Clock {
    pub(crate) fn new(step: Duration) -> Clock {
        Clock {
            since: None,
            step: step.as_nanos() as u64,
        }
    }

    /// Nanoseconds: of the clock since a thread runs the controller, or of so many steps.
    pub(crate) fn now(&self, steps: u64) -> u64 {
        match self.since {
            Some(since) => u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX),
            None => steps.saturating_mul(self.step),
        }
    }

    /// Goes over to the time of the clock, or of the steps.
    pub(crate) fn use_clock(&mut self, real: bool) {
        self.since = real.then(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back() {
        for text in ["0", "80us", "1ms..3ms", "exp:500ns", "60s", "0ns..1us"] {
            let latency: Latency = text.parse().unwrap();
            assert_eq!(latency.to_string(), text);
        }
        for text in [
            "",
            "80",
            "us",
            "-1us",
            "1.5us",
            "61s",
            "3us..1us",
            "exp:",
            "..",
            "1us..",
            "1h",
            "18446744073709551615s",
        ] {
            assert!(text.parse::<Latency>().is_err(), "{text}");
        }
    }

    #[test]
    fn draws_stay_in_their_bounds_and_repeat() {
        let us = Duration::from_micros;
        let draws = |latency: Latency| -> Vec<u64> {
            let mut random = Random::new(7);
            (0..10_000).map(|_| latency.draw(&mut random)).collect()
        };
        assert!(draws(Latency::None).iter().all(|&drawn| drawn == 0));
        assert!(
            draws(Latency::Fixed(us(3)))
                .iter()
                .all(|&drawn| drawn == 3000)
        );
        let between = draws(Latency::Between(us(1), us(2)));
        assert!(between.iter().all(|drawn| (1000..=2000).contains(drawn)));
        assert!(between.iter().any(|&drawn| drawn < 1100));
        assert!(between.iter().any(|&drawn| drawn > 1900));
        let exponential = draws(Latency::Exponential(us(10)));
        let mean = exponential.iter().sum::<u64>() / exponential.len() as u64;
        assert!((9_500..10_500).contains(&mean), "{mean}");
        assert!(exponential.iter().all(|&drawn| drawn <= 200_000));
        assert_eq!(exponential, draws(Latency::Exponential(us(10))));
    }
}
