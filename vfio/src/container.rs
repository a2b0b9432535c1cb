//! [`Container`]: the I/O address space of one group.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nvme_vfio_dma::{
    Access, DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError,
    check_region,
};
use vfio_bindings::bindings::vfio as uapi;

use crate::memlock::Memlock;
use crate::sysfs::read_text;
use crate::{Sysfs, ioctl, iommu_info};

/// The I/O address space of one group: a VFIO container with a type 1 v2 IOMMU.
///
/// It holds the group open: mappings end when the container is gone, not before. So a group whose
/// [`Group`](crate::Group) and devices are dropped stays busy until the last buffer mapped through it is dropped too.
#[derive(Debug)]
pub struct Container {
    id: DomainId,
    // The group is closed before the container: fields are dropped in this order.
    group: OwnedFd,
    container: OwnedFd,
    /// As they were when the group was opened; address ranges and page sizes stay.
    limits: DomainLimits,
    /// Bytes mapped through this container.
    mapped: Mutex<u64>,
}

impl Container {
    /// Takes over an opened group that is set into an opened container with its IOMMU chosen.
    pub(crate) fn new(group: OwnedFd, container: OwnedFd, limits: DomainLimits) -> Self {
        Self {
            id: DomainId::new(),
            group,
            container,
            limits,
            mapped: Mutex::new(0),
        }
    }

    /// The group's descriptor, for its own ioctls.
    pub(crate) fn group(&self) -> &OwnedFd {
        &self.group
    }

    /// Bytes mapped now.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        *self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_error(&self, error: io::Error, region: &MapRegion<'_>, iova: Iova) -> MapError {
        let (pointer, length) = (region.pointer.addr().get(), region.length);
        match error.raw_os_error() {
            Some(libc::EEXIST) => MapError::Overlap { iova, length },
            Some(libc::ENOSPC) => MapError::TooManyMappings,
            Some(libc::EFAULT) => {
                let maps = read_text(&Sysfs::system().path("proc/self/maps")).unwrap_or_default();
                if region.access.contains(Access::DEVICE_WRITE)
                    && is_read_only(&maps, pointer as u64, length as u64)
                {
                    MapError::ReadOnlyMemory { pointer, length }
                } else {
                    MapError::NoMemoryBehind { pointer, length }
                }
            }
            // ENOMEM also comes from a kernel that is out of memory.
            Some(libc::ENOMEM) => match Memlock::of_this_process().exceeded_by(length as u64) {
                Some((needed, limit)) => MapError::MemlockLimit { needed, limit },
                None => MapError::Os(error),
            },
            _ => MapError::Os(error),
        }
    }
}

/// Ends every mapping. The kernel would do so by itself when the last descriptor closes, but that can be a duplicate of the device's, or
/// one that a forked child has: what was lent must be back when the domain is gone.
impl Drop for Container {
    fn drop(&mut self) {
        if self.mapped_bytes() == 0 {
            return;
        }
        // One range over all addresses: mappings that lie wholly inside are unmapped.
        let all = !(self.limits.page_size() - 1);
        match ioctl::unmap_dma(self.container.as_fd(), 0, all) {
            Ok(bytes) => tracing::debug!(bytes, "unmapped what was left"),
            Err(error) => tracing::error!(%error, "what was mapped could not be unmapped"),
        }
    }
}

impl IommuDomain for Container {
    fn id(&self) -> DomainId {
        self.id
    }

    fn limits(&self) -> DomainLimits {
        // The budget falls with every mapping: ask anew.
        let fresh = ioctl::iommu_info(self.container.as_fd());
        let fresh = fresh.ok().and_then(|bytes| iommu_info::parse(&bytes));
        fresh.unwrap_or_else(|| self.limits.clone())
    }

    #[allow(unsafe_code)] // the seam's own method is unsafe: memory is given to a device
    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        // The budget as it was when the group was opened would mislead; the kernel's ENOSPC tells when it is used up.
        let limits = DomainLimits {
            mappings: None,
            ..self.limits.clone()
        };
        check_region(&limits, region, iova)?;
        let mut flags = 0;
        if region.access.contains(Access::DEVICE_READ) {
            flags |= uapi::VFIO_DMA_MAP_FLAG_READ;
        }
        if region.access.contains(Access::DEVICE_WRITE) {
            flags |= uapi::VFIO_DMA_MAP_FLAG_WRITE;
        }
        let (address, length) = (region.pointer.addr().get() as u64, region.length as u64);
        // SAFETY: the caller promises what `map_dma` wants: the memory stays until it is unmapped or the domain is gone.
        unsafe { ioctl::map_dma(self.container.as_fd(), flags, address, iova.0, length) }
            .map_err(|error| self.map_error(error, region, iova))?;
        *self.mapped.lock().unwrap_or_else(PoisonError::into_inner) += length;
        tracing::debug!(%iova, length, access = ?region.access, "mapped");
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        let wanted = length as u64;
        if wanted == 0 {
            return Err(UnmapError::NotMapped { iova, length });
        }
        let unmapped = ioctl::unmap_dma(self.container.as_fd(), iova.0, wanted).map_err(
            |error| match error.raw_os_error() {
                // What else is EINVAL (misalignment, wrap) cannot be the range of a whole mapping either.
                Some(libc::EINVAL) => UnmapError::PartOfMapping { iova, length },
                _ => UnmapError::Os(error),
            },
        )?;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        *mapped = mapped.saturating_sub(unmapped);
        tracing::debug!(%iova, length, unmapped, "unmapped");
        match unmapped {
            0 => Err(UnmapError::NotMapped { iova, length }),
            _ if unmapped == wanted => Ok(()),
            _ => Err(UnmapError::SizeDiffers {
                iova,
                length,
                unmapped,
            }),
        }
    }
}

/// Whether `/proc/self/maps` shows memory behind the whole range, and a part of it not writable.
fn is_read_only(maps: &str, start: u64, length: u64) -> bool {
    let Some(end) = start.checked_add(length) else {
        return false;
    };
    let mut covered = start;
    let mut read_only = false;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((first, last)) = words.next().and_then(|range| range.split_once('-')) else {
            continue;
        };
        let (Ok(first), Ok(last)) = (
            u64::from_str_radix(first, 16),
            u64::from_str_radix(last, 16),
        ) else {
            continue;
        };
        // The lines come in the order of addresses.
        if first > covered || last <= covered || covered >= end {
            continue;
        }
        covered = last;
        read_only |= words.next().and_then(|bits| bits.as_bytes().get(1)) != Some(&b'w');
    }
    covered >= end && read_only
}

#[cfg(test)]
mod tests {
    use super::is_read_only;

    #[test]
    fn tells_read_only_memory_from_none() {
        let maps =
            "1000-2000 rw-p 0 0:0 0\n2000-3000 r--p 0 0:0 0 /x\n5000-6000 r--s 0 0:0 0\njunk\n";
        assert!(is_read_only(maps, 0x1000, 0x2000));
        assert!(is_read_only(maps, 0x2000, 0x1000));
        assert!(is_read_only(maps, 0x5000, 0x1000));
        assert!(!is_read_only(maps, 0x1000, 0x1000), "writable");
        assert!(!is_read_only(maps, 0x2000, 0x2000), "runs into a hole");
        assert!(!is_read_only(maps, 0x4000, 0x1000), "nothing there");
        assert!(!is_read_only(maps, 0x4000, 0x2000), "begins in a hole");
        assert!(!is_read_only(maps, u64::MAX, 2));
    }
}
