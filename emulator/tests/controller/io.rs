//! Reads, writes and the rest of the NVM commands, by all kinds of PRPs.

use nvme_vfio_dma::SharedMemory;

use crate::host::*;

const PAGE: u64 = 4096;

/// Fills memory with bytes that tell their place and the seed.
fn fill(memory: &SharedMemory, seed: u8) -> Vec<u8> {
    fill_some(memory, memory.len(), seed)
}

fn fill_some(memory: &SharedMemory, length: usize, seed: u8) -> Vec<u8> {
    let bytes: Vec<u8> = (0..length).map(|index| pattern(index, seed)).collect();
    memory.write_bytes(0, &bytes).unwrap();
    bytes
}

fn pattern(index: usize, seed: u8) -> u8 {
    (index as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed
}

/// PRP1 and PRP2 for `length` bytes at `offset` of memory, lists in `list`, which begins at `list_offset` of its first page.
fn prps(data: u64, length: u64, list: &SharedMemory, list_offset: u64) -> (u64, u64) {
    let pages: Vec<u64> = (data / PAGE..(data + length).div_ceil(PAGE))
        .map(|page| page * PAGE)
        .collect();
    match pages.len() {
        1 => (data, 0),
        2 => (data, pages[1]),
        _ => {
            let mut at = list_offset;
            let mut rest = &pages[1..];
            while !rest.is_empty() {
                let slots = ((PAGE - at % PAGE) / 8) as usize;
                let data_slots = if rest.len() > slots {
                    slots - 1
                } else {
                    rest.len()
                };
                for &page in &rest[..data_slots] {
                    list.write_u64(at as usize, page).unwrap();
                    at += 8;
                }
                rest = &rest[data_slots..];
                if !rest.is_empty() {
                    list.write_u64(at as usize, list.iova().0 + at + 8).unwrap();
                    at += 8;
                }
            }
            (data, list.iova().0 + list_offset)
        }
    }
}

#[test]
fn data_survives_by_every_kind_of_prp() {
    let mut host = Host::with_queue("size=64M,mdts=0", 8);
    let (source, target) = (host.memory(4 << 20), host.memory(4 << 20));
    let list = host.memory(64 << 10);
    let mut lba = 5;
    for (offset, length, list_offset) in [
        (0, 512, 0),
        (512, 512, 0),
        (3584, 512, 0),
        (4, 4096, 0),
        (0, 4096, 0),
        (512, 4096, 0),
        (0, 8192, 0),
        (3584, 8192, 0),
        (3584, 8192, 2048),
        (0, 128 << 10, 8),
        (0, 2 << 20, 0),          // 511 entries: fits
        (0, (2 << 20) + 4096, 0), // 512 entries: fits exactly
        (4, (2 << 20) + 4096, 0), // 513: chains
        (0, 3 << 20, 0),
        (0, 3 << 20, 4088), // a list that begins with its chain pointer
        (1024, 3 << 20, 4080),
    ] {
        let used = (offset + length + PAGE) as usize;
        let written = fill_some(&source, used, (length / 512 + offset) as u8);
        let mut expected = fill_some(&target, used, 0xaa);
        let blocks = (length / 512) as u32;
        let (prp1, prp2) = prps(source.iova().0 + offset, length, &list, list_offset);
        let write = host.run(1, Host::transfer(1, lba, blocks, prp1, prp2));
        assert_eq!(write.status, 0, "write of {length} at {offset}");
        let (prp1, prp2) = prps(target.iova().0 + offset, length, &list, list_offset);
        let read = host.run(1, Host::transfer(2, lba, blocks, prp1, prp2));
        assert_eq!(read.status, 0, "read of {length} at {offset}");
        let data = offset as usize..(offset + length) as usize;
        expected[data.clone()].copy_from_slice(&written[data]);
        // What lies before and after the data is as it was.
        assert!(bytes(&target, used) == expected, "{length} at {offset}");
        lba += u64::from(blocks);
    }
    assert_eq!(host.emulator.iommu().fault_count(), 0);
}

#[test]
fn large_pages_make_fewer_entries() {
    let mut host = Host::with_queue("mpsmin=2,mdts=0,size=16M", 8);
    let memory = host.memory(256 << 10);
    let list = host.memory(16 << 10);
    let start = memory.iova().0;
    let written = fill(&memory, 9);
    assert_eq!(start % (16 << 10), 0);
    // 64 KiB: PRP1 and a list of three pages of 16 KiB.
    for index in 0..3 {
        list.write_u64(index * 8, start + (index as u64 + 1) * (16 << 10))
            .unwrap();
    }
    assert_eq!(
        host.run(1, Host::transfer(1, 0, 128, start, list.iova().0))
            .status,
        0
    );
    memory.fill_zero();
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 128, start, list.iova().0))
            .status,
        0
    );
    assert!(bytes(&memory, 64 << 10) == written[..64 << 10]);
    // An entry aligned to 4 KiB is not aligned to the page.
    list.write_u64(0, start + 4096).unwrap();
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 128, start, list.iova().0)),
        0x013
    );
}

#[test]
fn unwritten_blocks_are_zero_and_namespaces_are_apart() {
    let mut host = Host::with_queue("size=4T,nsids=1:3", 8);
    let memory = host.memory(4096);
    let written = fill(&memory, 1);
    let last = (4 << 40) / 512 - 8;
    assert_eq!(
        host.run(1, Host::transfer(1, last, 8, memory.iova().0, 0))
            .status,
        0
    );
    memory.fill_zero();
    let other = with(Host::transfer(2, last, 8, memory.iova().0, 0), 1, 3);
    fill(&memory, 2);
    assert_eq!(host.run(1, other).status, 0);
    assert!(bytes(&memory, 4096).iter().all(|&byte| byte == 0));
    assert_eq!(
        host.run(1, Host::transfer(2, last, 8, memory.iova().0, 0))
            .status,
        0
    );
    assert!(bytes(&memory, 4096) == written);
}

#[test]
fn data_survives_a_controller_reset() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(4096);
    let written = fill(&memory, 3);
    assert_eq!(
        host.run(1, Host::transfer(1, 8, 8, memory.iova().0, 0))
            .status,
        0
    );
    memory.fill_zero();
    host.write(CC, 0);
    host.enable();
    host.create_queue(1, 8);
    assert_eq!(
        host.run(1, Host::transfer(2, 8, 8, memory.iova().0, 0))
            .status,
        0
    );
    assert!(bytes(&memory, 4096) == written);
}

#[test]
fn ranges_and_namespaces_are_checked() {
    let mut host = Host::with_queue("size=1M,nsids=1:3,mdts=1", 8);
    let memory = host.memory(8192);
    let iova = memory.iova().0;
    for opcode in [1, 2, 5, 8] {
        assert_eq!(
            host.run(1, Host::transfer(opcode, 2047, 1, iova, 0)).status & 0xff & !0x85,
            0,
            "the last block"
        );
        assert_eq!(
            host.refused(1, Host::transfer(opcode, 2047, 2, iova, 0)),
            0x080
        );
        assert_eq!(
            host.refused(1, Host::transfer(opcode, 2048, 1, iova, 0)),
            0x080
        );
        assert_eq!(
            host.refused(1, Host::transfer(opcode, u64::MAX, 1, iova, 0)),
            0x080
        );
        assert_eq!(
            host.refused(1, Host::transfer(opcode, u64::MAX, 2, iova, 0)),
            0x080
        );
        for (nsid, status) in [(0, 0x00b), (2, 0x002), (4, 0x00b), (u32::MAX, 0x00b)] {
            assert_eq!(
                host.refused(1, with(Host::transfer(opcode, 0, 1, iova, 0), 1, nsid)),
                status,
                "{nsid}"
            );
        }
        if opcode != 8 {
            assert_eq!(
                host.refused(1, Host::transfer(opcode, 0, 17, iova, iova + 4096)),
                0x002,
                "more than MDTS"
            );
        }
    }
    let entry = host.run(1, Host::transfer(2, 2048, 1, iova, 0));
    assert!(entry.dnr, "it would fail again");
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 16, iova, iova + 4096))
            .status,
        0,
        "as much as MDTS"
    );
    assert_eq!(
        host.run(1, Host::transfer(8, 0, 2048, 0, 0)).status,
        0,
        "Write Zeroes is not bound by MDTS"
    );
    assert_eq!(
        host.refused(1, with(Host::transfer(1, 0, 1, iova, 0), 12, 1 << 20)),
        0x002,
        "directive"
    );
}

#[test]
fn misaligned_prps_are_refused() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(64 << 10);
    let list = host.memory(4096);
    let (iova, list_iova) = (memory.iova().0, list.iova().0);
    for entry in 0..8 {
        list.write_u64(entry * 8, iova + (entry as u64 + 1) * 4096)
            .unwrap();
    }
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 1, iova + 1, 0)),
        0x013,
        "PRP1 to a byte"
    );
    assert_eq!(host.refused(1, Host::transfer(2, 0, 1, iova + 2, 0)), 0x013);
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 1, iova + 4, 0)).status,
        0,
        "a dword is enough"
    );
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 16, iova, iova + 4096 + 512)),
        0x013,
        "PRP2 with an offset"
    );
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 24, iova, list_iova + 4)),
        0x013,
        "list off by a dword"
    );
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 24, iova, list_iova + 8))
            .status,
        0
    );
    list.write_u64(8, iova + 8192 + 8).unwrap();
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 24, iova, list_iova)),
        0x013,
        "an entry with an offset"
    );
    assert_eq!(host.emulator.iommu().fault_count(), 0);
}

#[test]
fn write_zeroes_and_compare() {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(8192);
    let written = fill(&memory, 7);
    let iova = memory.iova().0;
    assert_eq!(
        host.run(1, Host::transfer(1, 0, 16, iova, iova + 4096))
            .status,
        0
    );
    assert_eq!(
        host.run(1, Host::transfer(5, 0, 16, iova, iova + 4096))
            .status,
        0
    );
    memory.write_bytes(8191, &[!written[8191]]).unwrap();
    assert_eq!(
        host.refused(1, Host::transfer(5, 0, 16, iova, iova + 4096)),
        0x285
    );
    assert_eq!(host.run(1, Host::transfer(8, 1, 14, 0, 0)).status, 0);
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 16, iova, iova + 4096))
            .status,
        0
    );
    let read = bytes(&memory, 8192);
    assert!(read[..512] == written[..512] && read[7680..] == written[7680..]);
    assert!(read[512..7680].iter().all(|&byte| byte == 0));
}

#[test]
fn flush_takes_a_namespace_or_all() {
    let mut host = Host::with_queue("nsids=1:3", 8);
    for nsid in [1, 3, u32::MAX] {
        assert_eq!(host.run(1, command(0, nsid)).status, 0);
    }
    for (nsid, status) in [(0, 0x00b), (2, 0x002), (4, 0x00b)] {
        assert_eq!(host.refused(1, command(0, nsid)), status);
    }
    let mut host = Host::with_queue("vwc=off", 8);
    assert_eq!(host.run(1, command(0, 1)).status, 0);
    assert_eq!(
        host.refused(1, command(0, u32::MAX)),
        0x00b,
        "broadcast is offered with a cache only"
    );
}

#[test]
fn null_moves_nothing_but_checks_all() {
    let mut host = Host::with_queue("backend=null,size=1M", 8);
    let memory = host.memory(4096);
    let written = fill(&memory, 5);
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 8, memory.iova().0, 0))
            .status,
        0
    );
    assert!(bytes(&memory, 4096) == written);
    assert_eq!(
        host.refused(1, Host::transfer(2, 2048, 1, memory.iova().0, 0)),
        0x080
    );
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 1, 0x7000_0000, 0)),
        0x004
    );
}

#[test]
fn full_queues_wait_for_the_head_doorbell() {
    let mut host = Host::with_queue("mqes=4", 4);
    for round in 0..50 {
        let count = round % 3 + 1;
        let cids: Vec<u16> = (0..count).map(|_| host.submit(1, command(0, 1))).collect();
        assert_eq!(host.emulator.step(), count);
        for cid in cids {
            let entry = host.take(1).unwrap();
            assert_eq!((entry.cid, entry.status), (cid, 0));
        }
        assert!(host.take(1).is_none());
    }
    // Two submission queues that report to one completion queue: it fills, and nothing is lost.
    let memory = host.memory(4096);
    let second = host.create_submission_queue(2, 4, memory.iova().0, 1);
    host.admin(second);
    for _ in 0..3 {
        host.submit(1, command(0, 1));
    }
    for entry in 0..3 {
        for (index, dword) in command(0, 1).into_iter().enumerate() {
            memory.write_u32(entry * 64 + index * 4, dword).unwrap();
        }
    }
    host.ring_doorbell(2, false, 3);
    let mut queues = Vec::new();
    for _ in 0..6 {
        host.emulator.step();
        let entry = host.take(1).unwrap();
        queues.push(entry.sqid);
    }
    queues.sort_unstable();
    assert_eq!(queues, [1, 1, 1, 2, 2, 2]);
}

#[test]
fn queues_may_be_as_large_as_mqes() {
    let host = Host::with_queue("mqes=65536,backend=null", 65536);
    let memory = host.memory(4096);
    let ring = &host.rings[&1];
    for (index, dword) in Host::transfer(2, 0, 8, memory.iova().0, 0)
        .into_iter()
        .enumerate()
    {
        for entry in 0..65535 {
            ring.submission
                .write_u32(entry * 64 + index * 4, dword)
                .unwrap();
        }
    }
    host.ring_doorbell(1, false, 65535);
    assert_eq!(host.emulator.step(), 65535);
}
