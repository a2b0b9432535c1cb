//! A client that keeps to no rule: rings of its own in memory that nobody has sealed, and messages.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_user::message::DmaAccess;
use nvme_vfio_user::{Client, ClientOptions};

use crate::place::{PATIENCE, until};

const RINGS: u64 = 0x4000_0000_0000;
/// Where the data is that [`Host::lend`] lends.
pub(crate) const DATA: u64 = 0x10_0000_0000;
/// Its bytes.
pub(crate) const LENGTH: u64 = 128 << 10;
/// Commands that fit the I/O queue.
pub(crate) const DEPTH: u32 = ENTRIES - 1;
const ENTRIES: u32 = 32;
/// Where the I/O rings are in the memory of the rings.
const SUBMISSION: u64 = 0x2000;
const COMPLETION: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;

/// The client.
pub(crate) struct Host {
    pub(crate) client: Client,
    rings: File,
    tail: u32,
    nsid: u32,
}

/// Memory that its owner can cut.
pub(crate) fn memory() -> File {
    let file = File::from(memfd_create(c"host", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LENGTH).unwrap();
    file
}

impl Host {
    /// Connects, enables the controller and makes an I/O queue pair.
    pub(crate) fn new(path: &Path, nsid: u32) -> Host {
        let client = Client::connect(path, &ClientOptions { timeout: PATIENCE }).unwrap();
        let rings = memory();
        client
            .dma_map(RINGS, LENGTH, DmaAccess::all(), Some((rings.as_fd(), 0)))
            .unwrap();
        let host = Host {
            client,
            rings,
            tail: 0,
            nsid,
        };
        host.client.region_write(7, 4, &[6, 0]).unwrap();
        host.write(0x24, 15 << 16 | 15);
        for (register, iova) in [(0x28, RINGS), (0x30, RINGS + 0x1000)] {
            host.client
                .region_write(0, register, &iova.to_le_bytes())
                .unwrap();
        }
        host.write(0x14, 4 << 20 | 6 << 16 | 1);
        until("ready", || host.read(0x1c) & 1 == 1);
        for (slot, opcode, offset, dword11) in
            [(0, 5, COMPLETION, 1), (1, 1, SUBMISSION, 1 << 16 | 1)]
        {
            let iova = RINGS + offset;
            host.entry(
                slot * 64,
                &[
                    (0, opcode),
                    (6, iova as u32),
                    (7, (iova >> 32) as u32),
                    (10, (ENTRIES - 1) << 16 | 1),
                    (11, dword11),
                ],
            );
        }
        host.write(DOORBELLS, 2);
        until("queues", || host.dword(0x1000 + 16) >> 16 & 1 == 1);
        host
    }

    fn write(&self, offset: u64, value: u32) {
        self.client
            .region_write(0, offset, &value.to_le_bytes())
            .unwrap();
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn entry(&self, place: u64, dwords: &[(usize, u32)]) {
        let mut bytes = [0; 64];
        for &(index, value) in dwords {
            bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        self.rings.write_all_at(&bytes, place).unwrap();
    }

    /// The last dword of a completion entry.
    fn dword(&self, place: u64) -> u32 {
        let mut bytes = [0; 4];
        self.rings.read_exact_at(&mut bytes, place + 12).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Lends memory for data.
    pub(crate) fn lend(&self) -> File {
        let data = memory();
        self.client
            .dma_map(DATA, LENGTH, DmaAccess::all(), Some((data.as_fd(), 0)))
            .unwrap();
        data
    }

    /// Submits reads (02h) or writes (01h) of one block each into the lent memory, the one in slot n at block n, and rings.
    pub(crate) fn submit(&mut self, opcode: u32, count: u32) {
        for _ in 0..count {
            let iova = DATA + u64::from(self.tail) * 4096;
            self.entry(
                SUBMISSION + u64::from(self.tail) * 64,
                &[
                    (0, self.tail << 16 | opcode),
                    (1, self.nsid),
                    (6, iova as u32),
                    (7, (iova >> 32) as u32),
                    (10, self.tail),
                ],
            );
            self.tail = (self.tail + 1) % ENTRIES;
        }
        self.write(DOORBELLS + 8, self.tail);
    }

    /// The status (type and code, without phase) of the first `count` completions of the first round of the ring, once all are there.
    pub(crate) fn statuses(&self, count: u32) -> Vec<u16> {
        let entries = (0..u64::from(count)).map(|index| COMPLETION + index * 16);
        entries
            .map(|place| {
                until("a completion", || self.dword(place) >> 16 & 1 == 1);
                (self.dword(place) >> 17) as u16 & 0x7ff
            })
            .collect()
    }

    /// How many completions of the first round are there.
    pub(crate) fn completed(&self) -> usize {
        let entries = (0..u64::from(ENTRIES)).map(|index| COMPLETION + index * 16);
        entries
            .filter(|place| self.dword(*place) >> 16 & 1 == 1)
            .count()
    }
}
