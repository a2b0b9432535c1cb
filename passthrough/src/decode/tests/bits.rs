//! Every bit of an entry is accounted for: it changes what the command means, it has the command refused, or it is known to say nothing.

use proptest::prelude::*;

use super::super::cases::{Cases, GEOMETRY};
use super::super::field::{Fate, WORDS};
use super::super::request::View;
use super::super::table::{Row, Rule};
use super::{Decoder, QUEUES, VIEWS, decoder, entry, geometry, rows, table};
use crate::command::{DecodedCommand, Extent, QueueKind};
use crate::reason::Refusal;

/// A decoded command that outlives its decoder.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    command: DecodedCommand<'static>,
    extents: Vec<Extent>,
}

fn decode(
    decoder: &mut Decoder,
    queue: QueueKind,
    entry: &[u32; WORDS],
    list: &[u8],
) -> Result<Kept, Refusal> {
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
    let mut decoder = decoder(view);
    let Ok(decoded) = decode(&mut decoder, queue, entry, list) else {
        return;
    };
    let row = table(queue)[usize::from(entry[0] as u8)];
    for word in 0..WORDS {
        for bit in 0..32 {
            let mut flipped = *entry;
            flipped[word] ^= 1 << bit;
            let result = decode(&mut decoder, queue, &flipped, list);
            let name = row.name;
            let what = || format!("{queue:?} {view:?} {name}, word {word} bit {bit}: {entry:x?}");
            match fate(row, word, bit) {
                None | Some(Fate::Refused(_)) => assert!(result.is_err(), "{}", what()),
                Some(Fate::Dropped) => {
                    assert_eq!(result.as_ref(), Ok(&decoded), "{}", what());
                }
                Some(Fate::Decoded) => {
                    // A range that ends with the namespace can be said in two ways.
                    let to_the_end = row.name == "Get LBA Status" && word == 13 && bit < 16;
                    assert!(to_the_end || result.as_ref() != Ok(&decoded), "{}", what());
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

/// All bits of a word.
const ALL: u32 = u32::MAX;

/// Bits that a command may have set in words 10 to 15, and whether it may name a namespace and data, written down a second time.
type Allowed = (u8, bool, bool, [u32; 6]);

const IO: &[Allowed] = &[
    (0x00, true, false, [0, 0, 0, 0, 0, 0]),
    (0x01, true, true, [ALL, ALL, 0xc000_ffff, 0x0000_00ff, 0, 0]),
    (0x02, true, true, [ALL, ALL, 0xc000_ffff, 0x0000_00ff, 0, 0]),
    (0x04, true, false, [ALL, ALL, 0x0000_ffff, 0, 0, 0]),
    (0x05, true, true, [ALL, ALL, 0xc000_ffff, 0, 0, 0]),
    (0x08, true, false, [ALL, ALL, 0xc200_ffff, 0, 0, 0]),
    (0x09, true, true, [0x0000_00ff, 0x0000_0007, 0, 0, 0, 0]),
    (0x0c, true, false, [ALL, ALL, 0xc000_ffff, 0, 0, 0]),
    (0x0d, true, true, [0xc000_000f, 0, 0, 0, 0, 0]),
    (0x0e, true, true, [ALL, 0x0000_0001, 0, 0, 0, 0]),
    (0x11, true, true, [0x0000_ff0f, 0, 0, 0, 0, 0]),
    (0x12, true, true, [0xffff_00ff, ALL, 0, 0, 0, 0]),
    (0x15, true, true, [0x0000_ff0f, 0, 0, 0, 0, 0]),
    (0x19, true, true, [ALL, ALL, 0xc000_0fff, 0, 0, 0]),
    (0x1d, true, true, [0xffff_00ff, 0, 0, 0, 0, 0]),
];

const ADMIN: &[Allowed] = &[
    (0x00, false, false, [0x0000_ffff, 0, 0, 0, 0, 0]),
    (0x01, false, true, [ALL, 0xffff_0007, 0x0000_ffff, 0, 0, 0]),
    (0x02, true, true, [ALL, ALL, ALL, ALL, 0xff80_007f, 0]),
    (0x04, false, false, [0x0000_ffff, 0, 0, 0, 0, 0]),
    (0x05, false, true, [ALL, 0xffff_0003, 0, 0, 0, 0]),
    (
        0x06,
        true,
        true,
        [0xffff_00ff, 0xff00_ffff, 0, 0, 0x0000_007f, 0],
    ),
    (0x08, false, false, [ALL, 0, 0, 0, 0, 0]),
    (
        0x09,
        true,
        true,
        [0x8000_00ff, ALL, ALL, ALL, 0x0000_007f, ALL],
    ),
    (0x0a, true, true, [0x0000_07ff, ALL, 0, 0, 0x0000_007f, 0]),
    (0x0c, false, false, [0, 0, 0, 0, 0, 0]),
    (0x0d, true, true, [0x0000_000f, 0xff00_0000, 0, 0, 0, 0]),
    (0x10, false, false, [0x8000_003f, 0, 0, 0, 0, 0]),
    (0x11, false, true, [ALL, ALL, 0, 0, 0, 0]),
    (0x14, true, false, [0x0000_000f, 0, 0, 0, 0, 0]),
    (0x15, true, true, [0x0000_000f, 0, 0, 0, 0, 0]),
    (0x19, true, false, [ALL, ALL, ALL, 0, 0, 0]),
    (0x1a, true, true, [ALL, ALL, ALL, 0, 0, 0]),
    (0x20, false, false, [0xffff_000f, ALL, ALL, 0, 0, 0]),
    (0x7c, false, true, [0, 0, 0, 0, 0, 0]),
    (0x80, true, false, [0x0000_3fff, 0, 0, 0, 0, 0]),
    (0x81, true, true, [ALL, ALL, 0, 0, 0, 0]),
    (0x82, true, true, [ALL, ALL, 0, 0, 0, 0]),
    (0x84, false, false, [0x0000_03ff, ALL, 0, 0, 0, 0]),
    (0x86, true, true, [ALL, ALL, ALL, 0xff00_ffff, 0, 0]),
];

#[test]
fn fields_are_where_the_specification_has_them() {
    let pointer = |there| if there { [ALL; 4] } else { [0; 4] };
    for (queue, allowed) in [(QueueKind::Io, IO), (QueueKind::Admin, ADMIN)] {
        let mut decoded = 0;
        for row in table(queue) {
            decoded += usize::from(!matches!(
                row.rule,
                Rule::Unknown | Rule::Never | Rule::Vendor
            ));
        }
        assert_eq!(decoded, allowed.len(), "{queue:?}");
        for (opcode, namespace, data, words) in allowed {
            let row = table(queue)[usize::from(*opcode)];
            let accepted = &row.layout.accepted;
            assert_eq!(accepted[10..], words[..], "{}", row.name);
            assert_eq!(accepted[0], 0xffff_00ff, "{}", row.name);
            assert_eq!(
                accepted[1],
                if *namespace { ALL } else { 0 },
                "{}",
                row.name
            );
            assert_eq!(accepted[2..6], [0; 4], "{}", row.name);
            assert_eq!(accepted[6..10], pointer(*data), "{}", row.name);
        }
    }
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
    #![proptest_config(nvme_vfio_seeded::seeded(1000))]

    #[test]
    fn every_bit_of_any_entry_is_accounted_for((queue, entry) in any_entry(), list: [[u8; 16]; 2]) {
        for view in VIEWS {
            account_for_every_bit(view, queue, &entry, &list.concat());
        }
    }

}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(500))]

    /// The same with nothing but noise.
    #[test]
    fn any_64_bytes_are_decoded_or_refused(words: [u32; 16], list in proptest::collection::vec(any::<u8>(), 0..100)) {
        for view in VIEWS {
            let mut decoder = decoder(view);
            for queue in QUEUES {
                let mut entry = words;
                for opcode in 0..=u8::MAX {
                    entry[0] = words[0] & !0xff | u32::from(opcode);
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
