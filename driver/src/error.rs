//! What can go wrong, told apart by what can be done about it.

use std::time::Duration;

use nvme_vfio_dma::{Buffer, DmaError};
use nvme_vfio_queues::Status;
use nvme_vfio_queues::ring::RingMemoryError;
use thiserror::Error;

use crate::address::AddressError;

/// The registers that tell why a controller does not do what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterDump {
    /// Controller Capabilities.
    pub cap: u64,
    /// Controller Configuration.
    pub cc: u32,
    /// Controller Status.
    pub csts: u32,
    /// Admin Queue Attributes.
    pub aqa: u32,
    /// Admin Submission Queue Base Address.
    pub asq: u64,
    /// Admin Completion Queue Base Address.
    pub acq: u64,
}

impl std::fmt::Display for RegisterDump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cap,
            cc,
            csts,
            aqa,
            asq,
            acq,
        } = self;
        write!(
            f,
            "CAP {cap:#018x}, CC {cc:#010x}, CSTS {csts:#010x}, AQA {aqa:#010x}, ASQ {asq:#x}, ACQ {acq:#x}"
        )
    }
}

/// Why an operation on a controller failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The text names no controller.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address is understood, but this version cannot open such a one.
    #[error("{address}: {what} is not supported by this version")]
    Unsupported {
        /// The address.
        address: String,
        /// What would be needed.
        what: &'static str,
    },
    /// The group could not be opened.
    #[error(transparent)]
    Group(#[from] nvme_vfio_pci::GroupError),
    /// The function could not be opened, or did not answer as a PCI function.
    #[error(transparent)]
    Device(#[from] nvme_vfio_pci::DeviceError),
    /// sysfs does not tell what it should of a function.
    #[error(transparent)]
    Sysfs(#[from] nvme_vfio_pci::SysfsError),
    /// No connection to a vfio-user server could be made, or it was lost, or the server refused what was asked.
    #[error(transparent)]
    VfioUser(#[from] nvme_vfio_user::ClientError),
    /// This process has opened the function already.
    #[error("{address} is open already in this process")]
    AlreadyOpen {
        /// The function.
        address: String,
    },
    /// Controllers that are to be opened together do not make up a part of one group.
    #[error("{address} cannot be opened together with the others: {reason}")]
    NotOneGroup {
        /// The first address that stands in the way.
        address: String,
        /// Why.
        reason: String,
    },
    /// The function is not an NVMe controller.
    #[error(
        "{address} is not an NVMe controller: its class code is {class:06x}, and 010802 is expected"
    )]
    NotNvme {
        /// The function.
        address: String,
        /// Its class code.
        class: u32,
    },
    /// The configuration of the emulated controller is wrong.
    #[cfg(feature = "emulated")]
    #[error(transparent)]
    Emulated(#[from] nvme_vfio_emulator::ConfigError),
    /// The thread of the emulated controller could not be started.
    #[cfg(feature = "emulated")]
    #[error("the emulated controller's thread could not be started")]
    Thread(#[source] std::io::Error),
    /// Memory could not be had or mapped.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A ring could not be laid out.
    #[error(transparent)]
    Ring(#[from] RingMemoryError),
    /// The controller's registers describe one that cannot be driven.
    #[error("the controller cannot be driven: {reason}")]
    Capabilities {
        /// What is wrong.
        reason: String,
    },
    /// The controller did not become ready, did not stop, or reported a fatal status.
    #[error("the controller {what} ({registers})")]
    NotReady {
        /// What it did or did not do.
        what: NotReady,
        /// Its registers at that time.
        registers: RegisterDump,
    },
    /// Every register reads all ones, or the function was removed.
    #[error("the controller is gone: its registers read all ones")]
    Gone,
    /// An admin command ended with an error status.
    #[error("{command} failed: {status}")]
    Status {
        /// The command's name.
        command: &'static str,
        /// What the controller answered.
        status: Status,
    },
    /// An I/O queue could be neither made nor taken back; its memory and identifier are not used again before a reset.
    #[error("{command} failed while taking back a queue that could not be made: {status}")]
    LeftBehind {
        /// The command's name.
        command: &'static str,
        /// What the controller answered.
        status: Status,
    },
    /// An admin command did not end in time.
    #[error("{command} did not end within {timeout:?}")]
    TimedOut {
        /// The command's name.
        command: &'static str,
        /// The deadline that it had.
        timeout: Duration,
    },
    /// The controller was reset while the operation waited.
    #[error("{0} was cancelled by a reset of the controller")]
    Cancelled(&'static str),
    /// The controller was given up by an earlier failure of recovery, or was shut down.
    #[error("the controller is out of service: {0}")]
    OutOfService(String),
    /// Recovery would have to go further than the setting allows.
    #[error("recovery stopped at its limit: {0}")]
    RecoveryLimit(crate::RecoveryLimit),
    /// The namespace is not active, or its format cannot be used.
    #[error("{}{reason}", of_namespace(*nsid))]
    Namespace {
        /// The namespace identifier, 0 where none was named.
        nsid: u32,
        /// What is wrong.
        reason: String,
    },
    /// No more I/O queues: the controller granted as many as there are already.
    #[error("all {granted} I/O queues that the controller granted are in use")]
    NoQueue {
        /// How many were granted.
        granted: u16,
    },
    /// A submission was refused before it reached the controller.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A command ended without success.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The size asked for is not one that a log page, a buffer or a transfer can have.
    #[error("{0}")]
    Length(String),
}

/// What a controller did or did not do when it was enabled or disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotReady {
    /// `CSTS.RDY` did not become 1.
    #[error("did not become ready within {0:?}")]
    Enable(Duration),
    /// `CSTS.RDY` did not become 0.
    #[error("did not stop within {0:?}")]
    Disable(Duration),
    /// `CSTS.CFS` was set.
    #[error("reports a fatal status")]
    Fatal,
    /// `CSTS.RDY` became 0 without having been asked to, as after a reset by somebody else.
    #[error("has stopped by itself, or was reset by somebody else")]
    Stopped,
}

/// What a message about a namespace begins with.
fn of_namespace(nsid: u32) -> String {
    match nsid {
        0 => String::new(),
        nsid => format!("namespace {nsid}: "),
    }
}

/// Why a submission was refused. Nothing of it has reached the controller.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many commands are in flight as the queue has slots: poll first.
    #[error("the queue is full")]
    QueueFull,
    /// The blocks do not lie inside the namespace.
    #[error(
        "the range from LBA {lba} on, {blocks} long, reaches past the end of the namespace, which has {size} blocks"
    )]
    OutOfRange {
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
        /// How many blocks the namespace has.
        size: u64,
    },
    /// The length is zero or not a multiple of the block size.
    #[error(
        "a length of {length} bytes is not a positive multiple of the block size, {block} bytes"
    )]
    Length {
        /// The length of the buffer, in bytes.
        length: usize,
        /// The block size, in bytes.
        block: u32,
    },
    /// One command cannot carry so many bytes, or it was to carry none.
    #[error("one command of this queue carries 1 to {limit} bytes, and not {length}")]
    TooLong {
        /// The length of the buffer, in bytes.
        length: usize,
        /// The most that a command carries.
        limit: usize,
    },
    /// The buffer's address is not a multiple of four, which a PRP entry must be.
    #[error("the buffer's address {iova:#x} is not a multiple of 4")]
    Misaligned {
        /// Where the device would see it.
        iova: u64,
    },
    /// A vector cannot be cut into commands: a segment ends neither on a page nor on a block.
    #[error("segment {segment} ends neither on a memory page nor on a whole block")]
    Segment {
        /// Its index.
        segment: usize,
    },
    /// The buffer is mapped in another domain (that of another group), where this queue's controller cannot see it.
    #[error("the buffer is mapped for another IOMMU domain than the queue's")]
    ForeignBuffer,
    /// The namespace belongs to another controller.
    #[error("the namespace belongs to another controller than the queue")]
    ForeignNamespace,
    /// The controller was reset: poll until all commands are reported, then call [`rebuild`](crate::IoQueue::rebuild).
    #[error("the controller was reset and the queue must be rebuilt")]
    Reset,
    /// The controller is gone, or was given up.
    #[error("the controller is gone")]
    Gone,
    /// The queue was deleted: call [`rebuild`](crate::IoQueue::rebuild) first.
    #[error("the queue was deleted and must be rebuilt")]
    Deleted,
}

/// A submission that was refused, with what was to be submitted.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    pub error: SubmitError,
    /// The buffer, given back.
    pub buffer: Option<Buffer>,
    /// The buffers of a vector, given back.
    pub vector: Option<Box<Vec<Buffer>>>,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Submit(refused.error)
    }
}

/// Why a command that was submitted did not succeed.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// The controller answered with an error status.
    #[error("{0}")]
    Status(Status),
    /// The command did not end in time. Its buffer is in quarantine.
    #[error("the command did not end in time")]
    TimedOut,
    /// The controller was reset. Whether the command took effect is not known.
    #[error("the command was cancelled by a reset of the controller")]
    Reset,
    /// The controller is gone. Whether the command took effect is not known.
    #[error("the controller is gone")]
    Gone,
    /// The queue was deleted. Whether the command took effect is not known.
    #[error("the command was cancelled by the deletion of its queue")]
    Deleted,
}
