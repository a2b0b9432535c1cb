//! The shortest way: an I/O that has ended goes off again in place, with the slot and the buffer that it has.

use nvme_vfio_queues::{CompletionEntry, DataPointer, NvmOpcode};

use super::submit::transfer_command;
use super::{Completion, IoQueue};
use crate::error::SubmitError;
use crate::namespace::Namespace;

/// An I/O that has ended with success, and is to be followed by another with the same buffer, or not.
#[derive(Debug)]
pub struct Ended<'a> {
    /// What the submitter called it.
    pub token: u64,
    /// The controller's answer.
    pub entry: CompletionEntry,
    /// Its data: what was read, or the place for what is to be written next.
    pub data: &'a mut [u8],
}

/// The I/O that is to follow: of the same length, since it has the same buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Its first block.
    pub lba: u64,
    /// What it is called.
    pub token: u64,
}

/// What a poll has found.
#[derive(Debug)]
pub enum Polled {
    /// Nothing.
    Nothing,
    /// An I/O that has ended, and whose buffer is off again.
    Again,
    /// An I/O that has ended, and is not followed by another.
    Completion(Completion),
    /// An I/O that has ended, and the one that was to follow is refused.
    Refused(SubmitError, Completion),
}

impl IoQueue {
    /// Takes the next completion as [`poll`](Self::poll) does. Of an I/O that has ended with success `next` is asked, and may name the
    /// blocks that are read next into the same buffer. Slot and buffer stay where they are, which is the cheapest way
    /// to keep a queue full.
    ///
    /// I/Os without one buffer of their own (a flush, a vector, one that is split) and those that failed come out as completions, as does
    /// everything else that `poll` reports.
    ///
    /// ```
    /// use nvme_vfio::{Again, Controller, Polled, QueueOptions};
    ///
    /// let controller = Controller::open(&"emulated:size=64M".parse::<nvme_vfio::Address>()?)?;
    /// let namespace = controller.only_namespace()?;
    /// let mut queue = controller.io_queue(QueueOptions::with_depth(8))?;
    /// let mut lba = 0;
    /// for _ in 0..8 {
    ///     queue.read(&namespace, lba, controller.allocate(4096)?, lba)?;
    ///     lba += 8;
    /// }
    /// let mut sum = 0_u64;
    /// while queue.in_flight() > 0 {
    ///     let polled = queue.poll_and_read_again(&namespace, |ended| {
    ///         sum += ended.data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    ///         lba += 8;
    ///         (lba < 8000).then_some(Again { lba, token: lba })
    ///     });
    ///     if let Polled::Completion(completion) = polled {
    ///         completion.result()?;
    ///     }
    /// }
    /// # assert_eq!(sum, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn poll_and_read_again(
        &mut self,
        namespace: &Namespace,
        next: impl FnOnce(Ended<'_>) -> Option<Again>,
    ) -> Polled {
        self.poll_and_repeat(NvmOpcode::READ, namespace, next)
    }

    /// As [`poll_and_read_again`](Self::poll_and_read_again), for writes.
    #[inline(always)]
    pub fn poll_and_write_again(
        &mut self,
        namespace: &Namespace,
        next: impl FnOnce(Ended<'_>) -> Option<Again>,
    ) -> Polled {
        self.poll_and_repeat(NvmOpcode::WRITE, namespace, next)
    }

    #[inline(always)]
    fn poll_and_repeat(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        next: impl FnOnce(Ended<'_>) -> Option<Again>,
    ) -> Polled {
        let Some(raw) = self.completion.pop_raw() else {
            return match self.poll_empty() {
                None => Polled::Nothing,
                Some(completion) => Polled::Completion(*completion),
            };
        };
        let mut refused = None;
        if raw.is_success()
            && let Some(mut slot) = self.slots.common(raw.cid())
        {
            let index = slot.index();
            let payload = slot.payload();
            let (token, entry) = (payload.token, raw.entry());
            if let Some(buffer) = &mut payload.buffer {
                // The address and the domain are right, as they were the last time.
                let (iova, length) = (buffer.iova().0, buffer.len());
                let data = &mut **buffer;
                if !namespace.suits(self.controller, length) {
                    refused = Some((0, length));
                } else if let Some(again) = next(Ended { token, entry, data }) {
                    let blocks = length as u64 >> namespace.shift;
                    if namespace.holds(again.lba, blocks)
                        && let Some(prp2) = self.lists.prp2(index, iova, length)
                    {
                        payload.token = again.token;
                        payload.deadline = 0;
                        let identifier = slot.renew();
                        self.push(transfer_command(
                            opcode,
                            namespace.nsid,
                            again.lba,
                            blocks,
                            DataPointer { prp1: iova, prp2 },
                            identifier,
                        ));
                        return Polled::Again;
                    }
                    refused = Some((again.lba, length));
                }
            }
        }
        let Some(completion) = self.poll_uncommon(raw.words()) else {
            return Polled::Nothing;
        };
        match refused {
            None => Polled::Completion(*completion),
            Some((lba, length)) => {
                let error = self.check(namespace, lba, length).err();
                Polled::Refused(error.unwrap_or(SubmitError::QueueFull), *completion)
            }
        }
    }
}
