//! A client's memory, with pages around it that are not the client's to lend.
#![allow(unsafe_code)] // Memory that a device may change at any time is reached by pointer, and lent to a domain.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_dma::{Access, IommuDomain, Iova, MapRegion};
use nvme_vfio_emulator::SoftwareIommu;

/// Bytes of a page.
pub const PAGE: usize = 4096;
const CANARY: u64 = 0xca4a_71e5_ca4a_71e5;

/// A run of pages that the client lends, and where it says that they are.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Where the client sees the first byte.
    pub guest: u64,
    /// Bytes from the start of the memory, and of its file.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
    /// What the device may do to it.
    pub access: Access,
}

/// Memory of a client. The first and the last page are never lent to anybody.
#[derive(Debug)]
pub struct GuestMemory {
    memory: MmapRaw,
    file: File,
    /// Where the client sees the byte after the first canary page.
    pub base: u64,
    /// What is lent.
    pub runs: Vec<Run>,
}

impl GuestMemory {
    /// Memory of `pages` pages from the guest address `base` on, and a page before and after.
    ///
    /// # Panics
    /// When the system does not give it.
    #[must_use]
    pub fn new(base: u64, pages: usize) -> GuestMemory {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"client", flags).expect("a file in memory"));
        let length = (pages + 2) * PAGE;
        file.set_len(length as u64).expect("memory");
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
        let memory = MmapOptions::new().len(length).populate().map_raw(&file);
        let memory = GuestMemory {
            memory: memory.expect("memory"),
            file,
            base,
            runs: Vec::new(),
        };
        for page in [0, pages + 1] {
            for word in memory.page(page) {
                word.store(CANARY, Ordering::Relaxed);
            }
        }
        memory
    }

    /// Says that pages `first..first + count` are lent with this access.
    pub fn run(&mut self, first: usize, count: usize, access: Access) -> Run {
        let run = Run {
            guest: self.base + (first * PAGE) as u64,
            offset: (first + 1) * PAGE,
            length: count * PAGE,
            access,
        };
        self.runs.push(run);
        run
    }

    /// The file whose bytes the memory is.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where a run begins in this process.
    ///
    /// # Panics
    /// When it is not of this memory.
    #[must_use]
    pub fn pointer(&self, run: Run) -> NonNull<u8> {
        assert!(run.offset + run.length <= self.memory.len());
        let pointer = NonNull::new(self.memory.as_mut_ptr()).expect("a mapping");
        // SAFETY: the offset lies inside the memory, as was just asserted.
        unsafe { pointer.add(run.offset) }
    }

    /// Bytes between the canary pages.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always a page")]
    pub fn len(&self) -> usize {
        self.memory.len() - 2 * PAGE
    }

    /// All of it, with the canary pages.
    fn all(&self) -> &[AtomicU64] {
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins with a page")]
        let first = self.memory.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: whole pages, mapped as long as `self`; everybody in this process reaches them by atomics or raw copies.
        unsafe { slice::from_raw_parts(first, self.memory.len() / 8) }
    }

    fn page(&self, page: usize) -> &[AtomicU64] {
        &self.all()[page * PAGE / 8..][..PAGE / 8]
    }

    /// Every word between the canary pages.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        &self.all()[PAGE / 8..][..self.len() / 8]
    }

    /// Words from a guest address on, which must be the client's.
    fn words_at(&self, guest: u64, bytes: usize) -> &[AtomicU64] {
        assert!(guest.is_multiple_of(8));
        &self.words()[(guest - self.base) as usize / 8..][..bytes.div_ceil(8)]
    }

    /// The word at a guest address, which must be the client's.
    #[must_use]
    pub fn at(&self, guest: u64) -> &AtomicU64 {
        &self.words_at(guest, 8)[0]
    }

    /// Stores a word.
    pub fn store(&self, guest: u64, value: u64) {
        self.at(guest).store(value, Ordering::Relaxed);
    }

    /// Loads a word.
    #[must_use]
    pub fn load(&self, guest: u64) -> u64 {
        self.at(guest).load(Ordering::Relaxed)
    }

    /// Fills whole words from a guest address on.
    pub fn fill(&self, guest: u64, bytes: usize, value: u64) {
        for word in self.words_at(guest, bytes / 8 * 8) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Writes bytes from a guest address on, which is that of a word.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        for (word, chunk) in self
            .words_at(guest, bytes.len())
            .iter()
            .zip(bytes.chunks(8))
        {
            let mut value = word.load(Ordering::Relaxed).to_le_bytes();
            value[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }

    /// Reads bytes from a guest address on, which is that of a word.
    #[must_use]
    pub fn read(&self, guest: u64, bytes: usize) -> Vec<u8> {
        let words = self.words_at(guest, bytes).iter();
        let mut all: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        all.truncate(bytes);
        all
    }

    /// Everything between the canary pages.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u64> {
        let words = self.words().iter();
        words.map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Whether the pages that were lent to nobody are as they were.
    #[must_use]
    pub fn canaries_live(&self) -> bool {
        let last = self.memory.len() / PAGE - 1;
        [0, last].into_iter().all(|page| {
            let mut words = self.page(page).iter();
            words.all(|word| word.load(Ordering::Relaxed) == CANARY)
        })
    }
}

/// Maps a run in a domain, for as long as the memory lives: the caller drops the domain, or what uses it, first.
///
/// # Panics
/// When something is mapped there already.
pub fn lend(domain: &SoftwareIommu, memory: &GuestMemory, run: Run, iova: u64) {
    let region = MapRegion {
        pointer: memory.pointer(run),
        length: run.length,
        descriptor: None,
        access: run.access,
    };
    // SAFETY: the memory lives as long as the domain is used, and is reached by atomics only.
    unsafe { domain.map(&region, Iova(iova)) }.expect("a free address");
}
