//! VFIO for PCI: gives a process a PCI function, with its registers, its interrupts, and memory that it may reach.
//!
//! Linux hands a function to user space when its IOMMU confines it. This crate finds functions and their IOMMU groups in sysfs, takes them from
//! their drivers, opens them, and says in words what stands in the way. It knows nothing of NVMe beyond its class code and what sysfs tells of the
//! kernel's NVMe controllers, so a virtual-machine monitor or any other device-assignment program can use it alone.
//!
//! | type | is |
//! |---|---|
//! | [`Sysfs`] | what the kernel tells in files: [`PciFunction`]s, [`GroupReport`]s, [`KernelController`]s, [`Holder`]s, [`ReservedRegion`]s |
//! | [`bind`](mod@bind) | from the kernel's driver to vfio-pci and back, as a plan that can be shown first |
//! | [`checks`] | whether machine, function and user's rights allow it, each finding with its remedy |
//! | [`Group`] | an opened IOMMU group; owns the [`Container`], its I/O address space, and opens its functions |
//! | [`Device`] | an opened function: configuration space, interrupts through eventfds, reset |
//! | [`Region`], [`MappedRegion`] | a BAR or another region, by system call or in this process's memory |
//!
//! ```no_run
//! use nvme_vfio_dma::{Access, AddressSpace, Iova, Memory, Pages};
//! use nvme_vfio_pci::{Group, PciAddress, REGION_BAR0, Sysfs};
//!
//! let sysfs = Sysfs::system();
//! let address: PciAddress = "0000:01:00.0".parse()?;
//! let group = Group::open(&sysfs, sysfs.group_of(address)?)?;
//!
//! // Guest memory at the address where the guest sees it.
//! let space = AddressSpace::new(group.domain());
//! let ram = space.map_at(Memory::new(64 << 20, Pages::PreferHuge)?, Iova(1 << 32), Access::READ_WRITE)?;
//!
//! let device = group.device(address)?;
//! let bar = device.region(REGION_BAR0)?.map()?;
//! println!("{:#x}", bar.read32(0)?);
//! device.set_bus_master(true)?;
//! # drop(ram);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Four things are worth knowing:
//! - **One container for each group.** What is mapped for one group's devices can be reached by no other group's.
//! - **Everything is closed in the kernel's order**: mapped regions, then the device, then the group, then its container, whatever is
//!   dropped first.
//! - **The kernel's answers are input.** Chains of capabilities, areas, ranges and counts are bounded before use.
//! - **What the kernel calls EINVAL is told apart beforehand**: alignment, address ranges, interrupts that cannot be added, an interrupt kind beside
//!   another.
//!
//! `examples/assign.rs` does with a function what a virtual-machine monitor does, down to an interrupt that the device itself fires.

mod address;
pub mod bind;
mod chain;
pub mod checks;
mod config;
mod container;
mod device;
mod error;
mod group;
mod holders;
mod ioctl;
mod iommu_info;
mod irq;
mod kernel_controller;
mod mapping;
mod memlock;
mod processes;
mod region;
mod reset;
mod sysfs;
mod viability;

pub use address::{ParsePciAddressError, PciAddress};
pub use config::{
    CAPABILITY_ADVANCED_FEATURES, CAPABILITY_MSI, CAPABILITY_MSIX, CAPABILITY_PCI_EXPRESS,
    CAPABILITY_POWER_MANAGEMENT, PciCapability, ResetMethods,
};
pub use container::Container;
pub use device::{Device, DeviceInfo};
pub use error::{DeviceError, GroupError};
pub use group::Group;
pub use holders::Holder;
pub use irq::{
    IRQ_ERROR, IRQ_INTX, IRQ_MSI, IRQ_MSIX, IRQ_REQUEST, IrqFlags, IrqInfo, IrqSelection,
};
pub use kernel_controller::{KernelController, KernelNamespace};
pub use mapping::{AccessError, MappedRegion};
pub use memlock::Memlock;
pub use processes::Process;
pub use region::{
    REGION_BAR0, REGION_CONFIG, REGION_ROM, REGION_VGA, Region, RegionFlags, RegionInfo,
};
pub use reset::DependentFunction;
pub use sysfs::{CLASS_NVME, PciFunction, Sysfs, SysfsError, VFIO_PCI};
pub use viability::{GroupReport, Member, ReservedRegion};
