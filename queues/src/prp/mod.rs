//! Physical Region Pages: how a command names its data (Base Specification 2.0, 4.1.1).
//!
//! With pages of CC.MPS size:
//!
//! - PRP1 is where the data starts, at any dword of a page.
//! - Data that ends in the second page has that page's address in PRP2.
//! - Data of more pages has the address of a PRP list in PRP2: an array of page addresses,
//!   filling whole pages. When a list page is full and entries remain, its *last* entry is the
//!   address of the next list page instead of a data page.
//!
//! [`build`] does this for one contiguous range, [`build_scattered`] for several. Ranges of at
//! most two pages touch no list memory. Entries beyond the last used one are left
//! as they were: the controller derives the count from the command's length and
//! never looks at them.

use core::ops::RangeInclusive;

/// log2 of the smallest memory page size that NVMe knows.
const MIN_PAGE_SHIFT: u32 = 12;
/// The largest value of CC.MPS, CAP.MPSMIN and CAP.MPSMAX.
const MAX_MPS: u32 = 15;
/// A PRP list entry is 8 bytes.
const ENTRY_SHIFT: u32 = 3;
/// PRP1 bits 1:0 are reserved.
const DWORD_MASK: u64 = 0b11;

/// The memory page size in force (CC.MPS): a power of two from 4 KiB to 128 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    /// The bits of an address that tell where in a page it lies: what building PRPs needs most.
    mask: u64,
}

impl PageSize {
    /// 4 KiB, CC.MPS = 0.
    pub const KIB_4: Self = Self::of_shift(MIN_PAGE_SHIFT);

    /// From bytes; `None` unless a power of two from 4 KiB to 128 MiB.
    #[must_use]
    pub const fn new(bytes: usize) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        let shift = bytes.trailing_zeros();
        if shift < MIN_PAGE_SHIFT || shift > MIN_PAGE_SHIFT + MAX_MPS {
            return None;
        }
        Some(Self::of_shift(shift))
    }

    /// From the value that CC.MPS, CAP.MPSMIN and CAP.MPSMAX have, 0..=15; `None` above.
    #[must_use]
    pub const fn from_mps(mps: u8) -> Option<Self> {
        if mps as u32 > MAX_MPS {
            return None;
        }
        Some(Self::of_shift(MIN_PAGE_SHIFT + mps as u32))
    }

    /// From a 4-bit register field, which has no other values.
    pub(crate) const fn from_mps_field(field: u8) -> Self {
        Self::of_shift(MIN_PAGE_SHIFT + (field & MAX_MPS as u8) as u32)
    }

    /// The value for CC.MPS, 0..=15.
    #[must_use]
    pub const fn mps(self) -> u8 {
        (self.shift() - MIN_PAGE_SHIFT) as u8
    }

    /// In bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.mask + 1) as usize
    }

    /// How many entries a PRP list page of this size holds.
    #[inline]
    #[must_use]
    pub const fn entries_per_list_page(self) -> usize {
        self.bytes() >> ENTRY_SHIFT
    }

    /// How many list pages data of at most `len` bytes needs at the worst alignment.
    #[must_use]
    pub const fn list_pages(self, len: usize) -> usize {
        if len == 0 {
            return 0;
        }
        // The worst start is the last dword of a page: that page takes 4 bytes.
        let rest = len.saturating_sub(4);
        list_pages_for(rest.div_ceil(self.bytes()), self)
    }

    const fn of_shift(shift: u32) -> Self {
        Self {
            mask: (1 << shift) - 1,
        }
    }

    const fn shift(self) -> u32 {
        self.mask.count_ones()
    }
}

/// PRP1 and PRP2 of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DataPointer {
    /// PRP Entry 1.
    pub prp1: u64,
    /// PRP Entry 2.
    pub prp2: u64,
}

impl DataPointer {
    /// For commands that transfer no data.
    pub const NONE: Self = Self { prp1: 0, prp2: 0 };
}

/// One contiguous range of a scattered buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Where the device sees the range.
    pub iova: u64,
    /// Bytes.
    pub len: usize,
}

/// Memory for PRP lists, as much as a command's owner set aside.
///
/// Whether it is device-visible memory or a test's array is the implementor's matter.
pub trait PrpListMemory {
    /// How many list pages there are, each of the page size in force.
    fn pages(&self) -> usize;

    /// Where the device sees list page `page` (below [`pages`](Self::pages)). A multiple of the page size.
    fn page_iova(&self, page: usize) -> u64;

    /// Stores `value` as entry `entry` of list page `page`; `page` is below [`pages`](Self::pages),
    /// `entry` below [`PageSize::entries_per_list_page`]. The device is little-endian.
    fn write(&mut self, page: usize, entry: usize, value: u64);
}

/// No list memory: only data of at most two pages can be described.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoList;

impl PrpListMemory for NoList {
    fn pages(&self) -> usize {
        0
    }

    fn page_iova(&self, _page: usize) -> u64 {
        0
    }

    fn write(&mut self, _page: usize, _entry: usize, _value: u64) {}
}

/// Why a buffer cannot be described by PRPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrpError {
    /// A length of zero: a command without data has [`DataPointer::NONE`].
    #[error("segment {segment} is empty")]
    Empty {
        /// Index into the segments; 0 for a contiguous range.
        segment: usize,
    },
    /// PRP1 must be a multiple of 4.
    #[error("the data starts at {iova:#x}, which is not a multiple of 4")]
    NotDwordAligned {
        /// Where the data starts.
        iova: u64,
    },
    /// The range passes the end of the 64-bit address space.
    #[error("segment {segment} runs past the end of the address space")]
    AddressOverflow {
        /// Index into the segments; 0 for a contiguous range.
        segment: usize,
    },
    /// A segment after the first starts inside a page, and does not continue the one before.
    #[error("segment {segment} starts at {iova:#x}, which is not a multiple of the page size")]
    StartNotPageAligned {
        /// Index into the segments.
        segment: usize,
        /// Where it starts.
        iova: u64,
    },
    /// A segment before the last ends inside a page, and is not continued by the next.
    #[error(
        "segment {segment} ends at {end:#x}, which is not a multiple of the page size, and another follows"
    )]
    EndNotPageAligned {
        /// Index into the segments.
        segment: usize,
        /// The address behind its last byte.
        end: u64,
    },
    /// More list pages are needed than there are.
    #[error("the data needs {needed} PRP list pages, {available} are set aside")]
    ListTooShort {
        /// List pages the data needs.
        needed: usize,
        /// List pages there are.
        available: usize,
    },
    /// The list memory is not page aligned as the device sees it.
    #[error("PRP list page {page} is at {iova:#x}, which is not a multiple of the page size")]
    ListNotPageAligned {
        /// Which list page.
        page: usize,
        /// Where the device sees it.
        iova: u64,
    },
}

/// Describes `len` bytes that the device sees at `iova`, contiguously.
///
/// Touches `list` only when the data spans more than two pages. The list must stay as it
/// is until the command has completed.
///
/// # Errors
///
/// [`PrpError`]; then nothing has been written to `list`.
#[inline]
pub fn build<L: PrpListMemory + ?Sized>(
    iova: u64,
    len: usize,
    page: PageSize,
    list: &mut L,
) -> Result<DataPointer, PrpError> {
    if iova & DWORD_MASK == 0 {
        // Bytes of the first page behind the first byte, and of the data behind its first; the latter is
        // the largest number for no data, which thereby goes the slow way.
        let page_rest = page.mask & !iova;
        let data_rest = (len as u64).wrapping_sub(1);
        if data_rest <= page_rest {
            return Ok(DataPointer {
                prp1: iova,
                prp2: 0,
            });
        }
        let second = (iova | page.mask).wrapping_add(1);
        // A second page at 0 means that the data wraps around the address space.
        if data_rest - page_rest - 1 <= page.mask && second != 0 {
            return Ok(DataPointer {
                prp1: iova,
                prp2: second,
            });
        }
    }
    build_list(iova, len, page, list)
}

/// The rest of [`build`]: lists and errors.
#[inline(never)]
fn build_list<L: PrpListMemory + ?Sized>(
    iova: u64,
    len: usize,
    page: PageSize,
    list: &mut L,
) -> Result<DataPointer, PrpError> {
    build_scattered(&[Segment { iova, len }], page, list)
}

/// Describes several ranges as one buffer, in their order.
///
/// PRPs cannot express a hole inside a page, so the first segment may start at any dword but must
/// end with a page, middle ones must be whole pages, and the last must start with a page.
/// Segments that continue each other (`iova + len` of one is `iova` of the next) count as one.
///
/// # Errors
///
/// [`PrpError`], which names the segment; then nothing has been written to `list`.
pub fn build_scattered<L: PrpListMemory + ?Sized>(
    segments: &[Segment],
    page: PageSize,
    list: &mut L,
) -> Result<DataPointer, PrpError> {
    let prp1 = segments.first().ok_or(PrpError::Empty { segment: 0 })?.iova;
    let entries = check(segments, page)?.saturating_sub(1);
    let mut pages = runs(segments, page)
        .flatten()
        .skip(1)
        .map(|number| number << page.shift());
    if entries <= 1 {
        return Ok(DataPointer {
            prp1,
            prp2: pages.next().unwrap_or(0),
        });
    }

    let needed = list_pages_for(entries, page);
    let available = list.pages();
    if needed > available {
        return Err(PrpError::ListTooShort { needed, available });
    }
    for index in 0..needed {
        let iova = list.page_iova(index);
        if iova & page.mask != 0 {
            return Err(PrpError::ListNotPageAligned { page: index, iova });
        }
    }

    let per_page = page.entries_per_list_page();
    let last_page = needed - 1;
    for index in 0..needed {
        // The last entry of a full page is the chain to the next; the last page has no next.
        let room = if index == last_page {
            per_page
        } else {
            per_page - 1
        };
        for (entry, address) in pages.by_ref().take(room).enumerate() {
            list.write(index, entry, address);
        }
        if index != last_page {
            let next = list.page_iova(index + 1);
            list.write(index, room, next);
        }
    }
    Ok(DataPointer {
        prp1,
        prp2: list.page_iova(0),
    })
}

/// Checks that PRPs can express the segments; how many pages they touch.
fn check(segments: &[Segment], page: PageSize) -> Result<usize, PrpError> {
    // The last byte of the segment before.
    let mut before: Option<u64> = None;
    for (index, segment) in segments.iter().enumerate() {
        let rest = segment
            .len
            .checked_sub(1)
            .ok_or(PrpError::Empty { segment: index })?;
        let last = segment
            .iova
            .checked_add(rest as u64)
            .ok_or(PrpError::AddressOverflow { segment: index })?;
        match before {
            None if segment.iova & DWORD_MASK != 0 => {
                return Err(PrpError::NotDwordAligned { iova: segment.iova });
            }
            None => {}
            Some(before) if continues(before, segment.iova) => {}
            Some(before) if before & page.mask != page.mask => {
                // `before` is not the last byte of a page, so one more does not overflow.
                return Err(PrpError::EndNotPageAligned {
                    segment: index - 1,
                    end: before + 1,
                });
            }
            Some(_) if segment.iova & page.mask != 0 => {
                return Err(PrpError::StartNotPageAligned {
                    segment: index,
                    iova: segment.iova,
                });
            }
            Some(_) => {}
        }
        before = Some(last);
    }
    Ok(runs(segments, page).fold(0usize, |count, run| {
        // An empty run has its end before its start.
        let (start, end) = (*run.start(), *run.end());
        let pages = if start > end { 0 } else { end - start + 1 };
        count.saturating_add(usize::try_from(pages).unwrap_or(usize::MAX))
    }))
}

/// The numbers of the pages that each of the checked segments adds, in order. A segment that continues
/// the one before adds no page that they share.
fn runs(segments: &[Segment], page: PageSize) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
    let mut before: Option<u64> = None;
    segments.iter().map(move |segment| {
        let last = segment
            .iova
            .wrapping_add(segment.len as u64)
            .wrapping_sub(1);
        let first = match before {
            Some(before) if continues(before, segment.iova) => (before >> page.shift()) + 1,
            _ => segment.iova >> page.shift(),
        };
        before = Some(last);
        first..=last >> page.shift()
    })
}

/// Whether a segment at `iova` goes on right behind the byte `before`.
fn continues(before: u64, iova: u64) -> bool {
    before.checked_add(1) == Some(iova)
}

/// How many list pages that many entries fill.
const fn list_pages_for(entries: usize, page: PageSize) -> usize {
    if entries <= 1 {
        // None, or the one that PRP2 itself holds.
        return 0;
    }
    // Every list page but the last gives one of its entries to the chain.
    (entries - 1).div_ceil(page.entries_per_list_page() - 1)
}

#[cfg(test)]
mod tests;
