//! Why a group or a device could not be opened or used.

use std::io;
use std::path::PathBuf;

use crate::processes::{Process, phrase};
use crate::sysfs::SysfsError;
use crate::{Member, PciAddress};

/// Why a group could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// There is no group of this number.
    #[error("there is no IOMMU group {group}")]
    NoSuchGroup {
        /// The group asked for.
        group: u32,
    },
    /// There is no group at all.
    #[error(
        "there are no IOMMU groups: the IOMMU is off. Turn it on in the firmware (VT-d, AMD-Vi) and, on Intel, boot with \
         intel_iommu=on"
    )]
    NoIommu,
    /// The group is a fake one of the kernel's no-IOMMU mode, in which devices reach all memory.
    #[error(
        "group {group} is one of the kernel's no-IOMMU mode, in which the device reaches all memory: refused. Turn the IOMMU on, \
         and enable_unsafe_noiommu_mode of the module vfio off"
    )]
    NoIommuMode {
        /// The group asked for.
        group: u32,
    },
    /// The kernel has no VFIO driver for PCI, or no VFIO.
    #[error("{} is not there: VFIO is not loaded. Run: modprobe {module}", node.display())]
    ModuleMissing {
        /// The node that is absent.
        node: PathBuf,
        /// The module that makes it.
        module: &'static str,
    },
    /// No member of the group is bound to a VFIO driver, so it has no node.
    #[error(
        "IOMMU group {group} has no member bound to vfio-pci: {}. Run: nvme-vfio bind {}",
        list(members),
        first(members)
    )]
    NotBound {
        /// The group asked for.
        group: u32,
        /// Its members.
        members: Vec<Member>,
    },
    /// A node may not be opened by this user.
    #[error("{} belongs to {owner} with mode {mode:04o}, so this user may not open it. Run: {remedy}", node.display())]
    NoPermission {
        /// The node.
        node: PathBuf,
        /// Who owns it, as `user:group`.
        owner: String,
        /// Its permission bits.
        mode: u32,
        /// What to type.
        remedy: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another descriptor of the group is open, in another process or in this one.
    #[error(
        "{} is in use by {}: a group can be open once", node.display(),
        if holders.is_empty() { "a process that this user may not see".to_string() } else { phrase(holders) }
    )]
    Busy {
        /// The node.
        node: PathBuf,
        /// Those who have it open, as far as this user may see.
        holders: Vec<Process>,
    },
    /// Another driver holds a member.
    #[error(
        "IOMMU group {group} is not viable: {}. Run: {}",
        if culprits.is_empty() { "the kernel does not tell which member is to blame".to_string() } else { list(culprits) },
        bind_commands(culprits)
    )]
    NotViable {
        /// The group.
        group: u32,
        /// The members in the hands of another driver.
        culprits: Vec<Member>,
    },
    /// The kernel speaks another version of VFIO's interface.
    #[error("the kernel speaks version {found} of VFIO's interface, this program version 0")]
    ApiVersion {
        /// The version that it speaks.
        found: i32,
    },
    /// The container offers no type 1 v2 IOMMU.
    #[error("VFIO offers no type 1 (v2) IOMMU. Run: modprobe vfio_iommu_type1")]
    NoType1v2,
    /// The container's information is no such thing.
    #[error("the kernel's information about the container makes no sense ({length} bytes)")]
    BadInformation {
        /// The length of the answer.
        length: usize,
    },
    /// sysfs could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Anything else.
    #[error("IOMMU group {group}: {step} failed")]
    Os {
        /// The group.
        group: u32,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a device could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The function is no member of the group, or not bound to VFIO.
    #[error("{address} is not a VFIO device of group {group}. Run: nvme-vfio bind {address}")]
    NotInGroup {
        /// The function.
        address: PciAddress,
        /// The group.
        group: u32,
    },
    /// The function is there, but could not be opened.
    #[error("{address} could not be opened")]
    Open {
        /// The function.
        address: PciAddress,
        /// What the kernel said.
        source: io::Error,
    },
    /// VFIO says that this is no PCI device.
    #[error("{address} is no PCI device (VFIO flags {flags:#x})")]
    NotPci {
        /// The function.
        address: PciAddress,
        /// The flags of its information.
        flags: u32,
    },
    /// The device has no such region, or the kernel does not offer it.
    #[error("region {index} is not there")]
    NoRegion {
        /// The region asked for.
        index: u32,
    },
    /// The kernel's description of a region is no such thing.
    #[error("the kernel's description of region {index} makes no sense: {what}")]
    BadRegion {
        /// The region.
        index: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// Past the end of a region.
    #[error(
        "offset {offset:#x} with {length} bytes is past the end of region {index} ({size:#x} bytes)"
    )]
    OutOfRegion {
        /// The region.
        index: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
        /// Bytes in the region.
        size: u64,
    },
    /// The region may not be accessed in this way.
    #[error("region {index} cannot be {how}")]
    NotAllowed {
        /// The region.
        index: u32,
        /// `read`, `written`, `mapped`.
        how: &'static str,
    },
    /// The device has no such interrupts.
    #[error("interrupt {index} is not there")]
    NoIrq {
        /// The interrupt index.
        index: u32,
    },
    /// None of these interrupts is enabled.
    #[error("no interrupt of index {index} is enabled")]
    IrqNotEnabled {
        /// The interrupt index.
        index: u32,
    },
    /// More interrupts than the device has.
    #[error("interrupts {start} to {end} of index {index} were asked for, and there are {count}")]
    IrqRange {
        /// The interrupt index.
        index: u32,
        /// First.
        start: u32,
        /// One past the last.
        end: u64,
        /// How many there are.
        count: u32,
    },
    /// The kernel cannot add interrupts to those that are enabled: all have to be named at the first call.
    #[error(
        "{enabled} interrupts of index {index} are enabled, and the kernel cannot add more (up to {end}) without disabling them first"
    )]
    IrqNoResize {
        /// The interrupt index.
        index: u32,
        /// How many are enabled.
        enabled: u32,
        /// One past the last asked for.
        end: u64,
    },
    /// Of INTx, MSI and MSI-X a device uses one at a time.
    #[error("interrupt index {active} is in use; disable it before index {index}")]
    IrqKindInUse {
        /// The one asked for.
        index: u32,
        /// The one in use.
        active: u32,
    },
    /// These interrupts cannot be used in that way (no eventfd, not maskable).
    #[error("interrupt index {index} cannot be {how}")]
    IrqNotAllowed {
        /// The interrupt index.
        index: u32,
        /// `signalled by eventfd`, `masked`.
        how: &'static str,
    },
    /// The device has no way to be reset alone.
    #[error(
        "{address} cannot be reset on its own (no function-level reset, no power-management reset)"
    )]
    NoReset {
        /// The function.
        address: PciAddress,
    },
    /// Anything else.
    #[error("{address}: {step} failed")]
    Os {
        /// The function.
        address: PciAddress,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn list(members: &[Member]) -> String {
    let phrases: Vec<String> = members.iter().map(ToString::to_string).collect();
    phrases.join(", ")
}

fn first(members: &[Member]) -> &str {
    let bindable = members.iter().find(|member| {
        member
            .function
            .as_ref()
            .is_some_and(|function| !function.is_bridge())
    });
    bindable.map_or("ADDRESS", |member| &member.name)
}

/// What makes a group viable: `nvme-vfio bind` for each PCI culprit.
fn bind_commands(culprits: &[Member]) -> String {
    let commands: Vec<String> = culprits
        .iter()
        .filter_map(Member::address)
        .map(|address| format!("nvme-vfio bind {address}"))
        .collect();
    if commands.is_empty() {
        return "nvme-vfio group".into();
    }
    commands.join(" && ")
}
