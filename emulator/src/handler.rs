//! The seam to whoever carries out commands in the front end's place: every entry that was fetched, before the front end reads it.
//!
//! A [`Backend`](crate::Backend) gets what the front end has understood and checked. A handler gets the 64 bytes, and so decides for itself what a
//! command is. What it takes stays in flight, with the memory that the command names, until it has reported the end: unmapping, disabling, resetting and the
//! end of a client all wait for that.

use std::fmt::Debug;

use nvme_vfio_dma::Access;
use nvme_vfio_queues::Status;

use crate::iommu::{DeviceMemory, FaultingCommand, Segment};
use crate::prp;

/// Carries out the commands of one controller in the place of its front end, which still keeps registers, queues, doorbells, interrupts and
/// events, and runs those admin commands that the handler leaves to it.
///
/// All methods are called one at a time, under the controller's lock: mostly by the thread that steps it, now and then by one that accesses a register. None may block.
pub trait CommandHandler: Send + Debug {
    /// How many entries of I/O queues may be fetched now; asked before each batch. `u32::MAX` is no limit. Those that are not fetched stay in the client's memory.
    fn credit(&mut self) -> u32 {
        u32::MAX
    }

    /// One entry of the admin queue or an I/O queue.
    fn command(&mut self, command: &FetchedCommand, memory: &DeviceMemory<'_>) -> Handling;

    /// No more commands come for now: doorbells may be rung for those that came.
    fn flush(&mut self, memory: &DeviceMemory<'_>);

    /// Appends what was [`Taken`](Handling::Taken) and has ended since the last call, in any order, each exactly once. Nothing may touch the memory of a command that is
    /// reported, provably: the controller lets go of it at once.
    fn poll(&mut self, memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>);

    /// The client wants its memory back: these commands shall end as soon as they can, done or not. They are still reported by [`poll`](CommandHandler::poll), as ever.
    /// A command may be named more than once.
    fn cancel(&mut self, tags: &[u32]);

    /// The client has announced a normal shutdown: what it wrote shall become durable. On [`Handling::Taken`] the shutdown is complete when `tag` was reported; anything else
    /// completes it at once.
    fn shut_down(&mut self, tag: u32, memory: &DeviceMemory<'_>) -> Handling {
        let (_, _) = (tag, memory);
        Handling::Complete {
            status: Status::SUCCESS,
            result: 0,
        }
    }

    /// The controller was disabled or reset; nothing is in flight.
    fn restarted(&mut self) {}

    /// Last word on an Identify data structure that the front end made, of 4096 bytes: by CNS, and NSID as the command names it.
    fn identify(&self, cns: u8, nsid: u32, page: &mut [u8]) {
        let (_, _, _) = (cns, nsid, page);
    }

    /// Last word on a log page that the front end made, as a whole: by log page identifier, and NSID as the command names it.
    fn log(&self, lid: u8, nsid: u32, page: &mut [u8]) {
        let (_, _, _) = (lid, nsid, page);
    }
}

/// A submission entry as it was fetched, once: nobody else can change it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchedCommand {
    /// Names the command from now on, if it is taken. Its low 16 bits are a small number, that no other command has meanwhile; the high ones tell it from those that had
    /// it before.
    pub tag: u32,
    /// The queue that it came on; 0 is the admin queue.
    pub sqid: u16,
    /// Its command identifier.
    pub cid: u16,
    /// Bytes of a memory page, as the client has set it (CC.MPS): what its PRPs are counted in.
    pub page: u32,
    /// The entry, as little-endian quadwords.
    pub entry: [u64; 8],
}

impl FetchedCommand {
    /// The place that the command has among those in flight: the low 16 bits of its tag.
    #[inline]
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.tag as u16
    }

    fn faulting(&self) -> FaultingCommand {
        FaultingCommand {
            sqid: self.sqid,
            cid: self.cid,
            opcode: self.entry[0] as u8,
        }
    }
}

/// What a handler does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The front end carries it out on its own state. Only for admin commands; one of an I/O queue is answered with Invalid Command Opcode.
    Execute,
    /// It is answered.
    Complete {
        /// Status of the completion; an error is entered into the error log.
        status: Status,
        /// Dwords 0 and 1 of the completion.
        result: u64,
    },
    /// It is under way. [`CommandHandler::poll`] reports it.
    Taken,
}

/// The end of a command that a handler took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandlerCompletion {
    /// The command's tag.
    pub tag: u32,
    /// Status of the completion; an error is entered into the error log.
    pub status: Status,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
}

impl DeviceMemory<'_> {
    /// Appends the pieces of memory that hold `length` bytes of the command's data, as its PRPs say now, neighbours joined. All of them are mapped and allow `access`
    /// ([`Access::DEVICE_READ`] for data that goes to the controller). The PRP list is read once.
    ///
    /// # Errors
    /// Data Transfer Error (04h) where a page or PRP list is not mapped or does not allow it, PRP Offset Invalid (13h) for one that is misaligned. `into` is as it was then.
    pub fn data(
        &self,
        command: &FetchedCommand,
        length: u64,
        access: Access,
        into: &mut Vec<Segment>,
    ) -> Result<(), Status> {
        if length == 0 {
            return Ok(());
        }
        let first = into.len();
        let prps = prp::Prps {
            first: command.entry[3],
            second: command.entry[4],
            page: u64::from(command.page),
        };
        let faulting = command.faulting();
        let walked = prp::each(prps, length, self, faulting, |iova, length| {
            self.append(iova, length, access, faulting, first, into)
        });
        if walked.is_err() {
            into.truncate(first);
        }
        walked
    }
}
