//! Copy, in all descriptor formats.

use nvme_vfio_dma::SharedMemory;

use crate::host::*;

const WRITE: u8 = 1;
const READ: u8 = 2;
const COPY: u8 = 0x19;

/// A source range in one of the formats.
fn source(format: u32, nsid: u32, lba: u64, blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; if format.is_multiple_of(2) { 32 } else { 40 }];
    bytes[..4].copy_from_slice(&nsid.to_le_bytes());
    bytes[8..16].copy_from_slice(&lba.to_le_bytes());
    bytes[16..18].copy_from_slice(&(blocks as u16 - 1).to_le_bytes());
    bytes
}

/// A Copy of `count` ranges to `lba` of namespace 1.
fn copy(format: u32, lba: u64, count: u32) -> Dwords {
    let mut entry = with(command(COPY, 1), 10, lba as u32);
    entry[11] = (lba >> 32) as u32;
    with(entry, 12, format << 8 | (count - 1))
}

/// Host Behavior Support with these copy descriptor formats enabled.
fn enable_formats(host: &mut Host, formats: u16) {
    let mut data = [0; 512];
    data[4..6].copy_from_slice(&formats.to_le_bytes());
    assert_eq!(
        host.run_with(0, with(command(9, 0), 10, 0x16), &data)
            .status,
        0
    );
}

/// Writes each of 64 blocks of a namespace with a byte of its own.
fn fill(host: &mut Host, memory: &SharedMemory, nsid: u32, first: u8) {
    for lba in 0..64 {
        memory.write_bytes(0, &[first + lba; 512]).unwrap();
        let write = Host::transfer(WRITE, lba.into(), 1, memory.iova().0, 0);
        assert_eq!(host.run(1, with(write, 1, nsid)).status, 0);
    }
}

/// The byte that each block is full of.
fn contents(host: &mut Host, memory: &SharedMemory, lbas: std::ops::Range<u64>) -> Vec<u8> {
    lbas.map(|lba| {
        let read = Host::transfer(READ, lba, 1, memory.iova().0, 0);
        assert_eq!(host.run(1, read).status, 0);
        let block = bytes(memory, 512);
        assert!(block.iter().all(|&byte| byte == block[0]));
        block[0]
    })
    .collect()
}

#[test]
fn ranges_are_gathered_in_order() {
    for format in 0..4 {
        let mut host = Host::with_queue("size=32K,nsids=1:4,mdts=1", 8);
        let memory = host.memory(4096);
        fill(&mut host, &memory, 1, 0);
        fill(&mut host, &memory, 4, 100);
        enable_formats(&mut host, 0b1100);
        // Without a namespace of its own a source is in the destination's, whatever the first bytes say.
        let from = |wanted| if format >= 2 { wanted } else { 77 };
        let sources = [
            source(format, from(4), 5, 3),
            source(format, from(1), 0, 2),
            source(format, from(4), 63, 1),
        ]
        .concat();
        let entry = host.run_with(1, copy(format, 32, 3), &sources);
        assert_eq!((entry.status, entry.result), (0, 0), "format {format}");
        let expected = if format >= 2 {
            [105, 106, 107, 0, 1, 163, 38]
        } else {
            [5, 6, 7, 0, 1, 63, 38]
        };
        assert_eq!(contents(&mut host, &memory, 32..39), expected, "{format}");
    }
}

#[test]
fn formats_two_and_three_are_for_hosts_that_know_them() {
    let mut host = Host::with_queue("size=32K", 8);
    let status = |host: &mut Host, format| {
        let source = source(format, 1, 0, 1);
        host.run_with(1, copy(format, 40, 1), &source).status
    };
    for (enabled, expected) in [
        (0b0000, [0, 0, 2, 2]),
        (0b0100, [0, 0, 0, 2]),
        (0b1000, [0, 0, 2, 0]),
        (0b1100, [0, 0, 0, 0]),
    ] {
        enable_formats(&mut host, enabled);
        for format in 0..4 {
            assert_eq!(status(&mut host, format), expected[format as usize]);
        }
        for format in 4..16 {
            assert_eq!(status(&mut host, format), 0x002);
        }
    }
    host.write(CC, 0);
    host.enable();
    host.create_queue(1, 8);
    assert_eq!(status(&mut host, 2), 0x002, "a reset forgets");
}

#[test]
fn everything_is_checked_before_anything_is_copied() {
    let mut host = Host::with_queue("nsids=1/32K:2/16K:3/64K/4096:5/32K,nn=6", 8);
    let memory = host.memory(8192);
    fill(&mut host, &memory, 1, 0);
    enable_formats(&mut host, 0b1100);
    let good = source(2, 1, 0, 2);
    for (what, second, lba, status) in [
        ("past the source", source(2, 1, 63, 2), 32, 0x080),
        ("far past the source", source(2, 1, u64::MAX, 2), 32, 0x080),
        ("past a smaller source", source(2, 2, 31, 2), 32, 0x080),
        ("past the destination", source(2, 1, 0, 2), 61, 0x080),
        ("far past", source(2, 1, 0, 2), u64::MAX, 0x080),
        ("namespace 0", source(2, 0, 0, 2), 32, 0x00b),
        ("no such namespace", source(2, 7, 0, 2), 32, 0x00b),
        ("all namespaces", source(2, u32::MAX, 0, 2), 32, 0x00b),
        ("inactive", source(2, 4, 0, 2), 32, 0x002),
        ("other block size", source(2, 3, 0, 2), 32, 0x185),
        ("overlap", source(2, 1, 33, 1), 32, 0x187),
        ("overlap at the end", source(2, 1, 34, 1), 32, 0x187),
    ] {
        let data = [good.clone(), second].concat();
        let entry = host.run_with(1, copy(2, lba, 2), &data);
        assert_eq!((entry.status, entry.result), (status, 0), "{what}");
    }
    for (nsid, status) in [(0, 0x00b), (4, 0x002), (7, 0x00b), (u32::MAX, 0x00b)] {
        let entry = with(copy(2, 32, 1), 1, nsid);
        assert_eq!(host.run_with(1, entry, &good).status, status);
    }
    let directive = with(copy(2, 32, 1), 12, 2 << 8 | 1 << 20);
    assert_eq!(host.run_with(1, directive, &good).status, 0x002);
    assert_eq!(
        host.refused(1, with_prps(copy(0, 32, 1), 0x7000_0000, 0)),
        0x004
    );
    let edge = memory.iova().0 + 8192 - 32;
    assert_eq!(
        host.refused(1, with_prps(copy(0, 32, 2), edge, 0x7000_0000)),
        0x004
    );
    assert_eq!(
        contents(&mut host, &memory, 0..64),
        (0..64).collect::<Vec<u8>>()
    );
    // Side by side is not overlapping.
    let beside = [source(2, 1, 30, 2), source(2, 1, 36, 2)].concat();
    assert_eq!(host.run_with(1, copy(2, 32, 2), &beside).status, 0);
    assert_eq!(contents(&mut host, &memory, 32..36), [30, 31, 36, 37]);
}

#[test]
fn limits() {
    let mut host = Host::with_queue("size=32K,mssrl=4,mcl=10,msrc=2", 8);
    let (_, page) = host.identify(0, 1);
    assert_eq!(
        (u16_at(&page, 74), u32_at(&page, 76), page[80]),
        (4, 10, 2),
        "MSSRL, MCL, MSRC"
    );
    let ranges = |lengths: &[u32]| -> Vec<u8> {
        let ranges = lengths.iter().map(|&length| source(0, 0, 0, length));
        ranges.flatten().collect()
    };
    for (lengths, status) in [
        (&[4, 4, 2][..], 0),
        (&[5], 0x183),
        (&[4, 4, 3], 0x183),
        (&[1, 1, 1, 1], 0x183),
        (&[1, 1, 1], 0),
    ] {
        let entry = copy(0, 32, lengths.len() as u32);
        assert_eq!(
            host.run_with(1, entry, &ranges(lengths)).status,
            status,
            "{lengths:?}"
        );
    }
}

#[test]
fn descriptors_are_bounded_by_mdts() {
    // 8 KiB hold 256 descriptors of 32 bytes, and 204 of 40.
    let mut host = Host::with_queue("size=1M,mdts=1,msrc=255", 8);
    for (format, most) in [(0, 256), (1, 204)] {
        let data = source(format, 0, 0, 1).repeat(most as usize);
        assert_eq!(host.run_with(1, copy(format, 512, most), &data).status, 0);
    }
    let entry = host.run_with(1, copy(1, 512, 205), &[0; 8200]);
    assert_eq!(entry.status, 0x002);
}

#[test]
fn a_range_that_cannot_be_read_ends_it_and_is_told() {
    let mut host = Host::with_queue("size=32K", 8);
    let memory = host.memory(4096);
    fill(&mut host, &memory, 1, 0);
    let mut uncorrectable = command(4, 1);
    uncorrectable[10] = 7;
    assert_eq!(host.run(1, uncorrectable).status, 0);
    let sources = [
        source(0, 0, 0, 2),
        source(0, 0, 2, 1),
        source(0, 0, 6, 3),
        source(0, 0, 9, 1),
    ]
    .concat();
    let entry = host.run_with(1, copy(0, 32, 4), &sources);
    assert_eq!((entry.status, entry.result), (0x281, 2), "two ranges done");
    let (_, log) = host.log(1, 64, 0, 0);
    assert_eq!(u64_at(&log, 16), 7, "the block");
    assert_eq!(
        contents(&mut host, &memory, 32..40),
        [0, 1, 2, 35, 36, 37, 38, 39]
    );
    let first = [source(0, 0, 7, 1), source(0, 0, 0, 1)].concat();
    let entry = host.run_with(1, copy(0, 50, 2), &first);
    assert_eq!((entry.status, entry.result), (0x281, 0));
    // A copy heals its destination.
    let entry = host.run_with(1, copy(0, 7, 1), &source(0, 0, 20, 1));
    assert_eq!(entry.status, 0);
    assert_eq!(contents(&mut host, &memory, 7..8), [20]);
}

#[test]
fn as_many_ranges_as_there_can_be() {
    let mut host = Host::with_queue("size=1M,msrc=255", 8);
    let memory = host.memory(4096);
    fill(&mut host, &memory, 1, 0);
    for format in [0, 1] {
        let size = if format == 0 { 32 } else { 40 };
        let data = host.memory(12 << 10);
        let list = host.memory(4096);
        let sources: Vec<u8> = (0..256)
            .flat_map(|index| source(format, 0, index % 64, 1))
            .collect();
        assert_eq!(sources.len(), 256 * size);
        data.write_bytes(0, &sources).unwrap();
        list.write_u64(0, data.iova().0 + 4096).unwrap();
        list.write_u64(8, data.iova().0 + 8192).unwrap();
        let prp2 = if format == 0 {
            data.iova().0 + 4096
        } else {
            list.iova().0
        };
        let entry = with_prps(copy(format, 1024, 256), data.iova().0, prp2);
        assert_eq!(host.run(1, entry).status, 0);
        let expected: Vec<u8> = (0..=255).map(|index| index % 64).collect();
        assert_eq!(contents(&mut host, &memory, 1024..1280), expected);
    }
}

#[test]
fn many_short_ranges_keep_nobody_waiting() {
    const RANGES: u64 = 32;
    const BLOCKS: u32 = 512;
    let mut host = Host::with_queue("size=64M", 64);
    let list: Vec<u8> = (0..RANGES)
        .flat_map(|range| source(0, 1, range * u64::from(BLOCKS), BLOCKS))
        .collect();
    let memory = host.memory(4096);
    memory.write_bytes(0, &list).unwrap();
    for _ in 0..8 {
        let entry = with_prps(copy(0, 100_000, RANGES as u32), memory.iova().0, 0);
        host.submit(1, entry);
    }
    // Of 64 MiB each turn copies one at most: whoever shares the thread has the others' time between.
    let (mut turns, mut ended) = (0, 0);
    while ended < 8 {
        let turn = host.emulator.turn(32);
        turns += 1;
        ended += turn.posted;
        assert_eq!(turn.working, ended < 8);
    }
    assert!((64..=512).contains(&turns), "{turns}");
}
