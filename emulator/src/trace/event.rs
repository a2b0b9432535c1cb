//! What a trace tells.

use serde::{Serialize, Serializer};

use crate::iommu::{DmaOrigin, FaultReason};

/// One thing that happened. Its order among the others is `sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TraceRecord {
    /// Counted from 0 since the trace began, lost ones included.
    pub sequence: u64,
    /// The controller's step in which it happened, or after which.
    pub step: u64,
    /// Nanoseconds since the first record; only where a thread steps the controller, since it differs from run to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    /// What happened.
    #[serde(flatten)]
    pub event: TraceEvent,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TraceEvent {
    /// The host wrote a register.
    RegisterWrite {
        /// Offset in BAR 0.
        offset: u32,
        /// 4 or 8; others are ignored by the controller.
        bytes: usize,
        /// The value.
        #[serde(serialize_with = "hex")]
        value: u64,
    },
    /// The host wrote configuration space.
    ConfigWrite {
        /// Offset.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The controller saw a new doorbell value. Values that were overwritten before it looked are not seen, as on a real device.
    Doorbell {
        /// Queue identifier.
        qid: u16,
        /// Whether it is the completion queue's head, rather than the submission queue's tail.
        completion: bool,
        /// The value.
        value: u32,
    },
    /// A command was fetched.
    Command {
        /// Submission queue.
        sqid: u16,
        /// Command identifier.
        cid: u16,
        /// Opcode.
        opcode: u8,
        /// Namespace identifier.
        nsid: u32,
        /// The whole entry, as dwords.
        dwords: [u32; 16],
    },
    /// A completion entry was posted, as it is in memory.
    Completion {
        /// Completion queue.
        cqid: u16,
        /// Submission queue identifier in the entry.
        sqid: u16,
        /// Command identifier in the entry.
        cid: u16,
        /// The status field, 15 bits.
        status: u16,
        /// Dword 0.
        result: u32,
        /// SQ head pointer.
        sq_head: u16,
    },
    /// A command that is not implemented was answered with Invalid Command Opcode.
    Unimplemented {
        /// Submission queue.
        sqid: u16,
        /// Command identifier.
        cid: u16,
        /// Opcode.
        opcode: u8,
    },
    /// An access to memory was translated.
    Dma {
        /// First byte, as the device sees it.
        #[serde(serialize_with = "hex")]
        iova: u64,
        /// Bytes.
        length: u64,
        /// Which way.
        direction: DmaDirection,
        /// What for.
        #[serde(flatten)]
        purpose: TracePurpose,
    },
    /// An access to memory was refused by the software IOMMU.
    IommuFault {
        /// First byte that could not be reached.
        #[serde(serialize_with = "hex")]
        iova: u64,
        /// Bytes from there that were wanted.
        length: u64,
        /// Which way.
        direction: DmaDirection,
        /// What for.
        #[serde(flatten)]
        purpose: TracePurpose,
        /// Why.
        #[serde(serialize_with = "debug")]
        reason: FaultReason,
    },
    /// A fault was armed.
    FaultArmed {
        /// Which.
        fault: String,
    },
    /// A fault befell a command.
    Fault {
        /// Submission queue.
        sqid: u16,
        /// Command identifier.
        cid: u16,
        /// Which.
        fault: String,
    },
    /// CSTS.CFS was set.
    Fatal {
        /// Why.
        why: String,
    },
    /// CC.EN was taken back and the controller is disabled, or the function was reset.
    Reset {
        /// Whether it was a function-level reset.
        function: bool,
    },
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DmaDirection {
    /// From the host's memory.
    FromHost,
    /// To the host's memory.
    ToHost,
}

/// What an access to memory was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum TracePurpose {
    /// Entries of a submission queue.
    SubmissionFetch {
        /// Its identifier.
        sqid: u16,
    },
    /// An entry of a completion queue.
    CompletionPost {
        /// Its identifier.
        cqid: u16,
    },
    /// A PRP list.
    PrpList {
        /// The command's submission queue.
        sqid: u16,
        /// The command's identifier.
        cid: u16,
    },
    /// A command's data.
    Data {
        /// The command's submission queue.
        sqid: u16,
        /// The command's identifier.
        cid: u16,
    },
}

impl From<DmaOrigin> for TracePurpose {
    fn from(origin: DmaOrigin) -> TracePurpose {
        match origin {
            DmaOrigin::SubmissionFetch(sqid) => TracePurpose::SubmissionFetch { sqid },
            DmaOrigin::CompletionPost(cqid) => TracePurpose::CompletionPost { cqid },
            DmaOrigin::PrpList(command) => TracePurpose::PrpList {
                sqid: command.sqid,
                cid: command.cid,
            },
            DmaOrigin::Data(command) => TracePurpose::Data {
                sqid: command.sqid,
                cid: command.cid,
            },
        }
    }
}

fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

fn debug<S: Serializer>(value: &impl std::fmt::Debug, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:?}"))
}
