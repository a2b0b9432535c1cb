//! What the thread that polls calls for each command.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use nvme_vfio_queues::Status;

use super::record::{Decoded, Record, What};
use super::shared::{AuditOptions, Counted, Counts, Shared};
use crate::client::{ClientId, Identity};
use crate::command::{Class, DecodedCommand, Direction, QueueKind};
use crate::reason::Refusal;
use crate::verdict::Verdict;

/// Commands whose end is awaited that fit, whatever was asked for.
const MOST_OUTSTANDING: u32 = 1 << 17;

/// A command whose end the audit waits for. Give it to [`ClientAudit::end`] of the same client.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the record is written when the command ends"]
pub struct Started(NonZeroU32);

/// The record of a command whose end another thread learns. Dropped, it says that the end is not known.
#[derive(Debug)]
#[must_use = "dropped, it says that the end is not known"]
pub struct Unended {
    record: Option<Record>,
    shared: Arc<Shared>,
}

impl Unended {
    /// The command has ended now, with that status, and its record goes to be written.
    pub fn end(mut self, status: Status) {
        self.put(Some(status));
    }

    fn put(&mut self, status: Option<Status>) {
        if let Some(mut record) = self.record.take() {
            record.status = status;
            record.latency = Some(nanoseconds(record.at, Instant::now()));
            self.shared.operator(record);
        }
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        self.put(None);
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// The audit of one client's commands, for the thread that polls: no lock, no allocation, no clock of its own, and no waiting. What finds no room is dropped and
/// counted.
#[derive(Debug)]
pub struct ClientAudit {
    /// Allowed reads and writes until the next that is recorded.
    until_sample: u64,
    shared: Arc<Shared>,
    identity: Identity,
    sampler: Sampler,
    /// The last command that was no allowed read or write, if it was only counted, and `until_sample` at that time: any that came later and was one has changed it.
    last_counted: Option<(u64, Counted)>,
    /// Records whose commands are under way.
    started: Vec<Option<Record>>,
    free: Vec<NonZeroU32>,
}

impl ClientAudit {
    /// The audit of a client that may have `outstanding` commands under way at once.
    pub(super) fn new(shared: Arc<Shared>, options: &AuditOptions, outstanding: u32) -> Self {
        let outstanding = outstanding.clamp(1, MOST_OUTSTANDING);
        let mut sampler = Sampler::new(options.sample_allowed_io);
        ClientAudit {
            until_sample: sampler.next(),
            shared,
            identity: Identity::default(),
            sampler,
            last_counted: None,
            started: vec![None; outstanding as usize],
            free: (1..=outstanding)
                .rev()
                .filter_map(NonZeroU32::new)
                .collect(),
        }
    }

    /// An audit that is written nowhere: everything is counted, and its records are dropped, which is counted as well. For a process that lends nothing to anybody.
    #[must_use]
    pub fn detached(name: &str) -> ClientAudit {
        let options = AuditOptions {
            ring: 0,
            sample_allowed_io: 0,
            ..AuditOptions::default()
        };
        let shared = Shared::new(ClientId(0), name.into(), &options, None);
        ClientAudit::new(Arc::new(shared), &options, 1)
    }

    /// Who is connected from now on, as the kernel says it. It is stamped on every record.
    pub fn identify(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// The client's place in the policy.
    #[must_use]
    pub fn id(&self) -> ClientId {
        self.shared.id
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Counts a command that was judged, and records it but for those that the policy leaves out.
    ///
    /// Call it once for each command that has been decoded, and give what it returns to [`end`](Self::end) when the command has ended. `None`: the audit
    /// does not wait for the end: a command that is only counted, one that the virtual controller answers itself, or one that the verdict refuses.
    #[inline]
    pub fn begin(
        &mut self,
        command: &DecodedCommand<'_>,
        verdict: &Verdict,
        now: Instant,
    ) -> Option<Started> {
        if is_read_or_write(command.class) && matches!(verdict, Verdict::Allow) {
            self.until_sample = self.until_sample.wrapping_sub(1);
            if self.until_sample != 0 {
                self.shared.count(command.class, command.length);
                return None;
            }
            self.until_sample = self.sampler.next();
        }
        self.record(command, verdict, now)
    }

    /// Records what is not only counted.
    #[cold]
    #[inline(never)]
    fn record(
        &mut self,
        command: &DecodedCommand<'_>,
        verdict: &Verdict,
        now: Instant,
    ) -> Option<Started> {
        self.last_counted = None;
        let identity = self.identity;
        let record = |status| Record {
            at: now,
            latency: None,
            identity,
            verdict: *verdict,
            status,
            what: What::Decoded(Decoded::new(command)),
        };
        match verdict {
            Verdict::Deny(refusal) => {
                let status = Some(refusal.status);
                self.shared.refuse(refusal.reason, || record(status));
                None
            }
            Verdict::Allow | Verdict::Observe(_) if command.class == Class::Virtual => {
                self.shared.answer(|| record(None));
                None
            }
            Verdict::Observe(refusal) if !self.shared.may_record_observed(refusal.reason) => {
                self.last_counted = Some((self.until_sample, Counted::Observed(refusal.reason)));
                None
            }
            Verdict::Allow
                if !is_read_or_write(command.class)
                    && !changes_more_than_blocks(command)
                    && !self.shared.may_record(command.class) =>
            {
                self.last_counted = Some((self.until_sample, Counted::Other(command.class)));
                None
            }
            Verdict::Allow | Verdict::Observe(_) => {
                let Some(place) = self.free.pop() else {
                    self.shared.commands.skip();
                    return None;
                };
                if let Some(started) = self.started.get_mut(index(place)) {
                    *started = Some(record(None));
                }
                Some(Started(place))
            }
        }
    }

    /// A command has ended, with that status, and its record goes to be written.
    pub fn end(&mut self, started: Started, status: Status, now: Instant) {
        let Some(mut record) = self.take(started) else {
            return;
        };
        record.latency = Some(nanoseconds(record.at, now));
        record.status = Some(status);
        self.shared.commands.put(record);
    }

    /// Another thread will learn how the command ends, perhaps long after its client has gone. Its record goes to the ring of operators' commands.
    #[must_use]
    pub fn hand_over(&mut self, started: Started) -> Option<Unended> {
        let record = self.take(started)?;
        Some(Unended {
            record: Some(record),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Whether the record of another operator's command would be written. Where it would be dropped the command must not be sent: whoever could have one dropped could hide it.
    #[must_use]
    pub fn has_room_for_operator(&self) -> bool {
        self.shared.has_room_for_operator()
    }

    /// A command that would have changed more than blocks was not sent to a controller, and ends so. It has changed nothing, so it is recorded, or counted, as any other.
    pub fn not_sent(&mut self, started: Started, status: Status, now: Instant) {
        let place = index(started.0);
        let Some(Some(record)) = self.started.get(place) else {
            return;
        };
        if let What::Decoded(decoded) = &record.what
            && !self.shared.may_record(decoded.class)
        {
            self.shared.fail();
            // The place is free again; what was in it is counted.
            let _ = self.take(started);
            return;
        }
        self.end(started, status, now);
    }

    /// The record of a command that is awaited no more; `None` for another client's.
    fn take(&mut self, Started(place): Started) -> Option<Record> {
        let record = self.started.get_mut(index(place))?.take()?;
        self.free.push(place);
        Some(record)
    }

    /// A command that was only counted has ended with another status than success.
    pub fn failed(&mut self) {
        self.shared.fail();
    }

    /// A command that had passed was stopped before it reached a controller: its data is not in the client's memory, or there were no means to carry it out. It is a
    /// refusal, and no longer counted among what was allowed. `started` is what [`begin`](Self::begin) returned, `class` and `bytes` what the command was decoded to, and `entry` its submission
    /// queue entry.
    pub fn stopped(
        &mut self,
        started: Option<Started>,
        (class, bytes): (Class, u64),
        (queue, entry): (QueueKind, &[u32; 16]),
        refusal: Refusal,
        now: Instant,
    ) {
        if let Some(started) = started {
            if let Some(Some(record)) = self.started.get_mut(index(started.0)) {
                record.verdict = Verdict::Deny(refusal);
            }
            self.end(started, refusal.status, now);
            return;
        }
        match self.last_counted.take() {
            Some((at, counted)) if at == self.until_sample => self.shared.uncount_other(counted),
            _ if is_read_or_write(class) => self.shared.uncount(class, bytes),
            _ => return,
        }
        self.refused(queue, entry, refusal, now);
    }

    /// A command was refused before it could be judged: nothing decodes it. `entry` is the submission queue entry as it was copied.
    pub fn refused(&mut self, queue: QueueKind, entry: &[u32; 16], refusal: Refusal, now: Instant) {
        let identity = self.identity;
        self.shared.refuse(refusal.reason, || Record {
            at: now,
            latency: None,
            identity,
            verdict: Verdict::Deny(refusal),
            status: Some(refusal.status),
            what: What::Raw {
                queue,
                entry: *entry,
            },
        });
    }
}

#[inline]
fn is_read_or_write(class: Class) -> bool {
    matches!(class, Class::Read | Class::Write)
}

/// Whether a command of an operator or owner does more than to look. Such a command is recorded however many there are.
fn changes_more_than_blocks(command: &DecodedCommand<'_>) -> bool {
    let reaches = matches!(
        command.class,
        Class::Format
            | Class::Firmware
            | Class::Security
            | Class::NamespaceManagement
            | Class::Owner
            | Class::Vendor
    );
    reaches && command.direction != Direction::FromController
}

/// Where a started record is.
fn index(place: NonZeroU32) -> usize {
    place.get() as usize - 1
}

/// Says which of the allowed reads and writes are recorded: exactly one in each run of so many, at a place in it that the client cannot foresee.
#[derive(Debug)]
struct Sampler {
    one_in: u64,
    /// Commands of the present run that follow the sample.
    rest: u64,
    random: u64,
}

impl Sampler {
    fn new(one_in: u32) -> Sampler {
        Sampler {
            one_in: u64::from(one_in),
            rest: 0,
            // Odd, so never 0. The state's keys are random.
            random: RandomState::new().hash_one(one_in) | 1,
        }
    }

    /// Commands up to the next one that is recorded, itself included.
    fn next(&mut self) -> u64 {
        if self.one_in == 0 {
            return u64::MAX;
        }
        // Marsaglia's xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = self.random % self.one_in;
        let until = self.rest + place + 1;
        self.rest = self.one_in - place - 1;
        until
    }
}
