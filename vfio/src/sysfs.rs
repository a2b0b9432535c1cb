//! [`Sysfs`]: what the kernel tells in files about PCI functions.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::PciAddress;

/// The kernel's file systems below a root: `sys`, `proc` and `dev`.
///
/// [`Sysfs::system`] is the machine's own. Another root serves tests, and tools that look at a saved tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::system()
    }
}

/// A PCI function as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, sub-class, programming interface (24 bits); `0x010802` is an NVMe I/O controller.
    pub class: u32,
    /// The driver that holds it.
    pub driver: Option<String>,
    /// The IOMMU group; `None` when no IOMMU translates for this function.
    pub iommu_group: Option<u32>,
    /// The NUMA node next to it; `None` when the machine does not tell (it says -1).
    pub numa_node: Option<u32>,
}

/// Class code of NVMe I/O controllers.
pub const CLASS_NVME: u32 = 0x01_0802;

impl PciFunction {
    /// Whether the class code says NVMe I/O controller.
    #[must_use]
    pub fn is_nvme(&self) -> bool {
        self.class == CLASS_NVME
    }

    /// Whether it is a PCI-to-PCI bridge or a root port (class `0604`).
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.class >> 8 == 0x0604
    }

    /// Whether a driver of VFIO holds it, so that its group may hand it to user space.
    #[must_use]
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// A few words for messages: `NVMe controller 1b36:0010`, `PCI bridge 8086:0c01`, `8086:100e, class 020000`.
    #[must_use]
    pub fn description(&self) -> String {
        let (vendor, device) = (self.vendor, self.device);
        if self.is_nvme() {
            format!("NVMe controller {vendor:04x}:{device:04x}")
        } else if self.is_bridge() {
            format!("PCI bridge {vendor:04x}:{device:04x}")
        } else {
            format!("{vendor:04x}:{device:04x}, class {:06x}", self.class)
        }
    }
}

/// The name by which the kernel calls its generic VFIO driver for PCI.
pub const VFIO_PCI: &str = "vfio-pci";

/// Whether a driver of this name gives its functions to VFIO: `vfio-pci` and the variants for certain devices
/// (`mlx5_vfio_pci`, `nvgrace-gpu-vfio-pci`, ...).
pub(crate) fn is_vfio_driver(name: &str) -> bool {
    name == VFIO_PCI || name.ends_with("_vfio_pci") || name.ends_with("-vfio-pci")
}

/// What went wrong when looking at a function or a group in sysfs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// No function at this address.
    #[error("there is no PCI function {address}; `nvme-vfio list` shows those there are")]
    NoFunction {
        /// The address asked for.
        address: PciAddress,
    },
    /// No such IOMMU group.
    #[error("there is no IOMMU group {group}")]
    NoGroup {
        /// The group asked for.
        group: u32,
    },
    /// The function has no IOMMU group: nothing translates its DMA.
    #[error(
        "{address} is in no IOMMU group: the IOMMU is off or does not cover it. Turn it on in the firmware (VT-d, AMD-Vi) and, \
         on Intel, boot with intel_iommu=on"
    )]
    NoIommu {
        /// The function.
        address: PciAddress,
    },
    /// A file could not be read, or holds what it should not.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Sysfs {
    /// The machine's own file systems.
    #[must_use]
    pub fn system() -> Self {
        Self::at("/")
    }

    /// The file systems below `root`: `root/sys`, `root/proc`, `root/dev`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of a file below the root: `path("sys/bus/pci")`.
    #[must_use]
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// Every PCI function, by address.
    ///
    /// # Errors
    ///
    /// When the directory of PCI functions cannot be read. A function that goes away meanwhile is left out.
    pub fn functions(&self) -> Result<Vec<PciFunction>, SysfsError> {
        let path = self.path("sys/bus/pci/devices");
        let names = match names_in(&path) {
            // A machine without any PCI bus.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|source| SysfsError::File { path, source })?,
        };
        let mut functions: Vec<PciFunction> = names
            .iter()
            .filter_map(|name| self.function(name.parse().ok()?).ok())
            .collect();
        functions.sort_by_key(|function| function.address);
        Ok(functions)
    }

    /// Every NVMe controller, by address.
    ///
    /// # Errors
    ///
    /// As [`Sysfs::functions`].
    pub fn nvme_functions(&self) -> Result<Vec<PciFunction>, SysfsError> {
        let mut functions = self.functions()?;
        functions.retain(PciFunction::is_nvme);
        Ok(functions)
    }

    /// One function.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoFunction`] when nothing is at that address.
    pub fn function(&self, address: PciAddress) -> Result<PciFunction, SysfsError> {
        let directory = self.function_path(address);
        if !directory.is_dir() {
            return Err(SysfsError::NoFunction { address });
        }
        Ok(PciFunction {
            address,
            vendor: read_hex(&directory.join("vendor"))? as u16,
            device: read_hex(&directory.join("device"))? as u16,
            class: read_hex(&directory.join("class"))? & 0xff_ffff,
            driver: link_name(&directory.join("driver")),
            iommu_group: link_name(&directory.join("iommu_group"))
                .and_then(|name| name.parse().ok()),
            numa_node: read_text(&directory.join("numa_node"))
                .ok()
                .and_then(|text| text.parse().ok()),
        })
    }

    /// The IOMMU group of a function.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoFunction`], and [`SysfsError::NoIommu`] when it is in no group.
    pub fn group_of(&self, address: PciAddress) -> Result<u32, SysfsError> {
        self.function(address)?
            .iommu_group
            .ok_or(SysfsError::NoIommu { address })
    }

    /// The directory of a function.
    pub(crate) fn function_path(&self, address: PciAddress) -> PathBuf {
        self.path(format!("sys/bus/pci/devices/{address}"))
    }

    /// The node of a group.
    pub(crate) fn group_node(&self, group: u32) -> PathBuf {
        self.path(format!("dev/vfio/{group}"))
    }

    /// Whether the kernel has this PCI driver (built in or loaded).
    #[must_use]
    pub fn has_driver(&self, name: &str) -> bool {
        self.path("sys/bus/pci/drivers").join(name).is_dir()
    }
}

/// The names in a directory, sorted. Names that are no UTF-8 are left out: the kernel makes none.
pub(crate) fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The last part of what a symbolic link points to.
pub(crate) fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    target.file_name().and_then(OsStr::to_str).map(Into::into)
}

/// A file's text without the space around it.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_string())
}

fn read_hex(path: &Path) -> Result<u32, SysfsError> {
    let file = |source| SysfsError::File {
        path: path.into(),
        source,
    };
    let text = read_text(path).map_err(file)?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u32::from_str_radix(digits, 16)
        .map_err(|error| file(io::Error::new(io::ErrorKind::InvalidData, error)))
}
