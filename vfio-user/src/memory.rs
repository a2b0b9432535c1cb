//! Memory that a client lends by descriptor.
#![allow(unsafe_code)] // maps and unmaps what the client's descriptor names

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};

use crate::device::DmaAccess;
use crate::sigbus;

/// Memory of a client, mapped shared into this process.
///
/// A handle: clones share one mapping, which ends when the last is dropped. The descriptor is closed as soon as the memory is mapped. The client can change the bytes at any time, so they
/// are reached by pointer only, through atomic or volatile accesses or copies made by the processor's string instructions, never as a reference.
///
/// # A client that takes its memory back
/// A file that is not sealed against shrinking can be truncated under the mapping; an access then raises `SIGBUS`, which ends this process unless
/// [`sigbus::install`] was called. With it the whole memory is replaced by zeroes, [`is_lost`](Self::is_lost) is true from then on, and the session ends.
#[derive(Clone)]
pub struct ClientMemory {
    mapping: Arc<Mapping>,
}

struct Mapping {
    pointer: NonNull<u8>,
    length: NonZeroUsize,
    access: DmaAccess,
    sealed: bool,
    guard: sigbus::Guard,
}

// SAFETY: the mapping belongs to the value until it is dropped, from whatever thread that happens; its bytes are not reached through the value.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` tells only what it is.
unsafe impl Sync for Mapping {}

/// Why a descriptor cannot be lent as memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A length of 0, or one past this process's addresses.
    #[error("a length of {length} bytes cannot be mapped")]
    Length {
        /// What was asked for.
        length: u64,
    },
    /// Offset or length is not a multiple of the file's pages.
    #[error(
        "offset {offset:#x} or length {length:#x} is not a multiple of the file's pages of {page_size} bytes"
    )]
    Alignment {
        /// Bytes into the file.
        offset: u64,
        /// What was asked for.
        length: u64,
        /// Bytes of a page of the file.
        page_size: u64,
    },
    /// The descriptor is not a file that is kept in memory: a directory, socket, pipe or device, or a file on a disk, on another machine or in another process. An access to those could wait for as
    /// long as the client likes, and so could the question what it is.
    #[error("the descriptor is not a file that is kept in memory")]
    NotInMemory,
    /// The file ends before the memory does.
    #[error("the file has {size} bytes, fewer than offset {offset:#x} and length {length:#x} need")]
    TooShort {
        /// Bytes of the file.
        size: u64,
        /// Bytes into the file.
        offset: u64,
        /// What was asked for.
        length: u64,
    },
    /// The descriptor was not opened for what the device may do.
    #[error("the descriptor was not opened for {access:?}")]
    Access {
        /// What the device may do.
        access: DmaAccess,
    },
    /// The system refused.
    #[error("the system cannot map it")]
    System(#[source] Errno),
}

impl MemoryError {
    /// The error that a reply says.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Length { .. } | Self::Alignment { .. } | Self::TooShort { .. } => Errno::EINVAL,
            Self::NotInMemory => Errno::ENODEV,
            Self::Access { .. } => Errno::EACCES,
            Self::System(errno) => *errno,
        }
    }
}

impl ClientMemory {
    /// Maps `length` bytes at `offset` of a file that is kept in memory (memfd, shared memory, tmpfs, hugepages), and closes the descriptor. The mapping is not inherited by forked
    /// children, and is left out of core dumps.
    ///
    /// # Errors
    /// [`MemoryError`]: whatever is not such a file with that range in whole pages, opened for `access`.
    pub fn map(
        descriptor: OwnedFd,
        offset: u64,
        length: u64,
        access: DmaAccess,
    ) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(length)
            .ok()
            .filter(|length| *length <= isize::MAX as usize)
            .and_then(NonZeroUsize::new)
            .ok_or(MemoryError::Length { length })?;
        let end = offset
            .checked_add(length)
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or(MemoryError::Length { length })?;
        // Before anything else is asked: of any other file, the answer could take for ever.
        if !is_in_memory(&descriptor) {
            return Err(MemoryError::NotInMemory);
        }
        let status = fstat(&descriptor).map_err(MemoryError::System)?;
        let page_size = mapping_page_size(&descriptor, status.st_blksize)?;
        if (offset | length) & (page_size - 1) != 0 {
            return Err(MemoryError::Alignment {
                offset,
                length,
                page_size,
            });
        }
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if size < end {
            return Err(MemoryError::TooShort {
                size,
                offset,
                length,
            });
        }
        check_access(&descriptor, access)?;
        let sealed = is_sealed(&descriptor);
        let pointer = map_shared(&descriptor, offset, bytes, access)?;
        // From here on a truncated file is found in the registry. Nothing has touched the bytes before.
        let guard = sigbus::Guard::new(pointer, bytes);
        Ok(Self {
            mapping: Arc::new(Mapping {
                pointer,
                length: bytes,
                access,
                sealed,
                guard,
            }),
        })
    }

    /// Where the memory is in this process.
    #[must_use]
    pub fn pointer(&self) -> NonNull<u8> {
        self.mapping.pointer
    }

    /// Its length in bytes, whole pages.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "memory of no bytes does not exist"
    )]
    pub fn len(&self) -> usize {
        self.mapping.length.get()
    }

    /// What a device may do with it. An access that is not allowed here raises `SIGSEGV`.
    #[must_use]
    pub fn access(&self) -> DmaAccess {
        self.mapping.access
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mapping.access.contains(DmaAccess::WRITE)
    }

    /// Whether the file was sealed against shrinking when it was mapped. A seal cannot be taken away.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.mapping.sealed
    }

    /// Whether the client took bytes of it away, so that it is zeroes of this process's own now. Always false without [`sigbus::install`].
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.mapping.guard.is_lost()
    }
}

impl fmt::Debug for ClientMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMemory")
            .field("pointer", &self.mapping.pointer)
            .field("length", &self.mapping.length)
            .field("access", &self.mapping.access)
            .field("sealed", &self.mapping.sealed)
            .finish_non_exhaustive()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the addresses can become something else's.
        self.guard.unregister();
        // SAFETY: the mapping was made by `map_shared` with this length, this is its last handle, and nobody may keep its address for longer than a handle.
        if let Err(error) = unsafe { munmap(self.pointer.cast(), self.length.get()) } {
            tracing::error!(%error, "memory of a client cannot be unmapped");
        }
    }
}

/// The size of this system's pages in bytes.
pub(crate) fn page_size() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .filter(|size| size.is_power_of_two())
        .unwrap_or(4096)
}

/// Whether a descriptor is a regular file that is kept in memory, opened to be read or written. Only such have seals, if none that are set, and the kernel tells them without asking a file system.
pub(crate) fn is_in_memory(descriptor: &OwnedFd) -> bool {
    fcntl(descriptor, FcntlArg::F_GET_SEALS).is_ok()
}

/// The pages that a mapping of the file is made of.
fn mapping_page_size(descriptor: &OwnedFd, block_size: i64) -> Result<u64, MemoryError> {
    let file_system = fstatfs(descriptor)
        .map_err(MemoryError::System)?
        .filesystem_type();
    match file_system {
        // Of memfd_create(2) and shm_open(3) too.
        TMPFS_MAGIC => Ok(page_size()),
        // Its block size is that of its pages.
        HUGETLBFS_MAGIC => Ok(u64::try_from(block_size)
            .ok()
            .filter(|size| size.is_power_of_two())
            .map_or(page_size(), |size| size.max(page_size()))),
        _ => Err(MemoryError::NotInMemory),
    }
}

/// Refuses a descriptor that was not opened for what the device may do. (mmap(2) refuses it too, but maps a file that was opened without `O_RDONLY` or `O_RDWR` never.)
fn check_access(descriptor: &OwnedFd, access: DmaAccess) -> Result<(), MemoryError> {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map_err(MemoryError::System)?;
    let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
    let enough =
        mode == OFlag::O_RDWR || mode == OFlag::O_RDONLY && !access.contains(DmaAccess::WRITE);
    if enough {
        Ok(())
    } else {
        Err(MemoryError::Access { access })
    }
}

fn is_sealed(descriptor: &OwnedFd) -> bool {
    fcntl(descriptor, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK))
}

fn map_shared(
    descriptor: &OwnedFd,
    offset: u64,
    length: NonZeroUsize,
    access: DmaAccess,
) -> Result<NonNull<u8>, MemoryError> {
    let offset = i64::try_from(offset).map_err(|_| MemoryError::Length { length: offset })?;
    // A device that may only write its memory still reads it (to change a part of a word), and no processor has pages that can only be written.
    let mut protection = ProtFlags::PROT_READ;
    if access.contains(DmaAccess::WRITE) {
        protection |= ProtFlags::PROT_WRITE;
    }
    // SAFETY: a new mapping at an address that the system chooses takes nobody's memory away.
    let pointer = unsafe {
        mmap(
            None,
            length,
            protection,
            MapFlags::MAP_SHARED,
            descriptor.as_fd(),
            offset,
        )
    }
    .map_err(MemoryError::System)?;
    for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
        // SAFETY: the mapping made just now; neither changes what it holds.
        if let Err(error) = unsafe { madvise(pointer, length.get(), advice) } {
            tracing::debug!(%error, "a client's memory goes to children or core dumps");
        }
    }
    Ok(pointer.cast())
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
