//! What the decoder says of an entry, beside what the entry says.

use crate::bodies_each;
use crate::common::bodies::{Bodies, View};
use crate::common::client::Client;
use crate::common::medium::How;
use crate::common::{Dwords, oracle, seeded};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_passthrough::{
    Access, Class, CommandSet, DecodedCommand, Decoder, Geometry, QueueKind, Scope,
};

const BLOCKS: u64 = 1100;

fn geometry() -> Geometry {
    Geometry {
        command_set: CommandSet::NVM,
        blocks: BLOCKS,
        block_shift: 9,
        max_transfer: 128 << 10,
        max_blocks: 1 << 16,
        copy_ranges: 128,
        copy_range_blocks: 4096,
        copy_blocks: 65_536,
    }
}

/// A client that nobody serves: its memory and its bodies are all that is wanted.
fn loner() -> (Client, Bodies) {
    let emulator = Emulator::new("size=1M,stepped".parse().unwrap()).unwrap();
    let view = View {
        namespaces: vec![(1, BLOCKS, vec![1000])],
        foreign_namespaces: vec![2, 3, 77],
        real_blocks: vec![900, 1000, 2000, 3000, 4096],
        foreign_addresses: vec![1 << 33, 0x10_0000],
    };
    let client = Client::new(emulator, 1 << 32);
    (client, Bodies::new(seeded("entries"), view))
}

fn list_of(client: &Client, entry: &Dwords, bytes: usize) -> Option<Vec<u8>> {
    if bytes == 0 {
        return Some(Vec::new());
    }
    let prp1 = u64::from(entry[7]) << 32 | u64::from(entry[6]);
    let whole = bytes.next_multiple_of(8) as u64;
    let inside = prp1 >= client.memory.base
        && prp1.checked_add(whole)? <= client.memory.base + client.memory.len() as u64;
    (inside && prp1.is_multiple_of(8)).then(|| client.memory.read(prp1, bytes))
}

/// Whether what the decoder says of a command is what the entry says.
fn agrees(decoded: &DecodedCommand<'_>, entry: &Dwords, list: &[u8]) -> Result<(), String> {
    let meaning = oracle::io(entry, BLOCKS, list)?;
    let said: Vec<_> = decoded
        .extents
        .iter()
        .map(|extent| {
            let how = match extent.access {
                Access::Read | Access::Probe => How::Read,
                _ => How::Changed,
            };
            (extent.first, extent.blocks, how)
        })
        .collect();
    if said != meaning.extents {
        return Err(format!("{said:?} instead of {:?}", meaning.extents));
    }
    if decoded.extents.iter().any(|extent| extent.nsid != entry[1]) || decoded.nsid != entry[1] {
        return Err("another namespace".to_owned());
    }
    if decoded.length != meaning.bytes {
        return Err(format!(
            "{} bytes instead of {}",
            decoded.length, meaning.bytes
        ));
    }
    let scope = if entry[0] as u8 == 0 {
        Scope::Namespace
    } else {
        Scope::Extents
    };
    if decoded.scope != scope {
        return Err(format!("the scope {:?}", decoded.scope));
    }
    Ok(())
}

/// Whatever the decoder lets through means what it says; and the rest of what is right it lets through.
#[test]
fn the_decoder_reads_what_the_entry_says() {
    let (client, mut bodies) = loner();
    let mut decoder = Decoder::new();
    for opcode in 0..=u8::MAX {
        let (mut passed, mut right) = (0, 0);
        for _ in 0..bodies_each() {
            let entry = bodies.io(&client, opcode);
            let granted = (entry[1] == 1).then(geometry);
            let Ok(bytes) = Decoder::list_bytes(QueueKind::Io, CommandSet::NVM, &entry) else {
                continue;
            };
            let Some(list) = list_of(&client, &entry, bytes) else {
                continue;
            };
            let meant = granted.as_ref().map(|_| oracle::io(&entry, BLOCKS, &list));
            right += u64::from(matches!(meant, Some(Ok(_))));
            match decoder.decode(QueueKind::Io, granted.as_ref(), &entry, &list) {
                // No client is ever granted what is the owner's.
                Ok(decoded) if matches!(decoded.class, Class::Owner | Class::Vendor) => {}
                Ok(decoded) => {
                    passed += 1;
                    assert!(
                        granted.is_some(),
                        "{entry:x?} names no namespace of the client"
                    );
                    if let Err(what) = agrees(&decoded, &entry, &list) {
                        panic!("{entry:x?} passed as {decoded:x?}: {what}");
                    }
                }
                Err(refusal) => assert!(
                    refusal.status.with_dnr() == refusal.status && !refusal.status.is_success(),
                    "{refusal:?}"
                ),
            }
        }
        let known = [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19].contains(&opcode);
        if known {
            // Limits that the oracle does not know may refuse some of them, not most.
            assert!(
                passed * 4 > right && right > 0,
                "opcode {opcode:#x}: {passed} of {right} passed"
            );
        } else {
            assert_eq!(passed, 0, "opcode {opcode:#x}");
        }
    }
}

/// Admin opcodes that never reach a controller which is lent, for anybody.
const NEVER: &[u8] = &[
    0x00, 0x01, 0x04, 0x05, 0x18, 0x1c, 0x1d, 0x1e, 0x21, 0x22, 0x24, 0x25, 0x28, 0x29, 0x2a, 0x2d,
    0x31, 0x35, 0x38, 0x39, 0x3d, 0x3e, 0x41, 0x42, 0x45, 0x7c, 0x7f, 0x85, 0x88, 0x89,
];

/// Admin commands of a client are answered by its virtual controller, or ask for a class that no ordinary policy grants.
#[test]
fn no_admin_command_means_anything_to_the_device() {
    let (client, mut bodies) = loner();
    let mut decoder = Decoder::new();
    let mut owner = Decoder::for_owner();
    for opcode in 0..=u8::MAX {
        for _ in 0..bodies_each() {
            let entry = bodies.admin(&client, opcode);
            let granted = (entry[1] == 1).then(geometry);
            if let Ok(decoded) = decoder.decode(QueueKind::Admin, granted.as_ref(), &entry, &[]) {
                let harmless = match decoded.class {
                    Class::Virtual => decoded.scope == Scope::VirtualController,
                    Class::BlockStatus => {
                        opcode == 0x86
                            && entry[1] == 1
                            && decoded.extents.iter().all(|extent| {
                                u128::from(extent.first) + u128::from(extent.blocks)
                                    <= u128::from(BLOCKS)
                            })
                    }
                    Class::Format
                    | Class::Firmware
                    | Class::Security
                    | Class::NamespaceManagement => {
                        [0x0d, 0x10, 0x11, 0x15, 0x80, 0x81, 0x82].contains(&opcode)
                    }
                    Class::Owner | Class::Vendor => true,
                    _ => false,
                };
                assert!(harmless, "{entry:x?} passed as {decoded:x?}");
            }
            if let Ok(decoded) = owner.decode(QueueKind::Admin, granted.as_ref(), &entry, &[]) {
                assert!(
                    !NEVER.contains(&opcode),
                    "{entry:x?} passed for the owner as {decoded:x?}"
                );
                let features = opcode == 0x09 && [0x0d, 0x21].contains(&(entry[10] as u8));
                assert!(!features, "{entry:x?} passed for the owner as {decoded:x?}");
            }
        }
    }
    // The bodies were drawn: the same memory is read by every list of theirs.
    assert!(client.guards_live());
}
