//! The host's side of a completion queue.
#![allow(unsafe_code)] // the head is a cursor that only goes from entry to entry, so that no check is needed per entry

use super::{CompletionEntries, CompletionMemory, Doorbell, DoorbellWrite, Entries};
use crate::entry::CompletionEntry;
use crate::sync::{Ordering, fence};

/// Bit 16 of the last dword of a completion entry: the phase tag (NVMe base 2.0, section 3.3.3.2).
const PHASE: u32 = 1 << 16;

/// Status code and status code type in the last dword.
const CODE: u32 = 0x7ff << 17;

/// A completion entry as it is in memory, for those who need only a part of it.
#[derive(Debug, Clone, Copy)]
pub struct RawEntry {
    result: u64,
    third: u32,
    last: u32,
}

impl RawEntry {
    /// The command identifier.
    #[inline(always)]
    #[must_use]
    pub fn cid(self) -> u16 {
        self.last as u16
    }

    /// Whether the status is success, as [`Status::is_success`](crate::Status::is_success) tells it.
    #[inline(always)]
    #[must_use]
    pub fn is_success(self) -> bool {
        self.last & CODE == 0
    }

    /// It as two words, which a function takes in registers.
    #[inline(always)]
    #[must_use]
    pub fn words(self) -> (u64, u64) {
        (
            self.result,
            u64::from(self.last) << 32 | u64::from(self.third),
        )
    }

    /// The entry that [`words`](Self::words) made two words of.
    #[must_use]
    pub fn of((result, rest): (u64, u64)) -> Self {
        Self {
            result,
            third: rest as u32,
            last: (rest >> 32) as u32,
        }
    }

    /// All of it.
    #[inline(always)]
    #[must_use]
    pub fn entry(self) -> CompletionEntry {
        CompletionEntry {
            dw0: self.result as u32,
            dw1: (self.result >> 32) as u32,
            sqhd: self.third as u16,
            sqid: (self.third >> 16) as u16,
            cid: self.last as u16,
            status_word: (self.last >> 16) as u16,
        }
    }
}

/// A completion queue: new entries are told by their phase tag, which turns with every round of the ring.
#[derive(Debug)]
pub struct CompletionRing<M: Entries = CompletionMemory, D = Doorbell> {
    head: M::Cursor,
    /// The head that the controller was told of last.
    rung: M::Cursor,
    /// The phase tag of a new entry, in its place in the last dword.
    phase: u32,
    memory: M,
    doorbell: D,
}

impl<M: CompletionEntries, D: DoorbellWrite> CompletionRing<M, D> {
    /// A ring in `memory` whose head doorbell is `doorbell`.
    #[must_use]
    pub fn new(memory: M, doorbell: D) -> Self {
        Self {
            head: memory.first(),
            rung: memory.first(),
            phase: PHASE,
            memory,
            doorbell,
        }
    }

    /// The memory of the ring.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How many entries were taken since the doorbell was rung last.
    #[must_use]
    pub fn unrung(&self) -> u32 {
        let entries = self.memory.entries();
        (self.memory.index(self.head) + entries - self.memory.index(self.rung)) % entries
    }

    /// Whether there are entries that were taken and that the controller has not been told of.
    #[inline]
    #[must_use]
    pub fn is_unrung(&self) -> bool {
        self.head != self.rung
    }

    /// Takes the next entry, if there is a new one.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<CompletionEntry> {
        self.pop_raw().map(RawEntry::entry)
    }

    /// Takes the next entry, if there is a new one, as it is in memory. Costs one load of the ring where there is none.
    #[inline(always)]
    pub fn pop_raw(&mut self) -> Option<RawEntry> {
        let head = self.head;
        // SAFETY: the head begins at the first entry and goes on by `next`.
        let last = unsafe { self.memory.load_last(head) };
        if last & PHASE != self.phase {
            return None;
        }
        // SAFETY: as above.
        let (result, third) = unsafe { self.memory.load_rest(head) };
        // SAFETY: as above.
        match unsafe { self.memory.next(head) } {
            Some(next) => self.head = next,
            None => {
                self.head = self.memory.first();
                self.phase ^= PHASE;
            }
        }
        Some(RawEntry {
            result,
            third,
            last,
        })
    }

    /// Tells the controller how far entries have been taken, if that is news to it.
    #[inline]
    pub fn ring(&mut self) {
        if self.is_unrung() {
            self.rung = self.head;
            // The reads of the entries come before the controller may overwrite them.
            fence(Ordering::Release);
            self.doorbell.write(self.memory.index(self.head));
        }
    }

    /// Starts again at entry 0 with cleared memory, for a queue that is about to be created anew on the controller.
    pub fn restart(&mut self) {
        self.memory.clear();
        self.head = self.memory.first();
        self.rung = self.head;
        self.phase = PHASE;
    }
}
