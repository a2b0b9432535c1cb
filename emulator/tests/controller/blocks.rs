//! The commands that move no data of blocks: Write Uncorrectable, Verify, Write Zeroes, Dataset Management.

use std::sync::{Arc, Mutex};

use nvme_vfio_dma::{AddressSpace, SharedMemory};
use nvme_vfio_emulator::{
    Backend, BackendCompletion, DeviceMemory, Emulator, Operation, Outcome, Request, Segment,
};

use crate::host::*;

const WRITE: u8 = 1;
const READ: u8 = 2;
const WRITE_UNCORRECTABLE: u8 = 4;
const COMPARE: u8 = 5;
const WRITE_ZEROES: u8 = 8;
const DATASET_MANAGEMENT: u8 = 9;
const VERIFY: u8 = 0x0c;

/// A command on `blocks` from `lba` that has no data.
fn on(opcode: u8, lba: u64, blocks: u32) -> Dwords {
    Host::transfer(opcode, lba, blocks, 0, 0)
}

fn good(host: &mut Host, dwords: Dwords) -> u32 {
    let entry = host.run(1, dwords);
    assert_eq!(entry.status, 0, "{dwords:x?}");
    entry.result
}

/// Writes ones over all of a namespace of 128 blocks of 512 bytes.
fn fill(host: &mut Host, memory: &SharedMemory) {
    memory.write_bytes(0, &[1; 8192]).unwrap();
    let iova = memory.iova().0;
    for lba in (0..128).step_by(16) {
        good(host, Host::transfer(WRITE, lba, 16, iova, iova + 4096));
    }
}

/// Which of 128 blocks are zero, the others being ones.
fn zero(host: &mut Host, memory: &SharedMemory) -> Vec<u64> {
    let iova = memory.iova().0;
    let mut zero = Vec::new();
    for lba in 0..128 {
        good(host, Host::transfer(READ, lba, 1, iova, 0));
        let block = bytes(memory, 512);
        assert!(block.iter().all(|&byte| byte == block[0]), "block {lba}");
        if block[0] == 0 {
            zero.push(lba);
        }
    }
    zero
}

#[test]
fn uncorrectable_blocks_cannot_be_read_until_they_are_written() {
    let mut host = Host::with_queue("size=64K", 8);
    let memory = host.memory(8192);
    let iova = memory.iova().0;
    fill(&mut host, &memory);
    good(&mut host, on(WRITE_UNCORRECTABLE, 10, 4));
    for opcode in [READ, COMPARE, VERIFY] {
        for (lba, blocks, fails) in [
            (9, 1, false),
            (14, 1, false),
            (0, 10, false),
            (10, 1, true),
            (13, 1, true),
            (0, 11, true),
            (13, 16, true),
            (5, 16, true),
        ] {
            let entry = host.run(1, Host::transfer(opcode, lba, blocks, iova, iova + 4096));
            let expected = if fails { 0x281 } else { 0 };
            assert_eq!(entry.status, expected, "{opcode:#x} of {blocks} at {lba}");
        }
    }
    let (_, log) = host.log(1, 64, 0, 0);
    assert_eq!(u64_at(&log, 16), 10, "the first block that cannot be read");
    let (_, smart) = host.log(2, 512, 0, 0);
    assert_eq!(u64_at(&smart, 160), 15, "media errors");
    // A failed read moves nothing.
    memory.write_bytes(0, &[9; 512]).unwrap();
    assert_eq!(host.refused(1, Host::transfer(READ, 10, 1, iova, 0)), 0x281);
    assert_eq!(bytes(&memory, 512), [9; 512]);
    // A write that fails heals nothing.
    assert_eq!(
        host.refused(1, Host::transfer(WRITE, 10, 1, 0x7000_0000, 0)),
        0x004
    );
    assert_eq!(host.refused(1, on(VERIFY, 10, 1)), 0x281);
    // Each of these heals the blocks it writes.
    good(&mut host, Host::transfer(WRITE, 10, 1, iova, 0));
    good(&mut host, on(WRITE_ZEROES, 11, 1));
    good(&mut host, with(on(WRITE_ZEROES, 12, 1), 12, 1 << 25));
    assert_eq!(host.refused(1, on(VERIFY, 10, 4)), 0x281);
    let ranges = range(13, 1);
    assert_eq!(host.run_with(1, deallocate(1), &ranges).status, 0);
    good(&mut host, on(VERIFY, 0, 128));
    assert_eq!(zero(&mut host, &memory).len(), 3);
}

#[test]
fn a_host_cannot_mark_without_end() {
    let mut host = Host::with_queue("size=32M", 8);
    for index in 0..16_384 {
        good(&mut host, on(WRITE_UNCORRECTABLE, 2 * index, 1));
    }
    let far = on(WRITE_UNCORRECTABLE, 60_000, 1);
    assert_eq!(host.refused(1, far), 0x006);
    assert_eq!(host.run(1, on(VERIFY, 60_000, 1)).status, 0);
    good(&mut host, on(WRITE_ZEROES, 0, 1));
    good(&mut host, far);
}

#[test]
fn uncorrectable_blocks_belong_to_their_namespace() {
    let mut host = Host::with_queue("size=64K,namespaces=2", 8);
    good(&mut host, on(WRITE_UNCORRECTABLE, 0, 128));
    assert_eq!(host.refused(1, on(VERIFY, 127, 1)), 0x281);
    good(&mut host, with(on(VERIFY, 0, 128), 1, 2));
    host.write(CC, 0);
    host.enable();
    host.create_queue(1, 8);
    assert_eq!(
        host.refused(1, on(VERIFY, 0, 1)),
        0x281,
        "a reset heals nothing"
    );
}

#[test]
fn ranges_namespaces_and_directives_are_checked() {
    let mut host = Host::with_queue("size=64K,nsids=1:3", 8);
    for opcode in [WRITE_UNCORRECTABLE, WRITE_ZEROES, VERIFY] {
        good(&mut host, on(opcode, 127, 1));
        good(&mut host, on(opcode, 0, 128));
        good(&mut host, on(WRITE_ZEROES, 0, 128));
        for (lba, blocks) in [(128, 1), (127, 2), (0, 129), (u64::MAX, 1), (u64::MAX, 2)] {
            assert_eq!(host.refused(1, on(opcode, lba, blocks)), 0x080, "{opcode}");
        }
        for (nsid, status) in [(0, 0x00b), (2, 0x002), (4, 0x00b), (u32::MAX, 0x00b)] {
            let entry = with(on(opcode, 0, 1), 1, nsid);
            assert_eq!(host.refused(1, entry), status, "{opcode:#x} of {nsid}");
        }
        if opcode != VERIFY {
            let directive = with(on(opcode, 0, 1), 12, 1 << 20);
            assert_eq!(host.refused(1, directive), 0x002);
        }
    }
}

#[test]
fn limits_bound_what_mdts_does_not() {
    // Units of 4 KiB: 8 blocks.
    let mut host = Host::with_queue("size=1M,mdts=1,vsl=2,wzsl=3,wusl=4", 8);
    let (_, page) = host.identify(6, 0);
    assert_eq!(page[..3], [2, 3, 4]);
    for (opcode, most) in [(VERIFY, 32), (WRITE_ZEROES, 64), (WRITE_UNCORRECTABLE, 128)] {
        good(&mut host, on(opcode, 0, most));
        assert_eq!(host.refused(1, on(opcode, 0, most + 1)), 0x002, "{opcode}");
    }
    let mut host = Host::with_queue("size=64M,mdts=1,mpsmin=1,vsl=1", 8);
    for opcode in [WRITE_ZEROES, WRITE_UNCORRECTABLE, WRITE_ZEROES] {
        good(&mut host, on(opcode, 0, 65536));
    }
    good(&mut host, on(VERIFY, 0, 32));
    assert_eq!(host.refused(1, on(VERIFY, 0, 33)), 0x002);
}

#[test]
fn write_zeroes_deallocates_and_zeroes_whole_namespaces() {
    let mut host = Host::with_queue("size=64K,namespaces=2", 8);
    let memory = host.memory(8192);
    fill(&mut host, &memory);
    let deac = 1 << 25;
    good(&mut host, with(on(WRITE_ZEROES, 3, 1), 12, deac | 19));
    assert_eq!(zero(&mut host, &memory), (3..23).collect::<Vec<_>>());
    let whole = with(on(WRITE_ZEROES, 1000, 1), 12, 1 << 23);
    for (nsid, status) in [(0, 0x00b), (3, 0x00b)] {
        assert_eq!(host.refused(1, with(whole, 1, nsid)), status);
    }
    assert_eq!(good(&mut host, with(whole, 1, 2)), 1, "all was zeroed");
    assert_eq!(zero(&mut host, &memory).len(), 20, "of the other namespace");
    good(&mut host, on(WRITE_UNCORRECTABLE, 5, 1));
    assert_eq!(good(&mut host, whole), 1);
    assert_eq!(zero(&mut host, &memory).len(), 128);
    let directive = with(whole, 12, 1 << 23 | 1 << 20);
    assert_eq!(host.refused(1, directive), 0x002);
}

/// A range of Dataset Management.
fn range(lba: u64, blocks: u32) -> Vec<u8> {
    let mut range = vec![0; 4];
    range.extend(blocks.to_le_bytes());
    range.extend(lba.to_le_bytes());
    range
}

/// Dataset Management with Deallocate, of `count` ranges.
fn deallocate(count: u32) -> Dwords {
    with(
        with(command(DATASET_MANAGEMENT, 1), 10, count - 1),
        11,
        1 << 2,
    )
}

#[test]
fn deallocated_ranges_read_as_zeroes() {
    let mut host = Host::with_queue("size=64K", 8);
    let memory = host.memory(8192);
    fill(&mut host, &memory);
    let ranges = [
        range(0, 1),
        range(5, 0), // no block: the length is 1's based
        range(10, 20),
        range(25, 3), // overlaps
        range(127, 1),
        range(128, 0),
    ]
    .concat();
    let advice = with(deallocate(6), 11, 0b011);
    assert_eq!(host.run_with(1, advice, &ranges).status, 0);
    assert_eq!(zero(&mut host, &memory), [0; 0], "only advice");
    assert_eq!(host.run_with(1, deallocate(6), &ranges).status, 0);
    let mut expected: Vec<u64> = (10..30).collect();
    expected.insert(0, 0);
    expected.push(127);
    assert_eq!(zero(&mut host, &memory), expected);
    // 256 ranges, across two pages.
    let many: Vec<u8> = (0..256u64).flat_map(|index| range(index / 4, 1)).collect();
    let data = host.memory(8192);
    data.write_bytes(1024, &many).unwrap();
    let iova = data.iova().0;
    good(
        &mut host,
        with_prps(deallocate(256), iova + 1024, iova + 4096),
    );
    let mut expected: Vec<u64> = (0..64).collect();
    expected.push(127);
    assert_eq!(zero(&mut host, &memory), expected);
    // Only the low byte of dword 10 counts ranges.
    let reserved = with(deallocate(1), 10, 0xffff_ff00);
    assert_eq!(host.run_with(1, reserved, &range(64, 1)).status, 0);
    assert_eq!(zero(&mut host, &memory).len(), 66);
}

#[test]
fn dataset_management_checks_all_before_it_does_anything() {
    let mut host = Host::with_queue("size=64K,nsids=1:3", 8);
    let memory = host.memory(8192);
    fill(&mut host, &memory);
    for bad in [
        range(128, 1),
        range(127, 2),
        range(129, 0),
        range(0, u32::MAX),
        range(u64::MAX, 1),
        range(u64::MAX, u32::MAX),
    ] {
        let ranges = [range(3, 1), bad].concat();
        for entry in [deallocate(2), with(deallocate(2), 11, 0)] {
            assert_eq!(host.run_with(1, entry, &ranges).status, 0x080);
        }
    }
    for (nsid, status) in [(0, 0x00b), (2, 0x002), (4, 0x00b), (u32::MAX, 0x00b)] {
        let entry = with(deallocate(1), 1, nsid);
        assert_eq!(host.run_with(1, entry, &range(3, 1)).status, status);
    }
    assert_eq!(
        host.refused(1, with_prps(deallocate(1), 0x7000_0000, 0)),
        0x004
    );
    let edge = memory.iova().0 + 8192 - 16;
    assert_eq!(
        host.refused(1, with_prps(deallocate(2), edge, 0x7000_0000)),
        0x004,
        "the second range cannot be reached"
    );
    assert_eq!(
        host.refused(1, with_prps(deallocate(1), memory.iova().0 + 1, 0)),
        0x013
    );
    assert_eq!(zero(&mut host, &memory), [0; 0]);
}

#[test]
fn dataset_management_is_bounded() {
    let mut host = Host::with_queue("size=64K,dmrl=3,dmrsl=10,dmsl=20", 8);
    let (_, page) = host.identify(6, 0);
    assert_eq!(
        (page[3], u32_at(&page, 4), u64_at(&page, 8)),
        (3, 10, 20),
        "DMRL, DMRSL, DMSL"
    );
    let three = [range(0, 10), range(10, 10), range(20, 0)].concat();
    assert_eq!(host.run_with(1, deallocate(3), &three).status, 0);
    let four = [range(0, 1), range(1, 1), range(2, 1), range(3, 1)].concat();
    assert_eq!(host.run_with(1, deallocate(4), &four).status, 0x183);
    assert_eq!(host.run_with(1, deallocate(1), &range(0, 11)).status, 0x183);
    let total = [range(0, 10), range(10, 10), range(20, 1)].concat();
    assert_eq!(host.run_with(1, deallocate(3), &total).status, 0x183);
}

#[test]
fn deallocated_blocks_are_errors_where_that_is_offered_and_asked_for() {
    let mut host = Host::with_queue("size=64K,dulbe", 8);
    let (_, page) = host.identify(0, 1);
    assert_eq!((page[24], u64_at(&page, 16)), (1 << 2, 0), "NSFEAT, NUSE");
    let memory = host.memory(4096);
    let iova = memory.iova().0;
    let read = Host::transfer(READ, 0, 8, iova, 0);
    good(&mut host, read);
    let recovery = |value| with(with(command(9, 1), 10, 5), 11, value);
    host.admin(recovery(1 << 16 | 3));
    assert_eq!(host.admin(with(command(0x0a, 1), 10, 5)), 1 << 16 | 3);
    for opcode in [READ, COMPARE, VERIFY] {
        let entry = Host::transfer(opcode, 0, 8, iova, 0);
        assert_eq!(host.refused(1, entry), 0x287, "{opcode:#x}: never written");
    }
    good(&mut host, Host::transfer(WRITE, 0, 8, iova, 0));
    good(&mut host, read);
    assert_eq!(u64_at(&host.identify(0, 1).1, 16), 8, "NUSE");
    assert_eq!(host.run_with(1, deallocate(1), &range(3, 1)).status, 0);
    assert_eq!(host.refused(1, read), 0x287);
    let (_, log) = host.log(1, 64, 0, 0);
    assert_eq!(u64_at(&log, 16), 3, "the block");
    let (_, smart) = host.log(2, 512, 0, 0);
    assert_eq!(u64_at(&smart, 160), 0, "no error of the medium");
    good(&mut host, on(WRITE_ZEROES, 3, 1));
    good(&mut host, read);
    host.admin(recovery(0));
    good(&mut host, on(VERIFY, 100, 1));
    let mut host = Host::enabled("size=64K");
    assert_eq!(host.identify(0, 1).1[24], 0);
    assert_eq!(host.refused(0, recovery(1 << 16)), 0x002, "not offered");
}

/// A back end that notes what it is asked for.
#[derive(Debug, Default)]
struct Notes {
    requests: Arc<Mutex<Vec<Request>>>,
    done: Vec<BackendCompletion>,
    /// Steps that a request takes.
    slow: usize,
}

/// A controller with an I/O queue on such a back end.
fn noting(config: &str, slow: usize) -> (Host, Arc<Mutex<Vec<Request>>>) {
    let backend = Notes {
        slow,
        ..Notes::default()
    };
    let requests = Arc::clone(&backend.requests);
    let mut host = Host::new("");
    host.emulator = Emulator::with_backend(config.parse().unwrap(), Box::new(backend)).unwrap();
    host.emulator.config_write(4, &[6, 0]);
    host.space = AddressSpace::new(host.emulator.iommu());
    host.enable();
    host.create_queue(1, 8);
    (host, requests)
}

impl Backend for Notes {
    fn submit(&mut self, requests: &[Request], _: &[Segment], _: &DeviceMemory<'_>) {
        self.requests.lock().unwrap().extend_from_slice(requests);
        self.done
            .extend(requests.iter().map(|request| BackendCompletion {
                tag: request.tag,
                outcome: Outcome::Done,
            }));
    }

    fn poll(&mut self, _: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        if self.slow > 0 && !self.done.is_empty() {
            self.slow -= 1;
            return;
        }
        completions.append(&mut self.done);
    }

    fn reset(&mut self) {}
}

#[test]
fn back_ends_are_asked_for_what_commands_say() {
    let (mut host, requests) = noting("nsids=3/1M/4096", 0);
    let memory = host.memory(4096);
    let (fua, deac, nsz) = (1 << 30, 1 << 25, 1 << 23);
    let whole = 1 << 20;
    for (opcode, flags, operation, offset, length) in [
        (READ, fua, Operation::Read, 5 << 12, 1 << 12),
        (WRITE, fua, Operation::Write, 5 << 12, 1 << 12),
        (COMPARE, fua, Operation::Compare, 5 << 12, 1 << 12),
        (VERIFY, fua, Operation::Verify, 5 << 12, 1 << 12),
        (WRITE_ZEROES, fua, Operation::WriteZeroes, 5 << 12, 1 << 12),
        (
            WRITE_ZEROES,
            fua | deac,
            Operation::Deallocate,
            5 << 12,
            1 << 12,
        ),
        (WRITE_ZEROES, fua | nsz, Operation::Deallocate, 0, whole),
    ] {
        for flags in [flags, flags & !fua] {
            let entry = with(Host::transfer(opcode, 5, 1, memory.iova().0, 0), 1, 3);
            good(&mut host, with(entry, 12, entry[12] | flags));
            let request = requests.lock().unwrap().pop().unwrap();
            assert_eq!(
                (request.operation, request.namespace),
                (operation, 3),
                "{opcode:#x}"
            );
            assert_eq!((request.offset, request.length), (offset, length));
            assert_eq!(request.force_unit_access, flags & fua != 0);
        }
    }
    let entry = with(deallocate(2), 1, 3);
    let ranges = [range(1, 2), range(7, 3)].concat();
    assert_eq!(host.run_with(1, entry, &ranges).status, 0);
    let told: Vec<_> = requests
        .lock()
        .unwrap()
        .drain(..)
        .map(|request| (request.operation, request.offset, request.length))
        .collect();
    let deallocate = |first: u64, count: u64| (Operation::Deallocate, first << 12, count << 12);
    assert_eq!(told, [deallocate(1, 2), deallocate(7, 3)]);
    for (nsid, namespace) in [(3, 3), (u32::MAX, 0)] {
        good(&mut host, command(0, nsid));
        let request = requests.lock().unwrap().pop().unwrap();
        assert_eq!(
            (request.operation, request.namespace),
            (Operation::Flush, namespace)
        );
    }
}

#[test]
fn without_a_write_cache_what_is_written_is_durable() {
    let off = with(with(command(9, 0), 10, 6), 11, 0);
    for (config, switch, durable) in [
        ("size=1M", None, false),
        ("size=1M", Some(off), true),
        ("size=1M,vwc=off", None, true),
    ] {
        let (mut host, requests) = noting(config, 0);
        if let Some(switch) = switch {
            host.admin(switch);
        }
        let memory = host.memory(4096);
        for opcode in [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY] {
            let entry = Host::transfer(opcode, 5, 1, memory.iova().0, 0);
            good(&mut host, entry);
            let request = requests.lock().unwrap().pop().unwrap();
            let writes = matches!(opcode, WRITE | WRITE_ZEROES);
            assert_eq!(
                request.force_unit_access,
                durable && writes,
                "{config} {opcode:#x}"
            );
        }
        let entry = deallocate(1);
        assert_eq!(host.run_with(1, entry, &range(1, 2)).status, 0);
        let copy = with(command(0x19, 1), 10, 64);
        assert_eq!(host.run_with(1, copy, &[0; 32]).status, 0);
        for request in requests.lock().unwrap().drain(..) {
            assert_eq!(request.force_unit_access, durable, "{request:?}");
        }
    }
}

#[test]
fn a_normal_shutdown_flushes_first() {
    const COMPLETE: u32 = 0b10 << 2;
    for (config, kind, flushes) in [
        ("size=1M", 1, 1),
        ("size=1M", 2, 0),
        ("size=1M,vwc=off", 1, 0),
    ] {
        // Enabled, enabled until then, and disabled before.
        for way in 0..3 {
            let (mut host, requests) = noting(config, 0);
            match way {
                0 => host.write(CC, CC_ENABLE | kind << 14),
                1 => host.write(CC, CC_ENABLE & !1 | kind << 14),
                _ => {
                    host.write(CC, CC_ENABLE & !1);
                    host.write(CC, CC_ENABLE & !1 | kind << 14);
                }
            }
            host.emulator.step();
            assert_eq!(host.read(CSTS) & 0b11 << 2, COMPLETE, "{config} {way}");
            let told: Vec<_> = requests.lock().unwrap().drain(..).collect();
            assert_eq!(told.len(), flushes, "{config} {kind} {way}");
            for request in told {
                assert_eq!(
                    (request.operation, request.namespace),
                    (Operation::Flush, 0)
                );
            }
            host.write(CC, 0);
            host.enable();
            assert_eq!(host.read(CSTS), RDY);
            host.admin(with(command(0x0a, 0), 10, 7));
        }
    }
    for enabled in [1, 0] {
        let (host, _) = noting("size=1M", 5);
        host.write(CC, CC_ENABLE & !1 | enabled | 1 << 14);
        assert_ne!(
            host.read(CSTS) & 0b11 << 2,
            COMPLETE,
            "the flush takes a while"
        );
        for _ in 0..6 {
            host.emulator.step();
        }
        assert_eq!(host.read(CSTS), COMPLETE | enabled);
    }
}
