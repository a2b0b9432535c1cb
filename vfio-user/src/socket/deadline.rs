//! [`Deadline`]: a moment that signals do not move.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::SocketError;

/// When a wait ends at the latest, on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// So far away that nobody waits so long; adding more could overflow the clock.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Deadline {
    /// So long from now, at most a year.
    #[must_use]
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(FAR))
    }

    /// At that moment.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// How long until then; `None` when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.0
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.remaining().is_none()
    }

    /// Waits for one of `events`, an error or the end of the descriptor.
    pub(crate) fn wait(
        self,
        descriptor: BorrowedFd<'_>,
        events: PollFlags,
    ) -> Result<(), SocketError> {
        loop {
            let left = self.remaining().unwrap_or_default();
            let mut waiting = [PollFd::new(descriptor, events)];
            match ppoll(&mut waiting, Some(TimeSpec::from_duration(left)), None) {
                Ok(0) if left.is_zero() => return Err(SocketError::TimedOut),
                // Woken early or by a signal: what is left is computed again.
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(SocketError::os("waiting")(errno)),
            }
        }
    }
}
