//! The controller's accesses: translated, checked, refused or done.

use std::cell::Cell;
use std::sync::RwLockReadGuard;

use nvme_vfio_dma::{Access, Iova};
use nvme_vfio_queues::Status;

use super::fault::{DATA, FETCH, POST};
use super::{
    DmaOrigin, FaultReason, FaultingCommand, IommuFault, NOT_LENT, Region, RegionHandle, Regions,
    Segment, SoftwareIommu,
};
use crate::memory::{HostRegion, RingEntries};
use crate::trace::Tracer;

/// An access was refused; the fault is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRefused;

/// Memory as the controller reaches it during one step: every access checked, every refusal recorded.
#[derive(Debug)]
pub struct DeviceMemory<'a> {
    pub(super) regions: RwLockReadGuard<'a, Regions>,
    pub(super) iommu: &'a SoftwareIommu,
    pub(super) bus_master: bool,
    /// Whether accesses may take the short way: bus mastering is on, and nobody wants to know of every access.
    pub(super) direct: bool,
    /// Whoever wants to know of every access.
    pub(super) trace: Option<&'a Tracer>,
    /// The slot that was hit last, for each kind of access.
    pub(super) hints: [Cell<u32>; 4],
}

/// Appends a segment, or makes the last longer where it goes on there, if that is among those from `first` on.
#[inline]
fn join(segment: Segment, first: usize, into: &mut Vec<Segment>) {
    let before = into.get_mut(first..).and_then(<[Segment]>::last_mut);
    let joined = before.filter(|last| {
        last.region == segment.region
            && last.offset + u64::from(last.length) == segment.offset
            && last.length.checked_add(segment.length).is_some()
    });
    match joined {
        Some(last) => last.length += segment.length,
        None => into.push(segment),
    }
}

impl DeviceMemory<'_> {
    /// Whether somebody waits to change the mappings, which this value keeps as they are.
    #[inline]
    pub(crate) fn has_writers(&self) -> bool {
        self.iommu.has_writers()
    }

    /// Finds the mapping at `iova`: a segment of at most `length` bytes, shorter where the mapping ends.
    pub(super) fn look_up(
        &self,
        iova: u64,
        length: usize,
        access: Access,
        origin: DmaOrigin,
    ) -> Result<Segment, DmaRefused> {
        let reason = if self.bus_master {
            match self.find(iova, origin.hint()) {
                Some((_, region)) if region.leaving => FaultReason::Leaving,
                Some((_, region)) if region.host.is_none() => FaultReason::NoMemory,
                Some((slot, region)) if region.access.contains(access) => {
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
        self.refuse(IommuFault {
            iova: Iova(iova),
            length,
            access,
            origin,
            command: origin.command(),
            reason,
        });
        Err(DmaRefused)
    }

    /// The mapping at `iova`, looked for where the last access of this kind was first.
    #[inline(always)]
    fn find(&self, iova: u64, hint: usize) -> Option<(u32, &Region)> {
        let hint = self.hints.get(hint)?;
        match self.regions.slot(hint.get()) {
            Some(region) if region.from(iova) > 0 => Some((hint.get(), region)),
            _ => self.search(iova, hint),
        }
    }

    #[cold]
    fn search(&self, iova: u64, hint: &Cell<u32>) -> Option<(u32, &Region)> {
        let (slot, region) = self.regions.find(iova)?;
        hint.set(slot);
        Some((slot, region))
    }

    /// The mapping at `iova`, if all of `length` bytes lie in it and may be accessed. Nothing is recorded where not: whoever asks goes the
    /// long way then, which finds the same and tells.
    #[inline]
    fn whole(
        &self,
        iova: u64,
        length: u64,
        access: Access,
        hint: usize,
    ) -> Option<(u32, &Region, &HostRegion)> {
        let (slot, region) = self.find(iova, hint)?;
        let host = region.host.as_ref()?;
        let fine = self.direct && region.from(iova) >= length && region.open.contains(access);
        fine.then_some((slot, region, host))
    }

    /// Where the last accesses were, for the next view of the same memory. They are hints: wrong ones cost time.
    pub(crate) fn hints(&self) -> [u32; 4] {
        self.hints.each_ref().map(Cell::get)
    }

    /// Begins where another view ended.
    pub(crate) fn set_hints(&self, hints: [u32; 4]) {
        for (hint, value) in self.hints.iter().zip(hints) {
            hint.set(value);
        }
    }

    /// Whether accesses may take the short way at all.
    #[inline]
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// A piece of a command's data that lies in one mapping. Only asked where [`DeviceMemory::is_direct`].
    #[inline]
    pub(crate) fn piece(&self, iova: u64, length: u32, access: Access) -> Option<Segment> {
        let slot = self.hints.get(DATA)?.get();
        if let Some(region) = self.regions.slot(slot)
            && let offset = iova.wrapping_sub(region.iova)
            && offset < region.length
        {
            let fine = region.length - offset >= u64::from(length) && region.open.contains(access);
            return fine.then_some(Segment {
                region: RegionHandle {
                    slot,
                    generation: region.generation,
                },
                offset,
                length,
            });
        }
        self.piece_elsewhere(iova, length, access)
    }

    #[cold]
    fn piece_elsewhere(&self, iova: u64, length: u32, access: Access) -> Option<Segment> {
        let (slot, region, _) = self.whole(iova, u64::from(length), access, DATA)?;
        Some(Segment {
            region: RegionHandle {
                slot,
                generation: region.generation,
            },
            offset: iova - region.iova,
            length,
        })
    }

    /// Consecutive submission entries that lie in one mapping; `None`, with nothing told, where they do not.
    #[inline]
    pub(crate) fn entries(&self, iova: u64, count: usize) -> Option<RingEntries<'_>> {
        let bytes = count as u64 * 64;
        let (_, region, host) = self.whole(iova, bytes, Access::DEVICE_READ, FETCH)?;
        host.entries((iova - region.iova) as usize, count)
    }

    /// Writes consecutive completion entries, one for each item, where they lie in one mapping; false, with nothing done or told, where they do not.
    #[inline]
    pub(crate) fn post<T>(&self, iova: u64, items: &[T], entry: impl Fn(&T) -> [u32; 4]) -> bool {
        let bytes = items.len() as u64 * 16;
        match self.whole(iova, bytes, Access::DEVICE_WRITE, POST) {
            Some((_, region, host)) => {
                host.store_completions((iova - region.iova) as usize, items, entry)
            }
            None => false,
        }
    }

    /// Appends the segments of a piece of a command's data, the first joined to its neighbour if that is among those from `first` on.
    pub(crate) fn append(
        &self,
        iova: u64,
        length: u64,
        access: Access,
        command: FaultingCommand,
        first: usize,
        into: &mut Vec<Segment>,
    ) -> Result<(), Status> {
        let mut done = 0;
        while done < length {
            // Mostly all of it lies where the last did; what does not, or may not be, goes the way that tells.
            if done == 0
                && self.direct
                && let Ok(whole) = u32::try_from(length)
                && let Some(segment) = self.piece(iova, whole, access)
            {
                join(segment, first, into);
                return Ok(());
            }
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            let segment = self
                .translate(
                    iova.wrapping_add(done),
                    left,
                    access,
                    DmaOrigin::Data(command),
                )
                .map_err(|DmaRefused| Status::DATA_TRANSFER_ERROR)?;
            done += u64::from(segment.length);
            join(segment, first, into);
        }
        Ok(())
    }

    /// Where another device sees what `segment` names, if the memory was lent on to it when it was mapped ([`SoftwareIommu::map_lent`]), for as long as the mapping lives.
    #[inline]
    #[must_use]
    pub fn lent(&self, segment: &Segment) -> Option<Iova> {
        let region = self.resolve(segment.region)?;
        let end = segment.offset.checked_add(u64::from(segment.length))?;
        let inside = region.lent != NOT_LENT && end <= region.length;
        let lent = inside.then_some(Iova(region.lent))?;
        lent.0.checked_add(segment.offset).map(Iova)
    }

    /// The mapping's first address as the device sees it, while the handle is live: what a back end that lends the memory on
    /// to another device translates with.
    #[must_use]
    pub fn region_iova(&self, region: RegionHandle) -> Option<Iova> {
        self.resolve(region).map(|region| Iova(region.iova))
    }

    #[inline]
    fn resolve(&self, handle: RegionHandle) -> Option<&Region> {
        self.regions
            .slot(handle.slot)
            .filter(|region| region.generation == handle.generation)
    }

    /// The memory behind a mapping that allows this access.
    #[inline]
    fn host(&self, handle: RegionHandle, access: Access) -> Option<&HostRegion> {
        let region = self.resolve(handle)?;
        region
            .host
            .as_ref()
            .filter(|_| region.access.contains(access))
    }

    /// Reads what `segment` names, from `skip` bytes into it, until `into` is full.
    ///
    /// # Errors
    /// [`DmaRefused`] when the mapping is gone, does not allow it, or is shorter.
    pub fn read(&self, segment: &Segment, skip: usize, into: &mut [u8]) -> Result<(), DmaRefused> {
        let host = self
            .host(segment.region, Access::DEVICE_READ)
            .ok_or(DmaRefused)?;
        let offset = usize::try_from(segment.offset)
            .ok()
            .and_then(|offset| offset.checked_add(skip))
            .ok_or(DmaRefused)?;
        if host.read(offset, into) {
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
        let host = self
            .host(segment.region, Access::DEVICE_WRITE)
            .ok_or(DmaRefused)?;
        let offset = usize::try_from(segment.offset)
            .ok()
            .and_then(|offset| offset.checked_add(skip))
            .ok_or(DmaRefused)?;
        if host.write(offset, from) {
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
            let host = self
                .host(segment.region, Access::DEVICE_READ)
                .ok_or(DmaRefused)?;
            let whole = (segment.length as usize / 64).max(1);
            for (index, entry) in rest.iter_mut().take(whole).enumerate() {
                *entry = host
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
        if self.post(iova, &[entry], |entry| *entry) {
            return Ok(());
        }
        let segment = self.translate(
            iova,
            16,
            Access::DEVICE_WRITE,
            DmaOrigin::CompletionPost(cqid),
        )?;
        let host = self
            .host(segment.region, Access::DEVICE_WRITE)
            .ok_or(DmaRefused)?;
        if host.store_completion(segment.offset as usize, entry) {
            Ok(())
        } else {
            Err(DmaRefused)
        }
    }
}
