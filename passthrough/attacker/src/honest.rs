//! What a client that keeps to the rules does, and what it must get.

use std::collections::BTreeMap;

use crate::client::{Client, pages};
use crate::learned::UNLIKE_MARKS;
use crate::memory::PAGE;
use crate::random::Random;
use crate::{Dwords, command, with, with_blocks, with_prps};

const BLOCK: usize = 512;

/// How a command's data lies in memory.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// From the start of a page on, pages one after the other.
    Aligned,
    /// So many bytes into a page.
    Offset(u64),
    /// Pages in descending order.
    Scattered,
    /// A list that begins near the end of its page and goes on in another.
    Chained,
    /// Over the end of one mapping into the next, which adjoins it.
    Seam,
}

/// An honest client and what its namespaces hold.
pub struct Honest<'a> {
    client: &'a mut Client,
    step: &'a mut dyn FnMut(),
    model: BTreeMap<u32, Vec<u8>>,
    random: Random,
    /// Whether what was deallocated reads as zeroes. Where it does not it may also read as before.
    pub deallocated_reads_zeroes: bool,
    /// Commands that succeeded, by what they were.
    pub done: Vec<String>,
}

impl<'a> Honest<'a> {
    /// Learns what the namespaces (identifier and blocks) hold by reading them.
    pub fn new(
        client: &'a mut Client,
        step: &'a mut dyn FnMut(),
        namespaces: &[(u32, u64)],
        random: Random,
    ) -> Honest<'a> {
        let mut honest = Honest {
            client,
            step,
            model: BTreeMap::new(),
            random,
            deallocated_reads_zeroes: true,
            done: Vec::new(),
        };
        for (nsid, blocks) in namespaces {
            let bytes = honest.learn(*nsid, 0, *blocks);
            honest.model.insert(*nsid, bytes);
        }
        honest.done.clear();
        honest
    }

    /// What blocks hold.
    fn learn(&mut self, nsid: u32, first: u64, blocks: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = first;
        while at < first + blocks {
            let now = (first + blocks - at).min(64) as u32;
            let (entry, places) = self.pointed(
                with_blocks(command(0x02, nsid), at, now),
                now as usize * BLOCK,
                Shape::Aligned,
            );
            self.expect("read", 1, entry);
            bytes.extend(self.gather(&places));
            at += u64::from(now);
        }
        bytes
    }

    fn expect(&mut self, what: &str, qid: u16, entry: Dwords) -> u64 {
        let done = self.client.run(qid, entry, self.step);
        assert_eq!(done.status, 0, "{what}: {entry:x?}: {done:x?}");
        self.done.push(what.to_owned());
        done.result
    }

    /// Places for so many bytes: pages, and the bytes in each.
    fn pointed(
        &mut self,
        entry: Dwords,
        bytes: usize,
        shape: Shape,
    ) -> (Dwords, Vec<(u64, usize)>) {
        let page = PAGE as u64;
        let first = match shape {
            Shape::Seam => pages::SEAM - bytes.div_ceil(PAGE).min(4).div_ceil(2),
            _ => pages::DATA,
        };
        let offset = match shape {
            Shape::Offset(offset) => offset,
            _ => 0,
        };
        let count = (offset as usize + bytes).div_ceil(PAGE);
        let mut addresses: Vec<u64> = (first..first + count)
            .map(|at| self.client.page(at))
            .collect();
        if matches!(shape, Shape::Scattered) {
            addresses.reverse();
        }
        let mut places = Vec::new();
        let mut left = bytes;
        for (index, address) in addresses.iter().enumerate() {
            let skip = if index == 0 { offset } else { 0 };
            let now = left.min((page - skip) as usize);
            places.push((address + skip, now));
            left -= now;
        }
        let list = self.client.page(pages::LISTS);
        let prp2 = match addresses.len() {
            1 => 0,
            2 => addresses[1],
            _ => {
                let begin = if matches!(shape, Shape::Chained) {
                    page - 16
                } else {
                    0
                };
                let mut at = list + begin;
                let mut rest = &addresses[1..];
                while let Some((next, later)) = rest.split_first() {
                    if (at + 8).is_multiple_of(page) && !later.is_empty() {
                        self.client.memory.store(at, list + page);
                        at = list + page;
                    }
                    self.client.memory.store(at, *next);
                    at += 8;
                    rest = later;
                }
                list + begin
            }
        };
        (with_prps(entry, addresses[0] + offset, prp2), places)
    }

    fn gather(&self, places: &[(u64, usize)]) -> Vec<u8> {
        places
            .iter()
            .flat_map(|(at, bytes)| {
                let (down, skip) = (at & !7, (at & 7) as usize);
                self.client.memory.read(down, bytes + skip)[skip..].to_vec()
            })
            .collect()
    }

    fn scatter(&self, places: &[(u64, usize)], mut from: &[u8]) {
        for (at, bytes) in places {
            let (down, skip) = (at & !7, (at & 7) as usize);
            let mut now = self.client.memory.read(down, skip);
            now.extend(&from[..*bytes]);
            self.client.memory.write(down, &now);
            from = &from[*bytes..];
        }
    }

    fn range(first: u64, blocks: u32) -> std::ops::Range<usize> {
        first as usize * BLOCK..(first as usize + blocks as usize) * BLOCK
    }

    fn held(&self, nsid: u32, first: u64, blocks: u32) -> Vec<u8> {
        self.model[&nsid][Self::range(first, blocks)].to_vec()
    }

    fn set(&mut self, nsid: u32, first: u64, blocks: u32, bytes: &[u8]) {
        let held = self.model.get_mut(&nsid).expect("a namespace");
        held[Self::range(first, blocks)].copy_from_slice(bytes);
    }

    /// Reads and compares.
    pub fn read(&mut self, nsid: u32, first: u64, blocks: u32, shape: Shape, flags: u32) {
        let bytes = blocks as usize * BLOCK;
        let entry = with_blocks(with(command(0x02, nsid), 12, flags), first, blocks);
        let (entry, places) = self.pointed(entry, bytes, shape);
        for (at, _) in &places {
            self.client
                .memory
                .fill(at & !0xfff, PAGE, 0x0bad_0bad_0bad_0bad);
        }
        self.expect(&format!("read {blocks} {shape:?} {flags:x}"), 1, entry);
        assert!(
            self.gather(&places) == self.held(nsid, first, blocks),
            "namespace {nsid}: {blocks} blocks from {first} read as {shape:?} are not what was written"
        );
    }

    /// Writes something new, and reads it back.
    pub fn write(&mut self, nsid: u32, first: u64, blocks: u32, shape: Shape, flags: u32) {
        let bytes = blocks as usize * BLOCK;
        let entry = with_blocks(with(command(0x01, nsid), 12, flags), first, blocks);
        let (entry, places) = self.pointed(entry, bytes, shape);
        let new: Vec<u8> = (0..bytes.div_ceil(8))
            .flat_map(|_| (self.random.next() | UNLIKE_MARKS).to_le_bytes())
            .collect();
        self.scatter(&places, &new);
        self.expect(&format!("write {blocks} {shape:?} {flags:x}"), 1, entry);
        self.set(nsid, first, blocks, &new[..bytes]);
        self.read(nsid, first, blocks, Shape::Aligned, 0);
    }

    /// Compares what is there, and then something else.
    pub fn compare(&mut self, nsid: u32, first: u64, blocks: u32, shape: Shape) {
        let entry = with_blocks(command(0x05, nsid), first, blocks);
        let (entry, places) = self.pointed(entry, blocks as usize * BLOCK, shape);
        let mut held = self.held(nsid, first, blocks);
        self.scatter(&places, &held);
        self.expect(&format!("compare {blocks} {shape:?}"), 1, entry);
        let last = held.len() - 1;
        held[last] ^= 1;
        self.scatter(&places, &held);
        let done = self.client.run(1, entry, self.step);
        assert_eq!(done.status, 0x285, "Compare Failure: {done:x?}");
    }

    /// A command without data on blocks.
    pub fn blocks(
        &mut self,
        what: &str,
        opcode: u8,
        nsid: u32,
        first: u64,
        blocks: u32,
        flags: u32,
    ) {
        let entry = with_blocks(with(command(opcode, nsid), 12, flags), first, blocks);
        self.expect(&format!("{what} {blocks} {flags:x}"), 1, entry);
        if opcode == 0x08 {
            self.set(nsid, first, blocks, &vec![0; blocks as usize * BLOCK]);
        }
        self.read(nsid, first, blocks.min(64), Shape::Aligned, 0);
    }

    /// Dataset Management.
    pub fn dataset(&mut self, nsid: u32, ranges: &[(u64, u32)], attributes: u32) {
        let list = self.client.page(pages::LISTS + 2);
        for (index, (first, blocks)) in ranges.iter().enumerate() {
            self.client
                .memory
                .store(list + index as u64 * 16, u64::from(*blocks) << 32);
            self.client
                .memory
                .store(list + index as u64 * 16 + 8, *first);
        }
        let entry = with(command(0x09, nsid), 10, ranges.len() as u32 - 1);
        let entry = with_prps(with(entry, 11, attributes), list, 0);
        self.expect(&format!("dsm {} {attributes}", ranges.len()), 1, entry);
        for (first, blocks) in ranges {
            if attributes & 4 != 0 {
                self.deallocated(nsid, *first, *blocks);
            }
            if *blocks > 0 {
                self.read(nsid, *first, (*blocks).min(64), Shape::Aligned, 0);
            }
        }
    }

    fn deallocated(&mut self, nsid: u32, first: u64, blocks: u32) {
        let zeroes = vec![0; blocks as usize * BLOCK];
        if self.deallocated_reads_zeroes {
            self.set(nsid, first, blocks, &zeroes);
            return;
        }
        let now = self.learn(nsid, first, blocks.into());
        let before = self.held(nsid, first, blocks);
        for (block, was) in now.chunks(BLOCK).zip(before.chunks(BLOCK)) {
            let right = block == was || block == &zeroes[..BLOCK];
            assert!(
                right,
                "a deallocated block reads as neither zeroes nor before"
            );
        }
        self.set(nsid, first, blocks, &now);
    }

    /// Copies ranges to a place.
    pub fn copy(&mut self, nsid: u32, to: u64, sources: &[(u64, u32)]) {
        let list = self.client.page(pages::LISTS + 3);
        let mut all = Vec::new();
        for (index, (first, blocks)) in sources.iter().enumerate() {
            let at = list + index as u64 * 32;
            for word in 0..4 {
                self.client.memory.store(at + word * 8, 0);
            }
            self.client.memory.store(at + 8, *first);
            self.client.memory.store(at + 16, u64::from(*blocks - 1));
            all.extend(self.held(nsid, *first, *blocks));
        }
        let mut entry = command(0x19, nsid);
        entry[10] = to as u32;
        entry[12] = sources.len() as u32 - 1;
        self.expect(
            &format!("copy {}", sources.len()),
            1,
            with_prps(entry, list, 0),
        );
        let blocks = (all.len() / BLOCK) as u32;
        self.set(nsid, to, blocks, &all);
        self.read(nsid, to, blocks, Shape::Aligned, 0);
    }

    /// Runs an admin command that moves one page at most.
    pub fn admin(&mut self, what: &str, entry: Dwords) -> (u64, Vec<u8>) {
        let data = self.client.page(pages::DATA);
        self.client.memory.fill(data, PAGE, 0);
        let result = self.expect(what, 0, with_prps(entry, data, data + PAGE as u64));
        (result, self.client.memory.read(data, PAGE))
    }

    /// Identify data of a CNS.
    pub fn identify(&mut self, what: &str, cns: u32, nsid: u32) -> Vec<u8> {
        self.admin(what, with(command(0x06, nsid), 10, cns)).1
    }

    /// So many bytes of a log page.
    pub fn log(&mut self, what: &str, lid: u32, nsid: u32, bytes: u32) -> Vec<u8> {
        let entry = with(command(0x02, nsid), 10, (bytes / 4 - 1) << 16 | lid);
        self.admin(what, entry).1
    }

    /// A feature's current value.
    pub fn feature(&mut self, what: &str, fid: u32) -> u64 {
        self.expect(what, 0, with(command(0x0a, 0), 10, fid))
    }

    /// All that an ordinary client does; how many commands there were, each of another kind.
    ///
    /// Namespaces 1 and 2 are its own. `seam` is the block of namespace 1 where one piece of it ends and the next begins.
    pub fn everything(&mut self, seam: u64) -> usize {
        self.information();
        self.data(seam);
        self.ranges(seam);
        self.queues();
        let mut kinds = std::mem::take(&mut self.done);
        kinds.sort_unstable();
        kinds.dedup();
        kinds.len()
    }

    fn information(&mut self) {
        let blocks =
            |model: &BTreeMap<u32, Vec<u8>>, nsid: u32| (model[&nsid].len() / BLOCK) as u64;
        let controller = self.identify("identify controller", 1, 0);
        assert_eq!(controller[512], 0x66, "SQES");
        let list = self.identify("active namespaces", 2, 0);
        assert_eq!(list[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        for nsid in [1, 2] {
            let page = self.identify(&format!("identify namespace {nsid}"), 0, nsid);
            let size = u64::from_le_bytes(page[..8].try_into().expect("8 bytes"));
            assert_eq!(size, blocks(&self.model, nsid), "NSZE of namespace {nsid}");
            self.identify(&format!("descriptors of namespace {nsid}"), 3, nsid);
        }
        self.log("error log", 1, u32::MAX, 64);
        self.log("error log, longer", 1, u32::MAX, 256);
        self.log("smart log", 2, u32::MAX, 512);
        self.log("firmware log", 3, u32::MAX, 512);
        let effects = self.log("effects log", 5, u32::MAX, 4096);
        assert_eq!(effects[1024 + 4 * 2] & 1, 1, "Read is supported");
        for fid in [0x01, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b] {
            self.feature(&format!("get feature {fid:#x}"), fid);
        }
        self.feature("get feature 0x7, default", 0x107);
        let events = with(with(command(0x09, 0), 10, 0x0b), 11, 0x100);
        self.expect("set feature 0xb", 0, events);
        let coalescing = with(with(command(0x09, 0), 10, 0x08), 11, 0);
        self.expect("set feature 0x8", 0, coalescing);
        self.expect("abort", 0, with(command(0x08, 0), 10, 0xfff0_0001));
    }

    fn data(&mut self, seam: u64) {
        use Shape::{Aligned, Chained, Offset, Scattered, Seam};
        let last = (self.model[&1].len() / BLOCK) as u64 - 1;
        let all = [
            (0, 1, Aligned),
            (last, 1, Aligned),
            (3, 8, Aligned),
            (5, 8, Offset(512)),
            (7, 9, Offset(4)),
            (9, 16, Aligned),
            (11, 24, Scattered),
            (13, 64, Scattered),
            (17, 24, Chained),
            (19, 64, Chained),
            (23, 16, Seam),
            (29, 32, Seam),
            (31, 37, Offset(2048)),
            (seam - 1, 2, Aligned),
            (seam - 8, 16, Offset(1024)),
            (seam - 3, 40, Scattered),
            (seam - 20, 41, Chained),
            (seam - 1, 9, Offset(4092)),
            (0, 128, Aligned),
        ];
        for (first, blocks, shape) in all {
            self.write(1, first, blocks, shape, 0);
            self.read(1, first, blocks, shape, 0);
            self.compare(1, first, blocks, shape);
        }
        self.write(1, 40, 8, Aligned, 1 << 30);
        self.read(1, 40, 8, Aligned, 1 << 30);
        self.read(1, 40, 8, Aligned, 1 << 31);
        self.write(2, 0, 5, Offset(8), 0);
        self.compare(2, 0, 5, Scattered);
        self.expect("flush", 1, command(0x00, 1));
        self.expect("flush of the other namespace", 1, command(0x00, 2));
        for (first, blocks) in [(0, 1), (seam - 5, 10), (last - 99, 100)] {
            self.blocks("verify", 0x0c, 1, first, blocks, 0);
            self.blocks("write zeroes", 0x08, 1, first, blocks, 0);
        }
        self.blocks("write zeroes", 0x08, 1, seam - 2, 4, 1 << 25);
        self.blocks("verify", 0x0c, 2, 0, 500, 0);
    }

    fn ranges(&mut self, seam: u64) {
        self.write(1, seam - 32, 64, Shape::Aligned, 0);
        self.dataset(1, &[(0, 8)], 4);
        self.dataset(1, &[(seam - 4, 8), (20, 1), (40, 0), (60, 30)], 4);
        self.dataset(1, &[(0, 8), (100, 8)], 1);
        self.dataset(2, &[(0, 500)], 4);
        self.write(1, 100, 16, Shape::Aligned, 0);
        self.copy(1, 200, &[(100, 8)]);
        self.copy(1, 300, &[(100, 4), (106, 2), (110, 1)]);
        self.copy(1, seam - 4, &[(100, 8)]);
        self.copy(1, 400, &[(seam - 4, 8), (0, 3)]);
        self.copy(2, 10, &[(0, 8)]);
    }

    /// The client's own queues go and come, and its events wait.
    fn queues(&mut self) {
        let entry = with(command(0x00, 0), 10, 1);
        self.expect("delete submission queue", 0, entry);
        self.expect("delete completion queue", 0, with(command(0x04, 0), 10, 1));
        self.client.create_queue(1, 64, self.step);
        self.done.push("create completion queue".to_owned());
        self.done.push("create submission queue".to_owned());
        self.read(1, 0, 8, Shape::Aligned, 0);
    }
}
