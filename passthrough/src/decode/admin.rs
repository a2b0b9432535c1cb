//! Admin commands.

use super::field::{Field, Layout, field};
use super::table::{Row, Rule, Table, row, table};
use super::{features, information, owner};

/// Where vendors' opcodes begin.
const VENDOR: u8 = 0xc0;

/// All opcodes of the admin queue.
pub(super) static TABLE: Table = table(ROWS, VENDOR);

const DELETE_QUEUE: &[Field] = &[field("QID", 10, 15, 0)];

const CREATE_SUBMISSION_QUEUE: &[Field] = &[
    field("QID", 10, 15, 0),
    field("QSIZE", 10, 31, 16),
    field("PC", 11, 0, 0),
    field("QPRIO", 11, 2, 1),
    field("CQID", 11, 31, 16),
    field("NVMSETID", 12, 15, 0),
];

const CREATE_COMPLETION_QUEUE: &[Field] = &[
    field("QID", 10, 15, 0),
    field("QSIZE", 10, 31, 16),
    field("PC", 11, 0, 0),
    field("IEN", 11, 1, 1),
    field("IV", 11, 31, 16),
];

const ABORT: &[Field] = &[field("SQID", 10, 15, 0), field("CID", 10, 31, 16)];

/// A command that nobody may issue, whatever it says.
macro_rules! never {
    ($opcode:literal, $name:literal) => {
        row!($opcode, $name, Layout::any(), Rule::Never, NEVER)
    };
}

pub(super) static ROWS: &[Row] = &[
    row!(
        0x00,
        "Delete I/O Submission Queue",
        Layout::of_controller(false, DELETE_QUEUE),
        Rule::VirtualOnly,
        DELETE_QUEUE
    ),
    row!(
        0x01,
        "Create I/O Submission Queue",
        Layout::of_controller(true, CREATE_SUBMISSION_QUEUE),
        Rule::VirtualOnly,
        CREATE_SUBMISSION_QUEUE
    ),
    row!(
        0x02,
        "Get Log Page",
        Layout::of_namespace(true, information::GET_LOG_PAGE),
        Rule::Decode(information::get_log_page),
        GET_LOG_PAGE
    ),
    row!(
        0x04,
        "Delete I/O Completion Queue",
        Layout::of_controller(false, DELETE_QUEUE),
        Rule::VirtualOnly,
        DELETE_QUEUE
    ),
    row!(
        0x05,
        "Create I/O Completion Queue",
        Layout::of_controller(true, CREATE_COMPLETION_QUEUE),
        Rule::VirtualOnly,
        CREATE_COMPLETION_QUEUE
    ),
    row!(
        0x06,
        "Identify",
        Layout::of_namespace(true, information::IDENTIFY),
        Rule::Decode(information::identify),
        IDENTIFY
    ),
    row!(
        0x08,
        "Abort",
        Layout::of_controller(false, ABORT),
        Rule::VirtualOnly,
        ABORT
    ),
    row!(
        0x09,
        "Set Features",
        Layout::of_namespace(true, features::SET_FEATURES),
        Rule::Decode(features::set),
        SET_FEATURES
    ),
    row!(
        0x0a,
        "Get Features",
        Layout::of_namespace(true, features::GET_FEATURES),
        Rule::Decode(features::get),
        GET_FEATURES
    ),
    row!(
        0x0c,
        "Asynchronous Event Request",
        Layout::of_controller(false, &[]),
        Rule::VirtualOnly,
        ASYNCHRONOUS_EVENT_REQUEST
    ),
    row!(
        0x0d,
        "Namespace Management",
        Layout::of_namespace(true, owner::NAMESPACE_MANAGEMENT),
        Rule::Decode(owner::namespace_management),
        NAMESPACE_MANAGEMENT
    ),
    row!(
        0x10,
        "Firmware Commit",
        Layout::of_controller(false, owner::FIRMWARE_COMMIT),
        Rule::Decode(owner::firmware_commit),
        FIRMWARE_COMMIT
    ),
    row!(
        0x11,
        "Firmware Image Download",
        Layout::of_controller(true, owner::FIRMWARE_DOWNLOAD),
        Rule::Decode(owner::firmware_download),
        FIRMWARE_DOWNLOAD
    ),
    row!(
        0x14,
        "Device Self-test",
        Layout::of_namespace(false, owner::DEVICE_SELF_TEST),
        Rule::Decode(owner::device_self_test),
        DEVICE_SELF_TEST
    ),
    row!(
        0x15,
        "Namespace Attachment",
        Layout::of_namespace(true, owner::NAMESPACE_ATTACHMENT),
        Rule::Decode(owner::namespace_attachment),
        NAMESPACE_ATTACHMENT
    ),
    never!(0x18, "Keep Alive"),
    row!(
        0x19,
        "Directive Send",
        Layout::of_namespace(false, owner::DIRECTIVE),
        Rule::Decode(owner::directive_send),
        DIRECTIVE_SEND
    ),
    row!(
        0x1a,
        "Directive Receive",
        Layout::of_namespace(true, owner::DIRECTIVE),
        Rule::Decode(owner::directive_receive),
        DIRECTIVE_RECEIVE
    ),
    never!(0x1c, "Virtualization Management"),
    never!(0x1d, "NVMe-MI Send"),
    never!(0x1e, "NVMe-MI Receive"),
    row!(
        0x20,
        "Capacity Management",
        Layout::of_controller(false, owner::CAPACITY_MANAGEMENT),
        Rule::Decode(owner::capacity_management),
        CAPACITY_MANAGEMENT
    ),
    never!(0x21, "Discovery Information Management"),
    never!(0x22, "Fabric Zoning Receive"),
    never!(0x24, "Lockdown"),
    never!(0x25, "Fabric Zoning Lookup"),
    never!(0x28, "Clear Exported NVM Resource Configuration"),
    never!(0x29, "Fabric Zoning Send"),
    never!(0x2a, "Create Exported NVM Subsystem"),
    never!(0x2d, "Manage Exported NVM Subsystem"),
    never!(0x31, "Manage Exported Namespace"),
    never!(0x35, "Manage Exported Port"),
    never!(0x38, "Cross-Controller Reset"),
    never!(0x39, "Send Discovery Log Page"),
    never!(0x3d, "Track Send"),
    never!(0x3e, "Track Receive"),
    never!(0x41, "Migration Send"),
    never!(0x42, "Migration Receive"),
    never!(0x45, "Controller Data Queue"),
    row!(
        0x7c,
        "Doorbell Buffer Config",
        Layout::of_controller(true, &[]),
        Rule::VirtualOnly,
        DOORBELL_BUFFER_CONFIG
    ),
    never!(0x7f, "Fabrics Commands"),
    row!(
        0x80,
        "Format NVM",
        Layout::of_namespace(false, owner::FORMAT_NVM),
        Rule::Decode(owner::format_nvm),
        FORMAT_NVM
    ),
    row!(
        0x81,
        "Security Send",
        Layout::of_namespace(true, owner::SECURITY),
        Rule::Decode(owner::security_send),
        SECURITY_SEND
    ),
    row!(
        0x82,
        "Security Receive",
        Layout::of_namespace(true, owner::SECURITY),
        Rule::Decode(owner::security_receive),
        SECURITY_RECEIVE
    ),
    row!(
        0x84,
        "Sanitize",
        Layout::of_controller(false, owner::SANITIZE),
        Rule::Decode(owner::sanitize),
        SANITIZE
    ),
    never!(0x85, "Load Program"),
    row!(
        0x86,
        "Get LBA Status",
        Layout::of_namespace(true, information::GET_LBA_STATUS),
        Rule::Decode(information::get_lba_status),
        GET_LBA_STATUS
    ),
    never!(0x88, "Program Activation Management"),
    never!(0x89, "Memory Range Set Management"),
    never!(0x8c, "Sanitize Namespace"),
];
