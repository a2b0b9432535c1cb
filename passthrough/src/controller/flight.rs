//! A client's command on its way: what of it was submitted, what is left, and how it will end.

use nvme_vfio_emulator as emulator;
use nvme_vfio_queues::{NvmOpcode, Status, prp};

use super::ranges::{Copying, Deallocation};
use crate::audit::Started;
use crate::command::{Class, DecodedCommand, Direction, Flags};
use crate::gate::Passed;

/// CDW12: limited retry.
const LIMITED_RETRY: u32 = 1 << 31;
/// CDW12: force unit access.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// CDW12 of Write Zeroes: deallocate.
const DEALLOCATE: u32 = 1 << 25;

/// Blocks that one command on them may name, whatever else limits it.
pub(super) const MOST_BLOCKS: u64 = 1 << 16;

/// A command on consecutive blocks, and how far it was submitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub(super) opcode: u8,
    /// CDW12 without the number of blocks.
    pub(super) cdw12: u32,
    /// The next block, as the client numbers them.
    pub(super) first: u64,
    /// Blocks that are left.
    pub(super) left: u64,
    /// Bytes of the data before the next block.
    pub(super) skip: usize,
    /// Whether there is data.
    pub(super) data: bool,
}

/// What is left to be submitted of a command. Only a command that has [`Passed`] makes any, and real commands are made of nothing else.
#[derive(Debug, Default)]
pub(super) enum Work {
    /// Nothing.
    #[default]
    Done,
    /// Read, Write, Compare, Write Zeroes, Write Uncorrectable, Verify.
    Blocks(Blocks),
    /// Flush, of the namespace's real namespaces from this one on.
    Flush(usize),
    /// Flush, of these real namespaces.
    FlushAll(Vec<(u16, u32)>),
    /// Dataset Management, with CDW11.
    Deallocate(Box<Deallocation>, u32),
    /// Copy, with CDW12 without the number of ranges. One part at a time.
    Copy(Box<Copying>, u32),
}

impl Work {
    /// What a command is to do on real controllers; `None` for one that does nothing there.
    #[inline]
    pub(super) fn of(passed: &Passed<'_>) -> Option<Self> {
        let command: &DecodedCommand<'_> = passed.command();
        let opcode = match command.class {
            Class::Read => NvmOpcode::READ,
            Class::Write => NvmOpcode::WRITE,
            Class::Compare => NvmOpcode::COMPARE,
            Class::WriteZeroes => NvmOpcode::WRITE_ZEROES,
            Class::Poison => NvmOpcode::WRITE_UNCORRECTABLE,
            Class::Verify => NvmOpcode::VERIFY,
            _ => return Self::of_others(command),
        };
        let extent = command.extents.first()?;
        Some(Self::Blocks(Blocks {
            opcode: opcode.0,
            cdw12: cdw12(command.flags),
            first: extent.first,
            left: extent.blocks,
            skip: 0,
            data: command.direction != Direction::None,
        }))
    }

    /// Adds a Flush that has passed, of a namespace that is spread over these real ones.
    pub(super) fn add_flush(&mut self, passed: &Passed<'_>, real: &[(u16, u32)]) {
        if passed.command().class != Class::Flush {
            return;
        }
        if !matches!(self, Self::FlushAll(_)) {
            *self = Self::FlushAll(Vec::new());
        }
        if let Self::FlushAll(all) = self {
            for one in real {
                if !all.contains(one) {
                    all.push(*one);
                }
            }
        }
    }

    #[inline(never)]
    fn of_others(command: &DecodedCommand<'_>) -> Option<Self> {
        let flags = command.flags;
        match command.class {
            Class::Flush => Some(Self::Flush(0)),
            Class::Deallocate => {
                let attribute = |flag, bit: u32| u32::from(flags.contains(flag)) << bit;
                let cdw11 = attribute(Flags::INTEGRAL_READ, 0)
                    | attribute(Flags::INTEGRAL_WRITE, 1)
                    | attribute(Flags::DEALLOCATE, 2);
                let plan = Box::new(Deallocation::new(command.extents));
                Some(Self::Deallocate(plan, cdw11))
            }
            Class::Copy => {
                let plan = Box::new(Copying::new(command.extents)?);
                Some(Self::Copy(plan, cdw12(flags)))
            }
            _ => None,
        }
    }
}

/// The bits of CDW12 that the flags are.
#[inline]
fn cdw12(flags: Flags) -> u32 {
    let bit = |flag, bit| if flags.contains(flag) { bit } else { 0 };
    bit(Flags::LIMITED_RETRY, LIMITED_RETRY)
        | bit(Flags::FORCE_UNIT_ACCESS, FORCE_UNIT_ACCESS)
        | bit(Flags::DEALLOCATE, DEALLOCATE)
}

/// A command of a client that was taken. Its place is the low half of its tag.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// The client's command; meaningless where the flight is not `active`.
    pub(super) tag: u32,
    pub(super) active: bool,
    /// It waits for a slot, a queue or a buffer.
    pub(super) waiting: bool,
    /// When it is overdue because the client wants its memory back; [`u64::MAX`] while it does not.
    pub(super) due: u64,
    /// The place of its namespace.
    pub(super) namespace: u16,
    /// Parts that were submitted and have not provably ended.
    pub(super) parts: u32,
    /// The place of the next part among all.
    pub(super) next_order: u32,
    /// The place of the first part that failed; [`NONE`] while none has.
    failed: u32,
    /// How that one ended.
    status: Status,
    /// Dword 0 of the client's completion.
    result: u32,
    pub(super) work: Work,
    pub(super) started: Option<Started>,
    /// Its data, as real controllers see it.
    pub(super) data: Vec<prp::Segment>,
    /// Its data in the client's memory.
    pub(super) memory: Vec<emulator::Segment>,
    /// Which way it goes through buffers of the server.
    pub(super) bounce: Option<Bounced>,
}

/// Data that goes through buffers of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounced {
    pub(super) length: usize,
    /// To the client, when the command has succeeded; else from it, before it begins.
    pub(super) to_client: bool,
    /// The buffers were taken.
    pub(super) taken: bool,
}

const NONE: u32 = u32::MAX;

impl Flight {
    /// A new command takes the place.
    #[inline]
    pub(super) fn begin(&mut self, tag: u32, namespace: u16, work: Work) {
        self.tag = tag;
        self.active = true;
        self.waiting = false;
        self.due = u64::MAX;
        self.namespace = namespace;
        self.parts = 0;
        self.next_order = 0;
        self.failed = NONE;
        self.status = Status::SUCCESS;
        self.result = 0;
        self.work = work;
        self.started = None;
        self.bounce = None;
        self.data.clear();
    }

    /// The part with this place has ended so. Of several that fail, the first one's status is the command's.
    #[inline]
    pub(super) fn part_ended(&mut self, order: u32, status: Status) {
        self.parts = self.parts.saturating_sub(1);
        if !status.is_success() {
            self.fail(order, status);
        }
    }

    /// What is left of the command is not done any more: it ends so, unless an earlier part has failed.
    #[cold]
    pub(super) fn fail(&mut self, order: u32, status: Status) {
        self.work = Work::Done;
        if order < self.failed {
            self.failed = order;
            self.status = status;
        }
    }

    /// As [`fail`](Self::fail), for the part that could not be submitted.
    pub(super) fn fail_next(&mut self, status: Status) {
        self.fail(self.next_order, status);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed != NONE
    }

    /// Sets dword 0 of the client's completion.
    pub(super) fn set_result(&mut self, result: u32) {
        self.result = result;
    }

    /// Whether every part has ended and none is left.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.parts == 0 && matches!(self.work, Work::Done)
    }

    /// What the client is told.
    #[inline]
    pub(super) fn answer(&self) -> (Status, u64) {
        (self.status, u64::from(self.result))
    }
}
