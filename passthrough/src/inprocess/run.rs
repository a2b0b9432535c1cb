//! The way of one command: looked at, passed by the gate, made anew, carried out, counted.

#![allow(unsafe_code)] // submits entries, whose only address is that of their own data: see `InProcess::io`

use std::time::{Duration, Instant};

use nvme_vfio::{AdminData, Buffer, CommandError, Controller, IoQueue, Outcome, QueueOptions};
use nvme_vfio_queues::{CompletionEntry, Status};

use super::build::{Built, build};
use super::command::{Needs, RawCommand, length};
use super::error::PassthroughError;
use super::geometry::{Looked, look};
use crate::command::{Class, CommandSet, DecodedCommand, Direction, QueueKind};
use crate::decode::Decoder;
use crate::gate::Gate;
use crate::policy::OwnerPolicy;
use crate::reason::{Reason, Refusal};
use crate::verdict::Policy;

/// A command that has ended with success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The controller's answer.
    pub entry: CompletionEntry,
    /// How long the controller took for it, with the way there and back.
    pub latency: Duration,
}

impl Ended {
    /// Dword 0 of the answer.
    #[must_use]
    pub fn result(&self) -> u32 {
        self.entry.result()
    }
}

/// Passthrough of one controller in the process that holds it. Made by [`Passthrough`](super::Passthrough).
///
/// Every command takes the way of a client's: it is decoded, judged by the policy, recorded, and made anew from what was decoded. Commands wait for their end.
/// It has an I/O queue of its own, made with the first I/O command.
#[derive(Debug)]
pub struct InProcess<P: Policy + ?Sized = OwnerPolicy> {
    controller: Controller,
    queue: Option<IoQueue>,
    gate: Gate<P>,
}

impl<P: Policy + ?Sized> InProcess<P> {
    pub(super) fn new(controller: Controller, gate: Gate<P>) -> Self {
        Self {
            controller,
            queue: None,
            gate,
        }
    }

    /// What a command would do, and the data that it needs. Nothing is carried out or recorded, and the policy is not asked. `list` is the range list of a Dataset Management or Copy
    /// command; [`list_bytes`](Self::list_bytes) tells how long.
    ///
    /// # Errors
    /// [`PassthroughError::Refused`] where it has no decoder, or another field, range or length than may be; the driver's errors where the namespace cannot be
    /// looked at.
    pub fn needs(
        &self,
        queue: QueueKind,
        command: &RawCommand,
        list: &[u8],
    ) -> Result<Needs, PassthroughError> {
        let looked = look(&self.controller, command.nsid)?;
        let fna = self.controller.identify().fna;
        let mut decoder = Decoder::for_owner().with_format_attributes(fna);
        let geometry = looked.map(|looked| looked.geometry);
        let decoded = decoder.decode(queue, geometry.as_ref(), &command.entry(), list)?;
        metadata(looked, &decoded)?;
        Ok(Needs::new(&decoded))
    }

    /// Has the audit record a command that [`needs`](Self::needs) has refused, and that is therefore not tried.
    pub fn refused(&mut self, queue: QueueKind, command: &RawCommand, refusal: Refusal) {
        self.gate
            .refused(queue, &command.entry(), refusal, Instant::now());
    }

    /// Bytes of the range list that a command points to; 0 for a command without one.
    ///
    /// # Errors
    /// [`PassthroughError::Refused`] for a list in a format that is not offered.
    pub fn list_bytes(queue: QueueKind, command: &RawCommand) -> Result<usize, PassthroughError> {
        Ok(Decoder::list_bytes(
            queue,
            CommandSet::NVM,
            &command.entry(),
        )?)
    }

    /// Carries out an admin command. Bytes that the controller leaves out stay as they are, but for a vendor's command, whose data begins as zeros.
    ///
    /// # Errors
    /// [`PassthroughError`]. A command that was refused, or whose data does not fit it, has not reached the controller.
    pub fn admin_passthru(
        &mut self,
        command: &RawCommand,
        data: AdminData<'_>,
    ) -> Result<Ended, PassthroughError> {
        self.passthru(QueueKind::Admin, command, data)
    }

    /// Carries out an I/O command.
    ///
    /// # Errors
    /// As [`admin_passthru`](Self::admin_passthru).
    pub fn io_passthru(
        &mut self,
        command: &RawCommand,
        data: AdminData<'_>,
    ) -> Result<Ended, PassthroughError> {
        self.passthru(QueueKind::Io, command, data)
    }

    fn passthru(
        &mut self,
        kind: QueueKind,
        command: &RawCommand,
        data: AdminData<'_>,
    ) -> Result<Ended, PassthroughError> {
        let entry = command.entry();
        let looked = look(&self.controller, command.nsid)?;
        let geometry = looked.map(|looked| looked.geometry);
        // A copy that nobody else can change.
        let list = match (&data, Decoder::list_bytes(kind, CommandSet::NVM, &entry)) {
            (AdminData::ToController(bytes), Ok(length)) => bytes.get(..length).unwrap_or(bytes),
            _ => &[],
        };
        let started_at = Instant::now();
        let checked = self
            .gate
            .check(kind, geometry.as_ref(), &entry, list, started_at);
        let mut passed = match checked {
            Err(refusal) if refusal.reason == Reason::RangeList => {
                return Err(short_list(kind, &entry, list.len()).unwrap_or(refusal.into()));
            }
            other => other?,
        };
        let decoded = passed.command();
        let fits = metadata(looked, decoded).and_then(|()| fits(decoded, &data));
        let mut data = cut(data, length(decoded));
        if let (None, AdminData::FromController(bytes)) = (length(decoded), &mut data) {
            // Should the controller move more than was thought, it may take a page of the buffer for a list of addresses: there are to be none.
            bytes.fill(0);
        }
        let built = build(&passed);
        let started = passed.take_started();
        let result = fits.and_then(|()| match kind {
            QueueKind::Admin => {
                // SAFETY: the gate lets no command pass whose words hold an address or which touches the driver's queues, for no policy; the entry is made of
                // what it has decoded, and its data pointer is filled in by the driver.
                Ok(unsafe { self.controller.admin_raw(built.command, data) }?)
            }
            QueueKind::Io => Self::io(&self.controller, &mut self.queue, &built, data),
        });
        let now = Instant::now();
        match started {
            Some(started) => self.gate.end(started, status(&result), now),
            None if result.is_err() => self.gate.failed(),
            None => {}
        }
        Ok(Ended {
            entry: result?,
            latency: now.duration_since(started_at),
        })
    }

    /// Carries out an I/O command on the queue that is kept for it.
    fn io(
        controller: &Controller,
        queue: &mut Option<IoQueue>,
        built: &Built,
        data: AdminData<'_>,
    ) -> Result<CompletionEntry, PassthroughError> {
        let queue = match queue {
            Some(queue) => {
                // After a reset, or a command that did not end.
                queue.rebuild()?;
                queue
            }
            none => none.insert(controller.io_queue(QueueOptions::with_depth(4))?),
        };
        let given: &[u8] = match &data {
            _ if !built.list.is_empty() => &built.list,
            AdminData::None => &[],
            AdminData::FromController(bytes) => bytes,
            AdminData::ToController(bytes) => bytes,
        };
        let submitted = if given.is_empty() {
            // SAFETY: the gate lets no command pass whose words hold an address, and this one has no data pointer.
            unsafe { queue.submit_raw(built.command, 0) }
        } else {
            let mut buffer = controller.allocate(given.len())?;
            buffer.copy_from_slice(given);
            // SAFETY: as above, and the data pointer is the driver's.
            unsafe { queue.submit_with_data(built.command, buffer, 0) }
        };
        submitted.map_err(nvme_vfio::Error::from)?;
        let completion = loop {
            match queue.wait() {
                Ok(Some(completion)) => break completion,
                Ok(None) => return Err(CommandError::Reset.into()),
                // It is reported all the same.
                Err(_) if queue.in_flight() > 0 => {}
                Err(error) => return Err(error.into()),
            }
        };
        completion.result()?;
        debug_assert!(completion.outcome == Outcome::Done);
        if let (AdminData::FromController(bytes), Some(buffer)) = (data, completion.buffer) {
            copy_back(bytes, &buffer);
        }
        Ok(completion.entry)
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The gate that every command passes.
    #[must_use]
    pub fn gate(&self) -> &Gate<P> {
        &self.gate
    }
}

fn copy_back(bytes: &mut [u8], buffer: &Buffer) {
    for (to, from) in bytes.iter_mut().zip(buffer.iter()) {
        *to = *from;
    }
}

/// Blocks with metadata would have it transferred to where no buffer is.
fn metadata(looked: Option<Looked>, decoded: &DecodedCommand<'_>) -> Result<(), PassthroughError> {
    let moves_blocks = !decoded.extents.is_empty()
        && decoded.direction != Direction::None
        && !matches!(decoded.class, Class::Deallocate | Class::BlockStatus);
    match looked {
        Some(looked) if looked.metadata > 0 && moves_blocks => Err(PassthroughError::Unsupported {
            what: format!(
                "the LBA format of namespace {} has {} bytes of metadata per block, which this version does not transfer",
                decoded.nsid, looked.metadata
            ),
        }),
        _ => Ok(()),
    }
}

/// Whether the data that was given is what the command moves.
fn fits(decoded: &DecodedCommand<'_>, data: &AdminData<'_>) -> Result<(), PassthroughError> {
    let name = decoded.name;
    let direction = decoded.direction;
    let given = match (direction, data) {
        (Direction::Both, _) => {
            return Err(PassthroughError::Unsupported {
                what: format!("the data of {name} goes both ways, which this version does not do"),
            });
        }
        (_, AdminData::None) => 0,
        (Direction::FromController, AdminData::FromController(bytes)) => bytes.len() as u64,
        (Direction::ToController, AdminData::ToController(bytes)) => bytes.len() as u64,
        (_, AdminData::FromController([]) | AdminData::ToController([])) => 0,
        _ => return Err(PassthroughError::Direction { name, direction }),
    };
    match length(decoded) {
        Some(needed) if given < needed => Err(PassthroughError::BufferTooSmall {
            name,
            needed,
            given,
        }),
        _ => Ok(()),
    }
}

/// No more of the data than the command moves.
fn cut(data: AdminData<'_>, length: Option<u64>) -> AdminData<'_> {
    let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
        return data;
    };
    match data {
        _ if length == 0 => AdminData::None,
        AdminData::None => AdminData::None,
        AdminData::FromController(bytes) => {
            let end = length.min(bytes.len());
            AdminData::FromController(bytes.get_mut(..end).unwrap_or_default())
        }
        AdminData::ToController(bytes) => {
            AdminData::ToController(bytes.get(..length).unwrap_or(bytes))
        }
    }
}

/// What is to be said of a range list that is shorter than its command says.
fn short_list(kind: QueueKind, entry: &[u32; 16], given: usize) -> Option<PassthroughError> {
    let needed = Decoder::list_bytes(kind, CommandSet::NVM, entry).ok()?;
    (given < needed).then_some(PassthroughError::BufferTooSmall {
        name: "a command with a range list",
        needed: needed as u64,
        given: given as u64,
    })
}

/// What the audit is told of the end of a command.
fn status(result: &Result<CompletionEntry, PassthroughError>) -> Status {
    match result {
        Ok(entry) => entry.status(),
        Err(PassthroughError::Driver(nvme_vfio::Error::Status { status, .. })) => *status,
        Err(PassthroughError::Command(CommandError::Status(status))) => *status,
        Err(PassthroughError::Refused { refusal }) => refusal.status,
        Err(PassthroughError::BufferTooSmall { .. } | PassthroughError::Direction { .. }) => {
            Status::INVALID_FIELD
        }
        Err(PassthroughError::Unsupported { .. }) => Status::INVALID_FIELD,
        // It has reached the controller, or may have.
        Err(PassthroughError::Driver(_) | PassthroughError::Command(_)) => Status::ABORT_REQUESTED,
    }
}
