//! Every bit of an entry is accounted for: it changes what the command means, it has the command refused, or it is known to say nothing.

use proptest::prelude::*;

use super::super::cases::{Cases, GEOMETRY};
use super::super::field::{Fate, WORDS};
use super::super::request::View;
use super::super::table::Row;
use super::{QUEUES, VIEWS, decoder, entry, geometry, rows, seeded, table};
use crate::command::{DecodedCommand, Extent, QueueKind};
use crate::reason::Refusal;

/// A decoded command that outlives its decoder.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    command: DecodedCommand<'static>,
    extents: Vec<Extent>,
}

fn decode(
    view: View,
    queue: QueueKind,
    entry: &[u32; WORDS],
    list: &[u8],
) -> Result<Kept, Refusal> {
    let mut decoder = decoder(view);
    let decoded = decoder.decode(queue, geometry(entry), entry, list)?;
    Ok(Kept {
        extents: decoded.extents.to_vec(),
        command: DecodedCommand {
            extents: &[],
            ..decoded
        },
    })
}

/// What the row says of a bit; `None` for reserved ones.
fn fate(row: &Row, word: usize, bit: u32) -> Option<Fate> {
    let mut fields = row.layout.all();
    fields
        .find(|field| field.word == word && field.mask >> bit & 1 != 0)
        .map(|field| field.fate)
}

/// Flips every bit of an entry that passes.
fn account_for_every_bit(view: View, queue: QueueKind, entry: &[u32; WORDS], list: &[u8]) {
    let Ok(decoded) = decode(view, queue, entry, list) else {
        return;
    };
    let row = table(queue)[usize::from(entry[0] as u8)];
    for word in 0..WORDS {
        for bit in 0..32 {
            let mut flipped = *entry;
            flipped[word] ^= 1 << bit;
            let result = decode(view, queue, &flipped, list);
            let what = format!(
                "{queue:?} {view:?} {}, word {word} bit {bit}: {entry:x?}",
                row.name
            );
            match fate(row, word, bit) {
                None | Some(Fate::Refused(_)) => assert!(result.is_err(), "{what}"),
                Some(Fate::Dropped) => assert_eq!(result.as_ref(), Ok(&decoded), "{what}"),
                Some(Fate::Decoded) => {
                    // A range that ends with the namespace can be said in two ways.
                    let to_the_end = row.name == "Get LBA Status" && word == 13 && bit < 16;
                    assert!(to_the_end || result.as_ref() != Ok(&decoded), "{what}");
                }
            }
        }
    }
}

#[test]
fn every_bit_of_every_case_is_accounted_for() {
    let mut passed = 0;
    for (queue, row) in rows() {
        let Cases::Passes {
            legitimate, reach, ..
        } = row.cases
        else {
            continue;
        };
        let legitimate = legitimate.iter().map(|case| &case.command);
        for command in legitimate.chain(reach.iter().map(|case| &case.command)) {
            for view in command.views {
                let entry = entry(row, command);
                account_for_every_bit(*view, queue, &entry, &command.list.concat());
                passed += 1;
            }
        }
    }
    assert!(passed > 200, "{passed}");
}

/// Bits that I/O commands may have set in words 1 to 5 and 10 to 15, written down a second time.
#[test]
fn fields_of_commands_on_blocks_are_where_the_specification_has_them() {
    const SLBA: u32 = u32::MAX;
    let io: &[(u8, [u32; 6])] = &[
        (0x00, [0, 0, 0, 0, 0, 0]),
        (0x01, [SLBA, SLBA, 0xc000_ffff, 0x0000_00ff, 0, 0]),
        (0x02, [SLBA, SLBA, 0xc000_ffff, 0x0000_00ff, 0, 0]),
        (0x04, [SLBA, SLBA, 0x0000_ffff, 0, 0, 0]),
        (0x05, [SLBA, SLBA, 0xc000_ffff, 0, 0, 0]),
        (0x08, [SLBA, SLBA, 0xc200_ffff, 0, 0, 0]),
        (0x09, [0x0000_00ff, 0x0000_0007, 0, 0, 0, 0]),
        (0x0c, [SLBA, SLBA, 0xc000_ffff, 0, 0, 0]),
        (0x19, [SLBA, SLBA, 0xc000_0fff, 0, 0, 0]),
    ];
    for (opcode, words) in io {
        let row = table(QueueKind::Io)[usize::from(*opcode)];
        assert_eq!(row.layout.accepted[10..], words[..], "{}", row.name);
        assert_eq!(row.layout.accepted[0], 0xffff_00ff, "{}", row.name);
        assert_eq!(row.layout.accepted[1], u32::MAX, "{}", row.name);
        assert_eq!(row.layout.accepted[2..6], [0; 4], "{}", row.name);
        let pointer = if matches!(opcode, 0x01 | 0x02 | 0x05 | 0x09 | 0x19) {
            u32::MAX
        } else {
            0
        };
        assert_eq!(row.layout.accepted[6..10], [pointer; 4], "{}", row.name);
    }
    let status = table(QueueKind::Admin)[0x86];
    assert_eq!(
        status.layout.accepted[10..],
        [SLBA, SLBA, u32::MAX, 0xff00_ffff, 0, 0]
    );
}

/// An opcode, a queue, and words most of which a command may have.
fn any_entry() -> impl Strategy<Value = (QueueKind, [u32; WORDS])> {
    let word = prop_oneof![
        4 => Just(0_u32),
        2 => 0_u32..1024,
        2 => (0_u32..32).prop_map(|bit| 1 << bit),
        1 => any::<u32>(),
    ];
    let masked = proptest::bool::weighted(0.9);
    (
        proptest::sample::select(&QUEUES[..]),
        any::<u8>(),
        proptest::array::uniform16(word),
        masked,
        proptest::sample::select(vec![1_u32, 1, 1, 0, 2, u32::MAX, u32::MAX - 1]),
    )
        .prop_map(|(queue, opcode, mut words, masked, nsid)| {
            let layout = &table(queue)[usize::from(opcode)].layout;
            if masked {
                for (word, accepted) in words.iter_mut().zip(&layout.accepted) {
                    *word &= accepted;
                }
            }
            words[0] = words[0] & !0xff | u32::from(opcode);
            if layout.names_namespace {
                words[1] = nsid;
            }
            (queue, words)
        })
}

proptest! {
    #![proptest_config(seeded(1000))]

    #[test]
    fn every_bit_of_any_entry_is_accounted_for((queue, entry) in any_entry(), list: [[u8; 16]; 2]) {
        for view in VIEWS {
            account_for_every_bit(view, queue, &entry, &list.concat());
        }
    }

}

proptest! {
    #![proptest_config(seeded(500))]

    /// The same with nothing but noise.
    #[test]
    fn any_64_bytes_are_decoded_or_refused(words: [u32; 16], list in proptest::collection::vec(any::<u8>(), 0..100)) {
        for view in VIEWS {
            for queue in QUEUES {
                let mut entry = words;
                for opcode in 0..=u8::MAX {
                    entry[0] = words[0] & !0xff | u32::from(opcode);
                    let mut decoder = decoder(view);
                    for geometry in [None, Some(&GEOMETRY)] {
                        let result = decoder.decode(queue, geometry, &entry, &list);
                        // Noise in the metadata pointer alone has everything refused.
                        prop_assert!(result.is_err() || words[4] | words[5] == 0);
                    }
                }
            }
        }
    }
}
