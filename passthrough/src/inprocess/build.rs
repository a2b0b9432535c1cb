//! The entry that the controller gets: made of what was decoded, never of what was given.

use nvme_vfio_queues::{Command, DataPointer};

use crate::command::{Access, Class, DecodedCommand, Extent, Flags};
use crate::gate::Passed;

/// An entry without a data pointer, and the range list that it needs.
pub(super) struct Built {
    pub(super) command: Command,
    /// The data of a Dataset Management or Copy command; empty for every other.
    pub(super) list: Vec<u8>,
}

/// Makes the entry of a command that has passed.
pub(super) fn build(passed: &Passed<'_>) -> Built {
    let decoded = passed.command();
    let command = Command {
        opcode: decoded.opcode,
        nsid: decoded.nsid,
        ..Command::ZERO.with_data(DataPointer::NONE)
    };
    let Some((first, rest)) = decoded.extents.split_first() else {
        let [cdw2, cdw3, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = decoded.operands;
        return Built {
            command: Command {
                cdw2,
                cdw3,
                cdw10,
                cdw11,
                cdw12,
                cdw13,
                cdw14,
                cdw15,
                ..command
            },
            list: Vec::new(),
        };
    };
    match decoded.class {
        Class::Deallocate => Built {
            command: Command {
                cdw10: count(decoded.extents.len()),
                cdw11: attributes(decoded.flags),
                ..command
            },
            list: decoded.extents.iter().flat_map(range).collect(),
        },
        Class::Copy => Built {
            command: Command {
                cdw12: count(rest.len()) | control(decoded.flags),
                ..at(command, first.first)
            },
            list: rest.iter().flat_map(source).collect(),
        },
        Class::BlockStatus => Built {
            command: Command {
                cdw12: u32::try_from(decoded.length / 4).unwrap_or(u32::MAX) - 1,
                // More than the field holds is only ever asked for by a 0, which goes to the end of the namespace.
                cdw13: u32::from(u16::try_from(first.blocks).unwrap_or(0))
                    | u32::from(decoded.selector) << 24,
                ..at(command, first.first)
            },
            list: Vec::new(),
        },
        _ => Built {
            command: Command {
                cdw12: blocks(first) | control(decoded.flags) | deallocate(decoded),
                ..at(command, first.first)
            },
            list: Vec::new(),
        },
    }
}

/// Dwords 10 and 11: a logical block address.
fn at(command: Command, lba: u64) -> Command {
    Command {
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        ..command
    }
}

/// A number of things, counted from 0 in eight bits. The decoder has no list of none, nor of more than 256.
fn count(things: usize) -> u32 {
    (things.wrapping_sub(1) & 0xff) as u32
}

/// A number of blocks, counted from 0 in sixteen bits. The decoder has none of none, nor of more than 65,536.
fn blocks(extent: &Extent) -> u32 {
    (extent.blocks.wrapping_sub(1) & 0xffff) as u32
}

fn control(flags: Flags) -> u32 {
    u32::from(flags.contains(Flags::FORCE_UNIT_ACCESS)) << 30
        | u32::from(flags.contains(Flags::LIMITED_RETRY)) << 31
}

/// DEAC of Write Zeroes.
fn deallocate(decoded: &DecodedCommand<'_>) -> u32 {
    u32::from(decoded.class == Class::WriteZeroes && decoded.flags.contains(Flags::DEALLOCATE))
        << 25
}

/// Dword 11 of Dataset Management.
fn attributes(flags: Flags) -> u32 {
    u32::from(flags.contains(Flags::INTEGRAL_READ))
        | u32::from(flags.contains(Flags::INTEGRAL_WRITE)) << 1
        | u32::from(flags.contains(Flags::DEALLOCATE)) << 2
}

/// A range of Dataset Management (NVM command set 1.0, 3.2.3). Context attributes are not passed on.
fn range(extent: &Extent) -> [u8; 16] {
    debug_assert!(matches!(extent.access, Access::Deallocate | Access::Hint));
    let mut bytes = [0; 16];
    let (_, rest) = bytes.split_at_mut(4);
    let (length, first) = rest.split_at_mut(4);
    length.copy_from_slice(&(extent.blocks as u32).to_le_bytes());
    first.copy_from_slice(&extent.first.to_le_bytes());
    bytes
}

/// A source range of Copy in descriptor format 0 (NVM command set 1.0, 3.2.2).
fn source(extent: &Extent) -> [u8; 32] {
    debug_assert!(extent.access == Access::Read);
    let mut bytes = [0; 32];
    let (_, rest) = bytes.split_at_mut(8);
    let (first, rest) = rest.split_at_mut(8);
    let (length, _) = rest.split_at_mut(2);
    first.copy_from_slice(&extent.first.to_le_bytes());
    length.copy_from_slice(&(blocks(extent) as u16).to_le_bytes());
    bytes
}
