//! The memory of the rings: the only place that touches entries which the device may touch too.
#![allow(unsafe_code)] // entries are written and read through pointers, since no reference may exist to them

use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nvme_vfio_dma::{Access, Iova, SharedMemory};
use thiserror::Error;

use super::{CompletionEntries, Entries, LAST_DWORD, SubmissionEntries};
use crate::entry::{Command, CompletionEntry};

/// A ring that cannot be laid into the memory given for it.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingMemoryError {
    /// A queue has 2 to 65,536 entries.
    #[error("a queue of {0} entries is not possible; 2 to 65,536 are")]
    Entries(u32),
    /// The ring would reach past the end of the memory.
    #[error("a ring of {bytes} bytes at offset {offset} does not fit into {length} bytes")]
    TooShort {
        /// Where the ring would begin, in bytes.
        offset: usize,
        /// How long it would be, in bytes.
        bytes: usize,
        /// How much memory there is, in bytes.
        length: usize,
    },
    /// The device may not do what it must with a ring in this memory.
    #[error("the memory is not mapped for {0:?}, which this ring needs")]
    Access(Access),
    /// A ring begins on a memory page.
    #[error("a ring at offset {0} is not aligned to 4096 bytes")]
    Misaligned(usize),
}

/// A place in a ring.
#[derive(Debug)]
pub struct Place<T>(NonNull<T>);

impl<T> Clone for Place<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Place<T> {}

impl<T> PartialEq for Place<T> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

// SAFETY: it is no more than an address; whoever reads or writes there answers for it.
unsafe impl<T> Send for Place<T> {}

/// The entries of a ring of `T`, in memory that stays mapped as long as this lives.
#[derive(Debug)]
struct Span<T> {
    first: NonNull<T>,
    last: NonNull<T>,
    entries: u32,
    offset: usize,
    memory: Arc<SharedMemory>,
}

impl<T> Span<T> {
    /// `entries` entries from `offset` bytes on, checked.
    fn place(
        memory: &Arc<SharedMemory>,
        offset: usize,
        entries: u32,
        access: Access,
    ) -> Result<Self, RingMemoryError> {
        if !(2..=65_536).contains(&entries) {
            return Err(RingMemoryError::Entries(entries));
        }
        if !memory.access().contains(access) {
            return Err(RingMemoryError::Access(access));
        }
        if !offset.is_multiple_of(4096) {
            return Err(RingMemoryError::Misaligned(offset));
        }
        let bytes = entries as usize * size_of::<T>();
        match offset.checked_add(bytes) {
            Some(end) if end <= memory.len() => {}
            _ => {
                return Err(RingMemoryError::TooShort {
                    offset,
                    bytes,
                    length: memory.len(),
                });
            }
        }
        // SAFETY: `offset` is inside the allocation, as just checked.
        let first: NonNull<T> = unsafe { memory.as_ptr().add(offset) }.cast();
        // SAFETY: the last entry is inside the allocation, too.
        let last = unsafe { first.add(entries as usize - 1) };
        Ok(Self {
            first,
            last,
            entries,
            offset,
            memory: Arc::clone(memory),
        })
    }

    fn iova(&self) -> Iova {
        Iova(self.memory.iova().0 + self.offset as u64)
    }

    /// # Safety
    /// `cursor` is a place in this ring.
    #[inline(always)]
    unsafe fn next(&self, cursor: NonNull<T>) -> Option<NonNull<T>> {
        if cursor == self.last {
            return None;
        }
        // SAFETY: a place in the ring, by the caller's word, and not the last.
        Some(unsafe { cursor.add(1) })
    }

    #[inline]
    fn index(&self, cursor: NonNull<T>) -> u32 {
        // Both lie in one ring of at most 65,536 entries.
        ((cursor.addr().get() - self.first.addr().get()) / size_of::<T>()) as u32
    }
}

/// The entries of a submission queue: written by the host, read by the device.
#[derive(Debug)]
pub struct SubmissionMemory(Span<Command>);

impl SubmissionMemory {
    /// A ring of `entries` entries in `memory`, from `offset` bytes on.
    ///
    /// # Safety
    /// Entries are written with plain stores: nothing else in this process touches them while the ring is used.
    ///
    /// # Errors
    /// [`RingMemoryError`] where it does not fit.
    pub unsafe fn new(
        memory: &Arc<SharedMemory>,
        offset: usize,
        entries: u32,
    ) -> Result<Self, RingMemoryError> {
        Span::place(memory, offset, entries, Access::DEVICE_READ).map(Self)
    }

    /// Where the device sees the ring.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.0.iova()
    }
}

/// The entries of a completion queue: written by the device, read by the host.
#[derive(Debug)]
pub struct CompletionMemory(Span<CompletionEntry>);

impl CompletionMemory {
    /// A ring of `entries` entries in `memory`, from `offset` bytes on. It is zeroed, so that no stale phase tag is taken for
    /// a new entry; this must come before the queue is created on the controller.
    ///
    /// # Errors
    /// [`RingMemoryError`] where it does not fit.
    pub fn new(
        memory: &Arc<SharedMemory>,
        offset: usize,
        entries: u32,
    ) -> Result<Self, RingMemoryError> {
        let ring = Self(Span::place(memory, offset, entries, Access::DEVICE_WRITE)?);
        ring.clear();
        Ok(ring)
    }

    /// Where the device sees the ring.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.0.iova()
    }
}

macro_rules! entries {
    ($memory:ty, $entry:ty) => {
        impl Entries for $memory {
            type Cursor = Place<$entry>;

            #[inline]
            fn entries(&self) -> u32 {
                self.0.entries
            }

            #[inline(always)]
            fn first(&self) -> Self::Cursor {
                Place(self.0.first)
            }

            #[inline(always)]
            unsafe fn next(&self, cursor: Self::Cursor) -> Option<Self::Cursor> {
                // SAFETY: the caller says the same.
                unsafe { self.0.next(cursor.0) }.map(Place)
            }

            #[inline]
            fn index(&self, cursor: Self::Cursor) -> u32 {
                self.0.index(cursor.0)
            }
        }
    };
}

entries!(SubmissionMemory, Command);
entries!(CompletionMemory, CompletionEntry);

impl SubmissionEntries for SubmissionMemory {
    #[inline(always)]
    unsafe fn store(&mut self, cursor: Place<Command>, command: &Command) {
        // SAFETY: `place` checked that all entries lie inside the memory, which the span keeps mapped, and the caller says that `cursor`
        // is one of them. Nobody else in this process touches them, as `new` was promised. The device reads this one only after the
        // doorbell.
        unsafe { cursor.0.write(*command) };
    }
}

impl CompletionEntries for CompletionMemory {
    #[inline(always)]
    unsafe fn load_last(&self, cursor: Place<CompletionEntry>) -> u32 {
        let last = cursor.0.as_ptr().cast::<u32>().wrapping_add(3);
        // SAFETY: `place` checked that all entries lie inside the memory, which the span keeps mapped, and the caller says that `cursor`
        // is one of them. It is aligned, since entries are 16 bytes, and only ever accessed atomically.
        unsafe { AtomicU32::from_ptr(last) }.load(LAST_DWORD)
    }

    #[inline(always)]
    unsafe fn load_rest(&self, cursor: Place<CompletionEntry>) -> (u64, u32) {
        let entry = cursor.0.as_ptr();
        // SAFETY: as in `load_last`; the first eight bytes of a 16-byte aligned entry are aligned for a u64. Atomic, since a
        // device that breaks the protocol may write at any time.
        let result = unsafe { AtomicU64::from_ptr(entry.cast()) }.load(Ordering::Relaxed);
        // SAFETY: as above.
        let third = unsafe { AtomicU32::from_ptr(entry.cast::<u32>().wrapping_add(2)) };
        (result, third.load(Ordering::Relaxed))
    }

    fn clear(&self) {
        let entry = [0; size_of::<CompletionEntry>()];
        for index in 0..self.0.entries as usize {
            // `place` checked that every entry lies inside the memory.
            let cleared = self
                .0
                .memory
                .write_bytes(self.0.offset + index * entry.len(), &entry);
            debug_assert!(cleared.is_ok());
        }
    }
}

// SAFETY: the pointer leads into memory that `_memory` keeps mapped and that is `Send`; one ring owns it.
unsafe impl Send for SubmissionMemory {}
// SAFETY: as above.
unsafe impl Send for CompletionMemory {}
