//! What is reported of an I/O, once.

use nvme_vfio_dma::Buffer;
use nvme_vfio_queues::CompletionEntry;

use crate::CommandError;

/// How an I/O ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The controller answered; [`Completion::entry`] is its answer.
    Done,
    /// It did not end in time. That proves nothing: the controller may still touch its memory.
    TimedOut,
    /// The controller was reset before it ended.
    Reset,
    /// The controller is gone.
    Gone,
    /// Its queue was [deleted](crate::IoQueue::delete) before it ended. Whether it took effect is not known; nothing of it is in flight any more.
    Deleted,
}

/// The one report of an I/O.
#[derive(Debug)]
pub struct Completion {
    /// What the submitter called it.
    pub token: u64,
    /// The controller's answer, where `outcome` is [`Outcome::Done`]; zeros else. Of a large I/O, the answer to the command that
    /// failed first, or to the last one.
    pub entry: CompletionEntry,
    /// How it ended.
    pub outcome: Outcome,
    /// The buffer, given back; `None` where there was none or a vector, and where the controller may still touch it.
    pub buffer: Option<Buffer>,
    /// The buffers of a vectored I/O, given back in their order. (Boxed, so that the completions of all others are short.)
    pub vector: Option<Box<Vec<Buffer>>>,
}

impl Completion {
    /// Dword 0 of the controller's answer, or what went wrong.
    ///
    /// # Errors
    /// Where the I/O did not succeed.
    #[inline]
    pub fn result(&self) -> Result<u32, CommandError> {
        match self.outcome {
            Outcome::Done if self.entry.status().is_success() => Ok(self.entry.result()),
            Outcome::Done => Err(CommandError::Status(self.entry.status())),
            Outcome::TimedOut => Err(CommandError::TimedOut),
            Outcome::Reset => Err(CommandError::Reset),
            Outcome::Gone => Err(CommandError::Gone),
            Outcome::Deleted => Err(CommandError::Deleted),
        }
    }
}
