//! The rings in real memory, against a controller that is written as plainly as the specification's text.
#![allow(unsafe_code)] // says who else writes the rings' memory

mod device;
mod hostile;
mod place;

use std::collections::VecDeque;
use std::sync::Arc;

use nvme_vfio_dma::{Access, AddressSpace, FakeDomain, SharedMemory};
use proptest::prelude::*;
use zerocopy::FromBytes;

use self::device::{Device, HEAD_DOORBELL, Registers, TAIL_DOORBELL};
use super::{
    CompletionMemory, CompletionRing, Doorbell, DoorbellWrite, SubmissionMemory, SubmissionRing,
};
use crate::entry::{Command, CompletionEntry};
use nvme_vfio_seeded::seeded;

/// What lies in memory where nobody wrote; its phase tag would be that of a new entry.
const CANARY: u8 = 0xa5;

/// At least `length` bytes that a device may read and write, full of [`CANARY`].
fn memory(length: usize) -> Arc<SharedMemory> {
    let space = AddressSpace::new(Arc::new(FakeDomain::new()));
    let memory = space.shared(length, Access::READ_WRITE).unwrap();
    let canaries = vec![CANARY; memory.len()];
    memory.write_bytes(0, &canaries).unwrap();
    Arc::new(memory)
}

fn bytes_at(memory: &SharedMemory, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_bytes(offset, &mut bytes).unwrap();
    bytes
}

/// Bytes that look like nothing else (SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        core::array::from_fn(|_| self.next() as u8)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// What happens next, each as often as there is reason to.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push(usize),
    RingSubmission,
    /// The controller looks at its doorbells and fetches so many commands.
    Fetch(usize),
    /// The controller completes so many of the commands that it fetched, in any order.
    Complete(usize),
    Pop(usize),
    RingCompletion,
    /// The controller forgets both queues, and they are created anew.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..80).prop_map(Step::Push),
        6 => Just(Step::RingSubmission),
        8 => (0usize..80).prop_map(Step::Fetch),
        8 => (0usize..80).prop_map(Step::Complete),
        8 => (0usize..80).prop_map(Step::Pop),
        6 => Just(Step::RingCompletion),
        1 => Just(Step::Restart),
    ]
}

/// Both rings, the controller, and what must come out of them.
struct Pair {
    memory: Arc<SharedMemory>,
    /// Where the rings are: offset and bytes.
    places: [(usize, usize); 2],
    registers: Arc<Registers>,
    submission: SubmissionRing,
    completion: CompletionRing,
    device: Device,
    noise: Noise,
    /// Pushed since the doorbell was rung.
    unannounced: VecDeque<Command>,
    /// Rung for, and not yet fetched.
    announced: VecDeque<Command>,
    /// Posted, and not yet taken.
    posted: VecDeque<CompletionEntry>,
    in_flight: usize,
    pushed: u64,
    popped: u64,
    unrung_pops: u32,
}

impl Pair {
    fn new(submission_entries: u32, completion_entries: u32, seed: u64) -> Self {
        let submission_bytes = submission_entries as usize * 64;
        let completion_bytes = completion_entries as usize * 16;
        // A page of canaries before each ring and after the last.
        let submission_at = 4096;
        let completion_at = (submission_at + submission_bytes).next_multiple_of(4096) + 4096;
        let memory = memory(completion_at + completion_bytes.next_multiple_of(4096) + 4096);
        let registers = Arc::new(Registers::default());
        let submission = SubmissionRing::new(
            // SAFETY: the model of the controller only reads it, between the steps of the host.
            unsafe { SubmissionMemory::new(&memory, submission_at, submission_entries) }.unwrap(),
            Doorbell::message(registers.clone(), TAIL_DOORBELL),
        );
        let completion = CompletionRing::new(
            CompletionMemory::new(&memory, completion_at, completion_entries).unwrap(),
            Doorbell::message(registers.clone(), HEAD_DOORBELL),
        );
        let device = Device::new(
            &memory,
            submission.memory().iova(),
            submission_entries as usize,
            completion.memory().iova(),
            completion_entries as usize,
        );
        Self {
            memory,
            places: [
                (submission_at, submission_bytes),
                (completion_at, completion_bytes),
            ],
            registers,
            submission,
            completion,
            device,
            noise: Noise(seed),
            unannounced: VecDeque::new(),
            announced: VecDeque::new(),
            posted: VecDeque::new(),
            in_flight: 0,
            pushed: 0,
            popped: 0,
            unrung_pops: 0,
        }
    }

    fn push(&mut self, count: usize) {
        let capacity = self.submission.capacity() as usize;
        for _ in 0..count.min(capacity - self.in_flight) {
            let command = Command::read_from_bytes(&self.noise.bytes::<64>()).unwrap();
            self.submission.push(&command);
            self.unannounced.push_back(command);
            self.in_flight += 1;
            self.pushed += 1;
        }
        assert_eq!(
            self.submission.unrung() as usize,
            self.unannounced.len(),
            "pushed since the last doorbell"
        );
        assert_eq!(self.registers.take(), [], "pushing rings nothing");
    }

    fn ring_submission(&mut self) {
        self.submission.ring();
        let entries = u64::from(self.submission.capacity()) + 1;
        let mut expected = Vec::new();
        if !self.unannounced.is_empty() {
            expected.push((TAIL_DOORBELL, u32::try_from(self.pushed % entries).unwrap()));
        }
        let writes = self.registers.take();
        assert_eq!(
            writes, expected,
            "one doorbell write, if any, with the tail"
        );
        self.announced.append(&mut self.unannounced);
        self.device.doorbells(&writes);
        assert_eq!(self.submission.unrung(), 0);
    }

    fn fetch(&mut self, count: usize) {
        for _ in 0..count {
            let fetched = self.device.fetch();
            let expected = self.announced.pop_front();
            assert_eq!(fetched, expected, "what the controller fetches");
            if fetched.is_none() {
                break;
            }
        }
    }

    fn complete(&mut self, count: usize) {
        for _ in 0..count.min(self.device.fetched()) {
            let pick = self.noise.below(self.device.fetched());
            let entry = self.noise.bytes::<16>();
            match self.device.complete(pick, entry) {
                Some(posted) => self
                    .posted
                    .push_back(CompletionEntry::read_from_bytes(&posted).unwrap()),
                None => break,
            }
        }
    }

    fn pop(&mut self, count: usize) {
        for _ in 0..count {
            let entry = self.completion.pop();
            assert_eq!(entry, self.posted.pop_front(), "what the host takes");
            if entry.is_none() {
                break;
            }
            self.in_flight -= 1;
            self.popped += 1;
            self.unrung_pops += 1;
        }
        assert_eq!(self.completion.unrung(), self.unrung_pops);
        assert_eq!(self.registers.take(), [], "taking rings nothing");
    }

    fn ring_completion(&mut self) {
        self.completion.ring();
        let entries = (self.places[1].1 / 16) as u64;
        let mut expected = Vec::new();
        if self.unrung_pops != 0 {
            expected.push((HEAD_DOORBELL, u32::try_from(self.popped % entries).unwrap()));
        }
        let writes = self.registers.take();
        assert_eq!(
            writes, expected,
            "one doorbell write, if any, with the head"
        );
        self.device.doorbells(&writes);
        self.unrung_pops = 0;
        assert_eq!(self.completion.unrung(), 0);
    }

    fn restart(&mut self) {
        self.device.reset();
        self.submission.restart();
        self.completion.restart();
        self.unannounced.clear();
        self.announced.clear();
        self.posted.clear();
        self.in_flight = 0;
        self.pushed = 0;
        self.popped = 0;
        self.unrung_pops = 0;
        assert_eq!(self.registers.take(), [], "restarting rings nothing");
        assert_eq!((self.submission.unrung(), self.completion.unrung()), (0, 0));
        assert_eq!(self.completion.pop(), None, "nothing is left of before");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push(count) => self.push(count),
            Step::RingSubmission => self.ring_submission(),
            Step::Fetch(count) => self.fetch(count),
            Step::Complete(count) => self.complete(count),
            Step::Pop(count) => self.pop(count),
            Step::RingCompletion => self.ring_completion(),
            Step::Restart => self.restart(),
        }
    }

    /// Whatever was going on comes to its end when both doorbells are rung often enough.
    fn drain(&mut self) {
        for _ in 0..=self.in_flight {
            self.ring_submission();
            self.fetch(usize::MAX);
            self.complete(usize::MAX);
            self.pop(usize::MAX);
            self.ring_completion();
        }
        assert_eq!(self.in_flight, 0);
        assert_eq!(self.device.fetched(), 0);
    }

    /// Nothing but the rings was written.
    fn check_canaries(&self) {
        let mut from = 0;
        for (offset, length) in self.places {
            let between = bytes_at(&self.memory, from, offset - from);
            assert!(between.iter().all(|&byte| byte == CANARY));
            from = offset + length;
        }
        let after = bytes_at(&self.memory, from, self.memory.len() - from);
        assert!(!after.is_empty() && after.iter().all(|&byte| byte == CANARY));
    }
}

proptest! {
    #![proptest_config(seeded(512))]

    /// Batches of any size, answered in any order, with doorbells rung late or seldom, in queues that wrap many times.
    #[test]
    fn rings_agree_with_a_plain_controller(
        (submission, completion) in (2u32..=70, 2u32..=70),
        same in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
        seed in any::<u64>(),
    ) {
        let mut pair = Pair::new(submission, if same { submission } else { completion }, seed);
        for step in steps {
            pair.step(step);
        }
        pair.drain();
        pair.check_canaries();
    }
}

/// As above, where an index outgrows 8, 12 and 16 bits: batches of a third of the queue, through two rounds of it and a bit.
#[test]
fn large_queues_wrap_too() {
    for entries in [257, 4096, 65_535, 65_536] {
        let mut pair = Pair::new(entries, entries, u64::from(entries));
        while pair.pushed < 2 * u64::from(entries) + 5 {
            pair.push(entries as usize / 3);
            pair.ring_submission();
            pair.fetch(usize::MAX);
            pair.complete(usize::MAX);
            pair.pop(usize::MAX);
            pair.ring_completion();
        }
        pair.drain();
        // All at once: one less than there are entries.
        pair.push(usize::MAX);
        assert_eq!(pair.in_flight, entries as usize - 1);
        pair.drain();
        pair.check_canaries();
    }
}

/// A full batch at every position of the ring: the tail never becomes equal to the head, which would look like an empty queue.
#[test]
fn capacity_is_one_less_than_there_are_entries() {
    for entries in 2..=70 {
        let mut pair = Pair::new(entries, entries, 1);
        assert_eq!(pair.submission.capacity(), entries - 1);
        for _ in 0..=entries {
            pair.push(usize::MAX);
            assert_eq!(
                pair.announced.len() + pair.unannounced.len(),
                entries as usize - 1
            );
            pair.drain();
        }
    }
}

/// The queue was left in its second round, so that the first entries of the new queue have the phase tag that entries
/// of the old one had.
#[test]
fn entries_of_the_queue_before_are_not_taken_after_a_restart() {
    for rounds in 0..3 {
        for entries in [2, 3, 8] {
            let mut pair = Pair::new(entries, entries, 7);
            for _ in 0..rounds * entries + 1 {
                pair.push(1);
                pair.drain();
            }
            // In flight, completed, but not taken when the controller is reset.
            pair.push(1);
            pair.ring_submission();
            pair.fetch(1);
            pair.complete(1);
            assert_eq!(pair.posted.len(), 1);
            pair.restart();
            let completion = pair.places[1];
            let cleared = bytes_at(&pair.memory, completion.0, completion.1);
            assert!(cleared.iter().all(|&byte| byte == 0));
            for _ in 0..2 * entries + 1 {
                pair.push(1);
                pair.drain();
            }
        }
    }
}
