//! Memory that the device may touch at any time.
#![allow(unsafe_code)] // turns addresses inside a mapping into atomics

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use thiserror::Error;

use crate::domain::{Access, DomainId, Iova};
use crate::mapping::Mapping;

/// An access outside of shared memory, or one that is not aligned.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error(
    "{size} bytes at offset {offset:#x} are not an aligned part of {length:#x} bytes of shared memory"
)]
pub struct OutOfBounds {
    /// Bytes from the start.
    pub offset: usize,
    /// Bytes of the access.
    pub size: usize,
    /// Bytes of the memory.
    pub length: usize,
}

/// Memory shared with a device for good: rings, PRP lists, a virtual machine's memory. Contiguous for the device; unmapped when dropped.
///
/// There is no reference to its bytes, since the device may change them at any moment: they are reached by atomic accesses (relaxed where
/// nothing else is said), or by pointer. Numbers are little-endian in memory, as everything is on PCI Express.
///
/// Accesses of different sizes to the same bytes must not run at the same time on several threads of this process.
///
/// **Dropping it is the caller's statement that the device has let go.** While that is not proven, put it into a
/// [`Quarantine`](crate::Quarantine).
pub struct SharedMemory {
    mapping: Mapping,
}

impl SharedMemory {
    pub(crate) const fn new(mapping: Mapping) -> Self {
        Self { mapping }
    }

    /// First byte in this process; at least page-aligned. Valid as long as the value lives.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.memory().pointer()
    }

    /// Where the device sees the first byte.
    #[inline]
    #[must_use]
    pub const fn iova(&self) -> Iova {
        self.mapping.iova()
    }

    /// Where the device sees the byte at `offset`, or `None` at or past the end.
    #[inline]
    #[must_use]
    pub fn iova_at(&self, offset: usize) -> Option<Iova> {
        if offset < self.len() {
            self.iova().checked_add(offset as u64)
        } else {
            None
        }
    }

    /// Bytes; whole pages, so it can be more than was asked for.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "empty memory cannot be mapped")]
    pub fn len(&self) -> usize {
        self.mapping.memory().len()
    }

    /// Bytes in each page behind it.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.mapping.memory().page_size()
    }

    /// What the device may do with it.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.mapping.access()
    }

    /// The domain that it is mapped in.
    #[inline]
    #[must_use]
    pub const fn domain_id(&self) -> DomainId {
        self.mapping.domain_id()
    }

    /// The sealed file behind it, whose byte 0 is the first: to lend the memory to another process. `None` for memory taken over from the application.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.memory().descriptor()
    }

    /// Pointer to `size` bytes at `offset`, which is a multiple of `alignment`.
    #[inline]
    fn at(&self, offset: usize, size: usize, alignment: usize) -> Result<*mut u8, OutOfBounds> {
        let length = self.len();
        let pointer = self.as_ptr().as_ptr().wrapping_add(offset);
        match offset.checked_add(size) {
            Some(end) if end <= length && pointer.addr().is_multiple_of(alignment) => Ok(pointer),
            _ => Err(OutOfBounds {
                offset,
                size,
                length,
            }),
        }
    }

    /// The 32 bits at `offset`, as an atomic in the order that is in memory: little-endian.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfBounds> {
        let pointer = self.at(offset, 4, 4)?;
        // SAFETY: `at` keeps the four bytes inside the mapping, which lives as long as `self`, and aligned; nothing makes plain references to them.
        Ok(unsafe { AtomicU32::from_ptr(pointer.cast()) })
    }

    /// The 64 bits at `offset`, as an atomic in the order that is in memory: little-endian.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, OutOfBounds> {
        let pointer = self.at(offset, 8, 8)?;
        // SAFETY: as for `atomic_u32`, with eight bytes.
        Ok(unsafe { AtomicU64::from_ptr(pointer.cast()) })
    }

    /// Reads a little-endian number.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    #[inline]
    pub fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        Ok(u32::from_le(
            self.atomic_u32(offset)?.load(Ordering::Relaxed),
        ))
    }

    /// Reads a little-endian number.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    #[inline]
    pub fn read_u64(&self, offset: usize) -> Result<u64, OutOfBounds> {
        Ok(u64::from_le(
            self.atomic_u64(offset)?.load(Ordering::Relaxed),
        ))
    }

    /// Writes a little-endian number.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    #[inline]
    pub fn write_u32(&self, offset: usize, value: u32) -> Result<(), OutOfBounds> {
        self.atomic_u32(offset)?
            .store(value.to_le(), Ordering::Relaxed);
        Ok(())
    }

    /// Writes a little-endian number.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 8.
    #[inline]
    pub fn write_u64(&self, offset: usize, value: u64) -> Result<(), OutOfBounds> {
        self.atomic_u64(offset)?
            .store(value.to_le(), Ordering::Relaxed);
        Ok(())
    }

    /// Copies bytes out, one by one: for what is small and seldom.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn read_bytes(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let bytes = self.bytes(offset, into.len())?;
        for (into, byte) in into.iter_mut().zip(bytes) {
            *into = byte.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies bytes in, one by one: for what is small and seldom.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        for (byte, into) in from.iter().zip(self.bytes(offset, from.len())?) {
            into.store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Zeroes the whole memory, for example a completion queue before it is created.
    pub fn fill_zero(&self) {
        // Whole words where the memory begins and ends on them, as all memory but a part-page registered by the application does.
        if let Ok(bytes) = self.bytes(0, self.len()) {
            // SAFETY: every initialised pair of aligned bytes is a valid atomic; the middle part is aligned for words by `align_to`.
            let (head, words, tail) = unsafe { bytes.align_to::<AtomicU64>() };
            head.iter()
                .chain(tail)
                .for_each(|byte| byte.store(0, Ordering::Relaxed));
            words
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    fn bytes(&self, offset: usize, size: usize) -> Result<&[AtomicU8], OutOfBounds> {
        let pointer = self.at(offset, size, 1)?;
        // SAFETY: inside the mapping by `at`; `AtomicU8` is one byte with interior mutability, so that others may write it meanwhile.
        Ok(unsafe { std::slice::from_raw_parts(pointer.cast::<AtomicU8>(), size) })
    }

    /// Gives the memory up for good, so that the device can go on writing it.
    pub(crate) fn leak(self) {
        self.mapping.ledger().leaked(self.len());
        std::mem::forget(self);
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SharedMemory({} with {:#x} bytes)",
            self.iova(),
            self.len()
        )
    }
}
