//! A controller and the least that a host needs to run it: an admin queue pair and one I/O queue pair, at addresses that no input can
//! guess.

use std::sync::Arc;

use nvme_vfio_dma::Access;
use nvme_vfio_emulator::Emulator;

use crate::memory::{Memory, Region};

pub(crate) const CAP: u32 = 0x00;
pub(crate) const CC: u32 = 0x14;
pub(crate) const CSTS: u32 = 0x1c;
pub(crate) const AQA: u32 = 0x24;
pub(crate) const ASQ: u32 = 0x28;
pub(crate) const ACQ: u32 = 0x30;

/// CC for 64-byte and 16-byte entries, enabled.
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
pub(crate) const RDY: u32 = 1;
pub(crate) const CFS: u32 = 2;

/// Most entries of a queue: what one page holds of submission entries.
pub(crate) const ENTRIES_MAX: u32 = 64;

/// A submission entry.
pub(crate) type Dwords = [u32; 16];

/// A completion entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) sq_head: u16,
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    /// Status code type and status code, as 0xTCC; 0 is success.
    pub(crate) status: u16,
}

/// One queue pair of the host's.
struct Ring {
    entries: u32,
    tail: u32,
    /// The submission queue's head as the last completion told it.
    sq_head: u32,
    head: u32,
    phase: bool,
}

/// The regions that every host has, by index; a fuzzer's own follow.
const ADMIN_SQ: usize = 0;
const ADMIN_CQ: usize = 1;
const IO_SQ: usize = 2;
const IO_CQ: usize = 3;
pub(crate) const OWN_REGIONS: usize = 4;

pub(crate) struct Host {
    pub(crate) emulator: Arc<Emulator>,
    pub(crate) memory: Memory,
    rings: [Ring; 2],
    iova: [u64; OWN_REGIONS],
    mps: u8,
}

impl Host {
    /// A controller of this configuration, disabled, with bus mastering on. `hash` decides where the queues are; `entries` is their
    /// size, 2 to 64.
    pub(crate) fn new(config: &str, hash: u64, entries: u32, mps: u8, regions: &[Region]) -> Host {
        let config = config.parse().expect("a good configuration");
        let emulator = Emulator::new(config).expect("a good configuration");
        // 39 bits, in steps of 64 KiB: each in a quarter of the upper half of the address space.
        let iova = std::array::from_fn(|index| {
            let place = hash.rotate_right(13 * index as u32) & 0xf_ffff;
            1 << 38 | (index as u64) << 36 | place << 16
        });
        let access = [
            Access::DEVICE_READ,
            Access::DEVICE_WRITE,
            Access::DEVICE_READ,
            Access::DEVICE_WRITE,
        ];
        let own = iova.iter().zip(access).map(|(&iova, access)| Region {
            iova,
            pages: 1,
            access,
        });
        let regions: Vec<Region> = own.chain(regions.iter().copied()).collect();
        let memory = Memory::new(emulator.iommu(), hash | 1 << 63, &regions);
        emulator.config_write(4, &[6, 0]);
        let ring = || Ring {
            entries: entries.clamp(2, ENTRIES_MAX),
            tail: 0,
            sq_head: 0,
            head: 0,
            phase: true,
        };
        Host {
            emulator,
            memory,
            rings: [ring(), ring()],
            iova,
            mps,
        }
    }

    pub(crate) fn read(&self, offset: u32) -> u32 {
        self.emulator.register_read(offset, 4) as u32
    }

    pub(crate) fn write(&self, offset: u32, value: u32) {
        self.emulator.register_write(offset, 4, value.into());
    }

    /// Disables the controller, which must be done at once, but for what is long and done in pieces: it waits for that.
    pub(crate) fn disable(&self) {
        self.write(CC, 0);
        let mut steps = 0;
        while steps < 4 {
            self.emulator.step();
            // libFuzzer's limit of time ends one that never comes to its end.
            if !self.emulator.turn(u32::MAX).working {
                steps += 1;
            }
        }
        assert_eq!(self.read(CSTS) & RDY, 0, "it cannot be disabled");
    }

    /// Enables the controller, which was disabled, with new queues.
    pub(crate) fn enable(&mut self) {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            (ring.tail, ring.sq_head, ring.head, ring.phase) = (0, 0, 0, true);
            self.memory.clear(index * 2 + 1);
        }
        let entries = self.rings[0].entries - 1;
        self.write(AQA, entries << 16 | entries);
        self.emulator.register_write(ASQ, 8, self.iova[ADMIN_SQ]);
        self.emulator.register_write(ACQ, 8, self.iova[ADMIN_CQ]);
        self.write(CC, CC_ENABLE | u32::from(self.mps) << 7);
        for _ in 0..4 {
            self.emulator.step();
        }
        assert_eq!(self.read(CSTS) & (RDY | CFS), RDY, "it cannot be enabled");

        let size = (self.rings[1].entries - 1) << 16 | 1;
        let mut create = [0; 16];
        (create[0], create[10], create[11]) = (0x05, size, 1);
        (create[6], create[7]) = halves(self.iova[IO_CQ]);
        self.must_succeed(create);
        (create[0], create[11]) = (0x01, 1 << 16 | 1);
        (create[6], create[7]) = halves(self.iova[IO_SQ]);
        self.must_succeed(create);
    }

    fn must_succeed(&mut self, dwords: Dwords) {
        assert!(self.submit(0, dwords, true), "a free slot");
        self.emulator.step();
        let entry = self.take(0).expect("a completion");
        assert_eq!(entry.status, 0, "{dwords:x?}");
        self.fetched(0, entry.sq_head);
    }

    /// Writes an entry, and rings if told so; false when the queue is full.
    pub(crate) fn submit(&mut self, queue: usize, dwords: Dwords, ring_now: bool) -> bool {
        let ring = &mut self.rings[queue];
        let next = (ring.tail + 1) % ring.entries;
        if next == ring.sq_head {
            return false;
        }
        let bytes: Vec<u8> = dwords
            .iter()
            .flat_map(|dword| dword.to_le_bytes())
            .collect();
        self.memory
            .write(queue * 2, ring.tail as usize * 64, &bytes);
        ring.tail = next;
        if ring_now {
            self.ring(queue);
        }
        true
    }

    /// Rings a submission queue's doorbell with the tail as it is.
    pub(crate) fn ring(&self, queue: usize) {
        self.doorbell(queue * 2, self.rings[queue].tail);
    }

    /// Writes a doorbell: `2 * queue` for a tail, one more for a head.
    pub(crate) fn doorbell(&self, index: usize, value: u32) {
        if let Ok(index) = u32::try_from(index) {
            self.write(0x1000 + index * 4, value);
        }
    }

    /// Takes one completion if there is one, and rings.
    pub(crate) fn take(&mut self, queue: usize) -> Option<Entry> {
        let ring = &mut self.rings[queue];
        let at = ring.head as usize * 16;
        let last = self.memory.read_u32(queue * 2 + 1, at + 12);
        if (last >> 16 & 1 != 0) != ring.phase {
            return None;
        }
        let middle = self.memory.read_u32(queue * 2 + 1, at + 8);
        ring.head = (ring.head + 1) % ring.entries;
        ring.phase ^= ring.head == 0;
        let head = ring.head;
        self.doorbell(queue * 2 + 1, head);
        Some(Entry {
            sq_head: middle as u16,
            sqid: (middle >> 16) as u16,
            cid: last as u16,
            status: (last >> 17) as u16 & 0x7ff,
        })
    }

    /// Takes note of how far the controller has read a submission queue.
    pub(crate) fn fetched(&mut self, queue: usize, sq_head: u16) {
        let ring = &mut self.rings[queue];
        let (head, entries) = (u32::from(sq_head), ring.entries);
        assert!(head < entries, "submission queue head {head} of {entries}");
        // From the old head to the tail, and never back.
        let pending = (ring.tail + entries - ring.sq_head) % entries;
        let moved = (head + entries - ring.sq_head) % entries;
        assert!(moved <= pending, "head {head} is past tail {}", ring.tail);
        ring.sq_head = head;
    }
}

pub(crate) fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
