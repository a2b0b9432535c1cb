//! The software IOMMU: what the driver mapped, and every access of the controller that went outside.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use nvme_vfio_dma::{
    Access, DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError,
    check_region,
};

use crate::memory::HostRegion;

/// How many faults are kept; later ones are only counted.
const FAULTS_KEPT: usize = 256;

/// What the controller was doing when it touched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaOrigin {
    /// Reading entries of the submission queue with this identifier.
    SubmissionFetch(u16),
    /// Writing an entry of the completion queue with this identifier.
    CompletionPost(u16),
    /// Reading a PRP list of a command.
    PrpList(FaultingCommand),
    /// Moving data of a command.
    Data(FaultingCommand),
}

impl DmaOrigin {
    /// The command on whose behalf it was, if one was known yet.
    #[must_use]
    pub fn command(&self) -> Option<FaultingCommand> {
        match *self {
            DmaOrigin::PrpList(command) | DmaOrigin::Data(command) => Some(command),
            DmaOrigin::SubmissionFetch(_) | DmaOrigin::CompletionPost(_) => None,
        }
    }

    /// Which of the lookup hints suits this kind of access.
    fn hint(self) -> usize {
        match self {
            DmaOrigin::SubmissionFetch(_) => 0,
            DmaOrigin::CompletionPost(_) => 1,
            DmaOrigin::PrpList(_) => 2,
            DmaOrigin::Data(_) => 3,
        }
    }
}

/// A command, as a fault names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultingCommand {
    /// Submission queue identifier; 0 is the admin queue.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Opcode.
    pub opcode: u8,
}

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// Nothing is mapped there.
    Unmapped,
    /// The mapping does not allow this direction.
    AccessDenied,
    /// Bus mastering was off in the PCI command register.
    BusMasterOff,
}

/// One access of the controller outside what was mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuFault {
    /// First byte that could not be reached.
    pub iova: Iova,
    /// Bytes from there that were wanted.
    pub length: usize,
    /// What the controller wanted to do.
    pub access: Access,
    /// What for.
    pub origin: DmaOrigin,
    /// The command on whose behalf it was; `None` for ring accesses.
    pub command: Option<FaultingCommand>,
    /// Why it was refused.
    pub reason: FaultReason,
}

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

/// An access was refused; the fault is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRefused;

/// Memory as the controller reaches it during one step: every access checked, every refusal recorded.
#[derive(Debug)]
pub struct DeviceMemory<'a> {
    regions: RwLockReadGuard<'a, Regions>,
    iommu: &'a SoftwareIommu,
    bus_master: bool,
    /// The slot that was hit last, for each kind of access.
    hints: [Cell<u32>; 4],
}

impl DeviceMemory<'_> {
    /// Finds the mapping at `iova`: a segment of at most `length` bytes, shorter where the mapping ends.
    pub(crate) fn translate(
        &self,
        iova: u64,
        length: usize,
        access: Access,
        origin: DmaOrigin,
    ) -> Result<Segment, DmaRefused> {
        let reason = if self.bus_master {
            let hint = self.hints.get(origin.hint());
            let hinted = hint.and_then(|hint| {
                self.regions
                    .slot(hint.get())
                    .map(|region| (hint.get(), region))
            });
            let found = match hinted {
                Some((slot, region)) if region.from(iova) > 0 => Some((slot, region)),
                _ => self.regions.find(iova),
            };
            match found {
                Some((slot, region)) if region.access.contains(access) => {
                    if let Some(hint) = hint {
                        hint.set(slot);
                    }
                    let length = region
                        .from(iova)
                        .min(length as u64)
                        .min(u64::from(u32::MAX));
                    return Ok(Segment {
                        region: RegionHandle {
                            slot,
                            generation: region.generation,
                        },
                        offset: iova - region.iova,
                        length: length as u32,
                    });
                }
                Some(_) => FaultReason::AccessDenied,
                None => FaultReason::Unmapped,
            }
        } else {
            FaultReason::BusMasterOff
        };
        self.iommu.record(IommuFault {
            iova: Iova(iova),
            length,
            access,
            origin,
            command: origin.command(),
            reason,
        });
        Err(DmaRefused)
    }

    /// The mapping's first address as the device sees it, while the handle is live: what a back end that lends the memory on
    /// to another device translates with.
    #[must_use]
    pub fn region_iova(&self, region: RegionHandle) -> Option<Iova> {
        self.resolve(region).map(|region| Iova(region.iova))
    }

    fn resolve(&self, handle: RegionHandle) -> Option<&Region> {
        self.regions
            .slot(handle.slot)
            .filter(|region| region.generation == handle.generation)
    }

    /// Reads what `segment` names, from `skip` bytes into it, until `into` is full.
    ///
    /// # Errors
    /// [`DmaRefused`] when the mapping is gone, does not allow it, or is shorter.
    pub fn read(&self, segment: &Segment, skip: usize, into: &mut [u8]) -> Result<(), DmaRefused> {
        let region = self.resolve(segment.region).ok_or(DmaRefused)?;
        let offset = usize::try_from(segment.offset)
            .ok()
            .and_then(|offset| offset.checked_add(skip))
            .ok_or(DmaRefused)?;
        let readable = region.access.contains(Access::DEVICE_READ);
        if readable && region.host.read(offset, into) {
            Ok(())
        } else {
            Err(DmaRefused)
        }
    }

    /// Writes `from` to what `segment` names, from `skip` bytes into it.
    ///
    /// # Errors
    /// [`DmaRefused`] when the mapping is gone, does not allow it, or is shorter.
    pub fn write(&self, segment: &Segment, skip: usize, from: &[u8]) -> Result<(), DmaRefused> {
        let region = self.resolve(segment.region).ok_or(DmaRefused)?;
        let offset = usize::try_from(segment.offset)
            .ok()
            .and_then(|offset| offset.checked_add(skip))
            .ok_or(DmaRefused)?;
        let writable = region.access.contains(Access::DEVICE_WRITE);
        if writable && region.host.write(offset, from) {
            Ok(())
        } else {
            Err(DmaRefused)
        }
    }

    /// Reads memory at an address of the device; it may span mappings.
    pub(crate) fn read_at(
        &self,
        mut iova: u64,
        mut into: &mut [u8],
        origin: DmaOrigin,
    ) -> Result<(), DmaRefused> {
        while !into.is_empty() {
            let segment = self.translate(iova, into.len(), Access::DEVICE_READ, origin)?;
            let (now, later) = into.split_at_mut((segment.length as usize).min(into.len()));
            self.read(&segment, 0, now)?;
            iova = iova.wrapping_add(now.len() as u64);
            into = later;
        }
        Ok(())
    }

    /// Reads consecutive submission entries; each lies in one mapping, since mappings are made of whole pages.
    pub(crate) fn read_entries(
        &self,
        iova: u64,
        into: &mut [[u64; 8]],
        sqid: u16,
    ) -> Result<(), DmaRefused> {
        let origin = DmaOrigin::SubmissionFetch(sqid);
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = iova.wrapping_add(done as u64 * 64);
            let segment = self.translate(at, rest.len() * 64, Access::DEVICE_READ, origin)?;
            let region = self.resolve(segment.region).ok_or(DmaRefused)?;
            let whole = (segment.length as usize / 64).max(1);
            for (index, entry) in rest.iter_mut().take(whole).enumerate() {
                *entry = region
                    .host
                    .load_entry(segment.offset as usize + index * 64)
                    .ok_or(DmaRefused)?;
                done += 1;
            }
        }
        Ok(())
    }

    /// Writes one completion entry, phase last.
    pub(crate) fn write_completion(
        &self,
        iova: u64,
        entry: [u32; 4],
        cqid: u16,
    ) -> Result<(), DmaRefused> {
        let segment = self.translate(
            iova,
            16,
            Access::DEVICE_WRITE,
            DmaOrigin::CompletionPost(cqid),
        )?;
        let region = self.resolve(segment.region).ok_or(DmaRefused)?;
        if region.host.store_completion(segment.offset as usize, entry) {
            Ok(())
        } else {
            Err(DmaRefused)
        }
    }
}
