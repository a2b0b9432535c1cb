//! What a server serves: a PCI device, as the session of one client sees it.

use std::ops::Range;
use std::os::fd::BorrowedFd;

pub use nix::errno::Errno;

use crate::eventfd::Eventfd;
use crate::memory::ClientMemory;
pub use crate::message::{
    DeviceFlags, DeviceInfo, DmaAccess, IrqAction, IrqFlags, RegionFlags, SparseArea,
};

/// A PCI device that is served.
///
/// All methods are called from the thread that polls the session, one at a time and in the order of the client's messages; none may block. What a method refuses goes to
/// the client as the error of its reply.
///
/// The session has checked everything that does not need knowledge of the device: a region access lies inside its region and is not empty, the region may be read or
/// written, a range of interrupts lies inside its index and its data has as many elements, mappings have whole pages, do not wrap, do not overlap and are no more than were offered,
/// and what is unmapped was mapped exactly so.
pub trait Device {
    /// What kind of device this is. The same at every call.
    fn info(&self) -> DeviceInfo;

    /// A region (BARs 0 to 5, the expansion ROM, configuration space, VGA), or `None` for one that does not exist, which the client sees as one of size 0.
    fn region(&self, index: u32) -> Option<Region<'_>>;

    /// A kind of interrupt (INTx, MSI, MSI-X, error, request), or `None` for one that does not exist, which the client sees as one with no vectors.
    fn irq(&self, index: u32) -> Option<Irq>;

    /// Reads `data.len()` bytes at `offset` of a region. The client sees `data` (zeroed before the call) as it is when this returns.
    ///
    /// # Errors
    /// What the reply shall say, for example `EINVAL` for a size that the registers at `offset` do not have.
    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes `data` at `offset` of a region.
    ///
    /// # Errors
    /// What the reply shall say. A client that asked for no reply never sees it.
    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// Sets up, masks, unmasks or triggers the interrupts `range` of the kind `index`. An empty range, which comes only as [`IrqAction::Trigger`] with [`IrqData::None`],
    /// disables all of the kind.
    ///
    /// # Errors
    /// What the reply shall say, for example `EINVAL` for an action that the kind does not have.
    fn set_irqs(
        &self,
        index: u32,
        range: Range<u32>,
        action: IrqAction,
        data: IrqData,
    ) -> Result<(), Errno>;

    /// From now on the device may access `length` bytes at `iova`, as far as `access` allows. Without `memory` the client has given no descriptor: the range is then valid
    /// for the client, and cannot be reached by this device.
    ///
    /// # Errors
    /// What the reply shall say; nothing is mapped then, and `memory` has been dropped.
    fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno>;

    /// The device shall let go of the mapping at `iova`: start no new access, and end those under way. On [`Progress::Done`] it has dropped its handle of the memory, so that
    /// the client may use the memory for something else as soon as the reply arrives. On [`Progress::Pending`] the reply is held, the client's next messages wait,
    /// and [`unmapping`](Self::unmapping) is asked.
    ///
    /// # Errors
    /// What the reply shall say; the mapping then stays as it was.
    fn dma_unmap(&self, iova: u64, length: u64) -> Result<Progress, Errno>;

    /// Has the device let go of the mapping that [`dma_unmap`](Self::dma_unmap) left pending? Asked at each poll of the session until it is done. The device sees to it that it
    /// will be, by aborting or resetting what does not end in time.
    ///
    /// # Errors
    /// What the reply shall say, for a device that cannot let go; the mapping then stays as it was.
    fn unmapping(&self, iova: u64, length: u64) -> Result<Progress, Errno>;

    /// Resets the function, or begins to ([`settling`](Self::settling)). Mappings and interrupts set up stay.
    ///
    /// # Errors
    /// What the reply shall say.
    fn reset(&self) -> Result<(), Errno>;

    /// Is a reset under way, that [`reset`](Self::reset) or a write to a region began? Asked after each of them: while it is [`Progress::Pending`] the reply is held, the client's next messages
    /// wait, and it is asked again at each poll of the session. A device whose resets are complete when they return has nothing to say.
    fn settling(&self) -> Progress {
        Progress::Done
    }

    /// The client is gone, or the session ended it. The device lets go of all its memory and interrupts, and is asked at each poll until it has ([`Progress::Done`]: every handle of the
    /// client's memory has been dropped). Only then are its memory unmapped and the next client let in. A session that never came to a device's method ends with one call too.
    fn disconnected(&self) -> Progress;

    /// Can the device not tell any more what it does with its client's memory, because something of it panicked in the middle of that? Asked after each poll of a session: no end of it can be waited for
    /// then, and the server stops ([`ServerError::Broken`](crate::ServerError::Broken)). What memory the device may still reach it has to keep a handle of for good, and from then on it
    /// answers no [`unmapping`](Self::unmapping), [`settling`](Self::settling) or [`disconnected`](Self::disconnected) with [`Progress::Done`].
    fn is_broken(&self) -> bool {
        false
    }
}

/// How far the device is with something that can take time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has been done.
    Done,
    /// It is under way: ask again.
    Pending,
}

/// A region of the device.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// Bytes. A region of size 0 does not exist.
    pub size: u64,
    /// What can be done with it. `MMAP` is told where there is a `mapping`, set here or not.
    pub flags: RegionFlags,
    /// How it is mapped, where it can be.
    pub mapping: Option<RegionMapping<'a>>,
}

/// How (a part of) a region is mapped by the client.
#[derive(Debug, Clone, Copy)]
pub struct RegionMapping<'a> {
    /// What is to be mapped. The client gets a duplicate, and can map it for as long as it likes.
    pub descriptor: BorrowedFd<'a>,
    /// Where in `descriptor` the region begins, in bytes.
    pub offset: u64,
    /// The areas of the region that can be mapped, whole pages each; empty when all of it can be. An area is found at `offset` plus its own offset.
    pub areas: &'a [SparseArea],
}

/// A kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Irq {
    /// What it can do.
    pub flags: IrqFlags,
    /// How many vectors it has.
    pub count: u32,
}

/// What `SET_IRQS` brings for each interrupt of its range.
#[derive(Debug)]
pub enum IrqData {
    /// Nothing: the action is done for the whole range.
    None,
    /// The action is done where it says so.
    Bool(Vec<bool>),
    /// What to signal from now on, and `None` to signal nothing any more.
    Eventfds(Vec<Option<Eventfd>>),
}
