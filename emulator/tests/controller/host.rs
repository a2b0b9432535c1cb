//! The least that a host needs: rings in mapped memory and raw 64-byte entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_vfio_dma::{Access, AddressSpace, SharedMemory};
use nvme_vfio_emulator::Emulator;

pub(crate) const CAP: u32 = 0x00;
pub(crate) const CC: u32 = 0x14;
pub(crate) const CSTS: u32 = 0x1c;
pub(crate) const AQA: u32 = 0x24;
pub(crate) const ASQ: u32 = 0x28;
pub(crate) const ACQ: u32 = 0x30;

/// CC for 64-byte and 16-byte entries and 4 KiB pages, enabled.
pub(crate) const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;

/// How long a command may take that is not done at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const RDY: u32 = 1;
pub(crate) const CFS: u32 = 2;

/// A submission entry as dwords.
pub(crate) type Dwords = [u32; 16];

/// An entry with this opcode and namespace.
pub(crate) fn command(opcode: u8, nsid: u32) -> Dwords {
    let mut dwords = [0; 16];
    dwords[0] = u32::from(opcode);
    dwords[1] = nsid;
    dwords
}

/// Sets PRP1 and PRP2.
pub(crate) fn with_prps(mut dwords: Dwords, prp1: u64, prp2: u64) -> Dwords {
    dwords[6] = prp1 as u32;
    dwords[7] = (prp1 >> 32) as u32;
    dwords[8] = prp2 as u32;
    dwords[9] = (prp2 >> 32) as u32;
    dwords
}

/// Sets one dword.
pub(crate) fn with(mut dwords: Dwords, index: usize, value: u32) -> Dwords {
    dwords[index] = value;
    dwords
}

/// A completion entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) result: u32,
    pub(crate) sq_head: u16,
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    /// Status code type and status code, as 0xTCC.
    pub(crate) status: u16,
    pub(crate) more: bool,
    pub(crate) dnr: bool,
}

pub(crate) struct Ring {
    pub(crate) submission: SharedMemory,
    pub(crate) completion: SharedMemory,
    pub(crate) size: u32,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) phase: bool,
}

impl Ring {
    fn new(space: &AddressSpace, size: u32) -> Ring {
        // At least 64 KiB, and so aligned to any page that the tests set.
        let least = 64 << 10;
        Ring {
            submission: space
                .shared((size as usize * 64).max(least), Access::DEVICE_READ)
                .unwrap(),
            completion: space
                .shared((size as usize * 16).max(least), Access::DEVICE_WRITE)
                .unwrap(),
            size,
            tail: 0,
            head: 0,
            phase: true,
        }
    }
}

pub(crate) struct Host {
    pub(crate) emulator: Arc<Emulator>,
    pub(crate) space: AddressSpace,
    pub(crate) rings: BTreeMap<u16, Ring>,
    next_cid: u16,
}

impl Host {
    /// A controller that is not enabled yet, bus mastering on.
    pub(crate) fn new(config: &str) -> Host {
        Host::of(Emulator::new(config.parse().unwrap()).unwrap())
    }

    /// As [`Host::new`], of this controller.
    pub(crate) fn of(emulator: Arc<Emulator>) -> Host {
        emulator.config_write(4, &[0x06, 0x00]);
        let space = AddressSpace::new(emulator.iommu());
        Host {
            emulator,
            space,
            rings: BTreeMap::new(),
            next_cid: 0,
        }
    }

    /// An enabled controller with admin queues of 16 entries.
    pub(crate) fn enabled(config: &str) -> Host {
        let mut host = Host::new(config);
        host.enable();
        assert_eq!(host.read(CSTS), RDY);
        host
    }

    /// An enabled controller with one I/O queue pair, identifier 1, of `size` entries.
    pub(crate) fn with_queue(config: &str, size: u32) -> Host {
        let mut host = Host::enabled(config);
        host.create_queue(1, size);
        host
    }

    pub(crate) fn enable(&mut self) {
        self.rings.clear();
        let ring = Ring::new(&self.space, 16);
        self.write(AQA, 15 << 16 | 15);
        self.emulator
            .register_write(ASQ, 8, ring.submission.iova().0);
        self.emulator
            .register_write(ACQ, 8, ring.completion.iova().0);
        self.rings.insert(0, ring);
        let page_bits = (self.emulator.register_read(CAP, 8) >> 48 & 0xf) as u32;
        self.write(CC, CC_ENABLE | page_bits << 7);
    }

    pub(crate) fn read(&self, offset: u32) -> u32 {
        self.emulator.register_read(offset, 4) as u32
    }

    pub(crate) fn write(&self, offset: u32, value: u32) {
        self.emulator.register_write(offset, 4, value.into());
    }

    pub(crate) fn ring_doorbell(&self, qid: u16, completion: bool, value: u32) {
        let index =
            (2 * usize::from(qid) + usize::from(completion)) << self.emulator.config().dstrd;
        self.emulator.doorbells()[index].store(value, Ordering::Release);
    }

    /// Writes an entry with a fresh identifier and rings; the identifier.
    pub(crate) fn submit(&mut self, qid: u16, mut dwords: Dwords) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        dwords[0] |= u32::from(cid) << 16;
        self.submit_raw(qid, dwords);
        cid
    }

    /// Writes an entry as it is and rings.
    pub(crate) fn submit_raw(&mut self, qid: u16, dwords: Dwords) {
        let ring = self.rings.get_mut(&qid).unwrap();
        for (index, dword) in dwords.into_iter().enumerate() {
            ring.submission
                .write_u32(ring.tail as usize * 64 + index * 4, dword)
                .unwrap();
        }
        ring.tail = (ring.tail + 1) % ring.size;
        let tail = ring.tail;
        self.ring_doorbell(qid, false, tail);
    }

    /// Takes one completion if there is one, and rings.
    pub(crate) fn take(&mut self, qid: u16) -> Option<Entry> {
        let ring = self.rings.get_mut(&qid).unwrap();
        let at = ring.head as usize * 16;
        let last = ring
            .completion
            .atomic_u32(at + 12)
            .unwrap()
            .load(Ordering::Acquire);
        if (last >> 16 & 1 != 0) != ring.phase {
            return None;
        }
        let result = ring.completion.read_u32(at).unwrap();
        let middle = ring.completion.read_u32(at + 8).unwrap();
        let status = (last >> 17) as u16;
        ring.head = (ring.head + 1) % ring.size;
        if ring.head == 0 {
            ring.phase = !ring.phase;
        }
        let head = ring.head;
        self.ring_doorbell(qid, true, head);
        Some(Entry {
            result,
            sq_head: middle as u16,
            sqid: (middle >> 16) as u16,
            cid: last as u16,
            status: status & 0x7ff,
            more: status & 1 << 13 != 0,
            dnr: status & 1 << 14 != 0,
        })
    }

    /// Submits one command, steps until it is done, and takes its completion.
    pub(crate) fn run(&mut self, qid: u16, dwords: Dwords) -> Entry {
        let cid = self.submit(qid, dwords);
        self.emulator.step();
        let mut entry = self.take(qid);
        let since = Instant::now();
        while entry.is_none() && since.elapsed() < PATIENCE {
            self.emulator.step();
            entry = self.take(qid);
        }
        let entry = entry.expect("a completion");
        assert_eq!((entry.cid, entry.sqid), (cid, qid));
        entry
    }

    /// Runs an admin command that must succeed; dword 0 of its completion.
    pub(crate) fn admin(&mut self, dwords: Dwords) -> u32 {
        let entry = self.run(0, dwords);
        assert_eq!(entry.status, 0, "{dwords:x?}: {entry:x?}");
        entry.result
    }

    /// Runs a command that must fail; the status.
    pub(crate) fn refused(&mut self, qid: u16, dwords: Dwords) -> u16 {
        let entry = self.run(qid, dwords);
        assert_ne!(entry.status, 0, "{dwords:x?} succeeded");
        assert!(entry.more, "the error log tells more");
        entry.status
    }

    pub(crate) fn create_completion_queue(&self, qid: u16, size: u32, iova: u64) -> Dwords {
        let dwords = with(command(0x05, 0), 10, (size - 1) << 16 | u32::from(qid));
        with_prps(with(dwords, 11, 1), iova, 0)
    }

    pub(crate) fn create_submission_queue(
        &self,
        qid: u16,
        size: u32,
        iova: u64,
        cqid: u16,
    ) -> Dwords {
        let dwords = with(command(0x01, 0), 10, (size - 1) << 16 | u32::from(qid));
        with_prps(with(dwords, 11, u32::from(cqid) << 16 | 1), iova, 0)
    }

    pub(crate) fn create_queue(&mut self, qid: u16, size: u32) {
        let ring = Ring::new(&self.space, size);
        let completion = self.create_completion_queue(qid, size, ring.completion.iova().0);
        let submission = self.create_submission_queue(qid, size, ring.submission.iova().0, qid);
        self.rings.insert(qid, ring);
        self.admin(completion);
        self.admin(submission);
    }

    pub(crate) fn delete_queue(&mut self, qid: u16) {
        self.admin(with(command(0x00, 0), 10, qid.into()));
        self.admin(with(command(0x04, 0), 10, qid.into()));
        self.rings.remove(&qid);
    }

    /// Memory for data.
    pub(crate) fn memory(&self, length: usize) -> SharedMemory {
        self.space.shared(length, Access::READ_WRITE).unwrap()
    }

    /// Identify with this CNS; status and data.
    pub(crate) fn identify(&mut self, cns: u8, nsid: u32) -> (u16, Vec<u8>) {
        let memory = self.memory(4096);
        let entry = self.run(
            0,
            with_prps(
                with(command(0x06, nsid), 10, cns.into()),
                memory.iova().0,
                0,
            ),
        );
        (entry.status, bytes(&memory, 4096))
    }

    /// Get Log Page; status and data.
    pub(crate) fn log(&mut self, log: u8, length: u32, offset: u64, nsid: u32) -> (u16, Vec<u8>) {
        let memory = self.memory(length as usize);
        let dwords = length / 4 - 1;
        let mut entry = command(0x02, nsid);
        entry[10] = dwords << 16 | u32::from(log);
        entry[11] = dwords >> 16;
        entry[12] = offset as u32;
        entry[13] = (offset >> 32) as u32;
        let entry = self.run(0, with_prps(entry, memory.iova().0, memory.iova().0 + 4096));
        (entry.status, bytes(&memory, length as usize))
    }

    /// Runs an I/O command with data that describe it, in memory of its own.
    pub(crate) fn run_with(&mut self, qid: u16, dwords: Dwords, data: &[u8]) -> Entry {
        let memory = self.memory(data.len().max(4096).next_multiple_of(4096));
        memory.write_bytes(0, data).unwrap();
        let iova = memory.iova().0;
        self.run(qid, with_prps(dwords, iova, iova + 4096))
    }

    /// A read or write of `blocks` from `lba` with these PRPs.
    pub(crate) fn transfer(opcode: u8, lba: u64, blocks: u32, prp1: u64, prp2: u64) -> Dwords {
        let mut dwords = command(opcode, 1);
        dwords[10] = lba as u32;
        dwords[11] = (lba >> 32) as u32;
        dwords[12] = blocks - 1;
        with_prps(dwords, prp1, prp2)
    }
}

pub(crate) fn bytes(memory: &SharedMemory, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_bytes(0, &mut bytes).unwrap();
    bytes
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}
