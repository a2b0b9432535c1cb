//! Random commands of a client against a slow model of the real medium: statuses, data, and every block of the medium, byte by byte.
#![allow(unsafe_code)] // entries with data pointers of the test's own making, over the test's own buffers

use std::collections::BTreeSet;

use nvme_vfio::{Buffer, Completion, IoQueue, QueueOptions};
use nvme_vfio_queues::{Command, NvmOpcode, Status};
use proptest::prelude::*;

use super::super::{Isolated, Slice};
use super::rig::{Plan, Rig, slice};

const BLOCK: usize = 512;
const PAGE: usize = 4096;
/// Blocks of each of the two real namespaces.
const BLOCKS: u64 = 2048;
/// Pages of data of the client.
const PAGES: usize = 40;

/// What a real medium holds.
struct Medium {
    bytes: Vec<u8>,
    poisoned: BTreeSet<u64>,
}

struct Model {
    /// Blocks that one source range of a Copy, and all together, may have.
    copy: [u64; 2],
    media: [Medium; 2],
    /// The client's blocks: real namespace (0 or 1) and block.
    table: Vec<(usize, u64)>,
}

impl Model {
    fn block(&self, block: u64) -> &[u8] {
        let (medium, lba) = self.table[block as usize];
        &self.media[medium].bytes[lba as usize * BLOCK..][..BLOCK]
    }

    fn set(&mut self, block: u64, bytes: &[u8]) {
        let (medium, lba) = self.table[block as usize];
        let medium = &mut self.media[medium];
        medium.poisoned.remove(&lba);
        medium.bytes[lba as usize * BLOCK..][..BLOCK].copy_from_slice(bytes);
    }

    fn is_poisoned(&self, block: u64) -> bool {
        let (medium, lba) = self.table[block as usize];
        self.media[medium].poisoned.contains(&lba)
    }

    fn any_poisoned(&self, first: u64, blocks: u64) -> bool {
        (first..first + blocks).any(|block| self.is_poisoned(block))
    }
}

/// The client's side of the test.
struct Client {
    rig: Rig,
    queue: IoQueue,
    data: Buffer,
    lists: Buffer,
}

impl Client {
    fn run(&mut self, command: Command) -> Completion {
        // SAFETY: the data pointers of the test lead into its two buffers, which it does not touch before the completion was polled.
        unsafe { self.queue.submit_raw(command, 7) }.unwrap();
        self.queue.ring();
        for _ in 0..10_000 {
            if let Some(completion) = self.queue.poll() {
                return completion;
            }
            self.rig.step();
        }
        panic!("the command never ends: {command:?}");
    }

    /// Lays data out over pages of the client in this order, from `offset` on; PRP1 and PRP2.
    fn prps(&mut self, pages: &[usize], offset: usize, length: usize) -> (u64, u64) {
        let data = self.data.iova().0;
        let at = |page: usize| data + (page * PAGE) as u64;
        let rest = length.saturating_sub(PAGE - offset).div_ceil(PAGE);
        let prp1 = at(pages[0]) + offset as u64;
        let prp2 = match rest {
            0 => 0,
            1 => at(pages[1]),
            _ => {
                for (slot, page) in pages[1..=rest].iter().enumerate() {
                    self.lists[slot * 8..][..8].copy_from_slice(&at(*page).to_le_bytes());
                }
                self.lists.iova().0
            }
        };
        (prp1, prp2)
    }

    /// The offset of each byte of data in the buffer.
    fn places(pages: &[usize], offset: usize, length: usize) -> impl Iterator<Item = usize> {
        let bytes = pages
            .iter()
            .flat_map(|page| page * PAGE..(page + 1) * PAGE)
            .skip(offset)
            .take(length);
        bytes.collect::<Vec<_>>().into_iter()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Read,
    Write(u8),
    Compare { right: bool },
    WriteZeroes { deallocate: bool },
    Verify,
    Poison,
    Flush,
    Deallocate(Vec<(u64, u64)>),
    Copy(Vec<(u64, u64)>),
}

fn op(poison: bool) -> impl Strategy<Value = Op> {
    let ranges = || prop::collection::vec((0u64..1000, 0u64..12), 1..9);
    prop_oneof![
        3 => Just(Op::Read),
        3 => any::<u8>().prop_map(Op::Write),
        1 => any::<bool>().prop_map(|right| Op::Compare { right }),
        1 => any::<bool>().prop_map(|deallocate| Op::WriteZeroes { deallocate }),
        1 => Just(Op::Verify),
        1 => Just(if poison { Op::Poison } else { Op::Flush }),
        1 => Just(Op::Flush),
        1 => ranges().prop_map(Op::Deallocate),
        1 => ranges().prop_map(Op::Copy),
    ]
}

#[derive(Debug, Clone)]
struct Step {
    op: Op,
    first: u64,
    blocks: u64,
    /// Where the data begins in its first page, in dwords.
    dwords: usize,
    order: prop::sample::Index,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        op(true),
        0u64..1000,
        1u64..=256,
        0usize..1024,
        any::<prop::sample::Index>(),
    );
    let step = step.prop_map(|(op, first, blocks, dwords, order)| Step {
        op,
        first,
        blocks,
        dwords,
        order,
    });
    prop::collection::vec(step, 1..60)
}

fn slices(several: bool) -> impl Strategy<Value = Vec<Slice>> {
    let nsids = if several { 1u32..3 } else { 1..2 };
    prop::collection::vec((nsids, 1u64..300), 1..8).prop_map(|parts| {
        // Never overlapping, ascending or not.
        let mut next = [3u64, 5];
        let mut slices: Vec<Slice> = parts
            .iter()
            .map(|&(nsid, blocks)| {
                let next = &mut next[nsid as usize - 1];
                let blocks = blocks.min((BLOCKS - 20 - *next).max(1));
                let slice = slice(nsid, *next, blocks);
                *next += blocks + blocks % 3;
                slice
            })
            .collect();
        slices.reverse();
        slices
    })
}

fn client(slices: &[Slice], isolated: Isolated, limits: &str) -> (Client, Model) {
    let rig = Rig::new(Plan {
        device: format!("size=1M,lba=512,stepped,mdts=5,namespaces=2{limits}"),
        slices: vec![slices.to_vec()],
        isolated,
        ..Plan::default()
    });
    let media = [1u32, 2].map(|nsid| {
        let bytes: Vec<u8> = (0..BLOCKS as usize * BLOCK)
            .map(|at| (at / BLOCK * 13 + at * nsid as usize) as u8)
            .collect();
        for (chunk, at) in bytes.chunks(64 << 10).zip((0..).step_by(128)) {
            rig.set_real(nsid, at, chunk);
        }
        Medium {
            bytes,
            poisoned: BTreeSet::new(),
        }
    });
    let table = slices
        .iter()
        .flat_map(|slice| {
            let medium = slice.nsid as usize - 1;
            (slice.start..slice.start + slice.blocks).map(move |lba| (medium, lba))
        })
        .collect();
    let queue = rig.client.io_queue(QueueOptions::with_depth(8)).unwrap();
    let data = rig.client.allocate(PAGES * PAGE).unwrap();
    let lists = rig.client.allocate(2 * PAGE).unwrap();
    let client = Client {
        rig,
        queue,
        data,
        lists,
    };
    let [range, all] = if limits == LIMITS {
        [5, 11]
    } else {
        [128, 1024]
    };
    let copy = [range, all];
    (client, Model { copy, media, table })
}

/// Every block of the medium, but for those that cannot be read.
fn compare_media(client: &Client, model: &Model) {
    for (medium, nsid) in model.media.iter().zip(1u32..) {
        let mut lba = 0;
        while lba < BLOCKS {
            let end = medium
                .poisoned
                .range(lba..)
                .next()
                .copied()
                .unwrap_or(BLOCKS);
            let blocks = (end - lba).min(128) as usize;
            if blocks == 0 {
                lba += 1;
                continue;
            }
            let want = &medium.bytes[lba as usize * BLOCK..][..blocks * BLOCK];
            let got = client.rig.real(nsid, lba, blocks);
            if got != want {
                let at = got
                    .iter()
                    .zip(want)
                    .position(|(got, want)| got != want)
                    .unwrap();
                panic!(
                    "namespace {nsid}: block {} differs",
                    lba + (at / BLOCK) as u64
                );
            }
            lba += blocks as u64;
        }
    }
}

/// Where a command's data is: pages in some order, and an offset.
fn layout(step: &Step) -> (Vec<usize>, usize) {
    let mut pages: Vec<usize> = (0..PAGES).collect();
    // Some neighbours, some not.
    let by = step.order.index(PAGES);
    pages.rotate_left(by);
    if by % 3 == 1 {
        pages.reverse();
    }
    (pages, step.dwords * 4)
}

fn run(client: &mut Client, model: &mut Model, step: &Step, index: usize) {
    let total = model.table.len() as u64;
    let first = step.first % total;
    let blocks = step.blocks.min(total - first);
    let length = blocks as usize * BLOCK;
    let (pages, offset) = layout(step);
    let base = Command {
        nsid: 1,
        cdw10: first as u32,
        cdw12: blocks as u32 - 1,
        ..Command::ZERO
    };
    let with_data = |client: &mut Client, opcode: NvmOpcode| {
        let (prp1, prp2) = client.prps(&pages, offset, length);
        Command {
            opcode: opcode.0,
            prp1,
            prp2,
            ..base
        }
    };
    let clean = |ranges: &[(u64, u64)]| -> Vec<(u64, u64)> {
        let inside = |&(first, blocks): &(u64, u64)| {
            let first = first % total;
            (first, blocks.min(total - first))
        };
        ranges.iter().map(inside).collect()
    };
    match &step.op {
        Op::Read => {
            client.data.fill(0xee);
            let command = with_data(client, NvmOpcode::READ);
            let status = client.run(command).entry.status();
            if model.any_poisoned(first, blocks) {
                assert!(status.is(Status::UNRECOVERED_READ_ERROR), "{status}");
                return;
            }
            assert!(status.is_success(), "{status}");
            let mut touched = vec![false; PAGES * PAGE];
            for (at, place) in Client::places(&pages, offset, length).enumerate() {
                touched[place] = true;
                let want = model.block(first + (at / BLOCK) as u64)[at % BLOCK];
                assert_eq!(client.data[place], want, "byte {at}");
            }
            let beside = client
                .data
                .iter()
                .zip(&touched)
                .find(|(byte, touched)| !**touched && **byte != 0xee);
            assert_eq!(beside, None, "bytes beside the data were written");
        }
        Op::Write(seed) => {
            let bytes: Vec<u8> = (0..length)
                .map(|at| (at * 31 + index + usize::from(*seed)) as u8)
                .collect();
            for (place, byte) in Client::places(&pages, offset, length).zip(&bytes) {
                client.data[place] = *byte;
            }
            let command = with_data(client, NvmOpcode::WRITE);
            let status = client.run(command).entry.status();
            assert!(status.is_success(), "{status}");
            for (block, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
                model.set(block, bytes);
            }
        }
        Op::Compare { right } => {
            let wrong = step.order.index(length);
            for (at, place) in Client::places(&pages, offset, length).enumerate() {
                let byte = model.block(first + (at / BLOCK) as u64)[at % BLOCK];
                client.data[place] = byte ^ u8::from(!right && at == wrong);
            }
            let command = with_data(client, NvmOpcode::COMPARE);
            let status = client.run(command).entry.status();
            if model.any_poisoned(first, blocks) {
                assert!(!status.is_success());
            } else if *right {
                assert!(status.is_success(), "{status}");
            } else {
                assert!(status.is(Status::COMPARE_FAILURE), "{status}");
            }
        }
        Op::WriteZeroes { deallocate } => {
            let completion = client.run(Command {
                opcode: NvmOpcode::WRITE_ZEROES.0,
                cdw12: base.cdw12 | u32::from(*deallocate) << 25,
                ..base
            });
            assert!(completion.entry.status().is_success());
            (first..first + blocks).for_each(|block| model.set(block, &[0; BLOCK]));
        }
        Op::Verify => {
            let completion = client.run(Command {
                opcode: NvmOpcode::VERIFY.0,
                ..base
            });
            let bad = model.any_poisoned(first, blocks);
            assert_eq!(completion.entry.status().is_success(), !bad);
        }
        Op::Poison => {
            let blocks = blocks.min(3);
            let completion = client.run(Command {
                opcode: NvmOpcode::WRITE_UNCORRECTABLE.0,
                cdw12: blocks as u32 - 1,
                ..base
            });
            assert!(completion.entry.status().is_success());
            for block in first..first + blocks {
                let (medium, lba) = model.table[block as usize];
                model.media[medium].poisoned.insert(lba);
            }
        }
        Op::Flush => {
            let completion = client.run(Command {
                opcode: NvmOpcode::FLUSH.0,
                nsid: 1,
                ..Command::ZERO
            });
            assert!(completion.entry.status().is_success());
        }
        Op::Deallocate(ranges) => {
            let ranges = clean(ranges);
            for (slot, (first, blocks)) in ranges.iter().enumerate() {
                let list = &mut client.lists[slot * 16..][..16];
                list[..4].fill(0);
                list[4..8].copy_from_slice(&(*blocks as u32).to_le_bytes());
                list[8..].copy_from_slice(&first.to_le_bytes());
            }
            let completion = client.run(Command {
                opcode: NvmOpcode::DATASET_MANAGEMENT.0,
                prp1: client.lists.iova().0,
                cdw10: ranges.len() as u32 - 1,
                cdw11: 4,
                cdw12: 0,
                ..base
            });
            let status = completion.entry.status();
            assert!(status.is_success(), "{status}");
            for (first, blocks) in ranges {
                (first..first + blocks).for_each(|block| model.set(block, &[0; BLOCK]));
            }
        }
        Op::Copy(ranges) => run_copy(client, model, first, &clean(ranges)),
    }
}

fn run_copy(client: &mut Client, model: &mut Model, to: u64, ranges: &[(u64, u64)]) {
    let total = model.table.len() as u64;
    let [longest, most] = model.copy;
    let mut room = (total - to).min(most);
    let mut sources: Vec<(u64, u64)> = Vec::new();
    for &(first, blocks) in ranges {
        let blocks = blocks.min(room).min(longest);
        // The length of a source is counted from zero.
        if blocks > 0 {
            sources.push((first, blocks));
            room -= blocks;
        }
    }
    if sources.is_empty() {
        return;
    }
    for (slot, (first, blocks)) in sources.iter().enumerate() {
        let list = &mut client.lists[slot * 32..][..32];
        list.fill(0);
        list[8..16].copy_from_slice(&first.to_le_bytes());
        list[16..18].copy_from_slice(&(*blocks as u16 - 1).to_le_bytes());
    }
    let completion = client.run(Command {
        opcode: NvmOpcode::COPY.0,
        nsid: 1,
        prp1: client.lists.iova().0,
        cdw10: to as u32,
        cdw12: sources.len() as u32 - 1,
        ..Command::ZERO
    });
    let status = completion.entry.status();
    let copied: u64 = sources.iter().map(|(_, blocks)| blocks).sum();
    let overlaps = sources
        .iter()
        .any(|&(first, blocks)| first < to + copied && to < first + blocks);
    let poisoned = sources
        .iter()
        .position(|&(first, blocks)| model.any_poisoned(first, blocks));
    if status.is(Status::OVERLAPPING_IO_RANGE) {
        assert!(overlaps);
        return;
    }
    if overlaps && poisoned.is_some() {
        // What was poisoned may have been written meanwhile: whatever is there now.
        return learn(client, model, to, copied);
    }
    if let Some(range) = poisoned {
        assert!(status.is(Status::UNRECOVERED_READ_ERROR), "{status}");
        assert_eq!(
            completion.entry.result(),
            range as u32,
            "the first range that was not copied"
        );
        return learn(client, model, to, copied);
    }
    assert!(status.is_success(), "{status}");
    let mut at = to;
    for &(first, blocks) in &sources {
        let data: Vec<Vec<u8>> = (first..first + blocks)
            .map(|block| model.block(block).to_vec())
            .collect();
        for bytes in data {
            model.set(at, &bytes);
            at += 1;
        }
    }
}

/// Takes what the medium holds now in these blocks of the client into the model.
fn learn(client: &Client, model: &mut Model, first: u64, blocks: u64) {
    for block in first..first + blocks {
        let (medium, lba) = model.table[block as usize];
        let namespace = client.rig.server.namespace(medium as u32 + 1).unwrap();
        let mut queue = client
            .rig
            .server
            .io_queue(QueueOptions::with_depth(1))
            .unwrap();
        let buffer = client.rig.server.allocate(BLOCK).unwrap();
        match queue.read_blocking(&namespace, lba, buffer) {
            Ok(buffer) => model.set(block, &buffer),
            Err(_) => {
                model.media[medium].poisoned.insert(lba);
            }
        }
    }
}

fn check(slices: &[Slice], steps: &[Step], isolated: Isolated, limits: &str, copies: bool) {
    let (mut client, mut model) = client(slices, isolated, limits);
    for (index, step) in steps.iter().enumerate() {
        if copies || !matches!(step.op, Op::Copy(_)) {
            run(&mut client, &mut model, step, index);
        }
        if index % 20 == 19 {
            compare_media(&client, &model);
        }
    }
    compare_media(&client, &model);
    assert_eq!(client.rig.device.iommu().fault_count(), 0);
}

const NO_LIMITS: &str = ",msrc=127,mssrl=128,mcl=1024";
/// A controller that takes little in one command.
const LIMITS: &str = ",vsl=1,wzsl=1,wusl=1,dmrl=3,dmrsl=7,dmsl=9,msrc=7,mssrl=5,mcl=11";

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(5))]

    #[test]
    fn commands_on_one_namespace_do_what_they_say(slices in slices(false), steps in steps()) {
        check(&slices, &steps, Isolated::Shared, NO_LIMITS, true);
        check(&slices, &steps, Isolated::Bounce, NO_LIMITS, true);
    }

    #[test]
    fn commands_on_several_namespaces_do_what_they_say(slices in slices(true), steps in steps()) {
        check(&slices, &steps, Isolated::Shared, NO_LIMITS, false);
        check(&slices, &steps, Isolated::Bounce, NO_LIMITS, false);
    }

    #[test]
    fn a_controller_that_takes_little_at_once_is_given_little(slices in slices(false), steps in steps()) {
        check(&slices, &steps, Isolated::Shared, LIMITS, true);
    }
}
