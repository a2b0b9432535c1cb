//! [`Device`]: an opened PCI function.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio as uapi;

use crate::irq::EnabledIrqs;
use crate::region::RegionInfo;
use crate::{DeviceError, Group, PciAddress, Region, ioctl};

/// A PCI function that VFIO gave to this process.
///
/// Cloning is cheap and gives the same function. When the last clone, [`Region`] and
/// [`MappedRegion`](crate::MappedRegion) of it is dropped, vfio-pci disables its interrupts, clears Bus Master Enable and resets the
/// function, where it can be reset.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    // Closed before the group: fields are dropped in this order.
    pub(crate) file: File,
    pub(crate) address: PciAddress,
    pub(crate) info: DeviceInfo,
    pub(crate) config: RegionInfo,
    pub(crate) irqs: Mutex<EnabledIrqs>,
    pub(crate) group: Group,
}

/// What the kernel tells about a function (`VFIO_DEVICE_GET_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Whether [`Device::reset`] works.
    pub resettable: bool,
    /// How many region indices there are. Some of them can be empty.
    pub regions: u32,
    /// How many interrupt indices there are. Some of them can be empty.
    pub irqs: u32,
}

impl Device {
    pub(crate) fn open(group: Group, address: PciAddress) -> Result<Self, DeviceError> {
        // INVARIANT: an address prints as digits and punctuation, never as a zero byte.
        let name = CString::new(address.to_string()).unwrap_or_default();
        let descriptor =
            ioctl::device_descriptor(group.descriptor().as_fd(), &name).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::ENODEV) => DeviceError::NotInGroup {
                        address,
                        group: group.number(),
                    },
                    _ => DeviceError::Open { address, source },
                }
            })?;
        let file = File::from(descriptor);
        let told = ioctl::device_info(file.as_fd()).map_err(|source| DeviceError::Os {
            address,
            step: "asking for its information",
            source,
        })?;
        if told.flags & uapi::VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(DeviceError::NotPci {
                address,
                flags: told.flags,
            });
        }
        let info = DeviceInfo {
            resettable: told.flags & uapi::VFIO_DEVICE_FLAGS_RESET != 0,
            regions: told.num_regions,
            irqs: told.num_irqs,
        };
        let config = region_info(&file, address, info.regions, crate::REGION_CONFIG)?;
        tracing::debug!(%address, ?info, "opened");
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                address,
                info,
                config,
                irqs: Mutex::default(),
                group,
            }),
        })
    }

    /// Where the function is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.inner.address
    }

    /// What the kernel tells about it.
    #[must_use]
    pub fn info(&self) -> DeviceInfo {
        self.inner.info
    }

    /// The group it belongs to.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.inner.group
    }

    /// A region: [`REGION_BAR0`](crate::REGION_BAR0) to `REGION_BAR0 + 5`, [`REGION_ROM`](crate::REGION_ROM),
    /// [`REGION_CONFIG`](crate::REGION_CONFIG), [`REGION_VGA`](crate::REGION_VGA) and device-specific ones after it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoRegion`] when the function has none of this index (a BAR that is not implemented, the upper half of a
    /// 64-bit BAR); [`DeviceError::BadRegion`] when the kernel's description makes no sense.
    pub fn region(&self, index: u32) -> Result<Region, DeviceError> {
        let Inner {
            file,
            address,
            info,
            ..
        } = &*self.inner;
        let region = region_info(file, *address, info.regions, index)?;
        Ok(Region::new(Arc::clone(&self.inner), region))
    }

    pub(crate) fn os(&self, step: &'static str) -> impl FnOnce(std::io::Error) -> DeviceError {
        let address = self.address();
        move |source| DeviceError::Os {
            address,
            step,
            source,
        }
    }
}

/// For what this crate does not offer, such as further ioctls of a device-assignment program. A duplicate of the descriptor keeps the
/// function open and its group busy; memory is unmapped all the same when the [`Container`](crate::Container) is dropped.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

fn region_info(
    file: &File,
    address: PciAddress,
    regions: u32,
    index: u32,
) -> Result<RegionInfo, DeviceError> {
    if index >= regions {
        return Err(DeviceError::NoRegion { index });
    }
    let answer =
        ioctl::region_info(file.as_fd(), index).map_err(|source| match source.raw_os_error() {
            // The VGA region of a function that is no VGA device.
            Some(libc::EINVAL) => DeviceError::NoRegion { index },
            _ => DeviceError::Os {
                address,
                step: "asking for a region",
                source,
            },
        })?;
    let region =
        RegionInfo::parse(&answer, index).map_err(|what| DeviceError::BadRegion { index, what })?;
    match region.size() {
        0 => Err(DeviceError::NoRegion { index }),
        _ => Ok(region),
    }
}
