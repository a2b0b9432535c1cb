//! Identify, Get Log Page and Get LBA Status (base specification 2.0, 5.16 and 5.17; NVM command set specification 1.0, 4.2.1).

use super::field::{Field, field};
use super::request::{Meaning, Request, View};
use crate::command::{Access, Class, Persistence, Scope};
use crate::reason::Reason;

/// Bytes of every Identify data structure.
const PAGE: u64 = 4096;

pub(super) const IDENTIFY: &[Field] = &[
    field("CNS", 10, 7, 0),
    field("CNTID", 10, 31, 16),
    field("CNSSI", 11, 15, 0),
    field("CSI", 11, 31, 24),
    field("UIDX", 14, 6, 0),
];

pub(super) const GET_LOG_PAGE: &[Field] = &[
    field("LID", 10, 7, 0),
    field("LSP", 10, 14, 8),
    field("RAE", 10, 15, 15),
    field("NUMDL", 10, 31, 16),
    field("NUMDU", 11, 15, 0),
    field("LSI", 11, 31, 16),
    field("LPOL", 12, 31, 0),
    field("LPOU", 13, 31, 0),
    field("UIDX", 14, 6, 0),
    field("OT", 14, 23, 23),
    field("CSI", 14, 31, 24),
];

pub(super) const GET_LBA_STATUS: &[Field] = &[
    field("SLBA", 10, 31, 0),
    field("SLBA", 11, 31, 0),
    field("MNDW", 12, 31, 0),
    field("RL", 13, 15, 0),
    field("ATYPE", 13, 31, 24),
];

/// Identify: it reads, and changes nothing.
pub(super) fn identify(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let cns = request.bits::<10>(7, 0) as u8;
    let detail = structure(cns).ok_or(Reason::IllegalValue)?;
    let meaning = match request.view {
        View::Client => Meaning::virtual_controller(),
        View::Owner => Meaning::new(Class::Information, Scope::Controller),
    };
    Ok(meaning.receives(PAGE).selects(cns, detail))
}

/// What a Controller or Namespace Structure value names.
const fn structure(cns: u8) -> Option<&'static str> {
    Some(match cns {
        0x00 => "Namespace",
        0x01 => "Controller",
        0x02 => "Active Namespace ID list",
        0x03 => "Namespace Identification Descriptor list",
        0x04 => "NVM Set List",
        0x05 => "I/O Command Set specific Namespace",
        0x06 => "I/O Command Set specific Controller",
        0x07 => "I/O Command Set specific Active Namespace ID list",
        0x08 => "I/O Command Set Independent Namespace",
        0x09 => "Namespace of a user data format",
        0x0a => "I/O Command Set specific Namespace of a user data format",
        0x10 => "Allocated Namespace ID list",
        0x11 => "Allocated Namespace",
        0x12 => "Namespace Attached Controller list",
        0x13 => "Controller list",
        0x14 => "Primary Controller Capabilities",
        0x15 => "Secondary Controller list",
        0x16 => "Namespace Granularity List",
        0x17 => "UUID List",
        0x18 => "Domain List",
        0x19 => "Endurance Group List",
        0x1a => "I/O Command Set specific Allocated Namespace ID list",
        0x1b => "I/O Command Set specific Allocated Namespace",
        0x1c => "I/O Command Set",
        _ => return None,
    })
}

/// How reading a log page touches the controller.
enum Reading {
    /// Not at all, but for the event that it clears unless asked to retain it.
    Plain,
    /// What is read is consumed, a context is established, or data of users is in it.
    Disturbs,
    /// It does so where bit 0 of LSP is set; the bits above it mean other things.
    Creates,
}

/// What a Log Page Identifier names.
const fn log(lid: u8) -> Option<(&'static str, Reading)> {
    use Reading::{Creates, Disturbs, Plain};
    Some(match lid {
        0x00 => ("Supported Log Pages", Plain),
        0x01 => ("Error Information", Plain),
        0x02 => ("SMART / Health Information", Plain),
        0x03 => ("Firmware Slot Information", Plain),
        0x04 => ("Changed Namespace List", Disturbs),
        0x05 => ("Commands Supported and Effects", Plain),
        0x06 => ("Device Self-test", Plain),
        0x07 => ("Telemetry Host-Initiated", Creates),
        0x08 => ("Telemetry Controller-Initiated", Disturbs),
        0x09 => ("Endurance Group Information", Plain),
        0x0a => ("Predictable Latency Per NVM Set", Plain),
        0x0b => ("Predictable Latency Event Aggregate", Plain),
        0x0c => ("Asymmetric Namespace Access", Plain),
        0x0d => ("Persistent Event Log", Disturbs),
        0x0e => ("LBA Status Information", Plain),
        0x0f => ("Endurance Group Event Aggregate", Plain),
        0x10 => ("Media Unit Status", Plain),
        0x11 => ("Supported Capacity Configuration List", Plain),
        0x12 => ("Feature Identifiers Supported and Effects", Plain),
        0x13 => ("NVMe-MI Commands Supported and Effects", Plain),
        0x14 => ("Command and Feature Lockdown", Plain),
        0x15 => ("Boot Partition", Disturbs),
        0x80 => ("Reservation Notification", Disturbs),
        0x81 => ("Sanitize Status", Plain),
        0xbf => ("Changed Zone List", Disturbs),
        _ => return None,
    })
}

/// Get Log Page.
pub(super) fn get_log_page(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let lid = request.bits::<10>(7, 0) as u8;
    let dwords = request.bits::<10>(31, 16) | request.bits::<11>(15, 0) << 16;
    let length = (u64::from(dwords) + 1) * 4;
    if request.view == View::Client {
        // Which ones there are, and how far they go, the virtual controller says.
        let detail = log(lid).map_or("", |(name, _)| name);
        let meaning = Meaning::virtual_controller();
        return Ok(meaning.receives(length).selects(lid, detail));
    }
    if lid >= 0xc0 {
        return Ok(Meaning::new(Class::Vendor, Scope::Controller)
            .receives(length)
            .selects(lid, "vendor specific"));
    }
    let (name, reading) = log(lid).ok_or(Reason::LogNotOffered)?;
    let disturbs = match reading {
        Reading::Plain => false,
        Reading::Disturbs => true,
        Reading::Creates => request.bits::<10>(8, 8) != 0,
    };
    let clears = request.bits::<10>(15, 15) == 0;
    let class = if disturbs {
        Class::Owner
    } else {
        Class::Information
    };
    let persistence = match (disturbs, clears) {
        (true, _) => Persistence::Media,
        (false, true) => Persistence::UntilReset,
        (false, false) => Persistence::None,
    };
    Ok(Meaning::new(class, Scope::Controller)
        .receives(length)
        .lasts(persistence)
        .selects(lid, name))
}

/// Get LBA Status: an admin command with a range of blocks. A range length of 0 goes to the end of the namespace.
pub(super) fn get_lba_status(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let geometry = *request.namespace()?;
    let action = request.bits::<13>(31, 24) as u8;
    let detail = match action {
        0x02 => "allocated blocks",
        0x10 => "untracked and tracked blocks, after a scan",
        0x11 => "tracked blocks",
        _ => return Err(Reason::IllegalValue),
    };
    let first = request.long::<10, 11>();
    let blocks = match request.bits::<13>(15, 0) {
        0 => geometry.blocks.saturating_sub(first),
        blocks => u64::from(blocks),
    };
    request.touch(&geometry, first, blocks, Access::Probe)?;
    let length = (u64::from(request.word::<12>()) + 1) * 4;
    if length > u64::from(geometry.max_transfer) {
        return Err(Reason::TooLong);
    }
    Ok(Meaning::new(Class::BlockStatus, Scope::Extents)
        .receives(length)
        .selects(action, detail))
}
