//! Plain reads and writes have a short way through the controller. It must not be told from the long one, which a traced controller
//! takes.

use nvme_vfio_dma::{Access, SharedMemory};
use nvme_vfio_emulator::Trace;
use proptest::prelude::*;

use crate::host::*;
use nvme_vfio_seeded::seeded;

const SIZE: &str = "size=1M,mdts=2,queues=2,nsids=1:3";
/// Pages of data memory. Behind them nothing is mapped.
const PAGES: u64 = 8;

/// A command, with places in the data memory for addresses.
#[derive(Clone, Debug)]
struct Shape {
    opcode: u8,
    flags: u8,
    nsid: u32,
    lba: u64,
    dword12: u32,
    prp1: u64,
    prp2: u64,
}

fn shape() -> impl Strategy<Value = Shape> {
    let opcode = prop_oneof![8 => Just(2u8), 8 => Just(1), 1 => Just(0), 1 => Just(4), 1 => Just(5), 1 => Just(8), 1 => Just(0x7f)];
    let flags = prop_oneof![20 => Just(0u8), 1 => any::<u8>()];
    let nsid =
        prop_oneof![10 => Just(1u32), 5 => Just(3), 1 => Just(2), 1 => Just(0), 1 => any::<u32>()];
    let lba = prop_oneof![10 => 0u64..64, 2 => 2030u64..2060, 1 => any::<u64>()];
    let count = prop_oneof![10 => 0u32..24, 2 => 24u32..40, 1 => any::<u32>()];
    let high = prop_oneof![20 => Just(0u32), 1 => any::<u32>()];
    let place = prop_oneof![10 => 0..PAGES * 8, 1 => PAGES * 8..PAGES * 8 + 16];
    let low = prop_oneof![20 => Just(0u64), 1 => 0u64..512];
    let page = prop_oneof![10 => (0..PAGES).prop_map(|page| page * 4096), 1 => 0..PAGES * 4096, 1 => Just(PAGES * 4096)];
    (opcode, flags, nsid, lba, count, high, place, low, page).prop_map(
        |(opcode, flags, nsid, lba, count, high, place, low, prp2)| Shape {
            opcode,
            flags,
            nsid,
            lba,
            dword12: count & 0xffff | high & 0xffff_0000,
            prp1: place * 512 + low,
            prp2,
        },
    )
}

/// A controller with its data memory.
struct Side {
    host: Host,
    data: SharedMemory,
    /// PRP lists that name the pages of the data in turn, where no command can change them.
    lists: SharedMemory,
    trace: Option<Trace>,
}

impl Side {
    fn new(traced: bool) -> Side {
        let mut host = Host::enabled(SIZE);
        // A completion queue that is a bit longer than the submission queue, so that batches meet its end everywhere.
        host.create_queue(1, 16);
        let data = host.memory(PAGES as usize * 4096);
        let pattern: Vec<u8> = (0..PAGES as usize * 4096)
            .map(|at| (at >> 9) as u8 ^ at as u8)
            .collect();
        data.write_bytes(0, &pattern).unwrap();
        let lists = host.space.shared(4096, Access::DEVICE_READ).unwrap();
        for slot in 0..512 {
            let page = data.iova().0 + slot as u64 % PAGES * 4096;
            lists.write_u64(slot * 8, page).unwrap();
        }
        let trace = traced.then(|| host.emulator.trace(16).unwrap());
        Side {
            host,
            data,
            lists,
            trace,
        }
    }

    /// Submits a batch and takes all that comes.
    fn run(&mut self, batch: &[Shape]) -> Vec<Entry> {
        for shape in batch {
            let mut dwords = command(shape.opcode, shape.nsid);
            dwords[0] |= u32::from(shape.flags) << 8;
            dwords[10] = shape.lba as u32;
            dwords[11] = (shape.lba >> 32) as u32;
            dwords[12] = shape.dword12;
            let base = self.data.iova().0;
            let length = (u64::from(shape.dword12 as u16) + 1) * 512;
            let listed = length > 8192 - shape.prp1 % 4096;
            let prp2 = if listed {
                self.lists.iova().0 + shape.prp2 % 2048 / 8 * 8
            } else {
                base + shape.prp2
            };
            self.host
                .submit(1, with_prps(dwords, base + shape.prp1, prp2));
        }
        self.host.emulator.step();
        // Errors that are found before anything moves overtake others on the long way, as they may.
        let mut entries: Vec<Entry> = std::iter::from_fn(|| self.host.take(1)).collect();
        entries.sort_by_key(|entry| entry.cid);
        entries
    }
}

proptest! {
    #![proptest_config(seeded(300))]

    #[test]
    fn the_short_way_does_what_the_long_one_does(
        batches in prop::collection::vec(prop::collection::vec(shape(), 1..15), 1..8)
    ) {
        let (mut short, mut long) = (Side::new(false), Side::new(true));
        prop_assert_eq!(short.data.iova(), long.data.iova());
        for batch in &batches {
            prop_assert_eq!(short.run(batch), long.run(batch), "{:?}", batch);
            let bytes = PAGES as usize * 4096;
            prop_assert!(bytes_equal(&short.data, &long.data, bytes), "{:?}", batch);
        }
        prop_assert_eq!(short.host.log(2, 512, 0, 0), long.host.log(2, 512, 0, 0), "SMART");
        let faults = |side: &Side| side.host.emulator.iommu().faults();
        prop_assert_eq!(faults(&short), faults(&long));
        let statistics = |side: &Side| {
            let statistics = side.host.emulator.statistics();
            (statistics.commands, statistics.completions, statistics.unsupported_commands)
        };
        prop_assert_eq!(statistics(&short), statistics(&long));
        prop_assert!(long.trace.is_some());
    }
}

fn bytes_equal(one: &SharedMemory, other: &SharedMemory, length: usize) -> bool {
    bytes(one, length) == bytes(other, length)
}

#[test]
fn a_turn_is_bounded_on_the_short_way_and_on_the_long_one() {
    let mut host = Host::with_queue("size=1M", 64);
    let memory = host.memory(4096);
    let read = Host::transfer(2, 0, 8, memory.iova().0, 0);
    let mut turns = || {
        for _ in 0..20 {
            host.submit(1, read);
        }
        let fetched = [8; 4].map(|limit| host.emulator.turn(limit).fetched);
        assert_eq!(fetched, [8, 8, 4, 0]);
        while host.take(1).is_some() {}
    };
    turns();
    // The bound is the turn's own.
    turns();
    let trace = host.emulator.trace(16).unwrap();
    for _ in 0..20 {
        host.submit(1, read);
    }
    assert_eq!(host.emulator.turn(8).fetched, 8);
    assert_eq!(host.emulator.step(), 12);
    drop(trace);
}
