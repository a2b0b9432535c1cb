//! [`Region`]: a part of a device's address space, as VFIO offers it.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as uapi;

use crate::chain::{capabilities, u32_at, u64_at};
use crate::device::Inner;
use crate::{DeviceError, MappedRegion};

/// Index of BAR 0; the other BARs follow, up to 5.
pub const REGION_BAR0: u32 = uapi::VFIO_PCI_BAR0_REGION_INDEX;
/// Index of the expansion ROM.
pub const REGION_ROM: u32 = uapi::VFIO_PCI_ROM_REGION_INDEX;
/// Index of configuration space.
pub const REGION_CONFIG: u32 = uapi::VFIO_PCI_CONFIG_REGION_INDEX;
/// Index of the legacy VGA ranges.
pub const REGION_VGA: u32 = REGION_CONFIG + 1;

bitflags::bitflags! {
    /// What can be done with a region.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = uapi::VFIO_REGION_INFO_FLAG_READ;
        /// It can be written.
        const WRITE = uapi::VFIO_REGION_INFO_FLAG_WRITE;
        /// At least a part of it can be mapped.
        const MMAP = uapi::VFIO_REGION_INFO_FLAG_MMAP;
    }
}

/// What the kernel tells about a region (`VFIO_DEVICE_GET_REGION_INFO` and its capabilities).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    index: u32,
    flags: RegionFlags,
    size: u64,
    /// Where the region is in the device's file.
    file_offset: u64,
    mappable: Vec<Range<u64>>,
    msix_mappable: bool,
}

/// Areas that are read from one description.
const MOST_AREAS: usize = 1024;

impl RegionInfo {
    pub(crate) fn parse(bytes: &[u8], index: u32) -> Result<Self, &'static str> {
        let short = "it is too short";
        let told_flags = u32_at(bytes, 4).ok_or(short)?;
        let first = match told_flags & uapi::VFIO_REGION_INFO_FLAG_CAPS {
            0 => 0,
            _ => u32_at(bytes, 12).ok_or(short)?,
        };
        let size = u64_at(bytes, 16).ok_or(short)?;
        let file_offset = u64_at(bytes, 24).ok_or(short)?;
        let end = file_offset
            .checked_add(size)
            .ok_or("it ends past the last offset")?;
        if i64::try_from(end).is_err() {
            return Err("it ends past the last offset of a file");
        }
        let flags = RegionFlags::from_bits_truncate(told_flags);
        let mut sparse = None;
        let mut msix_mappable = false;
        for capability in capabilities(bytes, first) {
            match u32::from(capability.id) {
                uapi::VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                    sparse = Some(areas(capability.bytes, size)?)
                }
                uapi::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => msix_mappable = true,
                _ => {}
            }
        }
        let mappable = match (flags.contains(RegionFlags::MMAP), sparse) {
            (false, _) => Vec::new(),
            (true, Some(areas)) => areas,
            // The kernel rounds nothing up: a part of a page at the end cannot be mapped.
            (true, None) => {
                let end = size - size % page_size();
                if end == 0 {
                    Vec::new()
                } else {
                    std::iter::once(0..end).collect()
                }
            }
        };
        Ok(Self {
            index,
            flags,
            size,
            file_offset,
            mappable,
            msix_mappable,
        })
    }

    /// Its index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What can be done with it.
    #[must_use]
    pub fn flags(&self) -> RegionFlags {
        self.flags
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts of it that can be mapped, in bytes from its start; multiples of the page size.
    #[must_use]
    pub fn mappable(&self) -> &[Range<u64>] {
        &self.mappable
    }

    /// Whether the kernel says that a mapping may cover the MSI-X table (it shields the host from wrong entries in another way).
    #[must_use]
    pub fn msix_mappable(&self) -> bool {
        self.msix_mappable
    }

    pub(crate) fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Where an access of `length` bytes at `offset` is in the device's file.
    fn locate(&self, offset: u64, length: usize) -> Result<u64, DeviceError> {
        let end = offset.checked_add(length as u64);
        match end {
            Some(end) if end <= self.size => Ok(self.file_offset + offset),
            _ => Err(DeviceError::OutOfRegion {
                index: self.index,
                offset,
                length,
                size: self.size,
            }),
        }
    }
}

fn page_size() -> u64 {
    nvme_vfio_dma::page_size() as u64
}

/// `nr_areas`, a reserved word, then pairs of offset and size.
fn areas(capability: &[u8], region_size: u64) -> Result<Vec<Range<u64>>, &'static str> {
    let told = u32_at(capability, 8).ok_or("its list of mappable areas is too short")? as usize;
    if told > MOST_AREAS {
        return Err("it has too many mappable areas");
    }
    let mut areas = Vec::new();
    for n in 0..told {
        let pair = u64_at(capability, 16 + n * 16).zip(u64_at(capability, 24 + n * 16));
        let (start, size) = pair.ok_or("its list of mappable areas is too short")?;
        let end = start.checked_add(size).filter(|&end| end <= region_size);
        let end = end.ok_or("a mappable area ends past the region")?;
        if !start.is_multiple_of(page_size()) || !size.is_multiple_of(page_size()) {
            return Err("a mappable area is not whole pages");
        }
        // An area without bytes says that nothing can be mapped there.
        if size != 0 {
            areas.push(start..end);
        }
    }
    Ok(areas)
}

/// A region of an opened device. Keeps the device open.
#[derive(Debug, Clone)]
pub struct Region {
    device: Arc<Inner>,
    info: RegionInfo,
}

impl Region {
    pub(crate) fn new(device: Arc<Inner>, info: RegionInfo) -> Self {
        Self { device, info }
    }

    /// What the kernel tells about it.
    #[must_use]
    pub fn info(&self) -> &RegionInfo {
        &self.info
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Reads by system call, from `offset` in bytes on. The kernel splits it into naturally aligned accesses.
    ///
    /// A device that is gone reads as all ones.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfRegion`], [`DeviceError::NotAllowed`] when the region cannot be read, and the kernel's own.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        read(&self.device, &self.info, offset, bytes)
    }

    /// Writes by system call; as [`Region::read`].
    ///
    /// # Errors
    ///
    /// As [`Region::read`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        write(&self.device, &self.info, offset, bytes)
    }

    /// Maps all of it that can be mapped.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotAllowed`] when nothing of it can be mapped, and the kernel's own.
    pub fn map(&self) -> Result<MappedRegion, DeviceError> {
        MappedRegion::new(Arc::clone(&self.device), &self.info)
    }
}

pub(crate) fn read(
    device: &Inner,
    info: &RegionInfo,
    offset: u64,
    bytes: &mut [u8],
) -> Result<(), DeviceError> {
    if !info.flags.contains(RegionFlags::READ) {
        return Err(DeviceError::NotAllowed {
            index: info.index,
            how: "read",
        });
    }
    let at = info.locate(offset, bytes.len())?;
    // Goes on after a signal and after a part.
    device
        .file
        .read_exact_at(bytes, at)
        .map_err(|source| DeviceError::Os {
            address: device.address,
            step: "reading a region",
            source,
        })
}

pub(crate) fn write(
    device: &Inner,
    info: &RegionInfo,
    offset: u64,
    bytes: &[u8],
) -> Result<(), DeviceError> {
    if !info.flags.contains(RegionFlags::WRITE) {
        return Err(DeviceError::NotAllowed {
            index: info.index,
            how: "written",
        });
    }
    let at = info.locate(offset, bytes.len())?;
    device
        .file
        .write_all_at(bytes, at)
        .map_err(|source| DeviceError::Os {
            address: device.address,
            step: "writing a region",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::header;
    use proptest::prelude::*;

    fn info(flags: u32, size: u64, caps: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [0, flags, 0, 32] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(size.to_ne_bytes());
        bytes.extend((7u64 << 40).to_ne_bytes());
        bytes.extend(caps);
        bytes
    }

    fn sparse(told: u32, areas: &[(u64, u64)]) -> Vec<u8> {
        let mut cap = header(1, 0);
        cap.extend(told.to_ne_bytes());
        cap.extend(0u32.to_ne_bytes());
        for (start, size) in areas {
            cap.extend(start.to_ne_bytes());
            cap.extend(size.to_ne_bytes());
        }
        cap
    }

    #[test]
    fn a_bar_with_its_msix_table_mappable() {
        let region = RegionInfo::parse(&info(0xf, 0x4000, &header(3, 0)), 0).unwrap();
        assert!(region.msix_mappable());
        assert_eq!(region.flags(), RegionFlags::all());
        assert_eq!(region.mappable(), std::slice::from_ref(&(0..0x4000)));
        assert_eq!(region.locate(0x3ffc, 4).unwrap(), (7 << 40) + 0x3ffc);
        assert!(region.locate(0x3ffd, 4).is_err());
        assert!(region.locate(u64::MAX, 4).is_err());
    }

    #[test]
    fn sparse_areas_are_what_can_be_mapped() {
        let page = page_size();
        let cap = sparse(3, &[(0, page), (page, 0), (3 * page, page)]);
        let region = RegionInfo::parse(&info(0xf, 4 * page, &cap), 0).unwrap();
        assert_eq!(region.mappable(), [0..page, 3 * page..4 * page]);
        let unmappable = RegionInfo::parse(&info(0xb, 4 * page, &cap), 0).unwrap();
        assert!(unmappable.mappable().is_empty());
    }

    #[test]
    fn bad_descriptions_are_refused() {
        let page = page_size();
        for (areas, told) in [
            (vec![(0, 5 * page)], 1),
            (vec![(1, page)], 1),
            (vec![(0, page - 1)], 1),
            (vec![(u64::MAX - page + 1, page)], 1),
            (vec![(0, page)], 2),
            (vec![(0, page)], u32::MAX),
        ] {
            let bytes = info(0xf, 4 * page, &sparse(told, &areas));
            assert!(RegionInfo::parse(&bytes, 0).is_err(), "{areas:?} {told}");
        }
        assert!(RegionInfo::parse(&info(7, u64::MAX, &[]), 0).is_err());
        assert!(RegionInfo::parse(&info(7, i64::MAX as u64, &[]), 0).is_err());
        assert!(RegionInfo::parse(&[0; 31], 0).is_err());
    }

    #[test]
    fn a_part_of_a_page_is_not_mapped() {
        let region = RegionInfo::parse(&info(7, page_size() + 16, &[]), 0).unwrap();
        assert_eq!(region.mappable(), std::slice::from_ref(&(0..page_size())));
        assert!(
            RegionInfo::parse(&info(7, 16, &[]), 0)
                .unwrap()
                .mappable()
                .is_empty()
        );
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn hostile_descriptions_are_answered(
            flags: u32,
            size: u64,
            told in 0u32..6,
            areas in proptest::collection::vec(any::<(u64, u64)>(), 0..5),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut caps = sparse(told, &areas);
            caps.extend(tail);
            if let Ok(region) = RegionInfo::parse(&info(flags, size, &caps), 0) {
                prop_assert!(region.mappable().iter().all(|area| area.start < area.end && area.end <= size));
            }
        }

        #[test]
        fn hostile_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = RegionInfo::parse(&bytes, 0);
        }
    }
}
