//! A client's commands in flight, cut into commands of real controllers and joined again.

use std::collections::VecDeque;

use nvme_vfio::{Completion, Outcome};
use nvme_vfio_dma::Access;
use nvme_vfio_emulator::{DeviceMemory, FetchedCommand};
use nvme_vfio_queues::{Status, prp};

use super::bounce::Buffers;
use super::flight::{Bounced, Flight, Work};
use super::namespace::LentNamespace;
use super::submit::{self, Next, Scratch};
use super::target::Target;
use super::watch::Watch;
use crate::audit::Started;
use crate::command::Direction;
use crate::gate::Passed;

/// A client's command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) tag: u32,
    pub(super) status: Status,
    pub(super) result: u64,
    pub(super) started: Option<Started>,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) namespaces: Box<[LentNamespace]>,
    pub(super) targets: Box<[Target]>,
    /// Data goes through these; `None` where clients' memory is lent to the controllers.
    pub(super) buffers: Option<Buffers>,
    /// By the low half of their tags.
    pub(super) flights: Vec<Flight>,
    active: u32,
    /// Flights that wait, the oldest first.
    backlog: VecDeque<u16>,
    /// Flights that are over, and not told of yet.
    pub(super) over: Vec<u16>,
    scratch: Scratch,
    /// The time, in nanoseconds.
    pub(super) now: u64,
    pub(super) watch: Watch,
}

impl Engine {
    pub(super) fn new(
        namespaces: Vec<LentNamespace>,
        targets: Vec<Target>,
        buffers: Option<Buffers>,
        outstanding: usize,
        watch: Watch,
    ) -> Self {
        let mut flights = Vec::new();
        flights.resize_with(outstanding, Flight::default);
        Self {
            namespaces: namespaces.into(),
            targets: targets.into(),
            buffers,
            flights,
            active: 0,
            backlog: VecDeque::with_capacity(outstanding),
            over: Vec::new(),
            scratch: Scratch::default(),
            now: 0,
            watch,
        }
    }

    /// The place of a namespace, as the client names it.
    #[inline]
    pub(super) fn place(&self, nsid: u32) -> Option<u16> {
        let mut namespaces = self.namespaces.iter();
        let place = namespaces.position(|own| own.nsid == nsid && !own.gone)?;
        Some(place as u16)
    }

    /// Takes a namespace from the client, or gives it back.
    pub(super) fn set_gone(&mut self, nsid: u32, gone: bool) {
        let namespaces = self.namespaces.iter_mut();
        for own in namespaces.filter(|own| own.nsid == nsid) {
            own.gone = gone;
        }
    }

    /// Commands that were taken and are not told of.
    #[inline]
    pub(super) fn active(&self) -> u32 {
        self.active
    }

    /// Whether commands wait, so that no more should come.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes a command that has passed, and submits what can be of it.
    ///
    /// # Errors
    /// How it ends at once; nothing of it is in flight then.
    #[inline]
    pub(super) fn start(
        &mut self,
        passed: &Passed<'_>,
        command: &FetchedCommand,
        namespace: u16,
        memory: &DeviceMemory<'_>,
    ) -> Result<(), (Status, u64)> {
        let internal = (Status::INTERNAL_ERROR, 0);
        let work = Work::of(passed).ok_or(internal)?;
        let slot = command.slot();
        self.make_room(slot);
        let bounced = self.buffers.is_some();
        let Some(flight) = self.flights.get_mut(usize::from(slot)) else {
            return Err(internal);
        };
        debug_assert!(!flight.active, "the front end uses a tag twice");
        flight.begin(command.tag, namespace, work);
        let decoded = passed.command();
        if let Work::Blocks(blocks) = flight.work
            && blocks.data
        {
            let found = find_data(
                flight,
                command,
                decoded.direction,
                decoded.length,
                memory,
                bounced,
            );
            if let Err(status) = found {
                flight.active = false;
                return Err((status, 0));
            }
        }
        self.begun(slot, memory)
    }

    /// Takes work of the server's own that has passed, under a tag of the client's.
    pub(super) fn start_flush(
        &mut self,
        tag: u32,
        work: Work,
        memory: &DeviceMemory<'_>,
    ) -> Result<(), (Status, u64)> {
        let slot = tag as u16;
        self.make_room(slot);
        if let Some(flight) = self.flights.get_mut(usize::from(slot)) {
            flight.begin(tag, 0, work);
        }
        self.begun(slot, memory)
    }

    /// Sees to it that there is a place for the tag.
    #[inline]
    fn make_room(&mut self, slot: u16) {
        if usize::from(slot) >= self.flights.len() {
            self.flights
                .resize_with(usize::from(slot) + 1, Flight::default);
        }
    }

    /// Submits what can be of a new command; an error is how it ends at once.
    #[inline]
    fn begun(&mut self, slot: u16, memory: &DeviceMemory<'_>) -> Result<(), (Status, u64)> {
        self.active += 1;
        self.advance(slot, memory);
        match self.flights.get_mut(usize::from(slot)) {
            Some(flight) if !flight.is_over() => Ok(()),
            Some(flight) => {
                // Nothing of it went anywhere.
                if let (Some(bounce), Some(buffers)) = (flight.bounce, &mut self.buffers) {
                    land(slot, flight, bounce, buffers, memory);
                }
                flight.active = false;
                flight.waiting = false;
                self.active -= 1;
                Err(flight.answer())
            }
            None => Err((Status::INTERNAL_ERROR, 0)),
        }
    }

    /// Keeps what the audit waits for until the command has ended.
    #[inline]
    pub(super) fn keep_started(&mut self, slot: u16, started: Option<Started>) {
        if started.is_some()
            && let Some(flight) = self.flights.get_mut(usize::from(slot))
        {
            flight.started = started;
        }
    }

    /// Submits what can be submitted of a command.
    #[inline]
    fn advance(&mut self, slot: u16, memory: &DeviceMemory<'_>) {
        let Some(flight) = self.flights.get_mut(usize::from(slot)) else {
            return;
        };
        if let (Some(bounce), Some(buffers)) = (flight.bounce, &mut self.buffers)
            && !bounce.taken
            && !matches!(flight.work, Work::Done)
            && !take_buffers(slot, flight, bounce, buffers, memory)
        {
            if !flight.waiting && !flight.is_over() {
                flight.waiting = true;
                self.backlog.push_back(slot);
            }
            return;
        }
        let Some(namespace) = self.namespaces.get_mut(usize::from(flight.namespace)) else {
            flight.fail_next(Status::INTERNAL_ERROR);
            return;
        };
        loop {
            match submit::next(
                slot,
                flight,
                namespace,
                &mut self.targets,
                &mut self.scratch,
                self.now,
            ) {
                Next::Submitted => {
                    if matches!(flight.work, Work::Done) {
                        return;
                    }
                }
                Next::SubmittedAlone | Next::None => return,
                wait @ (Next::Wait | Next::Lost) => {
                    if !flight.waiting {
                        flight.waiting = true;
                        self.backlog.push_back(slot);
                    }
                    if wait == Next::Lost {
                        self.watch.next = 0;
                    }
                    return;
                }
                Next::Fail(status) => return flight.fail_next(status),
            }
        }
    }

    /// Rings the doorbells of what was submitted.
    #[inline]
    pub(super) fn ring(&mut self) {
        for target in &mut self.targets {
            target.ring();
        }
    }

    /// Takes what the controllers have finished, and goes on with what waited for it. `tell` is told of each command that has ended.
    #[inline]
    pub(super) fn poll(&mut self, memory: &DeviceMemory<'_>, tell: &mut impl FnMut(Ended)) {
        for index in 0..self.targets.len() {
            while let Some(completion) = self.targets.get_mut(index).and_then(Target::poll) {
                self.part_reported(index, &completion, memory, tell);
            }
        }
        if self.now >= self.watch.next {
            self.look_after(memory, tell);
        }
        if !self.backlog.is_empty() || !self.over.is_empty() {
            self.go_on(memory, tell);
        }
    }

    #[inline(never)]
    fn go_on(&mut self, memory: &DeviceMemory<'_>, tell: &mut impl FnMut(Ended)) {
        while let Some(slot) = self.over.pop() {
            self.finish_if_over(slot, memory, tell);
        }
        while let Some(slot) = self.backlog.pop_front() {
            match self.flights.get_mut(usize::from(slot)) {
                Some(flight) if flight.active && flight.waiting => flight.waiting = false,
                _ => continue,
            }
            self.advance(slot, memory);
            let flight = self.flights.get(usize::from(slot));
            if flight.is_some_and(|flight| flight.waiting) {
                // It stays the first.
                self.backlog.rotate_right(1);
                break;
            }
            self.finish_if_over(slot, memory, tell);
        }
        self.ring();
    }

    /// The queue's one report of a part.
    #[inline]
    pub(super) fn part_reported(
        &mut self,
        target: usize,
        completion: &Completion,
        memory: &DeviceMemory<'_>,
        tell: &mut impl FnMut(Ended),
    ) {
        let status = match completion.outcome {
            Outcome::Done => completion.entry.status(),
            // The proof that nothing touches its memory any more; what it did is not known.
            Outcome::Reset | Outcome::Deleted => Status::COMMAND_INTERRUPTED,
            Outcome::Gone if self.has_let_go(target) => Status::INTERNAL_ERROR,
            // Nothing is proven: it stays in flight.
            _ => return,
        };
        self.part_ended(
            target,
            completion.token,
            status,
            completion.entry.result(),
            memory,
            tell,
        );
    }

    fn has_let_go(&self, target: usize) -> bool {
        let target = self.targets.get(target);
        target.is_some_and(|target| target.controller.has_let_go())
    }

    /// A part has provably ended.
    #[inline]
    pub(super) fn part_ended(
        &mut self,
        target: usize,
        token: u64,
        status: Status,
        result: u32,
        memory: &DeviceMemory<'_>,
        tell: &mut impl FnMut(Ended),
    ) {
        let Some(part) = self
            .targets
            .get_mut(target)
            .and_then(|target| target.end(token))
        else {
            tracing::error!(
                token,
                "a real controller's queue reported a command that is not in flight"
            );
            return;
        };
        let slot = part.flight as u16;
        let Some(flight) = self.flights.get_mut(usize::from(slot)) else {
            return;
        };
        if let Work::Copy(copying, _) = &flight.work
            && !status.is_success()
        {
            let failed_at = copying.failed_at(result);
            flight.set_result(failed_at);
        }
        // M tells of the real controller's error log, which is not the client's; the retry delays are not told to it either.
        flight.part_ended(part.order, bare(status));
        if matches!(flight.work, Work::Copy(..)) && flight.parts == 0 && !flight.waiting {
            self.advance(slot, memory);
            self.ring();
        }
        self.finish_if_over(slot, memory, tell);
    }

    #[inline]
    fn finish_if_over(
        &mut self,
        slot: u16,
        memory: &DeviceMemory<'_>,
        tell: &mut impl FnMut(Ended),
    ) {
        let Some(flight) = self.flights.get_mut(usize::from(slot)) else {
            return;
        };
        if !flight.active || !flight.is_over() {
            return;
        }
        if let Some(bounce) = flight.bounce
            && let Some(buffers) = &mut self.buffers
        {
            land(slot, flight, bounce, buffers, memory);
        }
        let (status, result) = flight.answer();
        flight.active = false;
        flight.waiting = false;
        self.active -= 1;
        tell(Ended {
            tag: flight.tag,
            status,
            result,
            started: flight.started.take(),
        });
    }
}

/// The status with its type, code and Do Not Retry only.
#[inline]
fn bare(status: Status) -> Status {
    let code = status.code();
    if status.dnr() { code.with_dnr() } else { code }
}

/// Looks up where a command's data lies, in the client's memory and, where that is lent, for the real controllers.
#[inline]
fn find_data(
    flight: &mut Flight,
    command: &FetchedCommand,
    direction: Direction,
    length: u64,
    memory: &DeviceMemory<'_>,
    bounced: bool,
) -> Result<(), Status> {
    let to_client = direction == Direction::FromController;
    let access = if to_client {
        Access::DEVICE_WRITE
    } else {
        Access::DEVICE_READ
    };
    flight.memory.clear();
    memory.data(command, length, access, &mut flight.memory)?;
    if bounced {
        flight.bounce = Some(Bounced {
            length: length as usize,
            to_client,
            taken: false,
        });
        return Ok(());
    }
    for segment in &flight.memory {
        let iova = memory.lent(segment).ok_or(Status::DATA_TRANSFER_ERROR)?;
        flight.data.push(prp::Segment {
            iova: iova.0,
            len: segment.length as usize,
        });
    }
    Ok(())
}

/// Takes buffers for a command, and fills them where its data comes from the client; false while there are not enough. A command whose data cannot be read fails.
#[inline(never)]
fn take_buffers(
    slot: u16,
    flight: &mut Flight,
    bounce: Bounced,
    buffers: &mut Buffers,
    memory: &DeviceMemory<'_>,
) -> bool {
    if !buffers.take(slot, bounce.length, &mut flight.data) {
        return false;
    }
    flight.bounce = Some(Bounced {
        taken: true,
        ..bounce
    });
    if !bounce.to_client
        && let Err(status) = buffers.copy_in(slot, bounce.length, &flight.memory, memory)
    {
        flight.fail_next(status);
    }
    true
}

/// Hands data over to the client where the command succeeded, and gives the buffers back.
#[inline(never)]
fn land(
    slot: u16,
    flight: &mut Flight,
    bounce: Bounced,
    buffers: &mut Buffers,
    memory: &DeviceMemory<'_>,
) {
    if !bounce.taken {
        return;
    }
    if bounce.to_client
        && !flight.has_failed()
        && let Err(status) = buffers.copy_out(slot, bounce.length, &flight.memory, memory)
    {
        flight.fail_next(status);
    }
    buffers.give_back(slot);
    flight.bounce = None;
}
