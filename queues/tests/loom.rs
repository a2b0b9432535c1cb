//! The memory ordering of the rings, under every interleaving and every value that a relaxed load may return.
//!
//! The real rings run over memory of the model checker's. One thread is the host, another plays the controller as an
//! NVMe controller behaves: it loads a doorbell with acquire before it touches what the doorbell tells of, and it stores
//! the last dword of a completion entry last, with release. Entries and data are plain memory to the checker, so it
//! reports any two accesses of which neither is known to come first.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p nvme-vfio-queues --release --test loom
//! ```
//!
//! What breaks when the rings are weakened, each tried by hand:
//!
//! | weakened | what the checker finds |
//! |---|---|
//! | the fence of `SubmissionRing::ring` removed, made an acquire fence, or put after the doorbell | all tests: the controller reads an entry that the host still writes |
//! | `LAST_DWORD` relaxed | all tests: the host reads the rest of an entry that the controller still writes |
//! | the rest of an entry loaded before its last dword | all tests: the same |
//! | the fence of `CompletionRing::ring` removed, made an acquire fence, or put after the doorbell | `a_completion_entry_is_overwritten_only_after_it_was_read`: the controller writes an entry that the host still reads. The other tests pass, since the next submission's fence stands in for it there |
//! | the phase tag not turned at the wrap | all tests: an old entry is taken again |
#![cfg(loom)]
#![allow(unsafe_code)] // the checker's cells hand out pointers

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use nvme_vfio_queues::ring::{
    CompletionEntries, CompletionRing, DoorbellWrite, Entries, LAST_DWORD, SubmissionEntries,
    SubmissionRing,
};
use nvme_vfio_queues::slots::SlotTable;
use nvme_vfio_queues::{Command, CompletionEntry, NvmOpcode};

/// Plain memory, each access of which the checker compares with all others.
struct Plain<T>(UnsafeCell<T>);

// SAFETY: every access goes through the checker's cell, which fails the test where two of them race.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T: Copy> Plain<T> {
    fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    fn load(&self) -> T {
        // SAFETY: the checker has just found that no write races with this.
        self.0.with(|pointer| unsafe { *pointer })
    }

    fn store(&self, value: T) {
        // SAFETY: the checker has just found that no other access races with this.
        self.0.with_mut(|pointer| unsafe { *pointer = value });
    }
}

/// A completion entry as the two sides see it: the first three dwords, and the last.
struct Entry {
    rest: Plain<(u64, u32)>,
    last: AtomicU32,
}

/// All that host and controller share.
struct Shared {
    submission: Vec<Plain<Command>>,
    completion: Vec<Entry>,
    tail_doorbell: AtomicU32,
    head_doorbell: AtomicU32,
    /// The data of commands: as many blocks as there may be commands in flight.
    data: Vec<Plain<u32>>,
}

impl Shared {
    fn new(submission_entries: usize, completion_entries: usize) -> Arc<Self> {
        Arc::new(Self {
            submission: (0..submission_entries)
                .map(|_| Plain::new(Command::ZERO))
                .collect(),
            completion: (0..completion_entries)
                .map(|_| Entry {
                    rest: Plain::new((0, 0)),
                    last: AtomicU32::new(0),
                })
                .collect(),
            tail_doorbell: AtomicU32::new(0),
            head_doorbell: AtomicU32::new(0),
            data: (1..submission_entries).map(|_| Plain::new(0)).collect(),
        })
    }
}

struct Submissions(Arc<Shared>);

/// Cursors are indices here.
macro_rules! entries {
    ($memory:ty, $field:ident) => {
        #[allow(unsafe_code)] // indices are checked here all the same
        impl Entries for $memory {
            type Cursor = u32;

            fn entries(&self) -> u32 {
                self.0.$field.len() as u32
            }

            fn first(&self) -> u32 {
                0
            }

            unsafe fn next(&self, cursor: u32) -> Option<u32> {
                (cursor + 1 < self.entries()).then_some(cursor + 1)
            }

            fn index(&self, cursor: u32) -> u32 {
                cursor
            }
        }
    };
}

struct Completions(Arc<Shared>);

entries!(Submissions, submission);
entries!(Completions, completion);

#[allow(unsafe_code)] // indices are checked here all the same
impl SubmissionEntries for Submissions {
    unsafe fn store(&mut self, cursor: u32, command: &Command) {
        self.0.submission[cursor as usize].store(*command);
    }
}

#[allow(unsafe_code)] // indices are checked here all the same
impl CompletionEntries for Completions {
    unsafe fn load_last(&self, cursor: u32) -> u32 {
        self.0.completion[cursor as usize].last.load(LAST_DWORD)
    }

    unsafe fn load_rest(&self, cursor: u32) -> (u64, u32) {
        self.0.completion[cursor as usize].rest.load()
    }

    fn clear(&self) {
        for entry in &self.0.completion {
            entry.rest.store((0, 0));
            entry.last.store(0, Ordering::Relaxed);
        }
    }
}

struct TailDoorbell(Arc<Shared>);

impl DoorbellWrite for TailDoorbell {
    fn write(&self, value: u32) {
        self.0.tail_doorbell.store(value, Ordering::Relaxed);
    }
}

struct HeadDoorbell(Arc<Shared>);

impl DoorbellWrite for HeadDoorbell {
    fn write(&self, value: u32) {
        self.0.head_doorbell.store(value, Ordering::Relaxed);
    }
}

/// The host: the rings under test.
struct Host {
    shared: Arc<Shared>,
    submission: SubmissionRing<Submissions, TailDoorbell>,
    completion: CompletionRing<Completions, HeadDoorbell>,
}

impl Host {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            submission: SubmissionRing::new(
                Submissions(Arc::clone(shared)),
                TailDoorbell(Arc::clone(shared)),
            ),
            completion: CompletionRing::new(
                Completions(Arc::clone(shared)),
                HeadDoorbell(Arc::clone(shared)),
            ),
        }
    }

    /// Pushes a write or read of the block `block` under the identifier `cid`, without ringing.
    fn push(&mut self, opcode: NvmOpcode, cid: u16, block: usize, value: u32) {
        if opcode == NvmOpcode::WRITE {
            self.shared.data[block].store(value);
        }
        self.submission.push(&Command {
            opcode: opcode.0,
            cid,
            prp1: block as u64,
            cdw10: value,
            ..Command::ZERO
        });
    }

    fn wait(&mut self) -> CompletionEntry {
        loop {
            if let Some(entry) = self.completion.pop() {
                return entry;
            }
            thread::yield_now();
        }
    }

    /// Checks a completion entry against the command with its identifier, and the data that a read brought.
    fn check(&self, entry: &CompletionEntry, opcode: NvmOpcode, block: usize, value: u32) {
        assert_eq!(entry.dw0, value);
        assert_eq!(entry.dw1, !value);
        assert_eq!(entry.sqid, 1);
        if opcode == NvmOpcode::READ {
            assert_eq!(self.shared.data[block].load(), value);
        }
    }
}

/// The controller, with its own idea of where it is in the queues.
struct Device {
    shared: Arc<Shared>,
    submission_head: usize,
    /// The submission doorbell as it was seen last.
    submission_tail: usize,
    completion_tail: usize,
    /// The completion doorbell as it was seen last.
    completion_head: usize,
    phase: bool,
}

impl Device {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            submission_head: 0,
            submission_tail: 0,
            completion_tail: 0,
            completion_head: 0,
            phase: true,
        }
    }

    fn fetch(&mut self) -> Command {
        while self.submission_head == self.submission_tail {
            self.submission_tail = self.shared.tail_doorbell.load(Ordering::Acquire) as usize;
            if self.submission_head == self.submission_tail {
                thread::yield_now();
            }
        }
        let command = self.shared.submission[self.submission_head].load();
        self.submission_head = (self.submission_head + 1) % self.shared.submission.len();
        command
    }

    /// Moves the data of `command`, then posts its completion entry when there is room.
    fn complete(&mut self, command: &Command) {
        let block = &self.shared.data[command.prp1 as usize];
        if command.opcode == NvmOpcode::WRITE.0 {
            assert_eq!(block.load(), command.cdw10);
        } else {
            block.store(command.cdw10);
        }
        let next = (self.completion_tail + 1) % self.shared.completion.len();
        while next == self.completion_head {
            self.completion_head = self.shared.head_doorbell.load(Ordering::Acquire) as usize;
            if next == self.completion_head {
                thread::yield_now();
            }
        }
        let entry = &self.shared.completion[self.completion_tail];
        let result = u64::from(!command.cdw10) << 32 | u64::from(command.cdw10);
        entry
            .rest
            .store((result, 1 << 16 | self.submission_head as u32));
        entry.last.store(
            u32::from(self.phase) << 16 | u32::from(command.cid),
            Ordering::Release,
        );
        self.completion_tail = next;
        if next == 0 {
            self.phase = !self.phase;
        }
    }
}

/// Explores `model` without a bound on preemptions.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = None;
    builder.max_branches = 10_000;
    builder.check(model);
}

/// The smallest queues, one command at a time, all on one block: every entry and the block are used again and again, so each
/// hand-over is between accesses that would race without it.
#[test]
fn entries_and_data_are_handed_over_and_back() {
    const COMMANDS: [NvmOpcode; 3] = [NvmOpcode::WRITE, NvmOpcode::READ, NvmOpcode::WRITE];
    explore(|| {
        let shared = Shared::new(2, 2);
        let mut device = Device::new(&shared);
        let controller = thread::spawn(move || {
            for _ in COMMANDS {
                let command = device.fetch();
                device.complete(&command);
            }
        });
        let mut host = Host::new(&shared);
        for (cid, opcode) in (0..).zip(COMMANDS) {
            let value = 0x100 + u32::from(cid);
            host.push(opcode, cid, 0, value);
            host.submission.ring();
            let entry = host.wait();
            assert_eq!(entry.cid, cid);
            host.check(&entry, opcode, 0, value);
            host.completion.ring();
        }
        controller.join().unwrap();
    });
}

/// All commands are submitted at once, and only the completion queue's doorbell, rung for two entries together, lets the
/// controller go on: nothing else keeps it from writing an entry that the host still reads.
///
/// Two, since a queue is full with one entry unused: of entries that are told of one by one, the controller
/// never writes the last, and a fence that came too late would go unnoticed.
#[test]
fn a_completion_entry_is_overwritten_only_after_it_was_read() {
    const COMMANDS: u16 = 4;
    explore(|| {
        let shared = Shared::new(usize::from(COMMANDS) + 1, 3);
        let mut device = Device::new(&shared);
        let controller = thread::spawn(move || {
            for _ in 0..COMMANDS {
                let command = device.fetch();
                device.complete(&command);
            }
        });
        let mut host = Host::new(&shared);
        let value = |cid: u16| 0x100 + u32::from(cid);
        for cid in 0..COMMANDS {
            host.push(NvmOpcode::READ, cid, usize::from(cid), value(cid));
        }
        host.submission.ring();
        for cid in 0..COMMANDS {
            let entry = host.wait();
            assert_eq!(entry.cid, cid);
            host.check(&entry, NvmOpcode::READ, usize::from(cid), value(cid));
            if host.completion.unrung() == 2 {
                host.completion.ring();
            }
        }
        controller.join().unwrap();
    });
}

/// Two commands in flight under one doorbell write each way, answered in the wrong order, with the slot table that tells
/// them apart; then two more over the wrap of both rings.
#[test]
fn a_batch_that_is_answered_out_of_order_wraps() {
    const ROUNDS: u32 = 2;
    explore(|| {
        let shared = Shared::new(3, 3);
        let mut device = Device::new(&shared);
        let controller = thread::spawn(move || {
            for _ in 0..ROUNDS {
                let first = device.fetch();
                let second = device.fetch();
                device.complete(&second);
                device.complete(&first);
            }
        });
        let mut host = Host::new(&shared);
        let mut slots = SlotTable::new(host.submission.capacity());
        for round in 0..ROUNDS {
            for opcode in [NvmOpcode::WRITE, NvmOpcode::READ] {
                let (block, cid) = slots.peek().unwrap();
                let value = 0x100 * (round + 1) + block as u32;
                assert_eq!(slots.insert((opcode.0, block, value)), Ok(cid));
                host.push(opcode, cid, block, value);
            }
            host.submission.ring();
            for _ in 0..2 {
                let entry = host.wait();
                let (opcode, block, value) = slots.remove(entry.cid).unwrap();
                host.check(&entry, NvmOpcode(opcode), block, value);
            }
            host.completion.ring();
        }
        controller.join().unwrap();
    });
}
