//! The seam to an I/O address space: what can be mapped for a device, where, and what can go wrong.
//!
//! Four things implement [`IommuDomain`]: a VFIO container, an iommufd address space, a vfio-user connection and the software
//! IOMMU of the emulated controller. They all answer in the same words, so [`check_region`] is theirs to call before
//! they ask anybody: Linux has one error, EINVAL, for nine different mistakes.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{MapError, UnmapError};

/// An address as the device sees it: what goes into a PRP entry, a ring base register or a DMA descriptor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on, or `None` when that is past 2^64 − 1.
    #[inline]
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `alignment` bytes. Zero divides nothing.
    #[inline]
    #[must_use]
    pub const fn is_aligned_to(self, alignment: u64) -> bool {
        alignment != 0 && self.0.is_multiple_of(alignment)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

bitflags::bitflags! {
    /// What the device may do with mapped memory. The process itself can always read and write what it mapped.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// The device may read: data of a write command, submission queues, PRP lists.
        const DEVICE_READ = 1;
        /// The device may write: data of a read command, completion queues.
        const DEVICE_WRITE = 2;
        /// Both.
        const READ_WRITE = 3;
    }
}

/// Identity of one domain, never used again in this process. 32 bits, so that a buffer can carry it inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainId(u32);

impl DomainId {
    /// An identity that no other domain of this process has.
    ///
    /// # Panics
    /// After 2^32 − 1 domains: a repeated identity would let a buffer of one domain into a queue of another.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each call gives another value")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Relaxed: only the uniqueness of the number matters, which the atomic read-modify-write gives by itself.
        let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            next.checked_add(1)
        });
        // INVARIANT: a domain costs a kernel descriptor and a group; four billion of them are not opened in one process.
        Self(taken.expect("identities of domains are used up"))
    }

    /// The number, for logs.
    #[inline]
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What is to be mapped.
#[derive(Debug, Clone, Copy)]
pub struct MapRegion<'a> {
    /// First byte in this process; a multiple of the page size.
    pub pointer: NonNull<u8>,
    /// Bytes; a multiple of the page size, not zero.
    pub length: usize,
    /// The file behind the memory and the region's offset in it, for a domain that lives in another process. Without one such a domain
    /// answers [`MapError::NotShareable`].
    pub descriptor: Option<(BorrowedFd<'a>, u64)>,
    /// What the device may do with it.
    pub access: Access,
}

/// What a domain can map, at the moment of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainLimits {
    /// Where regions can be: both ends included. Holes between the ranges are reserved (on x86 0xfee00000 to 0xfeefffff for interrupts).
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// Page sizes as a bitmap: bit 12 is 4 KiB, bit 21 is 2 MiB, bit 30 is 1 GiB.
    pub page_sizes: u64,
    /// How many mappings can be made from now on, on top of those that are there; `None` when the domain does not say.
    pub mappings: Option<u32>,
}

impl DomainLimits {
    /// Smallest page of the domain in bytes, at least one of the system's own: what pointers, lengths and IOVAs must be multiples of.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        let system = crate::page::page_size() as u64;
        match self.page_sizes.trailing_zeros() {
            64 => system,
            bit => (1 << bit).max(system),
        }
    }

    /// Whether one range holds the whole region; if not, the stretch of unusable addresses that it runs into.
    ///
    /// # Errors
    /// The hole, both ends included.
    pub fn contains(&self, first: u64, last: u64) -> Result<(), RangeInclusive<u64>> {
        let mut wanted = first;
        // Ranges may touch each other or come unsorted: walk from one to the next until the region is covered.
        while let Some(range) = self
            .iova_ranges
            .iter()
            .find(|range| range.contains(&wanted))
        {
            if *range.end() >= last {
                return Ok(());
            }
            wanted = range.end() + 1; // cannot wrap: the end is below `last`
        }
        let ranges = self.iova_ranges.iter().filter(|range| !range.is_empty());
        let before = ranges
            .clone()
            .map(|range| *range.end())
            .filter(|end| *end < wanted)
            .max();
        let after = ranges
            .map(|range| *range.start())
            .filter(|start| *start > wanted)
            .min();
        Err(before.map_or(0, |end| end + 1)..=after.map_or(u64::MAX, |start| start - 1))
    }
}

/// An I/O address space: memory mapped into it can be reached by every device behind it, and nothing else can.
///
/// One per VFIO group; devices of two groups never share one.
///
/// When the last `Arc` of a domain is dropped every mapping in it ends: an implementor's `drop` returns only when no device can reach the memory
/// any more, or the memory is held elsewhere for as long as one can (the kernel pins what it mapped).
pub trait IommuDomain: Send + Sync + fmt::Debug {
    /// The same value every time; see [`DomainId::new`].
    fn id(&self) -> DomainId;

    /// What can be mapped now.
    fn limits(&self) -> DomainLimits;

    /// Maps a region, so that a device that accesses `iova..iova + length` reaches the memory. Implementors call [`check_region`] first.
    ///
    /// # Safety
    /// The memory stays mapped in this process, is not given to another use, and is accessed only in ways that bear a device
    /// reading and writing it at any time, until [`unmap`](Self::unmap) of it has succeeded or the domain is gone.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is mapped then.
    #[expect(
        unsafe_code,
        reason = "declares the contract; nothing unsafe is done here"
    )]
    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError>;

    /// Ends one mapping, whole.
    ///
    /// # Errors
    /// See [`UnmapError`]: the range holds no mapping, or not exactly one that is as long as `length`. The caller must then take the memory for
    /// still mapped.
    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError>;
}

/// Finds what is wrong with a request before anybody is asked, and names it.
///
/// The order is: length, access, alignment, wrap, address ranges, budget. An overlap with another mapping is for the domain to find.
///
/// # Errors
/// The first of [`MapError::ZeroLength`], [`MapError::NoAccess`], [`MapError::MisalignedLength`], [`MapError::MisalignedPointer`],
/// [`MapError::MisalignedIova`], [`MapError::PointerWraps`], [`MapError::IovaWraps`], [`MapError::OutsideIovaRanges`], [`MapError::TooManyMappings`] that holds.
pub fn check_region(
    limits: &DomainLimits,
    region: &MapRegion<'_>,
    iova: Iova,
) -> Result<(), MapError> {
    let page_size = limits.page_size();
    let pointer = region.pointer.addr().get();
    let length = region.length;
    if length == 0 {
        return Err(MapError::ZeroLength);
    }
    // Bits that this project does not know are no access either: the kernel would refuse them.
    if region.access.is_empty() || !Access::all().contains(region.access) {
        return Err(MapError::NoAccess {
            bits: region.access.bits(),
        });
    }
    if !(length as u64).is_multiple_of(page_size) {
        return Err(MapError::MisalignedLength { length, page_size });
    }
    if !(pointer as u64).is_multiple_of(page_size) {
        return Err(MapError::MisalignedPointer { pointer, page_size });
    }
    if !iova.is_aligned_to(page_size) {
        return Err(MapError::MisalignedIova { iova, page_size });
    }
    // The last byte is what must not wrap: a region may end exactly at the top.
    if pointer.checked_add(length - 1).is_none() {
        return Err(MapError::PointerWraps { pointer, length });
    }
    let Some(last) = iova.checked_add(length as u64 - 1) else {
        return Err(MapError::IovaWraps { iova, length });
    };
    limits
        .contains(iova.0, last.0)
        .map_err(|hole| MapError::OutsideIovaRanges { iova, length, hole })?;
    if limits.mappings == Some(0) {
        return Err(MapError::TooManyMappings);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
