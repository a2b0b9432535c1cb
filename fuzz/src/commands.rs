//! The controller's handling of commands.
//!
//! An input is a small program: it writes data, PRP lists and other structures into mapped pages, submits admin and I/O commands, rings doorbells,
//! steps the controller, takes completions, and unmaps pages. What the host knows for sure is held against what the controller does.

use std::collections::BTreeMap;

use nvme_vfio_dma::Access;

use crate::controller::{CFS, CSTS, Dwords, Host, OWN_REGIONS, halves};
use crate::input::{Input, hash};
use crate::memory::{PAGE, Region};

/// What the input can reach: two runs of pages, one page that the controller may only read, one that it may only write.
const REGIONS: [Region; 5] = [
    region(0x10000, 8, Access::READ_WRITE),
    region(0x18000, 1, Access::READ_WRITE),
    region(0x20000, 1, Access::DEVICE_READ),
    region(0x30000, 1, Access::DEVICE_WRITE),
    region(0x40000, 2, Access::READ_WRITE),
];

const fn region(iova: u64, pages: usize, access: Access) -> Region {
    Region {
        iova,
        pages,
        access,
    }
}

/// Addresses that one byte of input can name: pages of the regions, and some outside.
const PAGES: [u64; 16] = [
    0x10000,
    0x11000,
    0x12000,
    0x13000,
    0x14000,
    0x15000,
    0x16000,
    0x17000,
    0x18000,
    0x19000,
    0x20000,
    0x30000,
    0x40000,
    0x41000,
    0,
    0xfee0_0000,
];

/// The page, by its place in [`PAGES`], that has a list of the first pages from the beginning on, and how many entries that has.
const LIST_IN: u8 = 13;
const LIST_OF: usize = 9;
const LIST_ENTRIES: usize = 48;

/// Steps after which a controller must have nothing left to do.
const SETTLE: usize = 64;

mod admin {
    pub(super) const DELETE_SQ: u32 = 0x00;
    pub(super) const CREATE_SQ: u32 = 0x01;
    pub(super) const DELETE_CQ: u32 = 0x04;
    pub(super) const CREATE_CQ: u32 = 0x05;
    pub(super) const ASYNCHRONOUS_EVENT: u32 = 0x0c;
    pub(super) const NAMESPACE_MANAGEMENT: u32 = 0x0d;
    pub(super) const DOORBELL_BUFFER: u32 = 0x7c;
    pub(super) const FORMAT: u32 = 0x80;
}

/// The controller that an input asks for.
struct Shape {
    lba: u64,
    mdts: u8,
    nsids: &'static [u32],
    backend: &'static str,
    mps: u8,
}

/// Bytes of each namespace.
const SIZE: u64 = 1 << 20;
const QUEUES: u32 = 4;

impl Shape {
    fn text(&self) -> String {
        let Shape {
            lba,
            mdts,
            nsids,
            backend,
            ..
        } = self;
        let nsids: Vec<String> = nsids.iter().map(u32::to_string).collect();
        let nsids = nsids.join(":");
        format!(
            "size={SIZE},lba={lba},mdts={mdts},nsids={nsids},backend={backend},queues={QUEUES},mqes=256,stepped=on"
        )
    }
}

fn changes_namespaces(queue: usize, dwords: &Dwords) -> bool {
    queue == 0
        && matches!(
            dwords[0] & 0xff,
            admin::FORMAT | admin::NAMESPACE_MANAGEMENT
        )
}

/// Whether a command may take the host's I/O queue pair away, or make another one of its number.
fn remakes_io_queue(queue: usize, dwords: &Dwords) -> bool {
    queue == 0
        && dwords[10] & 0xffff == 1
        && matches!(
            dwords[0] & 0xff,
            admin::DELETE_SQ | admin::CREATE_SQ | admin::DELETE_CQ | admin::CREATE_CQ
        )
}

/// A command that was submitted and has no completion yet.
struct Submitted {
    dwords: Dwords,
}

struct Run<'a> {
    input: Input<'a>,
    host: Host,
    shape: Shape,
    outstanding: BTreeMap<(usize, u16), Submitted>,
    cid: u16,
    /// Whether the host's I/O queue pair is still what it made: a command may have deleted it, or moved its doorbells.
    io_queue: bool,
    /// Whether the namespaces are still as they were made, as far as the completions that were taken tell.
    namespaces: bool,
}

/// Runs an input.
///
/// # Panics
/// When the controller did wrong.
pub fn commands(data: &[u8]) {
    let hash = hash(data);
    let mut input = Input::new(data);
    let Some((shape, entries)) = input.u8().zip(input.u8()) else {
        return;
    };
    let shape = Shape {
        lba: if shape & 1 == 0 { 512 } else { 4096 },
        mdts: [0, 1, 2, 5][usize::from(shape >> 1 & 3)],
        nsids: if shape & 8 == 0 { &[1] } else { &[1, 3] },
        backend: if shape & 0x10 == 0 { "memory" } else { "null" },
        mps: shape >> 5 & 1,
    };
    let entries = 2 + u32::from(entries) % 63;
    let mut host = Host::new(&shape.text(), hash, entries, shape.mps, &REGIONS);
    host.enable();
    let mut run = Run {
        input,
        host,
        shape,
        outstanding: BTreeMap::new(),
        cid: 0,
        io_queue: true,
        namespaces: true,
    };
    run.offer_list();
    while run.act().is_some() {}
    run.end();
}

impl Run<'_> {
    /// One act of the input; `None` at its end.
    fn act(&mut self) -> Option<()> {
        match self.input.below(12)? {
            0 => {
                let entry = self.command()?;
                self.submit(0, entry, true);
            }
            1 => {
                let entry = self.command()?;
                self.submit(1, entry, true);
            }
            2 => {
                let queue = usize::from(self.input.below(2)?);
                let entry = self.command()?;
                self.submit(queue, entry, false);
            }
            3 => {
                self.host.ring(0);
                if self.io_queue {
                    self.host.ring(1);
                }
                self.host.emulator.step();
            }
            4 => {
                self.host.emulator.step();
            }
            5 => {
                let queue = usize::from(self.input.below(2)?);
                self.take(queue);
            }
            6 => while self.take(0) || self.take(1) {},
            7 => {
                let (page, length) = (self.input.u8()?, self.input.u8()?);
                let offset = usize::from(self.input.u8()?) * 16;
                let bytes = self.input.bytes(length.into())?;
                self.poke(page, offset, bytes);
            }
            8 => {
                let (page, count) = (self.input.u8()?, self.input.below(32)?);
                let offset = usize::from(self.input.u8()?) * 16;
                let mut bytes = Vec::new();
                for _ in 0..count {
                    bytes.extend(self.address()?.to_le_bytes());
                }
                self.poke(page, offset, &bytes);
            }
            9 => {
                // Other queues' doorbells: whatever queues commands have made.
                let (index, value) = (self.input.below(8)?, self.input.u16()?);
                self.host.doorbell(4 + usize::from(index), value.into());
            }
            10 => {
                let index = OWN_REGIONS + usize::from(self.input.below(REGIONS.len() as u8)?);
                if self.host.memory.is_mapped(index) {
                    self.host.memory.unmap(index);
                } else {
                    self.host.memory.map(index);
                }
            }
            _ => self.reset(),
        }
        if self.host.read(CSTS) & CFS != 0 {
            self.reset();
        }
        Some(())
    }

    /// A list of pages that commands can name: longer ones would seldom be right by chance.
    fn offer_list(&mut self) {
        let pages = PAGES[..LIST_OF].iter().cycle().take(LIST_ENTRIES);
        let list: Vec<u8> = pages.flat_map(|page| page.to_le_bytes()).collect();
        self.poke(LIST_IN, 0, &list);
    }

    fn poke(&mut self, page: u8, offset: usize, bytes: &[u8]) {
        let iova = PAGES[usize::from(page) % PAGES.len()];
        let found = REGIONS.iter().position(|region| {
            (region.iova..region.iova + (region.pages * PAGE) as u64).contains(&iova)
        });
        if let Some(index) = found
            && self.host.memory.is_mapped(OWN_REGIONS + index)
        {
            let offset = (iova - REGIONS[index].iova) as usize + offset;
            self.host.memory.write(OWN_REGIONS + index, offset, bytes);
        }
    }

    fn address(&mut self) -> Option<u64> {
        let byte = self.input.u8()?;
        if byte >= 0xf0 {
            return self.input.u64();
        }
        let page = PAGES[usize::from(byte & 0xf)];
        Some(match byte >> 4 {
            0..10 => page,
            10..12 => page + u64::from(self.input.u8()?) * 16,
            _ => page + u64::from(self.input.u16()? & 0xfff),
        })
    }

    fn command(&mut self) -> Option<Dwords> {
        let mut dwords = [0; 16];
        let (opcode, kind) = (self.input.u8()?, self.input.u8()?);
        dwords[0] = u32::from(opcode);
        if kind & 1 != 0 {
            // Fused operations, PSDT, reserved bits.
            dwords[0] |= u32::from(self.input.u8()?) << 8;
        }
        dwords[1] = match kind >> 1 & 3 {
            0 | 1 => 1,
            2 => u32::MAX,
            _ => self.input.u8()?.into(),
        };
        (dwords[6], dwords[7]) = halves(self.address()?);
        if kind & 8 != 0 {
            (dwords[8], dwords[9]) = halves(self.address()?);
        }
        if kind & 0x10 != 0 {
            (dwords[2], dwords[3]) = halves(self.input.u64()?);
            (dwords[4], dwords[5]) = halves(self.input.u64()?);
        }
        let given = self.input.u8()?;
        for (bit, dword) in dwords[10..].iter_mut().enumerate() {
            if given >> bit & 1 != 0 {
                *dword = self.input.u32()?;
            }
        }
        // Half of the commands have small operands, so that more of them make sense.
        if given >> 6 & 1 != 0 {
            dwords[10..].iter_mut().for_each(|dword| *dword &= 0xff);
        }
        Some(dwords)
    }

    fn submit(&mut self, queue: usize, mut dwords: Dwords, ring: bool) {
        if queue == 1 && !self.io_queue {
            return;
        }
        while self.outstanding.contains_key(&(queue, self.cid)) {
            self.cid = self.cid.wrapping_add(1);
        }
        dwords[0] = dwords[0] & 0xffff | u32::from(self.cid) << 16;
        // It acts before its completion is taken, and I/O completions may be taken first.
        if queue == 0 && dwords[0] & 0xff == admin::DOORBELL_BUFFER {
            self.lose_io_queue();
        }
        if self.host.submit(queue, dwords, ring) {
            let submitted = Submitted { dwords };
            self.outstanding.insert((queue, self.cid), submitted);
        }
        self.cid = self.cid.wrapping_add(1);
    }

    /// Takes one completion, and holds it against what was submitted. False when there is none, or none that can be judged yet.
    fn take(&mut self, queue: usize) -> bool {
        if queue == 1 && !(self.io_queue && self.io_queue_stays()) {
            return false;
        }
        let Some(entry) = self.host.take(queue) else {
            return false;
        };
        if queue == 1 && entry.sqid > 1 {
            // A command has made another submission queue for this completion queue.
            return true;
        }
        assert_eq!(usize::from(entry.sqid), queue, "{entry:x?}");
        let Some(Submitted { dwords }) = self.outstanding.remove(&(queue, entry.cid)) else {
            panic!("a completion of no command that is under way: {entry:x?}");
        };
        self.host.fetched(queue, entry.sq_head);
        if entry.status == 0 {
            if queue == 0 {
                self.admin_succeeded(&dwords);
            } else {
                self.io_succeeded(&dwords);
            }
        }
        true
    }

    fn admin_succeeded(&mut self, dwords: &Dwords) {
        let qid = dwords[10] & 0xffff;
        match dwords[0] & 0xff {
            admin::DELETE_SQ | admin::CREATE_SQ | admin::DELETE_CQ | admin::CREATE_CQ => {
                assert!((1..=QUEUES).contains(&qid), "queue {qid}: {dwords:x?}");
                if qid == 1 {
                    self.lose_io_queue();
                }
            }
            _ => self.namespaces &= !changes_namespaces(0, dwords),
        }
    }

    /// Whether the I/O queue pair is still what it was when completions were last taken: a command acts before its completion is taken, and the
    /// entries of a new queue are not the host's.
    fn io_queue_stays(&self) -> bool {
        let mut waiting = self.outstanding.iter();
        !waiting.any(|((queue, _), command)| remakes_io_queue(*queue, &command.dwords))
    }

    /// Whether a namespace may be another than it was made: a command acts before its completion is taken.
    fn namespaces_changed(&self) -> bool {
        let mut waiting = self.outstanding.iter();
        !self.namespaces
            || waiting.any(|((queue, _), command)| changes_namespaces(*queue, &command.dwords))
    }

    fn lose_io_queue(&mut self) {
        self.io_queue = false;
        self.outstanding.retain(|(queue, _), _| *queue == 0);
    }

    /// A read, write or compare that succeeded was inside a namespace and not too long.
    fn io_succeeded(&self, dwords: &Dwords) {
        if !matches!(dwords[0] & 0xff, 1 | 2 | 5) || self.namespaces_changed() {
            return;
        }
        let (nsid, first) = (
            dwords[1],
            u64::from(dwords[11]) << 32 | u64::from(dwords[10]),
        );
        let blocks = u64::from(dwords[12] & 0xffff) + 1;
        let lba = self.shape.lba;
        assert!(self.shape.nsids.contains(&nsid), "{dwords:x?}");
        let end = first.checked_add(blocks);
        assert!(
            end.is_some_and(|end| end <= SIZE / lba),
            "past the end: {dwords:x?}"
        );
        let most = (PAGE as u64) << self.shape.mdts;
        assert!(
            self.shape.mdts == 0 || blocks * lba <= most,
            "longer than MDTS: {dwords:x?}"
        );
    }

    /// Disables the controller, after which it must touch no memory, and enables it.
    fn reset(&mut self) {
        self.host.disable();
        self.namespaces = !self.namespaces_changed();
        self.outstanding.clear();
        let before = self.host.memory.digest();
        self.host.emulator.step();
        assert_eq!(
            before,
            self.host.memory.digest(),
            "memory has changed after the reset"
        );
        self.host.enable();
        self.io_queue = true;
    }

    /// Lets everything come to its end: each command is completed, but for asynchronous event requests.
    fn end(mut self) {
        self.host.ring(0);
        if self.io_queue {
            self.host.ring(1);
        }
        let mut steps = 0;
        while steps < SETTLE {
            let posted = self.host.emulator.step();
            let mut taken = false;
            while self.take(0) || self.take(1) {
                taken = true;
            }
            if posted == 0 && !taken {
                // What is long is done in pieces, as many as it takes: libFuzzer's limit of time ends one that never comes to its end.
                let turn = self.host.emulator.turn(u32::MAX);
                if turn.working {
                    continue;
                }
                if turn.posted == 0 {
                    break;
                }
            }
            steps += 1;
        }
        if self.host.read(CSTS) & CFS == 0 {
            for ((queue, cid), Submitted { dwords }) in &self.outstanding {
                assert!(
                    *queue == 0 && dwords[0] & 0xff == admin::ASYNCHRONOUS_EVENT,
                    "no completion for command {cid:#x} of queue {queue}: {dwords:x?}"
                );
            }
        }
        self.host.memory.check();
        self.reset();
        self.host.memory.check();
    }
}
