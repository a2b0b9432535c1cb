//! The life of a controller: enabled, disabled, shut down, reset, given up.

use std::sync::atomic::Ordering;

use crate::admin;
use crate::admin::events::Events;
use crate::admin::features::Features;
use crate::admin::firmware::Firmware;
use crate::admin::log::Logs;
use crate::controller::{Core, State};
use crate::fault::ControllerFault;
use crate::interpose::Bends;
use crate::io::flush_all;
use crate::iommu::DeviceMemory;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::registers::{Configuration, NORMAL_SHUTDOWN, RDY, SHST, SHST_COMPLETE, SHST_OCCURRING};
use crate::trace::TraceEvent;

impl Core {
    pub(crate) fn configure(
        &mut self,
        before: Configuration,
        now: Configuration,
        memory: &DeviceMemory<'_>,
    ) {
        match (before.enabled(), now.enabled()) {
            (false, true) if self.state == State::Disabled => self.enable(),
            // Enabled again before CSTS.RDY fell to 0, which no host may do.
            (false, true) => self.fatal("enabled while still stopping"),
            (true, false) => self.disable(memory),
            _ => {}
        }
        if now.shn() != 0 && before.shn() != now.shn() {
            self.shut_down(now.shn() == NORMAL_SHUTDOWN, memory);
        }
    }

    fn enable(&mut self) {
        if let Err(why) = self.start() {
            self.fatal(why);
        }
    }

    fn start(&mut self) -> Result<(), &'static str> {
        let cc = self.registers.cc;
        let mps = cc.mps();
        if cc.css() != 0 {
            return Err("CC.CSS selects a command set that CAP.CSS does not offer");
        }
        if cc.ams() != 0 {
            return Err("CC.AMS selects an arbitration that CAP.AMS does not offer");
        }
        if mps < u32::from(self.config.mpsmin) || mps > u32::from(self.config.mpsmax) {
            return Err("CC.MPS is outside CAP.MPSMIN to CAP.MPSMAX");
        }
        // Zero leaves the entry sizes for later, but before I/O queues are created.
        if !matches!(cc.iosqes(), 0 | 6) || !matches!(cc.iocqes(), 0 | 4) {
            return Err("CC.IOSQES or CC.IOCQES is not 64 or 16 bytes");
        }
        let (asqs, acqs) = (self.registers.aqa & 0xfff, self.registers.aqa >> 16 & 0xfff);
        if asqs == 0 || acqs == 0 {
            return Err("AQA has an admin queue of one entry");
        }
        let page = self.page();
        if !self.registers.asq.is_multiple_of(page) || !self.registers.acq.is_multiple_of(page) {
            return Err("ASQ or ACQ is not aligned to a memory page");
        }
        let mut completion = CompletionQueue::new(self.registers.acq, acqs + 1);
        completion.users = 1;
        completion.vector = Some(0);
        self.clear_doorbell(0, false);
        self.clear_doorbell(0, true);
        self.set_queue(
            0,
            Some(SubmissionQueue::new(self.registers.asq, asqs + 1, 0)),
            Some(completion),
        );
        self.registers.csts &= !SHST;
        if self.faults.armed(ControllerFault::NeverReady) {
            self.state = State::Starting;
        } else {
            self.state = State::Ready;
            self.registers.csts |= RDY;
        }
        Ok(())
    }

    fn set_queue(
        &mut self,
        qid: u16,
        submission: Option<SubmissionQueue>,
        completion: Option<CompletionQueue>,
    ) {
        if let Some(place) = self.submission.get_mut(usize::from(qid)) {
            *place = submission;
        }
        if let Some(place) = self.completion.get_mut(usize::from(qid)) {
            *place = completion;
        }
    }

    fn disable(&mut self, memory: &DeviceMemory<'_>) {
        if matches!(self.state, State::Ready | State::Stuck)
            && self.faults.armed(ControllerFault::NeverDisabled)
        {
            self.state = State::Stuck;
            return;
        }
        self.state = State::Stopping;
        self.finish_stopping(memory);
    }

    /// Takes what the back end has finished, and tells the host nothing of it.
    pub(crate) fn collect_silently(&mut self, memory: &DeviceMemory<'_>) {
        let mut completions = std::mem::take(&mut self.scratch.completions);
        completions.clear();
        self.backend.poll(memory, &mut completions);
        for completion in completions.drain(..) {
            self.flights.finish(completion.tag);
        }
        self.scratch.completions = completions;
        self.take_handled_silently(memory);
    }

    /// Waits, from call to call, for the back end to let go of the host's memory; only then CSTS.RDY falls.
    pub(crate) fn finish_stopping(&mut self, memory: &DeviceMemory<'_>) {
        self.collect_silently(memory);
        if self.flights.is_empty() {
            if self.resetting.load(Ordering::Relaxed) {
                return self.clear();
            }
            self.trace.record(|| TraceEvent::Reset { function: false });
            // A shutdown that was notified together with CC.EN = 0 still ends.
            let shutdown = self.registers.csts & SHST == SHST_OCCURRING
                && self.registers.cc.shn() != 0
                && !self.faults.armed(ControllerFault::ShutdownNeverCompletes);
            self.clear();
            if shutdown {
                self.registers.csts |= SHST_COMPLETE;
            }
        }
    }

    /// The end of a reset of any kind: nothing of the host's memory is used from here on.
    fn clear(&mut self) {
        self.state = State::Disabled;
        self.registers.reset();
        self.submission.iter_mut().for_each(|queue| *queue = None);
        self.completion.iter_mut().for_each(|queue| *queue = None);
        self.doorbells.clear();
        self.active.clear();
        self.held.clear();
        self.bends = Bends::default();
        self.deletions.clear();
        self.flights.forget();
        self.jobs.clear();
        self.shadow = None;
        admin::format::forget_deferred(self);
        self.features = self.saved.clone();
        admin::features::restart(self);
        self.firmware.reset();
        self.events = Events::default();
        // Release: whoever sees it sees that all commands have ended.
        self.resetting.store(false, Ordering::Release);
        if let Some(handler) = &mut self.handler {
            handler.restarted();
        }
    }

    fn shut_down(&mut self, normal: bool, memory: &DeviceMemory<'_>) {
        let already = self.registers.csts & SHST == SHST_OCCURRING;
        self.registers.csts = self.registers.csts & !SHST | SHST_OCCURRING;
        if normal && self.handler.is_some() {
            // A controller that is disabled, or could not be enabled, has CSTS.RDY = 0, and the host may enable it at once: nothing may be in flight.
            // And a host that asks again and again gets no more than one flush at a time.
            if self.state != State::Disabled && !already {
                self.shut_down_handler(memory);
            }
        } else if normal && self.config.vwc && !already {
            flush_all(self);
        }
        self.finish_shutdown(memory);
    }

    /// Waits, from call to call, for the commands in flight; then the shutdown is complete.
    pub(crate) fn finish_shutdown(&mut self, memory: &DeviceMemory<'_>) {
        self.collect(memory);
        if self.flights.is_empty() && !self.faults.armed(ControllerFault::ShutdownNeverCompletes) {
            self.registers.csts = self.registers.csts & !SHST | SHST_COMPLETE;
        }
    }

    /// A function-level reset: at once, whatever is under way. Only what a handler has is waited for: until it was reported CSTS.RDY stays, and the reset is
    /// under way. Whether it is complete.
    pub(crate) fn function_reset(&mut self) -> bool {
        if self.gone() {
            return true;
        }
        if self.broken || self.resetting.load(Ordering::Relaxed) {
            return false;
        }
        self.trace.record(|| TraceEvent::Reset { function: true });
        self.backend.reset();
        self.faults.function_reset();
        self.bend_hardware();
        let status = self.registers.csts;
        self.registers.function_reset();
        self.config_space.reset();
        self.interrupts.reset();
        self.flights.forget();
        if self.flights.is_empty() {
            self.clear();
            return true;
        }
        self.registers.csts = status & !SHST | RDY;
        self.state = State::Stopping;
        self.resetting.store(true, Ordering::Relaxed);
        self.cancel_handled(u64::MAX);
        false
    }

    /// Forgets what a host saved, counted and did wrong, as no reset does: the next one is somebody else, and not to learn of it. The controller has just been reset.
    pub(crate) fn forget_host(&mut self) {
        self.saved = Features::new(&self.config);
        self.features = self.saved.clone();
        admin::features::restart(self);
        self.firmware = Firmware::new(&self.config);
        self.logs = Logs::default();
    }

    /// Has the back end or the handler give up the commands with a number below `mark`.
    pub(crate) fn cancel(&mut self, mark: u64) {
        let handled = self.cancel_handled(mark);
        let tags: Vec<u32> = self.flights.before(mark).collect();
        tracing::warn!(
            commands = handled + tags.len(),
            "commands hold memory that the host wants back, and are aborted"
        );
        self.backend.cancel(&tags);
    }

    /// The last way to get memory back: the back end forgets all commands, and the controller fails. A handler forgets none.
    pub(crate) fn abandon(&mut self, why: &str) {
        self.backend.reset();
        self.flights.forget();
        self.fatal(why);
    }
}
