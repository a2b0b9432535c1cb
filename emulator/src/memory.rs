//! The only module that touches host memory: raw, bounded copies.
//!
//! Host memory belongs to the driver under test, which may write it at any moment. So it is never a Rust reference here: ring
//! entries move by volatile and atomic accesses, data moves by raw copies.
#![allow(unsafe_code)] // The one place where the controller's DMA becomes loads and stores of this process.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory of this process that a mapping of the software IOMMU shows to the controller.
#[derive(Debug)]
pub(crate) struct HostRegion {
    pointer: NonNull<u8>,
    length: usize,
}

// SAFETY: the region is only an address range; every access goes through the bounded raw copies below, which make no
// reference to the memory and are as good from one thread as from another.
unsafe impl Send for HostRegion {}
// SAFETY: as for `Send`: no method keeps state in the region, and concurrent accesses are what DMA memory is for.
unsafe impl Sync for HostRegion {}

impl HostRegion {
    /// Takes note of `length` bytes at `pointer`.
    ///
    /// # Safety
    /// The memory must stay mapped in this process, readable, and writable if [`HostRegion::write`] or
    /// [`HostRegion::store_completion`] is called, for as long as the value lives.
    pub(crate) unsafe fn new(pointer: NonNull<u8>, length: usize) -> HostRegion {
        HostRegion { pointer, length }
    }

    #[cfg(test)]
    pub(crate) fn begins_at(&self, pointer: NonNull<u8>) -> bool {
        self.pointer == pointer
    }

    /// The address of `length` bytes at `offset`, or `None` when they are not all inside.
    #[inline]
    fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: `offset <= self.length`, checked above, so the result is inside the allocation or one past its end.
        Some(unsafe { self.pointer.add(offset) })
    }

    /// Copies out of the region; false, with nothing done, when the range is not all inside.
    #[must_use]
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(source) = self.at(offset, into.len()) else {
            return false;
        };
        // SAFETY: `at` bounded the source, which is valid by the contract of `new`; `into` is a live slice of the same length.
        unsafe { source.as_ptr().copy_to(into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies into the region; false, with nothing done, when the range is not all inside.
    #[must_use]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(target) = self.at(offset, from.len()) else {
            return false;
        };
        // SAFETY: `at` bounded the target, which is valid and writable by the contract of `new`.
        unsafe { target.as_ptr().copy_from(from.as_ptr(), from.len()) };
        true
    }

    /// Reads one submission entry, each of its quadwords once; `None` when it is not all inside or misaligned.
    pub(crate) fn load_entry(&self, offset: usize) -> Option<[u64; 8]> {
        let source = self.at(offset, 64)?.cast::<u64>().as_ptr();
        if !source.is_aligned() {
            return None;
        }
        let mut entry = [0; 8];
        for (index, word) in entry.iter_mut().enumerate() {
            // SAFETY: eight aligned quadwords at `source` were bounded by `at`.
            *word = u64::from_le(unsafe { source.add(index).read_volatile() });
        }
        Some(entry)
    }

    /// Consecutive submission entries, of which words are to be read one by one; `None` when they are not all inside or misaligned.
    #[inline]
    pub(crate) fn entries(&self, offset: usize, count: usize) -> Option<RingEntries<'_>> {
        let first = self.at(offset, count.checked_mul(64)?)?.cast::<u64>();
        first.is_aligned().then_some(RingEntries {
            first,
            count,
            region: PhantomData,
        })
    }

    /// Writes consecutive completion entries as [`HostRegion::store_completion`] does, one for each item; false, with nothing done, when
    /// they are not all inside or misaligned.
    #[inline]
    #[must_use]
    pub(crate) fn store_completions<T>(
        &self,
        offset: usize,
        items: &[T],
        entry: impl Fn(&T) -> [u32; 4],
    ) -> bool {
        let bytes = items.len().checked_mul(16);
        let Some(target) = bytes.and_then(|bytes| self.at(offset, bytes)) else {
            return false;
        };
        let mut target = target.cast::<u32>().as_ptr();
        if !target.is_aligned() {
            return false;
        }
        for item in items {
            let entry = entry(item);
            // SAFETY: an entry for each item at the first `target` was bounded by `at` and is writable by the contract of `new`; each
            // turn writes one and moves on by one, so that `target` ends one past the last. The reference to the last dword as an
            // atomic lives for its store only.
            unsafe {
                target.write_volatile(entry[0].to_le());
                target.add(1).write_volatile(entry[1].to_le());
                target.add(2).write_volatile(entry[2].to_le());
                AtomicU32::from_ptr(target.add(3)).store(entry[3].to_le(), Ordering::Release);
                target = target.add(4);
            }
        }
        true
    }

    /// Writes one completion entry, its last dword (which carries the phase bit) last and with Release, so that whoever sees
    /// the phase with Acquire also sees the rest of the entry and all data moved before. False when it is not all inside or
    /// misaligned.
    #[must_use]
    pub(crate) fn store_completion(&self, offset: usize, entry: [u32; 4]) -> bool {
        let Some(target) = self.at(offset, 16) else {
            return false;
        };
        let target = target.cast::<u32>().as_ptr();
        if !target.is_aligned() {
            return false;
        }
        for (index, dword) in entry.iter().take(3).enumerate() {
            // SAFETY: four aligned dwords at `target` were bounded by `at` and are writable by the contract of `new`.
            unsafe { target.add(index).write_volatile(dword.to_le()) };
        }
        // SAFETY: the fourth dword is inside as well; the reference to it as an atomic lives for this store only, and the
        // other side reads the dword atomically too.
        let last = unsafe { AtomicU32::from_ptr(target.add(3)) };
        last.store(entry[3].to_le(), Ordering::Release);
        true
    }
}

/// Submission entries in host memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingEntries<'a> {
    first: NonNull<u64>,
    count: usize,
    region: PhantomData<&'a HostRegion>,
}

impl<'a> RingEntries<'a> {
    /// One of them; `None` past the last.
    #[inline]
    pub(crate) fn get(&self, place: usize) -> Option<RingEntry<'a>> {
        if place >= self.count {
            return None;
        }
        Some(RingEntry {
            // SAFETY: `HostRegion::entries` bounded `count` entries of eight quadwords from `first` on.
            first: unsafe { self.first.add(place * 8) },
            region: PhantomData,
        })
    }
}

/// One submission entry in host memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingEntry<'a> {
    first: NonNull<u64>,
    region: PhantomData<&'a HostRegion>,
}

impl RingEntry<'_> {
    /// Reads quadword `WORD`. The host may change it at any time, so whatever is decided on it must be decided on one read.
    #[inline]
    pub(crate) fn word<const WORD: usize>(self) -> u64 {
        const { assert!(WORD < 8) };
        // SAFETY: `RingEntries::get` made the value, of eight aligned quadwords from `first` on, and the region outlives it.
        u64::from_le(unsafe { self.first.add(WORD).read_volatile() })
    }

    /// Reads all of it, each quadword once.
    pub(crate) fn whole(self) -> [u64; 8] {
        [
            self.word::<0>(),
            self.word::<1>(),
            self.word::<2>(),
            self.word::<3>(),
            self.word::<4>(),
            self.word::<5>(),
            self.word::<6>(),
            self.word::<7>(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of the test's own, aligned for entries.
    fn region(words: &mut [u64]) -> HostRegion {
        let length = size_of_val(words);
        let pointer = NonNull::new(words.as_mut_ptr()).expect("a slice has an address");
        // SAFETY: the words outlive the region in every test below.
        unsafe { HostRegion::new(pointer.cast(), length) }
    }

    #[test]
    fn copies_are_bounded() {
        let mut words = [0u64; 16];
        let region = region(&mut words);
        assert!(region.write(120, &[1; 8]));
        assert!(!region.write(121, &[2; 8]));
        assert!(!region.write(usize::MAX, &[2; 8]));
        let mut back = [0; 8];
        assert!(region.read(120, &mut back));
        assert_eq!(back, [1; 8]);
        assert!(!region.read(121, &mut back));
        assert!(region.load_entry(64).is_some());
        assert!(region.load_entry(65).is_none(), "misaligned");
        assert!(region.load_entry(72).is_none(), "past the end");
        assert!(region.entries(0, 2).is_some());
        assert!(region.entries(0, 3).is_none() && region.entries(64, 2).is_none());
        assert!(region.entries(4, 1).is_none(), "misaligned");
        assert!(region.entries(0, usize::MAX).is_none());
        let entries = region.entries(64, 1).expect("inside");
        assert_eq!(
            entries.get(0).expect("the first").word::<7>(),
            u64::MAX / 0xff
        );
        assert!(entries.get(1).is_none());
        assert!(!region.store_completions(112, &[(), ()], |()| [0; 4]));
        assert!(!region.store_completions(2, &[()], |()| [0; 4]));
        assert!(!region.store_completion(116, [0; 4]), "past the end");
        assert!(!region.store_completion(2, [0; 4]), "misaligned");
        assert!(region.store_completion(112, [1, 2, 3, 4]));
        let mut back = [0; 16];
        assert!(region.read(112, &mut back));
        assert_eq!(back, [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    }
}
