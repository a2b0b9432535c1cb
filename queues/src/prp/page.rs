//! Memory page sizes, and what follows from them for PRP lists.

/// log2 of the smallest memory page size that NVMe knows.
const MIN_PAGE_SHIFT: u32 = 12;
/// The largest value of CC.MPS, CAP.MPSMIN and CAP.MPSMAX.
const MAX_MPS: u32 = 15;
/// A PRP list entry is 8 bytes.
const ENTRY_SHIFT: u32 = 3;

/// The memory page size in force (CC.MPS): a power of two from 4 KiB to 128 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    /// The bits of an address that tell where in a page it lies: what building PRPs needs most.
    pub(super) mask: u64,
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

    #[inline]
    pub(super) const fn shift(self) -> u32 {
        self.mask.trailing_ones()
    }
}

/// How many list pages that many entries fill.
#[inline]
pub(super) const fn list_pages_for(entries: usize, page: PageSize) -> usize {
    if entries <= 1 {
        // None, or the one that PRP2 itself holds.
        return 0;
    }
    // Every list page but the last gives one of its entries to the chain.
    (entries - 1).div_ceil(page.entries_per_list_page() - 1)
}
