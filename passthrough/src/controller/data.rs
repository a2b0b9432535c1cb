//! Where a command's data lies as the real controller sees it, and the PRPs of each part of it.

use nvme_vfio_dma::SharedMemory;
use nvme_vfio_queues::prp::{self, DataPointer, PageSize, PrpError, PrpListMemory, Segment};

/// The pages that belong to the slots of one target, one each: for PRP lists and lists of ranges. The controller may only read them.
#[derive(Debug)]
pub(super) struct Pages {
    memory: SharedMemory,
    page: PageSize,
}

impl Pages {
    /// `memory` is as many pages as there are slots.
    pub(super) fn new(memory: SharedMemory, page: PageSize) -> Self {
        Self { memory, page }
    }

    pub(super) fn into_memory(self) -> SharedMemory {
        self.memory
    }

    pub(super) fn of(&self, slot: u16) -> SlotPage<'_> {
        SlotPage {
            pages: self,
            offset: usize::from(slot) * self.page.bytes(),
        }
    }
}

/// The page of one slot.
#[derive(Debug)]
pub(super) struct SlotPage<'a> {
    pages: &'a Pages,
    offset: usize,
}

impl SlotPage<'_> {
    /// Where the controller sees it.
    pub(super) fn iova(&self) -> u64 {
        self.pages.memory.iova().0 + self.offset as u64
    }

    /// Writes the quadword `index`; past the page nothing is written.
    pub(super) fn put(&mut self, index: usize, value: u64) {
        let offset = index * size_of::<u64>();
        if offset < self.pages.page.bytes() {
            // Inside of the slot's page, and the page inside of the memory.
            let written = self.pages.memory.write_u64(self.offset + offset, value);
            debug_assert!(written.is_ok());
        }
    }
}

impl PrpListMemory for SlotPage<'_> {
    fn pages(&self) -> usize {
        1
    }

    fn page_iova(&self, _page: usize) -> u64 {
        self.iova()
    }

    #[inline]
    fn write(&mut self, _page: usize, entry: usize, value: u64) {
        self.put(entry, value);
    }
}

/// The PRPs of `length` bytes, `skip` bytes into data that lies in `segments`; the list in `list` where there must be one. `window` is scratch.
///
/// A client's pages stay pages wherever its data is cut: a part that begins inside of a page has that offset in PRP1, and whole pages from there on.
///
/// # Errors
/// [`PrpError`], where the segments are shorter, or not made of whole pages but for the first's begin and the last's end.
#[inline]
pub(super) fn pointer(
    segments: &[Segment],
    skip: usize,
    length: usize,
    page: PageSize,
    list: &mut SlotPage<'_>,
    window: &mut Vec<Segment>,
) -> Result<DataPointer, PrpError> {
    if let [only] = segments
        && skip + length <= only.len
    {
        return prp::build(only.iova + skip as u64, length, page, list);
    }
    scattered(segments, skip, length, page, list, window)
}

#[inline(never)]
fn scattered(
    segments: &[Segment],
    mut skip: usize,
    length: usize,
    page: PageSize,
    list: &mut SlotPage<'_>,
    window: &mut Vec<Segment>,
) -> Result<DataPointer, PrpError> {
    window.clear();
    let mut left = length;
    for segment in segments {
        if left == 0 {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let len = (segment.len - skip).min(left);
        window.push(Segment {
            iova: segment.iova + skip as u64,
            len,
        });
        left -= len;
        skip = 0;
    }
    if left > 0 {
        return Err(PrpError::Empty {
            segment: window.len(),
        });
    }
    prp::build_scattered(window, page, list)
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
