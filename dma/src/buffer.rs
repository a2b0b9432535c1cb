//! Memory that belongs to the application or to the device, never to both.
#![allow(unsafe_code)] // makes slices of memory that a buffer owns alone

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::domain::{DomainId, Iova};
use crate::error::DmaError;
use crate::ledger::Ledger;
use crate::mapping::Mapping;
use crate::pool::Arena;

/// Memory for data, of one owner, mapped for the devices of one domain.
///
/// It moves into a queue when a command that uses it is submitted, and comes back with the completion. So while it is in the application's hands
/// it is ordinary memory (`&[u8]`, `&mut [u8]`), and no device that keeps to its commands touches it. (A hostile or broken device can write any memory that is
/// mapped for it, at any time; nothing short of unmapping prevents that.)
///
/// Moving and splitting take no lock and allocate nothing. It cannot be cloned. Dropping returns the memory to its pool, or unmaps it.
///
/// A buffer fresh from the system is zeroed; one that was used before holds what was last in it, of this same process.
pub struct Buffer {
    pointer: NonNull<u8>,
    iova: Iova,
    length: u32,
    domain: DomainId,
    /// Taken out in `drop`, and only there.
    block: ManuallyDrop<Arc<Block>>,
}

const _: () = assert!(
    size_of::<Buffer>() == 32,
    "a buffer moves through every submission and completion: half a cache line"
);
const _: () = assert!(size_of::<Option<Buffer>>() == 32);

/// What the parts of a split buffer own together; the last one to go frees it.
#[derive(Debug)]
pub(crate) enum Block {
    /// Pages of a pool's arena.
    Pages {
        arena: Arc<Arena>,
        first: Iova,
        length: usize,
    },
    /// A mapping of its own.
    Whole(Mapping),
}

impl Block {
    fn ledger(&self) -> &Ledger {
        match self {
            Self::Pages { arena, .. } => arena.mapping().ledger(),
            Self::Whole(mapping) => mapping.ledger(),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Self::Pages {
            arena,
            first,
            length,
        } = self
        {
            arena.give_back(*first, *length);
        }
    }
}

// SAFETY: a buffer owns its bytes alone, as a box does, and its block is `Send` and `Sync`.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer gives shared slices only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Longest buffer, in bytes. Whole pages of any size up to 64 KiB end there.
    pub const MAX_LENGTH: usize = 0xffff_0000;

    pub(crate) fn check_length(length: usize) -> Result<(), DmaError> {
        match length {
            0 => Err(DmaError::ZeroLength),
            1..=Self::MAX_LENGTH => Ok(()),
            _ => Err(DmaError::TooLong {
                length,
                limit: Self::MAX_LENGTH,
            }),
        }
    }

    /// `length` bytes of an arena from `first` on, which [`Arena`] has set aside.
    pub(crate) fn of_pages(arena: Arc<Arena>, first: Iova, length: usize, taken: usize) -> Self {
        let mapping = arena.mapping();
        let offset = first.0 - mapping.iova().0;
        // SAFETY: the arena hands out addresses inside its mapping only.
        let pointer = unsafe { mapping.memory().pointer().add(offset as usize) };
        let domain = mapping.domain_id();
        let block = Arc::new(Block::Pages {
            arena,
            first,
            length: taken,
        });
        Self {
            pointer,
            iova: first,
            length: length as u32,
            domain,
            block: ManuallyDrop::new(block),
        }
    }

    /// A whole mapping, whose length was checked.
    pub(crate) fn of_mapping(mapping: Mapping) -> Self {
        let (pointer, length) = (mapping.memory().pointer(), mapping.memory().len());
        Self::inside_mapping(mapping, pointer, 0, length)
    }

    /// `length` bytes of a mapping, `offset` bytes after its start.
    pub(crate) fn inside_mapping(
        mapping: Mapping,
        pointer: NonNull<u8>,
        offset: u64,
        length: usize,
    ) -> Self {
        let iova = Iova(mapping.iova().0 + offset);
        let domain = mapping.domain_id();
        Self {
            pointer,
            iova,
            length: length as u32,
            domain,
            block: ManuallyDrop::new(Arc::new(Block::Whole(mapping))),
        }
    }

    /// Where the device sees the first byte.
    #[inline]
    #[must_use]
    pub const fn iova(&self) -> Iova {
        self.iova
    }

    /// The domain that it is mapped in: a queue of another refuses it.
    #[inline]
    #[must_use]
    pub const fn domain_id(&self) -> DomainId {
        self.domain
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether it has no bytes, as one part of a buffer split at its end.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// First byte in this process, without making a reference to it.
    #[inline]
    #[must_use]
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Two buffers: the first `middle` bytes, and the rest. A part's device address need only be what the command allows (NVMe: a multiple of four).
    ///
    /// # Panics
    /// When `middle` is past the end, as for slices; see [`try_split_at`](Self::try_split_at).
    #[must_use]
    #[track_caller]
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        match self.try_split_at(middle) {
            Ok(parts) => parts,
            Err(buffer) => panic!("split at {middle} of a buffer of {} bytes", buffer.len()), // INVARIANT: the caller's, as documented
        }
    }

    /// As [`split_at`](Self::split_at).
    ///
    /// # Errors
    /// The buffer, when `middle` is past its end.
    pub fn try_split_at(mut self, middle: usize) -> Result<(Self, Self), Self> {
        if middle > self.len() {
            return Err(self);
        }
        let rest = Self {
            // SAFETY: at most one past the end of the bytes that the block holds.
            pointer: unsafe { self.pointer.add(middle) },
            // Wraps only for an empty part behind the last IOVA of all.
            iova: Iova(self.iova.0.wrapping_add(middle as u64)),
            length: self.length - middle as u32,
            domain: self.domain,
            block: self.block.clone(),
        };
        self.length = middle as u32;
        Ok((self, rest))
    }

    /// One buffer of two that [`split_at`](Self::split_at) made of one.
    ///
    /// # Errors
    /// Both, when `next` is not what follows in the same block.
    pub fn unsplit(mut self, next: Self) -> Result<Self, (Self, Self)> {
        let follows = self.iova.0.wrapping_add(u64::from(self.length)) == next.iova.0;
        if !follows || !Arc::ptr_eq(&self.block, &next.block) {
            return Err((self, next));
        }
        // Cannot wrap: both lie in one block, whose length fits.
        self.length += next.length;
        Ok(self)
    }

    /// Gives the memory up for good, so that the device can go on writing it.
    pub(crate) fn leak(self) {
        self.block.ledger().leaked(self.len());
        std::mem::forget(self);
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        // By value, not by reference: so a buffer that a queue hands on lives in registers, and not in memory only because some other way
        // through the code would drop it.
        //
        // SAFETY: nothing uses the block after this.
        give_back(unsafe { ManuallyDrop::take(&mut self.block) });
    }
}

#[inline(never)]
fn give_back(block: Arc<Block>) {
    drop(block);
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the block holds these initialised bytes as long as the buffer lives, no other buffer has them, and whoever hands the buffer to
        // a device moves it away.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len()) }
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len()) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the bytes: they are data of somebody's drive.
        write!(f, "Buffer({} with {:#x} bytes)", self.iova, self.length)
    }
}

#[cfg(test)]
mod tests;
