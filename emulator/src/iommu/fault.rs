//! What the software IOMMU tells of an access that it refused.

use nvme_vfio_dma::{Access, Iova};

/// What the controller was doing when it touched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaOrigin {
    /// Reading entries of the submission queue with this identifier.
    SubmissionFetch(u16),
    /// Writing an entry of the completion queue with this identifier.
    CompletionPost(u16),
    /// Reading a PRP list of a command.
    PrpList(FaultingCommand),
    /// Moving data of a command.
    Data(FaultingCommand),
}

impl DmaOrigin {
    /// The command on whose behalf it was, if one was known yet.
    #[must_use]
    pub fn command(&self) -> Option<FaultingCommand> {
        match *self {
            DmaOrigin::PrpList(command) | DmaOrigin::Data(command) => Some(command),
            DmaOrigin::SubmissionFetch(_) | DmaOrigin::CompletionPost(_) => None,
        }
    }

    /// Which of the lookup hints suits this kind of access.
    pub(super) fn hint(self) -> usize {
        match self {
            DmaOrigin::SubmissionFetch(_) => FETCH,
            DmaOrigin::CompletionPost(_) => POST,
            DmaOrigin::PrpList(_) => 2,
            DmaOrigin::Data(_) => DATA,
        }
    }
}

/// The lookup hints of the accesses that each command needs.
pub(super) const FETCH: usize = 0;
pub(super) const POST: usize = 1;
pub(super) const DATA: usize = 3;

/// A command, as a fault names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultingCommand {
    /// Submission queue identifier; 0 is the admin queue.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Opcode.
    pub opcode: u8,
}

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// Nothing is mapped there.
    Unmapped,
    /// What is mapped there is being unmapped, and nothing new may begin on it.
    Leaving,
    /// What is mapped there has no memory behind it that this process could reach.
    NoMemory,
    /// The mapping does not allow this direction.
    AccessDenied,
    /// Bus mastering was off in the PCI command register.
    BusMasterOff,
}

/// One access of the controller outside what was mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuFault {
    /// First byte that could not be reached.
    pub iova: Iova,
    /// Bytes from there that were wanted.
    pub length: usize,
    /// What the controller wanted to do.
    pub access: Access,
    /// What for.
    pub origin: DmaOrigin,
    /// The command on whose behalf it was; `None` for ring accesses.
    pub command: Option<FaultingCommand>,
    /// Why it was refused.
    pub reason: FaultReason,
}
