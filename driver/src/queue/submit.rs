//! The way in.

use nvme_vfio_dma::Buffer;
use nvme_vfio_queues::prp;
use nvme_vfio_queues::{BlockCount, Command, DataPointer, NvmOpcode};

use super::{IoQueue, Slot, State};
use crate::controller::GONE;
use crate::error::{Refused, SubmitError};
use crate::namespace::Namespace;

impl IoQueue {
    /// Reads the blocks from `lba` on into the whole of `buffer`. What one command cannot carry is split.
    ///
    /// # Errors
    /// [`Refused`], with the buffer; nothing has reached the controller then.
    #[inline]
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
    #[inline]
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
    /// the memory is mapped for the controller, is not used otherwise, and stays so until the completion was
    /// polled; after a [`TimedOut`](super::Outcome::TimedOut) or [`Gone`](super::Outcome::Gone) until the controller is closed.
    ///
    /// # Errors
    /// [`Refused`]; nothing has reached the controller then.
    #[inline]
    #[allow(unsafe_code)] // declares what the caller answers for
    pub unsafe fn submit_raw(&mut self, command: Command, token: u64) -> Result<(), Refused> {
        self.submit(command, token)
    }

    fn submit(&mut self, command: Command, token: u64) -> Result<(), Refused> {
        self.may_submit().map_err(refused)?;
        let slot = Slot {
            token,
            buffer: None,
            deadline: 0,
            state: State::Whole,
            large: 0,
        };
        let Ok(identifier) = self.slots.insert(slot) else {
            return Err(refused(SubmitError::QueueFull));
        };
        self.waiting += 1;
        self.push(command.with_cid(identifier));
        Ok(())
    }

    #[inline]
    pub(super) fn push(&mut self, command: Command) {
        self.submission.push(&command);
        if self.submission.unrung() >= self.batch {
            self.ring();
        }
    }

    /// Tells the controller of everything that was submitted and polled since it was told last.
    #[inline]
    pub fn ring(&mut self) {
        // A queue that a reset has taken away has no doorbell any more: it may be another queue's.
        if self.shared.epoch() == self.cold.made_in {
            self.submission.ring();
            self.completion.ring();
        }
    }

    #[inline]
    fn transfer(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Refused> {
        let length = buffer.len();
        let blocks = length as u64 >> namespace.shift;
        let Some((index, _)) = self.slots.peek() else {
            return self.transfer_long(opcode, namespace, lba, buffer, token);
        };
        // One test for everything that the short way does not serve; what it is is found out on the long one.
        let short = self.expected == self.shared.epoch()
            && namespace.controller == self.controller
            && buffer.domain_id() == self.domain
            && length <= self.limit
            && blocks != 0
            && blocks << namespace.shift == length as u64
            && blocks <= namespace.blocks
            && lba <= namespace.blocks - blocks;
        if !short {
            return self.transfer_long(opcode, namespace, lba, buffer, token);
        }
        let pointer = match prp::build(
            buffer.iova().0,
            length,
            self.page,
            &mut self.lists.of(index),
        ) {
            Ok(pointer) => pointer,
            Err(_) => return self.transfer_long(opcode, namespace, lba, buffer, token),
        };
        let slot = Slot {
            token,
            buffer: Some(buffer),
            deadline: 0,
            state: State::Whole,
            large: 0,
        };
        let identifier = match self.slots.insert(slot) {
            Ok(identifier) => identifier,
            Err(slot) => {
                return Err(Refused {
                    error: SubmitError::QueueFull,
                    buffer: slot.buffer,
                    vector: None,
                });
            }
        };
        self.waiting += 1;
        self.push(
            transfer_command(opcode, namespace.nsid, lba, blocks, pointer).with_cid(identifier),
        );
        Ok(())
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
    ) -> Result<(), Refused> {
        let checked = self
            .may_submit()
            .and_then(|()| self.check(namespace, lba, buffer.len()))
            .and_then(|()| self.check_buffer(&buffer));
        match checked {
            Ok(()) => self.start_large(
                opcode,
                namespace,
                lba,
                super::large::Segments::One(buffer),
                token,
            ),
            Err(error) => Err(Refused {
                error,
                buffer: Some(buffer),
                vector: None,
            }),
        }
    }

    /// Whether the queue takes submissions at all.
    pub(super) fn may_submit(&self) -> Result<(), SubmitError> {
        match self.shared.epoch() {
            GONE => Err(SubmitError::Gone),
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
        if blocks > namespace.blocks || lba > namespace.blocks - blocks {
            return Err(SubmitError::OutOfRange {
                lba,
                blocks,
                size: namespace.blocks,
            });
        }
        Ok(())
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

/// A Read or Write of `blocks` blocks, 1 to 65,536.
#[inline]
pub(super) fn transfer_command(
    opcode: NvmOpcode,
    nsid: u32,
    lba: u64,
    blocks: u64,
    pointer: DataPointer,
) -> Command {
    debug_assert!((1..=65_536).contains(&blocks));
    let count = BlockCount::new(blocks as u32).unwrap_or(BlockCount::ONE);
    Command {
        opcode: opcode.0,
        ..Command::read(nsid, lba, count, pointer)
    }
}
