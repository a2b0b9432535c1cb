//! A command in words.

use std::fmt::Write as _;

use super::record::{Decoded, What};
use crate::command::{Access, Class, Direction, Extent, Flags, Persistence, QueueKind, Scope};
use crate::decode;

/// The short name of a class: as a policy has it, where a policy can grant it.
pub(super) const fn class(class: Class) -> &'static str {
    match class {
        Class::Read => "read",
        Class::Write => "write",
        Class::Flush => "flush",
        Class::Compare => "compare",
        Class::WriteZeroes => "write-zeroes",
        Class::Deallocate => "deallocate",
        Class::Verify => "verify",
        Class::Copy => "copy",
        Class::Poison => "poison",
        Class::BlockStatus => "block-status",
        Class::Virtual => "virtual",
        Class::Format => "format",
        Class::Firmware => "firmware",
        Class::Security => "security",
        Class::NamespaceManagement => "namespace-management",
        Class::Information => "information",
        Class::Owner => "owner",
        Class::Vendor => "vendor",
    }
}

pub(super) const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::None => "none",
        Direction::ToController => "to-controller",
        Direction::FromController => "from-controller",
        Direction::Both => "both",
    }
}

pub(super) const fn access(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Probe => "probe",
        Access::Write => "write",
        Access::Zero => "zero",
        Access::Deallocate => "deallocate",
        Access::Hint => "hint",
        Access::Poison => "poison",
    }
}

pub(super) const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Extents => "extents",
        Scope::Namespace => "namespace",
        Scope::AllNamespaces => "all-namespaces",
        Scope::VirtualController => "virtual-controller",
        Scope::Controller => "controller",
        Scope::Subsystem => "subsystem",
    }
}

pub(super) const fn persistence(persistence: Persistence) -> &'static str {
    match persistence {
        Persistence::None => "none",
        Persistence::UntilReset => "until-reset",
        Persistence::Media => "media",
        Persistence::Permanent => "permanent",
    }
}

pub(super) fn flags(flags: Flags) -> Vec<&'static str> {
    let known = [
        (Flags::FORCE_UNIT_ACCESS, "force-unit-access"),
        (Flags::LIMITED_RETRY, "limited-retry"),
        (Flags::DEALLOCATE, "deallocate"),
        (Flags::INTEGRAL_READ, "integral-read"),
        (Flags::INTEGRAL_WRITE, "integral-write"),
    ];
    let set = known.iter().filter(|(flag, _)| flags.contains(*flag));
    set.map(|(_, name)| *name).collect()
}

/// What is done to blocks.
const fn verb(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Probe => "look at",
        Access::Write => "write",
        Access::Zero => "zero",
        Access::Deallocate => "deallocate",
        Access::Hint => "hint at",
        Access::Poison => "make unreadable",
    }
}

/// What can be said of an entry that was not decoded. It is what the client wrote, and nothing more.
pub(super) struct Raw {
    pub(super) opcode: u8,
    pub(super) name: &'static str,
    pub(super) nsid: u32,
    /// The blocks that it names, for commands that name them in their entry.
    pub(super) extent: Option<Extent>,
}

impl Raw {
    pub(super) fn new(queue: QueueKind, entry: &[u32; 16]) -> Raw {
        let opcode = (entry[0] & 0xff) as u8;
        let nsid = entry[1];
        let access = match (queue, opcode) {
            (QueueKind::Io, 0x01) => Some(Access::Write),
            (QueueKind::Io, 0x02) => Some(Access::Read),
            (QueueKind::Io, 0x04) => Some(Access::Poison),
            (QueueKind::Io, 0x05 | 0x0c) => Some(Access::Probe),
            (QueueKind::Io, 0x08) => Some(Access::Zero),
            _ => None,
        };
        Raw {
            opcode,
            name: decode::name(queue, opcode),
            nsid,
            extent: access.map(|access| Extent {
                nsid,
                first: u64::from(entry[10]) | u64::from(entry[11]) << 32,
                blocks: u64::from(entry[12] & 0xffff) + 1,
                access,
            }),
        }
    }
}

/// Dwords in hexadecimal.
pub(super) fn dwords(dwords: &[u32]) -> String {
    let mut text = String::with_capacity(dwords.len() * 9);
    for (index, dword) in dwords.iter().enumerate() {
        let gap = if index == 0 { "" } else { " " };
        // A string takes everything.
        let _ = write!(text, "{gap}{dword:08x}");
    }
    text
}

/// What a client asked for, in a sentence.
pub(super) fn sentence(what: &What) -> String {
    match what {
        What::Decoded(decoded) => decoded_sentence(decoded),
        What::Raw { queue, entry } => {
            let raw = Raw::new(*queue, entry);
            let queue = match queue {
                QueueKind::Admin => "the admin queue",
                QueueKind::Io => "an I/O queue",
            };
            let mut text = format!("{} (opcode {:02x}h) on {queue}", raw.name, raw.opcode);
            match &raw.extent {
                Some(extent) => {
                    text.push_str(": ");
                    blocks(&mut text, extent);
                }
                None if raw.nsid != 0 => {
                    let _ = write!(text, ", namespace {}", raw.nsid);
                }
                None => {}
            }
            text
        }
    }
}

fn decoded_sentence(decoded: &Decoded) -> String {
    let mut text = decoded.name.to_owned();
    if !decoded.detail.is_empty() {
        let _ = write!(text, " ({})", decoded.detail);
    }
    for (index, extent) in decoded.extents().iter().enumerate() {
        text.push_str(if index == 0 { ": " } else { ", " });
        blocks(&mut text, extent);
    }
    let kept = u32::try_from(decoded.extents().len()).unwrap_or(u32::MAX);
    let more = decoded.ranges.saturating_sub(kept);
    if more > 0 {
        let ranges = if more == 1 { "range" } else { "ranges" };
        let _ = write!(
            text,
            ", and {more} more {ranges}, {} blocks in all",
            decoded.blocks
        );
    }
    match decoded.scope {
        Scope::Extents => {}
        Scope::Namespace => {
            let _ = write!(text, "; reaches namespace {} as a whole", decoded.nsid);
        }
        Scope::AllNamespaces => text.push_str("; reaches all namespaces"),
        Scope::VirtualController => text.push_str("; on the client's own virtual controller"),
        Scope::Controller => text.push_str("; reaches the controller"),
        Scope::Subsystem => text.push_str("; reaches the NVM subsystem"),
    }
    if decoded.persistence == Persistence::Permanent {
        text.push_str("; cannot be undone");
    }
    text
}

/// `read blocks 8 to 15 of namespace 1`.
fn blocks(text: &mut String, extent: &Extent) {
    let verb = verb(extent.access);
    let first = extent.first;
    // A string takes everything. What a client names may go past the last block that there can be.
    let _ = match (extent.blocks, first.checked_add(extent.blocks)) {
        (0, _) => write!(text, "{verb} no blocks"),
        (1, _) => write!(text, "{verb} block {first}"),
        (_, Some(end)) => write!(text, "{verb} blocks {first} to {}", end - 1),
        (count, None) => write!(text, "{verb} {count} blocks from {first}"),
    };
    let _ = write!(text, " of namespace {}", extent.nsid);
}
