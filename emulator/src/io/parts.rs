//! The commands that work range by range: Dataset Management and Copy. One range is with the back end at a time, so that a Copy that
//! fails can tell how many ranges were done.

use std::collections::VecDeque;

use nvme_vfio_queues::Status;

use super::{inactive, range, receive, unreadable};
use crate::backend::{Operation, Request};
use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::flight::Flight;
use crate::iommu::DeviceMemory;

/// Attribute Deallocate, bit 2 of dword 11 of Dataset Management.
const DEALLOCATE: u32 = 1 << 2;

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blocks {
    nsid: u32,
    first: u64,
    count: u64,
}

/// What is done to one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// The blocks that change.
    to: Blocks,
    /// What they get: a copy, or nothing when they are deallocated.
    from: Option<Blocks>,
}

/// What is left of a command, kept by the tag of the part that is with the back end.
#[derive(Debug, Default)]
pub(crate) struct Job {
    rest: VecDeque<Part>,
    /// Ranges that are done.
    done: u32,
    /// Dword 0 of a completion that succeeds.
    answer: u32,
    force_unit_access: bool,
}

impl Job {
    /// Nothing is left, but the answer is unusual.
    pub(super) fn answering(answer: u32) -> Job {
        Job {
            answer,
            ..Job::default()
        }
    }

    /// Whether a range of this namespace is still to be read or changed.
    pub(crate) fn touches(&self, nsid: u32) -> bool {
        let touches = |blocks: &Blocks| blocks.nsid == nsid;
        self.rest
            .iter()
            .any(|part| touches(&part.to) || part.from.as_ref().is_some_and(touches))
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    field::<2>(bytes, offset) as u16
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    field::<4>(bytes, offset) as u32
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    field::<8>(bytes, offset)
}

/// `N` bytes, lowest first.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    let own = bytes.get(offset..offset + N).unwrap_or_default();
    own.iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Dataset Management. Without Deallocate it is advice, which is checked and not followed.
pub(super) fn dataset_management(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let (namespace, ..) = range(core, entry)?;
    let nsid = namespace.nsid;
    if namespace.busy {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    let count = (entry.dword(10) & 0xff) as usize + 1;
    let limits = core.config.limits;
    let too_much = Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
    if limits.dmrl != 0 && count > usize::from(limits.dmrl) {
        return too_much;
    }
    let data = receive(core, sqid, entry, count * 16, memory)?;
    let mut rest = VecDeque::new();
    let mut total = 0u64;
    for raw in data.chunks_exact(16) {
        // The length is 1's based here, and 0 names no block.
        let to = Blocks {
            nsid,
            first: u64_at(raw, 8),
            count: u64::from(u32_at(raw, 4)),
        };
        total += to.count;
        let fits = core
            .namespaces
            .active(nsid)
            .is_some_and(|namespace| namespace.holds(to.first, to.count));
        if !fits {
            core.failed_lba = Some(to.first);
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        if limits.dmrsl != 0 && to.count > u64::from(limits.dmrsl)
            || limits.dmsl != 0 && total > limits.dmsl
        {
            return too_much;
        }
        if to.count > 0 {
            rest.push_back(Part { to, from: None });
        }
    }
    if entry.dword(11) & DEALLOCATE == 0 {
        return Ok(Reply::Now(0));
    }
    begin(
        core,
        sqid,
        entry,
        silent,
        Job {
            rest,
            ..Job::default()
        },
    )
}

/// Copy, descriptor formats 0 to 3. Without protection information the formats differ only in length and in that 2 and 3 name a source
/// namespace.
pub(super) fn copy(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let invalid = Err(Status::INVALID_FIELD.with_dnr());
    let (namespace, destination, _) = range(core, entry)?;
    let (nsid, shift) = (namespace.nsid, namespace.shift);
    if namespace.busy {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    let dword12 = entry.dword(12);
    let (count, format) = ((dword12 & 0xff) as usize + 1, dword12 >> 8 & 0xf);
    // Formats 2 and 3 are for hosts that said so in Host Behavior Support.
    if format > 3 || format >= 2 && core.features.copy_formats() & 1 << format == 0 {
        return invalid;
    }
    if dword12 >> 20 & 0xf != 0 {
        return invalid;
    }
    let limits = core.config.limits;
    let too_much = Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
    if count > usize::from(limits.msrc) + 1 {
        return too_much;
    }
    let size = if format & 1 == 0 { 32 } else { 40 };
    let data = receive(core, sqid, entry, count * size, memory)?;
    let sources = data.chunks_exact(size).map(|raw| Blocks {
        nsid: if format >= 2 { u32_at(raw, 0) } else { nsid },
        first: u64_at(raw, 8),
        count: u64::from(u16_at(raw, 16)) + 1,
    });
    let mut rest = VecDeque::new();
    let mut total = 0u64;
    for from in sources {
        if from.count > u64::from(limits.mssrl) {
            return too_much;
        }
        let to = Blocks {
            nsid,
            first: destination.wrapping_add(total),
            count: from.count,
        };
        total += from.count;
        rest.push_back(Part {
            to,
            from: Some(from),
        });
    }
    if total > u64::from(limits.mcl) {
        return too_much;
    }
    let fits = core
        .namespaces
        .active(nsid)
        .is_some_and(|namespace| namespace.holds(destination, total));
    if !fits {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    for from in rest.iter().filter_map(|part| part.from) {
        let Some(source) = core.namespaces.active(from.nsid) else {
            return Err(inactive(core, from.nsid));
        };
        if source.busy {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        if source.shift != shift {
            return Err(Status::INCOMPATIBLE_NAMESPACE_OR_FORMAT.with_dnr());
        }
        if !source.holds(from.first, from.count) {
            core.failed_lba = Some(from.first);
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        // Formats 0 and 1 leave what becomes of overlapping ranges open.
        let overlaps = from.first < destination + total && destination < from.first + from.count;
        if format >= 2 && from.nsid == nsid && overlaps {
            return Err(Status::OVERLAPPING_IO_RANGE.with_dnr());
        }
    }
    let job = Job {
        rest,
        force_unit_access: dword12 & 1 << 30 != 0,
        ..Job::default()
    };
    begin(core, sqid, entry, silent, job)
}

/// Starts the first range, if there is one.
fn begin(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
    job: Job,
) -> Result<Reply, Status> {
    let flight = Flight {
        sqid,
        cid: entry.cid(),
        operation: Some(Operation::Deallocate),
        nsid: entry.nsid(),
        lba: entry.slba(),
        bytes: 0,
        silent,
        number: 0,
    };
    if job.rest.is_empty() {
        return Ok(Reply::Now(0));
    }
    next(core, flight, job)?;
    if let Some(queue) = core.submission(sqid) {
        queue.in_flight += 1;
    }
    Ok(Reply::Backend)
}

/// Hands the next range to the back end.
fn next(core: &mut Core, flight: Flight, mut job: Job) -> Result<(), Status> {
    let Some(part) = job.rest.pop_front() else {
        return Ok(());
    };
    let mut operation = Operation::Deallocate;
    if let Some(from) = part.from {
        let source = core.namespaces.active(from.nsid);
        let source = source.ok_or(Status::INVALID_FIELD)?;
        let holes = core.features.holes_are_errors(from.nsid);
        if let Some(why) = source.unreadable(from.first, from.count, holes) {
            return Err(unreadable(core, why));
        }
        operation = Operation::Copy {
            namespace: from.nsid,
            offset: from.first << source.shift,
        };
    }
    let to = part.to;
    let namespace = core.namespaces.get_mut(to.nsid);
    let namespace = namespace.ok_or(Status::INVALID_FIELD)?;
    if part.from.is_some() {
        namespace.write(to.first, to.count);
    } else {
        namespace.deallocate(to.first, to.count);
    }
    let (offset, length) = (to.first << namespace.shift, to.count << namespace.shift);
    let tag = core.flights.start(Flight {
        operation: Some(operation),
        bytes: length,
        ..flight
    });
    core.scratch.requests.push(Request {
        tag,
        operation,
        namespace: to.nsid,
        offset,
        length,
        segments: 0..0,
        force_unit_access: job.force_unit_access || core.features.writes_through(),
    });
    core.jobs.insert(tag, job);
    Ok(())
}

/// What becomes of a command whose range ended: `None` when another range is under way, else its status, and dword 0 of its completion.
pub(crate) fn landed(
    core: &mut Core,
    flight: &Flight,
    mut job: Job,
    status: Status,
) -> Option<(Status, u32)> {
    if !status.is_success() {
        return Some((status, job.done));
    }
    job.done += 1;
    if job.rest.is_empty() {
        return Some((Status::SUCCESS, job.answer));
    }
    let done = job.done;
    next(core, *flight, job).err().map(|status| (status, done))
}
