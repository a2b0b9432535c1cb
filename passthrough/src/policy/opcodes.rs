//! Which commands are behind each class: asked of the decoder itself, so that what is told is what it does.

use std::collections::BTreeSet;

use crate::command::{Class, CommandSet, Geometry, QueueKind};
use crate::decode::Decoder;

/// A command, and the class that grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifiedOpcode {
    /// The class.
    pub class: Class,
    /// The queue that it comes on.
    pub queue: QueueKind,
    /// Its opcode.
    pub opcode: u8,
    /// Its name in the specification.
    pub name: &'static str,
}

/// A namespace of which a simple command of every kind has blocks.
const GEOMETRY: Geometry = Geometry {
    command_set: CommandSet::NVM,
    blocks: 1 << 20,
    block_shift: 9,
    max_transfer: 1 << 20,
    max_blocks: 65_536,
    copy_ranges: 128,
    copy_range_blocks: 128,
    copy_blocks: 1024,
};

/// A range list of one entry, for Dataset Management as for Copy: all zero, it names no block, or the first.
const LIST: [u8; 64] = [0; 64];

/// Values of CDW10 by which commands choose what they do. The last is a block far from the first.
const CHOICES: [u32; 18] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0x0100, 0x1_0000,
];

/// Every command that the decoder of a client knows, by class, then queue and opcode.
#[must_use]
pub fn opcodes() -> Vec<ClassifiedOpcode> {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for queue in [QueueKind::Admin, QueueKind::Io] {
        for opcode in 0..=u8::MAX {
            for [nsid, cdw10, cdw11, cdw13] in choices() {
                let mut entry = [0; 16];
                (entry[0], entry[1]) = (u32::from(opcode), nsid);
                (entry[10], entry[11], entry[13]) = (cdw10, cdw11, cdw13);
                let list = Decoder::list_bytes(queue, CommandSet::NVM, &entry).unwrap_or(0);
                let Some(list) = LIST.get(..list) else {
                    continue;
                };
                let Ok(command) = decoder.decode(queue, Some(&GEOMETRY), &entry, list) else {
                    continue;
                };
                if seen.insert((command.class, queue == QueueKind::Io, opcode)) {
                    found.push(ClassifiedOpcode {
                        class: command.class,
                        queue,
                        opcode,
                        name: command.name,
                    });
                }
            }
        }
    }
    found.sort_by_key(|one| (one.class, one.queue == QueueKind::Io, one.opcode));
    found
}

/// Namespace, CDW10, CDW11 and CDW13 of the commands that are tried. CDW11 with bit 2 lets a Dataset Management deallocate; CDW13 chooses what a Get LBA Status asks.
fn choices() -> impl Iterator<Item = [u32; 4]> {
    let more = [(0, 0), (4, 0), (512, 0), (0, 0x0200_0001)];
    [1, 0].into_iter().flat_map(move |nsid| {
        CHOICES
            .into_iter()
            .flat_map(move |cdw10| more.map(|(cdw11, cdw13)| [nsid, cdw10, cdw11, cdw13]))
    })
}

#[cfg(test)]
mod tests {
    use super::super::classes::grantable;
    use super::*;

    #[test]
    fn every_class_has_the_commands_of_the_specification() {
        let found = opcodes();
        let of = |class: Class| -> Vec<(QueueKind, u8)> {
            let those = found.iter().filter(|one| one.class == class);
            those.map(|one| (one.queue, one.opcode)).collect()
        };
        let (admin, io) = (QueueKind::Admin, QueueKind::Io);
        for (class, commands) in [
            (Class::Read, &[(io, 0x02)][..]),
            (Class::Write, &[(io, 0x01)]),
            (Class::Flush, &[(io, 0x00)]),
            (Class::Compare, &[(io, 0x05)]),
            (Class::WriteZeroes, &[(io, 0x08)]),
            (Class::Deallocate, &[(io, 0x09)]),
            (Class::Verify, &[(io, 0x0c)]),
            (Class::Copy, &[(io, 0x19)]),
            (Class::Poison, &[(io, 0x04)]),
            (Class::BlockStatus, &[(admin, 0x86)]),
            (Class::Format, &[(admin, 0x80)]),
            (Class::Firmware, &[(admin, 0x10), (admin, 0x11)]),
            (Class::Security, &[(admin, 0x81), (admin, 0x82)]),
            (Class::NamespaceManagement, &[(admin, 0x0d), (admin, 0x15)]),
            (Class::Vendor, &[]),
        ] {
            assert_eq!(of(class), commands, "{class:?}");
        }
        // Those of the virtual controller itself, without which no driver gets far.
        for opcode in [0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c] {
            assert!(
                of(Class::Virtual).contains(&(admin, opcode)),
                "{opcode:#04x}"
            );
        }
        for (word, class) in grantable() {
            assert!(!of(class).is_empty(), "{word}");
        }
    }
}
