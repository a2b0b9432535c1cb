//! A controller that waits for nothing but doorbells, and so looks at nothing else.

use std::sync::atomic::Ordering;

use crate::controller::{Core, State};
use crate::iommu::DeviceMemory;
use crate::registers::{SHST, SHST_OCCURRING};

/// The tail doorbell of a submission queue from which everything was fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    sqid: u16,
    /// Its place among the doorbells.
    place: usize,
    /// Its value when there was nothing to fetch.
    tail: u32,
}

impl Core {
    /// Whether only a doorbell can bring work, as long as the controller's lock is held.
    fn is_quiet(&self) -> bool {
        self.running()
            && !self.gone()
            && !self.interposed
            && !self.paused
            && self.flights.is_empty()
            && self.shadow.is_none()
            && self.deletions.is_empty()
            && self.deferred.is_empty()
            && !self.events.deliverable()
    }

    /// Whether doorbells bring nothing either: no commands are processed, and none is in flight.
    pub(crate) fn is_at_rest(&mut self) -> bool {
        self.watches.clear();
        let still =
            self.paused || matches!(self.state, State::Disabled | State::Ready) && !self.running();
        still
            && !self.interposed
            && self.flights.is_empty()
            && self.registers.csts & SHST != SHST_OCCURRING
    }

    /// Notes the doorbells of all queues, if the controller waits for nothing else; whether it does.
    pub(crate) fn watch(&mut self) -> bool {
        self.watches.clear();
        if !self.is_quiet() {
            return false;
        }
        for &sqid in std::iter::once(&0).chain(&self.active) {
            match self.submission.get(usize::from(sqid)) {
                Some(Some(queue)) if queue.waiting() == 0 => self.watches.push(Watch {
                    sqid,
                    place: self.doorbell_place(sqid, false),
                    tail: queue.tail,
                }),
                // The other kind of doorbell is waited for: the head of a completion queue that is full.
                _ => return false,
            }
        }
        true
    }

    /// Whether a doorbell was rung since [`Core::watch`].
    #[inline]
    pub(crate) fn any_rung(&self) -> bool {
        self.watches.iter().any(|watch| {
            let doorbell = self.doorbells.get(watch.place);
            doorbell.is_some_and(|doorbell| doorbell.load(Ordering::Acquire) != watch.tail)
        })
    }

    /// Serves the queues whose doorbells were rung since [`Core::watch`]: how many completions were posted, and whether the controller still waits
    /// for nothing else.
    #[inline]
    pub(crate) fn look(&mut self, memory: &DeviceMemory<'_>) -> (usize, bool) {
        let before = self.statistics.completions;
        let (mut next, mut quiet) = (0, true);
        while quiet && let Some(&Watch { sqid, place, tail }) = self.watches.get(next) {
            let doorbell = self.doorbells.get(place);
            if doorbell.is_some_and(|doorbell| doorbell.load(Ordering::Acquire) != tail) {
                quiet = self.serve_watched(next, sqid, memory);
            }
            next += 1;
        }
        ((self.statistics.completions - before) as usize, quiet)
    }

    fn serve_watched(&mut self, watch: usize, sqid: u16, memory: &DeviceMemory<'_>) -> bool {
        self.statistics.steps += 1;
        self.serve(sqid, memory);
        self.interrupts.deliver();
        // Admin commands change which queues there are.
        if sqid == 0 || !self.is_quiet() {
            return false;
        }
        match (
            self.submission.get(usize::from(sqid)),
            self.watches.get_mut(watch),
        ) {
            (Some(Some(queue)), Some(watch)) if queue.waiting() == 0 => {
                watch.tail = queue.tail;
                true
            }
            _ => false,
        }
    }
}
