//! A client's memory, with pages around it that are not the client's to lend.
#![allow(unsafe_code)] // Memory that a device may change at any time is reached by pointer, and lent to a domain.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nvme_vfio_dma::{Access, IommuDomain, Iova, MapRegion, Memory, Pages};
use nvme_vfio_emulator::SoftwareIommu;

pub(crate) const PAGE: usize = 4096;
const CANARY: u64 = 0xca4a_71e5_ca4a_71e5;

/// A run of pages that the client lends, and where it says that they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Where the client sees the first byte.
    pub(crate) guest: u64,
    /// Bytes from the start of the memory.
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) access: Access,
}

/// Memory of a client. The first and the last page are never lent to anybody.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    memory: Memory,
    /// Where the client sees the byte after the first canary page.
    pub(crate) base: u64,
    pub(crate) runs: Vec<Run>,
}

impl GuestMemory {
    /// Memory of `pages` pages from the guest address `base` on, and a page before and after.
    pub(crate) fn new(base: u64, pages: usize) -> GuestMemory {
        let memory = Memory::new((pages + 2) * PAGE, Pages::Small).expect("memory");
        let memory = GuestMemory {
            memory,
            base,
            runs: Vec::new(),
        };
        for page in [0, pages + 1] {
            for word in 0..PAGE / 8 {
                memory
                    .word(page * PAGE + word * 8)
                    .store(CANARY, Ordering::Relaxed);
            }
        }
        memory
    }

    /// Says that pages `first..first + count` are lent with this access.
    pub(crate) fn run(&mut self, first: usize, count: usize, access: Access) -> Run {
        let run = Run {
            guest: self.base + (first * PAGE) as u64,
            offset: (first + 1) * PAGE,
            length: count * PAGE,
            access,
        };
        self.runs.push(run);
        run
    }

    /// Where a run begins in this process.
    pub(crate) fn pointer(&self, run: Run) -> NonNull<u8> {
        assert!(run.offset + run.length <= self.memory.len());
        // SAFETY: the offset lies inside the memory, as was just asserted.
        unsafe { self.memory.pointer().add(run.offset) }
    }

    /// Bytes between the canary pages.
    pub(crate) fn len(&self) -> usize {
        self.memory.len() - 2 * PAGE
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.memory.len());
        // SAFETY: aligned, inside the memory, which lives as long as `self`; everybody in this process reaches it by atomics or raw copies.
        unsafe { AtomicU64::from_ptr(self.memory.pointer().as_ptr().add(at).cast()) }
    }

    /// The word at a guest address, which must be the client's.
    pub(crate) fn at(&self, guest: u64) -> &AtomicU64 {
        self.word((guest - self.base) as usize + PAGE)
    }

    pub(crate) fn store(&self, guest: u64, value: u64) {
        self.at(guest).store(value, Ordering::Relaxed);
    }

    pub(crate) fn load(&self, guest: u64) -> u64 {
        self.at(guest).load(Ordering::Relaxed)
    }

    /// Fills whole words from a guest address on.
    pub(crate) fn fill(&self, guest: u64, bytes: usize, value: u64) {
        for word in 0..bytes / 8 {
            self.store(guest + word as u64 * 8, value);
        }
    }

    pub(crate) fn write(&self, guest: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = self.load(guest + index as u64 * 8).to_le_bytes();
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(guest + index as u64 * 8, u64::from_le_bytes(word));
        }
    }

    pub(crate) fn read(&self, guest: u64, bytes: usize) -> Vec<u8> {
        let words = (0..bytes.div_ceil(8)).map(|word| self.load(guest + word as u64 * 8));
        let mut all: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        all.truncate(bytes);
        all
    }

    /// Everything between the canary pages.
    pub(crate) fn snapshot(&self) -> Vec<u64> {
        (0..self.len() / 8)
            .map(|word| self.word(PAGE + word * 8).load(Ordering::Relaxed))
            .collect()
    }

    /// Whether the pages that were lent to nobody are as they were.
    pub(crate) fn canaries_live(&self) -> bool {
        let last = self.memory.len() - PAGE;
        [0, last].into_iter().all(|page| {
            (0..PAGE / 8).all(|word| self.word(page + word * 8).load(Ordering::Relaxed) == CANARY)
        })
    }
}

/// Maps a run in a domain, for as long as the memory lives: the caller drops the domain, or what uses it, first.
pub(crate) fn lend(domain: &SoftwareIommu, memory: &GuestMemory, run: Run, iova: u64) {
    let region = MapRegion {
        pointer: memory.pointer(run),
        length: run.length,
        descriptor: None,
        access: run.access,
    };
    // SAFETY: the memory lives as long as the domain is used, and is reached by atomics only.
    unsafe { domain.map(&region, Iova(iova)) }.expect("a free address");
}
