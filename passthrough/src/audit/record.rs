//! A command as it waits in a ring: small, and without a pointer into anything that changes.

use std::time::Instant;

use nvme_vfio_queues::Status;

use crate::client::Identity;
use crate::command::{
    Access, Class, DecodedCommand, Direction, Extent, Flags, Persistence, QueueKind, Scope,
};
use crate::verdict::Verdict;

/// Extents of a command that its record keeps one by one. Of the others it keeps how many they are, and their blocks.
pub(super) const KEPT_EXTENTS: usize = 4;

/// One command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// When it was judged.
    pub(super) at: Instant,
    /// From then to its end, in nanoseconds; `None` where the audit does not see the end.
    pub(super) latency: Option<u64>,
    pub(super) identity: Identity,
    pub(super) verdict: Verdict,
    /// What it ended with; `None` where the audit does not see the end.
    pub(super) status: Option<Status>,
    pub(super) what: What,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// It was understood.
    Decoded(Decoded),
    /// It was not: the entry as it was copied.
    Raw { queue: QueueKind, entry: [u32; 16] },
}

/// A [`DecodedCommand`] without its borrow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoded {
    pub(super) queue: QueueKind,
    pub(super) opcode: u8,
    pub(super) name: &'static str,
    pub(super) class: Class,
    pub(super) direction: Direction,
    pub(super) nsid: u32,
    pub(super) scope: Scope,
    pub(super) persistence: Persistence,
    pub(super) bytes: u64,
    pub(super) flags: Flags,
    pub(super) selector: u8,
    pub(super) detail: &'static str,
    pub(super) operands: [u32; 8],
    /// Extents, also those that are not kept.
    pub(super) ranges: u32,
    /// Blocks of all extents.
    pub(super) blocks: u64,
    extents: [Extent; KEPT_EXTENTS],
}

impl Decoded {
    pub(super) fn new(command: &DecodedCommand<'_>) -> Decoded {
        let nothing = Extent {
            nsid: 0,
            first: 0,
            blocks: 0,
            access: Access::Read,
        };
        let mut extents = [nothing; KEPT_EXTENTS];
        for (kept, extent) in extents.iter_mut().zip(command.extents) {
            *kept = *extent;
        }
        let blocks = |sum: u64, extent: &Extent| sum.saturating_add(extent.blocks);
        Decoded {
            queue: command.queue,
            opcode: command.opcode,
            name: command.name,
            class: command.class,
            direction: command.direction,
            nsid: command.nsid,
            scope: command.scope,
            persistence: command.persistence,
            bytes: command.length,
            flags: command.flags,
            selector: command.selector,
            detail: command.detail,
            operands: command.operands,
            ranges: u32::try_from(command.extents.len()).unwrap_or(u32::MAX),
            blocks: command.extents.iter().fold(0, blocks),
            extents,
        }
    }

    /// The extents that are kept.
    pub(super) fn extents(&self) -> &[Extent] {
        let kept = usize::try_from(self.ranges).unwrap_or(KEPT_EXTENTS);
        self.extents.get(..kept).unwrap_or(&self.extents)
    }
}
