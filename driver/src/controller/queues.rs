//! Which I/O queues there are: identifiers, creation and deletion in the right order.

use nvme_vfio_queues::command::QueuePriority;
use nvme_vfio_queues::features::NumberOfQueues;
use nvme_vfio_queues::ring::{CompletionMemory, Entries, SubmissionMemory};
use nvme_vfio_queues::{Command, QueueSize, Status};

use super::{Admin, AdminData, Inner};
use crate::Error;

/// The identifiers of I/O queue pairs: which are granted and which are free. Identifiers are used again.
#[derive(Debug, Default)]
pub(super) struct QueueIds {
    granted: u16,
    uses: Vec<Use>,
}

/// What an identifier is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Free,
    Taken,
    /// For a queue without an owner that may exist on the controller until its next reset.
    LeftBehind,
}

impl QueueIds {
    pub(super) fn granted(&self) -> u16 {
        self.granted
    }

    /// Takes note of what the controller granted. Queues that exist keep their identifiers.
    fn grant(&mut self, granted: u16) {
        self.granted = granted;
        if self.uses.len() < usize::from(granted) {
            self.uses.resize(usize::from(granted), Use::Free);
        }
    }

    fn take(&mut self) -> Option<u16> {
        let index = self
            .uses
            .iter()
            .take(usize::from(self.granted))
            .position(|used| *used == Use::Free)?;
        *self.uses.get_mut(index)? = Use::Taken;
        u16::try_from(index + 1).ok()
    }

    fn set(&mut self, id: u16, now: Use) {
        if let Some(used) = self.uses.get_mut(usize::from(id).wrapping_sub(1)) {
            *used = now;
        }
    }

    /// The controller was reset: no queue exists on it.
    pub(super) fn take_back(&mut self) {
        for used in &mut self.uses {
            if *used == Use::LeftBehind {
                *used = Use::Free;
            }
        }
    }
}

/// A queue pair that was not made.
pub(crate) struct NotCreated {
    pub(crate) error: Error,
    /// The epoch in which the controller may know one of the two queues all the same.
    pub(crate) left_in: Option<u32>,
}

/// How many entries a ring has, as the commands that create queues are told it.
fn queue_size(ring: &impl Entries) -> Result<QueueSize, Error> {
    let entries = ring.entries();
    QueueSize::new(entries).ok_or_else(|| Error::Capabilities {
        reason: format!("a queue of {entries} entries is not possible"),
    })
}

impl Inner {
    /// Asks for I/O queues (Set Features, Number of Queues) and takes note of how many are granted.
    pub(super) fn ask_for_queues(&self, admin: &mut Admin) -> Result<(), Error> {
        let wanted = self.options.io_queues.clamp(1, 65_534);
        let command = Command::set_number_of_queues(wanted, wanted);
        let timeout = self.options.admin_timeout;
        let granted = match self.execute(
            &mut admin.queue,
            "Set Features, Number of Queues",
            command,
            AdminData::None,
            timeout,
        ) {
            Ok(entry) => NumberOfQueues::from_result(entry.result())
                .pairs()
                .min(u32::from(wanted)) as u16,
            // A controller that can have no I/O queue at all says so with an error; it can still be administered.
            Err(Error::Status { status, .. }) => {
                tracing::warn!(controller = %self.name, %status, "no I/O queues were granted");
                0
            }
            Err(error) => return Err(error),
        };
        admin.ids.grant(granted);
        Ok(())
    }

    /// A free queue identifier.
    pub(crate) fn take_queue_id(&self) -> Result<u16, Error> {
        let mut admin = self.lock_admin();
        let granted = admin.ids.granted();
        admin.ids.take().ok_or(Error::NoQueue { granted })
    }

    /// Gives a queue identifier back, whose queues do not exist on the controller.
    pub(crate) fn give_back_queue_id(&self, id: u16) {
        self.lock_admin().ids.set(id, Use::Free);
    }

    /// Gives a queue identifier up whose queues may exist on the controller, until its next reset.
    pub(crate) fn leave_queue_id(&self, id: u16) {
        self.lock_admin().ids.set(id, Use::LeftBehind);
    }

    /// Creates the completion queue, then the submission queue, and tells the epoch in which they exist. Leaves neither behind where
    /// the controller refuses one.
    pub(crate) fn create_queue_pair(
        &self,
        id: u16,
        submission: &SubmissionMemory,
        completion: &CompletionMemory,
    ) -> Result<u32, NotCreated> {
        let mut admin = self.lock_admin();
        // Under one lock, so that no reset comes in between: both queues belong to this epoch.
        let epoch = self.shared.epoch();
        let mut left_in = None;
        let created = self.in_service().and_then(|()| {
            let mut execute = |name, command| {
                let timeout = self.options.admin_timeout;
                self.execute(&mut admin.queue, name, command, AdminData::None, timeout)
            };
            let refused = |error: &Error| matches!(error, Error::Status { .. });
            let size = queue_size(completion)?;
            let command = Command::create_io_cq(id, size, completion.iova().0, None);
            let Err(error) = execute("Create I/O Completion Queue", command).and_then(|_| {
                left_in = Some(epoch);
                let (size, priority) = (queue_size(submission)?, QueuePriority::default());
                let command = Command::create_io_sq(id, size, submission.iova().0, id, priority);
                execute("Create I/O Submission Queue", command)
            }) else {
                return Ok(());
            };
            if !refused(&error) {
                left_in = Some(epoch);
                return Err(error);
            }
            if left_in.is_none() {
                return Err(error);
            }
            // The submission queue does not exist; what of the completion queue that does?
            match execute("Delete I/O Completion Queue", Command::delete_io_cq(id)) {
                Ok(_) => {
                    left_in = None;
                    Err(error)
                }
                Err(Error::Status { command, status }) => {
                    Err(Error::LeftBehind { command, status })
                }
                Err(other) => Err(other),
            }
        });
        drop(admin);
        match self.recover_from(created, epoch) {
            Ok(()) => Ok(epoch),
            Err(error) => Err(NotCreated { error, left_in }),
        }
    }

    /// Deletes a submission queue that exists. `Ok` is the proof that the controller has let go of what its commands lent it.
    pub(crate) fn delete_submission_queue(&self, id: u16) -> Result<(), Error> {
        let command = Command::delete_io_sq(id);
        self.admin("Delete I/O Submission Queue", command, AdminData::None)
            .map(|_| ())
    }

    /// Deletes a completion queue that exists.
    pub(crate) fn delete_completion_queue(&self, id: u16) -> Result<(), Error> {
        let command = Command::delete_io_cq(id);
        self.admin("Delete I/O Completion Queue", command, AdminData::None)
            .map(|_| ())
    }

    /// Deletes the submission queue, then the completion queue, and takes no offence where either does not exist. `Ok` is the proof that the controller has let go of what the
    /// queue's commands lent it.
    pub(crate) fn delete_queue_pair(&self, id: u16) -> Result<(), Error> {
        let absent = |result| match result {
            Err(Error::Status { status, .. }) if status.is(Status::INVALID_QUEUE_IDENTIFIER) => {
                Ok(())
            }
            other => other,
        };
        absent(self.delete_submission_queue(id))?;
        absent(self.delete_completion_queue(id))
    }

    /// Asks the controller to abort a command. True where it says that it did.
    pub(crate) fn abort(&self, queue: u16, identifier: u16) -> Result<bool, Error> {
        let entry = self.admin("Abort", Command::abort(queue, identifier), AdminData::None)?;
        // Dword 0 bit 0 is 1 where the command was not aborted (NVMe base 2.0, section 5.1.1).
        Ok(entry.result() & 1 == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_begin_at_one_and_are_used_again() {
        let mut ids = QueueIds::default();
        assert_eq!(ids.take(), None);
        ids.grant(2);
        assert_eq!(
            (ids.take(), ids.take(), ids.take()),
            (Some(1), Some(2), None)
        );
        ids.set(1, Use::Free);
        ids.set(0, Use::Free);
        ids.set(9, Use::Free);
        assert_eq!((ids.take(), ids.take()), (Some(1), None));
        ids.set(2, Use::LeftBehind);
        assert_eq!(ids.take(), None);
        ids.take_back();
        assert_eq!((ids.take(), ids.take()), (Some(2), None));
    }

    #[test]
    fn a_smaller_grant_hands_out_no_more_than_it_has() {
        let mut ids = QueueIds::default();
        ids.grant(4);
        ids.grant(1);
        assert_eq!((ids.take(), ids.take()), (Some(1), None));
    }
}
