//! A controller that the kernel lends through VFIO.
#![allow(unsafe_code)] // passes on register writes, hands out doorbells, which are pointers into the mapped BAR

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_dma::AddressSpace;
use nvme_vfio_pci::{
    CLASS_NVME, Device, DeviceError, Group, IRQ_REQUEST, MappedRegion, PciAddress, REGION_BAR0,
};
use nvme_vfio_queues::ring::Doorbell;

use super::Transport;
use crate::Error;
use crate::group::Claim;

/// An NVMe function of a VFIO group. Closing it makes the kernel switch bus mastering off and reset the function.
#[derive(Debug)]
pub struct VfioTransport {
    // In the order in which they are to go: the mapped registers, the function (which ends all DMA), then its claim.
    registers: MappedRegion,
    device: Device,
    /// Signalled by the kernel when it wants the function back; `None` where it cannot tell.
    request: Option<EventFd>,
    wanted_back: AtomicBool,
    space: AddressSpace,
    _claim: Claim,
}

impl VfioTransport {
    pub(crate) fn open(
        group: &Group,
        space: AddressSpace,
        function: PciAddress,
        claim: Claim,
    ) -> Result<Self, Error> {
        let device = group.device(function)?;
        let mut class = [0; 3];
        device.config_read(9, &mut class)?;
        let class = u32::from(class[2]) << 16 | u32::from(class[1]) << 8 | u32::from(class[0]);
        if class == 0x00ff_ffff {
            return Err(Error::Gone);
        }
        if class != CLASS_NVME {
            return Err(Error::NotNvme {
                address: function.to_string(),
                class,
            });
        }
        // Before anything is mapped: an earlier owner's queues may still be running.
        device.set_bus_master(false)?;
        let registers = device.region(REGION_BAR0)?.map()?;
        let request = match watch_requests(&device) {
            Ok(request) => Some(request),
            // Nothing else depends on it.
            Err(error) => {
                tracing::info!(%function, %error, "the kernel will not tell when it wants the function back");
                None
            }
        };
        Ok(Self {
            registers,
            device,
            request,
            wanted_back: AtomicBool::new(false),
            space,
            _claim: claim,
        })
    }
}

/// An eventfd that the kernel signals when it wants the function back.
fn watch_requests(device: &Device) -> Result<EventFd, DeviceError> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let request = EventFd::from_flags(flags).map_err(|errno| DeviceError::Os {
        address: device.address(),
        step: "making an eventfd",
        source: errno.into(),
    })?;
    device.set_irqs(IRQ_REQUEST, 0, &[Some(request.as_fd())])?;
    Ok(request)
}

/// What a register reads as where there is none: as if the controller were gone.
const ABSENT: u32 = u32::MAX;

impl Transport for VfioTransport {
    fn address_space(&self) -> &AddressSpace {
        &self.space
    }

    fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(offset as u64).unwrap_or(ABSENT)
    }

    fn read64(&self, offset: usize) -> u64 {
        // As two halves: some bridges and controllers do not take 64-bit accesses (NVMe over PCIe transport 1.0, section 3.1).
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    unsafe fn write32(&self, offset: usize, value: u32) {
        if self.registers.write32(offset as u64, value).is_err() {
            tracing::error!(function = %self.device.address(), offset, "BAR 0 does not reach a register that was to be written");
        }
    }

    unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: the caller answers for both halves.
        unsafe {
            self.write32(offset, value as u32);
            self.write32(offset + 4, (value >> 32) as u32);
        }
    }

    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        let register = self.registers.pointer_at(offset as u64, size_of::<u32>())?;
        if !register.cast::<AtomicU32>().is_aligned() {
            return None;
        }
        // SAFETY: `pointer_at` gave a pointer to four mapped bytes, aligned as just checked, and the clone keeps them mapped.
        Some(unsafe { Doorbell::mapped(register.cast(), Arc::new(self.registers.clone())) })
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        Ok(self.device.set_bus_master(on)?)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        Ok(self.device.config_read(offset, data)?)
    }

    fn reset(&self) -> Result<(), Error> {
        Ok(self.device.reset()?)
    }

    fn is_wanted_back(&self) -> bool {
        if let Some(request) = &self.request
            && request.read().is_ok()
        {
            self.wanted_back.store(true, Ordering::Relaxed);
        }
        self.wanted_back.load(Ordering::Relaxed)
    }

    fn name(&self) -> String {
        self.device.address().to_string()
    }
}
