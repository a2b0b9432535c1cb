//! Command bodies that a hostile client could think of: valid ones, valid ones with a field or two bent, lists with one bad entry, and noise; all of them drawn to the edges of the
//! slice.

use crate::client::{Client, pages};
use crate::memory::PAGE;
use crate::random::Random;
use crate::{Dwords, command, with, with_blocks, with_prps};

const BLOCK: u64 = 512;

/// What the sender of the bodies knows, or guesses, of the world.
#[derive(Clone, Debug)]
pub struct View {
    /// Namespaces that it was granted, as it numbers them: blocks, and the blocks where one piece ends and another begins.
    pub namespaces: Vec<(u32, u64, Vec<u64>)>,
    /// Identifiers that name nothing, or something of somebody else.
    pub foreign_namespaces: Vec<u32>,
    /// Blocks that mean something on the real namespaces.
    pub real_blocks: Vec<u64>,
    /// Addresses that mean something to the device, or to somebody else.
    pub foreign_addresses: Vec<u64>,
}

/// Makes bodies.
#[derive(Debug)]
pub struct Bodies {
    /// What decides.
    pub random: Random,
    view: View,
    /// Pages of lists that commands in flight may use.
    list: usize,
}

impl Bodies {
    /// Bodies for a sender of this view.
    #[must_use]
    pub fn new(random: Random, view: View) -> Bodies {
        Bodies {
            random,
            view,
            list: 0,
        }
    }

    fn namespace(&mut self) -> (u32, u64, Vec<u64>) {
        let at = self.random.below(self.view.namespaces.len() as u64) as usize;
        self.view.namespaces[at].clone()
    }

    /// A namespace identifier: usually a granted one.
    fn nsid(&mut self, usual: u32) -> u32 {
        match self.random.below(20) {
            0 => 0,
            1 => u32::MAX,
            2 => u32::MAX - 1,
            3 | 4 => self.random.one(&self.view.foreign_namespaces.clone()),
            5 => self.random.odd() as u32,
            _ => usual,
        }
    }

    /// A block: at the edges of the slice and of its pieces, where the slice lies on the medium, or anywhere.
    fn block(&mut self, blocks: u64, seams: &[u64]) -> u64 {
        match self.random.below(10) {
            0 => 0,
            1 => blocks.wrapping_sub(1 + self.random.below(16)),
            2 => blocks.wrapping_add(self.random.below(8)),
            3 if !seams.is_empty() => self
                .random
                .one(seams)
                .wrapping_add(self.random.below(9))
                .wrapping_sub(4),
            4 => self.random.one(&self.view.real_blocks.clone()),
            5 => self.random.odd(),
            6 => u64::MAX - self.random.below(70_000),
            _ => self.random.below(blocks),
        }
    }

    /// A number of blocks, counted from 1.
    fn count(&mut self, left: u64) -> u32 {
        match self.random.below(14) {
            0 => left.saturating_add(1).min(1 << 16) as u32,
            1 | 2 => left.clamp(1, 1 << 16) as u32,
            3 => 1 << 16,
            4 => 1 + self.random.below(1 << 16) as u32,
            5 => 1 + self.random.below(256) as u32,
            6 | 7 => 1,
            _ => 1 + self.random.below(24) as u32,
        }
    }

    /// A page-aligned guest address of the client's data.
    fn data_page(&mut self, client: &Client) -> u64 {
        let count = (pages::DATA_END - pages::DATA) as u64;
        client.page(pages::DATA + self.random.below(count) as usize)
    }

    /// An address that a command should not name.
    fn bad_address(&mut self, client: &Client) -> u64 {
        let foreign = self.view.foreign_addresses.clone();
        let address = match self.random.below(9) {
            0 => 0,
            1 => client.page(0).wrapping_sub(PAGE as u64),
            2 => client.page(pages::END),
            3 => client.page(pages::ROM),
            4 => self.data_page(client) + 1 + self.random.below(PAGE as u64 - 1),
            5 => u64::MAX - self.random.below(2 * PAGE as u64),
            6 if !foreign.is_empty() => {
                self.random.one(&foreign) + self.random.below(3) * PAGE as u64
            }
            7 => self.random.odd() & !0xfff,
            _ => self.random.odd(),
        };
        if client.is_spared(address) {
            return client.page(pages::END);
        }
        address
    }

    /// A page for a list; its neighbours are used by other commands of the batch.
    fn list_page(&mut self, client: &Client) -> u64 {
        self.list = (self.list + 1) % (pages::LISTS_END - pages::LISTS);
        client.page(pages::LISTS + self.list)
    }

    /// PRP entries for so many bytes, right ones most of the time, with their list in memory.
    pub fn prps(&mut self, client: &Client, bytes: u64, bad: bool) -> (u64, u64) {
        let page = PAGE as u64;
        let offset = if self.random.percent(30) {
            self.random.below(PAGE as u64 / 4) * 4
        } else {
            0
        };
        let mut first = self.data_page(client) + offset;
        let pages = (offset + bytes).div_ceil(page).max(1);
        // One entry in all may be bad: it is picked among all of them.
        let bad = bad.then(|| self.random.below(pages.min(80) + 1));
        if bad == Some(0) {
            first = self.bad_address(client);
        }
        let second = match pages {
            1 => {
                if bad == Some(1) {
                    self.bad_address(client)
                } else {
                    0
                }
            }
            2 => {
                if bad == Some(1) {
                    self.bad_address(client)
                } else {
                    self.data_page(client)
                }
            }
            _ => {
                let list = self.list_page(client);
                // Sometimes the list begins in the middle of its page and goes on in another one.
                let begin = if self.random.percent(25) {
                    page / 8 - 1 - self.random.below((pages - 1).min(page / 8 - 2))
                } else {
                    0
                };
                let mut at = list + begin * 8;
                let mut left = pages - 1;
                let mut number = 1;
                while left > 0 && number < 80 {
                    let last_of_page = (at + 8).is_multiple_of(page);
                    let mut entry = if last_of_page && left > 1 {
                        self.list_page(client)
                    } else {
                        self.data_page(client)
                    };
                    let chained = last_of_page && left > 1;
                    if bad == Some(number) {
                        entry = self.bad_address(client);
                    }
                    client.memory.store(at, entry);
                    number += 1;
                    if chained {
                        if entry & (page - 1) != 0 || !self.is_list(client, entry) {
                            break;
                        }
                        at = entry;
                    } else {
                        at += 8;
                        left -= 1;
                    }
                }
                if bad == Some(79) {
                    self.bad_address(client)
                } else {
                    list + begin * 8
                }
            }
        };
        (first, second)
    }

    fn is_list(&self, client: &Client, address: u64) -> bool {
        (client.page(pages::LISTS)..client.page(pages::LISTS_END)).contains(&address)
    }

    /// A data pointer that nothing but chance makes.
    fn any_prp(&mut self, client: &Client) -> u64 {
        match self.random.below(6) {
            0 => 0,
            1 | 2 => self.bad_address(client),
            3 => self.list_page(client),
            _ => self.data_page(client),
        }
    }

    /// Bends one field of an entry.
    fn bend(&mut self, client: &Client, entry: &mut Dwords, blocks: u64, seams: &[u64]) {
        match self.random.below(16) {
            0 => entry[0] |= (1 << (8 + self.random.below(8))) as u32,
            1 => entry[1] = self.nsid(entry[1]),
            2 => entry[2 + self.random.below(2) as usize] = self.random.odd() as u32,
            3 => entry[4] = self.any_prp(client) as u32,
            4 => *entry = with_prps(*entry, self.any_prp(client), u64::from(entry[8])),
            5 => {
                let prp1 = u64::from(entry[7]) << 32 | u64::from(entry[6]);
                *entry = with_prps(*entry, prp1, self.any_prp(client));
            }
            6 | 7 => {
                let block = self.block(blocks, seams);
                entry[10] = block as u32;
                entry[11] = (block >> 32) as u32;
            }
            8 => entry[11] = self.random.odd() as u32,
            9 | 10 => entry[12] = entry[12] & 0xffff_0000 | (self.random.odd() as u32 & 0xffff),
            11 => entry[12] ^= 1 << (16 + self.random.below(16)),
            12 => entry[13] = self.random.odd() as u32,
            13 => entry[14] = self.random.odd() as u32,
            14 => entry[15] = self.random.odd() as u32,
            _ => entry[self.random.below(16) as usize] ^= 1 << self.random.below(32),
        }
    }

    /// Ranges for Dataset Management in the client's memory: 16 bytes each.
    fn dataset(&mut self, client: &Client, list: u64, ranges: u64, blocks: u64, seams: &[u64]) {
        let bad = self.random.percent(40).then(|| self.random.below(ranges));
        for range in 0..ranges {
            let (first, count) = if bad == Some(range) {
                (self.block(blocks, seams), self.random.odd() as u32)
            } else {
                let first = self.random.below(blocks);
                (
                    first,
                    self.random.below((blocks - first).min(64) + 1) as u32,
                )
            };
            let attributes = if self.random.percent(10) {
                self.random.odd() as u32
            } else {
                0
            };
            client.memory.store(
                list + range * 16,
                u64::from(count) << 32 | u64::from(attributes),
            );
            client.memory.store(list + range * 16 + 8, first);
        }
    }

    /// Source ranges for Copy: 32 or 40 bytes each.
    fn sources(
        &mut self,
        client: &Client,
        list: u64,
        format: u32,
        ranges: u64,
        blocks: u64,
        seams: &[u64],
    ) {
        let size = if format & 1 == 0 { 32 } else { 40 };
        let bad = self.random.percent(40).then(|| self.random.below(ranges));
        for range in 0..ranges {
            let at = list + range * size;
            for word in 0..size / 8 {
                client.memory.store(at + word * 8, 0);
            }
            let (first, count) = if bad == Some(range) {
                if self.random.percent(30) {
                    let word = self.random.below(size / 8);
                    client.memory.store(at + word * 8, self.random.odd());
                }
                (self.block(blocks, seams), self.random.odd() & 0xffff)
            } else {
                let first = self.random.below(blocks);
                (first, self.random.below((blocks - first).min(32)))
            };
            if format >= 2 {
                let nsid = self.nsid(1);
                client.memory.store(at, u64::from(nsid));
            }
            client.memory.store(at + 8, first);
            client.memory.store(at + 16, count);
        }
    }

    /// A command on an I/O queue that ought to be right for its opcode; for opcodes that nobody knows, the shape of one that reads or writes.
    pub fn right(&mut self, client: &Client, opcode: u8) -> Dwords {
        let (nsid, blocks, seams) = self.namespace();
        let mut entry = command(opcode, nsid);
        match opcode {
            0x00 => {}
            0x09 => {
                let ranges = 1 + self.random.below(6);
                let list = self.list_page(client);
                self.dataset(client, list, ranges, blocks, &seams);
                entry[10] = ranges as u32 - 1;
                entry[11] = self.random.one(&[4, 4, 4, 0, 1, 2, 7]);
                entry = with_prps(entry, list, 0);
            }
            0x19 => {
                let ranges = 1 + self.random.below(4);
                let format = self.random.one(&[0, 0, 0, 0, 0, 1, 2, 3]);
                let list = self.list_page(client);
                self.sources(client, list, format, ranges, blocks, &seams);
                let to = self.random.below(blocks);
                entry[10] = to as u32;
                entry[12] = (ranges as u32 - 1) | (format << 8);
                entry = with_prps(entry, list, 0);
            }
            _ => {
                let first = if self.random.percent(35) {
                    self.block(blocks, &seams)
                } else {
                    self.random.below(blocks)
                };
                let count = self.count(blocks.saturating_sub(first));
                entry = with_blocks(entry, first, count);
                if self.random.percent(15) {
                    entry[12] |= 1 << 30;
                }
                if !matches!(opcode, 0x04 | 0x08 | 0x0c) {
                    let bad = self.random.percent(20);
                    let bytes = u64::from(count) * BLOCK;
                    let (prp1, prp2) = self.prps(client, bytes, bad);
                    entry = with_prps(entry, prp1, prp2);
                }
            }
        }
        entry
    }

    /// A body for an opcode on an I/O queue.
    pub fn io(&mut self, client: &Client, opcode: u8) -> Dwords {
        if self.random.percent(12) {
            return self.noise(client, opcode);
        }
        let mut entry = self.right(client, opcode);
        let (_, blocks, seams) = self.namespace();
        for _ in 0..self.random.one(&[0, 0, 0, 0, 0, 1, 1, 1, 1, 2]) {
            self.bend(client, &mut entry, blocks, &seams);
            entry[0] = entry[0] & !0xff | u32::from(opcode);
        }
        spare(client, entry)
    }

    /// Numbers without sense, but for the opcode and, mostly, the namespace.
    fn noise(&mut self, client: &Client, opcode: u8) -> Dwords {
        let mut entry = [0; 16];
        for dword in &mut entry {
            *dword = self.random.odd() as u32;
        }
        entry[0] = u32::from(opcode)
            | if self.random.percent(50) {
                0
            } else {
                entry[0] & 0xff00
            };
        let (nsid, ..) = self.namespace();
        entry[1] = self.nsid(nsid);
        with_prps(entry, self.any_prp(client), self.any_prp(client))
    }

    /// A command on the admin queue that ought to be right for its opcode, of those that a virtual controller may carry out itself.
    fn right_admin(&mut self, client: &Client, opcode: u8) -> Option<Dwords> {
        let entry = command(opcode, 0);
        let all = with(entry, 1, u32::MAX);
        let page = self.data_page(client);
        let qid = self.random.one(&[1, 1, 2, 3]);
        let size = self.random.one(&[1, 63, 255]) << 16;
        let data = with_prps(entry, page, 0);
        Some(match opcode {
            0x00 | 0x04 => with(entry, 10, qid),
            0x01 => with(with(data, 10, size | qid), 11, 1 << 16 | 1),
            0x05 => with(with(data, 10, size | qid), 11, 1),
            0x02 => {
                let lid = self.random.one(&[1, 2, 3, 5]);
                let dwords = self.random.one(&[15, 15, 127]);
                with_prps(with(all, 10, dwords << 16 | lid), page, 0)
            }
            0x06 => {
                let (cns, nsid) = self.random.one(&[(0, 1), (0, 2), (1, 0), (2, 0), (3, 1)]);
                with(with(data, 1, nsid), 10, cns)
            }
            0x08 => with(entry, 10, self.random.odd() as u32),
            0x09 => {
                let fid = self
                    .random
                    .one(&[0x01, 0x02, 0x04, 0x07, 0x08, 0x09, 0x0a, 0x0b]);
                let value = self.random.one(&[0, 1, 3, 0x1_0001, 0x100]);
                with(with(entry, 10, fid), 11, value)
            }
            0x0a => {
                let fid = self
                    .random
                    .one(&[0x01, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0b]);
                with(entry, 10, self.random.one(&[0, 0, 1, 3]) << 8 | fid)
            }
            0x0c => entry,
            0x7c => with_prps(entry, page, self.data_page(client)),
            _ => return None,
        })
    }

    /// A body for an opcode on the admin queue.
    pub fn admin(&mut self, client: &Client, opcode: u8) -> Dwords {
        if self.random.percent(25)
            && let Some(entry) = self.right_admin(client, opcode)
        {
            return entry;
        }
        if self.random.percent(12) {
            return self.noise(client, opcode);
        }
        let (usual, blocks, seams) = self.namespace();
        let mut entry = command(opcode, self.nsid(usual));
        let data = self.random.percent(90);
        if data {
            let bad = self.random.percent(15);
            let (prp1, prp2) = self.prps(client, 4096, bad);
            entry = with_prps(entry, prp1, prp2);
        }
        let small = |random: &mut Random| match random.below(4) {
            0 => random.odd() as u32,
            _ => random.below(0x24) as u32,
        };
        match opcode {
            // Queues: identifiers around those that there are, rings anywhere.
            0x00 | 0x04 => entry[10] = self.random.below(70) as u32,
            0x01 | 0x05 => {
                entry[1] = 0;
                entry[10] = (self.random.below(300) as u32) << 16 | self.random.below(70) as u32;
                entry[11] = (self.random.below(70) as u32) << 16 | self.random.below(8) as u32;
                let (prp1, _) = (self.any_prp(client), 0);
                entry = with_prps(entry, prp1, 0);
            }
            0x02 => {
                let lid = small(&mut self.random) & 0xff;
                let dwords = self.random.one(&[0, 3, 127, 1023, 1023, 2047]);
                entry[10] = lid | dwords << 16 | (self.random.below(2) as u32) << 15;
                if self.random.percent(20) {
                    entry[10] |= (self.random.below(16) as u32) << 8;
                }
                if self.random.percent(25) {
                    entry[12] = self.random.odd() as u32;
                }
                if self.random.percent(60) {
                    entry[1] = self.random.one(&[0, u32::MAX]);
                }
                let (prp1, prp2) = self.prps(client, u64::from(dwords + 1) * 4, false);
                entry = with_prps(entry, prp1, prp2);
            }
            0x06 => {
                entry[10] = small(&mut self.random);
                if self.random.percent(20) {
                    entry[10] |= (self.random.below(4) as u32) << 16;
                }
                if self.random.percent(10) {
                    entry[11] = self.random.odd() as u32;
                }
                if self.random.percent(40) {
                    entry[1] = self.random.below(8) as u32;
                }
            }
            0x08 => {
                entry[10] = (self.random.odd() as u32) << 16 | self.random.below(20) as u32;
                entry[1] = 0;
            }
            0x09 | 0x0a => {
                entry[10] = small(&mut self.random) & 0xff;
                if self.random.percent(15) {
                    entry[10] |= 1 << 31;
                }
                if opcode == 0x0a {
                    entry[10] |= (self.random.below(5) as u32) << 8;
                }
                entry[11] = self.random.odd() as u32;
                if self.random.percent(60) {
                    entry[1] = self.random.one(&[0, u32::MAX]);
                }
            }
            0x7c => {
                entry[1] = 0;
                entry = with_prps(entry, self.any_prp(client), self.any_prp(client));
            }
            0x86 => {
                let first = self.block(blocks, &seams);
                entry[10] = first as u32;
                entry[11] = (first >> 32) as u32;
                entry[12] = self.random.below(1024) as u32;
                let length = self.count(blocks.saturating_sub(first)) & 0xffff;
                entry[13] = self.random.one(&[0x10, 0x11, 0x02, 0]) << 24 | length;
            }
            _ => {
                for dword in &mut entry[10..] {
                    if self.random.percent(50) {
                        *dword = self.random.odd() as u32;
                    }
                }
            }
        }
        for _ in 0..self.random.one(&[0, 0, 0, 0, 1, 1, 2]) {
            self.bend(client, &mut entry, blocks, &seams);
            entry[0] = entry[0] & !0xff | u32::from(opcode);
        }
        spare(client, entry)
    }
}

/// The entry, with data pointers that a bit too many has led to the client's own rings or guards leading elsewhere.
fn spare(client: &Client, entry: Dwords) -> Dwords {
    let [prp1, prp2] = [6, 8].map(|at: usize| {
        let prp = u64::from(entry[at + 1]) << 32 | u64::from(entry[at]);
        if client.is_spared(prp) {
            client.page(pages::DATA) + prp % PAGE as u64
        } else {
            prp
        }
    });
    with_prps(entry, prp1, prp2)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nvme_vfio_emulator::Emulator;

    use super::*;

    #[test]
    fn no_body_names_the_rings_or_the_guards() {
        let emulator: Arc<Emulator> =
            Emulator::new("size=1M,stepped".parse().expect("a configuration"))
                .expect("a controller");
        let client = Client::new(emulator, 1 << 32);
        let view = View {
            namespaces: vec![(1, 1000, vec![500])],
            foreign_namespaces: vec![7],
            real_blocks: vec![3],
            foreign_addresses: vec![1 << 20],
        };
        let mut bodies = Bodies::new(Random::new(5), view);
        for number in 0..200_000u32 {
            let opcode = number as u8;
            for entry in [bodies.io(&client, opcode), bodies.admin(&client, opcode)] {
                for at in [6, 8] {
                    let prp = u64::from(entry[at + 1]) << 32 | u64::from(entry[at]);
                    assert!(!client.is_spared(prp), "{entry:x?}");
                    assert_eq!(entry[0] as u8, opcode);
                }
            }
        }
        let ring = with_prps([0; 16], client.page(0) + 8, client.page(pages::GUARD_TWO));
        let spared = spare(&client, ring);
        assert_eq!(
            u64::from(spared[6]),
            (client.page(pages::DATA) + 8) & 0xffff_ffff
        );
        assert_eq!(u64::from(spared[8]), client.page(pages::DATA) & 0xffff_ffff);
    }
}
