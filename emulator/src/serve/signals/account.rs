//! What a client's signals have cost the thread that steps the controller, and whether they may go on doing so.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a signal may take of the processor. One or two waiters take half of it.
pub(super) const ORDINARY: Duration = Duration::from_micros(8);
/// What signals take beyond that is paid off at this rate: a fiftieth of the time that passes.
const SHARE: u32 = 50;
/// As much may be unpaid, since a processor's time is also what interrupts take of it.
const CREDIT: Duration = Duration::from_millis(4);
/// The least time for which another thread then gives the signals.
const RELIEF: Duration = Duration::from_secs(10);

/// A client's account: whatever its signals took beyond the [`ORDINARY`], whichever its eventfds, in whatever order and session.
///
/// The thread that steps the controller gives signals while no more than [`CREDIT`] is unpaid, so that over any time they take a [`SHARE`]th of it, the credit, and one signal more; then another
/// thread gives them, until all is paid off. Signals that are slow there are charged, too: what would be slow again does not come back.
#[derive(Debug)]
pub(super) struct Account {
    since: Instant,
    /// When all is paid off, in nanoseconds since then.
    paid_off: AtomicU64,
    relieved: AtomicBool,
}

impl Account {
    pub(super) fn new(now: Instant) -> Account {
        Account {
            since: now,
            paid_off: AtomicU64::new(0),
            relieved: AtomicBool::new(false),
        }
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.since))
    }

    /// Whether another thread is to give the signals.
    pub(super) fn is_relieved(&self) -> bool {
        self.relieved.load(Ordering::Acquire)
    }

    /// Notes what a signal took that has just ended.
    pub(super) fn charge(&self, took: Duration, now: Instant) {
        let excess = took.saturating_sub(ORDINARY);
        if excess.is_zero() {
            return;
        }
        let now = self.nanoseconds(now);
        let price = nanoseconds(excess.saturating_mul(SHARE));
        let charged = |paid_off: u64| paid_off.max(now).saturating_add(price);
        // It always succeeds.
        let former = self
            .paid_off
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_off| {
                Some(charged(paid_off))
            })
            .unwrap_or_default();
        if charged(former) - now > nanoseconds(CREDIT * SHARE) && !self.is_relieved() {
            let least = now.saturating_add(nanoseconds(RELIEF));
            self.paid_off.fetch_max(least, Ordering::Relaxed);
            self.relieved.store(true, Ordering::Release);
        }
    }

    /// Lets the thread that steps the controller give the signals again once all is paid off. Said by the one that gives them meanwhile.
    pub(super) fn settle(&self, now: Instant) {
        if self.paid_off.load(Ordering::Relaxed) <= self.nanoseconds(now) {
            self.relieved.store(false, Ordering::Release);
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client does: signals that each take so long, so often, with such times between them.
    struct Habit {
        took: Duration,
        times: u32,
        pause: Duration,
    }

    fn habit(took: u64, times: u32, pause: u64) -> Habit {
        Habit {
            took: Duration::from_micros(took),
            times,
            pause: Duration::from_micros(pause),
        }
    }

    const TIME: Duration = Duration::from_secs(120);

    /// What these, over and over for two minutes, take of the thread that steps the controller beyond the ordinary, the longest signal, and how many it gave.
    fn lives(habits: &[Habit]) -> (Duration, u64, u64) {
        let begun = Instant::now();
        let account = Account::new(begun);
        let mut now = begun;
        let (mut beyond, mut direct, mut relieved) = (Duration::ZERO, 0, 0);
        while now - begun < TIME {
            for Habit { took, times, pause } in habits {
                for _ in 0..*times {
                    let by_helper = account.is_relieved();
                    now += *took;
                    account.charge(*took, now);
                    if by_helper {
                        relieved += 1;
                        account.settle(now);
                    } else {
                        direct += 1;
                        beyond += took.saturating_sub(ORDINARY);
                    }
                    now += *pause;
                }
            }
        }
        (beyond, direct, relieved)
    }

    #[test]
    fn a_client_takes_its_share_and_no_more_whatever_its_habits() {
        let longest = Duration::from_millis(450);
        for habits in [
            // Always slow, a little slow, and just above the ordinary.
            vec![habit(10_000, 1, 100)],
            vec![habit(49, 1, 20)],
            vec![habit(9, 1, 5)],
            // Two slow ones, then ordinary ones.
            vec![habit(10_000, 2, 0), habit(3, 1, 10)],
            vec![habit(450_000, 1, 0), habit(3, 1_000, 10)],
            // Slow whenever it has come back.
            vec![habit(450_000, 1, 22_000_000), habit(3, 1, 0)],
            vec![habit(40, 124, 0), habit(3, 1, 11_000_000)],
            // At the limit for as long as it can be.
            vec![habit(208, 1, 10_000)],
            vec![habit(4_000, 1, 200_001)],
        ] {
            let (beyond, direct, _) = lives(&habits);
            let allowed = TIME / SHARE + CREDIT + longest;
            assert!(
                beyond <= allowed,
                "{beyond:?} by {direct} signals, {:?}",
                habits[0].took
            );
        }
    }

    #[test]
    fn what_is_always_slow_does_not_come_back() {
        let (beyond, direct, relieved) = lives(&[habit(10_000, 1, 100)]);
        assert_eq!((direct, beyond.as_millis()), (1, 9));
        assert!(relieved > 5_000);
    }

    #[test]
    fn ordinary_signals_with_slow_ones_now_and_then_cost_their_client_nothing() {
        // One in a hundred was interrupted, and one in ten thousand for longer.
        let (_, _, relieved) = lives(&[habit(4, 99, 10), habit(20, 1, 10)]);
        assert_eq!(relieved, 0);
        let (_, _, relieved) = lives(&[habit(3, 9_999, 10), habit(1_000, 1, 10)]);
        assert_eq!(relieved, 0);
    }

    #[test]
    fn the_way_back_is_slow_and_leads_back() {
        let begun = Instant::now();
        let account = Account::new(begun);
        account.charge(Duration::from_millis(5), begun);
        assert!(account.is_relieved());
        account.settle(begun + RELIEF - Duration::from_millis(1));
        assert!(account.is_relieved());
        account.settle(begun + RELIEF);
        assert!(!account.is_relieved());
        // A long one takes as much longer.
        let again = begun + RELIEF;
        account.charge(Duration::from_secs(1), again);
        account.settle(again + Duration::from_secs(49));
        assert!(account.is_relieved());
        account.settle(again + Duration::from_secs(50));
        assert!(!account.is_relieved());
    }
}
