//! Commands that were fetched and are not completed yet.

use crate::backend::Operation;
use crate::command::Entry;
use crate::fault::OnAbort;
use crate::interpose::Bend;
use crate::namespaces::BROADCAST;
use crate::prp::Extent;
use nvme_vfio_queues::Status;

/// A completion about to be posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) result: u32,
    pub(crate) status: Status,
}

impl Completion {
    /// The entry, as it is or as a fault bends it.
    pub(crate) fn entry(&self, head: u16, phase: bool, bend: Bend) -> [u32; 4] {
        let (mut result, mut sqid, mut head) = (self.result, self.sqid, head);
        let (mut cid, mut status, mut phase) = (self.cid, self.status, phase);
        match bend {
            Bend::Cid(wrong) => cid = wrong,
            Bend::Sqid(wrong) => sqid = wrong,
            Bend::SqHead(wrong) => head = wrong,
            Bend::StalePhase => phase = !phase,
            Bend::FlipStatus(bits) => status = Status::from_raw(status.to_raw() ^ bits),
            Bend::Result(wrong) => result = wrong,
            Bend::Not | Bend::Twice | Bend::Lost | Bend::Late(_) | Bend::After(_) => {}
        }
        [
            result,
            0,
            u32::from(sqid) << 16 | u32::from(head),
            u32::from(status.to_status_word(phase)) << 16 | u32::from(cid),
        ]
    }
}

/// A command that is with the back end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) operation: Operation,
    pub(crate) nsid: u32,
    pub(crate) lba: u64,
    pub(crate) bytes: u64,
    /// It was answered already (aborted); only its data is late.
    pub(crate) silent: bool,
    /// Its number among all that were ever with the back end, given by [`Flights::start`].
    pub(crate) number: u64,
}

impl Flight {
    /// Whether more of the command may be left when this ends.
    #[inline]
    pub(crate) fn may_go_on(&self) -> bool {
        matches!(
            self.operation,
            Operation::Deallocate | Operation::Copy { .. }
        )
    }

    /// Whether it reads or changes this namespace.
    fn touches(&self, nsid: u32) -> bool {
        match self.operation {
            Operation::Copy { namespace, .. } => namespace == nsid || self.nsid == nsid,
            _ => self.nsid == nsid || self.nsid == BROADCAST,
        }
    }
}

/// The commands that are with the back end, by tag.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    started: u64,
}

impl Flights {
    /// Takes a command in; its tag.
    pub(crate) fn start(&mut self, mut flight: Flight) -> u32 {
        flight.number = self.started;
        self.started += 1;
        if let Some(tag) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(tag as usize) {
                *slot = Some(flight);
            }
            return tag;
        }
        self.slots.push(Some(flight));
        // At most one slot per entry of 4096 queues of 65,536 entries.
        (self.slots.len() - 1) as u32
    }

    /// Lets a command go; `None` for a tag that is not in flight.
    pub(crate) fn finish(&mut self, tag: u32) -> Option<Flight> {
        let flight = self.slots.get_mut(tag as usize)?.take()?;
        self.free.push(tag);
        Some(flight)
    }

    /// The number that the next command gets.
    pub(crate) fn mark(&self) -> u64 {
        self.started
    }

    /// The tags of the commands with a number below `mark`.
    pub(crate) fn before(&self, mark: u64) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(move |(tag, slot)| slot.filter(|flight| flight.number < mark).map(|_| tag))
    }

    /// Forgets all; numbers go on.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }

    /// Whether any of them reads or changes this namespace.
    pub(crate) fn any_on(&self, nsid: u32) -> bool {
        self.slots
            .iter()
            .flatten()
            .any(|flight| flight.touches(nsid))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

/// A command that an injected fault keeps from running.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) sqid: u16,
    pub(crate) entry: Entry,
    /// Its memory as the PRPs said at the fetch; `None` when it is to be found when the command runs.
    pub(crate) extents: Option<Vec<Extent>>,
    /// The step in which it runs; `None` while it hangs.
    pub(crate) due: Option<u64>,
    pub(crate) on_abort: OnAbort,
    /// It was aborted; only its data is to come.
    pub(crate) silent: bool,
}
