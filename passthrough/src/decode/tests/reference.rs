//! A second reading of the commands on blocks, byte by byte in 128 bits: slow, and without a line of the decoder's.

use proptest::prelude::*;

use super::super::request::View;
use super::decoder;
use crate::command::{Access, CommandSet, Geometry, QueueKind};

/// What the reference makes of a command: its blocks, or nothing where it must not pass.
type Touched = Option<Vec<(u128, u128, Access)>>;

fn number(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

fn one(blocks: (u128, u128, Access)) -> Touched {
    Some(vec![blocks])
}

/// Reads an entry that has no bit set which it may not have.
fn reference(admin: bool, bytes: &[u8; 64], list: &[u8], geometry: &Geometry) -> Touched {
    let slba = number(&bytes[40..48]);
    let nlb = number(&bytes[48..50]) + 1;
    let size = 1_u128 << geometry.block_shift;
    let transfer = nlb * size <= u128::from(geometry.max_transfer);
    let count = nlb <= u128::from(geometry.max_blocks);
    if number(&bytes[4..8]) != 7 {
        return None;
    }
    let touched = match (admin, bytes[0]) {
        (false, 0x00) => Some(vec![]),
        (false, 0x01) if transfer => one((slba, nlb, Access::Write)),
        (false, 0x02) if transfer => one((slba, nlb, Access::Read)),
        (false, 0x04) if count => one((slba, nlb, Access::Poison)),
        (false, 0x05) if transfer => one((slba, nlb, Access::Probe)),
        (false, 0x08) if count => one((slba, nlb, Access::Zero)),
        (false, 0x09) if list.len() == (usize::from(bytes[40]) + 1) * 16 => {
            let access = if bytes[44] >> 2 & 1 == 1 {
                Access::Deallocate
            } else {
                Access::Hint
            };
            let range = |range: &[u8]| (number(&range[8..16]), number(&range[4..8]), access);
            Some(list.chunks(16).map(range).collect())
        }
        (false, 0x0c) if count => one((slba, nlb, Access::Probe)),
        (false, 0x19)
            if list.len() == (usize::from(bytes[48]) + 1) * 32 && bytes[49] & 0xf == 0 =>
        {
            let clean = |range: &[u8]| number(&range[0..8]) == 0 && number(&range[18..]) == 0;
            let range = |range: &[u8]| {
                (
                    number(&range[8..16]),
                    number(&range[16..18]) + 1,
                    Access::Read,
                )
            };
            let sources: Vec<_> = list.chunks(32).map(range).collect();
            let total = sources.iter().map(|source| source.1).sum();
            let fits = sources.len() <= usize::from(geometry.copy_ranges)
                && sources
                    .iter()
                    .all(|source| source.1 <= u128::from(geometry.copy_range_blocks))
                && total <= u128::from(geometry.copy_blocks)
                && list.chunks(32).all(clean);
            let mut touched = vec![(slba, total, Access::Write)];
            touched.extend(sources);
            fits.then_some(touched)
        }
        (true, 0x86)
            if [0x02, 0x10, 0x11].contains(&bytes[55])
                && (number(&bytes[48..52]) + 1) * 4 <= u128::from(geometry.max_transfer) =>
        {
            let length = match number(&bytes[52..54]) {
                0 => u128::from(geometry.blocks).checked_sub(slba)?,
                length => length,
            };
            one((slba, length, Access::Probe))
        }
        _ => None,
    }?;
    let blocks = u128::from(geometry.blocks);
    touched
        .iter()
        .all(|(first, length, _)| *first < blocks && first + length <= blocks)
        .then_some(touched)
}

/// A number near one of the edges.
fn near(edges: Vec<u64>) -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (proptest::sample::select(edges), -9_i64..9).prop_map(|(edge, by)| edge.wrapping_add_signed(by)),
        1 => any::<u64>(),
    ]
}

fn any_geometry() -> impl Strategy<Value = Geometry> {
    (
        near(vec![10, 1000, 1 << 32, u64::MAX - 10]),
        9_u8..=16,
        proptest::sample::select(vec![512_u32, 4096, 1 << 20, u32::MAX]),
        proptest::sample::select(vec![1_u32, 8, 65_535, 65_536]),
        1_u16..8,
        proptest::sample::select(vec![1_u32, 8, 65_536, 65_536]),
        proptest::sample::select(vec![1_u32, 8, 100, u32::MAX, u32::MAX]),
    )
        .prop_map(
            |(blocks, block_shift, max_transfer, max_blocks, ranges, range_blocks, copy_blocks)| {
                Geometry {
                    command_set: CommandSet::NVM,
                    blocks: blocks.max(1),
                    block_shift,
                    max_transfer,
                    max_blocks,
                    copy_ranges: ranges,
                    copy_range_blocks: range_blocks,
                    copy_blocks,
                }
            },
        )
}

#[derive(Debug, Clone)]
struct Given {
    admin: bool,
    bytes: [u8; 64],
    list: Vec<u8>,
    geometry: Geometry,
}

fn any_given() -> impl Strategy<Value = Given> {
    let opcodes = vec![
        0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19, 0x19, 0x19, 0x86_u8,
    ];
    (any_geometry(), proptest::sample::select(opcodes)).prop_flat_map(|(geometry, opcode)| {
        let place = || near(vec![0, geometry.blocks, 1 << 32, u64::MAX]);
        let few = || near(vec![0, 9, 9, 16, 255, u64::from(geometry.max_blocks)]);
        let ranges =
            proptest::collection::vec((place(), few(), proptest::bool::weighted(0.02)), 1..6);
        let nsid = proptest::sample::select(vec![7_u32, 7, 7, 7, 7, 7, 0, u32::MAX, u32::MAX - 1]);
        (place(), few(), ranges, 0_usize..40, nsid, any::<u8>()).prop_map(
            move |(slba, nlb, ranges, short, nsid, flags)| {
                let mut bytes = [0; 64];
                bytes[0] = opcode;
                bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
                let mut list = Vec::new();
                if opcode != 0x00 && opcode != 0x09 {
                    bytes[40..48].copy_from_slice(&slba.to_le_bytes());
                }
                if opcode != 0x00 && opcode != 0x09 && opcode != 0x19 && opcode != 0x86 {
                    bytes[48..50].copy_from_slice(&(nlb as u16).to_le_bytes());
                }
                match opcode {
                    0x01 | 0x02 | 0x05 | 0x0c => bytes[51] = flags & 0xc0,
                    0x08 => bytes[51] = flags & 0xc2,
                    0x09 => {
                        bytes[40] = ranges.len() as u8 - 1;
                        bytes[44] = flags & 7;
                        for (slba, blocks, _) in &ranges {
                            list.extend(u32::from(flags).to_le_bytes());
                            list.extend((*blocks as u32).to_le_bytes());
                            list.extend(slba.to_le_bytes());
                        }
                    }
                    0x19 => {
                        bytes[48] = ranges.len() as u8 - 1;
                        bytes[49] = u8::from(flags == 1);
                        bytes[51] = flags & 0xc0;
                        for (slba, blocks, dirty) in &ranges {
                            let mut source = [0; 32];
                            source[8..16].copy_from_slice(&slba.to_le_bytes());
                            source[16..18].copy_from_slice(&(*blocks as u16).to_le_bytes());
                            if *dirty {
                                let place = (*blocks % 22) as usize;
                                source[if place < 8 { place } else { place + 10 }] = 1;
                            }
                            list.extend(source);
                        }
                    }
                    0x86 => {
                        bytes[48..52].copy_from_slice(&(nlb as u32).to_le_bytes());
                        bytes[52..54].copy_from_slice(&(slba as u16 % 16).to_le_bytes());
                        bytes[55] = [0x02, 0x10, 0x11, 0x03][usize::from(flags & 3)];
                    }
                    _ => {}
                }
                if short == 0 {
                    list.pop();
                }
                Given {
                    admin: opcode == 0x86,
                    bytes,
                    list,
                    geometry,
                }
            },
        )
    })
}

/// How many of the commands passed: a test of refusals alone would show little.
fn check(given: &Given) -> bool {
    let mut entry = [0; 16];
    for (word, bytes) in entry.iter_mut().zip(given.bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let queue = if given.admin {
        QueueKind::Admin
    } else {
        QueueKind::Io
    };
    let mut decoder = decoder(View::Client);
    let decoded = decoder.decode(queue, Some(&given.geometry), &entry, &given.list);
    let touched = decoded.as_ref().ok().map(|decoded| {
        let extents = decoded.extents.iter();
        extents
            .map(|extent| {
                assert_eq!(extent.nsid, 7);
                let (first, blocks) = (u128::from(extent.first), u128::from(extent.blocks));
                (first, blocks, extent.access)
            })
            .collect::<Vec<_>>()
    });
    let wanted = reference(given.admin, &given.bytes, &given.list, &given.geometry);
    assert_eq!(touched, wanted, "{given:?}: {decoded:?}");
    touched.is_some()
}

#[test]
fn the_decoder_reads_as_the_reference_does() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::new(nvme_vfio_seeded::seeded(0));
    let strategy = any_given();
    let mut passed = [0_u32; 256];
    for _ in 0..20_000 {
        let given = strategy.new_tree(&mut runner).unwrap().current();
        passed[usize::from(given.bytes[0])] += u32::from(check(&given));
    }
    for opcode in [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19, 0x86] {
        assert!(passed[opcode] > 30, "{opcode:02x}h: {}", passed[opcode]);
    }
}
