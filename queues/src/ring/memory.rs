//! The memory of the rings: the only place that touches entries which the device may touch too.
#![allow(unsafe_code)] // entries are written and read through pointers, since no reference may exist to them

use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nvme_vfio_dma::{Iova, SharedMemory};
use thiserror::Error;

use super::{CompletionEntries, LAST_DWORD, SubmissionEntries};
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
    /// A ring begins on a memory page.
    #[error("a ring at offset {0} is not aligned to 4096 bytes")]
    Misaligned(usize),
}

/// The start of a ring of `entries` entries of `T` inside `memory`, checked.
fn place<T>(
    memory: &SharedMemory,
    offset: usize,
    entries: u32,
) -> Result<NonNull<T>, RingMemoryError> {
    if !(2..=65_536).contains(&entries) {
        return Err(RingMemoryError::Entries(entries));
    }
    let bytes = entries as usize * size_of::<T>();
    if !offset.is_multiple_of(4096) || !memory.iova().0.is_multiple_of(4096) {
        return Err(RingMemoryError::Misaligned(offset));
    }
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
    Ok(unsafe { memory.as_ptr().add(offset) }.cast())
}

/// The entries of a submission queue: written by the host, read by the device.
#[derive(Debug)]
pub struct SubmissionMemory {
    first: NonNull<Command>,
    entries: u32,
    iova: Iova,
    _memory: Arc<SharedMemory>,
}

impl SubmissionMemory {
    /// A ring of `entries` entries in `memory`, from `offset` bytes on.
    ///
    /// # Errors
    /// [`RingMemoryError`] where it does not fit.
    pub fn new(
        memory: &Arc<SharedMemory>,
        offset: usize,
        entries: u32,
    ) -> Result<Self, RingMemoryError> {
        let first = place(memory, offset, entries)?;
        Ok(Self {
            first,
            entries,
            iova: Iova(memory.iova().0 + offset as u64),
            _memory: Arc::clone(memory),
        })
    }

    /// Where the device sees the ring.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.iova
    }
}

impl SubmissionEntries for SubmissionMemory {
    #[inline]
    fn entries(&self) -> u32 {
        self.entries
    }

    #[inline]
    fn store(&mut self, index: u32, command: &Command) {
        assert!(index < self.entries); // INVARIANT: the ring wraps its tail
        // SAFETY: `place` checked that all entries lie inside the memory, which `_memory` keeps mapped, and `index` is one of them.
        // Entries are plain bytes to the device, which reads this one only after the doorbell.
        unsafe { self.first.add(index as usize).write(*command) };
    }
}

/// The entries of a completion queue: written by the device, read by the host.
#[derive(Debug)]
pub struct CompletionMemory {
    first: NonNull<CompletionEntry>,
    entries: u32,
    iova: Iova,
    memory: Arc<SharedMemory>,
    offset: usize,
}

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
        let first = place(memory, offset, entries)?;
        let iova = Iova(memory.iova().0 + offset as u64);
        let ring = Self {
            first,
            entries,
            iova,
            memory: Arc::clone(memory),
            offset,
        };
        ring.clear();
        Ok(ring)
    }

    /// Where the device sees the ring.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.iova
    }
}

impl CompletionEntries for CompletionMemory {
    #[inline]
    fn entries(&self) -> u32 {
        self.entries
    }

    #[inline]
    fn load_last(&self, index: u32) -> u32 {
        assert!(index < self.entries); // INVARIANT: the ring wraps its head
        let entry = self.first.as_ptr().wrapping_add(index as usize);
        // SAFETY: inside the ring, as `place` checked; aligned, since entries are 16 bytes; only ever accessed atomically.
        unsafe { AtomicU32::from_ptr(entry.cast::<u32>().wrapping_add(3)) }.load(LAST_DWORD)
    }

    #[inline]
    fn load_rest(&self, index: u32) -> (u64, u32) {
        assert!(index < self.entries); // INVARIANT: the ring wraps its head
        let entry = self.first.as_ptr().wrapping_add(index as usize);
        // SAFETY: as in `load_last`; the first eight bytes of a 16-byte aligned entry are aligned for a u64. Atomic, since a
        // device that breaks the protocol may write at any time.
        let result = unsafe { AtomicU64::from_ptr(entry.cast()) }.load(Ordering::Relaxed);
        // SAFETY: as above.
        let head = unsafe { AtomicU32::from_ptr(entry.cast::<u32>().wrapping_add(2)) }
            .load(Ordering::Relaxed);
        (result, head)
    }

    fn clear(&self) {
        let entry = [0; size_of::<CompletionEntry>()];
        for index in 0..self.entries as usize {
            // `place` checked that every entry lies inside the memory.
            let cleared = self
                .memory
                .write_bytes(self.offset + index * entry.len(), &entry);
            debug_assert!(cleared.is_ok());
        }
    }
}

// SAFETY: the pointer leads into memory that `_memory` keeps mapped and that is `Send`; one ring owns it.
unsafe impl Send for SubmissionMemory {}
// SAFETY: as above.
unsafe impl Send for CompletionMemory {}
