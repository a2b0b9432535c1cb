//! What becomes of each of the 256 opcodes of each queue, written down a second time.

use std::ops::RangeInclusive;

use super::super::request::View;
use super::super::table::Rule;
use super::{VIEWS, table};
use crate::command::QueueKind;

/// What may become of an opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody defines it.
    Unknown,
    /// It never passes.
    Never,
    /// It may pass for this view, depending on what it says.
    MayPass,
}
use Fate::{MayPass, Never, Unknown};

type Fates = &'static [(RangeInclusive<u8>, Fate, Fate)];

/// Opcodes of the admin queue, for a client and for the owner.
const ADMIN: Fates = &[
    (0x00..=0x01, MayPass, Never),
    (0x02..=0x02, MayPass, MayPass),
    (0x03..=0x03, Unknown, Unknown),
    (0x04..=0x05, MayPass, Never),
    (0x06..=0x06, MayPass, MayPass),
    (0x07..=0x07, Unknown, Unknown),
    (0x08..=0x08, MayPass, Never),
    (0x09..=0x0a, MayPass, MayPass),
    (0x0b..=0x0b, Unknown, Unknown),
    (0x0c..=0x0c, MayPass, Never),
    (0x0d..=0x0d, MayPass, MayPass),
    (0x0e..=0x0f, Unknown, Unknown),
    (0x10..=0x11, MayPass, MayPass),
    (0x12..=0x13, Unknown, Unknown),
    (0x14..=0x15, MayPass, MayPass),
    (0x16..=0x17, Unknown, Unknown),
    (0x18..=0x18, Never, Never),
    (0x19..=0x1a, MayPass, MayPass),
    (0x1b..=0x1b, Unknown, Unknown),
    (0x1c..=0x1e, Never, Never),
    (0x1f..=0x1f, Unknown, Unknown),
    (0x20..=0x20, MayPass, MayPass),
    (0x21..=0x22, Never, Never),
    (0x23..=0x23, Unknown, Unknown),
    (0x24..=0x25, Never, Never),
    (0x26..=0x27, Unknown, Unknown),
    (0x28..=0x2a, Never, Never),
    (0x2b..=0x2c, Unknown, Unknown),
    (0x2d..=0x2d, Never, Never),
    (0x2e..=0x30, Unknown, Unknown),
    (0x31..=0x31, Never, Never),
    (0x32..=0x34, Unknown, Unknown),
    (0x35..=0x35, Never, Never),
    (0x36..=0x37, Unknown, Unknown),
    (0x38..=0x39, Never, Never),
    (0x3a..=0x3c, Unknown, Unknown),
    (0x3d..=0x3e, Never, Never),
    (0x3f..=0x40, Unknown, Unknown),
    (0x41..=0x42, Never, Never),
    (0x43..=0x44, Unknown, Unknown),
    (0x45..=0x45, Never, Never),
    (0x46..=0x7b, Unknown, Unknown),
    (0x7c..=0x7c, MayPass, Never),
    (0x7d..=0x7e, Unknown, Unknown),
    (0x7f..=0x7f, Never, Never),
    (0x80..=0x82, MayPass, MayPass),
    (0x83..=0x83, Unknown, Unknown),
    (0x84..=0x84, MayPass, MayPass),
    (0x85..=0x85, Never, Never),
    (0x86..=0x86, MayPass, MayPass),
    (0x87..=0x87, Unknown, Unknown),
    (0x88..=0x89, Never, Never),
    (0x8a..=0x8b, Unknown, Unknown),
    (0x8c..=0x8c, Never, Never),
    (0x8d..=0xbf, Unknown, Unknown),
    (0xc0..=0xff, Never, MayPass),
];

/// Opcodes of I/O queues, for a client and for the owner.
const IO: Fates = &[
    (0x00..=0x02, MayPass, MayPass),
    (0x03..=0x03, Unknown, Unknown),
    (0x04..=0x05, MayPass, MayPass),
    (0x06..=0x07, Unknown, Unknown),
    (0x08..=0x09, MayPass, MayPass),
    (0x0a..=0x0b, Unknown, Unknown),
    (0x0c..=0x0e, MayPass, MayPass),
    (0x0f..=0x10, Unknown, Unknown),
    (0x11..=0x12, MayPass, MayPass),
    (0x13..=0x14, Unknown, Unknown),
    (0x15..=0x15, MayPass, MayPass),
    (0x16..=0x17, Unknown, Unknown),
    (0x18..=0x18, Never, Never),
    (0x19..=0x19, MayPass, MayPass),
    (0x1a..=0x1c, Unknown, Unknown),
    (0x1d..=0x1d, MayPass, MayPass),
    (0x1e..=0x7e, Unknown, Unknown),
    (0x7f..=0x7f, Never, Never),
    (0x80..=0xff, Never, MayPass),
];

#[test]
fn every_opcode_has_its_fate() {
    for (queue, fates) in [(QueueKind::Admin, ADMIN), (QueueKind::Io, IO)] {
        let mut next = 0_u16;
        for (opcodes, client, owner) in fates {
            assert_eq!(u16::from(*opcodes.start()), next, "{queue:?}");
            next = u16::from(*opcodes.end()) + 1;
            for opcode in opcodes.clone() {
                let row = table(queue)[usize::from(opcode)];
                for view in VIEWS {
                    let fate = match (&row.rule, view) {
                        (Rule::Unknown, _) => Unknown,
                        (Rule::Never, _)
                        | (Rule::VirtualOnly, View::Owner)
                        | (Rule::Vendor, View::Client) => Never,
                        _ => MayPass,
                    };
                    let wanted = match view {
                        View::Client => client,
                        View::Owner => owner,
                    };
                    assert_eq!(fate, *wanted, "{queue:?} {opcode:02x}h {view:?}");
                }
            }
        }
        assert_eq!(next, 256);
    }
}

/// The specification gives opcodes the direction of their data in bits 1:0, with a few that it names otherwise.
#[test]
fn names_are_those_of_the_queues_crate() {
    use nvme_vfio_queues::{AdminOpcode, NvmOpcode};
    for opcode in 0..=u8::MAX {
        let ours = table(QueueKind::Admin)[usize::from(opcode)];
        if let Some(name) = AdminOpcode(opcode).name() {
            assert_eq!(ours.name, name, "{opcode:02x}h");
        }
        let ours = table(QueueKind::Io)[usize::from(opcode)];
        // Those of zoned namespaces have no decoder.
        if let Some(name) = NvmOpcode(opcode).name()
            && !(0x79..=0x7d).contains(&opcode)
        {
            assert_eq!(ours.name, name, "{opcode:02x}h");
        }
    }
}
