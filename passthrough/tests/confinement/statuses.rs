//! What a client is told: each status means one thing.

use crate::common::client::pages;
use crate::common::judge::Piece;
use crate::common::world::{Lent, World};
use crate::common::{Dwords, command, with, with_blocks, with_prps};

fn lent(name: &'static str, first: u64, allow: &[&'static str]) -> Lent {
    Lent {
        name,
        namespaces: vec![(
            1,
            vec![Piece {
                nsid: 1,
                first,
                blocks: 100,
            }],
            allow.to_vec(),
        )],
        bounce: false,
        more: "",
    }
}

#[test]
fn each_refusal_has_the_status_that_says_why() {
    let asked = lent(
        "asked",
        0,
        &["read", "write", "flush", "deallocate", "copy"],
    );
    // It may compare, and may not read: what comparing would tell it.
    let blind = lent("blind", 100, &["compare", "write"]);
    let mut world = World::new("nsids=1/1M:2/1M,stepped", &[asked, blind]);
    let client = &world.seats[0].client;
    let [data, list, end] = [pages::DATA, pages::LISTS, pages::END].map(|page| client.page(page));
    let rom = client.page(pages::ROM);
    // A list of pages whose second entry begins in the middle of one, and a list with one outside.
    let crooked = list;
    let outside = list + 512;
    for entry in 0..8 {
        let page = data + (entry + 1) * 4096;
        client.memory.store(
            crooked + entry * 8,
            if entry == 1 { page + 8 } else { page },
        );
        client
            .memory
            .store(outside + entry * 8, if entry == 1 { end } else { page });
    }
    let read = |blocks: u32, prp1: u64, prp2: u64| {
        with_prps(with_blocks(command(0x02, 1), 0, blocks), prp1, prp2)
    };
    let right = read(8, data, 0);
    let cases: Vec<(&str, Dwords, u16)> = vec![
        ("right", right, 0x000),
        ("an opcode that nobody knows", command(0x77, 1), 0x001),
        ("a vendor's opcode", command(0xc1, 1), 0x001),
        ("Cancel, which never passes", command(0x18, 1), 0x001),
        (
            "a class that is not granted",
            with_blocks(command(0x0c, 1), 0, 1),
            0x015,
        ),
        ("a reserved bit", with(right, 15, 1), 0x002),
        ("a fused command", with(right, 0, right[0] | 1 << 8), 0x002),
        (
            "a list of segments",
            with(right, 0, right[0] | 1 << 14),
            0x002,
        ),
        ("metadata", with(right, 4, 0x1000), 0x002),
        ("a directive", with(right, 12, 7 | 1 << 20), 0x002),
        ("a namespace of others", with(right, 1, 2), 0x00b),
        ("a namespace that is not there", with(right, 1, 9), 0x00b),
        ("namespace 0", with(right, 1, 0), 0x00b),
        ("all namespaces", with(right, 1, u32::MAX), 0x00b),
        ("a block too many", with_blocks(right, 93, 8), 0x080),
        ("a block far away", with_blocks(right, u64::MAX, 1), 0x080),
        (
            "more than may be moved at once",
            with(right, 12, 0xffff),
            0x080,
        ),
        ("memory that is not there", read(8, end, 0), 0x004),
        ("a list that is not there", read(40, data, end), 0x004),
        (
            "a page of a list that is not there",
            read(40, data, outside),
            0x004,
        ),
        ("memory that may only be read", read(8, rom, 0), 0x004),
        ("a first entry that is crooked", read(8, data + 2, 0), 0x013),
        (
            "a second entry that is crooked",
            read(16, data, data + 4096 + 8),
            0x013,
        ),
        (
            "an entry of a list that is crooked",
            read(40, data, crooked),
            0x013,
        ),
        (
            "ranges that are not there",
            with_prps(with(command(0x09, 1), 11, 4), end, 0),
            0x004,
        ),
    ];
    for (what, entry, status) in cases {
        let mut step = world.stepper(&world.seats[0].emulator);
        let done = world.seats[0].client.run(1, entry, &mut step);
        assert_eq!(done.status, status, "{what}: {entry:x?}: {done:x?}");
    }
    let mut step = world.stepper(&world.seats[1].emulator);
    let data = world.seats[1].client.page(pages::DATA);
    let compare = with_prps(with_blocks(command(0x05, 1), 0, 1), data, 0);
    let done = world.seats[1].client.run(1, compare, &mut step);
    assert_eq!(
        done.status, 0x286,
        "the right to read is missing: {done:x?}"
    );
}
