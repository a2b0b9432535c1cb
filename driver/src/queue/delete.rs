//! A queue that its owner deletes, which ends its commands and no other queue's, and commands whose end becomes certain only after their time.

use std::sync::Arc;

use super::{ATTENTION, IoQueue, Outcome};
use crate::Error;
use crate::controller::GONE;

impl IoQueue {
    /// Deletes the queue on the controller, with everything that is in flight in it, and without a word to any other queue. `Ok` is the proof that the
    /// controller has let go of all memory that this queue lent it: each command in flight is reported once by [`poll`](Self::poll), with the controller's
    /// answer where there was one, else as [`Outcome::Deleted`], with its memory. [`reclaim`](Self::reclaim) and [`let_go`](Self::let_go) tell of those that
    /// were reported as timed out before.
    ///
    /// The queue takes submissions again after [`rebuild`](Self::rebuild). A queue that was deleted already, or was lost to a reset of the
    /// controller (which is a proof, too: [`Outcome::Reset`]), is left as it is. Waits for the controller, so not for a thread that has other queues to poll: the
    /// queue may be moved to another for it.
    ///
    /// It is the deletion of the submission queue that proves. Should the completion queue not go, then nothing is posted to it any more, and
    /// [`rebuild`](Self::rebuild) tries again.
    ///
    /// # Errors
    /// Where the controller refuses ([`Error::Status`]), or does not answer and [recovery](crate::Options::recovery) may not go as far as a reset
    /// ([`Error::TimedOut`]): nothing has changed then, and everything is still in flight. [`Error::Gone`] where the controller is gone, and nothing is
    /// proven.
    pub fn delete(&mut self) -> Result<(), Error> {
        let epoch = self.shared.epoch();
        if epoch != self.cold.made_in {
            return self.after_loss(epoch);
        }
        // Not rung: what the controller was not told of need not be begun.
        let inner = Arc::clone(&self.cold.inner);
        if let Err(error) = inner.delete_submission_queue(self.cold.id) {
            // A command that does not end makes the controller be reset, where that is allowed.
            return match self.shared.epoch() {
                epoch if epoch == self.cold.made_in => Err(error),
                epoch => self.after_loss(epoch),
            };
        }
        // No doorbell of it is rung from here on, whatever the completions that are there set going.
        self.cold.made_in = ATTENTION;
        self.cold.deleted = true;
        self.drain();
        self.end_all(Outcome::Deleted, true);
        if let Err(error) = inner.delete_completion_queue(self.cold.id) {
            tracing::warn!(queue = self.cold.id, %error, "the completion queue could not be deleted");
            // A reset in the meantime has taken it away.
            self.cold.left_in = (inner.shared.epoch() == epoch).then_some(epoch);
        }
        Ok(())
    }

    /// What there is to say of a queue that exists no more.
    fn after_loss(&mut self, epoch: u32) -> Result<(), Error> {
        if !self.cold.lost {
            self.lose(epoch);
        }
        let proven = self.cold.deleted || epoch != GONE || self.cold.inner.transport.has_let_go();
        if proven { Ok(()) } else { Err(Error::Gone) }
    }

    /// Asks the controller to abort the I/O that was submitted as `token` (all commands of it, where it was split). True where it says that it did. That
    /// proves nothing: the completion does, which may come in either case. Waits for the controller, as [`delete`](Self::delete) does.
    ///
    /// # Errors
    /// Where the Abort does not end or the controller is gone. An Abort that is refused is not an error.
    pub fn abort(&mut self, token: u64) -> Result<bool, Error> {
        self.ring();
        let large = self.large_of(token);
        let identifiers: Vec<_> = self
            .slots
            .iter_mut()
            .filter(|(_, slot)| match slot.large {
                0 => slot.token == token,
                number => large.contains(&number),
            })
            .map(|(identifier, _)| identifier)
            .collect();
        let mut aborted = !identifiers.is_empty();
        for identifier in identifiers {
            if self.shared.epoch() != self.cold.made_in {
                return Ok(false);
            }
            aborted &= self.try_abort(identifier)?;
        }
        Ok(aborted)
    }

    /// The tokens of commands without a buffer ([raw](Self::submit_raw) ones, Flush) that were reported as timed out and that have provably ended since: with a
    /// completion, a reset, or the queue's deletion. Each is told once.
    pub fn let_go(&mut self) -> impl Iterator<Item = u64> {
        std::mem::take(&mut self.cold.let_go).into_iter()
    }

    /// Whether the controller has answered for a command that was not in flight. Which one it meant cannot be known: some command may never be
    /// answered, and [`check_deadlines`](Self::check_deadlines) resets the controller where it may.
    #[must_use]
    pub fn is_distrusted(&self) -> bool {
        self.cold.distrusted
    }
}
