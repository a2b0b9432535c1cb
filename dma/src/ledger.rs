//! Which addresses of a domain are free, mapped, or lost.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{DomainLimits, Iova};
use crate::free_list::FreeList;

/// Where no region is put unless the caller says so: the first mebibyte, so that a zero or a small number in an address field hits nothing, and the
/// interrupt window of x86, whether or not the kernel lists it.
const AVOID: [RangeInclusive<u64>; 2] = [0..=0xf_ffff, 0xfee0_0000..=0xfeef_ffff];

/// Largest alignment that is asked for: a page of the IOMMU's third level.
const LARGEST_ALIGNMENT: u64 = 1 << 30;

#[derive(Debug)]
struct Addresses {
    free: FreeList,
    /// IOVA to length.
    live: BTreeMap<Iova, usize>,
}

/// The addresses of one domain. Every method takes a short lock; none is on the way of an I/O.
#[derive(Debug)]
pub(crate) struct Ledger {
    addresses: Mutex<Addresses>,
    leaked: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(limits: &DomainLimits) -> Self {
        let mut free = FreeList::default();
        for range in &limits.iova_ranges {
            free.add(range.clone());
        }
        Self {
            addresses: Mutex::new(Addresses {
                free,
                live: BTreeMap::new(),
            }),
            leaked: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        // A panic elsewhere cannot leave the lists half changed: no method panics between its changes.
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a range aside, aligned to the largest power of two in its length, so that the IOMMU can use its large pages; or less when no such
    /// range is left, but never less than `page_size`.
    pub(crate) fn choose(&self, length: u64, page_size: u64) -> Option<Iova> {
        let mut addresses = self.lock();
        let mut alignment =
            (1 << length.checked_ilog2()?).clamp(page_size, LARGEST_ALIGNMENT.max(page_size));
        while alignment >= page_size {
            if let Some(first) = addresses.free.allocate(length, alignment, &AVOID) {
                return Some(Iova(first));
            }
            alignment >>= 1;
        }
        None
    }

    /// Sets aside the range that the caller chose; false when part of it is taken.
    #[must_use]
    pub(crate) fn claim(&self, iova: Iova, length: usize) -> bool {
        span(iova, length).is_some_and(|range| self.lock().free.take(range))
    }

    /// Undoes [`choose`](Self::choose) or [`claim`](Self::claim).
    pub(crate) fn give_back(&self, iova: Iova, length: usize) {
        if let Some(range) = span(iova, length) {
            self.lock().free.add(range);
        }
    }

    /// A range set aside is mapped now.
    pub(crate) fn mapped(&self, iova: Iova, length: usize) {
        self.lock().live.insert(iova, length);
    }

    /// A mapping has ended; its range is free.
    pub(crate) fn unmapped(&self, iova: Iova, length: usize) {
        self.lock().live.remove(&iova);
        self.give_back(iova, length);
    }

    /// A range that the device may still reach is given up for good. It stays among the mappings.
    pub(crate) fn leaked(&self, length: usize) {
        // Relaxed: a count for people, which orders nothing.
        self.leaked.fetch_add(length as u64, Ordering::Relaxed);
    }

    pub(crate) fn leaked_bytes(&self) -> u64 {
        self.leaked.load(Ordering::Relaxed)
    }

    pub(crate) fn mappings(&self) -> Vec<(Iova, usize)> {
        self.lock()
            .live
            .iter()
            .map(|(iova, length)| (*iova, *length))
            .collect()
    }
}

fn span(iova: Iova, length: usize) -> Option<RangeInclusive<u64>> {
    let last = iova.checked_add((length as u64).checked_sub(1)?)?;
    Some(iova.0..=last.0)
}

#[cfg(test)]
mod tests;
