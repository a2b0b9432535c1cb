//! The software IOMMU: what the driver mapped, and every access of the controller that went outside.

mod access;
mod fault;

pub use access::{DeviceMemory, DmaRefused};
pub use fault::{DmaOrigin, FaultReason, FaultingCommand, IommuFault};

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use nvme_vfio_dma::{
    Access, DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError,
    check_region,
};

use crate::memory::HostRegion;

/// How many faults are kept; later ones are only counted.
const FAULTS_KEPT: usize = 256;

/// Names one mapping for as long as it lives; once it is unmapped the handle resolves to nothing, also when a new mapping
/// takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHandle {
    slot: u32,
    generation: u32,
}

/// A contiguous piece of one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which mapping.
    pub region: RegionHandle,
    /// Bytes from the start of the mapping.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

#[derive(Debug)]
struct Region {
    iova: u64,
    host: HostRegion,
    access: Access,
    generation: u32,
}

impl Region {
    /// Bytes of the region from `iova` on; 0 when `iova` is outside.
    fn from(&self, iova: u64) -> u64 {
        let length = self.host.len() as u64;
        match iova.checked_sub(self.iova) {
            Some(offset) if offset < length => length - offset,
            _ => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Regions {
    slots: Vec<Option<Region>>,
    free: Vec<u32>,
    by_start: BTreeMap<u64, u32>,
    generation: u32,
}

impl Regions {
    fn slot(&self, slot: u32) -> Option<&Region> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn find(&self, iova: u64) -> Option<(u32, &Region)> {
        let (_, &slot) = self.by_start.range(..=iova).next_back()?;
        let region = self.slot(slot)?;
        (region.from(iova) > 0).then_some((slot, region))
    }

    fn overlaps(&self, iova: u64, last: u64) -> bool {
        self.by_start
            .range(..=last)
            .next_back()
            .and_then(|(_, &slot)| self.slot(slot))
            .is_some_and(|region| {
                let end = region.iova + (region.host.len() as u64 - 1);
                end >= iova
            })
    }
}

#[derive(Debug, Default)]
struct FaultLog {
    kept: VecDeque<IommuFault>,
}

/// An IOMMU in software: the domain that an emulated controller does its DMA through.
///
/// Every access of the controller is checked against the live mappings, byte by byte; what is outside is refused and kept as
/// an [`IommuFault`]. An `unmap` returns only when no copy of the controller is under way.
#[derive(Debug)]
pub struct SoftwareIommu {
    id: DomainId,
    limits: DomainLimits,
    budget: Option<u32>,
    regions: RwLock<Regions>,
    faults: Mutex<FaultLog>,
    fault_count: AtomicU64,
}

impl SoftwareIommu {
    /// A domain with these limits; `limits.mappings` is how many mappings may live at once.
    #[must_use]
    pub fn new(limits: DomainLimits) -> SoftwareIommu {
        SoftwareIommu {
            id: DomainId::new(),
            budget: limits.mappings,
            limits,
            regions: RwLock::default(),
            faults: Mutex::default(),
            fault_count: AtomicU64::new(0),
        }
    }

    /// The faults so far, oldest first. At most 256 are kept, the oldest ones; [`SoftwareIommu::fault_count`] counts all.
    #[must_use]
    pub fn faults(&self) -> Vec<IommuFault> {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kept
            .iter()
            .copied()
            .collect()
    }

    /// How many accesses were refused since the start.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.fault_count.load(Ordering::Relaxed)
    }

    /// Forgets the kept faults; the count goes on.
    pub fn clear_faults(&self) {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kept
            .clear();
    }

    /// Live mappings, by address.
    #[must_use]
    pub fn mappings(&self) -> Vec<(Iova, usize)> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions
            .by_start
            .values()
            .filter_map(|&slot| regions.slot(slot))
            .map(|region| (Iova(region.iova), region.host.len()))
            .collect()
    }

    /// The controller's view of memory, for one step. While it lives, nothing is unmapped.
    pub(crate) fn memory(&self, bus_master: bool) -> DeviceMemory<'_> {
        DeviceMemory {
            regions: self.regions.read().unwrap_or_else(PoisonError::into_inner),
            iommu: self,
            bus_master,
            hints: Default::default(),
        }
    }

    fn record(&self, fault: IommuFault) {
        tracing::warn!(
            ?fault,
            "the emulated controller reached outside its mappings"
        );
        self.fault_count.fetch_add(1, Ordering::Relaxed);
        let mut log = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if log.kept.len() < FAULTS_KEPT {
            log.kept.push_back(fault);
        }
    }
}

#[allow(unsafe_code)] // `map` is unsafe by the trait: it relies on its caller to keep the memory.
impl IommuDomain for SoftwareIommu {
    fn id(&self) -> DomainId {
        self.id
    }

    fn limits(&self) -> DomainLimits {
        let mut limits = self.limits.clone();
        let live = self
            .regions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_start
            .len();
        limits.mappings = self
            .budget
            .map(|budget| budget.saturating_sub(u32::try_from(live).unwrap_or(u32::MAX)));
        limits
    }

    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        check_region(&self.limits, region, iova)?;
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        // `check_region` refused lengths of zero and ranges that wrap.
        let last = iova.0 + (region.length as u64 - 1);
        if regions.overlaps(iova.0, last) {
            return Err(MapError::Overlap {
                iova,
                length: region.length,
            });
        }
        if self
            .budget
            .is_some_and(|budget| regions.by_start.len() >= budget as usize)
        {
            return Err(MapError::TooManyMappings);
        }
        regions.generation = regions.generation.wrapping_add(1);
        let generation = regions.generation;
        // SAFETY: the caller keeps the memory until `unmap` returned or the domain is gone; `unmap` drops the `HostRegion`
        // under the write lock, and the domain drops it with itself.
        let host = unsafe { HostRegion::new(region.pointer, region.length) };
        let entry = Some(Region {
            iova: iova.0,
            host,
            access: region.access,
            generation,
        });
        let slot = match regions.free.pop() {
            Some(slot) => slot,
            None => {
                regions.slots.push(None);
                (regions.slots.len() - 1) as u32
            }
        };
        if let Some(place) = regions.slots.get_mut(slot as usize) {
            *place = entry;
        }
        regions.by_start.insert(iova.0, slot);
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        // A step of the controller holds the read side while it copies, so nothing is under way once this is taken.
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let (_, &slot) = regions
            .by_start
            .range(..=iova.0)
            .next_back()
            .ok_or(UnmapError::NotMapped { iova, length })?;
        let region = regions
            .slot(slot)
            .ok_or(UnmapError::NotMapped { iova, length })?;
        if region.iova != iova.0 {
            return Err(match region.from(iova.0) {
                0 => UnmapError::NotMapped { iova, length },
                _ => UnmapError::PartOfMapping { iova, length },
            });
        }
        match region.host.len() {
            mapped if length < mapped => return Err(UnmapError::PartOfMapping { iova, length }),
            // Unlike the kernel, which unmaps what it finds and tells the size, this changes nothing.
            mapped if length > mapped => {
                return Err(UnmapError::SizeDiffers {
                    iova,
                    length,
                    unmapped: 0,
                });
            }
            _ => {}
        }
        regions.by_start.remove(&iova.0);
        if let Some(place) = regions.slots.get_mut(slot as usize) {
            *place = None;
        }
        regions.free.push(slot);
        Ok(())
    }
}
