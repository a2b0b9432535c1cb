//! The way out.

use nvme_vfio_queues::CompletionEntry;
use nvme_vfio_queues::ring::RawEntry;
use nvme_vfio_queues::slots::IdentifierError;

use super::{Completion, IoQueue, Outcome, Slot, State};
use crate::controller::Counters;

impl IoQueue {
    /// Takes the next completion, if there is one. Rings the doorbell where there is none, so that a loop of `poll` and
    /// submissions needs no other call.
    #[inline(always)]
    pub fn poll(&mut self) -> Option<Completion> {
        let report = if let Some(raw) = self.completion.pop_raw() {
            if let Some(mut slot) = self.slots.common(raw.cid()) {
                let entry = raw.entry();
                let token = slot.payload().token;
                let buffer = slot.payload().buffer.take();
                slot.free_emptied();
                self.waiting -= 1;
                return Some(Completion {
                    token,
                    entry,
                    outcome: Outcome::Done,
                    buffer,
                    vector: None,
                });
            }
            self.poll_uncommon(raw.words())
        } else {
            self.poll_empty()
        };
        // Taken apart and put together again, so that what the short way returns need not be in memory only because this may be.
        let Completion {
            token,
            entry,
            outcome,
            buffer,
            vector,
        } = *report?;
        Some(Completion {
            token,
            entry,
            outcome,
            buffer,
            vector,
        })
    }

    /// What is done when the ring has nothing to tell.
    #[inline(always)]
    pub(super) fn poll_empty(&mut self) -> Option<Box<Completion>> {
        // Asked only here: what a reset has left in the ring has ended, and after that nothing comes.
        if self.shared.epoch() != self.expected {
            return self.poll_attention();
        }
        if self.submission.is_unrung() {
            self.ring();
        }
        None
    }

    /// A completion that is not that of an I/O of one command, and then whatever is to be reported next.
    #[cold]
    #[inline(never)]
    pub(super) fn poll_uncommon(&mut self, words: (u64, u64)) -> Option<Box<Completion>> {
        let mut entry = RawEntry::of(words).entry();
        // A controller that keeps answering does not keep its owner here for ever.
        let mut left = self.slots.capacity();
        loop {
            let reported = match self.slots.remove(entry.cid) {
                Ok(slot) => self.ended(slot, entry),
                Err(error) => {
                    self.unexpected(error);
                    None
                }
            };
            if let Some(completion) = reported {
                return Some(Box::new(completion));
            }
            left = left.saturating_sub(1);
            if left == 0 {
                break;
            }
            match self.completion.pop() {
                Some(next) => entry = next,
                None => break,
            }
        }
        self.ring();
        if self.shared.epoch() == self.expected {
            None
        } else {
            self.poll_attention()
        }
    }

    /// A command has ended: what is to be reported of it, if anything.
    fn ended(&mut self, slot: Slot, entry: CompletionEntry) -> Option<Completion> {
        if slot.state == State::TimedOut {
            Counters::count(&self.shared.counters.late);
            tracing::debug!(
                queue = self.cold.id,
                cid = entry.cid,
                "a command ended after its time"
            );
            match slot.buffer {
                Some(buffer) => self.cold.reclaimed.push((slot.token, buffer)),
                None if slot.large != 0 => self.part_let_go(slot.large),
                None => self.cold.let_go.push(slot.token),
            }
            return None;
        }
        if slot.large != 0 {
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
        if !self.cold.distrusted {
            tracing::warn!(queue = self.cold.id, %error, "a completion that names no command");
        }
        // Which command it was meant for cannot be known: the owner's next check of deadlines resets the controller.
        self.cold.distrusted = true;
    }

    /// Reports what waits to be reported, and finds out what has happened to the controller.
    #[cold]
    fn poll_attention(&mut self) -> Option<Box<Completion>> {
        let epoch = self.shared.epoch();
        if epoch != self.cold.made_in && !self.cold.lost {
            self.lose(epoch);
        }
        if let Some(completion) = self.cold.reports.pop_front() {
            self.waiting -= 1;
            return Some(Box::new(completion));
        }
        if !self.cold.lost {
            self.expected = self.cold.made_in;
            self.ring();
        }
        None
    }

    /// Takes all completions that are there now and keeps them to be reported by `poll`.
    pub(super) fn drain(&mut self) {
        for _ in 0..self.slots.capacity() {
            let Some(entry) = self.completion.pop() else {
                return;
            };
            match self.slots.remove(entry.cid) {
                Ok(slot) => {
                    if let Some(completion) = self.ended(slot, entry) {
                        self.report(completion);
                    }
                }
                Err(error) => self.unexpected(error),
            }
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
