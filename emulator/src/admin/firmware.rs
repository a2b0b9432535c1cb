//! Firmware Image Download and Firmware Commit.
//!
//! There is no firmware to run, so an image is what it says it is: its first 8 bytes, printable ASCII, are the revision that
//! Identify Controller tells once it is active. Slot 1 holds the built-in one and is read-only.

use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::config::Config;
use crate::controller::Core;
use crate::execute::Reply;
use crate::io::receive;
use crate::iommu::DeviceMemory;
use crate::namespaces::Ranges;

/// Firmware slots.
pub(super) const SLOTS: u8 = 3;
/// Most pieces of an image, not side by side, that are kept account of.
const PIECES_MAX: usize = 1024;
/// Largest image, in bytes.
const IMAGE_MAX: u64 = 64 << 20;

/// The slots, and the image that is being downloaded.
#[derive(Debug)]
pub(crate) struct Firmware {
    slots: [Option<[u8; 8]>; SLOTS as usize],
    /// The slot that runs, from 1.
    active: u8,
    /// The slot that runs after the next reset.
    next: Option<u8>,
    /// Which bytes of an image have come.
    downloaded: Ranges,
    revision: [u8; 8],
}

impl Firmware {
    pub(crate) fn new(config: &Config) -> Firmware {
        let mut built_in = [b' '; 8];
        for (place, byte) in built_in.iter_mut().zip(config.firmware.bytes()) {
            *place = byte;
        }
        Firmware {
            slots: [Some(built_in), None, None],
            active: 1,
            next: None,
            downloaded: Ranges::default(),
            revision: [0; 8],
        }
    }

    fn slot(&self, slot: u8) -> Option<[u8; 8]> {
        let place = usize::from(slot).checked_sub(1)?;
        self.slots.get(place).copied().flatten()
    }

    /// FR: the revision that is active.
    pub(super) fn revision(&self) -> [u8; 8] {
        self.slot(self.active).unwrap_or_default()
    }

    /// A controller reset: what waits for it becomes active, what was not committed is lost.
    pub(crate) fn reset(&mut self) {
        if let Some(next) = self.next.take() {
            self.active = next;
        }
        self.downloaded = Ranges::default();
    }

    /// Log page 03h.
    pub(super) fn log(&self) -> Vec<u8> {
        let mut page = vec![self.active | self.next.unwrap_or(0) << 4];
        page.resize(8, 0);
        for slot in self.slots {
            page.extend(slot.unwrap_or_default());
        }
        page.resize(512, 0);
        page
    }

    /// Puts the downloaded image into a slot; 0 lets the controller choose.
    fn replace(&mut self, slot: u8) -> Result<u8, Status> {
        let slot = match slot {
            0 => self.choose(),
            1 => return Err(Status::INVALID_FIRMWARE_SLOT.with_dnr()),
            _ => slot,
        };
        let printable = self
            .revision
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte));
        let whole = self.downloaded.starting_at(0).is_some_and(|end| end >= 8);
        self.downloaded = Ranges::default();
        if !(printable && whole) {
            return Err(Status::INVALID_FIRMWARE_IMAGE.with_dnr());
        }
        if let Some(place) = self.slots.get_mut(usize::from(slot) - 1) {
            *place = Some(self.revision);
        }
        Ok(slot)
    }

    /// An empty slot, or the first that can be written and is not active.
    fn choose(&self) -> u8 {
        let mut writable = 2..=SLOTS;
        writable
            .clone()
            .find(|&slot| self.slot(slot).is_none())
            .or_else(|| writable.find(|&slot| slot != self.active))
            .unwrap_or(SLOTS)
    }
}

pub(super) fn download(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let length = (u64::from(entry.dword(10)) + 1) * 4;
    let offset = u64::from(entry.dword(11)) * 4;
    let most = core.config.transfer_max().min(IMAGE_MAX);
    let scattered = core.firmware.downloaded.ranges() >= PIECES_MAX;
    if length > most || offset + length > IMAGE_MAX || scattered {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if core.firmware.downloaded.first_of(offset, length).is_some() {
        return Err(Status::OVERLAPPING_RANGE.with_dnr());
    }
    let data = receive(core, 0, entry, length as usize, memory)?;
    let firmware = &mut core.firmware;
    firmware.downloaded.insert(offset, length);
    // The revision may come in two pieces.
    let place = firmware.revision.iter_mut().skip(offset as usize);
    for (byte, &new) in place.zip(&data) {
        *byte = new;
    }
    Ok(Reply::Now(0))
}

pub(super) fn commit(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let dword10 = entry.dword(10);
    let (slot, action) = ((dword10 & 0b111) as u8, dword10 >> 3 & 0b111);
    if slot > SLOTS {
        return Err(Status::INVALID_FIRMWARE_SLOT.with_dnr());
    }
    let firmware = &mut core.firmware;
    let downloaded = !firmware.downloaded.is_empty();
    match action {
        0 => {
            firmware.replace(slot)?;
        }
        1 => firmware.next = Some(firmware.replace(slot)?),
        // At once: the image that was downloaded, or else the one that is in the slot.
        3 if downloaded => {
            firmware.active = firmware.replace(slot)?;
            firmware.next = None;
        }
        2 | 3 if slot == 0 => return Err(Status::INVALID_FIRMWARE_SLOT.with_dnr()),
        2 | 3 if firmware.slot(slot).is_none() => {
            return Err(Status::INVALID_FIRMWARE_IMAGE.with_dnr());
        }
        2 => firmware.next = Some(slot),
        3 => (firmware.active, firmware.next) = (slot, None),
        // There are no boot partitions; the rest is reserved.
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    }
    Ok(Reply::Now(0))
}
