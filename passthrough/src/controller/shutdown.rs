//! What a client wrote, made durable when it announces a normal shutdown.
//!
//! The server sends the Flushes itself, and a client can announce shutdowns as fast as it can write a register. So they cost what the client's own Flushes would: they are judged and recorded,
//! they wait until its ceilings leave room, and there is never more than one shutdown of a client under way.

use std::time::Instant;

use nvme_vfio_emulator::{DeviceMemory, HandlerCompletion, Handling};
use nvme_vfio_queues::{NvmOpcode, Status};

use super::VirtualController;
use super::flight::Work;
use crate::audit::Started;
use crate::command::QueueKind;
use crate::gate::Gate;
use crate::verdict::Policy;

/// How far the shutdown is that a client has announced.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    state: State,
    /// What the audit waits for.
    flushes: Vec<Started>,
}

/// With the tag that the front end knows it by.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    None,
    /// It waits for room under the client's ceilings.
    Asked(u32),
    /// It waited, and the client does not want it any more.
    Cancelled(u32),
    /// Its Flushes are under way.
    Flushing(u32),
}

impl Shutdown {
    /// Whether one waits to begin, or to be told of.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked(_) | State::Cancelled(_))
    }

    /// Whether the Flushes are under way under this tag.
    #[inline]
    pub(super) fn is_under(&self, tag: u32) -> bool {
        self.state == State::Flushing(tag)
    }

    /// One that has not begun does not any more.
    pub(super) fn cancel(&mut self, tags: &[u32]) {
        if let State::Asked(tag) = self.state
            && tags.contains(&tag)
        {
            self.state = State::Cancelled(tag);
        }
    }

    /// It is over.
    #[cold]
    pub(super) fn end<P: Policy + ?Sized>(
        &mut self,
        gate: &mut Gate<P>,
        status: Status,
        now: Instant,
    ) {
        self.state = State::None;
        for started in self.flushes.drain(..) {
            gate.end(started, status, now);
        }
    }
}

impl<P: Policy + ?Sized> VirtualController<P> {
    /// The client has announced a shutdown.
    pub(super) fn ask_shutdown(&mut self, tag: u32, memory: &DeviceMemory<'_>) -> Handling {
        let complete = |status| Handling::Complete { status, result: 0 };
        if self.shutdown.state != State::None {
            // The front end waits for the one that is under way in any case.
            return complete(Status::SUCCESS);
        }
        self.shutdown.state = State::Asked(tag);
        self.begin_shutdown(tag, memory)
            .map_or(Handling::Taken, complete)
    }

    /// Goes on with a shutdown that could not begin yet.
    #[cold]
    pub(super) fn poll_shutdown(
        &mut self,
        memory: &DeviceMemory<'_>,
        done: &mut Vec<HandlerCompletion>,
    ) {
        let (tag, ended) = match self.shutdown.state {
            State::Asked(tag) => (tag, self.begin_shutdown(tag, memory)),
            State::Cancelled(tag) => {
                self.shutdown.state = State::None;
                (tag, Some(Status::COMMAND_INTERRUPTED))
            }
            State::None | State::Flushing(_) => return,
        };
        match ended {
            Some(status) => done.push(HandlerCompletion {
                tag,
                status,
                result: 0,
            }),
            None => self.engine.ring(),
        }
    }

    /// Submits the Flushes if the ceilings leave room; how the shutdown has ended, if it has.
    fn begin_shutdown(&mut self, tag: u32, memory: &DeviceMemory<'_>) -> Option<Status> {
        if self.engine.active() >= self.outstanding
            || self.operations.available(self.engine.now) == 0
        {
            return None;
        }
        let mut work = Work::Done;
        for namespace in self.engine.namespaces.iter().filter(|own| !own.gone) {
            // What the client may not flush it may not by a shutdown either.
            let mut entry = [0; 16];
            (entry[0], entry[1]) = (u32::from(NvmOpcode::FLUSH.0), namespace.nsid);
            let geometry = Some(&namespace.geometry);
            if !self.gate.would_pass(QueueKind::Io, geometry, &entry) {
                continue;
            }
            let checked = self
                .gate
                .check(QueueKind::Io, geometry, &entry, &[], self.now);
            self.operations.take(1);
            if let Ok(mut passed) = checked {
                work.add_flush(&passed, &namespace.flush);
                self.shutdown.flushes.extend(passed.take_started());
            }
        }
        match self.engine.start_flush(tag, work, memory) {
            Ok(()) => {
                self.shutdown.state = State::Flushing(tag);
                None
            }
            Err((status, _)) => {
                self.shutdown.end(&mut self.gate, status, self.now);
                Some(status)
            }
        }
    }
}
