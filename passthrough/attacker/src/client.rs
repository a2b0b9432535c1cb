//! A client that writes its rings, entries and doorbells itself, right or wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_vfio_dma::Access;

use crate::memory::{GuestMemory, PAGE};
use crate::way::Way;
use crate::{Dwords, command, with, with_prps};

const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const AQA: u32 = 0x24;
const ASQ: u32 = 0x28;
const ACQ: u32 = 0x30;
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const RDY: u32 = 1;
const CFS: u32 = 2;

/// Entries of the admin queues.
const ADMIN: u32 = 64;
/// Entries of the I/O queue.
pub const DEPTH: u32 = 256;

/// Steps with nothing done after which a command is taken for one that never ends.
const PATIENCE: u32 = 400;
/// Steps in which the controller must have done what it was told.
const DONE: u32 = 1_000_000;

/// A completion, as far as a client can know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The queue on which it came.
    pub qid: u16,
    /// The command's identifier.
    pub cid: u16,
    /// Status code type and status code, as 0xTCC.
    pub status: u16,
    /// Do Not Retry.
    pub dnr: bool,
    /// Dwords 0 and 1.
    pub result: u64,
}

#[derive(Debug)]
struct Ring {
    submission: u64,
    completion: u64,
    size: u32,
    tail: u32,
    head: u32,
    phase: bool,
    in_flight: BTreeSet<u16>,
}

/// Pages of a client's memory, by what they are for. Offsets are in pages.
pub mod pages {
    /// The admin submission queue.
    pub const ADMIN_SUBMISSION: usize = 0;
    /// The admin completion queue.
    pub const ADMIN_COMPLETION: usize = 1;
    /// The I/O submission queue.
    pub const SUBMISSION: usize = 2;
    /// The I/O completion queue.
    pub const COMPLETION: usize = 6;
    /// Never named by any command.
    pub const GUARD: usize = 7;
    /// PRP lists and range lists.
    pub const LISTS: usize = 8;
    /// The page after them.
    pub const LISTS_END: usize = 16;
    /// Data, in two mappings whose guest addresses adjoin.
    pub const DATA: usize = 16;
    /// Where the second mapping begins.
    pub const SEAM: usize = 32;
    /// The page after the data.
    pub const DATA_END: usize = 48;
    /// Never named either.
    pub const GUARD_TWO: usize = 48;
    /// A mapping that the device may only read.
    pub const ROM: usize = 49;
    /// How many there are.
    pub const END: usize = 50;
}

const GUARD: u64 = 0x6a2d_6a2d_6a2d_6a2d;
const ROM: u64 = 0x40f4_40f4_40f4_40f4;

/// A wait for so many steps at least, and for so long at least.
#[derive(Clone)]
struct Waiting {
    steps: u32,
    time: Duration,
    since: Option<Instant>,
}

impl Waiting {
    fn new(steps: u32, time: Duration) -> Waiting {
        Waiting {
            steps,
            time,
            since: None,
        }
    }

    /// Counts a step; false when it was waited long enough.
    fn goes_on(&mut self) -> bool {
        // Time is asked for only where it matters.
        if !self.time.is_zero() && self.since.is_none() {
            self.since = Some(Instant::now());
        }
        if self.steps > 0 {
            self.steps -= 1;
            return true;
        }
        self.since.is_some_and(|since| since.elapsed() < self.time)
    }
}

/// A client on a controller.
#[derive(Debug)]
pub struct Client {
    way: Box<dyn Way>,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    rings: BTreeMap<u16, Ring>,
    next_cid: u16,
}

impl Client {
    /// A client with its memory from guest address `base` on, not lent yet: the caller maps all of `memory.runs`.
    #[must_use]
    pub fn new(way: impl Way + 'static, base: u64) -> Client {
        Self::new_lent(base, |_| way)
    }

    /// A client whose memory is lent by what makes its way to the controller.
    pub fn new_lent<W: Way + 'static>(base: u64, lend: impl FnOnce(&GuestMemory) -> W) -> Client {
        let mut memory = GuestMemory::new(base, pages::END);
        memory.run(0, pages::SEAM, Access::READ_WRITE);
        memory.run(pages::SEAM, pages::ROM - pages::SEAM, Access::READ_WRITE);
        memory.run(pages::ROM, pages::END - pages::ROM, Access::DEVICE_READ);
        let client = Client {
            way: Box::new(lend(&memory)),
            memory: Arc::new(memory),
            rings: BTreeMap::new(),
            next_cid: 0,
        };
        for page in [pages::GUARD, pages::GUARD_TWO] {
            client.memory.fill(client.page(page), PAGE, GUARD);
        }
        client.memory.fill(client.page(pages::ROM), PAGE, ROM);
        client
    }

    /// Whether an address lies in a page that no command may name, although it is lent: the rings, and the guards. What is read there would be this client's own doing.
    #[must_use]
    pub fn is_spared(&self, guest: u64) -> bool {
        let page = guest.wrapping_sub(self.memory.base) / PAGE as u64;
        page < pages::LISTS as u64 || page == pages::GUARD_TWO as u64
    }

    /// The guest address of a page.
    pub fn page(&self, page: usize) -> u64 {
        self.memory.base + (page * PAGE) as u64
    }

    /// Resets the controller, enables it and makes I/O queue 1. `step` moves everything a little.
    pub fn start(&mut self, step: &mut dyn FnMut()) {
        self.way.config_write(4, &[0x06, 0x00]);
        self.disable(step);
        let (submission, completion) = (
            self.page(pages::ADMIN_SUBMISSION),
            self.page(pages::ADMIN_COMPLETION),
        );
        self.ring_at(0, submission, completion, ADMIN);
        self.way
            .register_write(AQA, 4, u64::from(ADMIN - 1) << 16 | u64::from(ADMIN - 1));
        self.way.register_write(ASQ, 8, submission);
        self.way.register_write(ACQ, 8, completion);
        self.way.register_write(CC, 4, CC_ENABLE.into());
        self.wait_ready(RDY, step);
        self.create_queue(1, DEPTH, step);
    }

    /// Disables the controller and waits until it is.
    pub fn disable(&mut self, step: &mut dyn FnMut()) {
        self.way.register_write(CC, 4, 0);
        self.wait_ready(0, step);
        self.rings.clear();
    }

    fn wait_ready(&self, wanted: u32, step: &mut dyn FnMut()) {
        let mut waiting = Waiting::new(DONE, self.way.patience());
        while waiting.goes_on() {
            if self.status() & RDY == wanted {
                return;
            }
            step();
        }
        let mut space = [0; 128];
        self.way.config_read(0, &mut space);
        panic!(
            "CSTS is {:#x}, CC {:#x}, configuration space {space:x?}, RDY {wanted} was waited for",
            self.status(),
            self.way.register_read(CC, 4)
        );
    }

    /// CSTS.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.register(CSTS) as u32
    }

    /// A register of 4 bytes.
    #[must_use]
    pub fn register(&self, offset: u32) -> u64 {
        self.way.register_read(offset, 4)
    }

    /// Whether the controller says that it has failed.
    pub fn failed(&self) -> bool {
        self.status() & CFS != 0
    }

    fn ring_at(&mut self, qid: u16, submission: u64, completion: u64, size: u32) {
        self.memory
            .fill(completion, (size as usize * 16).next_multiple_of(8), 0);
        self.rings.insert(
            qid,
            Ring {
                submission,
                completion,
                size,
                tail: 0,
                head: 0,
                phase: true,
                in_flight: BTreeSet::new(),
            },
        );
    }

    /// Makes the I/O queue pair that has its place in the memory.
    pub fn create_queue(&mut self, qid: u16, size: u32, step: &mut dyn FnMut()) {
        assert!(size <= DEPTH);
        let (submission, completion) = (self.page(pages::SUBMISSION), self.page(pages::COMPLETION));
        let size_and_id = (size - 1) << 16 | u32::from(qid);
        let create = with(with(command(0x05, 0), 10, size_and_id), 11, 1);
        self.ring_at(qid, submission, completion, size);
        let made = self.run(0, with_prps(create, completion, 0), step);
        assert_eq!(made.status, 0, "Create I/O Completion Queue");
        let create = with(
            with(command(0x01, 0), 10, size_and_id),
            11,
            u32::from(qid) << 16 | 1,
        );
        let made = self.run(0, with_prps(create, submission, 0), step);
        assert_eq!(made.status, 0, "Create I/O Submission Queue");
    }

    fn doorbell(&self, qid: u16, completion: bool, value: u32) {
        let index = 2 * usize::from(qid) + usize::from(completion);
        self.way.doorbell(index, value);
    }

    /// Room in a submission queue.
    pub fn room(&self, qid: u16) -> usize {
        let ring = &self.rings[&qid];
        ring.size as usize - 1 - ring.in_flight.len()
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self, qid: u16) -> usize {
        self.rings.get(&qid).map_or(0, |ring| ring.in_flight.len())
    }

    /// Where the entry that is pushed next will lie.
    pub fn next_entry(&self, qid: u16) -> u64 {
        let ring = &self.rings[&qid];
        ring.submission + u64::from(ring.tail) * 64
    }

    /// Writes an entry with an identifier that is not in flight; the identifier. No doorbell is rung.
    pub fn push(&mut self, qid: u16, entry: Dwords) -> u16 {
        loop {
            self.next_cid = self.next_cid.wrapping_add(1);
            // FFFFh is the value that controllers may use for errors that name no command.
            if self.next_cid != u16::MAX && !self.rings[&qid].in_flight.contains(&self.next_cid) {
                break;
            }
        }
        self.push_as(qid, entry, self.next_cid);
        self.next_cid
    }

    /// Writes an entry with this identifier.
    pub fn push_as(&mut self, qid: u16, mut entry: Dwords, cid: u16) {
        entry[0] = entry[0] & 0xffff | u32::from(cid) << 16;
        let ring = self.rings.get_mut(&qid).expect("a queue");
        let at = ring.submission + u64::from(ring.tail) * 64;
        for (index, pair) in entry.chunks(2).enumerate() {
            let word = u64::from(pair[1]) << 32 | u64::from(pair[0]);
            self.memory.store(at + index as u64 * 8, word);
        }
        ring.tail = (ring.tail + 1) % ring.size;
        assert!(ring.in_flight.insert(cid), "the identifier is in flight");
    }

    /// Rings the tail doorbell.
    pub fn ring(&self, qid: u16) {
        self.doorbell(qid, false, self.rings[&qid].tail);
    }

    /// Takes a completion. One for a command that is not in flight is a failure of the test.
    pub fn take(&mut self, qid: u16) -> Option<Completion> {
        let completion = self.peek(qid)?;
        self.head(qid);
        Some(completion)
    }

    /// Takes a completion without telling the controller.
    pub fn peek(&mut self, qid: u16) -> Option<Completion> {
        let ring = self.rings.get_mut(&qid)?;
        let at = ring.completion + u64::from(ring.head) * 16;
        let last = self.memory.at(at + 8).load(Ordering::Acquire);
        if (last >> 48 & 1 != 0) != ring.phase {
            return None;
        }
        let result = self.memory.load(at);
        ring.head = (ring.head + 1) % ring.size;
        if ring.head == 0 {
            ring.phase = !ring.phase;
        }
        let (sqid, cid, status) = (
            (last >> 16) as u16,
            (last >> 32) as u16,
            (last >> 49) as u16,
        );
        assert_eq!(sqid, qid, "a completion of another queue: {last:#x}");
        assert!(
            ring.in_flight.remove(&cid),
            "queue {qid}: a completion for {cid:#x}, which is not in flight: {last:#x}"
        );
        Some(Completion {
            qid,
            cid,
            status: status & 0x7ff,
            dnr: status & 1 << 14 != 0,
            result,
        })
    }

    /// Tells the controller of the completions that were taken.
    pub fn head(&self, qid: u16) {
        self.doorbell(qid, true, self.rings[&qid].head);
    }

    /// Steps until all commands of a queue have ended, or nothing happens any more.
    pub fn drain(&mut self, qid: u16, step: &mut dyn FnMut()) -> Vec<Completion> {
        let patience = self.way.patience();
        // Where time counts, it is not trusted alone: the clock of an emulated machine can leap.
        let steps = if patience.is_zero() { PATIENCE } else { DONE };
        self.drain_while(qid, Waiting::new(steps, patience), step)
    }

    /// As [`drain`](Self::drain), but nothing happens any more when nothing has for this time (and for some steps).
    pub fn drain_for(
        &mut self,
        qid: u16,
        patience: Duration,
        step: &mut dyn FnMut(),
    ) -> Vec<Completion> {
        self.drain_while(qid, Waiting::new(PATIENCE, patience), step)
    }

    fn drain_while(
        &mut self,
        qid: u16,
        patience: Waiting,
        step: &mut dyn FnMut(),
    ) -> Vec<Completion> {
        let mut done = Vec::new();
        let mut waiting = patience.clone();
        while self.in_flight(qid) > 0 && waiting.goes_on() {
            step();
            let before = done.len();
            while let Some(completion) = self.peek(qid) {
                done.push(completion);
            }
            if done.len() > before {
                self.head(qid);
                waiting = patience.clone();
            }
        }
        done
    }

    /// Forgets commands that will not end (a queue that is gone, an event that does not come).
    pub fn forget(&mut self, qid: u16) -> usize {
        self.rings
            .get_mut(&qid)
            .map_or(0, |ring| std::mem::take(&mut ring.in_flight).len())
    }

    /// Runs one command alone. Others may be in flight on the queue if they do not end.
    pub fn run(&mut self, qid: u16, entry: Dwords, step: &mut dyn FnMut()) -> Completion {
        let cid = self.push(qid, entry);
        self.ring(qid);
        let mut waiting = Waiting::new(DONE, self.way.patience());
        while waiting.goes_on() {
            step();
            if let Some(completion) = self.take(qid) {
                assert_eq!(completion.cid, cid);
                return completion;
            }
        }
        panic!("{entry:x?} does not end");
    }

    /// Whether everything of its memory that no command names is as it was.
    pub fn guards_live(&self) -> bool {
        let all = |page: usize, value: u64| {
            (0..PAGE as u64 / 8).all(|word| self.memory.load(self.page(page) + word * 8) == value)
        };
        all(pages::GUARD, GUARD)
            && all(pages::GUARD_TWO, GUARD)
            && all(pages::ROM, ROM)
            && self.memory.canaries_live()
    }
}
