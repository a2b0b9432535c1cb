//! Host memory for one controller: mapped pages between guard pages.
//!
//! A guard page is filled with a word that the input determines by a hash and that stands nowhere else. A write past a mapping changes it; a read past
//! a mapping brings the word into pages where it must not be.
#![allow(unsafe_code)] // Memory that a controller touches is reached through raw pointers, never references.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use nvme_vfio_dma::{Access, IommuDomain, Iova, MapRegion};
use nvme_vfio_emulator::SoftwareIommu;

pub(crate) const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// A mapping that the host makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) iova: u64,
    pub(crate) pages: usize,
    pub(crate) access: Access,
}

struct Placed {
    region: Region,
    /// Its first page in the host's memory.
    page: usize,
    mapped: bool,
}

/// The host's memory; everything is unmapped when it goes.
pub(crate) struct Memory {
    iommu: Arc<SoftwareIommu>,
    base: NonNull<u64>,
    pages: usize,
    secret: u64,
    placed: Vec<Placed>,
}

impl Memory {
    /// Takes memory for the regions and maps them. `secret` fills the guard pages and the pages of unmapped regions.
    pub(crate) fn new(iommu: Arc<SoftwareIommu>, secret: u64, regions: &[Region]) -> Memory {
        let mut pages = 1;
        let mut placed = Vec::new();
        for region in regions {
            placed.push(Placed {
                region: *region,
                page: pages,
                mapped: false,
            });
            pages += region.pages + 1;
        }
        let layout = Memory::layout(pages);
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base.cast()) else {
            handle_alloc_error(layout)
        };
        let mut memory = Memory {
            iommu,
            base,
            pages,
            secret,
            placed,
        };
        memory.fill(0, pages, secret);
        for index in 0..regions.len() {
            memory.map(index);
        }
        memory
    }

    fn layout(pages: usize) -> Layout {
        Layout::from_size_align(pages * PAGE, PAGE).expect("a few pages")
    }

    /// Maps a region that is not mapped, all zeroes.
    pub(crate) fn map(&mut self, index: usize) {
        let Placed { region, page, .. } = self.placed[index];
        self.fill(page, region.pages, 0);
        let map = MapRegion {
            pointer: self.word(page, 0).cast(),
            length: region.pages * PAGE,
            descriptor: None,
            access: region.access,
        };
        // SAFETY: the memory lives until `drop`, which unmaps everything first.
        let mapped = unsafe { self.iommu.map(&map, Iova(region.iova)) };
        mapped.expect("a free address");
        self.placed[index].mapped = true;
    }

    /// Unmaps a region; its pages are guard pages from then on.
    pub(crate) fn unmap(&mut self, index: usize) {
        let Placed { region, page, .. } = self.placed[index];
        let length = region.pages * PAGE;
        let unmapped = self.iommu.unmap(Iova(region.iova), length);
        unmapped.expect("a live mapping");
        self.placed[index].mapped = false;
        self.fill(page, region.pages, self.secret);
    }

    pub(crate) fn is_mapped(&self, index: usize) -> bool {
        self.placed[index].mapped
    }

    /// Reads the dword at this offset of a region.
    pub(crate) fn read_u32(&self, index: usize, offset: usize) -> u32 {
        let placed = &self.placed[index];
        assert!(offset.is_multiple_of(4) && offset + 4 <= placed.region.pages * PAGE);
        let base = self.word(placed.page, 0).cast::<u32>();
        // SAFETY: inside the region, checked above.
        u32::from_le(unsafe { base.add(offset / 4).read_volatile() })
    }

    /// Writes bytes at an offset of a region; what does not fit is left out.
    pub(crate) fn write(&mut self, index: usize, offset: usize, bytes: &[u8]) {
        let placed = &self.placed[index];
        let room = (placed.region.pages * PAGE).saturating_sub(offset);
        let base = self.word(placed.page, 0).cast::<u8>();
        for (at, byte) in bytes.iter().take(room).enumerate() {
            // SAFETY: inside the region, by `room`.
            unsafe { base.add(offset + at).write_volatile(*byte) };
        }
    }

    /// Fills a whole region with zeroes.
    pub(crate) fn clear(&mut self, index: usize) {
        let (page, pages) = (self.placed[index].page, self.placed[index].region.pages);
        self.fill(page, pages, 0);
    }

    /// All of the memory in one number.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = 0u64;
        for page in 0..self.pages {
            for offset in 0..WORDS {
                digest = digest.rotate_left(5).wrapping_add(self.read(page, offset)) ^ 0x9e37_79b9;
            }
        }
        digest
    }

    /// Guard pages are as they were, and nothing of them is in a page that is mapped.
    pub(crate) fn check(&self) {
        let mut guard = vec![true; self.pages];
        for placed in self.placed.iter().filter(|placed| placed.mapped) {
            guard[placed.page..placed.page + placed.region.pages].fill(false);
        }
        for (page, guard) in guard.into_iter().enumerate() {
            for offset in 0..WORDS {
                let same = self.read(page, offset) == self.secret;
                assert!(
                    same == guard,
                    "the controller {} outside its mappings: page {page}, byte {:#x}",
                    if guard { "wrote" } else { "read" },
                    offset * 8,
                );
            }
        }
    }

    fn word(&self, page: usize, offset: usize) -> NonNull<u64> {
        assert!(page < self.pages && offset < WORDS);
        // SAFETY: inside the allocation, checked above.
        unsafe { self.base.add(page * WORDS + offset) }
    }

    fn read(&self, page: usize, offset: usize) -> u64 {
        // SAFETY: a word of the allocation.
        unsafe { self.word(page, offset).read_volatile() }
    }

    fn fill(&mut self, page: usize, pages: usize, word: u64) {
        for page in page..page + pages {
            for offset in 0..WORDS {
                // SAFETY: a word of the allocation.
                unsafe { self.word(page, offset).write_volatile(word) };
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for placed in self.placed.iter().filter(|placed| placed.mapped) {
            let length = placed.region.pages * PAGE;
            let unmapped = self.iommu.unmap(Iova(placed.region.iova), length);
            // Freed memory must not stay mapped: the next input would be blamed for it.
            assert!(unmapped.is_ok(), "{unmapped:?}");
        }
        // SAFETY: allocated in `new` with this layout; nothing is mapped any more.
        unsafe { dealloc(self.base.as_ptr().cast(), Memory::layout(self.pages)) };
    }
}
