//! What the two ends of a client's audit share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use super::event::{Event, Happened};
use super::record::Record;
use super::ring::Ring;
use crate::client::{ClientId, Identity};
use crate::command::Class;
use crate::policy::AuditPolicy;
use crate::reason::Reason;

/// Records that a ring holds at least, however little memory it was given.
const LEAST_RECORDS: usize = 64;

/// Records of the ring of a client's connections. There is hardly one a second.
const CONNECTION_RECORDS: usize = 256;

/// So many seconds' worth of commands' records may come at once.
const BURST: u32 = 10;

/// Records of the ring of a client's operators' commands, which are carried out one after the other, and not without room for one more.
const OPERATOR_RECORDS: usize = 256;

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditOptions {
    /// Bytes of memory for the records of each client that wait to be written. A quarter as much again is for its refusals, which cannot displace them.
    pub ring: usize,
    /// Of allowed reads and writes, one in so many is recorded and the rest counted: 1 records all, 0 none.
    pub sample_allowed_io: u32,
    /// Refused commands of one client that are recorded in a second on average, and ten times as many at once. The rest are counted by reason.
    pub refusals_per_second: u32,
    /// Commands that a client's virtual controller answers from its own state and that are recorded in a second on average, and ten times as many at once. The rest are counted.
    pub answered_per_second: u32,
    /// Allowed commands of one client other than reads and writes that are recorded in a second on average, and ten times as many at once; as many again of those that pass only because the
    /// client is observed. The rest are counted, by class or by reason. What an operator changes beyond blocks is recorded always.
    pub others_per_second: u32,
    /// Events of one client's connections that are recorded in a second, as many again of strangers who were turned away, and of memory that was not taken. The rest are counted.
    pub connections_per_second: u32,
}

impl Default for AuditOptions {
    fn default() -> AuditOptions {
        AuditOptions {
            ring: 1 << 20,
            sample_allowed_io: 1000,
            refusals_per_second: 100,
            answered_per_second: 100,
            others_per_second: 100,
            connections_per_second: 100,
        }
    }
}

impl From<&AuditPolicy> for AuditOptions {
    fn from(policy: &AuditPolicy) -> AuditOptions {
        AuditOptions {
            ring: usize::try_from(policy.ring).unwrap_or(usize::MAX),
            sample_allowed_io: policy.sample_allowed_io,
            ..AuditOptions::default()
        }
    }
}

/// What was counted of one client since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Allowed reads that were only counted.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Allowed writes that were only counted.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Other allowed commands that were only counted.
    pub others: u64,
    /// Commands that passed only because their client is observed and that were only counted.
    pub observed: u64,
    /// Of all these, those that ended with another status than success.
    pub failed: u64,
    /// Commands answered by the virtual controller that were only counted.
    pub answered: u64,
    /// Refusals, recorded or only counted.
    pub refused: u64,
    /// Refusals that were only counted.
    pub refused_counted: u64,
    /// Commands that got a number in the client's ring, written or dropped.
    pub numbered: u64,
    /// Refusals that got a number in the ring of refusals, written or dropped.
    pub numbered_refusals: u64,
    /// Events of its connections that were only counted.
    pub connections: u64,
}

/// Who was connected, recorded or not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sessions {
    /// Of the last one that began.
    identity: Identity,
    begun: u64,
    /// The last one has not ended.
    open: bool,
}

impl Sessions {
    /// Who did what was counted between `earlier` and now; `None` where nobody was connected, or more than one.
    pub(super) fn only_one_since(&self, earlier: &Sessions) -> Option<Identity> {
        let since = self.begun.wrapping_sub(earlier.begun);
        (since.wrapping_add(u64::from(earlier.open)) == 1).then_some(self.identity)
    }
}

/// [`Counts`] of one moment, and what was only counted by class or by reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Snapshot {
    pub(super) sessions: Sessions,
    pub(super) counts: Counts,
    pub(super) others: [u64; Class::ALL.len()],
    pub(super) observed: [u64; Reason::ALL.len()],
    pub(super) refused: [u64; Reason::ALL.len()],
}

impl Snapshot {
    /// Takes over whatever is newer in `other`. No count goes back: one that was taken back after it was told is made good by the next.
    pub(super) fn advance(&mut self, other: &Snapshot) {
        if other.sessions.begun >= self.sessions.begun {
            self.sessions = other.sessions;
        }
        let (counts, new) = (&mut self.counts, &other.counts);
        for (count, new) in [
            (&mut counts.reads, new.reads),
            (&mut counts.read_bytes, new.read_bytes),
            (&mut counts.writes, new.writes),
            (&mut counts.write_bytes, new.write_bytes),
            (&mut counts.failed, new.failed),
            (&mut counts.answered, new.answered),
            (&mut counts.connections, new.connections),
        ]
        .into_iter()
        .chain(self.others.iter_mut().zip(other.others))
        .chain(self.observed.iter_mut().zip(other.observed))
        .chain(self.refused.iter_mut().zip(other.refused))
        {
            *count = (*count).max(new);
        }
    }
}

/// Two counts that only one thread raises.
#[derive(Debug, Default)]
pub(super) struct Tally {
    commands: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    #[inline]
    pub(super) fn add(&self, bytes: u64) {
        raise(&self.commands, 1);
        raise(&self.bytes, bytes);
    }

    /// Takes one back.
    fn remove(&self, bytes: u64) {
        raise(&self.commands, 1_u64.wrapping_neg());
        raise(&self.bytes, bytes.wrapping_neg());
    }

    fn get(&self) -> (u64, u64) {
        (
            self.commands.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// Raises a count of which this thread is the only writer: no locked instruction is needed.
#[inline]
fn raise(count: &AtomicU64, by: u64) {
    let sum = count.load(Ordering::Relaxed).wrapping_add(by);
    count.store(sum, Ordering::Relaxed);
}

/// Records that may still be made before the thread that writes adds some again, once a second. It needs no clock here.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU32,
    full: u32,
    each_second: u32,
}

impl Budget {
    /// So many each second, of which so many seconds' worth may come at once.
    fn new(each_second: u32, seconds: u32) -> Budget {
        let full = each_second.saturating_mul(seconds);
        Budget {
            left: AtomicU32::new(full),
            full,
            each_second,
        }
    }

    /// Takes one, if there is one. Called by one thread at a time; what is added between the two lines is lost, which makes a second's worth of records counts.
    fn spend(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        let rest = left.checked_sub(1);
        self.left.store(rest.unwrap_or(0), Ordering::Relaxed);
        rest.is_some()
    }

    /// Adds a second's worth. One that is taken between the two lines is given again.
    fn fill(&self) {
        let left = self.left.load(Ordering::Relaxed);
        let more = left.saturating_add(self.each_second).min(self.full);
        self.left.store(more, Ordering::Relaxed);
    }
}

/// How a command was counted that is neither an allowed read nor an allowed write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Other(Class),
    Observed(Reason),
}

/// One client's rings, counts and budgets.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: ClientId,
    pub(super) name: Arc<str>,
    pub(super) commands: Ring<Record>,
    pub(super) refusals: Ring<Record>,
    pub(super) connections: Ring<Happened>,
    pub(super) operators: Ring<Record>,
    /// Whoever learns of an operator's command takes turns at their ring.
    operating: Mutex<()>,
    /// The thread that writes; `None` where nothing is written.
    writer: Option<Thread>,
    /// Control threads take turns at the ring of connections.
    connecting: Mutex<Sessions>,
    reads: Tally,
    writes: Tally,
    others: [AtomicU64; Class::ALL.len()],
    observed: [AtomicU64; Reason::ALL.len()],
    failed: AtomicU64,
    answered: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    refused_counted: [AtomicU64; Reason::ALL.len()],
    connections_counted: AtomicU64,
    refusal_budget: Budget,
    answered_budget: Budget,
    others_budget: Budget,
    observed_budget: Budget,
    connection_budget: Budget,
    stranger_budget: Budget,
    memory_budget: Budget,
}

impl Shared {
    pub(super) fn new(
        id: ClientId,
        name: Arc<str>,
        options: &AuditOptions,
        writer: Option<Thread>,
    ) -> Shared {
        Shared {
            id,
            name,
            commands: Ring::new(options.ring, LEAST_RECORDS),
            refusals: Ring::new(options.ring / 4, LEAST_RECORDS),
            connections: Ring::new(0, CONNECTION_RECORDS),
            operators: Ring::new(0, OPERATOR_RECORDS),
            operating: Mutex::default(),
            writer,
            connecting: Mutex::default(),
            reads: Tally::default(),
            writes: Tally::default(),
            others: std::array::from_fn(|_| AtomicU64::new(0)),
            observed: std::array::from_fn(|_| AtomicU64::new(0)),
            failed: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            refused_counted: std::array::from_fn(|_| AtomicU64::new(0)),
            connections_counted: AtomicU64::new(0),
            refusal_budget: Budget::new(options.refusals_per_second, BURST),
            answered_budget: Budget::new(options.answered_per_second, BURST),
            others_budget: Budget::new(options.others_per_second, BURST),
            observed_budget: Budget::new(options.others_per_second, BURST),
            connection_budget: Budget::new(options.connections_per_second, 1),
            stranger_budget: Budget::new(options.connections_per_second, 1),
            memory_budget: Budget::new(options.connections_per_second, 1),
        }
    }

    #[inline]
    fn tally(&self, class: Class) -> &Tally {
        if matches!(class, Class::Read) {
            &self.reads
        } else {
            &self.writes
        }
    }

    /// Counts an allowed read or write.
    #[inline]
    pub(super) fn count(&self, class: Class, bytes: u64) {
        self.tally(class).add(bytes);
    }

    /// An allowed read or write that was counted has not been carried out.
    pub(super) fn uncount(&self, class: Class, bytes: u64) {
        self.tally(class).remove(bytes);
    }

    /// Whether an allowed command that is neither a read nor a write may be recorded; else it is counted.
    pub(super) fn may_record(&self, class: Class) -> bool {
        self.spend_or_count(&self.others_budget, self.others.get(class as usize))
    }

    /// Whether a command that passes only because its client is observed may be recorded; else it is counted.
    pub(super) fn may_record_observed(&self, reason: Reason) -> bool {
        self.spend_or_count(&self.observed_budget, self.observed.get(reason as usize))
    }

    fn spend_or_count(&self, budget: &Budget, count: Option<&AtomicU64>) -> bool {
        let may = budget.spend();
        if let (false, Some(count)) = (may, count) {
            raise(count, 1);
        }
        may
    }

    /// An allowed command, or one that was only observed, has not been carried out, and was counted.
    pub(super) fn uncount_other(&self, counted: Counted) {
        let count = match counted {
            Counted::Other(class) => self.others.get(class as usize),
            Counted::Observed(reason) => self.observed.get(reason as usize),
        };
        if let Some(count) = count {
            raise(count, 1_u64.wrapping_neg());
        }
    }

    /// One that was counted has failed.
    pub(super) fn fail(&self) {
        raise(&self.failed, 1);
    }

    /// Records a refusal, or counts it.
    pub(super) fn refuse(&self, reason: Reason, record: impl FnOnce() -> Record) {
        let index = reason as usize;
        if let Some(count) = self.refused.get(index) {
            raise(count, 1);
        }
        if self.refusal_budget.spend() {
            self.refusals.put(record());
        } else if let Some(count) = self.refused_counted.get(index) {
            raise(count, 1);
        }
    }

    /// Records a command that the virtual controller answers, or counts it.
    pub(super) fn answer(&self, record: impl FnOnce() -> Record) {
        if self.answered_budget.spend() {
            self.commands.put(record());
        } else {
            raise(&self.answered, 1);
        }
    }

    /// Records an operator's command.
    pub(super) fn operator(&self, record: Record) {
        let turn = self
            .operating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.operators.put(record);
        drop(turn);
        if self.operators.is_half_full()
            && let Some(writer) = &self.writer
        {
            // It may rest for longer than it takes to fill the other half.
            writer.unpark();
        }
    }

    /// Whether the record of one more operator's command finds room, if it is to be written at all.
    pub(super) fn has_room_for_operator(&self) -> bool {
        self.writer.is_none() || !self.operators.is_full()
    }

    /// Records something that happened to the client's connection, or counts it.
    pub(super) fn connection(&self, event: Event) {
        let mut sessions = self.sessions();
        match &event {
            Event::Connected { identity, .. } => {
                sessions.identity = *identity;
                sessions.begun += 1;
                sessions.open = true;
            }
            Event::Disconnected { .. } => sessions.open = false,
            _ => {}
        }
        // Strangers have a budget of their own, or they could hide who was let in; so has memory, or a client could hide who came after it.
        let budget = match &event {
            Event::ConnectionRefused { .. } => &self.stranger_budget,
            Event::MemoryRefused { .. } => &self.memory_budget,
            _ => &self.connection_budget,
        };
        if budget.spend() {
            let mut happened = Happened::now(event);
            if matches!(happened.event, Event::Disconnected { .. }) {
                // What is counted after this is the next one's.
                happened.counted = Some(Box::new(self.snapshot_of(*sessions)));
            }
            self.connections.put(happened);
        } else {
            raise(&self.connections_counted, 1);
        }
        drop(sessions);
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.connecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all budgets another second's worth.
    pub(super) fn fill_budgets(&self) {
        self.refusal_budget.fill();
        self.answered_budget.fill();
        self.others_budget.fill();
        self.observed_budget.fill();
        self.connection_budget.fill();
        self.stranger_budget.fill();
        self.memory_budget.fill();
    }

    /// What was counted since the start.
    pub(super) fn counts(&self) -> Counts {
        let sum = |counts: &[AtomicU64]| {
            let each = counts.iter().map(|count| count.load(Ordering::Relaxed));
            each.fold(0, u64::wrapping_add)
        };
        let (reads, read_bytes) = self.reads.get();
        let (writes, write_bytes) = self.writes.get();
        Counts {
            reads,
            read_bytes,
            writes,
            write_bytes,
            others: sum(&self.others),
            observed: sum(&self.observed),
            failed: self.failed.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
            refused: sum(&self.refused),
            refused_counted: sum(&self.refused_counted),
            numbered: self.commands.numbered(),
            numbered_refusals: self.refusals.numbered(),
            connections: self.connections_counted.load(Ordering::Relaxed),
        }
    }

    /// What was counted up to now.
    pub(super) fn snapshot(&self) -> Snapshot {
        // Nobody comes or goes while it is taken.
        let sessions = self.sessions();
        self.snapshot_of(*sessions)
    }

    fn snapshot_of(&self, sessions: Sessions) -> Snapshot {
        Snapshot {
            sessions,
            counts: self.counts(),
            others: read(&self.others),
            observed: read(&self.observed),
            refused: read(&self.refused_counted),
        }
    }
}

fn read<const N: usize>(counts: &[AtomicU64; N]) -> [u64; N] {
    counts.each_ref().map(|count| count.load(Ordering::Relaxed))
}
