//! The real commands that parts of a client's command become.
#![allow(unsafe_code)] // The one place where entries with addresses go to a real controller.

use nvme_vfio::SubmitError;
use nvme_vfio_queues::{Command, DataPointer, NvmOpcode, Status, prp};

use super::data;
use super::flight::{Blocks, Flight, MOST_BLOCKS, Work};
use super::namespace::LentNamespace;
use super::ranges::RealRange;
use super::target::{Part, Target};

/// What became of the attempt to submit the next part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It was submitted.
    Submitted,
    /// It was submitted, and nothing more is before it has ended.
    SubmittedAlone,
    /// There is none.
    None,
    /// A slot has to become free, or a queue to come back.
    Wait,
    /// The queue was lost and is to be made anew.
    Lost,
    /// It cannot be: the command ends so.
    Fail(Status),
}

/// Room that is used again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    window: Vec<prp::Segment>,
    ranges: Vec<RealRange>,
}

/// What a part is, but for the data.
struct Place {
    flight: u32,
    since: u64,
}

/// Submits the next part of a command.
#[inline]
pub(super) fn next(
    slot: u16,
    flight: &mut Flight,
    namespace: &mut LentNamespace,
    targets: &mut [Target],
    scratch: &mut Scratch,
    now: u64,
) -> Next {
    let place = Place {
        flight: u32::from(slot),
        since: now,
    };
    match flight.work {
        Work::Done => Next::None,
        Work::Blocks(ref blocks) => {
            let blocks = *blocks;
            next_blocks(&blocks, flight, namespace, targets, scratch, &place)
        }
        _ => next_other(flight, namespace, targets, scratch, &place),
    }
}

/// Blocks that a command with this opcode may name on the controller.
#[inline]
fn most_blocks(blocks: &Blocks, target: &Target, shift: u8) -> u64 {
    let limits = &target.limits;
    if blocks.data {
        return (limits.transfer as u64 >> shift).min(MOST_BLOCKS);
    }
    let most = match NvmOpcode(blocks.opcode) {
        NvmOpcode::WRITE_ZEROES => limits.write_zeroes,
        NvmOpcode::WRITE_UNCORRECTABLE => limits.write_uncorrectable,
        _ => limits.verify,
    };
    u64::from(most).min(MOST_BLOCKS)
}

#[inline]
fn next_blocks(
    blocks: &Blocks,
    flight: &mut Flight,
    namespace: &mut LentNamespace,
    targets: &mut [Target],
    scratch: &mut Scratch,
    place: &Place,
) -> Next {
    if blocks.left == 0 {
        flight.work = Work::Done;
        return Next::None;
    }
    // Checked by the decoder, and here once more.
    let Some(piece) = namespace.map.piece(blocks.first, blocks.left, MOST_BLOCKS) else {
        return Next::Fail(Status::LBA_OUT_OF_RANGE.with_dnr());
    };
    let Some(target) = targets.get_mut(usize::from(piece.target)) else {
        return Next::Fail(Status::INTERNAL_ERROR);
    };
    let count = piece
        .blocks
        .min(most_blocks(blocks, target, namespace.shift));
    if count == 0 {
        return Next::Fail(Status::INTERNAL_ERROR);
    }
    if !blocks.data && target.is_laden() {
        return wait_for(target);
    }
    let Some((_, mut page)) = target.next_slot() else {
        return wait_for(target);
    };
    let length = if blocks.data {
        (count as usize) << namespace.shift
    } else {
        0
    };
    let pointer = if blocks.data {
        let described = data::pointer(
            &flight.data,
            blocks.skip,
            length,
            target.page,
            &mut page,
            &mut scratch.window,
        );
        match described {
            Ok(pointer) => pointer,
            Err(_) => return Next::Fail(Status::INTERNAL_ERROR),
        }
    } else {
        DataPointer::NONE
    };
    let command = Command {
        opcode: blocks.opcode,
        nsid: piece.nsid,
        prp1: pointer.prp1,
        prp2: pointer.prp2,
        cdw10: piece.lba as u32,
        cdw11: (piece.lba >> 32) as u32,
        cdw12: blocks.cdw12 | (count as u32 - 1),
        ..Command::ZERO
    };
    let part = Part {
        flight: place.flight,
        order: flight.next_order,
        since: place.since,
        heavy: !blocks.data,
    };
    // SAFETY: the data pointer is of the flight's `data`: memory that the client has lent, looked up with the access that the command needs and kept by the front end until the
    // flight is reported, or buffers that were taken for this flight; its list is the slot's own page.
    let submitted = unsafe { target.submit(command, part) };
    let next = taken(submitted, flight);
    if next == Next::Submitted {
        let left = blocks.left - count;
        flight.work = if left == 0 {
            Work::Done
        } else {
            Work::Blocks(Blocks {
                first: blocks.first + count,
                left,
                skip: blocks.skip + length,
                ..*blocks
            })
        };
    }
    next
}

/// What there is to do while a target has no slot.
#[cold]
fn wait_for(target: &Target) -> Next {
    if target.usable {
        Next::Wait
    } else {
        Next::Fail(Status::INTERNAL_ERROR)
    }
}

/// What the queue's answer means for the flight.
#[inline]
fn taken(submitted: Result<(), SubmitError>, flight: &mut Flight) -> Next {
    match submitted {
        Ok(()) => {
            flight.parts += 1;
            flight.next_order += 1;
            Next::Submitted
        }
        Err(SubmitError::QueueFull) => Next::Wait,
        // What was never submitted may be, when the queue was made anew.
        Err(SubmitError::Reset | SubmitError::Deleted) => Next::Lost,
        Err(_) => Next::Fail(Status::INTERNAL_ERROR),
    }
}

#[inline(never)]
fn next_other(
    flight: &mut Flight,
    namespace: &mut LentNamespace,
    targets: &mut [Target],
    scratch: &mut Scratch,
    place: &Place,
) -> Next {
    let order = flight.next_order;
    let heavy = matches!(flight.work, Work::Deallocate(..) | Work::Copy(..));
    let part = Part {
        flight: place.flight,
        order,
        since: place.since,
        heavy,
    };
    // Before anything is planned: whichever of its controllers comes next must be able to take a command.
    let all = match &flight.work {
        Work::FlushAll(all) => all.get(all.len().saturating_sub(1)..).unwrap_or_default(),
        _ => &namespace.flush,
    };
    let busy = all
        .iter()
        .filter_map(|(target, _)| targets.get(usize::from(*target)))
        .find(|target| target.next_slot().is_none() || heavy && target.is_laden());
    if let Some(target) = busy {
        return wait_for(target);
    }
    let (target, command, alone) = match &mut flight.work {
        Work::Flush(index) => {
            let Some(&(target, nsid)) = namespace.flush.get(*index) else {
                flight.work = Work::Done;
                return Next::None;
            };
            (target, Command::flush(nsid), false)
        }
        Work::FlushAll(all) => {
            let Some(&(target, nsid)) = all.last() else {
                flight.work = Work::Done;
                return Next::None;
            };
            (target, Command::flush(nsid), false)
        }
        Work::Deallocate(plan, cdw11) => {
            let cdw11 = *cdw11;
            let limits = |target: u16| {
                let target = targets.get(usize::from(target));
                target.map_or_else(Default::default, |target| target.limits.deallocate)
            };
            let (target, nsid) = match plan.next(&mut namespace.map, limits, &mut scratch.ranges) {
                Ok(Some(to)) => to,
                Ok(None) => {
                    flight.work = Work::Done;
                    return Next::None;
                }
                Err(status) => return Next::Fail(status),
            };
            let Some(prp1) = list(targets, target, &scratch.ranges, deallocated) else {
                return Next::Fail(Status::INTERNAL_ERROR);
            };
            let command = Command {
                opcode: NvmOpcode::DATASET_MANAGEMENT.0,
                nsid,
                prp1,
                cdw10: scratch.ranges.len() as u32 - 1,
                cdw11,
                ..Command::ZERO
            };
            (target, command, false)
        }
        Work::Copy(plan, cdw12) => {
            let cdw12 = *cdw12;
            let to = match plan.next(&mut namespace.map, &namespace.copy, &mut scratch.ranges) {
                Ok(Some(to)) => to,
                Ok(None) => {
                    flight.work = Work::Done;
                    return Next::None;
                }
                Err(status) => return Next::Fail(status),
            };
            let Some(prp1) = list(targets, to.target, &scratch.ranges, copied) else {
                return Next::Fail(Status::INTERNAL_ERROR);
            };
            let command = Command {
                opcode: NvmOpcode::COPY.0,
                nsid: to.nsid,
                prp1,
                cdw10: to.lba as u32,
                cdw11: (to.lba >> 32) as u32,
                // Descriptor format 0.
                cdw12: cdw12 | (scratch.ranges.len() as u32 - 1),
                ..Command::ZERO
            };
            (to.target, command, true)
        }
        Work::Done | Work::Blocks(_) => return Next::None,
    };
    let Some(target) = targets.get_mut(usize::from(target)) else {
        return Next::Fail(Status::INTERNAL_ERROR);
    };
    // SAFETY: the only address is that of the slot's own page, which holds the ranges just written.
    let submitted = unsafe { target.submit(command, part) };
    match taken(submitted, flight) {
        Next::Submitted => {
            match &mut flight.work {
                Work::Flush(index) => *index += 1,
                Work::FlushAll(all) => {
                    all.pop();
                }
                _ => {}
            }
            if alone {
                Next::SubmittedAlone
            } else {
                Next::Submitted
            }
        }
        // The plan has moved on: it cannot be asked again. A queue that was lost between the look and the submission ends the command as the reset does.
        Next::Wait | Next::Lost if !matches!(flight.work, Work::Flush(_) | Work::FlushAll(_)) => {
            Next::Fail(Status::COMMAND_INTERRUPTED)
        }
        other => other,
    }
}

/// Writes ranges into the page of the target's next slot; where the controller sees it.
fn list(
    targets: &[Target],
    target: u16,
    ranges: &[RealRange],
    words: impl Fn(&RealRange) -> RangeWords,
) -> Option<u64> {
    let (_, mut page) = targets.get(usize::from(target))?.next_slot()?;
    let mut at = 0;
    for range in ranges {
        let (count, words) = words(range);
        for word in words.iter().take(count) {
            page.put(at, *word);
            at += 1;
        }
    }
    Some(page.iova())
}

/// How many quadwords a range has, and they.
type RangeWords = (usize, [u64; 4]);

/// A range of Dataset Management (NVM command set 1.0, 3.2.3.1): attributes, length, starting LBA.
fn deallocated(range: &RealRange) -> RangeWords {
    (2, [u64::from(range.blocks) << 32, range.lba, 0, 0])
}

/// A source range of Copy, descriptor format 0 (NVM command set 1.0, 3.2.2): starting LBA at byte 8, number of blocks, counted from zero, at byte 16.
fn copied(range: &RealRange) -> RangeWords {
    (4, [0, range.lba, u64::from(range.blocks - 1), 0])
}

/// Source ranges of Copy that one page holds, and ranges of Dataset Management.
pub(super) const COPY_RANGES_OF_PAGE: u16 = 4096 / 32;
