//! [`MappedRegion`]: a region in this process's memory.
//!
//! Unsafe is needed here to map device registers and to access them; all of it is behind checked offsets.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::DeviceError;
use crate::device::Inner;
use crate::region::{RegionFlags, RegionInfo};

/// A region whose mappable parts are in this process's memory.
///
/// Every access is volatile, naturally aligned, and checked against what is mapped. Registers are little-endian (PCI), values are
/// the machine's. A device that is gone reads as all ones, which is returned as it is. Accesses are not ordered against ordinary
/// memory: fence where that matters.
///
/// While Memory Space Enable of the command register is clear, or the function is in D3hot, an access raises SIGBUS: do not
/// clear it through [`Device::config_write`](crate::Device::config_write) while the region is used.
///
/// Cloning is cheap and gives the same mapping, which keeps the device open.
#[derive(Debug, Clone)]
pub struct MappedRegion {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    index: u32,
    flags: RegionFlags,
    areas: Vec<Area>,
    /// Only to keep the device (and with it its group) open.
    _device: Arc<Inner>,
}

#[derive(Debug)]
struct Area {
    /// From the start of the region, in bytes.
    start: u64,
    length: usize,
    pointer: NonNull<u8>,
}

// SAFETY: the areas are memory that stays mapped as long as the `Area` lives and is only accessed by volatile operations on
// the device's registers, which no thread owns.
unsafe impl Send for Area {}
// SAFETY: as above; a shared `Area` hands out nothing but its address and volatile accesses.
unsafe impl Sync for Area {}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the area was mapped with this address and length, and whoever could access it held the mapping.
        if let Err(error) = unsafe { munmap(self.pointer.cast(), self.length) } {
            tracing::warn!(%error, "a region could not be unmapped");
        }
    }
}

/// Why a mapped region could not be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Past the end, or in a part that cannot be mapped; [`Region::read`](crate::Region::read) reaches the latter.
    #[error("offset {offset:#x} with {length} bytes is not in a mapped part of region {index}")]
    NotMapped {
        /// The region.
        index: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Not a multiple of the access's size.
    #[error("offset {offset:#x} is not a multiple of {length}")]
    Misaligned {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// The region may not be read, or not be written.
    #[error("region {index} cannot be accessed in this way")]
    NotAllowed {
        /// The region.
        index: u32,
    },
}

impl MappedRegion {
    pub(crate) fn new(device: Arc<Inner>, info: &RegionInfo) -> Result<Self, DeviceError> {
        let index = info.index();
        let mut protection = ProtFlags::empty();
        protection.set(
            ProtFlags::PROT_READ,
            info.flags().contains(RegionFlags::READ),
        );
        protection.set(
            ProtFlags::PROT_WRITE,
            info.flags().contains(RegionFlags::WRITE),
        );
        if info.mappable().is_empty() || protection.is_empty() {
            return Err(DeviceError::NotAllowed {
                index,
                how: "mapped",
            });
        }
        let mut areas = Vec::with_capacity(info.mappable().len());
        for range in info.mappable() {
            let length = usize::try_from(range.end - range.start)
                .ok()
                .and_then(NonZeroUsize::new)
                .ok_or(DeviceError::BadRegion {
                    index,
                    what: "an area is longer than memory",
                })?;
            // The sum was checked when the description was read, and fits an i64.
            let offset = (info.file_offset() + range.start) as libc::off_t;
            // SAFETY: a new mapping at an address of the kernel's choice, which touches no other memory of this process.
            let pointer = unsafe {
                mmap(
                    None,
                    length,
                    protection,
                    MapFlags::MAP_SHARED,
                    &device.file,
                    offset,
                )
            };
            let pointer: NonNull<c_void> = pointer.map_err(|error| DeviceError::Os {
                address: device.address,
                step: "mapping a region",
                source: error.into(),
            })?;
            areas.push(Area {
                start: range.start,
                length: length.get(),
                pointer: pointer.cast(),
            });
        }
        Ok(Self {
            mapping: Arc::new(Mapping {
                index,
                flags: info.flags(),
                areas,
                _device: device,
            }),
        })
    }

    /// The address of `length` bytes at `offset`, when all of them are mapped in one piece; for what is accessed so often that the
    /// check has to be done once and for all, such as doorbells.
    ///
    /// The address is good as long as this mapping or a clone of it lives. Access it only by volatile or atomic operations, and
    /// write only where [`RegionFlags::WRITE`] is set.
    #[must_use]
    pub fn pointer_at(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        self.mapping.areas.iter().find_map(|area| {
            let within = usize::try_from(offset.checked_sub(area.start)?).ok()?;
            let end = within.checked_add(length)?;
            // SAFETY: `within` is at most the area's length, so the address is in the area or one past its end.
            (end <= area.length).then(|| unsafe { area.pointer.add(within) })
        })
    }

    fn locate<T>(&self, offset: u64, need: RegionFlags) -> Result<NonNull<T>, AccessError> {
        let index = self.mapping.index;
        let length = size_of::<T>();
        if !self.mapping.flags.contains(need) {
            return Err(AccessError::NotAllowed { index });
        }
        if !offset.is_multiple_of(length as u64) {
            return Err(AccessError::Misaligned { offset, length });
        }
        let pointer = self.pointer_at(offset, length);
        pointer.map(NonNull::cast).ok_or(AccessError::NotMapped {
            index,
            offset,
            length,
        })
    }

    /// Reads 32 bits at `offset` in bytes, a multiple of 4.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn read32(&self, offset: u64) -> Result<u32, AccessError> {
        let pointer = self.locate::<u32>(offset, RegionFlags::READ)?;
        // SAFETY: four mapped, readable bytes; areas begin on pages, so the address is aligned as the offset is.
        Ok(u32::from_le(unsafe { pointer.read_volatile() }))
    }

    /// Reads 64 bits at `offset` in bytes, a multiple of 8.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn read64(&self, offset: u64) -> Result<u64, AccessError> {
        let pointer = self.locate::<u64>(offset, RegionFlags::READ)?;
        // SAFETY: eight mapped, readable bytes; areas begin on pages, so the address is aligned as the offset is.
        Ok(u64::from_le(unsafe { pointer.read_volatile() }))
    }

    /// Writes 32 bits at `offset` in bytes, a multiple of 4.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        let pointer = self.locate::<u32>(offset, RegionFlags::WRITE)?;
        // SAFETY: four mapped, writable bytes of device registers, aligned as above; no reference to them exists.
        unsafe { pointer.write_volatile(value.to_le()) };
        Ok(())
    }

    /// Writes 64 bits at `offset` in bytes, a multiple of 8.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn write64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        let pointer = self.locate::<u64>(offset, RegionFlags::WRITE)?;
        // SAFETY: eight mapped, writable bytes of device registers, aligned as above; no reference to them exists.
        unsafe { pointer.write_volatile(value.to_le()) };
        Ok(())
    }
}
