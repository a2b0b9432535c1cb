//! Opcodes (Base Specification 2.0, 5 and 7; NVM Command Set Specification 1.0, 3).

use crate::named::named_u8;

/// Which way data goes, as opcode bits 1:0 say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// 00b: no data. The command may still carry addresses (Doorbell Buffer Config).
    None,
    /// 01b: the controller reads the host's memory.
    HostToController,
    /// 10b: the controller writes the host's memory.
    ControllerToHost,
    /// 11b: both.
    Bidirectional,
}

impl Direction {
    /// The direction that an opcode of either kind of queue encodes.
    #[inline]
    #[must_use]
    pub const fn of(opcode: u8) -> Self {
        match opcode & 0b11 {
            0b00 => Self::None,
            0b01 => Self::HostToController,
            0b10 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

named_u8! {
    /// An opcode on the admin queue.
    pub struct AdminOpcode;
    DELETE_IO_SQ = 0x00, "Delete I/O Submission Queue";
    CREATE_IO_SQ = 0x01, "Create I/O Submission Queue";
    GET_LOG_PAGE = 0x02, "Get Log Page";
    DELETE_IO_CQ = 0x04, "Delete I/O Completion Queue";
    CREATE_IO_CQ = 0x05, "Create I/O Completion Queue";
    IDENTIFY = 0x06, "Identify";
    ABORT = 0x08, "Abort";
    SET_FEATURES = 0x09, "Set Features";
    GET_FEATURES = 0x0a, "Get Features";
    ASYNC_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
    NAMESPACE_MANAGEMENT = 0x0d, "Namespace Management";
    FIRMWARE_COMMIT = 0x10, "Firmware Commit";
    FIRMWARE_DOWNLOAD = 0x11, "Firmware Image Download";
    DEVICE_SELF_TEST = 0x14, "Device Self-test";
    NAMESPACE_ATTACHMENT = 0x15, "Namespace Attachment";
    KEEP_ALIVE = 0x18, "Keep Alive";
    DIRECTIVE_SEND = 0x19, "Directive Send";
    DIRECTIVE_RECEIVE = 0x1a, "Directive Receive";
    VIRTUALIZATION_MANAGEMENT = 0x1c, "Virtualization Management";
    NVME_MI_SEND = 0x1d, "NVMe-MI Send";
    NVME_MI_RECEIVE = 0x1e, "NVMe-MI Receive";
    CAPACITY_MANAGEMENT = 0x20, "Capacity Management";
    LOCKDOWN = 0x24, "Lockdown";
    DOORBELL_BUFFER_CONFIG = 0x7c, "Doorbell Buffer Config";
    FABRICS = 0x7f, "Fabrics Commands";
    FORMAT_NVM = 0x80, "Format NVM";
    SECURITY_SEND = 0x81, "Security Send";
    SECURITY_RECEIVE = 0x82, "Security Receive";
    SANITIZE = 0x84, "Sanitize";
    GET_LBA_STATUS = 0x86, "Get LBA Status";
}

named_u8! {
    /// An opcode on an I/O queue of the NVM command set, and of the Zoned Namespace
    /// command set, which adds three.
    pub struct NvmOpcode;
    FLUSH = 0x00, "Flush";
    WRITE = 0x01, "Write";
    READ = 0x02, "Read";
    WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
    COMPARE = 0x05, "Compare";
    WRITE_ZEROES = 0x08, "Write Zeroes";
    DATASET_MANAGEMENT = 0x09, "Dataset Management";
    VERIFY = 0x0c, "Verify";
    RESERVATION_REGISTER = 0x0d, "Reservation Register";
    RESERVATION_REPORT = 0x0e, "Reservation Report";
    RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
    RESERVATION_RELEASE = 0x15, "Reservation Release";
    COPY = 0x19, "Copy";
    ZONE_MANAGEMENT_SEND = 0x79, "Zone Management Send";
    ZONE_MANAGEMENT_RECEIVE = 0x7a, "Zone Management Receive";
    ZONE_APPEND = 0x7d, "Zone Append";
}

impl AdminOpcode {
    /// Which way data goes.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        Direction::of(self.0)
    }

    /// Whether the number is left to vendors (C0h..=FFh).
    #[must_use]
    pub const fn is_vendor(self) -> bool {
        self.0 >= 0xc0
    }
}

impl NvmOpcode {
    /// Which way data goes.
    #[inline]
    #[must_use]
    pub const fn direction(self) -> Direction {
        Direction::of(self.0)
    }

    /// Whether the number is left to vendors (80h..=FFh).
    #[must_use]
    pub const fn is_vendor(self) -> bool {
        self.0 >= 0x80
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ascend_and_unknown_ones_are_values() {
        assert!(AdminOpcode::NAMED.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(NvmOpcode::NAMED.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(AdminOpcode(0x03).to_string(), "Unknown (03h)");
        assert_eq!(AdminOpcode::IDENTIFY.to_string(), "Identify (06h)");
        assert_eq!(NvmOpcode(0x02).name(), Some("Read"));
    }

    #[test]
    fn directions() {
        assert_eq!(NvmOpcode::READ.direction(), Direction::ControllerToHost);
        assert_eq!(NvmOpcode::WRITE.direction(), Direction::HostToController);
        assert_eq!(NvmOpcode::FLUSH.direction(), Direction::None);
        assert_eq!(AdminOpcode::FABRICS.direction(), Direction::Bidirectional);
        assert_eq!(
            AdminOpcode::IDENTIFY.direction(),
            Direction::ControllerToHost
        );
        assert!(AdminOpcode(0xc0).is_vendor() && !AdminOpcode(0xbf).is_vendor());
        assert!(NvmOpcode(0x80).is_vendor() && !NvmOpcode(0x7f).is_vendor());
    }
}
