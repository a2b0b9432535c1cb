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

mod page;

use core::ops::Range;

pub use page::PageSize;
use page::list_pages_for;

/// PRP1 bits 1:0 are reserved.
const DWORD_MASK: u64 = 0b11;

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
#[inline(always)]
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
    let rest = len.checked_sub(1).ok_or(PrpError::Empty { segment: 0 })?;
    let last = iova
        .checked_add(rest as u64)
        .ok_or(PrpError::AddressOverflow { segment: 0 })?;
    if iova & DWORD_MASK != 0 {
        return Err(PrpError::NotDwordAligned { iova });
    }
    // No more than `rest`, which is a usize.
    let entries = ((last >> page.shift()) - (iova >> page.shift())) as usize;
    let mut address = iova & !page.mask;
    let pages = || {
        // Behind the last page this wraps, where nothing asks any more.
        address = address.wrapping_add(page.mask + 1);
        address
    };
    describe(iova, entries, pages, page, list)
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
    let mut runs = Runs::new(segments, page);
    let mut run = 0..0;
    let shift = page.shift();
    let mut pages = || {
        while run.is_empty() {
            match runs.next() {
                Some(next) => run = next,
                None => return 0,
            }
        }
        let number = run.start;
        run.start += 1;
        number << shift
    };
    // The first page is PRP1's.
    pages();
    describe(prp1, entries, pages, page, list)
}

/// PRP2, and the list where one is needed: `entries` addresses, which `next` gives one by one.
#[inline]
fn describe<L: PrpListMemory + ?Sized>(
    prp1: u64,
    entries: usize,
    mut next: impl FnMut() -> u64,
    page: PageSize,
    list: &mut L,
) -> Result<DataPointer, PrpError> {
    if entries <= 1 {
        let prp2 = if entries == 1 { next() } else { 0 };
        return Ok(DataPointer { prp1, prp2 });
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

    // The last entry of a full page is the chain to the next; the last page has no next.
    let chain = page.entries_per_list_page() - 1;
    let last_page = needed - 1;
    for index in 0..last_page {
        for entry in 0..chain {
            list.write(index, entry, next());
        }
        let next_page = list.page_iova(index + 1);
        list.write(index, chain, next_page);
    }
    for entry in 0..entries - last_page * chain {
        list.write(last_page, entry, next());
    }
    Ok(DataPointer {
        prp1,
        prp2: list.page_iova(0),
    })
}

/// Checks that PRPs can express the segments; how many pages they touch.
fn check(segments: &[Segment], page: PageSize) -> Result<usize, PrpError> {
    let shift = page.shift();
    let mut pages = 0u64;
    // The last byte of the segment before.
    let mut before: Option<u64> = None;
    for (index, segment) in segments.iter().enumerate() {
        let iova = segment.iova;
        let rest = segment
            .len
            .checked_sub(1)
            .ok_or(PrpError::Empty { segment: index })?;
        let last = iova
            .checked_add(rest as u64)
            .ok_or(PrpError::AddressOverflow { segment: index })?;
        let new_pages = match before {
            None if iova & DWORD_MASK != 0 => {
                return Err(PrpError::NotDwordAligned { iova });
            }
            Some(before) if continues(before, iova) => (last >> shift) - (before >> shift),
            Some(before) if before & page.mask != page.mask => {
                // `before` is not the last byte of a page, so one more does not overflow.
                return Err(PrpError::EndNotPageAligned {
                    segment: index - 1,
                    end: before + 1,
                });
            }
            Some(_) if iova & page.mask != 0 => {
                return Err(PrpError::StartNotPageAligned {
                    segment: index,
                    iova,
                });
            }
            None | Some(_) => (last >> shift) - (iova >> shift) + 1,
        };
        pages = pages.saturating_add(new_pages);
        before = Some(last);
    }
    Ok(usize::try_from(pages).unwrap_or(usize::MAX))
}

/// The numbers of the pages that each checked segment adds, in order: none for a
/// segment that ends in the page where the one that it continues ended.
struct Runs<'a> {
    segments: core::slice::Iter<'a, Segment>,
    /// log2 of the page size.
    shift: u32,
    /// The last byte of the segment before.
    before: Option<u64>,
}

impl<'a> Runs<'a> {
    #[inline]
    fn new(segments: &'a [Segment], page: PageSize) -> Self {
        Self {
            segments: segments.iter(),
            shift: page.shift(),
            before: None,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        let segment = self.segments.next()?;
        let shift = self.shift;
        // The segments are checked: their lengths are not 0 and their ends are addresses.
        let last = segment
            .iova
            .wrapping_add(segment.len as u64)
            .wrapping_sub(1);
        let first = match self.before {
            Some(before) if continues(before, segment.iova) => (before >> shift) + 1,
            _ => segment.iova >> shift,
        };
        self.before = Some(last);
        Some(first..(last >> shift) + 1)
    }
}

/// Whether a segment at `iova` goes on right behind the byte `before`.
#[inline]
fn continues(before: u64, iova: u64) -> bool {
    before.checked_add(1) == Some(iova)
}

#[cfg(test)]
mod tests;
