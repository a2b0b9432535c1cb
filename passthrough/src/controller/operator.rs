//! Admin commands of the operator classes, which a client that is alone may have been granted. They may take long, so a thread of their own sends them and waits, on memory
//! of the server: no controller ever touches the client's for them.
#![allow(unsafe_code)] // sends admin commands that were decoded and passed

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvme_vfio::{AdminData, Controller, Error};
use nvme_vfio_emulator::{DeviceMemory, HandlerCompletion, Segment};
use nvme_vfio_queues::{AdminOpcode, Command, Status};

use super::namespace::LentNamespace;
use super::target::Target;
use super::under_way::{UnderWay, Watched};
use crate::audit::Unended;
use crate::command::{Class, DecodedCommand, Direction, Scope};
use crate::gate::Passed;

/// Format NVM, CDW10: the LBA format, low and high bits, and the kind of erasure. The others are for metadata, which no lent format has.
const FORMAT_INDEX: u32 = 0xf | 0b11 << 12;
const FORMAT_ERASE: u32 = 0b111 << 9;

/// From the beginning of one command to that of the next at least: each has its line in the audit, however many there are.
const PACE: Duration = Duration::from_millis(1);

/// What the thread is to do.
#[derive(Debug)]
pub(super) struct Order {
    tag: u32,
    controller: Controller,
    command: Command,
    data: Data,
    /// Where its data lies in the client's memory.
    segments: Vec<Segment>,
    /// The namespace that it takes from the client.
    takes: Option<u32>,
    /// The command's name in the specification.
    name: &'static str,
}

/// Data of a command, in the server's memory.
#[derive(Debug)]
enum Data {
    None,
    ToController(Vec<u8>),
    FromController(Vec<u8>),
}

/// What came of it.
struct Answer {
    tag: u32,
    status: Status,
    result: u32,
    /// What the controller returned, where it succeeded.
    data: Vec<u8>,
    /// The controller itself has said no.
    declined: bool,
}

/// A command that the client waits for.
#[derive(Debug)]
struct Waiting {
    tag: u32,
    segments: Vec<Segment>,
    /// The client was told already, since it wanted its memory back.
    told: bool,
    /// The audit has only counted it.
    counted: bool,
    /// The namespace that it takes from the client.
    takes: Option<u32>,
}

/// An operator's command that has ended.
#[derive(Debug)]
pub(super) struct OperatorEnded {
    /// What the client is told, unless it was told before.
    pub(super) told: Option<HandlerCompletion>,
    /// The namespace that it was to take from the client, and has not: the controller declined.
    pub(super) stays: Option<u32>,
    /// The audit has only counted it, and it has not succeeded.
    pub(super) failed: bool,
}

/// The namespace that a command takes from its client: a controller finds out how long data is from the blocks that the namespace has, and one that was deleted or detached
/// may come back with others than were counted.
fn takes(command: &DecodedCommand<'_>) -> Option<u32> {
    (command.class == Class::NamespaceManagement && command.nsid != 0).then_some(command.nsid)
}

/// Has a list of controllers name the one that the client was lent, whatever it calls it. It has to be a list of one: others are not the client's.
fn own_controller(list: &mut [u8], controller: &Controller) -> Result<(), Status> {
    match list {
        [1, 0, low, high, ..] => {
            [*low, *high] = controller.identify().cntlid.get().to_le_bytes();
            Ok(())
        }
        _ => Err(Status::CONTROLLER_LIST_INVALID.with_dnr()),
    }
}

/// The thread, and what it has.
#[derive(Debug)]
pub(super) struct Operator {
    orders: Option<Sender<Box<Order>>>,
    answers: Receiver<Answer>,
    waiting: Vec<Waiting>,
    under_way: UnderWay,
    thread: Option<JoinHandle<()>>,
}

/// What a decoded command becomes, and where it goes.
///
/// # Errors
/// What cannot be passed on.
fn build(
    command: &DecodedCommand<'_>,
    namespaces: &[LentNamespace],
    targets: &[Target],
) -> Result<(Controller, Command), Status> {
    let (target, nsid) = if command.nsid == 0 {
        (0, 0)
    } else {
        let mut those = namespaces.iter();
        let own = those.find(|own| own.nsid == command.nsid && !own.gone);
        let own = own.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        // Anything less than a whole real namespace would reach further than the client's.
        let whole = own.whole.ok_or(Status::OPERATION_DENIED.with_dnr())?;
        if command.class == Class::Format
            && command.operands[2] & !FORMAT_ERASE != whole.format & FORMAT_INDEX
        {
            // Slices and limits are counted in blocks: their size stays.
            return Err(Status::INVALID_FORMAT.with_dnr());
        }
        if command.class == Class::Format && command.scope == Scope::AllNamespaces {
            // On such a controller all namespaces get the format that is named for one, and the size of every one's blocks stays only where it was the same before.
            let alike = |own: &LentNamespace| {
                own.whole
                    .is_some_and(|other| (other.format ^ whole.format) & FORMAT_INDEX == 0)
            };
            if !namespaces.iter().all(alike) {
                return Err(Status::INVALID_FORMAT.with_dnr());
            }
        }
        (whole.target, whole.nsid)
    };
    let target = targets
        .get(usize::from(target))
        .ok_or(Status::INTERNAL_ERROR)?;
    let [cdw2, cdw3, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = command.operands;
    let built = Command {
        opcode: command.opcode,
        nsid,
        cdw2,
        cdw3,
        cdw10,
        cdw11,
        cdw12,
        cdw13,
        cdw14,
        cdw15,
        ..Command::ZERO
    };
    Ok((target.controller.clone(), built))
}

impl Operator {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Thread`] where the system gives none.
    pub(super) fn start() -> Result<Self, Error> {
        let (orders, taken) = mpsc::channel::<Box<Order>>();
        let (answer, answers) = mpsc::channel();
        let under_way = UnderWay::default();
        let its = under_way.clone();
        let thread = thread::Builder::new()
            .name("nvme-operator".into())
            .spawn(move || {
                let its = Watched(its);
                while let Ok(order) = taken.recv() {
                    let began = Instant::now();
                    if answer.send(carry_out(*order, &its.0)).is_err() {
                        return;
                    }
                    thread::sleep(PACE.saturating_sub(began.elapsed()));
                }
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            orders: Some(orders),
            answers,
            waiting: Vec::new(),
            under_way,
            thread: Some(thread),
        })
    }

    /// The command that is under way on the thread.
    pub(super) fn under_way(&self) -> &UnderWay {
        &self.under_way
    }

    /// Whether a command is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What a command of an operator class that has passed becomes; its data is in `segments` of the client's memory.
    ///
    /// # Errors
    /// How it ends at once.
    pub(super) fn order(
        passed: &Passed<'_>,
        tag: u32,
        segments: Vec<Segment>,
        (namespaces, targets): (&[LentNamespace], &[Target]),
        memory: &DeviceMemory<'_>,
    ) -> Result<Box<Order>, Status> {
        let decoded = passed.command();
        let (controller, command) = build(decoded, namespaces, targets)?;
        let mut bytes = vec![0; usize::try_from(decoded.length).unwrap_or(0)];
        let data = match decoded.direction {
            Direction::None => Data::None,
            Direction::FromController => Data::FromController(bytes),
            Direction::ToController => {
                let mut rest = bytes.as_mut_slice();
                for segment in &segments {
                    let length = (segment.length as usize).min(rest.len());
                    let (now, later) = rest.split_at_mut(length);
                    memory
                        .read(segment, 0, now)
                        .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                    rest = later;
                }
                if decoded.opcode == AdminOpcode::NAMESPACE_ATTACHMENT.0 {
                    own_controller(&mut bytes, &controller)?;
                }
                Data::ToController(bytes)
            }
            Direction::Both => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        Ok(Box::new(Order {
            tag,
            controller,
            command,
            data,
            segments,
            takes: takes(decoded),
            name: decoded.name,
        }))
    }

    /// Has a command carried out. The namespace that it takes from the client. The thread ends the `record`: it alone learns what came of the command, also where the client
    /// did not wait for that.
    ///
    /// # Errors
    /// How it ends at once: there is no thread.
    pub(super) fn start_command(
        &mut self,
        mut order: Box<Order>,
        record: Option<Unended>,
    ) -> Result<Option<u32>, Status> {
        let waiting = Waiting {
            tag: order.tag,
            segments: std::mem::take(&mut order.segments),
            takes: order.takes,
            told: false,
            counted: record.is_none(),
        };
        let takes = order.takes;
        self.under_way.begin(order.name, record);
        let orders = self.orders.as_ref();
        if orders.is_none_or(|orders| orders.send(order).is_err()) {
            self.under_way.end(Some(Status::INTERNAL_ERROR));
            return Err(Status::INTERNAL_ERROR);
        }
        self.waiting.push(waiting);
        Ok(takes)
    }

    /// What has ended since the last call. Without `memory`, only while the client was told of all that is under way: the data of none is wanted then.
    pub(super) fn poll(
        &mut self,
        memory: Option<&DeviceMemory<'_>>,
        mut tell: impl FnMut(OperatorEnded),
    ) {
        if memory.is_none() && !self.waiting.iter().all(|waiting| waiting.told) {
            return;
        }
        while let Ok(answer) = self.answers.try_recv() {
            let place = self.waiting.iter().position(|one| one.tag == answer.tag);
            let Some(waiting) = place.map(|place| self.waiting.swap_remove(place)) else {
                continue;
            };
            let mut ended = OperatorEnded {
                told: None,
                stays: waiting.takes.filter(|_| answer.declined),
                failed: waiting.counted && !answer.status.is_success(),
            };
            let (false, Some(memory)) = (waiting.told, memory) else {
                tell(ended);
                continue;
            };
            let mut status = answer.status;
            let mut rest = answer.data.as_slice();
            for segment in &waiting.segments {
                let (now, later) = rest.split_at((segment.length as usize).min(rest.len()));
                if !now.is_empty() && memory.write(segment, 0, now).is_err() {
                    status = Status::DATA_TRANSFER_ERROR;
                }
                rest = later;
            }
            ended.told = Some(HandlerCompletion {
                tag: waiting.tag,
                status,
                result: u64::from(answer.result),
            });
            tell(ended);
        }
    }

    /// The client wants its memory back, which no controller has: it is told at once, whatever comes of the command, which stays under way. `tell` is what it is told.
    pub(super) fn cancel(&mut self, tags: &[u32], mut tell: impl FnMut(HandlerCompletion)) {
        for waiting in &mut self.waiting {
            if tags.contains(&waiting.tag) && !waiting.told {
                waiting.told = true;
                tell(HandlerCompletion {
                    tag: waiting.tag,
                    status: Status::ABORT_REQUESTED,
                    result: 0,
                });
            }
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Without orders the thread ends.
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for operators' commands panicked");
        }
    }
}

fn carry_out(order: Order, under_way: &UnderWay) -> Answer {
    let Order {
        tag,
        controller,
        command,
        data,
        ..
    } = order;
    let (sent, data) = match data {
        Data::None => (send(&controller, command, AdminData::None), Vec::new()),
        Data::ToController(bytes) => {
            let sent = send(&controller, command, AdminData::ToController(&bytes));
            (sent, Vec::new())
        }
        Data::FromController(mut bytes) => {
            let sent = send(&controller, command, AdminData::FromController(&mut bytes));
            (sent, bytes)
        }
    };
    #[cfg(test)]
    tests::panic_if_marked(&command);
    let declined = matches!(sent, Err(Error::Status { .. }));
    under_way.end(match &sent {
        Ok(_) => Some(Status::SUCCESS),
        Err(Error::Status { status, .. }) => Some(status.code()),
        // It was not sent: there was no room for its data, or for it.
        Err(Error::Dma(_) | Error::Length(_) | Error::OutOfService(_)) => {
            Some(Status::INTERNAL_ERROR)
        }
        // The controller has not said what it did.
        Err(_) => None,
    });
    let (status, result, data) = match sent {
        Ok(result) => (Status::SUCCESS, result, data),
        Err(Error::Status { status, .. }) => (status.code(), 0, Vec::new()),
        Err(Error::TimedOut { .. }) => (Status::COMMAND_INTERRUPTED, 0, Vec::new()),
        Err(error) => {
            let opcode = AdminOpcode(command.opcode);
            tracing::warn!(%opcode, %error, "an operator's command failed");
            (Status::INTERNAL_ERROR, 0, Vec::new())
        }
    };
    Answer {
        tag,
        status,
        result,
        data,
        declined,
    }
}

fn send(controller: &Controller, command: Command, data: AdminData<'_>) -> Result<u32, Error> {
    // SAFETY: `build` made the command, of a class whose commands carry no address but that of their data, which the driver fills in, and that leave queues alone. The decoder
    // refuses all others, and knows every bit that is set.
    let entry = unsafe { controller.admin_raw(command, data) }?;
    Ok(entry.result())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Where the firmware goes over which the thread panics, in tests only.
    pub(crate) const MARKED: u32 = 0x0bad_0000;

    pub(super) fn panic_if_marked(command: &Command) {
        let marked = command.opcode == AdminOpcode::FIRMWARE_DOWNLOAD.0 && command.cdw11 == MARKED;
        assert!(!marked, "firmware that a test has marked");
    }

    #[test]
    fn a_client_is_told_once_however_often_it_wants_its_memory_back() {
        let mut operator = Operator::start().unwrap();
        operator.waiting.push(Waiting {
            tag: 7,
            segments: Vec::new(),
            told: false,
            counted: false,
            takes: None,
        });
        let mut told = Vec::new();
        for tags in [[7, 8], [7, 9]] {
            operator.cancel(&tags, |end| told.push(end.tag));
        }
        assert_eq!(told, [7]);
    }
}
