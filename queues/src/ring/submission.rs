//! The host's side of a submission queue.

use super::{Doorbell, DoorbellWrite, SubmissionEntries, SubmissionMemory};
use crate::entry::Command;
use crate::sync::{Ordering, fence};

/// A submission queue: entries go in at the tail, and the controller hears of them when the doorbell is rung.
#[derive(Debug)]
pub struct SubmissionRing<M = SubmissionMemory, D = Doorbell> {
    tail: u32,
    entries: u32,
    /// Entries that the controller has not been told of.
    unrung: u32,
    doorbell: D,
    memory: M,
}

impl<M: SubmissionEntries, D: DoorbellWrite> SubmissionRing<M, D> {
    /// A ring in `memory` whose tail doorbell is `doorbell`.
    #[must_use]
    pub fn new(memory: M, doorbell: D) -> Self {
        Self {
            tail: 0,
            entries: memory.entries(),
            unrung: 0,
            doorbell,
            memory,
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
        self.entries - 1
    }

    /// Entries that were pushed since the doorbell was rung last.
    #[inline]
    #[must_use]
    pub fn unrung(&self) -> u32 {
        self.unrung
    }

    /// Writes `command` at the tail. The caller sees to it that no more than [`capacity`](Self::capacity) commands are in
    /// flight, as a [`SlotTable`](crate::slots::SlotTable) of that capacity does.
    #[inline]
    pub fn push(&mut self, command: &Command) {
        self.memory.store(self.tail, command);
        let next = self.tail + 1;
        self.tail = if next == self.entries { 0 } else { next };
        self.unrung += 1;
    }

    /// Tells the controller of all entries that it has not been told of, if there are any.
    #[inline]
    pub fn ring(&mut self) {
        if self.unrung != 0 {
            self.unrung = 0;
            // What was written before is seen by whoever sees the doorbell. A release fence orders plain stores before the
            // relaxed store that follows it, also on weakly ordered machines.
            fence(Ordering::Release);
            self.doorbell.write(self.tail);
        }
    }

    /// Starts again at entry 0, for a queue that is about to be created anew on the controller.
    pub fn restart(&mut self) {
        self.tail = 0;
        self.unrung = 0;
    }
}
