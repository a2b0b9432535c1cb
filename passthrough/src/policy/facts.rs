//! What a policy has to know of the real controllers.

use nvme_vfio::{Controller, Error};
use nvme_vfio_queues::IdentifyNamespace;
use nvme_vfio_queues::command::{Cns, Identify};
use nvme_vfio_queues::identify::{DescriptorList, NamespaceIdentifier};
use zerocopy::FromBytes;

use crate::command::{ClassSet, CommandSet};

/// NMIC bit 0: other controllers may be attached to the namespace too.
const NMIC_SHARED: u8 = 1;
/// FNA bits 0 and 1: a format, or an erase of user data, is of all namespaces.
const FNA_ALL: u8 = 0b11;

/// What a process may use for all its clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Bytes that it may lock into memory for the device (RLIMIT_MEMLOCK); `None` where nothing limits it, or nothing is locked.
    pub locked_memory: Option<u64>,
    /// Mappings that the IOMMU domain takes; `None` where nothing limits them.
    pub mappings: Option<u32>,
}

/// A real controller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControllerFacts {
    /// Model Number.
    pub model: String,
    /// Serial Number.
    pub serial: String,
    /// Firmware Revision.
    pub firmware: String,
    /// NVM Subsystem NVMe Qualified Name; empty where it has none.
    pub subnqn: String,
    /// I/O queue pairs that can be made.
    pub io_queues: u16,
    /// Entries that a queue may have (CAP.MQES, counted from 1).
    pub queue_entries: u32,
    /// Optional Admin Command Support.
    pub oacs: u16,
    /// Optional NVM Command Support.
    pub oncs: u16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Its active namespaces.
    pub namespaces: Vec<NamespaceFacts>,
}

/// A real namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceFacts {
    /// Its identifier.
    pub nsid: u32,
    /// Its command set.
    pub command_set: CommandSet,
    /// Blocks (NSZE).
    pub blocks: u64,
    /// Bytes of a block's data, 512 to 65,536; 0 where its format has another size and cannot be used.
    pub block_size: u32,
    /// Bytes of a block's metadata.
    pub metadata: u16,
    /// Type of end-to-end protection, 0 for none.
    pub protection: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: u8,
    /// Whether it is write protected.
    pub write_protected: bool,
    /// Whether other controllers may be attached to it.
    pub multi_path: bool,
    /// Namespace Globally Unique Identifier; zero for none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier; zero for none.
    pub eui64: [u8; 8],
}

impl NamespaceFacts {
    /// From Identify Namespace data.
    #[must_use]
    pub fn new(nsid: u32, command_set: CommandSet, identify: &IdentifyNamespace) -> Self {
        Self {
            nsid,
            command_set,
            blocks: identify.nsze.get(),
            block_size: identify.block_size().unwrap_or(0),
            metadata: identify.metadata_size().unwrap_or(0),
            protection: identify.protection_type(),
            dlfeat: identify.dlfeat,
            write_protected: identify.is_write_protected(),
            multi_path: identify.nmic & NMIC_SHARED != 0,
            nguid: identify.nguid,
            eui64: identify.eui64,
        }
    }

    /// Whether a block that was let go of reads as something of its own (DLFEAT bits 2:0 = 1 or 2), so that what an earlier client wrote is gone with it.
    #[must_use]
    pub fn forgets(&self) -> bool {
        matches!(self.dlfeat & 0b111, 1 | 2)
    }
}

impl ControllerFacts {
    /// Asks a controller.
    ///
    /// # Errors
    /// As the driver's Identify commands.
    pub fn read(controller: &Controller) -> Result<Self, Error> {
        let identify = controller.identify();
        let mut namespaces = Vec::new();
        for nsid in controller.namespaces()? {
            let namespace = controller.identify_namespace(nsid)?;
            let set = command_set(controller, nsid);
            namespaces.push(NamespaceFacts::new(nsid, set, &namespace));
        }
        Ok(Self {
            model: identify.model_number().to_string(),
            serial: identify.serial_number().to_string(),
            firmware: identify.firmware_revision().to_string(),
            subnqn: identify.subsystem_nqn().to_string(),
            io_queues: controller.io_queues(),
            queue_entries: controller.capabilities().mqes(),
            oacs: identify.oacs.get(),
            oncs: identify.oncs.get(),
            fna: identify.fna,
            namespaces,
        })
    }

    /// The active namespace `nsid`.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceFacts> {
        self.namespaces.iter().find(|one| one.nsid == nsid)
    }

    /// Whether Format NVM of one namespace also formats or erases all others (FNA).
    #[must_use]
    pub fn formats_all(&self) -> bool {
        self.fna & FNA_ALL != 0
    }

    /// The grantable classes whose commands the controller has (ONCS, OACS).
    #[must_use]
    pub fn classes(&self) -> ClassSet {
        let optional = [
            (self.oncs, 0, ClassSet::COMPARE),
            (self.oncs, 1, ClassSet::POISON),
            (self.oncs, 2, ClassSet::DEALLOCATE),
            (self.oncs, 3, ClassSet::WRITE_ZEROES),
            (self.oncs, 7, ClassSet::VERIFY),
            (self.oncs, 8, ClassSet::COPY),
            (self.oacs, 0, ClassSet::SECURITY),
            (self.oacs, 1, ClassSet::FORMAT),
            (self.oacs, 2, ClassSet::FIRMWARE),
            (self.oacs, 3, ClassSet::NAMESPACE_MANAGEMENT),
        ];
        let always = ClassSet::READ | ClassSet::WRITE | ClassSet::FLUSH;
        optional.iter().fold(always, |all, (field, bit, class)| {
            if field >> bit & 1 != 0 {
                all | *class
            } else {
                all
            }
        })
    }

    /// Whether namespace `nsid` of this controller and namespace `other_nsid` of `other` are one: two controllers of one NVM subsystem can show the same
    /// namespace.
    #[must_use]
    pub fn same_medium(&self, nsid: u32, other: &ControllerFacts, other_nsid: u32) -> bool {
        let (Some(one), Some(two)) = (self.namespace(nsid), other.namespace(other_nsid)) else {
            return false;
        };
        let known = |id: &[u8]| id.iter().any(|byte| *byte != 0);
        let named_alike = known(&one.nguid) && one.nguid == two.nguid
            || known(&one.eui64) && one.eui64 == two.eui64;
        let subsystem = !self.subnqn.is_empty() && self.subnqn == other.subnqn
            || !self.serial.is_empty() && self.serial == other.serial && self.model == other.model;
        // Within a subsystem a namespace has one identifier, whichever controller shows it.
        let attached = subsystem && nsid == other_nsid && (one.multi_path || two.multi_path);
        named_alike || attached
    }
}

/// The command set of a namespace. A controller that has no list of descriptors (before NVMe 1.3) or none for the command set has only the NVM command set.
pub(crate) fn command_set(controller: &Controller, nsid: u32) -> CommandSet {
    let data = controller.identify_raw(Identify::new(Cns::NAMESPACE_DESCRIPTORS, nsid));
    let list = data
        .ok()
        .and_then(|data| DescriptorList::read_from_bytes(&data).ok());
    let found = list.as_ref().and_then(|list| {
        list.iter().find_map(|one| match one {
            NamespaceIdentifier::CommandSet(set) => Some(CommandSet(set)),
            _ => None,
        })
    });
    found.unwrap_or(CommandSet::NVM)
}
