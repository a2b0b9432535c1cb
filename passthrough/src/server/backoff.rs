//! How long the thread that polls may rest when it finds nothing to do. A state machine without a clock of its own.

use std::time::{Duration, Instant};

/// How long it polls without a pause. No longer: a client may wait for the same processor.
const SPIN: Duration = Duration::from_micros(20);
/// How long it then yields between polls, before it sleeps.
const YIELD: Duration = Duration::from_millis(2);
/// The first sleep; each is twice the one before.
const FIRST: Duration = Duration::from_micros(20);
/// The longest sleep while a controller works on something.
const WORKING: Duration = Duration::from_micros(250);
/// The longest sleep when there has been nothing to do for less than [`QUIET`]: a doorbell in memory waits as long.
const IDLE: Duration = Duration::from_millis(1);
/// From when on it sleeps longer still.
const QUIET: Duration = Duration::from_secs(2);
/// The longest sleep then.
const LONGEST: Duration = Duration::from_millis(4);
/// The longest sleep when no client is connected. Whoever connects wakes it.
const ALONE: Duration = Duration::from_secs(1);

/// What a round has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// Commands were fetched or answered.
    Worked,
    /// Controllers work on commands, and none has ended.
    InFlight,
    /// Clients are connected, and want nothing.
    Idle,
    /// Nobody is connected, and nothing is under way.
    Alone,
}

/// What to do until the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing: go on at once.
    None,
    /// Let others run.
    Yield,
    /// Sleep at most so long, and be woken by what comes as a message.
    Sleep(Duration),
}

#[derive(Debug)]
pub(crate) struct Backoff {
    busy: bool,
    idle_since: Option<Instant>,
    sleep: Duration,
}

impl Backoff {
    /// `busy`: it never rests while somebody is connected.
    pub(crate) fn new(busy: bool) -> Backoff {
        Backoff {
            busy,
            idle_since: None,
            sleep: FIRST,
        }
    }

    /// How to rest after a round. `now` is asked for only where the answer hangs on it.
    pub(crate) fn after(&mut self, round: Round, now: impl FnOnce() -> Instant) -> Rest {
        if round == Round::Worked {
            self.idle_since = None;
            return Rest::None;
        }
        if round == Round::Alone {
            self.idle_since = None;
            return Rest::Sleep(ALONE);
        }
        if self.busy {
            return Rest::None;
        }
        let now = now();
        let idle = match self.idle_since {
            Some(since) => now.saturating_duration_since(since),
            None => {
                (self.idle_since, self.sleep) = (Some(now), FIRST);
                Duration::ZERO
            }
        };
        if idle < SPIN {
            return Rest::None;
        }
        if idle < YIELD {
            return Rest::Yield;
        }
        let longest = match round {
            Round::InFlight => WORKING,
            _ if idle < QUIET => IDLE,
            _ => LONGEST,
        };
        let sleep = self.sleep.min(longest);
        self.sleep = (sleep * 2).min(LONGEST);
        Rest::Sleep(sleep)
    }

    /// Whether the clock would be looked at again soon anyway, so that several rounds may pass for one answer.
    pub(crate) fn is_resting(&self) -> bool {
        self.idle_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rests in virtual time from now on, always after the same kind of round: when it has rested so long, how often it has looked.
    fn looks(backoff: &mut Backoff, now: &mut Instant, round: Round, time: Duration) -> u32 {
        let end = *now + time;
        let mut looks = 0;
        while *now < end {
            looks += 1;
            *now += match backoff.after(round, || *now) {
                Rest::None => Duration::from_nanos(200),
                Rest::Yield => Duration::from_micros(2),
                Rest::Sleep(sleep) => sleep,
            };
        }
        looks
    }

    #[test]
    fn an_idle_server_looks_a_few_hundred_times_a_second() {
        let (mut backoff, mut now) = (Backoff::new(false), Instant::now());
        looks(&mut backoff, &mut now, Round::Idle, QUIET);
        let second = looks(&mut backoff, &mut now, Round::Idle, Duration::from_secs(1));
        assert!((200..=260).contains(&second), "{second}");
    }

    #[test]
    fn a_server_with_work_at_the_device_looks_often() {
        let (mut backoff, mut now) = (Backoff::new(false), Instant::now());
        looks(&mut backoff, &mut now, Round::InFlight, QUIET * 2);
        let second = looks(
            &mut backoff,
            &mut now,
            Round::InFlight,
            Duration::from_secs(1),
        );
        assert!((3_900..=4_100).contains(&second), "{second}");
    }

    #[test]
    fn work_ends_every_rest() {
        let (mut backoff, mut now) = (Backoff::new(false), Instant::now());
        looks(&mut backoff, &mut now, Round::Idle, QUIET * 2);
        assert_eq!(backoff.after(Round::Worked, || now), Rest::None);
        assert!(!backoff.is_resting());
        assert_eq!(
            backoff.after(Round::Idle, || now),
            Rest::None,
            "it spins first"
        );
        now += SPIN;
        assert_eq!(backoff.after(Round::Idle, || now), Rest::Yield);
        now += YIELD;
        assert_eq!(backoff.after(Round::Idle, || now), Rest::Sleep(FIRST));
    }

    #[test]
    fn the_first_answer_after_work_is_never_far_away() {
        // A client at depth 1 whose device takes 100 us is never made to wait for a sleep.
        let mut backoff = Backoff::new(false);
        let mut now = Instant::now();
        for _ in 0..1000 {
            backoff.after(Round::Worked, || now);
            let end = now + Duration::from_micros(100);
            while now < end {
                match backoff.after(Round::InFlight, || now) {
                    Rest::Sleep(sleep) => panic!("slept {sleep:?}"),
                    _ => now += Duration::from_micros(1),
                }
            }
        }
    }

    #[test]
    fn polling_sleeps_only_alone() {
        let mut backoff = Backoff::new(true);
        let mut now = Instant::now();
        for _ in 0..100 {
            now += Duration::from_secs(1);
            assert_eq!(backoff.after(Round::Idle, || now), Rest::None);
        }
        assert_eq!(backoff.after(Round::Alone, || now), Rest::Sleep(ALONE));
    }
}
