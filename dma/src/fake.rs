//! A domain without hardware that answers as Linux does, for tests.
#![allow(unsafe_code)] // implements the contract of a domain, and copies to and from memory mapped into it

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{Access, DomainId, DomainLimits, IommuDomain, Iova, MapRegion, check_region};
use crate::error::{MapError, UnmapError};

#[derive(Debug, Clone, Copy)]
struct Entry {
    // An address with exposed provenance: the memory is the mapper's, who keeps it valid.
    pointer: usize,
    length: usize,
    access: Access,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Iova, Entry>,
    refuse_map: Option<MapError>,
    refuse_unmap: bool,
    /// Lengths in the order of mapping, of all that were ever made.
    history: Vec<usize>,
}

/// A domain that records what is mapped and answers as a type 1 v2 container does: overlaps, the number of mappings, unmapping of a hole or of a part. It needs a
/// descriptor when told to, as a vfio-user connection does.
#[derive(Debug)]
pub struct FakeDomain {
    id: DomainId,
    limits: DomainLimits,
    needs_descriptor: bool,
    state: Mutex<State>,
}

impl FakeDomain {
    /// A 39-bit IOMMU with the interrupt hole and 65,535 mappings.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(DomainLimits {
            iova_ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff],
            page_sizes: 0x4020_1000,
            mappings: Some(65_535),
        })
    }

    /// One with other limits; `mappings` counts from nothing mapped.
    #[must_use]
    pub fn with_limits(limits: DomainLimits) -> Self {
        Self {
            id: DomainId::new(),
            limits,
            needs_descriptor: false,
            state: Mutex::default(),
        }
    }

    /// One that maps only memory with a descriptor.
    #[must_use]
    pub const fn needing_descriptor(mut self) -> Self {
        self.needs_descriptor = true;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the next request to map with this error.
    pub fn refuse_next_map(&self, error: MapError) {
        self.lock().refuse_map = Some(error);
    }

    /// Answers the next request to unmap with an error, and keeps the mapping.
    pub fn refuse_next_unmap(&self) {
        self.lock().refuse_unmap = true;
    }

    /// What is mapped, ascending: address, bytes, access.
    #[must_use]
    pub fn mappings(&self) -> Vec<(Iova, usize, Access)> {
        self.lock()
            .entries
            .iter()
            .map(|(iova, entry)| (*iova, entry.length, entry.access))
            .collect()
    }

    /// How many mappings were ever made.
    #[must_use]
    pub fn maps_made(&self) -> usize {
        self.lock().history.len()
    }

    /// Where the process has what a device would reach, or `None` where the IOMMU would fault.
    #[must_use]
    pub fn translate(&self, iova: Iova, length: usize, access: Access) -> Option<NonNull<u8>> {
        let state = self.lock();
        let (first, entry) = state.entries.range(..=iova).next_back()?;
        let offset = usize::try_from(iova.0 - first.0).ok()?;
        let inside = offset.checked_add(length)? <= entry.length && entry.access.contains(access);
        if inside {
            NonNull::new(std::ptr::with_exposed_provenance_mut(
                entry.pointer + offset,
            ))
        } else {
            None
        }
    }

    /// Writes as a device does. False where the IOMMU would fault.
    ///
    /// # Safety
    /// No reference to the bytes lives in the process: the buffer is with the device.
    #[must_use]
    pub unsafe fn device_write(&self, iova: Iova, bytes: &[u8]) -> bool {
        let Some(into) = self.translate(iova, bytes.len(), Access::DEVICE_WRITE) else {
            return false;
        };
        // SAFETY: the mapping covers the bytes and is kept valid by whoever mapped it; the caller promises that nobody else has them.
        unsafe { into.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        true
    }

    /// Reads as a device does. False where the IOMMU would fault.
    ///
    /// # Safety
    /// No exclusive reference to the bytes lives in the process, and nobody writes them meanwhile.
    #[must_use]
    pub unsafe fn device_read(&self, iova: Iova, into: &mut [u8]) -> bool {
        let Some(from) = self.translate(iova, into.len(), Access::DEVICE_READ) else {
            return false;
        };
        // SAFETY: as for `device_write`, the other way round.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(&mut *into).cast(), into.len()) };
        true
    }
}

impl Default for FakeDomain {
    fn default() -> Self {
        Self::new()
    }
}

impl IommuDomain for FakeDomain {
    fn id(&self) -> DomainId {
        self.id
    }

    fn limits(&self) -> DomainLimits {
        let used = u32::try_from(self.lock().entries.len()).unwrap_or(u32::MAX);
        DomainLimits {
            mappings: self.limits.mappings.map(|all| all.saturating_sub(used)),
            ..self.limits.clone()
        }
    }

    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        check_region(&self.limits(), region, iova)?;
        let length = region.length;
        let mut state = self.lock();
        if let Some(error) = state.refuse_map.take() {
            return Err(error);
        }
        if self.needs_descriptor && region.descriptor.is_none() {
            return Err(MapError::NotShareable);
        }
        let end = u128::from(iova.0) + length as u128;
        let before = state
            .entries
            .range(..Iova(u64::try_from(end).unwrap_or(u64::MAX)))
            .next_back();
        if before.is_some_and(|(first, entry)| {
            u128::from(first.0) + entry.length as u128 > u128::from(iova.0)
        }) {
            return Err(MapError::Overlap { iova, length });
        }
        let pointer = region.pointer.as_ptr().expose_provenance();
        state.entries.insert(
            iova,
            Entry {
                pointer,
                length,
                access: region.access,
            },
        );
        state.history.push(length);
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        let mut state = self.lock();
        if std::mem::take(&mut state.refuse_unmap) {
            return Err(UnmapError::Os(std::io::Error::from_raw_os_error(libc::EIO)));
        }
        let Some((&first, &entry)) = state.entries.range(..=iova).next_back() else {
            return Err(UnmapError::NotMapped { iova, length });
        };
        if iova.0 - first.0 >= entry.length as u64 {
            return Err(UnmapError::NotMapped { iova, length });
        }
        if first != iova || length < entry.length {
            return Err(UnmapError::PartOfMapping { iova, length });
        }
        state.entries.remove(&iova);
        if length > entry.length {
            return Err(UnmapError::SizeDiffers {
                iova,
                length,
                unmapped: entry.length as u64,
            });
        }
        Ok(())
    }
}
