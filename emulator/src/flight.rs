//! Commands that were fetched and are not completed yet.

use crate::backend::Operation;
use crate::command::Entry;
use crate::fault::OnAbort;
use crate::prp::Extent;
use nvme_vfio_queues::Status;

/// How an injected fault bends a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bend {
    #[default]
    Not,
    Cid(u16),
    Twice,
    StalePhase,
    SqHead(u16),
}

/// A completion about to be posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) result: u32,
    pub(crate) status: Status,
    pub(crate) bend: Bend,
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
    pub(crate) bend: Bend,
    /// It was answered already (aborted); only its data is late.
    pub(crate) silent: bool,
}

/// The commands that are with the back end, by tag.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
}

impl Flights {
    /// Takes a command in; its tag.
    pub(crate) fn start(&mut self, flight: Flight) -> u32 {
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
