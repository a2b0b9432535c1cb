//! What is written to doorbells: good values taken over, bad ones told of.

use std::sync::atomic::Ordering;

use crate::admin::events::Event;
use crate::controller::Core;

impl Core {
    /// The value of a doorbell: its shadow's where the host uses that, else the register's.
    #[inline]
    fn rung(&self, qid: u16, completion: bool) -> Option<u32> {
        if let Some(shadow) = &self.shadow
            && let Some(value) = shadow.value(qid, completion)
        {
            return Some(value);
        }
        let doorbell = self.doorbell(qid, completion)?;
        Some(doorbell.load(Ordering::Acquire))
    }

    /// The entries that can be promised, `wanted` at most. The head doorbell is looked at only where those known to be free are fewer, since the
    /// host writes it all the time, or where a step is to see each doorbell that was written before it.
    #[inline]
    pub(crate) fn room_for(&mut self, cqid: u16, wanted: u32) -> u32 {
        let known = self.completion(cqid).map_or(0, |queue| queue.room());
        if known >= wanted && !self.thorough {
            wanted
        } else {
            self.room(cqid).min(wanted)
        }
    }

    /// Takes over the completion queue's head doorbell; the entries that can be promised.
    pub(crate) fn room(&mut self, cqid: u16) -> u32 {
        let Some(value) = self.rung(cqid, true) else {
            return 0;
        };
        let Some(queue) = self.completion(cqid) else {
            return 0;
        };
        let last = queue.head;
        let accepted = value == last || queue.accept_head(value).is_ok();
        let room = queue.room();
        if self.interposed && value != last {
            self.tell_doorbell(cqid, true, value);
        }
        if !accepted {
            self.invalid_doorbell(cqid, true, value, last);
        }
        room
    }

    /// Takes over the submission queue's tail doorbell; the entries that wait.
    #[inline]
    pub(crate) fn waiting(&mut self, sqid: u16) -> u32 {
        let Some(value) = self.rung(sqid, false) else {
            return 0;
        };
        let Some(queue) = self.submission(sqid) else {
            return 0;
        };
        if queue.deleting {
            return 0;
        }
        let last = queue.tail;
        let accepted = value == last || queue.accept_tail(value).is_ok();
        let waiting = queue.waiting();
        if self.interposed && value != last {
            self.tell_doorbell(sqid, false, value);
        }
        if !accepted {
            self.invalid_doorbell(sqid, false, value, last);
        }
        waiting
    }

    /// A doorbell has an impossible value: it is put back to the last good one, and the host is told.
    fn invalid_doorbell(&mut self, qid: u16, completion: bool, value: u32, last: u32) {
        if let Some(doorbell) = self.doorbell(qid, completion) {
            // A good value that came in the meantime is left alone; if it fails there is nothing to put back.
            let _ = doorbell.compare_exchange(value, last, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.put_back(qid, completion, last);
        }
        self.tell_invalid_doorbell(qid, completion, value);
        self.events.raise(Event::INVALID_DOORBELL_VALUE);
    }

    /// Counts a write to a doorbell, and logs it unless there were so many already that the host seems to mean it.
    fn tell_invalid_doorbell(&mut self, qid: u16, completion: bool, value: u32) {
        /// How many are logged.
        const LOGGED: u64 = 256;
        self.statistics.invalid_doorbells += 1;
        if self.statistics.invalid_doorbells <= LOGGED {
            let exists = if completion {
                self.completion(qid).is_some()
            } else {
                self.submission(qid).is_some()
            };
            tracing::warn!(qid, completion, value, exists, "invalid doorbell write");
        }
    }

    /// Looks at the doorbells that no command made it look at: those of queues that do not exist, and the head doorbells of idle queues.
    /// Only steps without a completion do, not all of them; nothing correct ever depends on it.
    pub(crate) fn find_stray_doorbells(&mut self) {
        for qid in 0..=self.config.queues {
            if self.completion(qid).is_some() {
                self.room(qid);
            } else {
                self.stray_doorbell(qid, true);
            }
            if self.submission(qid).is_none() {
                self.stray_doorbell(qid, false);
            }
        }
    }

    fn stray_doorbell(&mut self, qid: u16, completion: bool) {
        let value = match self.doorbell(qid, completion) {
            Some(doorbell) if doorbell.load(Ordering::Relaxed) != 0 => {
                doorbell.swap(0, Ordering::Relaxed)
            }
            _ => return,
        };
        self.tell_invalid_doorbell(qid, completion, value);
        self.events.raise(Event::INVALID_DOORBELL_REGISTER);
    }
}
