//! The admin queue pair: one command at a time, waited for.

use std::time::{Duration, Instant};

use nvme_vfio_dma::{AddressSpace, Buffer};
use nvme_vfio_queues::prp::{self, PageSize, PrpListMemory};
use nvme_vfio_queues::registers::Cap;
use nvme_vfio_queues::ring::{CompletionRing, SubmissionRing};
use nvme_vfio_queues::slots::SlotTable;
use nvme_vfio_queues::{Command, CompletionEntry, DataPointer, QueueSize};

use super::Inner;
use super::shared::Counters;
use crate::rings::{QueueMemory, doorbells};
use crate::transport::Transport;
use crate::{Error, NotReady};

/// Entries of each admin queue. Commands are sent one at a time, and those that never end keep a slot each.
pub(crate) const ADMIN_ENTRIES: QueueSize = QueueSize::new(32).unwrap(); // INVARIANT: evaluated by the compiler

/// How long the admin queue is watched before the controller's status is looked at.
const STATUS_INTERVAL: Duration = Duration::from_millis(10);

/// The data of an admin command, as the caller has it.
#[derive(Debug)]
pub enum AdminData<'a> {
    /// No data.
    None,
    /// The controller writes it. What it leaves out stays as it is.
    FromController(&'a mut [u8]),
    /// The controller reads it.
    ToController(&'a [u8]),
}

/// What stays with the controller while an admin command is in flight.
#[derive(Debug, Default)]
struct Held {
    data: Option<Buffer>,
    list: Option<Buffer>,
    /// Nobody waits for it any more.
    abandoned: bool,
}

/// The admin rings and who waits in them.
#[derive(Debug)]
pub(crate) struct AdminQueue {
    submission: SubmissionRing,
    completion: CompletionRing,
    slots: SlotTable<Held>,
    pub(crate) memory: QueueMemory,
}

impl AdminQueue {
    pub(crate) fn new(
        space: &AddressSpace,
        transport: &dyn Transport,
        cap: Cap,
    ) -> Result<Self, Error> {
        let entries = ADMIN_ENTRIES.entries();
        let (memory, submission, completion) =
            QueueMemory::new(space, entries, entries, 0, PageSize::KIB_4.bytes())?;
        let [tail, head] = doorbells(transport, cap, 0).ok_or_else(|| Error::Capabilities {
            reason: "BAR 0 does not hold the admin doorbells".to_owned(),
        })?;
        Ok(Self {
            submission: SubmissionRing::new(submission, tail),
            completion: CompletionRing::new(completion, head),
            slots: SlotTable::new(ADMIN_ENTRIES.entries() - 1),
            memory,
        })
    }

    /// Where the controller finds the two rings: ASQ and ACQ.
    pub(crate) fn bases(&self) -> (u64, u64) {
        (
            self.submission.memory().iova().0,
            self.completion.memory().iova().0,
        )
    }

    /// Starts again for a controller that is about to be enabled. Whatever was in flight has been let go of.
    pub(crate) fn restart(&mut self) {
        self.submission.restart();
        self.completion.restart();
        self.slots = SlotTable::new(ADMIN_ENTRIES.entries() - 1);
    }

    /// Gives up the memory of commands that nobody waits for, for the case that it cannot be freed.
    pub(crate) fn take_held(&mut self) -> Vec<Buffer> {
        self.slots
            .iter_mut()
            .flat_map(|(_, held)| [held.data.take(), held.list.take()])
            .flatten()
            .collect()
    }
}

/// Memory for PRP lists inside a buffer that is not with the device yet.
struct ListPages<'a> {
    buffer: &'a mut Buffer,
    page: PageSize,
}

impl PrpListMemory for ListPages<'_> {
    fn pages(&self) -> usize {
        self.buffer.len() / self.page.bytes()
    }

    fn page_iova(&self, page: usize) -> u64 {
        self.buffer.iova().0 + (page * self.page.bytes()) as u64
    }

    fn write(&mut self, page: usize, entry: usize, value: u64) {
        let at = page * self.page.bytes() + entry * size_of::<u64>();
        if let Some(bytes) = self.buffer.get_mut(at..at + size_of::<u64>()) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

impl Inner {
    /// Sends one admin command and waits for its end. Does not recover by itself.
    pub(super) fn execute(
        &self,
        admin: &mut AdminQueue,
        name: &'static str,
        command: Command,
        data: AdminData<'_>,
        timeout: Duration,
    ) -> Result<CompletionEntry, Error> {
        let length = match &data {
            AdminData::None => 0,
            AdminData::FromController(bytes) => bytes.len(),
            AdminData::ToController(bytes) => bytes.len(),
        };
        let mut held = Held::default();
        let mut pointer = DataPointer {
            prp1: command.prp1,
            prp2: command.prp2,
        };
        if length > 0 {
            let mut buffer = self.pool.allocate(length)?;
            match &data {
                AdminData::ToController(bytes) => buffer.copy_from_slice(bytes),
                // The controller may transfer less than asked for: nothing but what the caller has put there may look like its answer.
                AdminData::FromController(bytes) => buffer.copy_from_slice(bytes),
                AdminData::None => {}
            }
            let iova = buffer.iova().0;
            pointer = match self.page.list_pages(length) {
                0 => prp::build(iova, length, self.page, &mut prp::NoList),
                pages => {
                    let mut list = self
                        .pool
                        .allocate_aligned(pages * self.page.bytes(), self.page.bytes())?;
                    // What an earlier list has left there leads nowhere that was lent for this command.
                    list.fill(0);
                    let pointer = prp::build(
                        iova,
                        length,
                        self.page,
                        &mut ListPages {
                            buffer: &mut list,
                            page: self.page,
                        },
                    );
                    held.list = Some(list);
                    pointer
                }
            }
            .map_err(|error| Error::Length(error.to_string()))?;
            held.data = Some(buffer);
        }
        let Ok(identifier) = admin.slots.insert(held) else {
            return Err(Error::OutOfService(
                "every admin slot is taken by a command that never ended".to_owned(),
            ));
        };
        admin.submission.push(&Command {
            cid: identifier,
            prp1: pointer.prp1,
            prp2: pointer.prp2,
            ..command
        });
        admin.submission.ring();

        let entry = match self.wait_admin(admin, identifier, timeout) {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                if let Ok(held) = admin.slots.get_mut(identifier) {
                    held.abandoned = true;
                }
                Counters::count(&self.shared.counters.timeouts);
                tracing::warn!(controller = %self.name, command = name, ?timeout, "admin command did not end in time");
                return Err(Error::TimedOut {
                    command: name,
                    timeout,
                });
            }
            Err(error) => {
                if let Ok(held) = admin.slots.get_mut(identifier) {
                    held.abandoned = true;
                }
                return Err(error);
            }
        };
        let held = admin.slots.remove(identifier).unwrap_or_default();
        if !entry.status().is_success() {
            return Err(Error::Status {
                command: name,
                status: entry.status(),
            });
        }
        if let (AdminData::FromController(bytes), Some(buffer)) = (data, &held.data) {
            bytes.copy_from_slice(buffer);
        }
        Ok(entry)
    }

    /// Watches the admin completion queue until `identifier` ends, the time is over (`None`), or the controller has failed.
    fn wait_admin(
        &self,
        admin: &mut AdminQueue,
        identifier: u16,
        timeout: Duration,
    ) -> Result<Option<CompletionEntry>, Error> {
        let start = Instant::now();
        let mut looked = start;
        // How many answers are still taken once the time is over: a thread that was not scheduled for long gets its last look, after a controller that works in such waits alone has
        // got its last chance.
        let mut left = None;
        loop {
            // One at a time, so that a controller that keeps answering for nothing does not keep its owner from the clock.
            let answer = admin.completion.pop();
            if let Some(entry) = answer {
                admin.completion.ring();
                if entry.cid == identifier {
                    return Ok(Some(entry));
                }
                self.unexpected_admin(admin, entry.cid);
            }
            let now = Instant::now();
            match &mut left {
                None if now.duration_since(start) < timeout => {}
                None => left = Some(ADMIN_ENTRIES.entries()),
                Some(left) if answer.is_some() && *left > 0 => *left -= 1,
                Some(_) => return Ok(None),
            }
            if now.duration_since(looked) >= STATUS_INTERVAL {
                looked = now;
                let csts = self.status();
                if csts.is_gone() && self.is_gone() {
                    self.shared.give_up();
                    return Err(Error::Gone);
                }
                if csts.is_fatal() {
                    return Err(self.not_ready(NotReady::Fatal));
                }
                // Somebody else has reset it: nothing answers any more.
                if !csts.is_ready() {
                    return Err(self.not_ready(NotReady::Stopped));
                }
            }
            if answer.is_none() || left.is_some() {
                self.transport.relax();
            }
        }
    }

    /// An admin completion that nobody waits for: late, doubled, or nonsense.
    fn unexpected_admin(&self, admin: &mut AdminQueue, identifier: u16) {
        let counters = &self.shared.counters;
        match admin.slots.get_mut(identifier) {
            Ok(held) if held.abandoned => {
                // It has ended after all, so its memory is the pool's again.
                drop(admin.slots.remove(identifier));
                Counters::count(&counters.late);
            }
            Ok(_) => Counters::count(&counters.stale),
            Err(error) => {
                Counters::count(&counters.unknown);
                tracing::warn!(controller = %self.name, %error, "admin completion that names no command");
            }
        }
    }
}
