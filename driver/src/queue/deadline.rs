//! Commands that do not end in time: poll once more, Abort, then a reset of the controller, as far as the setting allows.

use std::time::{Duration, Instant};

use super::{Completion, IoQueue, Outcome, State};
use crate::controller::Counters;
use crate::{Error, RecoveryLimit};

/// How often the controller's status is looked at.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done about a command whose time is over.
enum Overdue {
    /// Its first deadline.
    Abort(u16),
    /// The deadline that it had after the Abort.
    GiveUp(u16),
}

impl IoQueue {
    /// Watches over the commands in flight. Call it now and then, with the time: a command's time runs from the first call after
    /// its submission, so calls once in a hundredth of [`Options::io_timeout`](crate::Options::io_timeout) are precise enough.
    ///
    /// A command whose time is over is looked for once more, then aborted. If it does not end within
    /// [`Options::abort_grace`](crate::Options::abort_grace) either, it is reported as timed out by [`poll`](Self::poll), its buffer is
    /// kept (see [`reclaim`](Self::reclaim)), and the controller is reset where [`Options::recovery`](crate::Options::recovery) allows
    /// it. The same happens when the controller has answered for a command that was not in flight, and when it reports a fatal
    /// status, which is looked at once in a second.
    ///
    /// # Errors
    /// Where the controller could not be aborted or reset. What was in flight is reported by `poll` all the same.
    pub fn check_deadlines(&mut self, now: Instant) -> Result<(), Error> {
        if self.shared.epoch() != self.cold.made_in {
            return Ok(());
        }
        let now = now.saturating_duration_since(self.cold.made);
        let timeout = self.cold.inner.options.io_timeout;
        let mut overdue = self.stamp(now, timeout);
        if !overdue.is_empty() {
            // A completion may be there without having been polled, or an interrupt have been lost: look before anything is done.
            self.ring();
            self.drain();
            overdue = self.stamp(now, timeout);
        }
        let mut reset = self.cold.distrusted || self.has_failed(now)?;
        // An Abort that fails does not keep the other commands from being reported, nor is another sent after it.
        let mut result = Ok(());
        for command in overdue {
            if self.shared.epoch() != self.cold.made_in {
                return result;
            }
            match command {
                Overdue::Abort(identifier) => {
                    if result.is_ok() {
                        result = self.try_abort(identifier).map(|_| ());
                    }
                    self.set_last_deadline(identifier, now);
                }
                Overdue::GiveUp(identifier) => {
                    self.give_up_on(identifier);
                    reset = true;
                }
            }
        }
        if reset && self.cold.inner.options.recovery >= RecoveryLimit::Controller {
            self.cold.inner.recover(self.cold.made_in)?;
        }
        result
    }

    /// Looks at the controller's status now and then: one that has failed or gone answers nothing any more.
    fn has_failed(&mut self, now: Duration) -> Result<bool, Error> {
        if now.saturating_sub(self.cold.looked) < STATUS_INTERVAL {
            return Ok(false);
        }
        self.cold.looked = now;
        let mut csts = self.cold.inner.status();
        if csts.is_gone() {
            self.cold.inner.confirm_gone(self.cold.made_in)?;
            csts = self.cold.inner.status();
        }
        // One that is not ready was reset by somebody else, or is being recovered by another thread.
        Ok(csts.is_fatal() || !csts.is_ready())
    }

    /// Gives every command without a deadline one, and tells those whose deadline has passed.
    fn stamp(&mut self, now: Duration, timeout: Duration) -> Vec<Overdue> {
        let now = nanoseconds(now);
        let mut overdue = Vec::new();
        for (identifier, slot) in self.slots.iter_mut() {
            if slot.deadline == 0 {
                slot.deadline = now.saturating_add(nanoseconds(timeout)).max(1);
            } else if slot.deadline <= now {
                match slot.state {
                    State::InTime => overdue.push(Overdue::Abort(identifier)),
                    State::Aborting => overdue.push(Overdue::GiveUp(identifier)),
                    State::TimedOut => {}
                }
            }
        }
        overdue
    }

    /// Asks the controller to abort a command. True where it says that it did.
    pub(super) fn try_abort(&self, identifier: u16) -> Result<bool, Error> {
        let counters = &self.shared.counters;
        Counters::count(&counters.aborts);
        tracing::warn!(queue = self.cold.id, cid = identifier, "aborting a command");
        match self.cold.inner.abort(self.cold.id, identifier) {
            Ok(true) => Ok(true),
            // Not aborted, or the Abort was refused: no error. The command may still end by itself.
            Ok(false) | Err(Error::Status { .. }) => {
                Counters::count(&counters.not_aborted);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a command whose time is over its last deadline.
    fn set_last_deadline(&mut self, identifier: u16, now: Duration) {
        Counters::count(&self.shared.counters.timeouts);
        let grace = self.cold.inner.options.abort_grace;
        if let Ok(mut slot) = self.slots.occupied(identifier) {
            slot.mark();
            slot.payload().state = State::Aborting;
            slot.payload().deadline = nanoseconds(now.saturating_add(grace));
        }
    }

    /// Reports a command as timed out. Its slot, its PRP list and its memory stay with the controller.
    fn give_up_on(&mut self, identifier: u16) {
        let Ok(slot) = self.slots.get_mut(identifier) else {
            return;
        };
        slot.state = State::TimedOut;
        let (token, large) = (slot.token, slot.large);
        let completion = if large == 0 {
            Some(Completion {
                token,
                entry: Default::default(),
                outcome: Outcome::TimedOut,
                buffer: None,
                vector: None,
            })
        } else {
            self.part_overdue(large)
        };
        if let Some(completion) = completion {
            self.waiting -= 1;
            self.report(completion);
        }
    }

    /// The buffers of commands that were reported as timed out and that the controller has let go of since: the commands have
    /// ended, or the controller was reset. Each comes with its I/O's token.
    pub fn reclaim(&mut self) -> impl Iterator<Item = (u64, nvme_vfio_dma::Buffer)> {
        std::mem::take(&mut self.cold.reclaimed).into_iter()
    }

    /// How many commands were reported as timed out and still have their slot and memory.
    #[must_use]
    pub fn overdue(&mut self) -> usize {
        self.slots
            .iter_mut()
            .filter(|(_, slot)| slot.state == State::TimedOut)
            .count()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
