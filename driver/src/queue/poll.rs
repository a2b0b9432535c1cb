//! The way out.

use nvme_vfio_queues::CompletionEntry;
use nvme_vfio_queues::slots::IdentifierError;

use super::{Completion, IoQueue, Outcome, Slot, State};
use crate::controller::Counters;

impl IoQueue {
    /// Takes the next completion, if there is one. Rings both doorbells where there is none, so that a loop of `poll` and
    /// submissions needs no other call.
    #[inline]
    pub fn poll(&mut self) -> Option<Completion> {
        if self.shared.epoch() != self.expected {
            return self.poll_attention();
        }
        self.poll_ring()
    }

    #[inline]
    pub(super) fn poll_ring(&mut self) -> Option<Completion> {
        loop {
            let Some(entry) = self.completion.pop() else {
                self.submission.ring();
                self.completion.ring();
                return None;
            };
            if self.completion.unrung() >= self.batch {
                self.completion.ring();
            }
            match self.slots.remove(entry.cid) {
                Ok(Slot {
                    state: State::Whole,
                    token,
                    buffer,
                    ..
                }) => {
                    self.waiting -= 1;
                    return Some(Completion {
                        token,
                        entry,
                        outcome: Outcome::Done,
                        buffer,
                        vector: None,
                    });
                }
                Ok(slot) => {
                    if let Some(completion) = self.unusual(slot, entry) {
                        return Some(completion);
                    }
                }
                Err(error) => self.unexpected(error),
            }
        }
    }

    /// A completion of a command that is a part of a large I/O, or that ran out of time.
    #[cold]
    fn unusual(&mut self, slot: Slot, entry: CompletionEntry) -> Option<Completion> {
        let part = slot.buffer.is_none() && slot.large != 0;
        if slot.state == State::TimedOut {
            Counters::count(&self.shared.counters.late);
            tracing::debug!(
                queue = self.cold.id,
                cid = entry.cid,
                "a command ended after its time"
            );
            match slot.buffer {
                Some(buffer) => self.cold.reclaimed.push((slot.token, buffer)),
                None if part => self.part_let_go(slot.large),
                None => {}
            }
            return None;
        }
        if part {
            return self.part_done(slot.large, entry);
        }
        self.waiting -= 1;
        Some(Completion {
            token: slot.token,
            entry,
            outcome: Outcome::Done,
            buffer: slot.buffer,
            vector: None,
        })
    }

    /// A completion that names no command in flight: counted, and never believed.
    #[cold]
    fn unexpected(&mut self, error: IdentifierError) {
        let counters = &self.shared.counters;
        Counters::count(match error {
            IdentifierError::Unknown(_) => &counters.unknown,
            IdentifierError::Stale(_) => &counters.stale,
        });
        tracing::warn!(queue = self.cold.id, %error, "a completion that names no command");
        self.cold.distrusted = true;
        // Which command it was meant for cannot be known: the owner's next check of deadlines resets the controller.
    }

    /// Reports what waits to be reported, and finds out what has happened to the controller.
    #[cold]
    fn poll_attention(&mut self) -> Option<Completion> {
        let epoch = self.shared.epoch();
        if epoch != self.cold.made_in && !self.cold.lost {
            self.lose(epoch);
        }
        if let Some(completion) = self.cold.reports.pop_front() {
            self.waiting -= 1;
            return Some(completion);
        }
        if self.cold.lost {
            return None;
        }
        self.expected = self.cold.made_in;
        self.poll_ring()
    }

    /// Takes all completions that are there now and keeps them to be reported by `poll`.
    pub(super) fn drain(&mut self) {
        while let Some(completion) = self.poll_ring() {
            self.report(completion);
        }
    }

    /// Has `completion` reported by the next `poll`.
    pub(super) fn report(&mut self, completion: Completion) {
        // `poll_attention` counts it down when it hands it out.
        self.waiting += 1;
        self.cold.reports.push_back(completion);
        self.expected = super::ATTENTION;
    }
}
