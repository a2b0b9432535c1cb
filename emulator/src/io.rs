//! The NVM command set (NVM command set specification 1.0, 3): what is checked here and then handed to the back end.
//!
//! Here are the commands that move data, which every program's speed hangs on; the others are one call away.

mod blocks;
mod parts;

pub(crate) use parts::{Job, landed};

use nvme_vfio_dma::Access;
use nvme_vfio_queues::Status;

use crate::backend::{Operation, Request};
use crate::command::Entry;
use crate::config::Offers;
use crate::controller::Core;
use crate::execute::{Reply, Run};
use crate::flight::Flight;
use crate::iommu::{DeviceMemory, DmaOrigin, FaultingCommand, Segment};
use crate::namespaces::{BROADCAST, Named, Namespace};
use crate::prp::{self, Extent};

pub(crate) const FLUSH: u8 = 0x00;
pub(crate) const WRITE: u8 = 0x01;
pub(crate) const READ: u8 = 0x02;
pub(crate) const WRITE_UNCORRECTABLE: u8 = 0x04;
pub(crate) const COMPARE: u8 = 0x05;
pub(crate) const WRITE_ZEROES: u8 = 0x08;
pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
pub(crate) const VERIFY: u8 = 0x0c;
pub(crate) const COPY: u8 = 0x19;

/// The opcodes that this module implements.
pub(crate) const OPCODES: [u8; 9] = [
    FLUSH,
    WRITE,
    READ,
    WRITE_UNCORRECTABLE,
    COMPARE,
    WRITE_ZEROES,
    DATASET_MANAGEMENT,
    VERIFY,
    COPY,
];

/// Those that change what blocks hold.
pub(crate) const CHANGING: [u8; 5] = [
    WRITE,
    WRITE_UNCORRECTABLE,
    WRITE_ZEROES,
    DATASET_MANAGEMENT,
    COPY,
];

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
    /// Which access the command's data needs.
    fn access(&self) -> Access {
        match self.operation {
            Operation::Read => Access::DEVICE_WRITE,
            _ => Access::DEVICE_READ,
        }
    }
}

/// The blocks that a command names, all of them inside an attached namespace.
fn range<'a>(core: &'a Core, entry: &Entry) -> Result<(&'a Namespace, u64, u64), Status> {
    let nsid = entry.nsid();
    let Some(namespace) = core.namespaces.active(nsid) else {
        return Err(inactive(core, nsid));
    };
    Ok((namespace, entry.slba(), u64::from(entry.blocks())))
}

/// Checks all of a Read, Write or Compare but its memory. Limited Retry, the protection information field, the storage tag check, the
/// dataset management field and the tags say nothing about a namespace without protection information.
fn plan(core: &Core, entry: &Entry) -> Result<Plan, Status> {
    let operation = match entry.opcode() {
        READ => Operation::Read,
        WRITE => Operation::Write,
        _ if core.config.offers.contains(Offers::COMPARE) => Operation::Compare,
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    let (namespace, slba, blocks) = range(core, entry)?;
    let dword12 = entry.dword(12);
    let length = blocks << namespace.shift;
    if length > core.config.transfer_max() {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // Directives are not offered, so a directive type is an illegal value.
    if operation == Operation::Write && dword12 >> 20 & 0xf != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if !namespace.holds(slba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    Ok(Plan {
        operation,
        namespace: namespace.nsid,
        offset: slba << namespace.shift,
        length,
        force_unit_access: dword12 & 1 << 30 != 0
            || operation == Operation::Write && core.features.writes_through(),
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
    if !matches!(entry.opcode(), READ | WRITE | COMPARE) {
        return None;
    }
    let plan = plan(core, entry).ok()?;
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
    if !matches!(entry.opcode(), READ | WRITE | COMPARE) {
        return others(core, sqid, entry, run.silent, memory);
    }
    let plan = plan(core, entry)?;
    let marked = core
        .namespaces
        .active(plan.namespace)
        .is_some_and(Namespace::marked);
    if marked {
        readable(core, &plan, entry)?;
    }
    let first = core.scratch.segments.len();
    let command = faulting(sqid, entry);
    let page = core.page();
    let scratch = &mut core.scratch;
    let (access, segments) = (plan.access(), &mut scratch.segments);
    // A format since the command was fetched may have changed how long its data is.
    let kept = run.extents.as_ref().filter(|extents| {
        let length: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        length == plan.length
    });
    let found = match kept {
        Some(extents) => translate(extents, access, memory, command, segments),
        None => {
            let extents = &mut scratch.extents;
            extents.clear();
            prp::walk(entry, plan.length, page, memory, command, extents)
                .and_then(|()| translate(extents, access, memory, command, segments))
        }
    };
    if let Err(status) = found {
        scratch.segments.truncate(first);
        return Err(status);
    }
    if marked && plan.operation == Operation::Write {
        let blocks = u64::from(entry.blocks());
        if let Some(namespace) = core.namespaces.get_mut(plan.namespace) {
            namespace.write(entry.slba(), blocks);
        }
    }
    submit(core, sqid, entry, &plan, run.silent, first);
    Ok(Reply::Backend)
}

/// Whether a namespace that is being formatted, or has blocks that cannot be read, lets the command run.
#[cold]
fn readable(core: &mut Core, plan: &Plan, entry: &Entry) -> Result<(), Status> {
    let Some(namespace) = core.namespaces.active(plan.namespace) else {
        return Ok(());
    };
    if namespace.busy {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    if plan.operation == Operation::Write {
        return Ok(());
    }
    let (slba, blocks) = (entry.slba(), u64::from(entry.blocks()));
    let holes = core.features.holes_are_errors(namespace.nsid);
    match namespace.unreadable(slba, blocks, holes) {
        Some(why) => Err(unreadable(core, why)),
        None => Ok(()),
    }
}

/// A block cannot be read: named in the error log, and counted where it is the medium's fault.
fn unreadable(core: &mut Core, (lba, status): (u64, Status)) -> Status {
    if status == Status::UNRECOVERED_READ_ERROR {
        core.logs.media_error();
    }
    core.failed_lba = Some(lba);
    status
}

/// Hands a checked command over; its segments are those of the batch from `first` on. Its tag.
fn submit(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    plan: &Plan,
    silent: bool,
    first: usize,
) -> u32 {
    if let Some(queue) = core.submission(sqid) {
        queue.in_flight += 1;
    }
    let tag = core.flights.start(Flight {
        sqid,
        cid: entry.cid(),
        operation: Some(plan.operation),
        nsid: entry.nsid(),
        lba: entry.slba(),
        bytes: plan.length,
        silent,
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
    tag
}

/// Has the back end make all that was written durable, for nobody's command.
pub(crate) fn flush_all(core: &mut Core) {
    let tag = core.flights.start(Flight {
        sqid: 0,
        cid: 0,
        operation: Some(Operation::Flush),
        nsid: BROADCAST,
        lba: 0,
        bytes: 0,
        silent: true,
        number: 0,
    });
    core.scratch.requests.push(Request {
        tag,
        operation: Operation::Flush,
        namespace: 0,
        offset: 0,
        length: 0,
        segments: 0..0,
        force_unit_access: false,
    });
}

/// The commands that move no data of blocks.
#[inline(never)]
fn others(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    if !core.config.offers.contains(Offers::of_io(entry.opcode())) {
        core.statistics.unsupported_commands += 1;
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    match entry.opcode() {
        FLUSH => blocks::flush(core, sqid, entry, silent),
        WRITE_UNCORRECTABLE => blocks::write_uncorrectable(core, entry),
        WRITE_ZEROES => blocks::write_zeroes(core, sqid, entry, silent),
        VERIFY => blocks::verify(core, sqid, entry, silent),
        DATASET_MANAGEMENT => parts::dataset_management(core, sqid, entry, silent, memory),
        COPY => parts::copy(core, sqid, entry, silent, memory),
        opcode => {
            tracing::debug!(
                opcode,
                cid = entry.cid(),
                "I/O command that is not implemented"
            );
            core.statistics.unsupported_commands += 1;
            Err(Status::INVALID_OPCODE.with_dnr())
        }
    }
}

/// Fetches `length` bytes of data that describe the command, such as its ranges.
pub(crate) fn receive(
    core: &Core,
    sqid: u16,
    entry: &Entry,
    length: usize,
    memory: &DeviceMemory<'_>,
) -> Result<Vec<u8>, Status> {
    if length as u64 > core.config.transfer_max() {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let command = faulting(sqid, entry);
    let mut extents = Vec::new();
    prp::walk(
        entry,
        length as u64,
        core.page(),
        memory,
        command,
        &mut extents,
    )?;
    let mut segments = Vec::new();
    translate(
        &extents,
        Access::DEVICE_READ,
        memory,
        command,
        &mut segments,
    )?;
    let mut bytes = vec![0; length];
    let mut rest = bytes.as_mut_slice();
    for segment in &segments {
        let count = rest.len().min(segment.length as usize);
        let (now, later) = rest.split_at_mut(count);
        memory
            .read(segment, 0, now)
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        rest = later;
    }
    Ok(bytes)
}
