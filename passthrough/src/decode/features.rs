//! Get Features and Set Features (base specification 2.0, 5.15 and 5.27).

use super::field::{Field, field};
use super::request::{BROADCAST, Meaning, Request, View};
use crate::command::{Class, Persistence, Scope};
use crate::reason::Reason;

pub(super) const GET_FEATURES: &[Field] = &[
    field("FID", 10, 7, 0),
    field("SEL", 10, 10, 8),
    field("", 11, 31, 0),
    field("UIDX", 14, 6, 0),
];

pub(super) const SET_FEATURES: &[Field] = &[
    field("FID", 10, 7, 0),
    field("SV", 10, 31, 31),
    field("", 11, 31, 0),
    field("", 12, 31, 0),
    field("", 13, 31, 0),
    field("UIDX", 14, 6, 0),
    field("", 15, 31, 0),
];

const VOLATILE_WRITE_CACHE: u8 = 0x06;
const HOST_IDENTIFIER: u8 = 0x81;
const WRITE_PROTECTION: u8 = 0x84;

/// Who may set a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// A client may: it is the virtual controller's. The owner may set the controller's.
    Virtual,
    /// A client may set the virtual controller's; the controller's belongs to the driver.
    VirtualOnly,
    /// The owner alone.
    Owner,
    /// Nobody: it hands addresses to the controller, or would undo what the driver has set.
    Never,
}

/// How far a feature reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Controller,
    /// Each namespace has its own.
    Namespace,
    Subsystem,
}

struct Feature {
    name: &'static str,
    setting: Setting,
    reach: Reach,
    /// Bytes of its data; 0 where dword 11 is its value.
    data: u16,
    /// Bits of CDW11, CDW12, CDW13 and CDW15 that Set Features may have.
    words: [u32; 4],
}

const fn feature(
    name: &'static str,
    setting: Setting,
    reach: Reach,
    data: u16,
    words: [u32; 4],
) -> Option<Feature> {
    Some(Feature {
        name,
        setting,
        reach,
        data,
        words,
    })
}

/// What a Feature Identifier names. Those of vendors and those not listed are refused.
const fn known(fid: u8) -> Option<Feature> {
    use Reach::{Controller, Namespace, Subsystem};
    use Setting::{Never, Owner, Virtual, VirtualOnly};
    match fid {
        0x01 => feature(
            "Arbitration",
            Virtual,
            Controller,
            0,
            [0xffff_ff07, 0, 0, 0],
        ),
        0x02 => feature("Power Management", Owner, Controller, 0, [0xff, 0, 0, 0]),
        0x03 => feature("LBA Range Type", Owner, Namespace, 4096, [0x3f, 0, 0, 0]),
        0x04 => feature(
            "Temperature Threshold",
            Virtual,
            Controller,
            0,
            [0x01ff_ffff, 0, 0, 0],
        ),
        0x05 => feature("Error Recovery", Virtual, Namespace, 0, [0x1_ffff, 0, 0, 0]),
        0x06 => feature("Volatile Write Cache", Virtual, Controller, 0, [1, 0, 0, 0]),
        0x07 => feature(
            "Number of Queues",
            VirtualOnly,
            Controller,
            0,
            [u32::MAX, 0, 0, 0],
        ),
        0x08 => feature(
            "Interrupt Coalescing",
            VirtualOnly,
            Controller,
            0,
            [0xffff, 0, 0, 0],
        ),
        0x09 => feature(
            "Interrupt Vector Configuration",
            VirtualOnly,
            Controller,
            0,
            [0x1_ffff, 0, 0, 0],
        ),
        0x0a => feature("Write Atomicity Normal", Owner, Controller, 0, [1, 0, 0, 0]),
        0x0b => feature(
            "Asynchronous Event Configuration",
            VirtualOnly,
            Controller,
            0,
            [u32::MAX, 0, 0, 0],
        ),
        0x0c => feature(
            "Autonomous Power State Transition",
            Owner,
            Controller,
            256,
            [1, 0, 0, 0],
        ),
        0x0d => feature("Host Memory Buffer", Never, Controller, 4096, [0, 0, 0, 0]),
        0x0e => feature("Timestamp", Virtual, Controller, 8, [0, 0, 0, 0]),
        0x0f => feature("Keep Alive Timer", Never, Controller, 0, [0, 0, 0, 0]),
        0x10 => feature(
            "Host Controlled Thermal Management",
            Owner,
            Controller,
            0,
            [u32::MAX, 0, 0, 0],
        ),
        0x11 => feature(
            "Non-Operational Power State Config",
            Owner,
            Controller,
            0,
            [1, 0, 0, 0],
        ),
        0x12 => feature(
            "Read Recovery Level Config",
            Owner,
            Subsystem,
            0,
            [0xffff, 0xf, 0, 0],
        ),
        0x13 => feature(
            "Predictable Latency Mode Config",
            Owner,
            Subsystem,
            512,
            [0xffff, 1, 0, 0],
        ),
        0x14 => feature(
            "Predictable Latency Mode Window",
            Owner,
            Subsystem,
            0,
            [0xffff, 7, 0, 0],
        ),
        0x15 => feature(
            "LBA Status Information Report Interval",
            Owner,
            Controller,
            0,
            [u32::MAX, 0, 0, 0],
        ),
        0x16 => feature(
            "Host Behavior Support",
            VirtualOnly,
            Controller,
            512,
            [0, 0, 0, 0],
        ),
        0x17 => feature("Sanitize Config", Owner, Subsystem, 0, [1, 0, 0, 0]),
        0x18 => feature(
            "Endurance Group Event Configuration",
            Owner,
            Subsystem,
            0,
            [0x00ff_ffff, 0, 0, 0],
        ),
        0x19 => feature(
            "I/O Command Set Profile",
            Never,
            Controller,
            0,
            [0, 0, 0, 0],
        ),
        0x1a => feature("Spinup Control", Owner, Subsystem, 0, [1, 0, 0, 0]),
        0x21 => feature("Controller Data Queue", Never, Controller, 0, [0, 0, 0, 0]),
        0x7d => feature(
            "Enhanced Controller Metadata",
            Owner,
            Controller,
            4096,
            [0x6000, 0, 0, 0],
        ),
        0x7e => feature(
            "Controller Metadata",
            Owner,
            Controller,
            4096,
            [0x6000, 0, 0, 0],
        ),
        0x7f => feature(
            "Namespace Metadata",
            Owner,
            Namespace,
            4096,
            [0x6000, 0, 0, 0],
        ),
        0x80 => feature(
            "Software Progress Marker",
            Owner,
            Controller,
            0,
            [0xff, 0, 0, 0],
        ),
        0x81 => feature("Host Identifier", Owner, Subsystem, 8, [1, 0, 0, 0]),
        0x82 => feature(
            "Reservation Notification Mask",
            Owner,
            Namespace,
            0,
            [0xe, 0, 0, 0],
        ),
        0x83 => feature("Reservation Persistence", Owner, Namespace, 0, [1, 0, 0, 0]),
        0x84 => feature(
            "Namespace Write Protection Config",
            Owner,
            Namespace,
            0,
            [7, 0, 0, 0],
        ),
        0x85 => feature(
            "Boot Partition Write Protection Config",
            Owner,
            Subsystem,
            0,
            [0x3f, 0, 0, 0],
        ),
        _ => None,
    }
}

impl Feature {
    /// Bytes of its data in this command.
    fn data(&self, fid: u8, dword11: u32) -> u64 {
        match fid {
            // EXHID: an identifier of 128 bits.
            HOST_IDENTIFIER if dword11 & 1 != 0 => 16,
            _ => u64::from(self.data),
        }
    }
}

/// Get Features: it reads, and changes nothing.
pub(super) fn get(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let fid = request.bits::<10>(7, 0) as u8;
    let select = request.bits::<10>(10, 8);
    let feature = known(fid).ok_or(Reason::FeatureNotOffered)?;
    if select > 3 {
        return Err(Reason::IllegalValue);
    }
    let meaning = match request.view {
        View::Owner => Meaning::new(Class::Information, Scope::Controller),
        View::Client => match feature.setting {
            Setting::Virtual | Setting::VirtualOnly => Meaning::virtual_controller(),
            Setting::Owner if fid == POWER_MANAGEMENT || fid == WRITE_ATOMICITY => {
                Meaning::virtual_controller()
            }
            Setting::Owner | Setting::Never => return Err(Reason::FeatureNotOffered),
        },
    };
    // Supported Capabilities come in the completion.
    let length = if select == 3 {
        0
    } else {
        feature.data(fid, request.word::<11>())
    };
    Ok(meaning.receives(length).selects(fid, feature.name))
}

const POWER_MANAGEMENT: u8 = 0x02;
const WRITE_ATOMICITY: u8 = 0x0a;

/// Set Features.
pub(super) fn set(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let fid = request.bits::<10>(7, 0) as u8;
    let save = request.bits::<10>(31, 31) != 0;
    let dword11 = request.word::<11>();
    let feature = known(fid).ok_or(Reason::FeatureNotOffered)?;
    if feature.setting == Setting::Never {
        return Err(Reason::FeatureNotOffered);
    }
    let words = [
        dword11,
        request.word::<12>(),
        request.word::<13>(),
        request.word::<15>(),
    ];
    if words
        .iter()
        .zip(&feature.words)
        .any(|(word, known)| word & !known != 0)
    {
        return Err(Reason::ReservedBit);
    }
    let length = feature.data(fid, dword11);
    // Nothing that the virtual controller keeps has the real cache turned off.
    let virtual_value = fid != VOLATILE_WRITE_CACHE || dword11 & 1 != 0;
    if request.view == View::Client
        && virtual_value
        && matches!(feature.setting, Setting::Virtual | Setting::VirtualOnly)
    {
        if save {
            return Err(Reason::NotSaveable);
        }
        return Ok(Meaning::virtual_controller()
            .sends(length)
            .lasts(Persistence::UntilReset)
            .selects(fid, feature.name));
    }
    if feature.setting == Setting::VirtualOnly {
        return Err(Reason::FeatureNotOffered);
    }
    let scope = match feature.reach {
        Reach::Namespace => request.namespaces()?,
        Reach::Controller | Reach::Subsystem if !matches!(request.nsid(), 0 | BROADCAST) => {
            return Err(Reason::IllegalValue);
        }
        Reach::Controller => Scope::Controller,
        Reach::Subsystem => Scope::Subsystem,
    };
    let persistence = match (fid, dword11 & 7) {
        // Permanent write protection, and until a power cycle.
        (WRITE_PROTECTION, 3) => Persistence::Permanent,
        (WRITE_PROTECTION, 4..) => return Err(Reason::IllegalValue),
        (WRITE_PROTECTION, _) => Persistence::Media,
        _ if save => Persistence::Media,
        _ => Persistence::UntilReset,
    };
    Ok(Meaning::new(Class::Owner, scope)
        .sends(length)
        .lasts(persistence)
        .selects(fid, feature.name))
}
