//! Admin commands (Base Specification 2.0, 5).

use super::QueueSize;
use crate::entry::Command;
use crate::features::{FeatureId, Select};
use crate::named::named_u8;
use crate::opcode::AdminOpcode;
use crate::prp::DataPointer;

/// CDW11 of the Create commands: the queue is physically contiguous.
const PC: u32 = 1;
/// CDW11 of Create I/O Completion Queue: interrupts enabled.
const IEN: u32 = 1 << 1;
/// CDW10 of Get Log Page: retain asynchronous event.
const RAE: u32 = 1 << 15;
/// CDW10 of Set Features: save.
const SV: u32 = 1 << 31;
/// Bits of the UUID Index in CDW14.
const UUID_INDEX_MASK: u8 = 0x7f;

named_u8! {
    /// Controller or Namespace Structure: what Identify asks for (CDW10 bits 7:0).
    pub struct Cns;
    NAMESPACE = 0x00, "Identify Namespace";
    CONTROLLER = 0x01, "Identify Controller";
    ACTIVE_NAMESPACE_LIST = 0x02, "Active Namespace ID list";
    NAMESPACE_DESCRIPTORS = 0x03, "Namespace Identification Descriptor list";
    NVM_SET_LIST = 0x04, "NVM Set List";
    IO_COMMAND_SET_NAMESPACE = 0x05, "I/O Command Set specific Identify Namespace";
    IO_COMMAND_SET_CONTROLLER = 0x06, "I/O Command Set specific Identify Controller";
    IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST = 0x07, "I/O Command Set specific Active Namespace ID list";
    INDEPENDENT_NAMESPACE = 0x08, "I/O Command Set Independent Identify Namespace";
    ALLOCATED_NAMESPACE_LIST = 0x10, "Allocated Namespace ID list";
    ALLOCATED_NAMESPACE = 0x11, "Identify Namespace of an allocated Namespace ID";
    NAMESPACE_CONTROLLER_LIST = 0x12, "Controller list of a namespace";
    CONTROLLER_LIST = 0x13, "Controller list";
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14, "Primary Controller Capabilities";
    SECONDARY_CONTROLLER_LIST = 0x15, "Secondary Controller list";
    NAMESPACE_GRANULARITY_LIST = 0x16, "Namespace Granularity List";
    UUID_LIST = 0x17, "UUID List";
    DOMAIN_LIST = 0x18, "Domain List";
    ENDURANCE_GROUP_LIST = 0x19, "Endurance Group List";
    IO_COMMAND_SET_ALLOCATED_NAMESPACE_LIST = 0x1a, "I/O Command Set specific Allocated Namespace ID list";
    IO_COMMAND_SET_ALLOCATED_NAMESPACE = 0x1b, "I/O Command Set specific Identify Namespace of an allocated Namespace ID";
    IO_COMMAND_SETS = 0x1c, "Identify I/O Command Set";
}

named_u8! {
    /// Log Page Identifier (Get Log Page CDW10 bits 7:0).
    pub struct LogPageId;
    SUPPORTED_LOG_PAGES = 0x00, "Supported Log Pages";
    ERROR_INFORMATION = 0x01, "Error Information";
    SMART_HEALTH = 0x02, "SMART / Health Information";
    FIRMWARE_SLOT = 0x03, "Firmware Slot Information";
    CHANGED_NAMESPACE_LIST = 0x04, "Changed Namespace List";
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05, "Commands Supported and Effects";
    DEVICE_SELF_TEST = 0x06, "Device Self-test";
    TELEMETRY_HOST = 0x07, "Telemetry Host-Initiated";
    TELEMETRY_CONTROLLER = 0x08, "Telemetry Controller-Initiated";
    ENDURANCE_GROUP = 0x09, "Endurance Group Information";
    PREDICTABLE_LATENCY_NVM_SET = 0x0a, "Predictable Latency Per NVM Set";
    PREDICTABLE_LATENCY_EVENT = 0x0b, "Predictable Latency Event Aggregate";
    ASYMMETRIC_NAMESPACE_ACCESS = 0x0c, "Asymmetric Namespace Access";
    PERSISTENT_EVENT = 0x0d, "Persistent Event Log";
    LBA_STATUS = 0x0e, "LBA Status Information";
    ENDURANCE_GROUP_EVENT = 0x0f, "Endurance Group Event Aggregate";
    MEDIA_UNIT_STATUS = 0x10, "Media Unit Status";
    CAPACITY_CONFIGURATION_LIST = 0x11, "Supported Capacity Configuration List";
    FEATURE_IDENTIFIERS_EFFECTS = 0x12, "Feature Identifiers Supported and Effects";
    NVME_MI_COMMANDS_EFFECTS = 0x13, "NVMe-MI Commands Supported and Effects";
    COMMAND_AND_FEATURE_LOCKDOWN = 0x14, "Command and Feature Lockdown";
    BOOT_PARTITION = 0x15, "Boot Partition";
    ROTATIONAL_MEDIA = 0x16, "Rotational Media Information";
    DISCOVERY = 0x70, "Discovery";
    RESERVATION_NOTIFICATION = 0x80, "Reservation Notification";
    SANITIZE_STATUS = 0x81, "Sanitize Status";
    CHANGED_ZONE_LIST = 0xbf, "Changed Zone List";
}

/// Priority class of a submission queue, used under weighted round robin with urgent
/// priority (QPRIO, Create I/O Submission Queue CDW11 bits 2:1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QueuePriority {
    /// 00b.
    #[default]
    Urgent = 0,
    /// 01b.
    High = 1,
    /// 10b.
    Medium = 2,
    /// 11b.
    Low = 3,
}

/// The fields of Identify (5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identify {
    /// What is asked for.
    pub cns: Cns,
    /// Namespace identifier, or where a list starts (entries are greater than it).
    pub nsid: u32,
    /// Controller identifier, for the structures that use one.
    pub cntid: u16,
    /// CNS Specific Identifier (CDW11 bits 15:0).
    pub cns_specific_id: u16,
    /// Command Set Identifier (CDW11 bits 31:24): 0 NVM, 1 Key Value, 2 Zoned Namespace.
    pub csi: u8,
    /// UUID Index, 0..=127.
    pub uuid_index: u8,
}

impl Identify {
    /// Of that structure, with every other field zero.
    #[must_use]
    pub const fn new(cns: Cns, nsid: u32) -> Self {
        Self {
            cns,
            nsid,
            cntid: 0,
            cns_specific_id: 0,
            csi: 0,
            uuid_index: 0,
        }
    }

    /// The command; the answer is 4096 bytes.
    #[must_use]
    pub const fn command(self, data: DataPointer) -> Command {
        let mut command = admin(AdminOpcode::IDENTIFY).with_data(data);
        command.nsid = self.nsid;
        command.cdw10 = (self.cntid as u32) << 16 | self.cns.0 as u32;
        command.cdw11 = (self.csi as u32) << 24 | self.cns_specific_id as u32;
        command.cdw14 = (self.uuid_index & UUID_INDEX_MASK) as u32;
        command
    }
}

/// The fields of Get Log Page (5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// Which log.
    pub lid: LogPageId,
    /// Namespace, FFFFFFFFh for the controller's log, 0 where the log has no namespace.
    pub nsid: u32,
    /// Number of dwords to return, zero-based; [`new`](Self::new) sets it from bytes.
    pub numd: u32,
    /// Byte offset into the log, a multiple of 4.
    pub offset: u64,
    /// Log Specific Field (CDW10 bits 14:8), 0..=127.
    pub lsp: u8,
    /// Log Specific Identifier (CDW11 bits 31:16).
    pub lsi: u16,
    /// Retain the asynchronous event: reading does not clear it.
    pub rae: bool,
    /// Command Set Identifier, for logs that differ by command set.
    pub csi: u8,
    /// UUID Index, 0..=127.
    pub uuid_index: u8,
}

impl GetLogPage {
    /// The first `bytes` bytes of a log, of all namespaces. The event that announced the log is retained (RAE).
    ///
    /// `None` unless `bytes` is a multiple of 4 and not zero.
    #[must_use]
    pub const fn new(lid: LogPageId, bytes: u32) -> Option<Self> {
        if bytes == 0 || !bytes.is_multiple_of(4) {
            return None;
        }
        Some(Self {
            lid,
            nsid: Command::ALL_NAMESPACES,
            numd: bytes / 4 - 1,
            offset: 0,
            lsp: 0,
            lsi: 0,
            rae: true,
            csi: 0,
            uuid_index: 0,
        })
    }

    /// The command. An offset needs a controller with extended data (LPA bit 2).
    #[must_use]
    pub const fn command(self, data: DataPointer) -> Command {
        let mut command = admin(AdminOpcode::GET_LOG_PAGE).with_data(data);
        let rae = if self.rae { RAE } else { 0 };
        command.nsid = self.nsid;
        command.cdw10 =
            (self.numd & 0xffff) << 16 | rae | ((self.lsp & 0x7f) as u32) << 8 | self.lid.0 as u32;
        command.cdw11 = (self.lsi as u32) << 16 | self.numd >> 16;
        command.cdw12 = self.offset as u32;
        command.cdw13 = (self.offset >> 32) as u32;
        command.cdw14 = (self.csi as u32) << 24 | (self.uuid_index & UUID_INDEX_MASK) as u32;
        command
    }
}

const fn admin(opcode: AdminOpcode) -> Command {
    let mut command = Command::ZERO;
    command.opcode = opcode.0;
    command
}

impl Command {
    /// The namespace identifier that means all namespaces.
    pub const ALL_NAMESPACES: u32 = 0xffff_ffff;

    /// Identify Controller (CNS 01h); 4096 bytes.
    #[must_use]
    pub const fn identify_controller(data: DataPointer) -> Self {
        Identify::new(Cns::CONTROLLER, 0).command(data)
    }

    /// Identify Namespace (CNS 00h); 4096 bytes.
    #[must_use]
    pub const fn identify_namespace(nsid: u32, data: DataPointer) -> Self {
        Identify::new(Cns::NAMESPACE, nsid).command(data)
    }

    /// Up to 1024 active namespace identifiers greater than `after` (CNS 02h); 4096 bytes.
    #[must_use]
    pub const fn active_namespaces(after: u32, data: DataPointer) -> Self {
        Identify::new(Cns::ACTIVE_NAMESPACE_LIST, after).command(data)
    }

    /// Namespace Identification Descriptors (CNS 03h); 4096 bytes.
    #[must_use]
    pub const fn namespace_descriptors(nsid: u32, data: DataPointer) -> Self {
        Identify::new(Cns::NAMESPACE_DESCRIPTORS, nsid).command(data)
    }

    /// Create I/O Completion Queue (5.4), physically contiguous at `iova`, which must be page aligned.
    ///
    /// `vector` enables interrupts on that vector.
    #[must_use]
    pub const fn create_io_cq(qid: u16, size: QueueSize, iova: u64, vector: Option<u16>) -> Self {
        let mut command = admin(AdminOpcode::CREATE_IO_CQ);
        command.prp1 = iova;
        command.cdw10 = (size.zero_based() as u32) << 16 | qid as u32;
        command.cdw11 = match vector {
            Some(vector) => (vector as u32) << 16 | IEN | PC,
            None => PC,
        };
        command
    }

    /// Create I/O Submission Queue (5.5), physically contiguous at `iova`, which must be page aligned;
    /// completions go to `cqid`, which must exist.
    #[must_use]
    pub const fn create_io_sq(
        qid: u16,
        size: QueueSize,
        iova: u64,
        cqid: u16,
        priority: QueuePriority,
    ) -> Self {
        let mut command = admin(AdminOpcode::CREATE_IO_SQ);
        command.prp1 = iova;
        command.cdw10 = (size.zero_based() as u32) << 16 | qid as u32;
        command.cdw11 = (cqid as u32) << 16 | (priority as u32) << 1 | PC;
        command
    }

    /// Delete I/O Submission Queue (5.7). Success is the proof that the controller has let go of every
    /// command that was in it.
    #[must_use]
    pub const fn delete_io_sq(qid: u16) -> Self {
        let mut command = admin(AdminOpcode::DELETE_IO_SQ);
        command.cdw10 = qid as u32;
        command
    }

    /// Delete I/O Completion Queue (5.6). Its submission queues go first.
    #[must_use]
    pub const fn delete_io_cq(qid: u16) -> Self {
        let mut command = admin(AdminOpcode::DELETE_IO_CQ);
        command.cdw10 = qid as u32;
        command
    }

    /// Abort (5.1). Bit 0 of the answer's dword 0 is 1 when the command was *not* aborted; neither
    /// answer proves that the controller has let go of the command's memory.
    #[must_use]
    pub const fn abort(sqid: u16, cid: u16) -> Self {
        let mut command = admin(AdminOpcode::ABORT);
        command.cdw10 = (cid as u32) << 16 | sqid as u32;
        command
    }

    /// Asynchronous Event Request (5.2): completes when something happens, so it has no deadline.
    #[must_use]
    pub const fn async_event_request() -> Self {
        admin(AdminOpcode::ASYNC_EVENT_REQUEST)
    }

    /// Get Features (5.15). Most features answer in dword 0; those with a data structure need `data`.
    #[must_use]
    pub const fn get_features(
        fid: FeatureId,
        select: Select,
        nsid: u32,
        data: DataPointer,
    ) -> Self {
        let mut command = admin(AdminOpcode::GET_FEATURES).with_data(data);
        command.nsid = nsid;
        command.cdw10 = (select as u32) << 8 | fid.0 as u32;
        command
    }

    /// Set Features (5.27); `save` makes the value outlast power cycles and resets.
    #[must_use]
    pub const fn set_features(
        fid: FeatureId,
        save: bool,
        nsid: u32,
        cdw11: u32,
        data: DataPointer,
    ) -> Self {
        let mut command = admin(AdminOpcode::SET_FEATURES).with_data(data);
        command.nsid = nsid;
        command.cdw10 = if save { SV } else { 0 } | fid.0 as u32;
        command.cdw11 = cdw11;
        command
    }

    /// Set Features, Number of Queues (5.27.1.5): asks for that many I/O queues of each kind, 1..=65535
    /// (0 is taken as 1, and 65536 would be FFFFh, which the specification forbids). The answer is
    /// a [`NumberOfQueues`](crate::features::NumberOfQueues).
    #[must_use]
    pub const fn set_number_of_queues(submission: u16, completion: u16) -> Self {
        let cdw11 =
            (completion.saturating_sub(1) as u32) << 16 | submission.saturating_sub(1) as u32;
        Self::set_features(
            FeatureId::NUMBER_OF_QUEUES,
            false,
            0,
            cdw11,
            DataPointer::NONE,
        )
    }

    /// Get Log Page, for logs without further parameters; see [`GetLogPage`] for the rest. `None` unless
    /// `bytes` is a multiple of 4 and not zero.
    #[must_use]
    pub const fn get_log_page(lid: LogPageId, bytes: u32, data: DataPointer) -> Option<Self> {
        match GetLogPage::new(lid, bytes) {
            Some(fields) => Some(fields.command(data)),
            None => None,
        }
    }

    /// Keep Alive (5.18).
    #[must_use]
    pub const fn keep_alive() -> Self {
        admin(AdminOpcode::KEEP_ALIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: DataPointer = DataPointer {
        prp1: 0x1000,
        prp2: 0x2000,
    };

    #[test]
    fn identify_places_each_field() {
        let identify = Identify {
            cns: Cns(0x15),
            nsid: 0x0102_0304,
            cntid: 0xabcd,
            cns_specific_id: 0x1234,
            csi: 2,
            uuid_index: 0xff,
        };
        let expected = Command {
            opcode: 0x06,
            nsid: 0x0102_0304,
            prp1: 0x1000,
            prp2: 0x2000,
            cdw10: 0xabcd_0015,
            cdw11: 0x0200_1234,
            cdw14: 0x7f,
            ..Command::ZERO
        };
        assert_eq!(identify.command(DATA), expected);
        assert_eq!(Command::identify_controller(DATA).cdw10, 1);
        assert_eq!(Command::identify_controller(DATA).nsid, 0);
        let namespace = Command::identify_namespace(7, DATA);
        assert_eq!((namespace.cdw10, namespace.nsid), (0, 7));
        assert_eq!(Command::active_namespaces(7, DATA).cdw10, 2);
        assert_eq!(Command::namespace_descriptors(7, DATA).cdw10, 3);
    }

    #[test]
    fn queues() {
        let size = QueueSize::new(1024).unwrap();
        let cq = Command::create_io_cq(5, size, 0xdead_0000, Some(9));
        assert_eq!(
            (cq.opcode, cq.prp1, cq.cdw10, cq.cdw11),
            (0x05, 0xdead_0000, 0x03ff_0005, 0x0009_0003)
        );
        assert_eq!(Command::create_io_cq(5, size, 0, None).cdw11, 1);
        let sq = Command::create_io_sq(6, size, 0xbeef_0000, 5, QueuePriority::Medium);
        assert_eq!(
            (sq.opcode, sq.prp1, sq.cdw10, sq.cdw11),
            (0x01, 0xbeef_0000, 0x03ff_0006, 0x0005_0005)
        );
        assert_eq!(
            Command::delete_io_sq(6),
            Command {
                opcode: 0x00,
                cdw10: 6,
                ..Command::ZERO
            }
        );
        assert_eq!(
            Command::delete_io_cq(5),
            Command {
                opcode: 0x04,
                cdw10: 5,
                ..Command::ZERO
            }
        );
        assert_eq!(
            Command::abort(3, 0x4321),
            Command {
                opcode: 0x08,
                cdw10: 0x4321_0003,
                ..Command::ZERO
            }
        );
    }

    #[test]
    fn features() {
        let get = Command::get_features(FeatureId(0x81), Select::Saved, 1, DATA);
        assert_eq!(
            (get.opcode, get.nsid, get.cdw10, get.prp2),
            (0x0a, 1, 0x0281, 0x2000)
        );
        let set = Command::set_features(FeatureId(0x06), true, 0, 1, DataPointer::NONE);
        assert_eq!((set.opcode, set.cdw10, set.cdw11), (0x09, 0x8000_0006, 1));
        let queues = Command::set_number_of_queues(4, 8);
        assert_eq!((queues.cdw10, queues.cdw11), (7, 0x0007_0003));
        assert_eq!(
            Command::set_number_of_queues(0, u16::MAX).cdw11,
            0xfffe_0000
        );
    }

    #[test]
    fn get_log_page_splits_count_and_offset() {
        let fields = GetLogPage {
            lsp: 0xff,
            lsi: 0x1122,
            offset: 0x0123_4567_89ab_cdec,
            csi: 2,
            uuid_index: 1,
            ..GetLogPage::new(LogPageId(0x0d), 0x0012_3458 * 4).unwrap()
        };
        let command = fields.command(DATA);
        assert_eq!(command.opcode, 0x02);
        assert_eq!(command.nsid, 0xffff_ffff);
        assert_eq!(command.cdw10, 0x3457_ff0d);
        assert_eq!(command.cdw11, 0x1122_0012);
        assert_eq!(command.cdw12, 0x89ab_cdec);
        assert_eq!(command.cdw13, 0x0123_4567);
        assert_eq!(command.cdw14, 0x0200_0001);
        let cleared = GetLogPage {
            rae: false,
            ..GetLogPage::new(LogPageId(4), 4096).unwrap()
        };
        assert_eq!(cleared.command(DATA).cdw10, 0x03ff_0004);
        assert!(Command::get_log_page(LogPageId(2), 0, DATA).is_none());
        assert!(Command::get_log_page(LogPageId(2), 510, DATA).is_none());
        assert_eq!(
            Command::get_log_page(LogPageId(2), 512, DATA)
                .unwrap()
                .cdw10,
            0x007f_8002
        );
    }
}
