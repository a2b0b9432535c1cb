//! The commands without data: Flush, Verify, Write Uncorrectable, Write Zeroes.

use nvme_vfio_queues::Status;

use super::{Job, Plan, inactive, range, submit, unreadable};
use crate::backend::Operation;
use crate::command::Entry;
use crate::config::{Config, Offers};
use crate::controller::Core;
use crate::execute::Reply;
use crate::namespaces::{BROADCAST, Namespace};

/// Deallocate, bit 25 of dword 12 of Write Zeroes.
const DEAC: u32 = 1 << 25;
/// Namespace Zeroes, bit 23 of dword 12 of Write Zeroes.
const NSZ: u32 = 1 << 23;

/// Directives are not offered, so a directive type is an illegal value. In Write Zeroes the field has three bits.
fn no_directive(field: u32) -> Result<(), Status> {
    if field == 0 {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD.with_dnr())
    }
}

/// Whether a length is within a limit of CNS 06h: a power of two of the smallest page, 0 for none.
fn within(config: &Config, length: u64, power: u8) -> Result<(), Status> {
    let most = 4096u64 << config.mpsmin << power;
    if power == 0 || length <= most {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD.with_dnr())
    }
}

/// The blocks that a command names, checked; how many bytes they are is bounded by `power`.
fn checked<'a>(
    core: &'a Core,
    entry: &Entry,
    power: u8,
    directive: u32,
) -> Result<(&'a Namespace, u64, u64), Status> {
    let (namespace, slba, blocks) = range(core, entry)?;
    within(&core.config, blocks << namespace.shift, power)?;
    no_directive(directive)?;
    if !namespace.holds(slba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    if namespace.busy {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    Ok((namespace, slba, blocks))
}

fn hand_over(core: &mut Core, sqid: u16, entry: &Entry, plan: &Plan, silent: bool) -> u32 {
    let first = core.scratch.segments.len();
    submit(core, sqid, entry, plan, silent, first)
}

/// Flush, of one namespace, or of all with NSID FFFFFFFFh where there is a volatile write cache.
pub(super) fn flush(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
) -> Result<Reply, Status> {
    let nsid = entry.nsid();
    let namespace = match core.namespaces.active(nsid) {
        Some(namespace) if namespace.busy => return Err(Status::FORMAT_IN_PROGRESS),
        Some(_) => nsid,
        None if nsid == BROADCAST && core.config.vwc => 0,
        None => return Err(inactive(core, nsid)),
    };
    let plan = Plan {
        operation: Operation::Flush,
        namespace,
        offset: 0,
        length: 0,
        force_unit_access: false,
    };
    hand_over(core, sqid, entry, &plan, silent);
    Ok(Reply::Backend)
}

/// Verify: bounded by VSL rather than MDTS.
pub(super) fn verify(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
) -> Result<Reply, Status> {
    let (namespace, slba, blocks) = checked(core, entry, core.config.limits.vsl, 0)?;
    let plan = Plan {
        operation: Operation::Verify,
        namespace: namespace.nsid,
        offset: slba << namespace.shift,
        length: blocks << namespace.shift,
        force_unit_access: entry.dword(12) & 1 << 30 != 0,
    };
    let holes = core.features.holes_are_errors(namespace.nsid);
    if let Some(why) = namespace.unreadable(slba, blocks, holes) {
        return Err(unreadable(core, why));
    }
    hand_over(core, sqid, entry, &plan, silent);
    Ok(Reply::Backend)
}

/// Write Uncorrectable: marks the blocks; nothing is moved.
pub(super) fn write_uncorrectable(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let directive = entry.dword(12) >> 20 & 0xf;
    let (namespace, slba, blocks) = checked(core, entry, core.config.limits.wusl, directive)?;
    let nsid = namespace.nsid;
    let namespace = core.namespaces.get_mut(nsid);
    if namespace.is_some_and(|namespace| namespace.make_uncorrectable(slba, blocks)) {
        Ok(Reply::Now(0))
    } else {
        Err(Status::INTERNAL_ERROR)
    }
}

/// Write Zeroes: bounded by WZSL rather than MDTS. With NSZ it is the whole namespace, whatever the range says, and bit 0 of
/// dword 0 tells that all was zeroed.
pub(super) fn write_zeroes(
    core: &mut Core,
    sqid: u16,
    entry: &Entry,
    silent: bool,
) -> Result<Reply, Status> {
    let dword12 = entry.dword(12);
    let directive = dword12 >> 20 & 0x7;
    let whole = dword12 & NSZ != 0;
    if whole && !core.config.offers.contains(Offers::NAMESPACE_ZEROES) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let (namespace, slba, blocks) = if whole {
        let (namespace, ..) = range(core, entry)?;
        no_directive(directive)?;
        if namespace.busy {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        (namespace, 0, namespace.blocks)
    } else {
        checked(core, entry, core.config.limits.wzsl, directive)?
    };
    let (nsid, shift) = (namespace.nsid, namespace.shift);
    let operation = if whole || dword12 & DEAC != 0 {
        Operation::Deallocate
    } else {
        Operation::WriteZeroes
    };
    let plan = Plan {
        operation,
        namespace: nsid,
        offset: slba << shift,
        length: blocks << shift,
        force_unit_access: dword12 & 1 << 30 != 0 || core.features.writes_through(),
    };
    if let Some(namespace) = core.namespaces.get_mut(nsid) {
        if operation == Operation::Deallocate {
            namespace.deallocate(slba, blocks);
        } else {
            namespace.write(slba, blocks);
        }
    }
    let tag = hand_over(core, sqid, entry, &plan, silent);
    if whole {
        core.jobs.insert(tag, Job::answering(1));
    }
    Ok(Reply::Backend)
}
