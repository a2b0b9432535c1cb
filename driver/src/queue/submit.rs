//! The way in.

use std::mem;

use nvme_vfio_dma::Buffer;
use nvme_vfio_queues::{Command, DataPointer, NvmOpcode};

use super::large::Segments;
use super::{IoQueue, Slot};
use crate::controller::GONE;
use crate::error::{Refused, SubmitError};
use crate::namespace::Namespace;

impl IoQueue {
    /// Reads the blocks from `lba` on into the whole of `buffer`. What one command cannot carry is split.
    ///
    /// # Errors
    /// [`Refused`], with the buffer; nothing has reached the controller then.
    #[inline(always)]
    pub fn read(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Refused> {
        self.transfer(NvmOpcode::READ, namespace, lba, buffer, token)
    }

    /// Writes the whole of `buffer` to the blocks from `lba` on. What one command cannot carry is split, and is not atomic.
    ///
    /// # Errors
    /// [`Refused`], with the buffer; nothing has reached the controller then.
    #[inline(always)]
    pub fn write(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Refused> {
        self.transfer(NvmOpcode::WRITE, namespace, lba, buffer, token)
    }

    /// Makes what was written before, and has been reported, durable (NVM command set 1.0, section 3.2.1).
    ///
    /// # Errors
    /// [`Refused`]; nothing has reached the controller then.
    pub fn flush(&mut self, namespace: &Namespace, token: u64) -> Result<(), Refused> {
        if namespace.controller != self.controller {
            return Err(refused(SubmitError::ForeignNamespace));
        }
        self.submit(Command::flush(namespace.nsid), token)
    }

    /// Submits an entry as it is, but for its command identifier. The completion carries the controller's whole answer.
    ///
    /// # Safety
    /// The entry is sent to an I/O queue unchecked. The caller answers for every address in it (data pointer, metadata pointer):
    /// the memory is mapped for the controller, is not used otherwise, and stays so until the controller has provably let go of it. That is so when the
    /// command was polled with the outcome [`Done`](super::Outcome::Done), [`Reset`](super::Outcome::Reset) or [`Deleted`](super::Outcome::Deleted).
    /// [`TimedOut`](super::Outcome::TimedOut) is no proof: it comes later, from [`let_go`](Self::let_go). Nor is [`Gone`](super::Outcome::Gone), unless
    /// [`Controller::has_let_go`](crate::Controller::has_let_go) says so; else the memory is the controller's until it is closed
    /// ([`Controller::keep`](crate::Controller::keep) sees to that). Before the queue is dropped with commands in flight it is to be
    /// [deleted](Self::delete).
    ///
    /// # Errors
    /// [`Refused`]; nothing has reached the controller then.
    #[inline]
    #[allow(unsafe_code)] // declares what the caller answers for
    pub unsafe fn submit_raw(&mut self, command: Command, token: u64) -> Result<(), Refused> {
        self.submit(command, token)
    }

    /// Submits an entry with its data pointer filled in for `buffer`, which moves into the queue as that of a read or write does. Whatever the controller
    /// takes for the command's length, no address leads it further than the buffer's pages: the rest of the PRP list is zeros, where nothing is mapped.
    ///
    /// # Safety
    /// As [`submit_raw`](Self::submit_raw) for every address in the entry but the data pointer.
    ///
    /// # Errors
    /// [`Refused`], with the buffer; nothing has reached the controller then. A buffer may be at most [`max_transfer`](Self::max_transfer) long.
    #[allow(unsafe_code)] // declares what the caller answers for
    pub unsafe fn submit_with_data(
        &mut self,
        command: Command,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Refused> {
        let length = buffer.len();
        let checked = self
            .may_submit()
            .and_then(|()| self.check_buffer(&buffer))
            .and_then(|()| self.check_one(length));
        let refused = |error, buffer| Refused {
            error,
            buffer: Some(buffer),
            vector: None,
        };
        if let Err(error) = checked {
            return Err(refused(error, buffer));
        }
        let iova = buffer.iova().0;
        let Some((index, mut vacant)) = self.slots.vacant() else {
            return Err(refused(SubmitError::QueueFull, buffer));
        };
        self.lists.clear(index);
        let Some(prp2) = self.lists.prp2(index, iova, length) else {
            return Err(refused(self.too_long(length), buffer));
        };
        let slot = vacant.payload();
        slot.token = token;
        slot.deadline = 0;
        slot.buffer = Some(buffer);
        let identifier = vacant.take();
        self.waiting += 1;
        self.push(
            command
                .with_cid(identifier)
                .with_data(DataPointer { prp1: iova, prp2 }),
        );
        Ok(())
    }

    fn submit(&mut self, command: Command, token: u64) -> Result<(), Refused> {
        self.may_submit().map_err(refused)?;
        let slot = Slot {
            token,
            ..Slot::default()
        };
        let Ok(identifier) = self.slots.insert(slot) else {
            return Err(refused(SubmitError::QueueFull));
        };
        self.waiting += 1;
        self.push(command.with_cid(identifier));
        Ok(())
    }

    #[inline(always)]
    pub(super) fn push(&mut self, command: Command) {
        self.submission.push(&command);
        self.room -= 1;
        if self.room == 0 {
            self.ring();
        }
    }

    /// Tells the controller of everything that was submitted and polled since it was told last.
    pub fn ring(&mut self) {
        self.room = self.batch;
        // A queue that a reset has taken away has no doorbell any more: it may be another queue's.
        if self.shared.epoch() == self.cold.made_in {
            // Only when the controller would run short of room: as many entries as there are commands in flight stay free for it. First,
            // since it has nothing to do yet for what comes next.
            if self.completion.unrung() > self.spare {
                self.completion.ring();
            }
            self.submission.ring();
        }
    }

    #[inline(always)]
    fn transfer(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Refused> {
        match self.transfer_short(opcode, namespace, lba, buffer, token) {
            None => Ok(()),
            Some(buffer) => match self.transfer_long(opcode, namespace, lba, buffer, token) {
                None => Ok(()),
                Some(refused) => Err(*refused),
            },
        }
    }

    /// Submits an I/O of one command that is right in every way; gives back the buffer of any other.
    #[inline(always)]
    fn transfer_short(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Option<Buffer> {
        let length = buffer.len();
        let blocks = length as u64 >> namespace.shift;
        // What exactly is wrong is found out on the long way. Whether the controller was reset is not asked here: the doorbell and the
        // next poll ask, and once the owner has been told, the queue has no free slots.
        let iova = buffer.iova().0;
        let right = namespace.suits(self.controller, length)
            && buffer.domain_id() == self.domain
            && length.wrapping_sub(1) < self.limit
            && namespace.holds(lba, blocks)
            && iova & 3 == 0;
        if !right {
            return Some(buffer);
        }
        let Some((index, mut vacant)) = self.slots.vacant() else {
            return Some(buffer);
        };
        let Some(prp2) = self.lists.prp2(index, iova, length) else {
            return Some(buffer);
        };
        let slot = vacant.payload();
        slot.token = token;
        slot.deadline = 0;
        // There is nothing in a free slot, so nothing to drop; saying so saves the check.
        mem::forget(slot.buffer.replace(buffer));
        let identifier = vacant.take();
        self.waiting += 1;
        self.push(transfer_command(
            opcode,
            namespace.nsid,
            lba,
            blocks,
            DataPointer { prp1: iova, prp2 },
            identifier,
        ));
        None
    }

    /// Finds out why the short way did not serve: an error, a full queue, an I/O to be split, or a report that waits.
    #[cold]
    fn transfer_long(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Option<Box<Refused>> {
        let checked = self
            .may_submit()
            .and_then(|()| self.check(namespace, lba, buffer.len()))
            .and_then(|()| self.check_buffer(&buffer));
        let result = match checked {
            Ok(()) => self.start_large(opcode, namespace, lba, Segments::One(buffer), token),
            Err(error) => Err(Refused {
                error,
                buffer: Some(buffer),
                vector: None,
            }),
        };
        result.err().map(Box::new)
    }

    /// Whether the queue takes submissions at all.
    pub(super) fn may_submit(&self) -> Result<(), SubmitError> {
        match self.shared.epoch() {
            GONE => Err(SubmitError::Gone),
            _ if self.cold.deleted => Err(SubmitError::Deleted),
            epoch if epoch != self.cold.made_in => Err(SubmitError::Reset),
            _ => Ok(()),
        }
    }

    pub(super) fn check(
        &self,
        namespace: &Namespace,
        lba: u64,
        length: usize,
    ) -> Result<(), SubmitError> {
        if namespace.controller != self.controller {
            return Err(SubmitError::ForeignNamespace);
        }
        let blocks = length as u64 >> namespace.shift;
        if blocks == 0 || blocks << namespace.shift != length as u64 {
            return Err(SubmitError::Length {
                length,
                block: namespace.block_size(),
            });
        }
        if !namespace.holds(lba, blocks) {
            return Err(SubmitError::OutOfRange {
                lba,
                blocks,
                size: namespace.blocks,
            });
        }
        Ok(())
    }

    /// Whether one command can carry so many bytes.
    fn check_one(&self, length: usize) -> Result<(), SubmitError> {
        if length.wrapping_sub(1) < self.limit {
            Ok(())
        } else {
            Err(self.too_long(length))
        }
    }

    fn too_long(&self, length: usize) -> SubmitError {
        let limit = self.limit;
        SubmitError::TooLong { length, limit }
    }

    pub(super) fn check_buffer(&self, buffer: &Buffer) -> Result<(), SubmitError> {
        if buffer.domain_id() != self.domain {
            return Err(SubmitError::ForeignBuffer);
        }
        if !buffer.iova().0.is_multiple_of(4) {
            return Err(SubmitError::Misaligned {
                iova: buffer.iova().0,
            });
        }
        Ok(())
    }
}

pub(super) fn refused(error: SubmitError) -> Refused {
    Refused {
        error,
        buffer: None,
        vector: None,
    }
}

/// A Read or Write of `blocks` blocks, 1 to 65,536 (NVM command set 1.0, sections 3.2.4 and 3.2.6).
#[inline(always)]
pub(super) fn transfer_command(
    opcode: NvmOpcode,
    nsid: u32,
    lba: u64,
    blocks: u64,
    pointer: DataPointer,
    identifier: u16,
) -> Command {
    debug_assert!((1..=65_536).contains(&blocks));
    Command {
        opcode: opcode.0,
        cid: identifier,
        nsid,
        prp1: pointer.prp1,
        prp2: pointer.prp2,
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        cdw12: (blocks - 1) as u32,
        ..Command::ZERO
    }
}
