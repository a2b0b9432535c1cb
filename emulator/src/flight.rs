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
    /// Dwords 0 and 1 of the entry.
    pub(crate) result: u64,
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
            Bend::Result(wrong) => result = u64::from(wrong),
            Bend::Not | Bend::Twice | Bend::Lost | Bend::Late(_) | Bend::After(_) => {}
        }
        [
            result as u32,
            (result >> 32) as u32,
            u32::from(sqid) << 16 | u32::from(head),
            u32::from(status.to_status_word(phase)) << 16 | u32::from(cid),
        ]
    }
}

/// A command that is with the back end or the handler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    /// What the back end does; `None` for a command that a handler has.
    pub(crate) operation: Option<Operation>,
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
            Some(Operation::Deallocate | Operation::Copy { .. })
        )
    }

    /// Whether it reads or changes this namespace.
    fn touches(&self, nsid: u32) -> bool {
        match self.operation {
            Some(Operation::Copy { namespace, .. }) => namespace == nsid || self.nsid == nsid,
            _ => self.nsid == nsid || self.nsid == BROADCAST,
        }
    }
}

/// How many commands a handler can have at once: their slots take half of a tag.
const HANDLED_MAX: usize = 1 << 16;

/// The commands that are with the back end or the handler, by tag.
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

    /// How many more commands a handler can take.
    pub(crate) fn handler_room(&self) -> u32 {
        (HANDLED_MAX + self.free.len()).saturating_sub(self.slots.len()) as u32
    }

    /// The tag under which a handler would get the command that [`Flights::start`] takes in next: its slot, and above that what tells it from those that had the slot before.
    pub(crate) fn handler_tag(&self) -> u32 {
        let slot = self.free.last().copied();
        slot.unwrap_or(self.slots.len() as u32) & 0xffff | (self.started as u32) << 16
    }

    /// The tag under which a handler has a command.
    fn tag_of(slot: u32, flight: &Flight) -> u32 {
        slot & 0xffff | (flight.number as u32) << 16
    }

    /// Lets a command go that a handler reports; `None` for one that it does not have.
    pub(crate) fn finish_handled(&mut self, tag: u32) -> Option<Flight> {
        let slot = tag & 0xffff;
        let flight = self.slots.get(slot as usize)?.as_ref()?;
        if flight.operation.is_some() || Flights::tag_of(slot, flight) != tag {
            return None;
        }
        self.finish(slot)
    }

    /// The handler's tags of the commands with a number below `mark` that it has.
    pub(crate) fn handled_before(&self, mark: u64) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.slots).filter_map(move |(slot, flight)| {
            let flight = flight.as_ref()?;
            let its = flight.operation.is_none() && flight.number < mark;
            its.then(|| Flights::tag_of(slot, flight))
        })
    }

    /// Whether a handler has any command.
    pub(crate) fn any_handled(&self) -> bool {
        self.handled_before(u64::MAX).next().is_some()
    }

    /// The number that the next command gets.
    pub(crate) fn mark(&self) -> u64 {
        self.started
    }

    /// Whether there is a command with a number below `mark`.
    pub(crate) fn any_before(&self, mark: u64) -> bool {
        self.slots
            .iter()
            .flatten()
            .any(|flight| flight.number < mark)
    }

    /// The tags of the commands with a number below `mark` that the back end has.
    pub(crate) fn before(&self, mark: u64) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.slots).filter_map(move |(tag, slot)| {
            slot.filter(|flight| flight.operation.is_some() && flight.number < mark)
                .map(|_| tag)
        })
    }

    /// Forgets all that the back end has; numbers go on. What a handler has stays until it is reported: the handler may have lent its memory on.
    pub(crate) fn forget(&mut self) {
        if self.any_handled() {
            let backend: Vec<u32> = self.before(u64::MAX).collect();
            for tag in backend {
                self.finish(tag);
            }
            return;
        }
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

    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(operation: Option<Operation>) -> Flight {
        Flight {
            sqid: 1,
            cid: 0,
            operation,
            nsid: 1,
            lba: 0,
            bytes: 0,
            silent: false,
            number: 0,
        }
    }

    #[test]
    fn a_handler_has_no_more_commands_than_its_tags_name() {
        let mut flights = Flights::default();
        let mut tags = Vec::new();
        while flights.handler_room() > 0 {
            tags.push(flights.handler_tag());
            flights.start(flight(None));
        }
        assert_eq!(tags.len(), 1 << 16);
        let slots: std::collections::BTreeSet<u16> = tags.iter().map(|tag| *tag as u16).collect();
        assert_eq!(slots.len(), tags.len());
        assert!(flights.finish_handled(tags[7]).is_some());
        assert_eq!(flights.handler_room(), 1);
        assert!(flights.finish_handled(tags[7]).is_none(), "twice");
        let next = flights.handler_tag();
        assert_eq!(next as u16, tags[7] as u16);
        assert_ne!(next, tags[7]);
        flights.start(flight(None));
        assert!(flights.finish_handled(tags[7]).is_none(), "the one before");
        assert!(flights.finish_handled(next).is_some());
    }

    #[test]
    fn what_a_handler_has_is_not_forgotten_and_is_no_business_of_the_back_end() {
        let mut flights = Flights::default();
        let handled = flights.handler_tag();
        flights.start(flight(None));
        let backend = flights.start(flight(Some(Operation::Flush)));
        assert_eq!(flights.before(u64::MAX).collect::<Vec<_>>(), [backend]);
        assert_eq!(
            flights.handled_before(u64::MAX).collect::<Vec<_>>(),
            [handled]
        );
        assert_eq!(flights.handled_before(0).count(), 0);
        assert!(flights.finish_handled(backend).is_none());
        assert!(flights.finish_handled(backend | 1 << 16).is_none());
        flights.forget();
        assert!(!flights.is_empty() && flights.count() == 1);
        assert!(flights.any_before(1) && !flights.any_before(0));
        assert!(flights.finish_handled(handled).is_some());
        assert!(flights.is_empty());
    }
}
