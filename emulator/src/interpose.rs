//! What comes between the queues and the commands: faults, and completions that are kept back.
//!
//! All of it is behind one flag, [`Core::interposed`], which is false while nothing is armed, noted or kept back: the way of a
//! command then passes none of this.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::RangeInclusive;

use crate::command::Entry;
use crate::controller::Core;
use crate::execute::{Reply, Run};
use crate::fault::{CommandFault, Fault, OnAbort, When};
use crate::flight::{Completion, Held};
use crate::io;
use crate::iommu::DeviceMemory;
use crate::random::Random;
use crate::trace::TraceEvent;

/// How an injected fault bends a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bend {
    #[default]
    Not,
    Cid(u16),
    Sqid(u16),
    Twice,
    StalePhase,
    SqHead(u16),
    FlipStatus(u16),
    Result(u32),
    Lost,
    /// Kept back for so many steps.
    Late(u64),
    /// Kept back until so many others were posted.
    After(u32),
}

/// What is to be remembered of a command until its completion.
#[derive(Debug, Default)]
struct Note {
    bend: Bend,
    /// Nanoseconds that it takes longer than it must.
    latency: u64,
    /// The bad blocks that it makes good if it succeeds, and their namespace.
    rewrites: Option<(u32, RangeInclusive<u64>)>,
}

/// When a completion that is kept back is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Step(u64),
    Others(u32),
}

/// A completion that a fault keeps back; its entry stays promised.
#[derive(Debug)]
struct KeptBack {
    completion: Completion,
    cqid: u16,
    until: Until,
}

/// A completion that comes after the latency of its command; its entry stays promised.
#[derive(Debug)]
struct Late {
    /// When, in the nanoseconds of [`Clock`]; those of the same time keep their order.
    due: (u64, u64),
    completion: Completion,
}

impl PartialEq for Late {
    fn eq(&self, other: &Late) -> bool {
        self.due == other.due
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Late) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    /// The one that is due first is the greatest.
    fn cmp(&self, other: &Late) -> Ordering {
        other.due.cmp(&self.due)
    }
}

/// What is remembered of single commands.
#[derive(Debug, Default)]
pub(crate) struct Bends {
    notes: HashMap<(u16, u16), Note>,
    kept_back: Vec<KeptBack>,
    late: BinaryHeap<Late>,
    /// Counts the late ones.
    sequence: u64,
}

impl Bends {
    fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.kept_back.is_empty() && self.late.is_empty()
    }
}

impl Core {
    /// Finds out anew whether commands can take the short way. Called whenever anything that `interposed` sums up was added, and after
    /// every step that took the long way.
    pub(crate) fn look_for_interposers(&mut self) {
        self.interposed =
            !(self.faults.none_armed() && self.held.is_empty() && self.bends.is_empty())
                || self.trace.is_on()
                || !self.config.latency.none();
    }

    /// Arms a fault now or later.
    pub(crate) fn inject_when(&mut self, when: When, fault: Fault) {
        if when == When::Now {
            self.inject(fault);
        } else {
            self.faults.schedule(when, fault);
        }
        self.look_for_interposers();
    }

    /// Arms the faults whose time has come.
    pub(crate) fn inject_due(&mut self) {
        if !self.faults.any_scheduled() {
            return;
        }
        for fault in self
            .faults
            .due(self.statistics.steps, self.statistics.commands)
        {
            self.inject(fault);
        }
    }

    /// Runs a command that was just fetched, or does to it what a fault says.
    pub(crate) fn interpose(&mut self, sqid: u16, entry: Entry, memory: &DeviceMemory<'_>) {
        self.inject_due();
        self.statistics.commands += 1;
        if !self.running() || self.gone() {
            // A fault has just stopped the controller, in the middle of what it has fetched.
            return self.unreserve(sqid);
        }
        self.trace.record(|| TraceEvent::Command {
            sqid,
            cid: entry.cid(),
            opcode: entry.opcode(),
            nsid: entry.nsid(),
            dwords: std::array::from_fn(|index| entry.dword(index)),
        });
        let mut note = Note::default();
        if let Some(fault) = self.faults.command(sqid, &entry) {
            tracing::debug!(
                sqid,
                cid = entry.cid(),
                opcode = entry.opcode(),
                ?fault,
                "injected fault"
            );
            self.trace.record(|| TraceEvent::Fault {
                sqid,
                cid: entry.cid(),
                fault: format!("{fault:?}"),
            });
            match fault {
                CommandFault::Hang(on_abort) => {
                    return self.hold(sqid, entry, None, on_abort, memory);
                }
                CommandFault::Delay(steps) => {
                    let due = self.statistics.steps.saturating_add(steps);
                    return self.hold(sqid, entry, Some(due), OnAbort::Aborted, memory);
                }
                CommandFault::Status(status) => {
                    return self.answer(sqid, &entry, Err(status), memory);
                }
                CommandFault::NoEffect => {
                    return self.answer(sqid, &entry, Ok(Reply::Now(0)), memory);
                }
                CommandFault::LostCompletion => note.bend = Bend::Lost,
                CommandFault::LateCompletion(steps) => note.bend = Bend::Late(steps),
                CommandFault::Reorder(others) => note.bend = Bend::After(others),
                CommandFault::WrongCid(cid) => note.bend = Bend::Cid(cid),
                CommandFault::WrongSqid(sqid) => note.bend = Bend::Sqid(sqid),
                CommandFault::DuplicateCompletion => note.bend = Bend::Twice,
                CommandFault::StalePhase => note.bend = Bend::StalePhase,
                CommandFault::WrongSqHead(head) => note.bend = Bend::SqHead(head),
                CommandFault::FlipStatus(bits) => note.bend = Bend::FlipStatus(bits),
                CommandFault::WrongResult(result) => note.bend = Bend::Result(result),
                CommandFault::JunkData(pattern) => self.junk = Some(pattern),
                CommandFault::RandomData(seed) => self.junk = Some(Random::new(seed).bytes(4096)),
            }
        }
        if sqid != 0 {
            if let Some(status) = self.faults.media(&entry) {
                self.logs.media_error();
                self.trace.record(|| TraceEvent::Fault {
                    sqid,
                    cid: entry.cid(),
                    fault: "Media".into(),
                });
                return self.answer(sqid, &entry, Err(status), memory);
            }
            note.rewrites = self
                .faults
                .rewrites(&entry)
                .map(|lbas| (entry.nsid(), lbas));
        }
        let latency = self.config.latency.of(sqid, entry.opcode());
        note.latency = latency.draw(&mut self.random);
        if note.bend != Bend::Not || note.rewrites.is_some() || note.latency > 0 {
            self.bends.notes.insert((sqid, entry.cid()), note);
        }
        self.run_told(sqid, &entry, Run::default(), memory);
        self.junk = None;
    }

    /// Runs a command, and writes down when it is not implemented.
    fn run_told(&mut self, sqid: u16, entry: &Entry, run: Run, memory: &DeviceMemory<'_>) {
        let before = self.statistics.unsupported_commands;
        self.run_command(sqid, entry, run, memory);
        if self.statistics.unsupported_commands > before {
            self.trace.record(|| TraceEvent::Unimplemented {
                sqid,
                cid: entry.cid(),
                opcode: entry.opcode(),
            });
        }
    }

    /// Posts a completion that a fault may bend or keep back.
    pub(crate) fn post_interposed(&mut self, completion: &Completion, memory: &DeviceMemory<'_>) {
        let (sqid, cid) = (completion.sqid, completion.cid);
        if self.gone() {
            return self.unreserve(sqid);
        }
        let note = self.bends.notes.remove(&(sqid, cid)).unwrap_or_default();
        if let Some((nsid, lbas)) = &note.rewrites
            && completion.status.is_success()
        {
            self.faults.rewritten(*nsid, lbas);
        }
        let until = match note.bend {
            Bend::Lost => return self.unreserve(sqid),
            Bend::Late(steps) => Until::Step(self.statistics.steps.saturating_add(steps)),
            Bend::After(others) => Until::Others(others),
            Bend::Not if note.latency > 0 => {
                return self.post_late(completion, note.latency, memory);
            }
            bend => {
                self.post_entry(completion, bend, memory);
                if bend == Bend::Twice && self.reserve(sqid) {
                    self.post_entry(completion, Bend::Not, memory);
                }
                return;
            }
        };
        // The end of a queue waits for nothing but what is under way.
        let queue = self.submission(sqid).filter(|queue| !queue.deleting);
        let Some(cqid) = queue.map(|queue| queue.cqid) else {
            return self.post_entry(completion, Bend::Not, memory);
        };
        self.bends.kept_back.push(KeptBack {
            completion: *completion,
            cqid,
            until,
        });
    }

    /// Keeps a completion back for so many nanoseconds.
    fn post_late(&mut self, completion: &Completion, latency: u64, memory: &DeviceMemory<'_>) {
        if self
            .submission(completion.sqid)
            .is_none_or(|queue| queue.deleting)
        {
            return self.post_entry(completion, Bend::Not, memory);
        }
        let now = self.clock.now(self.statistics.steps);
        let due = (now.saturating_add(latency), self.bends.sequence);
        self.bends.sequence += 1;
        self.bends.late.push(Late {
            due,
            completion: *completion,
        });
    }

    /// Nanoseconds until a completion is due that waits for its time by the clock.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let next = self.bends.late.peek()?;
        Some(
            next.due
                .0
                .saturating_sub(self.clock.now(self.statistics.steps)),
        )
    }

    /// Goes over to the time of the clock, or of the steps. What waits goes on waiting for as long as it would have.
    pub(crate) fn tell_time(&mut self, real: bool) {
        self.trace.use_clock(real);
        let before = self.clock.now(self.statistics.steps);
        self.clock.use_clock(real);
        let now = self.clock.now(self.statistics.steps);
        let moved = std::mem::take(&mut self.bends.late).into_iter();
        self.bends.late = moved
            .map(|mut late| {
                late.due.0 = now.saturating_add(late.due.0.saturating_sub(before));
                late
            })
            .collect();
    }

    /// An entry was posted to a completion queue, for which others may have waited.
    pub(crate) fn tell_posted(&mut self, cqid: u16, entry: [u32; 4]) {
        let [result, _, third, last] = entry;
        self.trace.record(|| TraceEvent::Completion {
            cqid,
            sqid: (third >> 16) as u16,
            cid: last as u16,
            status: (last >> 17) as u16,
            result,
            sq_head: third as u16,
        });
        for kept in &mut self.bends.kept_back {
            if let Until::Others(left) = &mut kept.until
                && kept.cqid == cqid
            {
                *left = left.saturating_sub(1);
            }
        }
    }

    /// Posts the completions that were kept back for long enough.
    fn post_due(&mut self, memory: &DeviceMemory<'_>) {
        let steps = self.statistics.steps;
        let due = |kept: &KeptBack| match kept.until {
            Until::Step(step) => step <= steps,
            Until::Others(left) => left == 0,
        };
        // One that is posted may be what another waits for.
        while let Some(place) = self.bends.kept_back.iter().position(due) {
            let kept = self.bends.kept_back.remove(place);
            self.post_entry(&kept.completion, Bend::Not, memory);
        }
        if self.bends.late.is_empty() {
            return;
        }
        let now = self.clock.now(steps);
        while self.bends.late.peek().is_some_and(|late| late.due.0 <= now) {
            if let Some(late) = self.bends.late.pop() {
                self.post_entry(&late.completion, Bend::Not, memory);
            }
        }
    }

    /// A doorbell has a new value.
    pub(crate) fn tell_doorbell(&self, qid: u16, completion: bool, value: u32) {
        self.trace.record(|| TraceEvent::Doorbell {
            qid,
            completion,
            value,
        });
    }

    /// What a step does about held commands and completions that are kept back.
    pub(crate) fn run_interposed(&mut self, memory: &DeviceMemory<'_>) {
        self.run_held(memory);
        self.post_due(memory);
    }

    /// A submission queue goes: nothing that was kept from it happens any more.
    pub(crate) fn forget_queue(&mut self, sqid: u16) {
        self.held.retain(|held| held.sqid != sqid);
        let (gone, kept) = std::mem::take(&mut self.bends.kept_back)
            .into_iter()
            .partition(|kept| kept.completion.sqid == sqid);
        self.bends.kept_back = kept;
        let gone: Vec<KeptBack> = gone;
        let before = self.bends.late.len();
        self.bends.late.retain(|late| late.completion.sqid != sqid);
        for _ in 0..gone.len() + before - self.bends.late.len() {
            self.unreserve(sqid);
        }
    }

    /// Keeps a command from running. Its memory is what the PRPs say now; they may be another command's when it runs.
    fn hold(
        &mut self,
        sqid: u16,
        entry: Entry,
        due: Option<u64>,
        on_abort: OnAbort,
        memory: &DeviceMemory<'_>,
    ) {
        let extents = if sqid == 0 {
            None
        } else {
            io::extents(self, sqid, &entry, memory)
        };
        self.held.push(Held {
            sqid,
            entry,
            extents,
            due,
            on_abort,
            silent: false,
        });
        self.unreserve(sqid);
    }

    /// Runs the held commands whose time has come.
    fn run_held(&mut self, memory: &DeviceMemory<'_>) {
        let mut index = 0;
        while let Some(held) = self.held.get(index) {
            let due = held.due.is_some_and(|step| step <= self.statistics.steps);
            let (sqid, silent) = (held.sqid, held.silent);
            if !due || !(silent || self.reserve(sqid)) {
                index += 1;
                continue;
            }
            let held = self.held.remove(index);
            let run = Run {
                silent,
                extents: held.extents,
            };
            self.run_told(sqid, &held.entry, run, memory);
        }
        self.flush(memory);
    }
}
