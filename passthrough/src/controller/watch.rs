//! Commands that do not end in time, queues whose controller was reset, and clients that want their memory back.
//!
//! Nothing here waits for a controller: a queue that needs it is handed to the [`Mender`], which aborts, deletes and builds anew on a thread of its own, and comes back with the
//! proof that what was in flight has ended. Until then the client's commands on that controller wait, and what was in flight stays in flight.

use std::time::Duration;

use nvme_vfio_emulator::DeviceMemory;
use nvme_vfio_queues::Status;

use super::engine::{Ended, Engine};
use super::flight::Work;
use crate::client::ClientId;
use crate::server::{Mended, Mender, Need};

/// How often queues are looked at, in nanoseconds.
const INTERVAL: u64 = 50_000_000;

/// How long commands may still take by themselves when their client wants its memory back, in nanoseconds.
const GRACE: u64 = 100_000_000;

#[derive(Debug)]
pub(super) struct Watch {
    /// When queues are looked at next.
    pub(super) next: u64,
    client: ClientId,
    /// In nanoseconds.
    timeout: u64,
    mender: Option<Mender>,
}

impl Watch {
    pub(super) fn new(client: ClientId, timeout: Duration, mender: Option<Mender>) -> Self {
        Self {
            next: 0,
            client,
            timeout: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            mender,
        }
    }
}

impl Engine {
    /// Looks after all queues.
    #[inline(never)]
    pub(super) fn look_after(&mut self, memory: &DeviceMemory<'_>, tell: &mut impl FnMut(Ended)) {
        self.watch.next = self.now.saturating_add(INTERVAL);
        for index in 0..self.targets.len() {
            let Some(target) = self.targets.get_mut(index) else {
                return;
            };
            if let Some(repair) = &target.repair {
                match repair.take() {
                    Some(mended) => self.come_back(index, mended, memory, tell),
                    // It is asked again at the next poll: the client waits for it.
                    None => self.watch.next = 0,
                }
            } else if !target.usable {
                self.end_gone(index, memory, tell);
            } else if let Some(need) = self.need(index) {
                self.hand_over(index, need);
            }
        }
    }

    /// What is wrong with a queue, if anything is.
    fn need(&self, index: usize) -> Option<Need> {
        let target = self.targets.get(index)?;
        let queue = target.queue.as_ref()?;
        if queue.needs_rebuild() {
            return Some(Need::Rebuild);
        }
        let overdue = target.tokens(|part| {
            let flight = self.flights.get(part.flight as usize);
            flight.is_some_and(|flight| flight.due <= self.now)
                || part.since.saturating_add(self.watch.timeout) <= self.now
        });
        (!overdue.is_empty()).then_some(Need::Overdue(overdue))
    }

    fn hand_over(&mut self, index: usize, need: Need) {
        let (Some(mender), Some(target)) = (&self.watch.mender, self.targets.get_mut(index)) else {
            return;
        };
        target.ring();
        if let Some(queue) = target.queue.take() {
            let repair = mender.mend(self.watch.client, target.number, queue, need);
            target.repair = Some(repair);
            self.watch.next = 0;
        }
    }

    /// A queue is back, with what has ended meanwhile.
    fn come_back(
        &mut self,
        index: usize,
        mended: Mended,
        memory: &DeviceMemory<'_>,
        tell: &mut impl FnMut(Ended),
    ) {
        let Mended {
            mut queue,
            completions,
            usable,
            ..
        } = mended;
        for completion in &completions {
            self.part_reported(index, completion, memory, tell);
        }
        let let_go: Vec<u64> = queue.let_go().collect();
        for token in let_go {
            self.part_ended(index, token, Status::COMMAND_INTERRUPTED, 0, memory, tell);
        }
        if let Some(target) = self.targets.get_mut(index) {
            target.repair = None;
            target.usable = usable;
            target.queue = Some(queue);
        }
    }

    /// Ends what was in flight on a controller that is gone, once it is certain that it touches no memory any more.
    fn end_gone(&mut self, index: usize, memory: &DeviceMemory<'_>, tell: &mut impl FnMut(Ended)) {
        let Some(target) = self.targets.get(index) else {
            return;
        };
        if target.in_flight() == 0 || !target.controller.has_let_go() {
            return;
        }
        for token in target.tokens(|_| true) {
            self.part_ended(index, token, Status::INTERNAL_ERROR, 0, memory, tell);
        }
    }

    /// The client wants its memory back: what was not submitted of these commands is not any more, and what was is soon overdue.
    pub(super) fn cancel(&mut self, tags: &[u32]) {
        for &tag in tags {
            let slot = tag as u16;
            let Some(flight) = self.flights.get_mut(usize::from(slot)) else {
                continue;
            };
            if !flight.active || flight.tag != tag {
                continue;
            }
            flight.due = flight.due.min(self.now.saturating_add(GRACE));
            if !matches!(flight.work, Work::Done) {
                flight.fail_next(Status::ABORT_REQUESTED);
            }
            if flight.is_over() && !self.over.contains(&slot) {
                self.over.push(slot);
            }
        }
        self.watch.next = 0;
    }
}

impl Drop for Engine {
    /// What is still in flight has no client any more. It is ended by deleting its queue, and what cannot be proven to have ended keeps its memory.
    fn drop(&mut self) {
        let mut unproven = None;
        for target in &mut self.targets {
            if !target.close() {
                unproven = Some(target.controller.clone());
            }
        }
        if let (Some(controller), Some(buffers)) = (unproven, self.buffers.take()) {
            buffers.keep(&controller);
        }
    }
}
