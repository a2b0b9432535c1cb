//! The host's side of a completion queue.

use super::{CompletionEntries, CompletionMemory, Doorbell, DoorbellWrite};
use crate::entry::CompletionEntry;
use crate::sync::{Ordering, fence};

/// Bit 16 of the last dword of a completion entry: the phase tag (NVMe base 2.0, section 3.3.3.2).
const PHASE: u32 = 1 << 16;

/// A completion queue: new entries are told by their phase tag, which turns with every round of the ring.
#[derive(Debug)]
pub struct CompletionRing<M = CompletionMemory, D = Doorbell> {
    head: u32,
    /// The phase tag of a new entry, in its place in the last dword.
    phase: u32,
    entries: u32,
    /// Entries that were taken and that the controller has not been told of.
    unrung: u32,
    memory: M,
    doorbell: D,
}

impl<M: CompletionEntries, D: DoorbellWrite> CompletionRing<M, D> {
    /// A ring in `memory` whose head doorbell is `doorbell`.
    #[must_use]
    pub fn new(memory: M, doorbell: D) -> Self {
        Self {
            head: 0,
            phase: PHASE,
            entries: memory.entries(),
            unrung: 0,
            memory,
            doorbell,
        }
    }

    /// The memory of the ring.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Entries that were taken since the doorbell was rung last.
    #[inline]
    #[must_use]
    pub fn unrung(&self) -> u32 {
        self.unrung
    }

    /// Takes the next entry, if there is a new one. Costs one load where there is none.
    #[inline]
    pub fn pop(&mut self) -> Option<CompletionEntry> {
        let last = self.memory.load_last(self.head);
        if last & PHASE != self.phase {
            return None;
        }
        let (result, head) = self.memory.load_rest(self.head);
        let next = self.head + 1;
        if next == self.entries {
            self.head = 0;
            self.phase ^= PHASE;
        } else {
            self.head = next;
        }
        self.unrung += 1;
        Some(CompletionEntry {
            dw0: result as u32,
            dw1: (result >> 32) as u32,
            sqhd: head as u16,
            sqid: (head >> 16) as u16,
            cid: last as u16,
            status_word: (last >> 16) as u16,
        })
    }

    /// Tells the controller how far entries have been taken, if that is news to it.
    #[inline]
    pub fn ring(&mut self) {
        if self.unrung != 0 {
            self.unrung = 0;
            // The reads of the entries come before the controller may overwrite them.
            fence(Ordering::Release);
            self.doorbell.write(self.head);
        }
    }

    /// Starts again at entry 0 with cleared memory, for a queue that is about to be created anew on the controller.
    pub fn restart(&mut self) {
        self.memory.clear();
        self.head = 0;
        self.phase = PHASE;
        self.unrung = 0;
    }
}
