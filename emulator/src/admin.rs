//! Admin commands (NVMe base specification 2.0, 5).

pub(crate) mod events;
pub(crate) mod features;
pub(crate) mod firmware;
pub(crate) mod format;
mod identify;
pub(crate) mod log;
pub(crate) mod queues;
pub(crate) mod shadow;

use nvme_vfio_dma::Access;
use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::config::Offers;
use crate::controller::Core;
use crate::execute::Reply;
use crate::fault::OnAbort;
use crate::flight::Completion;
use crate::iommu::{DeviceMemory, FaultingCommand};
use crate::prp;

const DELETE_SQ: u8 = 0x00;
const CREATE_SQ: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_CQ: u8 = 0x04;
const CREATE_CQ: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const ASYNC_EVENT_REQUEST: u8 = 0x0c;
pub(crate) const NAMESPACE_MANAGEMENT: u8 = 0x0d;
const FIRMWARE_COMMIT: u8 = 0x10;
const FIRMWARE_DOWNLOAD: u8 = 0x11;
pub(crate) const NAMESPACE_ATTACHMENT: u8 = 0x15;
const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
pub(crate) const FORMAT: u8 = 0x80;

/// The opcodes that this module implements.
pub(crate) const OPCODES: [u8; 16] = [
    DELETE_SQ,
    CREATE_SQ,
    GET_LOG_PAGE,
    DELETE_CQ,
    CREATE_CQ,
    IDENTIFY,
    ABORT,
    SET_FEATURES,
    GET_FEATURES,
    ASYNC_EVENT_REQUEST,
    NAMESPACE_MANAGEMENT,
    FIRMWARE_COMMIT,
    FIRMWARE_DOWNLOAD,
    NAMESPACE_ATTACHMENT,
    DOORBELL_BUFFER_CONFIG,
    FORMAT,
];

/// Runs one admin command.
pub(crate) fn execute(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    if !core
        .config
        .offers
        .contains(Offers::of_admin(entry.opcode()))
    {
        core.statistics.unsupported_commands += 1;
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    match entry.opcode() {
        DELETE_SQ => queues::delete_submission(core, entry),
        CREATE_SQ => queues::create_submission(core, entry, memory),
        DELETE_CQ => queues::delete_completion(core, entry),
        CREATE_CQ => queues::create_completion(core, entry, memory),
        GET_LOG_PAGE => log::get(core, entry, memory),
        IDENTIFY => identify::identify(core, entry, memory),
        ABORT => Ok(abort(core, entry, memory)),
        SET_FEATURES => features::set(core, entry, memory),
        GET_FEATURES => features::get(core, entry, memory),
        ASYNC_EVENT_REQUEST => events::request(core, entry),
        NAMESPACE_MANAGEMENT => format::manage(core, entry, memory),
        FIRMWARE_COMMIT => firmware::commit(core, entry),
        FIRMWARE_DOWNLOAD => firmware::download(core, entry, memory),
        NAMESPACE_ATTACHMENT => format::attach(core, entry, memory),
        DOORBELL_BUFFER_CONFIG => shadow::configure(core, entry, memory),
        FORMAT => format::format(core, entry),
        opcode => {
            tracing::debug!(
                opcode,
                cid = entry.cid(),
                "admin command that is not implemented"
            );
            core.statistics.unsupported_commands += 1;
            Err(Status::INVALID_OPCODE.with_dnr())
        }
    }
}

/// Returns data to the host, all of its memory checked before the first byte moves.
fn send(
    core: &mut Core,
    entry: &Entry,
    bytes: &[u8],
    memory: &DeviceMemory<'_>,
) -> Result<(), Status> {
    let junk: Vec<u8>;
    let bytes = match &core.junk {
        Some(pattern) if !pattern.is_empty() => {
            junk = pattern.iter().copied().cycle().take(bytes.len()).collect();
            &junk
        }
        _ => bytes,
    };
    let command = FaultingCommand {
        sqid: 0,
        cid: entry.cid(),
        opcode: entry.opcode(),
    };
    let mut extents = Vec::new();
    prp::walk(
        entry,
        bytes.len() as u64,
        core.page(),
        memory,
        command,
        &mut extents,
    )?;
    let mut segments = Vec::new();
    crate::io::translate(
        &extents,
        Access::DEVICE_WRITE,
        memory,
        command,
        &mut segments,
    )?;
    let mut rest = bytes;
    for segment in &segments {
        let (now, later) = rest.split_at(rest.len().min(segment.length as usize));
        memory
            .write(segment, 0, now)
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        rest = later;
    }
    Ok(())
}

/// Abort: only what a fault holds, and Async Event Requests, can still be found. Bit 0 of the answer is 1 when the command was
/// not aborted.
fn abort(core: &mut Core, entry: &Entry, memory: &DeviceMemory<'_>) -> Reply {
    let (sqid, cid) = (entry.dword(10) as u16, (entry.dword(10) >> 16) as u16);
    let aborted = Completion {
        sqid,
        cid,
        result: 0,
        status: Status::ABORT_REQUESTED,
    };
    let found = core
        .held
        .iter()
        .position(|held| held.sqid == sqid && held.entry.cid() == cid && !held.silent);
    if let Some(held) = found.and_then(|place| core.held.get(place)) {
        let on_abort = held.on_abort;
        if on_abort == OnAbort::NotAborted || !core.reserve(sqid) {
            return Reply::Now(1);
        }
        match (on_abort, found) {
            (OnAbort::AbortedDataLater, Some(place)) => {
                if let Some(held) = core.held.get_mut(place) {
                    held.silent = true;
                }
            }
            (_, Some(place)) => {
                core.held.remove(place);
            }
            (_, None) => {}
        }
        core.post(&aborted, memory);
        return Reply::Now(0);
    }
    if sqid == 0 && core.events.has_request(cid) && core.reserve(0) {
        core.events.withdraw(cid);
        core.post(&aborted, memory);
        return Reply::Now(0);
    }
    Reply::Now(1)
}
