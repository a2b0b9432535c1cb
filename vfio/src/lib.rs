//! VFIO for PCI.

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
