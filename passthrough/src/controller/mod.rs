//! The virtual controller: what a client's commands become on the real controllers.
//!
//! [`VirtualController`] is the [`CommandHandler`] of an emulated controller's front end, which keeps registers, rings, doorbells and interrupts. A command takes this way:
//! its entry, copied once by the front end, goes through the [`Gate`], which decodes and judges it; what has passed becomes work (`flight::Work`) and
//! nothing else does; its data is looked up once in the client's memory; its blocks are found among the client's [`Slice`]s, and each run of them becomes one command of a
//! real controller's queue that belongs to this client alone. When all of its parts have provably ended, the client is told, with the status of the first part that failed.
//!
//! | file | holds |
//! |---|---|
//! | `slices` | which real blocks a client's blocks are |
//! | `ranges` | lists of ranges, cut into what real commands can name |
//! | `data` | PRPs of a part of a command's data |
//! | `bounce` | buffers of the server, where clients' memory is not lent |
//! | `flight` | a client's command on its way |
//! | `submit` | the real commands that its parts become |
//! | `target` | a queue on a real controller, and what is in flight in it |
//! | `engine` | cutting and joining |
//! | `watch` | commands that do not end, queues that are lost, clients that want their memory back |
//! | `personality` | what a client is told of its controller |
//! | `operator` | admin commands of a client that is alone |
//! | `under_way` | which of these has not ended |
//! | `bucket`, `clock` | ceilings, and the time |
//! | `shutdown` | what a client wrote, made durable when it announces a shutdown |

use std::time::Instant;

use nvme_vfio::Error;
use nvme_vfio_dma::Access;
use nvme_vfio_emulator::{
    CommandHandler, DeviceMemory, FetchedCommand, HandlerCompletion, Handling, Segment,
};

use nvme_vfio_queues::Status;

use crate::audit::Started;
use crate::client::Holder;
use crate::command::{Class, ClassSet, CommandSet, Direction, QueueKind};
use crate::decode::Decoder;
use crate::gate::{Gate, Passed};
use crate::policy::GroupPolicy;
use crate::reason::{Reason, Refusal};
use crate::verdict::Policy;

mod bounce;
mod bucket;
mod build;
mod clock;
mod data;
mod engine;
mod flight;
mod namespace;
mod operator;
mod personality;
mod ranges;
mod shutdown;
mod slices;
mod submit;
mod target;
mod under_way;
mod watch;

pub use build::{BuildError, Ceilings, Isolated, LentNamespaceConfig, VirtualConfig};
pub use clock::Clock;
#[cfg(test)]
pub(crate) use operator::tests::MARKED as MARKED_FIRMWARE;
pub(crate) use personality::Health;
pub use personality::Personality;
pub use ranges::{CopyLimits, DeallocateLimits};
pub use slices::{Slice, SliceError, SliceMap};
pub use target::TargetLimits;
pub(crate) use under_way::UnderWay;

use bucket::Bucket;
use engine::{Ended, Engine};
use operator::{Operator, OperatorEnded, Order};
use personality::Moved;
use shutdown::Shutdown;

/// Bytes that one of an operator's commands may move.
const OPERATOR_BYTES: u64 = 1 << 20;

/// The commands of one client, carried out on slices of real namespaces.
#[derive(Debug)]
pub struct VirtualController<P: Policy + ?Sized = GroupPolicy> {
    gate: Gate<P>,
    engine: Engine,
    clock: Clock,
    holder: Holder,
    /// How often the holder had changed when it was looked at last.
    holders: u32,
    /// The time of the present batch.
    now: Instant,
    /// `None` where the front end says what it likes.
    personality: Option<Personality>,
    /// `None` for a client that is no operator.
    operator: Option<Operator>,
    /// What the client is told of operators' commands because it wants its memory back.
    cancelled: Vec<HandlerCompletion>,
    moved: Moved,
    outstanding: u32,
    operations: Bucket,
    bandwidth: Bucket,
    shutdown: Shutdown,
    /// The copy of a list of ranges, and where it was.
    list: Vec<u8>,
    segments: Vec<Segment>,
}

impl<P: Policy + ?Sized> VirtualController<P> {
    /// Has the controller tell the client what `personality` says.
    #[must_use]
    pub fn with_personality(mut self, personality: Personality) -> Self {
        self.personality = Some(personality);
        self
    }

    /// Has the client's commands of the operator classes carried out, by a thread that this starts. Without it they are refused, whatever the policy says. To drop this
    /// controller waits for the command that is under way.
    ///
    /// # Errors
    /// [`Error::Thread`] where the system gives none.
    pub fn with_operator(mut self) -> Result<Self, Error> {
        self.operator = Some(Operator::start()?);
        Ok(self)
    }

    /// The operator's command that is under way, for those who wait for its end.
    pub(crate) fn under_way(&self) -> Option<UnderWay> {
        let operator = self.operator.as_ref();
        operator.map(|operator| operator.under_way().clone())
    }

    /// Looks at the clock, and who the client is.
    #[inline]
    fn look_up(&mut self) {
        let now = self.clock.nanoseconds();
        if now != self.engine.now {
            self.engine.now = now;
            self.now = self.clock.instant(now);
        }
        if let Some(identity) = self.holder.changed(&mut self.holders) {
            self.gate.identify(identity);
        }
    }

    /// Copies the list of ranges that the command points to, if it has one. The copy is what is decoded; the client's own is not looked at again.
    fn copy_list(
        &mut self,
        queue: QueueKind,
        entry: &[u32; 16],
        command: &FetchedCommand,
        memory: &DeviceMemory<'_>,
    ) -> Result<(), Refusal> {
        self.list.clear();
        let bytes = Decoder::list_bytes(queue, CommandSet::NVM, entry)?;
        if bytes == 0 {
            return Ok(());
        }
        self.segments.clear();
        memory
            .data(
                command,
                bytes as u64,
                Access::DEVICE_READ,
                &mut self.segments,
            )
            .map_err(|status| {
                let offset = status.is(Reason::PrpOffset.status());
                let reason = if offset {
                    Reason::PrpOffset
                } else {
                    Reason::OutsideMemory
                };
                reason.refusal()
            })?;
        self.list.resize(bytes, 0);
        let mut rest = self.list.as_mut_slice();
        for segment in &self.segments {
            let length = (segment.length as usize).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            memory
                .read(segment, 0, now)
                .map_err(|_| Reason::OutsideMemory.refusal())?;
            rest = later;
        }
        Ok(())
    }

    /// What a command that has passed costs of the ceilings, and what the client's log pages say of it.
    #[inline]
    fn charge(&mut self, class: Class, length: u64, cost: u64) {
        self.operations.take(1);
        self.moved.count(class, length);
        self.bandwidth.take(cost);
    }
}

impl<P: Policy + ?Sized> VirtualController<P> {
    #[cold]
    fn poll_operator(&mut self, memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>) {
        done.append(&mut self.cancelled);
        self.take_operators(Some(memory), |told| done.push(told));
    }

    /// Whether an operator's command is under way. What has ended since its client was told is taken here: for the front end it is not in flight any more, so that nothing may poll.
    #[inline]
    fn is_operating(&mut self) -> bool {
        let is_busy = |operator: &Operator| operator.is_busy();
        self.operator.as_ref().is_some_and(is_busy) && {
            self.take_operators(None, |_| {});
            self.operator.as_ref().is_some_and(is_busy)
        }
    }

    /// Takes what has come of operators' commands; without `memory` only of those that the client was told of. `tell` is what it is told.
    #[cold]
    fn take_operators(
        &mut self,
        memory: Option<&DeviceMemory<'_>>,
        mut tell: impl FnMut(HandlerCompletion),
    ) {
        let (engine, gate) = (&mut self.engine, &mut self.gate);
        if let Some(operator) = &mut self.operator {
            operator.poll(memory, |ended: OperatorEnded| {
                if let Some(nsid) = ended.stays {
                    engine.set_gone(nsid, false);
                }
                if ended.failed {
                    gate.failed();
                }
                ended.told.into_iter().for_each(&mut tell);
            });
        }
    }

    /// Hands an operator's command to the thread that carries it out.
    ///
    /// # Errors
    /// How it ends at once.
    #[cold]
    fn operate(&mut self, order: Box<Order>, started: Option<Started>) -> Result<(), Status> {
        let Some(operator) = &mut self.operator else {
            return Err(Reason::Unavailable.status());
        };
        let record = started.and_then(|started| self.gate.hand_over(started));
        if let Some(nsid) = operator.start_command(order, record)? {
            self.engine.set_gone(nsid, true);
        }
        Ok(())
    }
}

/// What an operator's command becomes.
///
/// # Errors
/// How it ends at once.
#[cold]
fn order(
    passed: &Passed<'_>,
    command: &FetchedCommand,
    engine: &Engine,
    memory: &DeviceMemory<'_>,
) -> Result<Box<Order>, Status> {
    let decoded = passed.command();
    if decoded.length > OPERATOR_BYTES {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let access = match decoded.direction {
        Direction::FromController => Access::DEVICE_WRITE,
        _ => Access::DEVICE_READ,
    };
    let mut segments = Vec::new();
    memory.data(command, decoded.length, access, &mut segments)?;
    let real = (&*engine.namespaces, &*engine.targets);
    Operator::order(passed, command.tag, segments, real, memory)
}

/// The dwords of an entry.
#[inline]
fn dwords(entry: &[u64; 8]) -> [u32; 16] {
    let mut dwords = [0; 16];
    for (pair, word) in dwords.chunks_exact_mut(2).zip(entry) {
        pair[0] = *word as u32;
        pair[1] = (*word >> 32) as u32;
    }
    dwords
}

impl<P: Policy + ?Sized> CommandHandler for VirtualController<P> {
    #[inline]
    fn credit(&mut self) -> u32 {
        self.look_up();
        if self.is_operating() {
            // What an operator does may change the namespaces: nothing else runs beside it.
            return 0;
        }
        if self.engine.is_busy() || self.bandwidth.available(self.engine.now) == 0 {
            return 0;
        }
        let operations = self.operations.available(self.engine.now);
        let room = self.outstanding.saturating_sub(self.engine.active());
        room.min(u32::try_from(operations).unwrap_or(u32::MAX))
    }

    fn command(&mut self, command: &FetchedCommand, memory: &DeviceMemory<'_>) -> Handling {
        let queue = match command.sqid {
            0 => {
                // For I/O commands `credit` has done it.
                self.look_up();
                QueueKind::Admin
            }
            _ => QueueKind::Io,
        };
        let may_operate =
            queue == QueueKind::Admin && !self.is_operating() && self.gate.has_room_for_operator();
        let entry = dwords(&command.entry);
        let opcode = entry[0] as u8;
        // Dataset Management and Copy.
        let has_list = matches!(opcode, 0x09 | 0x19) && queue == QueueKind::Io;
        if has_list && let Err(refusal) = self.copy_list(queue, &entry, command, memory) {
            self.operations.take(1);
            self.gate.refused(queue, &entry, refusal, self.now);
            return refused(refusal);
        }
        let list = if has_list { self.list.as_slice() } else { &[] };
        let place = self.engine.place(entry[1]);
        let namespace = place.and_then(|place| self.engine.namespaces.get(usize::from(place)));
        let geometry = namespace.map(|namespace| &namespace.geometry);
        let shift = geometry.map_or(0, |geometry| geometry.block_shift);
        let mut passed = match self.gate.check(queue, geometry, &entry, list, self.now) {
            Ok(passed) => passed,
            Err(refusal) => {
                if queue == QueueKind::Io {
                    self.operations.take(1);
                }
                return refused(refusal);
            }
        };
        let decoded = passed.command();
        if decoded.class == Class::Virtual {
            return Handling::Execute;
        }
        if ClassSet::OPERATOR.has(decoded.class) {
            let ordered = match &self.operator {
                Some(_) if self.engine.active() == 0 && may_operate => {
                    order(&passed, command, &self.engine, memory)
                }
                // Its own commands on blocks are to end first, and the records of earlier ones to be written.
                Some(_) => Err(Status::COMMAND_INTERRUPTED),
                None => Err(Reason::Unavailable.status()),
            };
            let started = passed.take_started();
            let taken = match ordered {
                Ok(order) => self.operate(order, started),
                Err(status) => {
                    match started {
                        Some(started) => self.gate.not_sent(started, status, self.now),
                        None => self.gate.failed(),
                    }
                    Err(status)
                }
            };
            return match taken {
                Ok(()) => Handling::Taken,
                Err(status) => Handling::Complete { status, result: 0 },
            };
        }
        let (class, length) = (decoded.class, decoded.length);
        let cost = match class {
            Class::Read | Class::Write | Class::Compare => length,
            _ => bucket::cost(decoded, shift),
        };
        let answer = match place {
            Some(place) if queue == QueueKind::Io => {
                self.engine.start(&passed, command, place, memory)
            }
            // Get LBA Status is decoded, and not offered: what it returns goes past the range that it names.
            _ => Err((Status::INVALID_OPCODE.with_dnr(), 0)),
        };
        let started = passed.take_started();
        self.charge(class, length, cost);
        match answer {
            Ok(()) => {
                self.engine.keep_started(command.slot(), started);
                Handling::Taken
            }
            Err((status, result)) if status.is_success() => {
                // There was nothing to do: all of its ranges are empty.
                if let Some(started) = started {
                    self.gate.end(started, status, self.now);
                }
                Handling::Complete { status, result }
            }
            Err((status, result)) => {
                // It reached no controller: what it may touch was right, what it pointed to was not.
                let reason = match status {
                    status if status.is(Reason::PrpOffset.status()) => Reason::PrpOffset,
                    status if status.is(Reason::OutsideMemory.status()) => Reason::OutsideMemory,
                    _ => Reason::Unavailable,
                };
                let refusal = Refusal { status, reason };
                self.gate
                    .stopped(started, (class, length), (queue, &entry), refusal, self.now);
                Handling::Complete { status, result }
            }
        }
    }

    fn flush(&mut self, _memory: &DeviceMemory<'_>) {
        self.engine.ring();
    }

    fn poll(&mut self, memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>) {
        self.look_up();
        if self.operator.is_some() {
            self.poll_operator(memory, done);
        }
        if self.shutdown.is_asked() {
            self.poll_shutdown(memory, done);
        }
        let (gate, now) = (&mut self.gate, self.now);
        let shutdown = &mut self.shutdown;
        self.engine.poll(memory, &mut |ended: Ended| {
            match ended.started {
                Some(started) => gate.end(started, ended.status, now),
                None if ended.status.is_success() => {}
                None => gate.failed(),
            }
            if shutdown.is_under(ended.tag) {
                shutdown.end(gate, ended.status, now);
            }
            done.push(HandlerCompletion {
                tag: ended.tag,
                status: ended.status,
                result: ended.result,
            });
        });
    }

    fn cancel(&mut self, tags: &[u32]) {
        self.engine.cancel(tags);
        self.shutdown.cancel(tags);
        if let Some(operator) = &mut self.operator {
            operator.cancel(tags, |told| self.cancelled.push(told));
        }
    }

    fn shut_down(&mut self, tag: u32, memory: &DeviceMemory<'_>) -> Handling {
        self.look_up();
        self.ask_shutdown(tag, memory)
    }

    fn identify(&self, cns: u8, nsid: u32, page: &mut [u8]) {
        if let Some(personality) = &self.personality {
            personality.identify(cns, nsid, page);
        }
    }

    fn log(&self, lid: u8, _nsid: u32, page: &mut [u8]) {
        if let Some(personality) = &self.personality {
            personality.log(lid, &self.moved, page);
        }
    }
}

#[cold]
fn refused(refusal: Refusal) -> Handling {
    Handling::Complete {
        status: refusal.status,
        result: 0,
    }
}

#[cfg(test)]
mod tests;
