//! Asynchronous events: requests that wait, events that wait.

use std::collections::VecDeque;

use nvme_vfio_queues::Status;

use super::log;
use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::flight::Completion;
use crate::iommu::DeviceMemory;

/// Requests that may wait at once, less one: AERL of Identify Controller.
pub(super) const REQUEST_LIMIT: u8 = 3;
/// Events that are kept; later ones of a kind that waits already say nothing new.
const EVENTS_KEPT: usize = 16;

/// An event as dword 0 of the completion tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    kind: u8,
    information: u8,
    log: u8,
}

impl Event {
    /// A doorbell of a queue that does not exist was written.
    pub(crate) const INVALID_DOORBELL_REGISTER: Event = Event {
        kind: 0,
        information: 0,
        log: log::ERROR,
    };
    /// A doorbell was written with an impossible value.
    pub(crate) const INVALID_DOORBELL_VALUE: Event = Event {
        kind: 0,
        information: 1,
        log: log::ERROR,
    };
    /// The subsystem is less reliable, read-only, or its memory backup has failed.
    const RELIABILITY: Event = Event {
        kind: 1,
        information: 0,
        log: log::SMART,
    };
    /// The available spare fell below its threshold.
    const SPARE: Event = Event {
        kind: 1,
        information: 2,
        log: log::SMART,
    };
    /// The temperature crossed a threshold.
    pub(crate) const TEMPERATURE: Event = Event {
        kind: 1,
        information: 1,
        log: log::SMART,
    };

    /// What a namespace is like, or which are attached, has changed.
    pub(crate) const NAMESPACE_ATTRIBUTE: Event = Event {
        kind: 2,
        information: 0,
        log: log::CHANGED_NAMESPACES,
    };

    /// What tells of a bit of Critical Warning, which is also the bit of Asynchronous Event Configuration that asks for it (NVMe base 2.0, figures 147 and 207).
    pub(crate) fn of_critical_warning(bit: u8) -> Event {
        match bit {
            0 => Event::SPARE,
            1 => Event::TEMPERATURE,
            _ => Event::RELIABILITY,
        }
    }

    fn dword(self) -> u32 {
        u32::from(self.kind) | u32::from(self.information) << 8 | u32::from(self.log) << 16
    }
}

/// Requests and events that have not met yet.
#[derive(Debug, Default)]
pub(crate) struct Events {
    requests: VecDeque<u16>,
    waiting: VecDeque<Event>,
    /// Kinds that were told and whose log page was not read since: bit n for kind n. They are not told again.
    masked: u8,
}

impl Events {
    /// Keeps an event, unless the same waits already.
    pub(crate) fn raise(&mut self, event: Event) {
        if self.waiting.len() < EVENTS_KEPT && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    fn tellable(&self) -> Option<usize> {
        self.waiting
            .iter()
            .position(|event| self.masked & 1 << event.kind == 0)
    }

    /// Whether an event can meet a request.
    pub(crate) fn deliverable(&self) -> bool {
        !self.requests.is_empty() && self.tellable().is_some()
    }

    /// Takes a request back.
    pub(super) fn withdraw(&mut self, cid: u16) {
        if let Some(place) = self.requests.iter().position(|&request| request == cid) {
            self.requests.remove(place);
        }
    }

    /// Whether a request waits.
    pub(super) fn has_request(&self, cid: u16) -> bool {
        self.requests.contains(&cid)
    }

    /// The log page of some events was read: what happened so far is known, what happens from now on may be told.
    pub(super) fn log_read(&mut self, log: u8) {
        self.waiting.retain(|event| event.log != log);
        match log {
            log::ERROR => self.masked &= !1,
            log::SMART => self.masked &= !2,
            log::CHANGED_NAMESPACES => self.masked &= !4,
            _ => {}
        }
    }
}

pub(super) fn request(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    if core.events.requests.len() > usize::from(REQUEST_LIMIT) {
        return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr());
    }
    core.events.requests.push_back(entry.cid());
    Ok(Reply::Later)
}

/// Answers requests with events, as far as there is room.
pub(crate) fn deliver(core: &mut Core, memory: &DeviceMemory<'_>) {
    while core.events.deliverable() && core.reserve(0) {
        let place = core.events.tellable();
        let event = place.and_then(|place| core.events.waiting.remove(place));
        let (Some(event), Some(cid)) = (event, core.events.requests.pop_front()) else {
            return;
        };
        core.events.masked |= 1 << event.kind;
        let told = Completion {
            sqid: 0,
            cid,
            result: u64::from(event.dword()),
            status: Status::SUCCESS,
        };
        core.post(&told, memory);
    }
}
