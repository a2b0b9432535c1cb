//! Creating and deleting I/O queues.

use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::flight::Completion;
use crate::iommu::DeviceMemory;
use crate::queue::{CompletionQueue, SubmissionQueue};

/// The identifiers that may be used: as many as were granted.
fn granted(core: &Core) -> u16 {
    let granted = core.features.queue_pairs();
    core.faults
        .queue_grant()
        .map_or(granted, |fault| granted.min(fault))
        .min(core.config.queues)
}

/// What both create commands check: identifier, size, contiguity, address. The queue's size in entries.
fn check(
    core: &Core,
    entry: &Entry,
    exists: bool,
    entry_size: u32,
    wanted_size: u32,
) -> Result<u32, Status> {
    let (qid, size) = (entry.dword(10) as u16, (entry.dword(10) >> 16) + 1);
    if qid == 0 || qid > granted(core) || exists {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    }
    // CC.IOSQES or CC.IOCQES may have been left 0 so far.
    if size < 2 || size > core.config.mqes || entry_size != wanted_size {
        return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
    }
    // CAP.CQR: queues are physically contiguous.
    if entry.dword(11) & 1 == 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if !entry.prp1().is_multiple_of(core.page()) {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    Ok(size)
}

pub(super) fn create_completion(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let qid = entry.dword(10) as u16;
    let exists = core.completion(qid).is_some();
    let size = check(core, entry, exists, core.registers.cc.iocqes(), 4)?;
    let vector = (entry.dword(11) >> 16) as u16;
    let interrupts = entry.dword(11) & 1 << 1 != 0;
    if vector >= core.interrupts.vectors() {
        return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
    }
    core.start_doorbell(qid, true, memory);
    if let Some(place) = core.completion.get_mut(usize::from(qid)) {
        let mut queue = CompletionQueue::new(entry.prp1(), size);
        queue.vector = interrupts.then_some(vector);
        *place = Some(queue);
    }
    Ok(Reply::Now(0))
}

pub(super) fn create_submission(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let qid = entry.dword(10) as u16;
    let exists = core.submission(qid).is_some();
    let size = check(core, entry, exists, core.registers.cc.iosqes(), 6)?;
    let cqid = (entry.dword(11) >> 16) as u16;
    if cqid == 0 || cqid > granted(core) {
        return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
    }
    let completion = core
        .completion(cqid)
        .ok_or(Status::COMPLETION_QUEUE_INVALID.with_dnr())?;
    completion.users += 1;
    core.start_doorbell(qid, false, memory);
    if let Some(place) = core.submission.get_mut(usize::from(qid)) {
        *place = Some(SubmissionQueue::new(entry.prp1(), size, cqid));
    }
    core.active.push(qid);
    Ok(Reply::Now(0))
}

pub(super) fn delete_completion(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let qid = entry.dword(10) as u16;
    let users = match core.completion(qid) {
        Some(queue) if qid != 0 => queue.users,
        _ => return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr()),
    };
    if users > 0 {
        return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
    }
    if let Some(place) = core.completion.get_mut(usize::from(qid)) {
        *place = None;
    }
    core.clear_doorbell(qid, true);
    Ok(Reply::Now(0))
}

/// Deletes a submission queue. What a fault holds is dropped, its data too: success proves that the queue's memory was let go. What the
/// back end still has is waited for.
pub(super) fn delete_submission(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let qid = entry.dword(10) as u16;
    let in_flight = match core.submission(qid) {
        Some(queue) if qid != 0 && !queue.deleting => {
            queue.deleting = true;
            queue.in_flight
        }
        _ => return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr()),
    };
    core.forget_queue(qid);
    core.active.retain(|&active| active != qid);
    if in_flight > 0 {
        core.deletions.push((entry.cid(), qid));
        return Ok(Reply::Later);
    }
    remove(core, qid);
    Ok(Reply::Now(0))
}

fn remove(core: &mut Core, qid: u16) {
    let Some(queue) = core
        .submission
        .get_mut(usize::from(qid))
        .and_then(Option::take)
    else {
        return;
    };
    if let Some(completion) = core.completion(queue.cqid) {
        completion.users = completion.users.saturating_sub(1);
    }
    core.clear_doorbell(qid, false);
}

/// Answers the deletions whose queues have nothing in flight any more.
pub(crate) fn finish_deletions(core: &mut Core, memory: &DeviceMemory<'_>) {
    let mut index = 0;
    while let Some(&(cid, qid)) = core.deletions.get(index) {
        let busy = core
            .submission(qid)
            .is_some_and(|queue| queue.in_flight > 0);
        if busy || !core.reserve(0) {
            index += 1;
            continue;
        }
        core.deletions.remove(index);
        remove(core, qid);
        let done = Completion {
            sqid: 0,
            cid,
            result: 0,
            status: Status::SUCCESS,
        };
        core.post(&done, memory);
    }
}
