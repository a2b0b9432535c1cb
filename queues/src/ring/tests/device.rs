//! The controller's side of a queue pair, one byte at a time.

use std::mem;
use std::sync::{Arc, Mutex};

use nvme_vfio_dma::{Iova, SharedMemory};
use zerocopy::FromBytes;

use crate::entry::Command;
use crate::ring::DoorbellMessage;

/// Where the doorbells of queue 1 are, with a stride of 4 bytes.
pub(super) const TAIL_DOORBELL: usize = 0x1008;
pub(super) const HEAD_DOORBELL: usize = 0x100c;

/// Records what is written to doorbells.
#[derive(Default)]
pub(super) struct Registers(Mutex<Vec<(usize, u32)>>);

impl Registers {
    /// What was written since this was called last.
    pub(super) fn take(&self) -> Vec<(usize, u32)> {
        mem::take(&mut self.0.lock().unwrap())
    }
}

impl DoorbellMessage for Registers {
    fn ring(&self, offset: usize, value: u32) {
        self.0.lock().unwrap().push((offset, value));
    }
}

pub(super) struct Device {
    memory: Arc<SharedMemory>,
    submission: usize,
    submission_entries: usize,
    submission_head: usize,
    submission_tail: usize,
    completion: usize,
    completion_entries: usize,
    completion_head: usize,
    completion_tail: usize,
    /// How many completion entries were posted.
    posted: usize,
    /// How many commands wait for their completion.
    fetched: Vec<Command>,
}

impl Device {
    /// A controller for which queues were created at these addresses.
    pub(super) fn new(
        memory: &Arc<SharedMemory>,
        submission: Iova,
        submission_entries: usize,
        completion: Iova,
        completion_entries: usize,
    ) -> Self {
        let offset = |iova: Iova| usize::try_from(iova.0 - memory.iova().0).unwrap();
        Self {
            submission: offset(submission),
            completion: offset(completion),
            memory: Arc::clone(memory),
            submission_entries,
            submission_head: 0,
            submission_tail: 0,
            completion_entries,
            completion_head: 0,
            completion_tail: 0,
            posted: 0,
            fetched: Vec::new(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.submission_head = 0;
        self.submission_tail = 0;
        self.completion_head = 0;
        self.completion_tail = 0;
        self.posted = 0;
        self.fetched.clear();
    }

    /// Sees doorbell writes, and refuses what a controller refuses: a value that is no index.
    pub(super) fn doorbells(&mut self, writes: &[(usize, u32)]) {
        for &(offset, value) in writes {
            let value = value as usize;
            match offset {
                TAIL_DOORBELL => {
                    assert!(value < self.submission_entries);
                    self.submission_tail = value;
                }
                HEAD_DOORBELL => {
                    assert!(value < self.completion_entries);
                    self.completion_head = value;
                }
                _ => panic!("no doorbell is at {offset:#x}"),
            }
        }
    }

    pub(super) fn fetched(&self) -> usize {
        self.fetched.len()
    }

    /// Fetches the next command that the tail doorbell told of.
    pub(super) fn fetch(&mut self) -> Option<Command> {
        if self.submission_head == self.submission_tail {
            return None;
        }
        let mut bytes = [0; 64];
        let offset = self.submission + self.submission_head * 64;
        self.memory.read_bytes(offset, &mut bytes).unwrap();
        self.submission_head = (self.submission_head + 1) % self.submission_entries;
        let command = Command::read_from_bytes(&bytes).unwrap();
        self.fetched.push(command);
        Some(command)
    }

    /// Completes the fetched command `pick` with `entry`, in which only identifier and phase tag are made right; tells what was posted, or
    /// `None` where the queue is full.
    pub(super) fn complete(&mut self, pick: usize, mut entry: [u8; 16]) -> Option<[u8; 16]> {
        if (self.completion_tail + 1) % self.completion_entries == self.completion_head {
            return None;
        }
        let command = self.fetched.swap_remove(pick);
        entry[12..14].copy_from_slice(&command.cid.to_le_bytes());
        // One in the first round of the queue, zero in the second, and so on.
        let phase = (self.posted / self.completion_entries + 1) % 2;
        entry[14] = entry[14] & !1 | phase as u8;
        let offset = self.completion + self.completion_tail * 16;
        self.memory.write_bytes(offset, &entry).unwrap();
        self.completion_tail = (self.completion_tail + 1) % self.completion_entries;
        self.posted += 1;
        Some(entry)
    }
}
