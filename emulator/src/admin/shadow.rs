//! Doorbell Buffer Config: doorbells of I/O queues in the host's memory.
//!
//! The host writes a doorbell to its shadow first, and to the register only when it passes the value that the controller left in
//! EventIdx. Each step copies the shadows that changed into the registers. From a queue's first change on its shadow alone says
//! where it is: a register write can be late (a virtual machine monitor posts it as a message), and would take the queue back.

use std::sync::atomic::{Ordering, fence};

use nvme_vfio_dma::Access;
use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::iommu::{DeviceMemory, DmaOrigin, DmaRefused, FaultingCommand};

/// Where the shadows are.
#[derive(Debug)]
pub(crate) struct Shadow {
    doorbells: u64,
    event_indexes: u64,
    /// The command that said so; faults name it.
    command: FaultingCommand,
    /// What was last seen of each, by twice the queue's identifier, and one more for a head.
    seen: Vec<Seen>,
}

/// What is known of one shadow.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// What the host wrote last.
    raw: u32,
    /// What counts: the same, unless it cannot be.
    value: u32,
    /// It has changed since the queue began: the host uses it.
    used: bool,
}

impl Shadow {
    /// The value of a doorbell whose shadow the host uses.
    pub(crate) fn value(&self, qid: u16, completion: bool) -> Option<u32> {
        let seen = self
            .seen
            .get(2 * usize::from(qid) + usize::from(completion))?;
        seen.used.then_some(seen.value)
    }

    /// Takes a value back that cannot be; what the host writes next is looked at again.
    pub(crate) fn put_back(&mut self, qid: u16, completion: bool, last: u32) {
        let index = 2 * usize::from(qid) + usize::from(completion);
        if let Some(seen) = self.seen.get_mut(index) {
            seen.value = last;
        }
    }

    fn offset(&self, core: &Core, index: usize) -> u64 {
        (index as u64 * 4) << core.config.dstrd
    }

    fn poll(&self, at: u64, memory: &DeviceMemory<'_>) -> Result<u32, DmaRefused> {
        let mut bytes = [0; 4];
        memory.peek(at, &mut bytes, DmaOrigin::Data(self.command))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read(&self, at: u64, memory: &DeviceMemory<'_>) -> Result<u32, DmaRefused> {
        let mut bytes = [0; 4];
        memory.read_at(at, &mut bytes, DmaOrigin::Data(self.command))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, at: u64, value: u32, memory: &DeviceMemory<'_>) -> Result<(), DmaRefused> {
        let origin = DmaOrigin::Data(self.command);
        let segment = memory.translate(at, 4, Access::DEVICE_WRITE, origin)?;
        memory.write(&segment, 0, &value.to_le_bytes())
    }
}

/// Doorbell Buffer Config: one memory page each for the shadows and for EventIdx.
pub(super) fn configure(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let (doorbells, event_indexes) = (entry.prp1(), entry.prp2());
    let page = core.page();
    if !doorbells.is_multiple_of(page) || !event_indexes.is_multiple_of(page) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // What does not fit into the page has registers only.
    let fitting = (page >> core.config.dstrd) as usize / 4;
    let mut shadow = Shadow {
        doorbells,
        event_indexes,
        command: FaultingCommand {
            sqid: 0,
            cid: entry.cid(),
            opcode: entry.opcode(),
        },
        seen: vec![Seen::default(); fitting.min(2 * (usize::from(core.config.queues) + 1))],
    };
    for index in 2..shadow.seen.len() {
        let (qid, completion) = (index as u16 / 2, index & 1 != 0);
        let value = core.doorbell(qid, completion);
        let value = value.map_or(0, |doorbell| doorbell.load(Ordering::Acquire));
        let offset = shadow.offset(core, index);
        shadow
            .write(doorbells.wrapping_add(offset), value, memory)
            .and_then(|()| shadow.write(event_indexes.wrapping_add(offset), value, memory))
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        if let Some(seen) = shadow.seen.get_mut(index) {
            *seen = Seen {
                raw: value,
                value,
                used: false,
            };
        }
    }
    core.shadow = Some(Box::new(shadow));
    Ok(Reply::Now(0))
}

impl Core {
    /// A new queue starts with its doorbell at 0, and its shadow too.
    pub(super) fn start_doorbell(&mut self, qid: u16, completion: bool, memory: &DeviceMemory<'_>) {
        self.clear_doorbell(qid, completion);
        let Some(mut shadow) = self.shadow.take() else {
            return;
        };
        let index = 2 * usize::from(qid) + usize::from(completion);
        let offset = shadow.offset(self, index);
        if let Some(seen) = shadow.seen.get_mut(index) {
            *seen = Seen::default();
            let written = shadow
                .write(shadow.doorbells.wrapping_add(offset), 0, memory)
                .and_then(|()| shadow.write(shadow.event_indexes.wrapping_add(offset), 0, memory));
            if written.is_err() {
                self.fatal("the shadow doorbells cannot be written");
            }
        }
        self.shadow = Some(shadow);
    }

    /// Copies the shadows that changed into the registers, and tells the host up to where they were seen.
    #[inline(never)]
    pub(crate) fn copy_shadows(&mut self, memory: &DeviceMemory<'_>) {
        let Some(mut shadow) = self.shadow.take() else {
            return;
        };
        let copied = self.copy_from(&mut shadow, memory);
        self.shadow = Some(shadow);
        if copied.is_err() {
            self.fatal("the shadow doorbells cannot be reached");
        }
    }

    fn copy_from(
        &mut self,
        shadow: &mut Shadow,
        memory: &DeviceMemory<'_>,
    ) -> Result<(), DmaRefused> {
        for index in 2..shadow.seen.len() {
            let (qid, completion) = (index as u16 / 2, index & 1 != 0);
            let exists = if completion {
                self.completion(qid).is_some()
            } else {
                self.submission(qid).is_some()
            };
            if !exists {
                continue;
            }
            let offset = shadow.offset(self, index);
            let at = shadow.doorbells.wrapping_add(offset);
            let mut value = shadow.poll(at, memory)?;
            let known = shadow.seen.get(index).copied().unwrap_or_default();
            // Until the host knows of the shadows it writes the registers alone: an unchanged shadow says nothing.
            if value == known.raw {
                continue;
            }
            shadow.write(shadow.event_indexes.wrapping_add(offset), value, memory)?;
            // The host writes its shadow and then looks at EventIdx; what it wrote before it could see this value is seen here.
            fence(Ordering::SeqCst);
            value = shadow.read(at, memory)?;
            fence(Ordering::Acquire);
            if let Some(seen) = shadow.seen.get_mut(index) {
                *seen = Seen {
                    raw: value,
                    value,
                    used: true,
                };
            }
            if let Some(doorbell) = self.doorbell(qid, completion) {
                doorbell.store(value, Ordering::Release);
            }
        }
        Ok(())
    }
}
