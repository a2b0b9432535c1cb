//! One step of the controller: doorbells, entries, completions.

use nvme_vfio_queues::Status;

use crate::admin;
use crate::admin::log::ErrorEntry;
use crate::backend::{Operation, Outcome};
use crate::command::Entry;
use crate::config::Offers;
use crate::controller::{BATCH, Core, State};
use crate::flight::{Completion, Flight};
use crate::interpose::Bend;
use crate::io;
use crate::iommu::DeviceMemory;
use crate::prp::Extent;
use crate::registers::{SHST, SHST_OCCURRING};

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It is done; dword 0 of its completion.
    Now(u32),
    /// It is done; dwords 0 and 1 of its completion, and its status.
    Handled(u64, Status),
    /// The back end or the handler has it, and its completion entry stays promised.
    Backend,
    /// It is answered some other time, and no completion entry is promised to it until then.
    Later,
}

/// How a command is run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// Nobody waits for its completion any more.
    pub(crate) silent: bool,
    /// Its memory, when that was found before.
    pub(crate) extents: Option<Vec<Extent>>,
}

/// Whether there is such a command on that queue.
#[cold]
fn implemented(core: &Core, sqid: u16, opcode: u8) -> bool {
    let offers = core.config.offers;
    if sqid == 0 {
        admin::OPCODES.contains(&opcode) && offers.contains(Offers::of_admin(opcode))
    } else {
        io::OPCODES.contains(&opcode) && offers.contains(Offers::of_io(opcode))
    }
}

impl Core {
    /// Does what is pending, and looks at doorbells that nothing correct rings where nothing was pending; how many completions were posted.
    pub(crate) fn step(&mut self, memory: &DeviceMemory<'_>) -> usize {
        self.thorough = true;
        let posted = self.advance(memory);
        self.thorough = false;
        if posted == 0 && self.running() && !self.gone() {
            self.find_stray_doorbells();
        }
        posted
    }

    /// Does what is pending; how many completions were posted.
    pub(crate) fn advance(&mut self, memory: &DeviceMemory<'_>) -> usize {
        self.statistics.steps += 1;
        let before = self.statistics.completions;
        if self.interposed {
            self.trace.at_step(self.statistics.steps);
            self.inject_due();
        }
        if self.gone() {
            return 0;
        }
        match self.state {
            State::Stopping => self.finish_stopping(memory),
            State::Ready | State::Disabled if self.registers.csts & SHST == SHST_OCCURRING => {
                self.finish_shutdown(memory)
            }
            State::Ready if self.running() => self.run(memory),
            // One that failed, or that a fault keeps from stopping, does nothing more; but the host wants its memory back.
            _ if !self.flights.is_empty() => self.collect_silently(memory),
            _ => {}
        }
        self.interrupts.deliver();
        if self.interposed {
            self.look_for_interposers();
        }
        (self.statistics.completions - before) as usize
    }

    fn run(&mut self, memory: &DeviceMemory<'_>) {
        if !self.flights.is_empty() {
            self.collect(memory);
        }
        if self.paused {
            return;
        }
        if self.interposed {
            self.run_interposed(memory);
        }
        if self.shadow.is_some() {
            self.copy_shadows(memory);
        }
        if self.waiting(0) > 0 {
            self.serve(0, memory);
        }
        let queues = self.active.len();
        self.turn += 1;
        if self.turn >= queues {
            self.turn = 0;
        }
        let mut place = self.turn;
        for _ in 0..queues {
            // Commands of I/O queues never change which queues there are.
            let Some(&sqid) = self.active.get(place) else {
                break;
            };
            place += 1;
            if place == queues {
                place = 0;
            }
            if !self.running() {
                return;
            }
            if self.waiting(sqid) > 0 {
                self.serve(sqid, memory);
                // The other queues have their turn in the next steps.
                if self.is_wanted(memory) {
                    break;
                }
            }
        }
        if !self.deletions.is_empty() {
            admin::queues::finish_deletions(self, memory);
        }
        if !self.deferred.is_empty() {
            admin::format::finish_deferred(self, memory);
        }
        if self.events.deliverable() {
            admin::events::deliver(self, memory);
        }
    }

    /// Fetches and runs what waits in one submission queue, as far as its completion queue has room and nobody else wants in.
    pub(crate) fn serve(&mut self, sqid: u16, memory: &DeviceMemory<'_>) {
        let waiting = self.waiting(sqid);
        let mut left = waiting;
        // A batch at least, so that nobody can keep the controller from its work.
        while left > 0 && self.running() && (left == waiting || !self.is_wanted(memory)) {
            let Some(queue) = self.submission(sqid) else {
                return;
            };
            let (head, size, cqid) = (queue.head, queue.size, queue.cqid);
            let at = queue.base.wrapping_add(u64::from(head) * 64);
            let mut count = self.room_for(cqid, left.min(size - head).min(BATCH as u32));
            if self.handler.is_some() {
                count = self.granted(sqid, count);
            } else if self.budget < u32::MAX {
                count = count.min(self.budget);
                self.budget -= count;
            }
            if count == 0 {
                return;
            }
            left -= count;
            if sqid != 0
                && self.quick()
                && memory.is_direct()
                && let Some(ring) = memory.entries(at, count as usize)
            {
                self.fetched(sqid, cqid, count);
                self.run_batch(sqid, &ring, count as usize, memory);
                continue;
            }
            let mut entries = std::mem::take(&mut self.scratch.entries);
            let batch = entries.get_mut(..count as usize).unwrap_or_default();
            if memory.read_entries(at, batch, sqid).is_err() {
                self.scratch.entries = entries;
                self.fatal("a submission queue cannot be read");
                return;
            }
            self.fetched(sqid, cqid, count);
            for &words in batch.iter() {
                self.dispatch(sqid, Entry(words), memory);
            }
            self.flush(memory);
            self.scratch.entries = entries;
        }
    }

    /// Moves on by entries that were fetched, and promises them completion entries.
    #[inline]
    fn fetched(&mut self, sqid: u16, cqid: u16, count: u32) {
        if let Some(queue) = self.submission(sqid) {
            queue.fetched(count);
        }
        if let Some(queue) = self.completion(cqid) {
            queue.reserved += count;
        }
        if !self.interposed {
            self.statistics.commands += u64::from(count);
        }
    }

    /// Hands the batch to the back end and takes what is done already, also of commands whose next range comes out of that.
    pub(crate) fn flush(&mut self, memory: &DeviceMemory<'_>) {
        while !self.scratch.requests.is_empty() {
            self.backend
                .submit(&self.scratch.requests, &self.scratch.segments, memory);
            self.scratch.requests.clear();
            self.scratch.segments.clear();
            self.take_completed(memory);
        }
        if self.handed {
            self.flush_handler(memory);
        }
    }

    /// Posts what the back end or the handler has finished.
    pub(crate) fn collect(&mut self, memory: &DeviceMemory<'_>) {
        self.take_completed(memory);
        self.flush(memory);
    }

    fn take_completed(&mut self, memory: &DeviceMemory<'_>) {
        let mut completions = std::mem::take(&mut self.scratch.completions);
        completions.clear();
        self.backend.poll(memory, &mut completions);
        for done in completions.drain(..) {
            if let Some(flight) = self.flights.finish(done.tag) {
                self.land(done.tag, &flight, done.outcome, memory);
            } else {
                tracing::error!(
                    tag = done.tag,
                    "the back end completed a request that it does not have"
                );
            }
        }
        self.scratch.completions = completions;
        if self.handler.is_some() {
            self.take_handled(memory);
        }
    }

    /// The status of what the back end finished so.
    pub(crate) fn status(&mut self, outcome: Outcome) -> Status {
        if matches!(outcome, Outcome::ReadError | Outcome::WriteError) {
            self.logs.media_error();
        }
        match outcome {
            Outcome::Done => Status::SUCCESS,
            Outcome::ReadError => Status::UNRECOVERED_READ_ERROR,
            Outcome::WriteError => Status::WRITE_FAULT,
            Outcome::Different => Status::COMPARE_FAILURE,
            Outcome::MemoryLost => Status::DATA_TRANSFER_ERROR,
            Outcome::Cancelled => Status::ABORT_REQUESTED,
        }
    }

    fn land(&mut self, tag: u32, flight: &Flight, outcome: Outcome, memory: &DeviceMemory<'_>) {
        if outcome == Outcome::Done
            && let Some(operation) = flight.operation
        {
            self.logs.count(operation, flight.bytes);
        }
        let (mut status, mut result) = (self.status(outcome), 0);
        if flight.may_go_on()
            && let Some(job) = self.jobs.remove(&tag)
        {
            match io::landed(self, flight, job, status) {
                Some(end) => {
                    (status, result) = end;
                    if status.is_success()
                        && matches!(flight.operation, Some(Operation::Copy { .. }))
                    {
                        self.logs.count_copy();
                    }
                }
                None => return,
            }
        }
        self.end(flight, status, u64::from(result), memory);
    }

    /// Answers a command that was with the back end or the handler.
    pub(crate) fn end(
        &mut self,
        flight: &Flight,
        mut status: Status,
        result: u64,
        memory: &DeviceMemory<'_>,
    ) {
        if let Some(queue) = self.submission(flight.sqid) {
            queue.in_flight = queue.in_flight.saturating_sub(1);
        }
        if flight.silent {
            self.failed_lba = None;
            return;
        }
        if !status.is_success() {
            let lba = self.failed_lba.take().unwrap_or(flight.lba);
            status = self.log_error(flight.sqid, flight.cid, status, flight.nsid, lba);
        }
        let completion = Completion {
            sqid: flight.sqid,
            cid: flight.cid,
            result,
            status,
        };
        self.post(&completion, memory);
    }

    /// Enters an error into the log; the status with M set, since the log tells more.
    pub(crate) fn log_error(
        &mut self,
        sqid: u16,
        cid: u16,
        status: Status,
        nsid: u32,
        lba: u64,
    ) -> Status {
        let status = status.with_more();
        self.logs.error(ErrorEntry {
            sqid,
            cid,
            status,
            nsid,
            lba,
        });
        status
    }

    /// Runs a command that was just fetched.
    pub(crate) fn dispatch(&mut self, sqid: u16, entry: Entry, memory: &DeviceMemory<'_>) {
        if self.interposed {
            self.interpose(sqid, entry, memory);
        } else {
            self.run_command(sqid, &entry, Run::default(), memory);
        }
    }

    pub(crate) fn run_command(
        &mut self,
        sqid: u16,
        entry: &Entry,
        run: Run,
        memory: &DeviceMemory<'_>,
    ) {
        let silent = run.silent;
        let handling = match &self.handler {
            Some(_) => self.hand_over(sqid, entry, silent, memory),
            None => None,
        };
        let reply = match handling {
            Some(reply) => reply,
            None => self.execute(sqid, entry, run, memory),
        };
        if silent {
            self.failed_lba = None;
        } else {
            self.answer(sqid, entry, reply, memory);
        }
    }

    fn execute(
        &mut self,
        sqid: u16,
        entry: &Entry,
        run: Run,
        memory: &DeviceMemory<'_>,
    ) -> Result<Reply, Status> {
        // SGLs are not offered, and there are no fused commands; what is no command at all says so below.
        let odd = entry.psdt() != 0 || entry.fuse() != 0;
        if odd && implemented(self, sqid, entry.opcode()) {
            Err(Status::INVALID_FIELD.with_dnr())
        } else if sqid == 0 {
            admin::execute(self, entry, memory)
        } else {
            io::start(self, sqid, entry, run, memory)
        }
    }

    /// Posts what a command answered at once, or takes the promise of a completion entry back.
    pub(crate) fn answer(
        &mut self,
        sqid: u16,
        entry: &Entry,
        reply: Result<Reply, Status>,
        memory: &DeviceMemory<'_>,
    ) {
        let (result, status) = match reply {
            Ok(Reply::Backend) => return,
            Ok(Reply::Later) => return self.unreserve(sqid),
            Ok(Reply::Now(result)) => (u64::from(result), Status::SUCCESS),
            Ok(Reply::Handled(result, status)) if status.is_success() => (result, status),
            Ok(Reply::Handled(result, status)) => (result, self.failed(sqid, entry, status)),
            Err(status) => (0, self.failed(sqid, entry, status)),
        };
        self.post(
            &Completion {
                sqid,
                cid: entry.cid(),
                result,
                status,
            },
            memory,
        );
    }

    /// Enters a command's error into the log.
    fn failed(&mut self, sqid: u16, entry: &Entry, status: Status) -> Status {
        let named = if sqid == 0 { 0 } else { entry.slba() };
        let lba = self.failed_lba.take().unwrap_or(named);
        self.log_error(sqid, entry.cid(), status, entry.nsid(), lba)
    }

    pub(crate) fn unreserve(&mut self, sqid: u16) {
        let Some(cqid) = self.submission(sqid).map(|queue| queue.cqid) else {
            return;
        };
        if let Some(queue) = self.completion(cqid) {
            queue.reserved = queue.reserved.saturating_sub(1);
        }
    }

    /// Promises a completion entry to a command of this queue, if there is one left.
    pub(crate) fn reserve(&mut self, sqid: u16) -> bool {
        let Some(cqid) = self.submission(sqid).map(|queue| queue.cqid) else {
            return false;
        };
        let free = self.room(cqid) > 0;
        if free && let Some(queue) = self.completion(cqid) {
            queue.reserved += 1;
        }
        free
    }

    /// Writes a completion entry that was promised.
    pub(crate) fn post(&mut self, completion: &Completion, memory: &DeviceMemory<'_>) {
        if self.interposed {
            self.post_interposed(completion, memory);
        } else {
            self.post_entry(completion, Bend::Not, memory);
        }
    }

    pub(crate) fn post_entry(
        &mut self,
        completion: &Completion,
        bend: Bend,
        memory: &DeviceMemory<'_>,
    ) {
        let Some(queue) = self.submission(completion.sqid) else {
            return;
        };
        let (cqid, head) = (queue.cqid, queue.head as u16);
        let Some(queue) = self.completion(cqid) else {
            return;
        };
        queue.reserved = queue.reserved.saturating_sub(1);
        let at = queue.base.wrapping_add(u64::from(queue.tail) * 16);
        let entry = completion.entry(head, queue.phase, bend);
        queue.posted();
        if let Some(vector) = queue.vector {
            self.interrupts.raise(vector);
        }
        self.statistics.completions += 1;
        if memory.write_completion(at, entry, cqid).is_err() {
            self.fatal("a completion queue cannot be written");
        }
        if self.interposed {
            self.tell_posted(cqid, entry);
        }
    }
}
