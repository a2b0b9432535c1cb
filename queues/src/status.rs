//! The status field of a completion queue entry (Base Specification 2.0, 3.3.3.2.1).

use core::fmt;

const SC_MASK: u16 = 0x00ff;
const SCT_SHIFT: u16 = 8;
const SCT_MASK: u16 = 0x0700;
const CODE_MASK: u16 = SCT_MASK | SC_MASK;
const CRD_SHIFT: u16 = 11;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;
const FIELD_MASK: u16 = 0x7fff;

/// A status: the 15 bits above the phase tag.
///
/// | bits | field |
/// |---|---|
/// | 7:0 | SC, status code |
/// | 10:8 | SCT, status code type |
/// | 12:11 | CRD, command retry delay |
/// | 13 | M, more information is in the Error Information log page |
/// | 14 | DNR, do not retry |
///
/// Two statuses are equal when all 15 bits are. The constants have CRD, M and DNR clear, so compare by
/// [`is`](Self::is), or match on [`code`](Self::code):
///
/// ```
/// use nvme_vfio_queues::Status;
///
/// let status = Status::from_raw(0x4080);
/// assert!(status.dnr() && status.is(Status::LBA_OUT_OF_RANGE));
/// assert_ne!(status, Status::LBA_OUT_OF_RANGE);
/// assert_eq!(status.to_string(), "LBA Out of Range (0/80h)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Status(u16);

impl Status {
    /// Status code type 0: generic command status.
    pub const SCT_GENERIC: u8 = 0;
    /// Status code type 1: command specific status.
    pub const SCT_COMMAND_SPECIFIC: u8 = 1;
    /// Status code type 2: media and data integrity errors.
    pub const SCT_MEDIA: u8 = 2;
    /// Status code type 3: path related status.
    pub const SCT_PATH: u8 = 3;
    /// Status code type 7: vendor specific.
    pub const SCT_VENDOR: u8 = 7;

    /// A status of that type and code, CRD, M and DNR clear. Only the low three bits of `sct` count.
    #[inline]
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16) << SCT_SHIFT) & SCT_MASK | sc as u16)
    }

    /// From the 15-bit status field. Bit 15 is dropped.
    #[inline]
    #[must_use]
    pub const fn from_raw(field: u16) -> Self {
        Self(field & FIELD_MASK)
    }

    /// The 15-bit status field.
    #[inline]
    #[must_use]
    pub const fn to_raw(self) -> u16 {
        self.0
    }

    /// From the last 16 bits of a completion queue entry, whose bit 0 is the phase tag.
    #[inline]
    #[must_use]
    pub const fn from_status_word(word: u16) -> Self {
        Self(word >> 1)
    }

    /// The last 16 bits of a completion queue entry.
    #[inline]
    #[must_use]
    pub const fn to_status_word(self, phase: bool) -> u16 {
        self.0 << 1 | phase as u16
    }

    /// Status code type, 0..=7.
    #[inline]
    #[must_use]
    pub const fn sct(self) -> u8 {
        ((self.0 & SCT_MASK) >> SCT_SHIFT) as u8
    }

    /// Status code.
    #[inline]
    #[must_use]
    pub const fn sc(self) -> u8 {
        (self.0 & SC_MASK) as u8
    }

    /// Command retry delay: 0 for none, 1..=3 for that CRDT field of Identify Controller.
    #[inline]
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0 >> CRD_SHIFT & 0b11) as u8
    }

    /// Whether the Error Information log page tells more.
    #[inline]
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Whether the same command would fail again.
    #[inline]
    #[must_use]
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// This status with DNR set.
    #[inline]
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// This status with M set.
    #[inline]
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// Type and code alone, to match on.
    #[inline]
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// Whether type and code are those of `other`.
    #[inline]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// Whether the command succeeded: type 0, code 0.
    #[inline]
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }

    /// Whether the meaning is the vendor's: type 7, and codes C0h..=FFh of types 0 to 3.
    #[must_use]
    pub const fn is_vendor_specific(self) -> bool {
        self.sct() == Self::SCT_VENDOR || self.sct() <= Self::SCT_PATH && self.sc() >= 0xc0
    }

    /// The specification's name of the status code type.
    #[must_use]
    pub const fn sct_name(self) -> &'static str {
        match self.sct() {
            Self::SCT_GENERIC => "Generic Command Status",
            Self::SCT_COMMAND_SPECIFIC => "Command Specific Status",
            Self::SCT_MEDIA => "Media and Data Integrity Errors",
            Self::SCT_PATH => "Path Related Status",
            Self::SCT_VENDOR => "Vendor Specific",
            _ => "Reserved Status Code Type",
        }
    }

    /// The name that a Fabrics command's status has. Fabrics and the NVM command set share
    /// numbers (1/80h..1/85h); [`name`](Self::name) gives the latter's.
    #[must_use]
    pub const fn fabrics_name(self) -> Option<&'static str> {
        Some(match self.code().0 {
            0x180 => "Incompatible Format",
            0x181 => "Controller Busy",
            0x182 => "Connect Invalid Parameters",
            0x183 => "Connect Restart Discovery",
            0x184 => "Connect Invalid Host",
            0x185 => "Invalid Queue Type",
            0x190 => "Discover Restart",
            0x191 => "Authentication Required",
            _ => return self.name(),
        })
    }
}

impl fmt::Display for Status {
    /// The specification's words and the numbers: `LBA Out of Range (0/80h)`. The alternate form
    /// (`{:#}`) adds DNR, M and CRD where they are set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}")?,
            None if self.is_vendor_specific() => write!(f, "Vendor Specific")?,
            None => write!(f, "Unknown {}", self.sct_name())?,
        }
        write!(f, " ({:X}/{:02X}h", self.sct(), self.sc())?;
        if f.alternate() {
            if self.dnr() {
                write!(f, ", DNR")?;
            }
            if self.more() {
                write!(f, ", M")?;
            }
            if self.crd() != 0 {
                write!(f, ", CRD {}", self.crd())?;
            }
        }
        write!(f, ")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

/// One list gives the constants, the names and the table.
macro_rules! statuses {
    ($( $constant:ident = $value:literal, $name:literal; )*) => {
        impl Status {
            $(
                #[doc = concat!($name, ".")]
                pub const $constant: Self = Self($value);
            )*

            /// Every status that has a name, in ascending order of type and code.
            pub const NAMED: &'static [Self] = &[$(Self::$constant),*];

            /// The specification's name of this type and code, `None` for one without.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.code().0 {
                    $( $value => Some($name), )*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0x000, "Successful Completion";
    INVALID_OPCODE = 0x001, "Invalid Command Opcode";
    INVALID_FIELD = 0x002, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0x003, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0x004, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0x005, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0x006, "Internal Error";
    ABORT_REQUESTED = 0x007, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0x008, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0x009, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0x00a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE_OR_FORMAT = 0x00b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0x00c, "Command Sequence Error";
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00d, "Invalid SGL Segment Descriptor";
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x00e, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0x00f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0x010, "Metadata SGL Length Invalid";
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011, "SGL Descriptor Type Invalid";
    INVALID_USE_OF_CMB = 0x012, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0x013, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0x015, "Operation Denied";
    SGL_OFFSET_INVALID = 0x016, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x018, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_TIMER_EXPIRED = 0x019, "Keep Alive Timer Expired";
    KEEP_ALIVE_TIMEOUT_INVALID = 0x01a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT_AND_ABORT = 0x01b, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0x01c, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0x01d, "Sanitize In Progress";
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x01e, "SGL Data Block Granularity Invalid";
    COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0x01f, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0x020, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0x021, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0x022, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0x023, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_COMMAND_MEDIA_NOT_READY = 0x024, "Admin Command Media Not Ready";
    INVALID_KEY_TAG = 0x025, "Invalid Key Tag";
    HOST_DISPERSED_NAMESPACE_SUPPORT_NOT_ENABLED = 0x026, "Host Dispersed Namespace Support Not Enabled";
    HOST_IDENTIFIER_NOT_INITIALIZED = 0x027, "Host Identifier Not Initialized";
    INCORRECT_KEY = 0x028, "Incorrect Key";
    FDP_DISABLED = 0x029, "FDP Disabled";
    INVALID_PLACEMENT_HANDLE_LIST = 0x02a, "Invalid Placement Handle List";
    LBA_OUT_OF_RANGE = 0x080, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x081, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x082, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0x083, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0x084, "Format In Progress";
    INVALID_VALUE_SIZE = 0x085, "Invalid Value Size";
    INVALID_KEY_SIZE = 0x086, "Invalid Key Size";
    KV_KEY_DOES_NOT_EXIST = 0x087, "KV Key Does Not Exist";
    UNRECOVERED_ERROR = 0x088, "Unrecovered Error";
    KEY_EXISTS = 0x089, "Key Exists";

    COMPLETION_QUEUE_INVALID = 0x100, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = 0x101, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 0x102, "Invalid Queue Size";
    ABORT_COMMAND_LIMIT_EXCEEDED = 0x103, "Abort Command Limit Exceeded";
    ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 0x105, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 0x106, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 0x107, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 0x108, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 0x109, "Invalid Log Page";
    INVALID_FORMAT = 0x10a, "Invalid Format";
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x10b, "Firmware Activation Requires Conventional Reset";
    INVALID_QUEUE_DELETION = 0x10c, "Invalid Queue Deletion";
    FEATURE_IDENTIFIER_NOT_SAVEABLE = 0x10d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x10e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f, "Feature Not Namespace Specific";
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x110, "Firmware Activation Requires NVM Subsystem Reset";
    FIRMWARE_NEEDS_CONTROLLER_RESET = 0x111, "Firmware Activation Requires Controller Level Reset";
    FIRMWARE_NEEDS_MAXIMUM_TIME_VIOLATION = 0x112, "Firmware Activation Requires Maximum Time Violation";
    FIRMWARE_ACTIVATION_PROHIBITED = 0x113, "Firmware Activation Prohibited";
    OVERLAPPING_RANGE = 0x114, "Overlapping Range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115, "Namespace Insufficient Capacity";
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x116, "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = 0x118, "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = 0x119, "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = 0x11a, "Namespace Not Attached";
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11b, "Thin Provisioning Not Supported";
    CONTROLLER_LIST_INVALID = 0x11c, "Controller List Invalid";
    SELF_TEST_IN_PROGRESS = 0x11d, "Device Self-test In Progress";
    BOOT_PARTITION_WRITE_PROHIBITED = 0x11e, "Boot Partition Write Prohibited";
    INVALID_CONTROLLER_IDENTIFIER = 0x11f, "Invalid Controller Identifier";
    INVALID_SECONDARY_CONTROLLER_STATE = 0x120, "Invalid Secondary Controller State";
    INVALID_NUMBER_OF_CONTROLLER_RESOURCES = 0x121, "Invalid Number of Controller Resources";
    INVALID_RESOURCE_IDENTIFIER = 0x122, "Invalid Resource Identifier";
    SANITIZE_PROHIBITED_WHILE_PMR_ENABLED = 0x123, "Sanitize Prohibited While Persistent Memory Region is Enabled";
    ANA_GROUP_IDENTIFIER_INVALID = 0x124, "ANA Group Identifier Invalid";
    ANA_ATTACH_FAILED = 0x125, "ANA Attach Failed";
    INSUFFICIENT_CAPACITY = 0x126, "Insufficient Capacity";
    NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x127, "Namespace Attachment Limit Exceeded";
    PROHIBITION_NOT_SUPPORTED = 0x128, "Prohibition of Command Execution Not Supported";
    IO_COMMAND_SET_NOT_SUPPORTED = 0x129, "I/O Command Set Not Supported";
    IO_COMMAND_SET_NOT_ENABLED = 0x12a, "I/O Command Set Not Enabled";
    IO_COMMAND_SET_COMBINATION_REJECTED = 0x12b, "I/O Command Set Combination Rejected";
    INVALID_IO_COMMAND_SET = 0x12c, "Invalid I/O Command Set";
    IDENTIFIER_UNAVAILABLE = 0x12d, "Identifier Unavailable";
    NAMESPACE_IS_DISPERSED = 0x12e, "Namespace Is Dispersed";
    INVALID_DISCOVERY_INFORMATION = 0x12f, "Invalid Discovery Information";
    ZONING_DATA_STRUCTURE_LOCKED = 0x130, "Zoning Data Structure Locked";
    ZONING_DATA_STRUCTURE_NOT_FOUND = 0x131, "Zoning Data Structure Not Found";
    INSUFFICIENT_DISCOVERY_RESOURCES = 0x132, "Insufficient Discovery Resources";
    REQUESTED_FUNCTION_DISABLED = 0x133, "Requested Function Disabled";
    ZONEGROUP_ORIGINATOR_INVALID = 0x134, "ZoneGroup Originator Invalid";
    INVALID_HOST = 0x135, "Invalid Host";
    INVALID_NVM_SUBSYSTEM = 0x136, "Invalid NVM Subsystem";
    INVALID_CONTROLLER_DATA_QUEUE = 0x137, "Invalid Controller Data Queue";
    NOT_ENOUGH_RESOURCES = 0x138, "Not Enough Resources";
    CONTROLLER_SUSPENDED = 0x139, "Controller Suspended";
    CONTROLLER_NOT_SUSPENDED = 0x13a, "Controller Not Suspended";
    CONTROLLER_DATA_QUEUE_FULL = 0x13b, "Controller Data Queue Full";
    STREAM_RESOURCE_ALLOCATION_FAILED = 0x17f, "Stream Resource Allocation Failed";
    CONFLICTING_ATTRIBUTES = 0x180, "Conflicting Attributes";
    INVALID_PROTECTION_INFORMATION = 0x181, "Invalid Protection Information";
    WRITE_TO_READ_ONLY_RANGE = 0x182, "Attempted Write to Read Only Range";
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183, "Command Size Limit Exceeded";
    INVALID_COMMAND_ID = 0x184, "Invalid Command ID";
    INCOMPATIBLE_NAMESPACE_OR_FORMAT = 0x185, "Incompatible Namespace or Format";
    FAST_COPY_NOT_POSSIBLE = 0x186, "Fast Copy Not Possible";
    OVERLAPPING_IO_RANGE = 0x187, "Overlapping I/O Range";
    NAMESPACE_NOT_REACHABLE = 0x188, "Namespace Not Reachable";
    INSUFFICIENT_RESOURCES = 0x189, "Insufficient Resources";
    DISCOVER_RESTART = 0x190, "Discover Restart";
    AUTHENTICATION_REQUIRED = 0x191, "Authentication Required";
    INVALID_ZONE_OPERATION_REQUEST = 0x1b6, "Invalid Zone Operation Request";
    ZRWA_RESOURCES_UNAVAILABLE = 0x1b7, "ZRWA Resources Unavailable";
    ZONED_BOUNDARY_ERROR = 0x1b8, "Zoned Boundary Error";
    ZONE_IS_FULL = 0x1b9, "Zone Is Full";
    ZONE_IS_READ_ONLY = 0x1ba, "Zone Is Read Only";
    ZONE_IS_OFFLINE = 0x1bb, "Zone Is Offline";
    ZONE_INVALID_WRITE = 0x1bc, "Zone Invalid Write";
    TOO_MANY_ACTIVE_ZONES = 0x1bd, "Too Many Active Zones";
    TOO_MANY_OPEN_ZONES = 0x1be, "Too Many Open Zones";
    INVALID_ZONE_STATE_TRANSITION = 0x1bf, "Invalid Zone State Transition";

    WRITE_FAULT = 0x280, "Write Fault";
    UNRECOVERED_READ_ERROR = 0x281, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 0x282, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 0x283, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 0x284, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 0x285, "Compare Failure";
    ACCESS_DENIED = 0x286, "Access Denied";
    DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x287, "Deallocated or Unwritten Logical Block";
    STORAGE_TAG_CHECK_ERROR = 0x288, "End-to-End Storage Tag Check Error";

    INTERNAL_PATH_ERROR = 0x300, "Internal Path Error";
    ASYMMETRIC_ACCESS_PERSISTENT_LOSS = 0x301, "Asymmetric Access Persistent Loss";
    ASYMMETRIC_ACCESS_INACCESSIBLE = 0x302, "Asymmetric Access Inaccessible";
    ASYMMETRIC_ACCESS_TRANSITION = 0x303, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 0x360, "Controller Pathing Error";
    HOST_PATHING_ERROR = 0x370, "Host Pathing Error";
    ABORTED_BY_HOST = 0x371, "Command Aborted By Host";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_statuses_ascend_and_are_bare_codes() {
        for pair in Status::NAMED.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} and {}", pair[0], pair[1]);
        }
        for status in Status::NAMED {
            assert_eq!(status.code(), *status);
            assert_eq!(Status::new(status.sct(), status.sc()), *status);
        }
    }

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let status = Status::from_raw(0b110_1011_1000_0110);
        assert_eq!(status.sc(), 0x86);
        assert_eq!(status.sct(), 3);
        assert_eq!(status.crd(), 1);
        assert!(status.more());
        assert!(status.dnr());
        assert!(!Status::from_raw(1 << 13).dnr());
        assert!(!Status::from_raw(1 << 14).more());
    }

    #[test]
    fn success_looks_at_type_and_code_only() {
        assert!(Status::from_raw(DNR | MORE).is_success());
        assert!(!Status::new(1, 0).is_success());
        assert!(!Status::new(0, 1).is_success());
    }

    #[test]
    fn display_never_loses_the_number() {
        assert_eq!(Status::ACCESS_DENIED.to_string(), "Access Denied (2/86h)");
        assert_eq!(
            Status::new(1, 0x7e).to_string(),
            "Unknown Command Specific Status (1/7Eh)"
        );
        assert_eq!(Status::new(0, 0xc0).to_string(), "Vendor Specific (0/C0h)");
        assert_eq!(
            Status::new(3, 0xbf).to_string(),
            "Unknown Path Related Status (3/BFh)"
        );
        assert_eq!(Status::new(7, 0x12).to_string(), "Vendor Specific (7/12h)");
        assert_eq!(
            Status::new(5, 0).to_string(),
            "Unknown Reserved Status Code Type (5/00h)"
        );
        let status = Status::INTERNAL_ERROR.with_dnr().with_more();
        assert_eq!(format!("{status:#}"), "Internal Error (0/06h, DNR, M)");
        assert_eq!(
            format!("{:#}", Status::from_raw(0x1021)),
            "Command Interrupted (0/21h, CRD 2)"
        );
    }

    #[test]
    fn fabrics_numbers_have_their_own_names() {
        assert_eq!(Status::new(1, 0x80).name(), Some("Conflicting Attributes"));
        assert_eq!(
            Status::new(1, 0x80).fabrics_name(),
            Some("Incompatible Format")
        );
        assert_eq!(
            Status::new(0, 1).fabrics_name(),
            Some("Invalid Command Opcode")
        );
    }
}
