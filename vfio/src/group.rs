//! [`Group`]: an opened IOMMU group.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vfio_bindings::bindings::vfio as uapi;

use crate::error::GroupError;
use crate::sysfs::{VFIO_PCI, read_text};
use crate::{Container, Device, DeviceError, PciAddress, Sysfs, ioctl, iommu_info};

/// An opened IOMMU group with its own I/O address space.
///
/// A group can be open once at a time in the whole system. It owns its container: memory mapped through
/// [`Group::domain`] can be reached by the devices of this group and by no others.
///
/// Cloning is cheap and gives the same group. The kernel takes the group back when the last of these is dropped: its clones,
/// its devices, their mapped regions, and whatever holds its domain.
#[derive(Debug, Clone)]
pub struct Group {
    number: u32,
    container: Arc<Container>,
}

impl Group {
    /// Opens a group, makes a container for it, and chooses its type 1 v2 IOMMU.
    ///
    /// # Errors
    ///
    /// See [`GroupError`]: every cause that a user can mend has its own, with the remedy in its text.
    pub fn open(sysfs: &Sysfs, number: u32) -> Result<Self, GroupError> {
        let report = match sysfs.group(number) {
            Err(_) if sysfs.groups().is_empty() => return Err(GroupError::NoIommu),
            Err(crate::SysfsError::NoGroup { group }) => {
                return Err(GroupError::NoSuchGroup { group });
            }
            other => other?,
        };
        if is_no_iommu(sysfs, number) {
            return Err(GroupError::NoIommuMode { group: number });
        }
        let group_node = sysfs.group_node(number);
        if !group_node.exists() {
            if !sysfs.has_driver(VFIO_PCI) && !report.is_on_vfio() {
                return Err(GroupError::ModuleMissing {
                    node: group_node,
                    module: "vfio-pci",
                });
            }
            if !report.is_on_vfio() {
                return Err(GroupError::NotBound {
                    group: number,
                    members: report.members,
                });
            }
        }
        let group = open_node(&group_node).map_err(|error| {
            let nodes = report.members.iter().filter_map(|member| member.address());
            let nodes = nodes.flat_map(|address| sysfs.device_nodes(address));
            node_error(sysfs, number, &group_node, nodes.collect(), error)
        })?;
        let os = |step| {
            move |source| GroupError::Os {
                group: number,
                step,
                source,
            }
        };
        let flags =
            ioctl::group_flags(group.as_fd()).map_err(os("asking for the group's status"))?;
        // The other bit tells of a container, so equality would be wrong.
        if flags & uapi::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(GroupError::NotViable {
                group: number,
                // Drivers may have changed since the first look.
                culprits: sysfs.group(number)?.culprits().cloned().collect(),
            });
        }
        let container = open_container(sysfs, number)?;
        ioctl::set_container(group.as_fd(), container.as_fd())
            .map_err(os("putting the group into a container"))?;
        ioctl::set_iommu(container.as_fd(), uapi::VFIO_TYPE1v2_IOMMU)
            .map_err(os("choosing the type 1 v2 IOMMU"))?;
        let information =
            ioctl::iommu_info(container.as_fd()).map_err(os("asking for the IOMMU's limits"))?;
        let limits = iommu_info::parse(&information).ok_or(GroupError::BadInformation {
            length: information.len(),
        })?;
        tracing::debug!(group = number, ?limits, "opened");
        Ok(Self {
            number,
            container: Arc::new(Container::new(group, container, limits)),
        })
    }

    /// The group's number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The group's I/O address space.
    #[must_use]
    pub fn domain(&self) -> Arc<Container> {
        Arc::clone(&self.container)
    }

    /// Opens a function of the group.
    ///
    /// vfio-pci resets the function when it is opened first (where it can), and clears its Bus Master Enable.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotInGroup`] when the function is of another group or not bound to VFIO.
    pub fn device(&self, address: PciAddress) -> Result<Device, DeviceError> {
        Device::open(self.clone(), address)
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        self.container.group()
    }
}

impl Sysfs {
    /// The nodes through which a function could be open: that of VFIO's character device, where the kernel makes one.
    pub(crate) fn device_nodes(&self, address: PciAddress) -> Vec<PathBuf> {
        let names = crate::sysfs::names_in(&self.function_path(address).join("vfio-dev"))
            .unwrap_or_default();
        let nodes = names
            .iter()
            .map(|name| self.path("dev/vfio/devices").join(name));
        nodes.collect()
    }
}

fn is_no_iommu(sysfs: &Sysfs, number: u32) -> bool {
    let name = read_text(&sysfs.path(format!("sys/kernel/iommu_groups/{number}/name")));
    name.is_ok_and(|name| name == "vfio-noiommu")
        || sysfs.path(format!("dev/vfio/noiommu-{number}")).exists()
}

fn open_container(sysfs: &Sysfs, group: u32) -> Result<OwnedFd, GroupError> {
    let node = sysfs.path("dev/vfio/vfio");
    let container =
        open_node(&node).map_err(|error| node_error(sysfs, group, &node, Vec::new(), error))?;
    let os = |step| {
        move |source| GroupError::Os {
            group,
            step,
            source,
        }
    };
    let found = ioctl::api_version(container.as_fd()).map_err(os("asking for VFIO's version"))?;
    if found != uapi::VFIO_API_VERSION as i32 {
        return Err(GroupError::ApiVersion { found });
    }
    let type1v2 = ioctl::has_extension(container.as_fd(), uapi::VFIO_TYPE1v2_IOMMU)
        .map_err(os("asking for the type 1 v2 IOMMU"))?;
    type1v2.then_some(container).ok_or(GroupError::NoType1v2)
}

fn open_node(node: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(node)
        .map(File::into)
}

fn node_error(
    sysfs: &Sysfs,
    group: u32,
    node: &Path,
    also: Vec<PathBuf>,
    source: io::Error,
) -> GroupError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => GroupError::ModuleMissing {
            node: node.into(),
            module: if node.ends_with("vfio") {
                "vfio"
            } else {
                "vfio-pci"
            },
        },
        Some(libc::EBUSY) => {
            let nodes = [vec![node.to_path_buf()], also].concat();
            GroupError::Busy {
                node: node.into(),
                holders: sysfs.processes_with_open(&nodes),
            }
        }
        Some(libc::EACCES | libc::EPERM) => {
            let (owner, mode) = ownership(node);
            GroupError::NoPermission {
                node: node.into(),
                owner,
                mode,
                remedy: permission_remedy(node),
                source,
            }
        }
        _ => GroupError::Os {
            group,
            step: "opening its node",
            source,
        },
    }
}

/// What gives this user a node.
pub(crate) fn permission_remedy(node: &Path) -> String {
    if node.ends_with("vfio/vfio") {
        // Every user may have a container: it gives access to nothing until a group is put in.
        format!("sudo chmod 0666 {}", node.display())
    } else {
        format!(
            "sudo chown $USER {} (or nvme-vfio bind --user)",
            node.display()
        )
    }
}

/// `user:group` and the permission bits of a node.
pub(crate) fn ownership(node: &Path) -> (String, u32) {
    let Ok(metadata) = node.metadata() else {
        return ("somebody".into(), 0);
    };
    let user = nix::unistd::User::from_uid(metadata.uid().into())
        .ok()
        .flatten();
    let group = nix::unistd::Group::from_gid(metadata.gid().into())
        .ok()
        .flatten();
    let user = user.map_or_else(|| metadata.uid().to_string(), |user| user.name);
    let group = group.map_or_else(|| metadata.gid().to_string(), |group| group.name);
    (format!("{user}:{group}"), metadata.mode() & 0o7777)
}
