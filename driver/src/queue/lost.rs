//! A queue whose controller was reset or has gone, its rebuilding, and a queue that is no longer needed.

use std::mem;
use std::sync::Arc;

use nvme_vfio_dma::Quarantine;
use nvme_vfio_queues::slots::SlotTable;

use super::large::Segments;
use super::{ATTENTION, Completion, IoQueue, Outcome, Slot, State};
use crate::Error;
use crate::controller::{GONE, NotCreated};

impl IoQueue {
    /// Ends everything that is in flight, since the controller has been disabled since the queue was made, or is gone.
    #[cold]
    pub(super) fn lose(&mut self, epoch: u32) {
        // `epoch` may have come after the last look at the ring, and completions in between: they are answers like any other.
        self.drain();
        // A reset is the proof that the controller has let go of all memory. Of one that is gone there is none, unless the process that
        // served it is gone too.
        let (outcome, proven) = if epoch == GONE {
            (Outcome::Gone, self.cold.inner.transport.has_let_go())
        } else {
            (Outcome::Reset, true)
        };
        self.end_all(outcome, proven);
    }

    /// Has everything that is in flight reported as `outcome`. `proven`: the controller has let go of it. The queue takes nothing more until it is
    /// rebuilt.
    pub(super) fn end_all(&mut self, outcome: Outcome, proven: bool) {
        self.cold.lost = true;
        self.expected = ATTENTION;
        let (mut reports, mut kept) = self.take_large(outcome, proven);

        for slot in take_slots(&mut self.slots) {
            match (slot.state, slot.large) {
                (State::TimedOut, 0) => {
                    if let Some(buffer) = slot.buffer {
                        kept.push((slot.token, Segments::One(buffer)));
                    } else if proven {
                        self.cold.let_go.push(slot.token);
                    }
                }
                (_, 0) => {
                    let mut buffer = slot.buffer;
                    if !proven && let Some(buffer) = buffer.take() {
                        kept.push((slot.token, Segments::One(buffer)));
                    }
                    let entry = Default::default();
                    reports.push(Completion {
                        token: slot.token,
                        entry,
                        outcome,
                        buffer,
                        vector: None,
                    });
                }
                // The large I/O has been dealt with as a whole.
                _ => {}
            }
        }
        self.cold.reports.extend(reports);

        let mut quarantine = (!proven).then(|| self.cold.inner.lock_quarantine());
        for (token, segments) in kept {
            let buffers = match segments {
                Segments::One(buffer) => vec![buffer],
                Segments::Many(buffers) => buffers,
            };
            match &mut quarantine {
                Some(quarantine) => buffers
                    .into_iter()
                    .for_each(|buffer| quarantine.hold(0, buffer)),
                None => self
                    .cold
                    .reclaimed
                    .extend(buffers.into_iter().map(|buffer| (token, buffer))),
            }
        }
    }

    /// Whether the controller was reset since the queue was made, or the queue was deleted, so that it must be rebuilt.
    #[must_use]
    pub fn needs_rebuild(&self) -> bool {
        self.cold.inner.shared.epoch() != self.cold.made_in
    }

    /// Creates the queue on the controller anew, after a reset or [`delete`](Self::delete). Nothing is submitted again: what was in flight is
    /// reported as cancelled by [`poll`](Self::poll), before or after this call. Does nothing where neither has been.
    ///
    /// # Errors
    /// As [`Controller::io_queue`](crate::Controller::io_queue). The queue may be rebuilt later, or dropped.
    pub fn rebuild(&mut self) -> Result<(), Error> {
        let epoch = self.shared.epoch();
        if epoch == self.cold.made_in {
            return Ok(());
        }
        if !self.cold.lost {
            self.lose(epoch);
        }
        if epoch == GONE {
            return Err(Error::Gone);
        }
        let inner = Arc::clone(&self.cold.inner);
        if self.cold.left_in == Some(epoch) {
            inner.delete_queue_pair(self.cold.id)?;
        }
        // The queue does not exist on the controller, so its rings are only ours.
        self.submission.restart();
        self.completion.restart();
        let created = inner.create_queue_pair(
            self.cold.id,
            self.submission.memory(),
            self.completion.memory(),
        );
        // A reset may have come since the epoch was read; what counts is the one in which the queue was created.
        let epoch = match created {
            Ok(epoch) => epoch,
            Err(NotCreated { error, left_in }) => {
                self.cold.left_in = left_in;
                return Err(error);
            }
        };
        self.cold.left_in = None;
        self.cold.deleted = false;
        self.slots = SlotTable::new(self.slots.capacity() as u32);
        self.room = self.batch;
        self.cold.made_in = epoch;
        self.cold.lost = false;
        self.cold.distrusted = false;
        self.expected = if self.cold.reports.is_empty() {
            epoch
        } else {
            ATTENTION
        };
        Ok(())
    }

    /// Keeps everything that the controller may still touch, for good or until its next reset.
    fn quarantine(&mut self) {
        let (_, large) = self.take_large(Outcome::Gone, false);
        let slots = take_slots(&mut self.slots);
        let mut quarantine = self.cold.inner.lock_quarantine();
        let hold = |quarantine: &mut Quarantine, segments| match segments {
            Segments::One(buffer) => quarantine.hold(0, buffer),
            Segments::Many(buffers) => buffers
                .into_iter()
                .for_each(|buffer| quarantine.hold(0, buffer)),
        };
        for (_, segments) in large {
            hold(&mut quarantine, segments);
        }
        for buffer in slots.filter_map(|slot| slot.buffer) {
            quarantine.hold(0, buffer);
        }
        for memory in self.cold.memory.both() {
            quarantine.hold(0, memory);
        }
    }
}

/// Everything in flight, leaving a table of the same depth that takes nothing.
fn take_slots(slots: &mut SlotTable<Slot>) -> impl Iterator<Item = Slot> + use<> {
    let mut closed = SlotTable::new(slots.capacity() as u32);
    closed.close();
    mem::replace(slots, closed).into_payloads()
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        let inner = Arc::clone(&self.cold.inner);
        let (id, made_in, left_in) = (self.cold.id, self.cold.made_in, self.cold.left_in);
        // Whether the controller may know the queue.
        let is_known = |epoch| epoch == made_in || left_in == Some(epoch);
        let mut epoch = inner.shared.epoch();
        if is_known(epoch) && epoch != GONE {
            match inner.delete_queue_pair(id) {
                Ok(()) => return inner.give_back_queue_id(id),
                Err(error) => tracing::warn!(queue = id, %error, "the queue could not be deleted"),
            }
            epoch = inner.shared.epoch();
        }
        // Of a deleted queue there can be only the completion queue left, where nothing is posted any more: its memory is not the controller's, but
        // its identifier is not free.
        let let_go =
            self.cold.deleted && left_in.is_none() || epoch == GONE && inner.transport.has_let_go();
        if !let_go && (is_known(epoch) || epoch == GONE) {
            inner.leave_queue_id(id);
            self.quarantine();
        } else {
            // A reset has been, or the server has ended: the queue does not exist any more, and its memory is free.
            inner.give_back_queue_id(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use nvme_vfio_queues::command::LogPageId;

    use crate::{Controller, Outcome, QueueOptions};

    const DEPTH: u32 = 8;

    /// A queue that the controller has answered to the last command without its owner having looked since, on a controller that was reset after that.
    fn answered_and_reset() -> (Controller, super::IoQueue) {
        let controller = Controller::open(&"emulated:size=1M".parse().unwrap()).unwrap();
        let namespace = controller.only_namespace().unwrap();
        let mut queue = controller
            .io_queue(QueueOptions::with_depth(DEPTH))
            .unwrap();
        for token in 0..u64::from(DEPTH) {
            let buffer = controller.allocate(4096).unwrap();
            queue.read(&namespace, token, buffer, token).unwrap();
        }
        queue.ring();
        let start = Instant::now();
        let reads = |controller: &Controller| {
            let log = controller
                .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
                .unwrap();
            u64::from_le_bytes(log[64..72].try_into().unwrap())
        };
        while reads(&controller) < u64::from(DEPTH) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "not all are answered"
            );
            sleep(Duration::from_millis(1));
        }
        controller.recover().unwrap();
        (controller, queue)
    }

    fn all_are_done(controller: &Controller, queue: &mut super::IoQueue) {
        for token in 0..u64::from(DEPTH) {
            let completion = queue.poll().unwrap();
            assert_eq!(
                (completion.token, completion.outcome),
                (token, Outcome::Done)
            );
        }
        assert!(queue.poll().is_none());
        let events = controller.events();
        assert_eq!((events.stale, events.unknown, events.resets), (0, 0, 1));
    }

    #[test]
    fn answers_that_come_between_the_look_at_the_ring_and_the_look_at_the_epoch_are_taken() {
        let (controller, mut queue) = answered_and_reset();
        // What `poll` does when it has found the ring empty.
        let first = queue.poll_empty().unwrap();
        assert_eq!((first.token, first.outcome), (0, Outcome::Done));
        queue.report(*first);
        queue.cold.reports.rotate_right(1);
        all_are_done(&controller, &mut queue);
        queue.rebuild().unwrap();
    }

    #[test]
    fn answers_from_before_a_reset_are_taken_also_when_the_queue_is_rebuilt_at_once() {
        let (controller, mut queue) = answered_and_reset();
        queue.rebuild().unwrap();
        all_are_done(&controller, &mut queue);
    }
}
