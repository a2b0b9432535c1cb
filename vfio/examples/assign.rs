//! Does with a PCI function what a virtual-machine monitor does: maps guest memory where the guest sees it, shows BAR 0 and
//! configuration space, and receives the device's interrupts.
//!
//! `assign [--write-rom] ADDRESS` — the function has to be bound to vfio-pci. Of an NVMe controller it also enables the admin queue, as a
//! guest's driver would, and lets it fire its own MSI-X vector 0; with `--write-rom` it then asks the controller to write into
//! the slot that is mapped read-only, which the IOMMU refuses. Of any other function the interrupt is looped back by the kernel.
#![allow(unsafe_code)] // a guest's memory is lent to a device, and its layout is the guest's affair

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nvme_vfio_dma::{Access, IommuDomain, Iova, MapRegion};
use nvme_vfio_pci::{
    Container, Device, Group, IRQ_MSIX, IrqSelection, MappedRegion, PciAddress, REGION_BAR0, Sysfs,
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const RAM_BASE: u64 = 0;
const RAM_SIZE: usize = 16 << 20;
/// Firmware ends at 4 GiB in a PC.
const ROM_BASE: u64 = 0xfffc_0000;
const ROM_SIZE: usize = 256 << 10;

fn main() {
    if let Err(error) = run() {
        eprintln!("assign: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write_rom = arguments.iter().any(|argument| argument == "--write-rom");
    let address: PciAddress = arguments
        .iter()
        .find(|argument| !argument.starts_with('-'))
        .ok_or("usage: assign [--write-rom] ADDRESS")?
        .parse()?;
    let sysfs = Sysfs::system();
    let function = sysfs.function(address)?;
    let number = sysfs.group_of(address)?;
    println!("function: {address}, {}", function.description());

    // Declared before the group, so dropped after it: the device has let go by then.
    let memory = GuestMemory::new(RAM_SIZE + ROM_SIZE)?;
    for reserved in sysfs.reserved_regions(number)? {
        let (first, last) = (reserved.range.start(), reserved.range.end());
        println!("reserved: {first:#x}-{last:#x} {}", reserved.kind);
    }
    let group = Group::open(&sysfs, number)?;
    let domain = group.domain();
    for range in domain.limits().iova_ranges {
        println!("IOVA range: {:#x}-{:#x}", range.start(), range.end());
    }
    memory.map(&domain, 0, RAM_SIZE, RAM_BASE, Access::READ_WRITE)?;
    println!("RAM: {RAM_SIZE:#x} bytes at {RAM_BASE:#x}, read and write");
    memory.map(&domain, RAM_SIZE, ROM_SIZE, ROM_BASE, Access::DEVICE_READ)?;
    println!("ROM: {ROM_SIZE:#x} bytes at {ROM_BASE:#x}, read only");

    let device = group.device(address)?;
    println!("device: {:?}, {:?}", device.info(), device.reset_methods()?);
    show_config(&device)?;
    for index in 0..device.info().regions {
        if let Ok(region) = device.region(index) {
            println!("region {index}: {:#x} bytes", region.size());
        }
    }
    let region = device.region(REGION_BAR0)?;
    println!(
        "BAR 0: {:#x} bytes, {:?}, mappable {:x?}",
        region.size(),
        region.info().flags(),
        region.info().mappable()
    );
    let mut first = [0; 8];
    region.read(0, &mut first)?;
    println!(
        "BAR 0 at 0: {:#018x} by system call",
        u64::from_le_bytes(first)
    );

    let eventfds = enable_msix(&device)?;
    if function.is_nvme() {
        let bar = region.map()?;
        println!("BAR 0 at 0: {:#018x} in memory", bar.read64(0)?);
        device.set_bus_master(true)?;
        let controller = AdminQueue::enable(&memory, &bar)?;
        controller.identify(0, RAM_BASE + DATA)?;
        wait(&eventfds[0])?;
        println!("MSI-X vector 0: fired by the device");
        let model = memory.bytes(DATA as usize + 24, 40);
        println!("model: {}", String::from_utf8_lossy(&model).trim());
        if write_rom {
            controller.identify(1, ROM_BASE)?;
            wait(&eventfds[0])?;
            let untouched = memory.bytes(RAM_SIZE, 4096).iter().all(|&byte| byte == 0);
            println!(
                "ROM after a write by the device: {}",
                if untouched { "untouched" } else { "WRITTEN" }
            );
        }
        controller.disable()?;
        device.set_bus_master(false)?;
    } else {
        device.trigger_irqs(IRQ_MSIX, 0, IrqSelection::Count(1))?;
        wait(&eventfds[0])?;
        println!("MSI-X vector 0: fired by a loop back through the kernel");
    }
    device.disable_irqs(IRQ_MSIX)?;
    domain.unmap(Iova(ROM_BASE), ROM_SIZE)?;
    domain.unmap(Iova(RAM_BASE), RAM_SIZE)?;
    println!("unmapped: {} bytes are mapped", domain.mapped_bytes());
    Ok(())
}

fn show_config(device: &Device) -> Result {
    let mut header = [0; 16];
    device.config_read(0, &mut header)?;
    println!("configuration space: {header:02x?}");
    for capability in device.capabilities()? {
        println!(
            "capability: {:#04x} at {:#04x}",
            capability.id, capability.offset
        );
    }
    Ok(())
}

/// An eventfd for each of the first vectors; all vectors are named in one call, since some kernels cannot add more later.
fn enable_msix(device: &Device) -> Result<Vec<EventFd>> {
    let info = device.irq_info(IRQ_MSIX)?;
    let wanted = info.count.min(4);
    let eventfds: Vec<EventFd> = (0..wanted)
        .map(|_| EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK))
        .collect::<nix::Result<_>>()?;
    let mut vectors: Vec<Option<BorrowedFd<'_>>> = eventfds
        .iter()
        .map(|eventfd| Some(eventfd.as_fd()))
        .collect();
    vectors.resize(info.count as usize, None);
    device.set_irqs(IRQ_MSIX, 0, &vectors)?;
    println!(
        "MSI-X: {} vectors, {:?}, eventfds for the first {wanted}",
        info.count, info.flags
    );
    Ok(eventfds)
}

fn wait(eventfd: &EventFd) -> Result {
    let mut poll_fd = [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut poll_fd, PollTimeout::from(5000u16))? {
        0 => Err("the interrupt did not come within 5 s".into()),
        _ => {
            eventfd.read()?;
            Ok(())
        }
    }
}

/// Memory of a virtual machine: a memfd, mapped shared, which vCPUs and other processes could have too.
struct GuestMemory {
    pointer: NonNull<u8>,
    length: usize,
    file: OwnedFd,
}

impl GuestMemory {
    fn new(length: usize) -> Result<Self> {
        let file = memfd_create("guest", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, length.try_into()?)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let pointer = unsafe {
            mmap(
                None,
                length.try_into()?,
                protection,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )
        }?;
        Ok(Self {
            pointer: pointer.cast(),
            length,
            file,
        })
    }

    fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        assert!(offset + length <= self.length, "within guest memory");
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.pointer.add(offset) }
    }

    fn map(
        &self,
        domain: &Arc<Container>,
        offset: usize,
        length: usize,
        address: u64,
        access: Access,
    ) -> Result {
        let region = MapRegion {
            pointer: self.at(offset, length),
            length,
            descriptor: Some((self.file.as_fd(), offset as u64)),
            access,
        };
        // SAFETY: the memory is unmapped after the group is dropped (see `run`), it is never borrowed as a reference, and
        // its accesses below are volatile.
        Ok(unsafe { domain.map(&region, Iova(address)) }?)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "aligned");
        // SAFETY: inside the mapping and aligned; no reference to it exists.
        unsafe {
            self.at(offset, 4)
                .cast::<u32>()
                .write_volatile(value.to_le())
        }
    }

    fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let start = self.at(offset, length);
        // SAFETY: inside the mapping, as `at` checked for the whole length.
        (0..length)
            .map(|n| unsafe { start.add(n).read_volatile() })
            .collect()
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the group that had it is gone.
        let _ = unsafe { munmap(self.pointer.cast(), self.length) };
    }
}

/// Where the guest's driver puts its queues and its data.
const SUBMISSION: u64 = 0x1_0000;
const COMPLETION: u64 = 0x1_1000;
const DATA: u64 = 0x1_2000;

const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// The admin queue of an NVMe controller, with 16 entries, as small as a driver can be (NVMe Base 2.0, 3.5.1).
struct AdminQueue<'a> {
    memory: &'a GuestMemory,
    bar: &'a MappedRegion,
}

impl<'a> AdminQueue<'a> {
    fn enable(memory: &'a GuestMemory, bar: &'a MappedRegion) -> Result<Self> {
        let queue = Self { memory, bar };
        queue.disable()?;
        bar.write32(AQA, 15 << 16 | 15)?;
        bar.write64(ASQ, RAM_BASE + SUBMISSION)?;
        bar.write64(ACQ, RAM_BASE + COMPLETION)?;
        // IOCQES 4, IOSQES 6, pages of 4 KiB, enable.
        bar.write32(CC, 4 << 20 | 6 << 16 | 1)?;
        queue.await_ready(1)?;
        println!("controller: enabled");
        Ok(queue)
    }

    fn disable(&self) -> Result {
        self.bar.write32(CC, 0)?;
        self.await_ready(0)
    }

    fn await_ready(&self, ready: u32) -> Result {
        // CAP.TO is in units of 500 ms.
        let timeout = (self.bar.read64(CAP)? >> 24 & 0xff).max(1) * 500;
        let deadline = Instant::now() + Duration::from_millis(timeout);
        loop {
            let status = self.bar.read32(CSTS)?;
            if status == u32::MAX || status & 2 != 0 {
                return Err(format!("the controller failed: CSTS {status:#x}").into());
            }
            if status & 1 == ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("the controller did not become ready in its time".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Identify Controller as the `slot`-th command, its data to the guest-physical address `data`.
    fn identify(&self, slot: u32, data: u64) -> Result {
        let entry = SUBMISSION as usize + slot as usize * 64;
        self.memory.write32(entry, slot << 16 | 0x06);
        self.memory.write32(entry + 24, data as u32);
        self.memory.write32(entry + 28, (data >> 32) as u32);
        self.memory.write32(entry + 40, 1);
        // The entry has to be in memory before the doorbell tells of it.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        Ok(self.bar.write32(DOORBELLS, slot + 1)?)
    }
}
