//! Feature identifiers, and the features that every host needs (Base
//! Specification 2.0, 5.27.1).

use crate::named::named_u8;

named_u8! {
    /// What Get Features and Set Features name in CDW10 bits 7:0.
    pub struct FeatureId;
    ARBITRATION = 0x01, "Arbitration";
    POWER_MANAGEMENT = 0x02, "Power Management";
    LBA_RANGE_TYPE = 0x03, "LBA Range Type";
    TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
    ERROR_RECOVERY = 0x05, "Error Recovery";
    VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
    NUMBER_OF_QUEUES = 0x07, "Number of Queues";
    INTERRUPT_COALESCING = 0x08, "Interrupt Coalescing";
    INTERRUPT_VECTOR_CONFIGURATION = 0x09, "Interrupt Vector Configuration";
    WRITE_ATOMICITY_NORMAL = 0x0a, "Write Atomicity Normal";
    ASYNC_EVENT_CONFIGURATION = 0x0b, "Asynchronous Event Configuration";
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0c, "Autonomous Power State Transition";
    HOST_MEMORY_BUFFER = 0x0d, "Host Memory Buffer";
    TIMESTAMP = 0x0e, "Timestamp";
    KEEP_ALIVE_TIMER = 0x0f, "Keep Alive Timer";
    HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10, "Host Controlled Thermal Management";
    NON_OPERATIONAL_POWER_STATE_CONFIG = 0x11, "Non-Operational Power State Config";
    READ_RECOVERY_LEVEL_CONFIG = 0x12, "Read Recovery Level Config";
    PREDICTABLE_LATENCY_MODE_CONFIG = 0x13, "Predictable Latency Mode Config";
    PREDICTABLE_LATENCY_MODE_WINDOW = 0x14, "Predictable Latency Mode Window";
    LBA_STATUS_INFORMATION_REPORT_INTERVAL = 0x15, "LBA Status Information Report Interval";
    HOST_BEHAVIOR_SUPPORT = 0x16, "Host Behavior Support";
    SANITIZE_CONFIG = 0x17, "Sanitize Config";
    ENDURANCE_GROUP_EVENT_CONFIGURATION = 0x18, "Endurance Group Event Configuration";
    IO_COMMAND_SET_PROFILE = 0x19, "I/O Command Set Profile";
    SPINUP_CONTROL = 0x1a, "Spinup Control";
    ENHANCED_CONTROLLER_METADATA = 0x7d, "Enhanced Controller Metadata";
    CONTROLLER_METADATA = 0x7e, "Controller Metadata";
    NAMESPACE_METADATA = 0x7f, "Namespace Metadata";
    SOFTWARE_PROGRESS_MARKER = 0x80, "Software Progress Marker";
    HOST_IDENTIFIER = 0x81, "Host Identifier";
    RESERVATION_NOTIFICATION_MASK = 0x82, "Reservation Notification Mask";
    RESERVATION_PERSISTENCE = 0x83, "Reservation Persistence";
    NAMESPACE_WRITE_PROTECTION_CONFIG = 0x84, "Namespace Write Protection Config";
}

/// Which of a feature's values Get Features asks for (CDW10 bits 10:8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Select {
    /// The value in force.
    #[default]
    Current = 0,
    /// The value after a reset, unless saved.
    Default = 1,
    /// The value last saved.
    Saved = 2,
    /// Not a value: whether the feature is saveable, per namespace, changeable.
    SupportedCapabilities = 3,
}

/// What Number of Queues answers in dword 0: how many I/O queues the controller allocated.
///
/// The two may differ, and may exceed what was asked for. The admin queue is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NumberOfQueues {
    /// I/O submission queues, 1..=65536 (65536 from a controller that breaks the specification).
    pub submission: u32,
    /// I/O completion queues, 1..=65536.
    pub completion: u32,
}

impl NumberOfQueues {
    /// From dword 0 of the completion queue entry: NCQA in bits 31:16, NSQA in bits 15:0, both zero-based.
    #[must_use]
    pub const fn from_result(dw0: u32) -> Self {
        Self {
            submission: (dw0 & 0xffff) + 1,
            completion: (dw0 >> 16) + 1,
        }
    }

    /// How many pairs of one submission and one completion queue that makes.
    #[must_use]
    pub const fn pairs(self) -> u32 {
        if self.submission < self.completion {
            self.submission
        } else {
            self.completion
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_queues_counts_from_one() {
        let queues = NumberOfQueues::from_result(0x0003_0007);
        assert_eq!(
            (queues.submission, queues.completion, queues.pairs()),
            (8, 4, 4)
        );
        assert_eq!(NumberOfQueues::from_result(u32::MAX).pairs(), 65_536);
    }

    #[test]
    fn names_ascend() {
        assert!(FeatureId::NAMED.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(FeatureId(0x07).to_string(), "Number of Queues (07h)");
    }
}
