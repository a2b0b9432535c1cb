//! Memory of this process that can be mapped for a device.
#![allow(unsafe_code)] // maps, unmaps and takes over memory: the place where addresses come from

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::unistd::ftruncate;

use crate::error::DmaError;
use crate::page::{HUGE_PAGE_SIZE, available_memory, page_size};

/// Which pages [`Memory::new`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// Those of the system, usually 4 KiB.
    #[default]
    Small,
    /// Hugepages of 2 MiB where the system has enough free ones for the whole length, else small ones. The length is then rounded up
    /// to whole hugepages. For fewer than 2 MiB small ones are taken.
    PreferHuge,
}

/// Memory that a value owns, so that it can be lent to a device for longer than any borrow.
///
/// # Safety
/// [`region`](Self::region) gives initialised bytes that are valid for reads and writes until the value is dropped, that do not move when the value
/// does, and that nothing else accesses while the value lives. A forgotten value never frees them.
pub unsafe trait OwnedMemory: Send + 'static {
    /// The bytes. Called once, before the value is put away until it is dropped.
    fn region(&mut self) -> NonNull<[u8]>;
}

// SAFETY: a box owns its bytes alone, on the heap, where they stay when the box moves.
unsafe impl OwnedMemory for Box<[u8]> {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut **self)
    }
}

// SAFETY: a vector owns its bytes alone, on the heap; nobody can reach the vector to make it grow once it is put away.
unsafe impl OwnedMemory for Vec<u8> {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::from(self.as_mut_slice())
    }
}

/// Whose memory it is, and so what ends it.
enum Source {
    /// A file in memory, mapped by this module.
    Descriptor(OwnedFd),
    /// Made by `Box::into_raw`: a `Box` kept here would claim, at every move, that nobody else touches the memory.
    Owner(NonNull<dyn OwnedMemory>),
    /// The caller's, who promised that it lasts; with the file behind it and its offset there, where it was told.
    Caller(Option<(OwnedFd, u64)>),
}

/// Memory of this process for a device, not mapped for one yet.
///
/// Made by [`Memory::new`], it is zeroed, whole in physical memory from the start (no later fault can find none), not inherited by
/// forked children, and backed by a memfd that nobody can shrink, grow or seal further.
pub struct Memory {
    pointer: NonNull<u8>,
    length: usize,
    page_size: usize,
    source: Source,
}

// SAFETY: the memory belongs to the value (or is promised to, for `Caller`), owners are `Send`, and `&Memory` gives no access to the bytes.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared `Memory` tells only address and length.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory of `length` bytes, rounded up to whole pages, and aligned in this process as far as its length gives reason, up to 2 MiB.
    ///
    /// # Errors
    /// [`DmaError::ZeroLength`], [`DmaError::TooLong`] (past the process's addresses), or [`DmaError::Memory`] when the system does not give it.
    pub fn new(length: usize, pages: Pages) -> Result<Self, DmaError> {
        if length == 0 {
            return Err(DmaError::ZeroLength);
        }
        if pages == Pages::PreferHuge && length >= HUGE_PAGE_SIZE {
            match Self::anonymous(length, HUGE_PAGE_SIZE) {
                Ok(memory) => return Ok(memory),
                Err(error) => tracing::debug!(length, %error, "no hugepages; taking small ones"),
            }
        }
        Self::anonymous(length, page_size())
    }

    /// Takes over memory that the application has. A device can be given only whole pages: memory that begins or ends inside a page is refused
    /// when it is mapped.
    ///
    /// Unlike [`Memory::new`]'s it may be inherited by forked children, as the application arranged it.
    #[must_use]
    pub fn from_owned(owner: impl OwnedMemory) -> Self {
        let mut owner: Box<dyn OwnedMemory> = Box::new(owner);
        let region = owner.region();
        // SAFETY: `Box::into_raw` never gives null.
        let owner = unsafe { NonNull::new_unchecked(Box::into_raw(owner)) };
        Self {
            pointer: region.cast(),
            length: region.len(),
            page_size: page_size(),
            source: Source::Owner(owner),
        }
    }

    /// Memory that stays the caller's.
    ///
    /// # Safety
    /// The bytes are initialised, valid for reads and for every kind of write that is made through what this value becomes, and accessed
    /// in no other way, until that has been dropped *and* [`AddressSpace::leaked_bytes`](crate::AddressSpace::leaked_bytes) has not grown by it. If it has, the
    /// device may still reach the memory, which then stays valid and unused until the domain is gone.
    #[must_use]
    pub const unsafe fn from_raw_parts(
        pointer: NonNull<u8>,
        length: usize,
        page_size: usize,
    ) -> Self {
        Self {
            pointer,
            length,
            page_size,
            source: Source::Caller(None),
        }
    }

    /// As [`from_raw_parts`](Self::from_raw_parts), of memory that is the mapping of a file, from `offset` on: it can then also be lent to a device that another
    /// process serves, which maps the file.
    ///
    /// # Safety
    /// As of [`from_raw_parts`](Self::from_raw_parts), and the bytes of the file at `offset` are those of the memory.
    #[must_use]
    pub const unsafe fn from_raw_parts_of_file(
        pointer: NonNull<u8>,
        length: usize,
        page_size: usize,
        file: OwnedFd,
        offset: u64,
    ) -> Self {
        Self {
            pointer,
            length,
            page_size,
            source: Source::Caller(Some((file, offset))),
        }
    }

    /// A memfd of pages of one size, mapped.
    fn anonymous(length: usize, page_size: usize) -> Result<Self, DmaError> {
        let limit = isize::MAX as usize & !(HUGE_PAGE_SIZE - 1);
        let length = length
            .checked_next_multiple_of(page_size)
            .filter(|length| *length <= limit);
        let (Some(length), true) = (
            length.and_then(NonZeroUsize::new),
            page_size.is_power_of_two(),
        ) else {
            return Err(DmaError::TooLong {
                length: length.unwrap_or(usize::MAX),
                limit,
            });
        };
        let failed = |step| {
            move |errno: Errno| DmaError::Memory {
                length: length.get(),
                step,
                source: io::Error::from(errno),
            }
        };

        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if page_size < HUGE_PAGE_SIZE {
            // Without this, more than there is would be taken page by page until the kernel kills a process.
            if available_memory().is_some_and(|available| length.get() as u64 > available) {
                return Err(failed("/proc/meminfo")(Errno::ENOMEM));
            }
        } else {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let descriptor = memfd_create(c"nvme-vfio-dma", flags).map_err(failed("memfd_create"))?;
        // INVARIANT: at most isize::MAX by the limit above, so it fits an off_t.
        ftruncate(&descriptor, length.get() as libc::off_t).map_err(failed("ftruncate"))?;
        reserve(&descriptor, length.get()).map_err(failed("fallocate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&descriptor, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("fcntl(F_ADD_SEALS)"))?;

        let pointer = map_aligned(&descriptor, length, page_size).map_err(failed("mmap"))?;
        // From here on dropping `memory` unmaps.
        let memory = Self {
            pointer,
            length: length.get(),
            page_size,
            source: Source::Descriptor(descriptor),
        };
        // SAFETY: the range is this function's own fresh mapping; the advice changes only what a forked child gets.
        unsafe { madvise(pointer.cast(), length.get(), MmapAdvise::MADV_DONTFORK) }
            .map_err(failed("madvise(MADV_DONTFORK)"))?;
        Ok(memory)
    }

    /// First byte, in this process.
    #[inline]
    #[must_use]
    pub const fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    /// Bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "empty memory cannot be mapped")]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Bytes in each page behind it: 2 MiB when hugepages were had. For memory taken over, the system's smallest page.
    #[inline]
    #[must_use]
    pub const fn page_size(&self) -> usize {
        self.page_size
    }

    /// The file that was made for it, whose byte 0 is its first. Not public: writing the file would change bytes under a `&mut` of a buffer.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Descriptor(descriptor) => Some(descriptor.as_fd()),
            Source::Owner(_) | Source::Caller(_) => None,
        }
    }

    /// The file behind it, and where in the file the memory begins. Not public: writing the file would change bytes under a `&mut` of a buffer.
    pub(crate) fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.source {
            Source::Descriptor(descriptor) => Some((descriptor.as_fd(), 0)),
            Source::Caller(Some((descriptor, offset))) => Some((descriptor.as_fd(), *offset)),
            Source::Owner(_) | Source::Caller(None) => None,
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Descriptor(_) => "memfd",
            Source::Owner(_) => "owned",
            Source::Caller(_) => "caller's",
        };
        write!(
            f,
            "Memory({source} at {:p}, {:#x} bytes in pages of {:#x})",
            self.pointer, self.length, self.page_size
        )
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self.source {
            // SAFETY: made by `map_aligned` with this length, and nothing that used it outlives this value.
            Source::Descriptor(_) => unsafe {
                if let Err(errno) = munmap(self.pointer.cast(), self.length) {
                    tracing::error!(memory = ?self, %errno, "memory could not be returned to the system");
                }
            },
            // SAFETY: made by `Box::into_raw` in `from_owned`, and given back once, here.
            Source::Owner(owner) => drop(unsafe { Box::from_raw(owner.as_ptr()) }),
            Source::Caller(_) => {}
        }
    }
}

/// Has the kernel set every page of the file aside, so that a lack of memory is an error now and not a SIGBUS at the first touch.
fn reserve(descriptor: &OwnedFd, length: usize) -> Result<(), Errno> {
    // In steps: a signal makes the kernel undo the call that it interrupts, so one long call may never end.
    for offset in (0..length).step_by(HUGE_PAGE_SIZE) {
        let step = HUGE_PAGE_SIZE.min(length - offset);
        while let Err(errno) = fallocate(
            descriptor,
            FallocateFlags::empty(),
            offset as libc::off_t,
            step as libc::off_t,
        ) {
            if errno != Errno::EINTR {
                return Err(errno);
            }
        }
    }
    Ok(())
}

/// Maps a file at an address aligned by the region's size, so that 2 MiB pages of the IOMMU and of the processor can be used.
fn map_aligned(
    descriptor: &OwnedFd,
    length: NonZeroUsize,
    page_size: usize,
) -> Result<NonNull<u8>, Errno> {
    let alignment = (1 << length.ilog2()).clamp(page_size, HUGE_PAGE_SIZE.max(page_size));
    let reserved = length.checked_add(alignment).ok_or(Errno::ENOMEM)?;
    // Addresses first, without memory: too many by one alignment, of which the ends go back.
    let none = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
    let room = unsafe { mmap_anonymous(None, reserved, ProtFlags::PROT_NONE, none) }?;
    let first = room.addr().get();
    let aligned = first.next_multiple_of(alignment);
    let (head, tail) = (aligned - first, first + alignment - aligned);
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE | MapFlags::MAP_FIXED;
    // SAFETY: `aligned..aligned + length` lies inside the room reserved above, which nothing else uses.
    let mapped = unsafe {
        mmap(
            NonZeroUsize::new(aligned),
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            flags,
            descriptor,
            0,
        )
    };
    let Ok(pointer) = mapped else {
        // SAFETY: the room is this function's own. If it cannot be returned, addresses are lost, not memory.
        let _ = unsafe { munmap(room, reserved.get()) };
        return mapped.map(NonNull::cast);
    };
    // SAFETY: both ends are parts of the room that the file's mapping did not replace: before it, and after its last byte.
    unsafe {
        if head > 0 {
            munmap(room, head)?;
        }
        if tail > 0 {
            munmap(pointer.byte_add(length.get()), tail)?;
        }
    }
    Ok(pointer.cast())
}

#[cfg(test)]
mod tests;
