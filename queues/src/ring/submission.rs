//! The host's side of a submission queue.
#![allow(unsafe_code)] // the tail is a cursor that only goes from entry to entry, so that no check is needed per entry

use super::{Doorbell, DoorbellWrite, Entries, SubmissionEntries, SubmissionMemory};
use crate::entry::Command;
use crate::sync::{Ordering, fence};

/// A submission queue: entries go in at the tail, and the controller hears of them when the doorbell is rung.
#[derive(Debug)]
pub struct SubmissionRing<M: Entries = SubmissionMemory, D = Doorbell> {
    tail: M::Cursor,
    /// The tail that the controller was told of last.
    rung: M::Cursor,
    memory: M,
    doorbell: D,
}

impl<M: SubmissionEntries, D: DoorbellWrite> SubmissionRing<M, D> {
    /// A ring in `memory` whose tail doorbell is `doorbell`.
    #[must_use]
    pub fn new(memory: M, doorbell: D) -> Self {
        Self {
            tail: memory.first(),
            rung: memory.first(),
            memory,
            doorbell,
        }
    }

    /// The memory of the ring.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How many commands may be in flight: one less than there are entries, since a full ring would look like an empty one.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.memory.entries() - 1
    }

    /// How many entries were pushed since the doorbell was rung last.
    #[must_use]
    pub fn unrung(&self) -> u32 {
        let entries = self.memory.entries();
        (self.memory.index(self.tail) + entries - self.memory.index(self.rung)) % entries
    }

    /// Whether there are entries that the controller has not been told of.
    #[inline]
    #[must_use]
    pub fn is_unrung(&self) -> bool {
        self.tail != self.rung
    }

    /// Writes `command` at the tail. The caller sees to it that no more than [`capacity`](Self::capacity) commands are in
    /// flight, as a [`SlotTable`](crate::slots::SlotTable) of that capacity does.
    #[inline(always)]
    pub fn push(&mut self, command: &Command) {
        let tail = self.tail;
        // SAFETY: the tail begins at the first entry and goes on by `next`.
        unsafe { self.memory.store(tail, command) };
        // SAFETY: as above.
        self.tail = unsafe { self.memory.next(tail) }.unwrap_or(self.memory.first());
    }

    /// Tells the controller of all entries that it has not been told of, if there are any.
    #[inline]
    pub fn ring(&mut self) {
        if self.is_unrung() {
            self.rung = self.tail;
            // What was written before is seen by whoever sees the doorbell. A release fence orders plain stores before the
            // relaxed store that follows it, also on weakly ordered machines.
            fence(Ordering::Release);
            self.doorbell.write(self.memory.index(self.tail));
        }
    }

    /// Starts again at entry 0, for a queue that is about to be created anew on the controller.
    pub fn restart(&mut self) {
        self.tail = self.memory.first();
        self.rung = self.tail;
    }
}
