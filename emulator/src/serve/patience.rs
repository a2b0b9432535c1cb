//! Waiting for commands that hold memory which their client wants back.

use std::time::{Duration, Instant};

use nvme_vfio_user::device::Progress;

use super::ServedController;

/// How long commands may hold memory that their client wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After so long they are aborted in the back end.
    pub abort: Duration,
    /// So long after that the controller gets CSTS.CFS, and its back end forgets them; `None` for never. A [`CommandHandler`](crate::CommandHandler) forgets none: its
    /// commands are waited for all the same.
    pub fatal: Option<Duration>,
}

impl Default for Patience {
    /// Two seconds until commands are aborted, one more until the controller fails.
    fn default() -> Patience {
        Patience {
            abort: Duration::from_secs(2),
            fatal: Some(Duration::from_secs(1)),
        }
    }
}

/// A wait for commands that were in flight at its beginning.
#[derive(Debug)]
pub(super) struct Wait {
    since: Instant,
    /// Commands that began before this are waited for.
    mark: u64,
    /// When they were aborted.
    cancelled: Option<Instant>,
    /// The controller was given up for them.
    abandoned: bool,
}

impl ServedController {
    /// Looks after a wait: whether nothing that it waits for is in flight any more. Commands that take too long are aborted, and then the
    /// controller fails. It never ends where the controller is broken.
    pub(super) fn look_after(&self, wait: &mut Wait) -> Progress {
        if self.emulator.is_broken() {
            // Nothing that it says of its commands is a proof, and nothing more is asked of it.
            return Progress::Pending;
        }
        if !self.emulator.any_in_flight(wait.mark) {
            return Progress::Done;
        }
        match wait.cancelled {
            None if wait.since.elapsed() >= self.patience.abort => {
                wait.cancelled = Some(Instant::now());
                self.emulator.cancel(wait.mark);
                Progress::Pending
            }
            Some(cancelled) if !wait.abandoned && self.is_fatal(cancelled.elapsed()) => {
                wait.abandoned = true;
                self.emulator
                    .abandon("commands hold memory that the host wants back");
                if self.emulator.any_in_flight(wait.mark) {
                    Progress::Pending
                } else {
                    Progress::Done
                }
            }
            _ => Progress::Pending,
        }
    }

    fn is_fatal(&self, since_cancelled: Duration) -> bool {
        self.patience
            .fatal
            .is_some_and(|fatal| since_cancelled >= fatal)
    }

    pub(super) fn begin_wait(&self) -> Wait {
        Wait {
            since: Instant::now(),
            mark: self.emulator.flight_mark(),
            cancelled: None,
            abandoned: false,
        }
    }
}
