//! The NVM command set (NVM command set specification 1.0, 3): what is checked here and then handed to the back end.

use nvme_vfio_dma::Access;
use nvme_vfio_queues::Status;

use crate::backend::{Operation, Request};
use crate::command::Entry;
use crate::controller::Core;
use crate::execute::{Reply, Run};
use crate::flight::Flight;
use crate::iommu::{DeviceMemory, DmaOrigin, FaultingCommand, Segment};
use crate::namespaces::{BROADCAST, Named};
use crate::prp::{self, Extent};

pub(crate) const FLUSH: u8 = 0x00;
pub(crate) const WRITE: u8 = 0x01;
pub(crate) const READ: u8 = 0x02;
pub(crate) const COMPARE: u8 = 0x05;
pub(crate) const WRITE_ZEROES: u8 = 0x08;

/// The opcodes that this module implements.
pub(crate) const OPCODES: [u8; 5] = [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES];

/// What a checked command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    operation: Operation,
    /// Identifier of the namespace, 0 for all.
    namespace: u32,
    offset: u64,
    length: u64,
    force_unit_access: bool,
}

impl Plan {
    /// Which access the command's data needs; `None` when it has no data.
    fn access(&self) -> Option<Access> {
        match self.operation {
            Operation::Read => Some(Access::DEVICE_WRITE),
            Operation::Write | Operation::Compare => Some(Access::DEVICE_READ),
            _ => None,
        }
    }
}

/// Checks all of a command but its memory.
fn plan(core: &mut Core, entry: &Entry) -> Result<Plan, Status> {
    let operation = match entry.opcode() {
        FLUSH => Operation::Flush,
        WRITE => Operation::Write,
        READ => Operation::Read,
        COMPARE => Operation::Compare,
        WRITE_ZEROES => Operation::WriteZeroes,
        opcode => {
            tracing::debug!(
                opcode,
                cid = entry.cid(),
                "I/O command that is not implemented"
            );
            core.statistics.unsupported_commands += 1;
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
    };
    let nsid = entry.nsid();
    if operation == Operation::Flush && nsid == BROADCAST && core.config.vwc {
        return Ok(Plan {
            operation,
            namespace: 0,
            offset: 0,
            length: 0,
            force_unit_access: false,
        });
    }
    let Some(namespace) = core.namespaces.active(nsid) else {
        return Err(inactive(core, nsid));
    };
    if operation == Operation::Flush {
        return Ok(Plan {
            operation,
            namespace: nsid,
            offset: 0,
            length: 0,
            force_unit_access: false,
        });
    }
    let dword12 = entry.dword(12);
    let (slba, blocks) = (entry.slba(), u64::from(entry.blocks()));
    let length = blocks << namespace.shift;
    // Write Zeroes moves no data, so MDTS does not bound it.
    if operation != Operation::WriteZeroes && length > core.config.transfer_max() {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // Directives are not offered, so a directive type is an illegal value. In Write Zeroes the field is a bit shorter.
    let directive = match operation {
        Operation::Write => dword12 >> 20 & 0xf,
        Operation::WriteZeroes => dword12 >> 20 & 0x7,
        _ => 0,
    };
    if directive != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if !namespace.holds(slba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    let force_unit_access = dword12 & 1 << 30 != 0;
    Ok(Plan {
        operation,
        namespace: nsid,
        offset: slba << namespace.shift,
        length,
        force_unit_access,
    })
}

/// Why a command cannot work on a namespace that is not attached.
#[cold]
pub(crate) fn inactive(core: &Core, nsid: u32) -> Status {
    match core.namespaces.named(nsid) {
        Named::Invalid => Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(),
        _ => Status::INVALID_FIELD.with_dnr(),
    }
}

fn faulting(sqid: u16, entry: &Entry) -> FaultingCommand {
    FaultingCommand {
        sqid,
        cid: entry.cid(),
        opcode: entry.opcode(),
    }
}

/// Where the command's data is, as its PRPs say; `None` when it has none or is wrong in any way.
pub(crate) fn extents(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Option<Vec<Extent>> {
    let unsupported = core.statistics.unsupported_commands;
    let plan = plan(core, entry);
    // The command will be counted when it runs.
    core.statistics.unsupported_commands = unsupported;
    let plan = plan.ok()?;
    plan.access()?;
    let mut extents = Vec::new();
    prp::walk(
        entry,
        plan.length,
        core.page(),
        memory,
        faulting(sqid, entry),
        &mut extents,
    )
    .ok()?;
    Some(extents)
}

/// Finds the mappings behind extents, all of them before anything is moved.
pub(crate) fn translate(
    extents: &[Extent],
    access: Access,
    memory: &DeviceMemory<'_>,
    command: FaultingCommand,
    segments: &mut Vec<Segment>,
) -> Result<(), Status> {
    for extent in extents {
        let mut done = 0;
        while done < extent.length {
            let at = extent.iova.wrapping_add(u64::from(done));
            let left = (extent.length - done) as usize;
            let segment = memory
                .translate(at, left, access, DmaOrigin::Data(command))
                .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            done += segment.length;
            segments.push(segment);
        }
    }
    Ok(())
}

/// Checks a command and adds it to the batch.
pub(crate) fn start(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    run: Run,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let plan = plan(core, entry)?;
    let first = core.scratch.segments.len();
    if let Some(access) = plan.access() {
        let command = faulting(sqid, entry);
        let page = core.page();
        let scratch = &mut core.scratch;
        let found = match &run.extents {
            Some(extents) => translate(extents, access, memory, command, &mut scratch.segments),
            None => {
                scratch.extents.clear();
                prp::walk(
                    entry,
                    plan.length,
                    page,
                    memory,
                    command,
                    &mut scratch.extents,
                )
                .and_then(|()| {
                    translate(
                        &scratch.extents,
                        access,
                        memory,
                        command,
                        &mut scratch.segments,
                    )
                })
            }
        };
        if let Err(status) = found {
            scratch.segments.truncate(first);
            return Err(status);
        }
    }
    if let Some(queue) = core.submission(sqid) {
        queue.in_flight += 1;
    }
    let tag = core.flights.start(Flight {
        sqid,
        cid: entry.cid(),
        operation: plan.operation,
        nsid: entry.nsid(),
        lba: entry.slba(),
        bytes: plan.length,
        silent: run.silent,
        number: 0,
    });
    core.scratch.requests.push(Request {
        tag,
        operation: plan.operation,
        namespace: plan.namespace,
        offset: plan.offset,
        length: plan.length,
        segments: first as u32..core.scratch.segments.len() as u32,
        force_unit_access: plan.force_unit_access,
    });
    Ok(Reply::Backend)
}
