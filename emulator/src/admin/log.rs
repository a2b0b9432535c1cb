//! Get Log Page.

use std::collections::{BTreeSet, VecDeque};

use nvme_vfio_queues::Status;

use super::features::{self, TEMPERATURE};
use super::send;
use crate::backend::Operation;
use crate::command::Entry;
use crate::config::Offers;
use crate::controller::Core;
use crate::execute::Reply;
use crate::iommu::DeviceMemory;
use crate::quick::Moved;

const SUPPORTED: u8 = 0x00;
pub(crate) const ERROR: u8 = 0x01;
pub(crate) const SMART: u8 = 0x02;
const FIRMWARE: u8 = 0x03;
pub(crate) const CHANGED_NAMESPACES: u8 = 0x04;
const EFFECTS: u8 = 0x05;
const FEATURES: u8 = 0x12;
const ALL: [u8; 7] = [
    SUPPORTED,
    ERROR,
    SMART,
    FIRMWARE,
    CHANGED_NAMESPACES,
    EFFECTS,
    FEATURES,
];

/// Entries of the error log, less one: ELPE of Identify Controller.
pub(super) const ERROR_ENTRIES: u8 = 63;

/// A command that ended with an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorEntry {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) nsid: u32,
    pub(crate) lba: u64,
}

/// What log pages tell. It lives as long as the controller, resets included; that of a controller with a [`CommandHandler`](crate::CommandHandler) as long as its host.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    errors: VecDeque<(u64, ErrorEntry)>,
    error_count: u64,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
    media_errors: u64,
    /// Namespaces that changed since the log page was read.
    changed: BTreeSet<u32>,
}

impl Logs {
    pub(crate) fn error(&mut self, entry: ErrorEntry) {
        self.error_count += 1;
        self.errors.truncate(usize::from(ERROR_ENTRIES));
        self.errors.push_front((self.error_count, entry));
    }

    pub(super) fn changed(&mut self, nsid: u32) {
        self.changed.insert(nsid);
    }

    pub(crate) fn media_error(&mut self) {
        self.media_errors += 1;
    }

    /// Counts a batch.
    pub(crate) fn count_many(&mut self, moved: &Moved) {
        self.reads += moved.commands[0];
        self.read_bytes += moved.bytes[0];
        self.writes += moved.commands[1];
        self.written_bytes += moved.bytes[1];
    }

    pub(crate) fn count(&mut self, operation: Operation, bytes: u64) {
        match operation {
            Operation::Read | Operation::Compare => {
                self.reads += 1;
                self.read_bytes += bytes;
            }
            Operation::Verify => self.read_bytes += bytes,
            Operation::Write => {
                self.writes += 1;
                self.written_bytes += bytes;
            }
            // One of its ranges.
            Operation::Copy { .. } => self.written_bytes += bytes,
            _ => {}
        }
    }

    /// Counts a Copy that is done: it is a SMART Host Read Command and a User Data Out Command.
    pub(crate) fn count_copy(&mut self) {
        self.reads += 1;
        self.writes += 1;
    }
}

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Units of 1000 blocks of 512 bytes, rounded up.
fn data_units(bytes: u64) -> [u8; 8] {
    bytes.div_ceil(512 * 1000).to_le_bytes()
}

fn supported() -> Vec<u8> {
    let mut page = vec![0; 1024];
    for log in ALL {
        put(&mut page, usize::from(log) * 4, &[1]);
    }
    page
}

fn errors(logs: &Logs) -> Vec<u8> {
    let mut page = vec![0; 64 * (usize::from(ERROR_ENTRIES) + 1)];
    for (slot, (count, error)) in page.chunks_exact_mut(64).zip(&logs.errors) {
        put(slot, 0, &count.to_le_bytes());
        put(slot, 8, &error.sqid.to_le_bytes());
        put(slot, 10, &error.cid.to_le_bytes());
        put(slot, 12, &error.status.to_status_word(false).to_le_bytes());
        put(slot, 14, &0xffffu16.to_le_bytes()); // no single parameter is to blame
        put(slot, 16, &error.lba.to_le_bytes());
        put(slot, 24, &error.nsid.to_le_bytes());
    }
    page
}

fn smart(core: &Core) -> Vec<u8> {
    let mut page = vec![0; 512];
    let logs = &core.logs;
    put(
        &mut page,
        0,
        &[u8::from(core.features.temperature_warning()) << 1],
    );
    put(&mut page, 1, &TEMPERATURE.to_le_bytes());
    put(&mut page, 3, &[100, 10]); // available spare and its threshold in percent
    put(&mut page, 32, &data_units(logs.read_bytes));
    put(&mut page, 48, &data_units(logs.written_bytes));
    put(&mut page, 64, &logs.reads.to_le_bytes());
    put(&mut page, 80, &logs.writes.to_le_bytes());
    put(&mut page, 112, &1u64.to_le_bytes()); // power cycles
    put(&mut page, 160, &logs.media_errors.to_le_bytes());
    put(&mut page, 176, &logs.error_count.to_le_bytes());
    page
}

/// Those that changed, ascending; there are never more than the page holds.
fn changed_namespaces(logs: &Logs) -> Vec<u8> {
    let mut page = vec![0; 4096];
    for (slot, nsid) in page.chunks_exact_mut(4).zip(&logs.changed) {
        put(slot, 0, &nsid.to_le_bytes());
    }
    page
}

fn effects(offers: Offers) -> Vec<u8> {
    let mut page = vec![0; 4096];
    const SUPPORTED: u32 = 1 << 0;
    const CHANGES_CONTENT: u32 = 1 << 1;
    const CHANGES_NAMESPACE: u32 = 1 << 2;
    const CHANGES_INVENTORY: u32 = 1 << 3;
    const CHANGES_CONTROLLER: u32 = 1 << 4;
    /// No other command of any namespace should run beside it.
    const ALONE: u32 = 0b010 << 16;
    let offered = |opcode: &u8| offers.contains(Offers::of_admin(*opcode));
    for opcode in super::OPCODES.into_iter().filter(offered) {
        let effects = match opcode {
            super::FORMAT => CHANGES_CONTENT | CHANGES_NAMESPACE | ALONE,
            super::FIRMWARE_COMMIT => CHANGES_CONTROLLER,
            super::NAMESPACE_MANAGEMENT => CHANGES_CONTENT | CHANGES_INVENTORY | ALONE,
            super::NAMESPACE_ATTACHMENT => CHANGES_INVENTORY | ALONE,
            _ => 0,
        };
        let place = usize::from(opcode) * 4;
        put(&mut page, place, &(SUPPORTED | effects).to_le_bytes());
    }
    let offered = |opcode: &u8| offers.contains(Offers::of_io(*opcode));
    for opcode in crate::io::OPCODES.into_iter().filter(offered) {
        let changes = crate::io::CHANGING.contains(&opcode);
        let effects = if changes { CHANGES_CONTENT } else { 0 };
        let place = 1024 + usize::from(opcode) * 4;
        put(&mut page, place, &(SUPPORTED | effects).to_le_bytes());
    }
    page
}

/// Feature Identifiers Supported and Effects: which there are, and whose they are.
fn feature_effects(core: &Core) -> Vec<u8> {
    const SUPPORTED: u32 = 1 << 0;
    const OF_NAMESPACE: u32 = 1 << 20;
    const OF_CONTROLLER: u32 = 1 << 21;
    let mut page = vec![0; 1024];
    for feature in (0..=u8::MAX).filter(|&feature| features::known(core, feature)) {
        let scope = if features::of_namespace(feature) {
            OF_NAMESPACE
        } else {
            OF_CONTROLLER
        };
        let place = usize::from(feature) * 4;
        put(&mut page, place, &(SUPPORTED | scope).to_le_bytes());
    }
    page
}

pub(super) fn get(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let invalid = Status::INVALID_FIELD.with_dnr();
    let (dword10, dword11) = (entry.dword(10), entry.dword(11));
    let log = dword10 as u8;
    let retain = dword10 & 1 << 15 != 0;
    let length = (u64::from(dword11 & 0xffff) << 16 | u64::from(dword10 >> 16)) * 4 + 4;
    let offset = u64::from(entry.dword(13)) << 32 | u64::from(entry.dword(12));
    let mut page = match log {
        SUPPORTED => supported(),
        ERROR => errors(&core.logs),
        // LPA offers no page per namespace.
        SMART if matches!(entry.nsid(), 0 | 0xffff_ffff) => smart(core),
        SMART => return Err(invalid),
        FIRMWARE => core.firmware.log(),
        CHANGED_NAMESPACES => changed_namespaces(&core.logs),
        // Of the NVM command set, the only one.
        EFFECTS if entry.dword(14) >> 24 == 0 => effects(core.config.offers),
        FEATURES if entry.dword(14) >> 24 == 0 => feature_effects(core),
        EFFECTS | FEATURES => return Err(invalid),
        _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
    };
    // Bit 23 of dword 14 makes the offset an index, which LPA does not offer.
    if length > core.config.transfer_max()
        || !offset.is_multiple_of(4)
        || entry.dword(14) & 1 << 23 != 0
    {
        return Err(invalid);
    }
    if let Some(handler) = &core.handler {
        handler.log(log, entry.nsid(), &mut page);
    }
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| page.get(offset..))
        .ok_or(invalid)?;
    // What lies past the end of a page is undefined: it is left as it is.
    let count = rest
        .len()
        .min(usize::try_from(length).unwrap_or(usize::MAX));
    send(core, entry, rest.get(..count).unwrap_or_default(), memory)?;
    if !retain {
        core.events.log_read(log);
        if log == CHANGED_NAMESPACES {
            core.logs.changed.clear();
        }
    }
    Ok(Reply::Now(0))
}
