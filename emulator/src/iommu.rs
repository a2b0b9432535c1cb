//! The software IOMMU: what the driver mapped, and every access of the controller that went outside.

mod access;
mod fault;
mod traced;

pub use access::{DeviceMemory, DmaRefused};
pub use fault::{DmaOrigin, FaultReason, FaultingCommand, IommuFault};

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use nvme_vfio_dma::{
    Access, DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError,
    check_region,
};

use crate::memory::HostRegion;
use crate::trace::Tracer;

/// How many faults are kept; later ones are only counted.
const FAULTS_KEPT: usize = 256;

/// Names one mapping for as long as it lives; once it is unmapped the handle resolves to nothing, also when a new mapping
/// takes its place. The default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionHandle {
    slot: u32,
    generation: u32,
}

/// A contiguous piece of one mapping. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Which mapping.
    pub region: RegionHandle,
    /// Bytes from the start of the mapping.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Segment {
    pub(crate) const NONE: Segment = Segment {
        region: RegionHandle {
            slot: 0,
            generation: 0,
        },
        offset: 0,
        length: 0,
    };
}

/// An address that no mapping begins with, since mappings are made of whole pages. An `Option` would make a [`Region`] longer, and each look at one cost more.
const NOT_LENT: u64 = u64::MAX;

#[derive(Debug)]
struct Region {
    iova: u64,
    length: u64,
    /// `None` for a range that is valid for the host, and that this process cannot reach.
    host: Option<HostRegion>,
    access: Access,
    /// What may begin now: `access`, or nothing where there is no memory or the mapping leaves.
    open: Access,
    generation: u32,
    /// Where another device sees the same memory; [`NOT_LENT`] where none does.
    lent: u64,
    /// It is being unmapped: what began on it may end, and nothing new begins.
    leaving: bool,
}

impl Region {
    /// Bytes of the region from `iova` on; 0 when `iova` is outside.
    #[inline]
    fn from(&self, iova: u64) -> u64 {
        self.length.saturating_sub(iova.wrapping_sub(self.iova))
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
    #[inline]
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
                let end = region.iova + (region.length - 1);
                end >= iova
            })
    }

    /// The slot of the mapping that is exactly this range.
    fn exactly(&self, iova: Iova, length: usize) -> Result<u32, UnmapError> {
        let missing = UnmapError::NotMapped { iova, length };
        let Some((_, &slot)) = self.by_start.range(..=iova.0).next_back() else {
            return Err(missing);
        };
        let Some(region) = self.slot(slot) else {
            return Err(missing);
        };
        if region.iova != iova.0 {
            return Err(match region.from(iova.0) {
                0 => missing,
                _ => UnmapError::PartOfMapping { iova, length },
            });
        }
        match (length as u64).cmp(&region.length) {
            std::cmp::Ordering::Less => Err(UnmapError::PartOfMapping { iova, length }),
            // Unlike the kernel, which unmaps what it finds and tells the size, this changes nothing.
            std::cmp::Ordering::Greater => Err(UnmapError::SizeDiffers {
                iova,
                length,
                unmapped: 0,
            }),
            std::cmp::Ordering::Equal => Ok(slot),
        }
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
    /// How many callers want to change the mappings; a stepping thread lets them in.
    writers: AtomicUsize,
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
            writers: AtomicUsize::new(0),
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
            .map(|region| (Iova(region.iova), region.length as usize))
            .collect()
    }

    /// Whether a mapping shows memory that begins there.
    #[cfg(test)]
    pub(crate) fn has_host(&self, pointer: std::ptr::NonNull<u8>) -> bool {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let hosts = regions
            .slots
            .iter()
            .flatten()
            .filter_map(|region| region.host.as_ref());
        hosts.into_iter().any(|host| host.begins_at(pointer))
    }

    /// The controller's view of memory, for one step. While it lives, nothing is unmapped.
    pub(crate) fn memory<'a>(
        &'a self,
        bus_master: bool,
        trace: Option<&'a Tracer>,
    ) -> DeviceMemory<'a> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        self.view(regions, bus_master, trace)
    }

    /// The same, unless the mappings are being changed.
    pub(crate) fn try_memory<'a>(
        &'a self,
        bus_master: bool,
        trace: Option<&'a Tracer>,
    ) -> Option<DeviceMemory<'a>> {
        let regions = match self.regions.try_read() {
            Ok(regions) => regions,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.view(regions, bus_master, trace))
    }

    fn view<'a>(
        &'a self,
        regions: RwLockReadGuard<'a, Regions>,
        bus_master: bool,
        trace: Option<&'a Tracer>,
    ) -> DeviceMemory<'a> {
        DeviceMemory {
            regions,
            iommu: self,
            bus_master,
            direct: bus_master && trace.is_none(),
            trace,
            hints: Default::default(),
        }
    }

    /// The mappings, to be changed: nothing of the controller's is under way while the guard lives.
    fn change(&self) -> RwLockWriteGuard<'_, Regions> {
        self.writers.fetch_add(1, Ordering::Relaxed);
        let regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        self.writers.fetch_sub(1, Ordering::Relaxed);
        regions
    }

    /// Whether somebody waits for the mappings' lock.
    pub(crate) fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Relaxed) > 0
    }

    /// Maps memory as [`map`](IommuDomain::map) does. Where another device sees the same memory at `lent`, [`DeviceMemory::lent`] tells that address as long as the mapping lives: it is for
    /// whoever lends clients' memory on to a real device, and keeps it mapped there until this mapping is gone.
    ///
    /// # Safety
    /// As for [`map`](IommuDomain::map).
    ///
    /// # Errors
    /// As [`map`](IommuDomain::map).
    #[allow(unsafe_code)] // As `map`.
    pub unsafe fn map_lent(
        &self,
        region: &MapRegion<'_>,
        iova: Iova,
        lent: Option<Iova>,
    ) -> Result<(), MapError> {
        check_region(&self.limits, region, iova)?;
        // SAFETY: the caller keeps the memory until `unmap` returned or the domain is gone; `unmap` drops the `HostRegion`
        // under the write lock, and the domain drops it with itself.
        let host = unsafe { HostRegion::new(region.pointer, region.length) };
        // `check_region` refused lengths of zero and ranges that wrap.
        self.insert(iova, region.length, region.access, Some(host), lent)
    }

    /// Notes a range that is valid for the host, but has no memory behind it that this process could reach. Every access of the controller to it
    /// is refused, as [`FaultReason::NoMemory`].
    ///
    /// # Errors
    /// [`MapError::Overlap`], [`MapError::TooManyMappings`], or what is wrong with the range.
    pub fn map_without_memory(
        &self,
        iova: Iova,
        length: usize,
        access: Access,
    ) -> Result<(), MapError> {
        let page = 1u64 << self.limits.page_sizes.trailing_zeros().min(63);
        if length == 0 {
            return Err(MapError::ZeroLength);
        }
        if !iova.0.is_multiple_of(page) || !(length as u64).is_multiple_of(page) {
            return Err(MapError::MisalignedLength {
                length,
                page_size: page,
            });
        }
        self.insert(iova, length, access, None, None)
    }

    /// Refuses every new access to the mapping at `iova` from now on. What is under way goes on until [`unmap`](IommuDomain::unmap).
    ///
    /// # Errors
    /// As [`unmap`](IommuDomain::unmap), with nothing changed.
    pub fn begin_unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        let mut regions = self.change();
        let slot = regions.exactly(iova, length)?;
        if let Some(Some(region)) = regions.slots.get_mut(slot as usize) {
            region.leaving = true;
            region.open = Access::empty();
        }
        Ok(())
    }

    fn insert(
        &self,
        iova: Iova,
        length: usize,
        access: Access,
        host: Option<HostRegion>,
        lent: Option<Iova>,
    ) -> Result<(), MapError> {
        let lent = lent.map_or(NOT_LENT, |lent| lent.0);
        let mut regions = self.change();
        let Some(last) = iova.0.checked_add(length as u64 - 1) else {
            return Err(MapError::Overlap { iova, length });
        };
        if regions.overlaps(iova.0, last) {
            return Err(MapError::Overlap { iova, length });
        }
        if self
            .budget
            .is_some_and(|budget| regions.by_start.len() >= budget as usize)
        {
            return Err(MapError::TooManyMappings);
        }
        regions.generation = regions.generation.wrapping_add(1);
        let generation = regions.generation;
        let open = if host.is_some() {
            access
        } else {
            Access::empty()
        };
        let entry = Some(Region {
            open,
            iova: iova.0,
            length: length as u64,
            host,
            access,
            generation,
            lent,
            leaving: false,
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

    fn record(&self, fault: IommuFault) {
        self.fault_count.fetch_add(1, Ordering::Relaxed);
        let mut log = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if log.kept.len() >= FAULTS_KEPT {
            // A hostile host makes millions: they are no reason to fill a disk with log lines.
            return;
        }
        log.kept.push_back(fault);
        drop(log);
        tracing::warn!(
            ?fault,
            "the emulated controller reached outside its mappings"
        );
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
        // SAFETY: the same contract.
        unsafe { self.map_lent(region, iova, None) }
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        // A step of the controller holds the read side while it copies, so nothing is under way once this is taken.
        let mut regions = self.change();
        let slot = regions.exactly(iova, length)?;
        regions.by_start.remove(&iova.0);
        if let Some(place) = regions.slots.get_mut(slot as usize) {
            *place = None;
        }
        regions.free.push(slot);
        Ok(())
    }
}
