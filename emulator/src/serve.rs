//! The controller as a device that is served over vfio-user.
#![allow(unsafe_code)] // Lends clients' memory to the software IOMMU, and lets one descriptor become another file.

mod lender;
mod patience;
mod signals;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_vfio_dma::{Access, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError};
use nvme_vfio_user::device::{
    Device, DeviceFlags, DeviceInfo, DmaAccess, Errno, Irq, IrqAction, IrqData, IrqFlags, Progress,
    Region, RegionFlags, RegionMapping, SparseArea,
};
use nvme_vfio_user::{ClientMemory, Eventfd};

use crate::doorbells::Doorbells;
use crate::emulator::Emulator;
use crate::iommu::SoftwareIommu;
pub use lender::Lender;
use lender::Mapping;
pub use patience::Patience;
use patience::Wait;
use signals::Signals;

/// Region indices of a PCI device (the kernel's VFIO numbering).
const BAR0: u32 = 0;
const BAR4: u32 = 4;
const CONFIGURATION: u32 = 7;
/// Index of MSI-X among the kinds of interrupts.
const MSIX: u32 = 2;
/// Where the doorbells begin in BAR 0.
const DOORBELLS: u64 = 0x1000;

#[derive(Debug, Default)]
struct Client {
    /// By IOVA.
    memory: BTreeMap<u64, Mapping>,
    /// By IOVA: the mappings that go.
    unmapping: BTreeMap<u64, Wait>,
    leaving: Option<Wait>,
}

/// A software controller as a device that one client at a time uses over vfio-user.
///
/// Doorbells can be mapped; everything else of BAR 0, the MSI-X structures in BAR 4 and configuration space go by message. The
/// controller must be stepped by a thread of its own ([`Emulator::spawn`]).
///
/// When a client goes, commands in flight are waited for as long as [`Patience`] says; its mappings and interrupts end, it keeps no doorbell that rings, and
/// the function is reset, also where it left the controller disabled. What outlives such a reset stays: saved features, logs, data. With a [`CommandHandler`](crate::CommandHandler), by which a controller is lent to one user after the other, only data does. Where the system gives no memory or descriptor for new
/// doorbells, the next client cannot map any, and rings by message. Of a controller that [is broken](Emulator::is_broken) no client's end is ever complete: the
/// client's memory is kept, and the server stops.
#[derive(Debug)]
pub struct ServedController {
    emulator: Arc<Emulator>,
    iommu: Arc<SoftwareIommu>,
    /// The file of the controller's doorbells of now, while they can be `mapped`.
    doorbells: OwnedFd,
    mapped: AtomicBool,
    /// For when the system gives no doorbells that nobody has mapped yet.
    unshared: Arc<Doorbells>,
    areas: [SparseArea; 1],
    vectors: u16,
    patience: Patience,
    lender: Option<Arc<dyn Lender>>,
    client: Mutex<Client>,
    signals: Signals,
}

/// The domain of a served controller: every address that a client may use. The client's side has an IOMMU's limits, if any side has.
#[must_use]
pub fn served_domain(mappings: u32) -> Arc<SoftwareIommu> {
    Arc::new(SoftwareIommu::new(DomainLimits {
        iova_ranges: vec![0..=u64::MAX],
        page_sizes: !0xfff,
        mappings: Some(mappings),
    }))
}

impl ServedController {
    /// Serves a controller, which nobody else commands. It should have been built in a [`served_domain`].
    ///
    /// # Errors
    /// No descriptor or memory is to be had.
    pub fn new(emulator: Arc<Emulator>, patience: Patience) -> io::Result<ServedController> {
        let bytes = emulator.config().doorbell_bytes();
        let vectors = emulator.vectors();
        let doorbells = emulator.doorbells();
        let Some(file) = doorbells.file() else {
            return Err(io::ErrorKind::ResourceBusy.into());
        };
        let areas = [SparseArea {
            offset: DOORBELLS,
            size: bytes,
        }];
        Ok(ServedController {
            iommu: emulator.iommu(),
            doorbells: file.try_clone_to_owned()?,
            mapped: AtomicBool::new(true),
            unshared: Arc::new(Doorbells::unshared(bytes)?),
            vectors,
            emulator,
            areas,
            patience,
            lender: None,
            client: Mutex::default(),
            signals: Signals::new(vectors),
        })
    }

    /// As [`ServedController::new`], with all memory that the client lends lent on to a real device.
    ///
    /// # Errors
    /// As [`ServedController::new`].
    pub fn with_lender(
        emulator: Arc<Emulator>,
        patience: Patience,
        lender: Arc<dyn Lender>,
    ) -> io::Result<ServedController> {
        let mut served = ServedController::new(emulator, patience)?;
        served.lender = Some(lender);
        Ok(served)
    }

    /// The controller.
    #[must_use]
    pub fn emulator(&self) -> &Arc<Emulator> {
        &self.emulator
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a mapping: nothing is under way on it any more.
    fn finish_unmap(&self, client: &mut Client, iova: u64, length: u64) -> Result<(), Errno> {
        self.iommu
            .unmap(Iova(iova), bytes(length)?)
            .map_err(|error| unmap_errno(&error))?;
        client.unmapping.remove(&iova);
        if let Some(Mapping {
            memory: Some((memory, Some(lent))),
            ..
        }) = client.memory.remove(&iova)
        {
            self.take_back(lent, memory);
        }
        Ok(())
    }

    /// Sees to it that those who have mapped doorbells do not ring any more. The controller is disabled.
    fn renew_doorbells(&self) {
        let renewed = self.share_new_doorbells();
        if let Err(error) = &renewed {
            tracing::warn!(%error, "no new doorbells to be mapped: the next client rings by message");
            self.unshared.clear();
            self.emulator.use_doorbells(Arc::clone(&self.unshared));
        }
        self.mapped.store(renewed.is_ok(), Ordering::Release);
    }

    /// Gives the controller doorbells that nobody has mapped. The descriptor's number stays, so that it can be lent out at any time.
    fn share_new_doorbells(&self) -> io::Result<()> {
        self.emulator.renew_doorbells()?;
        let new = self.emulator.doorbells();
        let file = new.file().ok_or(io::ErrorKind::ResourceBusy)?;
        // SAFETY: both descriptors are open and owned by values that live on; the call makes the second one name the file of the first
        // in one step, so that it is open and a file of doorbells at every moment.
        let copied = unsafe {
            libc::dup3(
                file.as_raw_fd(),
                self.doorbells.as_raw_fd(),
                libc::O_CLOEXEC,
            )
        };
        if copied < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn connect(&self, range: Range<u32>, data: Vec<Option<Eventfd>>) -> Result<(), Errno> {
        if data.iter().any(Option::is_some) {
            self.signals.prepare().map_err(|error| {
                tracing::warn!(%error, "no thread for slow interrupts, so that none can be had");
                Errno::EAGAIN
            })?;
        }
        for (vector, eventfd) in range.zip(data) {
            // The session has checked the range.
            self.signals.connect(&self.emulator, vector as u16, eventfd);
        }
        Ok(())
    }

    fn disconnect_interrupts(&self) {
        for vector in 0..self.vectors {
            self.signals.connect(&self.emulator, vector, None);
        }
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        if let (4 | 8, Ok(register)) = (data.len(), u32::try_from(offset))
            && register.is_multiple_of(4)
        {
            let value = self.emulator.register_read(register, data.len());
            data.copy_from_slice(value.to_le_bytes().get(..data.len()).unwrap_or_default());
            return;
        }
        // Any other reach is put together from its dwords.
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index as u64);
            let dword =
                u32::try_from(at & !0b11).map_or(0, |at| self.emulator.register_read(at, 4));
            *byte = (dword >> ((at & 0b11) * 8)) as u8;
        }
    }
}

fn bytes(length: u64) -> Result<usize, Errno> {
    usize::try_from(length).map_err(|_| Errno::EINVAL)
}

fn map_errno(error: &MapError) -> Errno {
    match error {
        MapError::Overlap { .. } => Errno::EEXIST,
        MapError::TooManyMappings => Errno::ENOSPC,
        _ => Errno::EINVAL,
    }
}

fn unmap_errno(error: &UnmapError) -> Errno {
    match error {
        UnmapError::NotMapped { .. } => Errno::ENOENT,
        _ => Errno::EINVAL,
    }
}

impl Device for ServedController {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            flags: DeviceFlags::RESET | DeviceFlags::PCI,
            regions: 9,
            irqs: 5,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        let flags = RegionFlags::READ | RegionFlags::WRITE;
        let trapped = |size| Region {
            size,
            flags,
            mapping: None,
        };
        match index {
            BAR0 => Some(Region {
                size: self.emulator.bar0_size(),
                flags: flags | RegionFlags::MMAP,
                mapping: self.mapped.load(Ordering::Acquire).then(|| RegionMapping {
                    descriptor: self.doorbells.as_fd(),
                    offset: 0,
                    areas: &self.areas,
                }),
            }),
            BAR4 => Some(trapped(self.emulator.bar4_size())),
            CONFIGURATION => Some(trapped(crate::config_space::SIZE as u64)),
            _ => None,
        }
    }

    fn irq(&self, index: u32) -> Option<Irq> {
        (index == MSIX).then(|| Irq {
            flags: IrqFlags::EVENTFD,
            count: u32::from(self.vectors),
        })
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match index {
            BAR0 => self.read_registers(offset, data),
            BAR4 if self.emulator.msix_read(offset, data) => {}
            CONFIGURATION => self.emulator.config_read(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match index {
            BAR0 => {
                let value = match *data {
                    [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    _ => return Err(Errno::EINVAL),
                };
                let register = u32::try_from(offset).map_err(|_| Errno::EINVAL)?;
                if !register.is_multiple_of(4) {
                    return Err(Errno::EINVAL);
                }
                self.emulator.register_write(register, data.len(), value);
            }
            BAR4 if self.emulator.msix_write(offset, data) => {}
            CONFIGURATION => self.emulator.config_write(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn set_irqs(
        &self,
        index: u32,
        range: Range<u32>,
        action: IrqAction,
        data: IrqData,
    ) -> Result<(), Errno> {
        if index != MSIX || action != IrqAction::Trigger || range.end > u32::from(self.vectors) {
            return Err(Errno::EINVAL);
        }
        match data {
            IrqData::Eventfds(eventfds) => self.connect(range, eventfds)?,
            IrqData::None if range.is_empty() => self.disconnect_interrupts(),
            IrqData::None => {
                range.for_each(|vector| self.emulator.trigger_interrupt(vector as u16))
            }
            IrqData::Bool(wanted) => {
                for (vector, _) in range.zip(wanted).filter(|(_, wanted)| *wanted) {
                    self.emulator.trigger_interrupt(vector as u16);
                }
            }
        }
        Ok(())
    }

    fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno> {
        let mut allowed = Access::empty();
        allowed.set(Access::DEVICE_READ, access.contains(DmaAccess::READ));
        allowed.set(Access::DEVICE_WRITE, access.contains(DmaAccess::WRITE));
        let size = bytes(length)?;
        if memory.as_ref().is_some_and(|memory| memory.len() != size) {
            return Err(Errno::EINVAL);
        }
        let mut client = self.client();
        let lent = match (&self.lender, &memory) {
            (Some(lender), Some(memory)) => Some(lender.lend(memory, allowed)?),
            _ => None,
        };
        let mapped = match &memory {
            None => self.iommu.map_without_memory(Iova(iova), size, allowed),
            Some(memory) => {
                let region = MapRegion {
                    pointer: memory.pointer(),
                    length: size,
                    descriptor: None,
                    access: allowed,
                };
                // SAFETY: the handle is kept in `client.memory` until `unmap` of this very range has succeeded, and the memory is mapped as long as a
                // handle lives: readable, and writable where the client allowed it (which `access` says).
                unsafe { self.iommu.map_lent(&region, Iova(iova), lent) }
            }
        };
        if let Err(error) = mapped {
            if let (Some(memory), Some(lent)) = (memory, lent) {
                self.take_back(lent, memory);
            }
            return Err(map_errno(&error));
        }
        let memory = memory.map(|memory| (memory, lent));
        client.memory.insert(iova, Mapping { length, memory });
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.iommu
            .begin_unmap(Iova(iova), bytes(length)?)
            .map_err(|error| unmap_errno(&error))?;
        let wait = self.begin_wait();
        self.client().unmapping.insert(iova, wait);
        self.unmapping(iova, length)
    }

    fn unmapping(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        let mut client = self.client();
        let wait = client.unmapping.get_mut(&iova).ok_or(Errno::ENOENT)?;
        if self.look_after(wait) == Progress::Pending {
            return Ok(Progress::Pending);
        }
        self.finish_unmap(&mut client, iova, length)?;
        Ok(Progress::Done)
    }

    fn reset(&self) -> Result<(), Errno> {
        self.emulator.reset();
        if self.emulator.is_broken() {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    fn settling(&self) -> Progress {
        // In this order: a reset that ended before the controller broke is complete.
        if self.emulator.is_resetting() || self.emulator.is_broken() {
            Progress::Pending
        } else {
            Progress::Done
        }
    }

    fn disconnected(&self) -> Progress {
        if self.emulator.is_broken() {
            // Nothing that it says of its commands is a proof.
            return Progress::Pending;
        }
        let mut client = self.client();
        let mut wait = match client.leaving.take() {
            Some(wait) => wait,
            None => {
                self.emulator.pause(true);
                self.disconnect_interrupts();
                self.begin_wait()
            }
        };
        if self.look_after(&mut wait) == Progress::Pending {
            client.leaving = Some(wait);
            return Progress::Pending;
        }
        if !self.emulator.reset_for_next() {
            client.leaving = Some(wait);
            return Progress::Pending;
        }
        let mappings: Vec<_> = client
            .memory
            .iter()
            .map(|(iova, mapping)| (*iova, mapping.length))
            .collect();
        for (iova, length) in mappings {
            if let Err(errno) = self.finish_unmap(&mut client, iova, length) {
                // The domain has what this map has, so this cannot come; the memory is kept rather than let go too early.
                tracing::error!(%errno, iova, length, "memory of a client that is gone could not be unmapped");
            }
        }
        client.unmapping.clear();
        self.renew_doorbells();
        self.emulator.pause(false);
        Progress::Done
    }

    fn is_broken(&self) -> bool {
        self.emulator.is_broken()
    }
}

#[cfg(test)]
mod lent_tests;
#[cfg(test)]
mod successor_tests;
#[cfg(test)]
mod tests;
