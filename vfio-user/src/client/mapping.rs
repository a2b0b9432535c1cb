//! [`MappedRegion`]: a region of the device in this process's memory.
#![allow(unsafe_code)] // maps a file that the server passed, and gives out pointers into it

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::{SysconfVar, sysconf};

use crate::error::ClientError;
use crate::message::{RegionFlags, RegionInfo, SparseArea};

/// Parts of one region that are mapped. Servers have one or two.
const MAX_AREAS: usize = 64;

/// The mappable parts of a region, mapped. Clones share the mapping, which ends with the last.
///
/// What is there may change at any time: access it only by volatile or atomic operations.
///
/// A file that is not sealed against it can be truncated by the server later, after which every access raises SIGBUS: see
/// [`is_sealed`](Self::is_sealed). One that is too short from the start is refused.
#[derive(Debug, Clone)]
pub struct MappedRegion(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    areas: Vec<Area>,
    writable: bool,
    sealed: bool,
}

#[derive(Debug)]
struct Area {
    /// From the start of the region, in bytes.
    start: u64,
    length: usize,
    pointer: NonNull<u8>,
}

// SAFETY: the area is memory that stays mapped as long as the value lives, and that no thread owns.
unsafe impl Send for Area {}
// SAFETY: as above; a shared `Area` tells its address and nothing else.
unsafe impl Sync for Area {}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and length, and whoever has the address keeps the mapping.
        if let Err(error) = unsafe { munmap(self.pointer.cast(), self.length) } {
            tracing::warn!(%error, "a region could not be unmapped");
        }
    }
}

impl MappedRegion {
    pub(super) fn new(
        info: &RegionInfo,
        descriptor: Option<&OwnedFd>,
    ) -> Result<Self, ClientError> {
        let index = info.index;
        let refuse = |reason| ClientError::Region { index, reason };
        let failed = |step| {
            move |errno: Errno| ClientError::Map {
                index,
                step,
                source: errno.into(),
            }
        };
        if !info.flags.contains(RegionFlags::MMAP) {
            return Err(refuse("it cannot be mapped"));
        }
        let descriptor = descriptor.ok_or(refuse(
            "it is said to be mappable, and came without a descriptor",
        ))?;
        let mut protection = ProtFlags::empty();
        protection.set(ProtFlags::PROT_READ, info.flags.contains(RegionFlags::READ));
        let writable = info.flags.contains(RegionFlags::WRITE);
        protection.set(ProtFlags::PROT_WRITE, writable);
        if protection.is_empty() {
            return Err(refuse("it can be neither read nor written"));
        }
        let status = fstat(descriptor).map_err(failed("fstat"))?;
        if status.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(refuse("its descriptor is not a file"));
        }
        let file = u64::try_from(status.st_size).unwrap_or(0);
        let sealed = fcntl(descriptor, FcntlArg::F_GET_SEALS).is_ok_and(|seals| {
            SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK)
        });
        let page = page_size();
        let whole = [SparseArea {
            offset: 0,
            size: info.size,
        }];
        let described = info.areas.as_deref().unwrap_or(&whole);
        if described.len() > MAX_AREAS {
            return Err(refuse("it has more mappable parts than make sense"));
        }
        let mut areas = Vec::new();
        for area in described.iter().filter(|area| area.size > 0) {
            let first = info.offset.checked_add(area.offset);
            let last = first.and_then(|first| first.checked_add(area.size));
            let (Some(first), Some(last)) = (first, last) else {
                return Err(refuse("a part of it wraps"));
            };
            if !first.is_multiple_of(page) || !area.size.is_multiple_of(page) {
                return Err(refuse("a part of it is not made of whole pages"));
            }
            if last > file {
                return Err(refuse("its file is shorter than what is to be mapped"));
            }
            let length = usize::try_from(area.size).ok().and_then(NonZeroUsize::new);
            let (Some(length), Ok(offset)) = (length, libc::off_t::try_from(first)) else {
                return Err(refuse("a part of it is longer than memory"));
            };
            // SAFETY: a new mapping at an address that the kernel chooses touches no other memory of this process.
            let pointer = unsafe {
                mmap(
                    None,
                    length,
                    protection,
                    MapFlags::MAP_SHARED,
                    descriptor.as_fd(),
                    offset,
                )
            };
            areas.push(Area {
                start: area.offset,
                length: length.get(),
                pointer: pointer.map_err(failed("mmap"))?.cast(),
            });
        }
        if areas.is_empty() {
            return Err(refuse("none of it can be mapped"));
        }
        Ok(Self(Arc::new(Inner {
            areas,
            writable,
            sealed,
        })))
    }

    /// The address of `length` bytes at `offset` in the region, where all of them are mapped in one piece. It is good as long as this value
    /// or a clone of it lives. Write there only where [`is_writable`](Self::is_writable).
    #[must_use]
    pub fn pointer_at(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        self.0.areas.iter().find_map(|area| {
            let within = usize::try_from(offset.checked_sub(area.start)?).ok()?;
            let end = within.checked_add(length)?;
            // SAFETY: `within` is at most the area's length, so the address is in the area or one past its end.
            (end <= area.length).then(|| unsafe { area.pointer.add(within) })
        })
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.0.writable
    }

    /// Whether nobody can shorten the file behind it, so that no access can ever raise SIGBUS.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.0.sealed
    }
}

fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}
