//! The emulated controller as its users hold it.

mod turn;

pub use turn::Turn;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use nvme_vfio_dma::DomainLimits;

use crate::backend::Backend;
use crate::config::{Config, ConfigError};
use crate::controller::{self, Core, Statistics};
use crate::doorbells::Doorbells;
use crate::fault::{Fault, When};
use crate::handler::CommandHandler;
use crate::interrupts::{self, InterruptSink};
use crate::iommu::{DeviceMemory, SoftwareIommu};
use crate::script::FaultScript;
use crate::trace::{Trace, Tracer};

/// How often a thread finds nothing to do before it looks at doorbells that nothing correct rings.
const RESTS: u32 = 32;

/// The interrupt range of x86, which no IOMMU maps.
const HOLE: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// The domain of a controller that is alone in its group.
fn own_domain(config: &Config) -> SoftwareIommu {
    let last = u64::MAX >> (64 - u32::from(config.iova_bits));
    SoftwareIommu::new(DomainLimits {
        iova_ranges: vec![0..=HOLE.0 - 1, HOLE.1 + 1..=last],
        page_sizes: 0x4020_1000,
        mappings: Some(config.mappings),
    })
}

/// An NVMe controller in software.
///
/// Register accesses act at once. Commands are executed by [`Emulator::step`], from whichever thread calls it, or by the thread
/// that [`Emulator::spawn`] starts. Any method may be called from any thread.
#[derive(Debug)]
pub struct Emulator {
    config: Config,
    iommu: Arc<SoftwareIommu>,
    doorbells: Mutex<Arc<Doorbells>>,
    /// The thread that steps the controller and may be asleep.
    sleeper: Mutex<Option<Thread>>,
    core: Mutex<Core>,
    trace: Arc<Tracer>,
    /// How many callers want the lock for something other than a step; a stepping thread lets them in.
    visitors: Arc<AtomicUsize>,
    /// A function-level reset waits for commands that a handler has.
    resetting: Arc<AtomicBool>,
}

impl Emulator {
    /// Builds a controller, as after power-on: disabled, bus mastering off.
    ///
    /// # Errors
    /// What [`Config::check`] finds, or [`ConfigError::Memory`].
    pub fn new(config: Config) -> Result<Arc<Emulator>, ConfigError> {
        let core = Core::new(config.clone())?;
        let iommu = Arc::new(own_domain(&config));
        Ok(Emulator::assemble(config, core, iommu))
    }

    /// Builds a controller that does its DMA through a domain that is there already, as another function of the same group;
    /// `config.iova_bits` and `config.mappings` say nothing then.
    ///
    /// # Errors
    /// What [`Config::check`] finds, or [`ConfigError::Memory`].
    pub fn in_domain(
        config: Config,
        iommu: Arc<SoftwareIommu>,
    ) -> Result<Arc<Emulator>, ConfigError> {
        let core = Core::new(config.clone())?;
        Ok(Emulator::assemble(config, core, iommu))
    }

    /// Builds a controller in front of a back end of the caller's; `config.backend` says nothing then.
    ///
    /// # Errors
    /// What [`Config::check`] finds.
    pub fn with_backend(
        config: Config,
        backend: Box<dyn Backend>,
    ) -> Result<Arc<Emulator>, ConfigError> {
        let core = Core::with_backend(config.clone(), backend)?;
        let iommu = Arc::new(own_domain(&config));
        Ok(Emulator::assemble(config, core, iommu))
    }

    /// Builds a controller in front of a back end and behind a domain of the caller's; `config.backend`, `config.iova_bits` and
    /// `config.mappings` say nothing then.
    ///
    /// # Errors
    /// What [`Config::check`] finds, or [`ConfigError::Memory`].
    pub fn assembled(
        config: Config,
        backend: Box<dyn Backend>,
        iommu: Arc<SoftwareIommu>,
    ) -> Result<Arc<Emulator>, ConfigError> {
        let core = Core::with_backend(config.clone(), backend)?;
        Ok(Emulator::assemble(config, core, iommu))
    }

    /// Builds a controller whose commands go to a handler, behind a domain of the caller's; `config.backend`, `config.iova_bits` and `config.mappings` say nothing then.
    ///
    /// # Errors
    /// What [`Config::check`] finds, or [`ConfigError::Memory`].
    pub fn with_handler(
        config: Config,
        handler: Box<dyn CommandHandler>,
        iommu: Arc<SoftwareIommu>,
    ) -> Result<Arc<Emulator>, ConfigError> {
        let core = Core::with_handler(config.clone(), handler)?;
        Ok(Emulator::assemble(config, core, iommu))
    }

    fn assemble(config: Config, core: Core, iommu: Arc<SoftwareIommu>) -> Arc<Emulator> {
        Arc::new(Emulator {
            config,
            iommu,
            doorbells: Mutex::new(Arc::clone(&core.doorbells)),
            sleeper: Mutex::default(),
            trace: Arc::clone(&core.trace),
            visitors: Arc::clone(&core.visitors),
            resetting: Arc::clone(&core.resetting),
            core: Mutex::new(core),
        })
    }

    /// What was asked for.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The domain that the controller does its DMA through.
    #[must_use]
    pub fn iommu(&self) -> Arc<SoftwareIommu> {
        Arc::clone(&self.iommu)
    }

    /// The doorbells. The controller sees a new value at its next step, with all that was written to memory before, if it was stored
    /// with Release.
    #[must_use]
    pub fn doorbells(&self) -> Arc<Doorbells> {
        Arc::clone(
            &self
                .doorbells
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Gives the controller new doorbells, with the values of the old ones (0 while it is disabled), which nobody looks at any more: for when those who
    /// have mapped the old ones shall not ring any longer.
    ///
    /// # Errors
    /// What the system says when it does not give the memory; the old doorbells stay then.
    pub fn renew_doorbells(&self) -> io::Result<()> {
        // Made while nobody waits for the controller's lock.
        let new = Arc::new(Doorbells::new(self.config.doorbell_bytes())?);
        self.use_doorbells(new);
        Ok(())
    }

    /// Gives the controller these doorbells, as [`renew_doorbells`](Self::renew_doorbells) does.
    pub(crate) fn use_doorbells(&self, new: Arc<Doorbells>) {
        let old = self.visit().change_doorbells(Arc::clone(&new));
        *self
            .doorbells
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = new;
        // Let go of while nobody waits for the controller's lock.
        drop(old);
    }

    /// Bytes of BAR 0, a power of two: the registers up to 0x1000, then the doorbells, then nothing.
    #[must_use]
    pub fn bar0_size(&self) -> u64 {
        controller::bar0_size(&self.config)
    }

    /// Bytes of BAR 4, a power of two: the MSI-X table and the pending bits.
    #[must_use]
    pub fn bar4_size(&self) -> u64 {
        interrupts::bar_size(self.vectors())
    }

    /// Interrupt vectors (MSI-X). The admin queue has vector 0.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.visit().interrupts.vectors()
    }

    /// Sets what signals an interrupt vector, or nothing; false when there is no such vector. It is called after completion entries were posted
    /// to a queue of that vector, once per step and vector.
    pub fn connect_interrupt(&self, vector: u16, sink: Option<InterruptSink>) -> bool {
        self.visit().interrupts.connect(vector, sink)
    }

    /// Signals an interrupt vector as if a completion entry had been posted to a queue of it.
    pub(crate) fn trigger_interrupt(&self, vector: u16) {
        let mut core = self.visit();
        core.interrupts.raise(vector);
        core.interrupts.deliver();
    }

    /// The number that the next command gets which the back end or the handler takes.
    pub(crate) fn flight_mark(&self) -> u64 {
        self.visit().flights.mark()
    }

    /// Whether the back end or the handler still has a command with a number below `mark`, as far as anybody knows: of a controller that is broken nobody does.
    pub(crate) fn any_in_flight(&self, mark: u64) -> bool {
        let core = self.visit();
        core.broken || core.flights.any_before(mark)
    }

    /// Has the back end or the handler give up the commands with a number below `mark`.
    pub(crate) fn cancel(&self, mark: u64) {
        self.visit().cancel(mark);
    }

    /// Has the back end forget all commands, and the controller fail (CSTS.CFS). A handler forgets none.
    pub(crate) fn abandon(&self, why: &str) {
        self.visit().abandon(why);
    }

    /// Whether the controller fetches no commands for now. What the back end has is completed all the same.
    pub(crate) fn pause(&self, on: bool) {
        self.visit().paused = on;
    }

    /// Resets the function for the next host, whatever state its predecessor left it in, with the header of its configuration space; whether that is complete. One with a handler then
    /// begins as new.
    pub(crate) fn reset_for_next(&self) -> bool {
        let mut core = self.visit();
        let complete = core.function_reset();
        if complete {
            core.config_space = controller::config_space(&self.config);
            core.failures = 0;
            if core.handler.is_some() {
                core.forget_host();
            }
        }
        complete
    }

    /// Reads BAR 4; false, with nothing done, when the range is not all inside.
    #[must_use]
    pub fn msix_read(&self, offset: u64, into: &mut [u8]) -> bool {
        let core = self.visit();
        if core.unreachable() {
            into.fill(0xff);
            return true;
        }
        core.interrupts.read(offset, into)
    }

    /// Writes BAR 4; false, with nothing done, when the range is not all inside. The table is storage: whoever owns the vectors masks them.
    pub fn msix_write(&self, offset: u64, from: &[u8]) -> bool {
        let mut core = self.visit();
        core.unreachable() || core.interrupts.write(offset, from)
    }

    /// Whether the controller waits for a back end that wakes the thread which steps it.
    pub(crate) fn will_be_woken(&self) -> bool {
        let core = self.visit();
        core.backend.wakes() && !core.flights.is_empty()
    }

    /// Says which thread steps the controller from now on: it is unparked when something comes that it has not seen as memory, which is whatever goes through a method of this
    /// type: registers, and doorbells by message. A doorbell in memory that was mapped wakes nobody.
    pub fn stepped_by(&self, thread: &Thread) {
        *self.sleeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread.clone());
    }

    /// Wakes the thread that steps the controller. A doorbell in memory that was mapped cannot.
    fn wake(&self) {
        let sleeper = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*sleeper {
            thread.unpark();
        }
    }

    fn visit(&self) -> MutexGuard<'_, Core> {
        self.visitors.fetch_add(1, Ordering::Relaxed);
        let locked = self.core.lock();
        self.visitors.fetch_sub(1, Ordering::Relaxed);
        let broken = locked.is_err();
        let mut core = locked.unwrap_or_else(PoisonError::into_inner);
        core.broken |= broken;
        core.quiet = false;
        core
    }

    /// Whether a thread has panicked while it had the controller: what it was in the middle of is not known, and no proof that memory is free of accesses can be had of it any more. It takes no more
    /// [turns](Emulator::turn), no reset of it is complete, and to its host it is gone: its registers and its configuration space read all ones.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.core.is_poisoned()
    }

    /// Whether somebody waits for the controller's lock, or for the mappings'. The locks are not fair: whoever takes turns all the time lets them in.
    #[inline]
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.visitors.load(Ordering::Relaxed) > 0 || self.iommu.has_writers()
    }

    /// Reads 4 or 8 bytes of BAR 0. Misaligned offsets and other sizes read 0, as do doorbells; all ones when the controller
    /// is gone.
    #[must_use]
    pub fn register_read(&self, offset: u32, bytes: usize) -> u64 {
        let mut core = self.visit();
        let memory = self.memory(&core);
        core.read_register(offset, bytes, &memory)
    }

    /// Writes 4 or 8 bytes of BAR 0. Misaligned offsets and other sizes are ignored. An offset from 0x1000 on rings a
    /// doorbell.
    pub fn register_write(&self, offset: u32, bytes: usize, value: u64) {
        if let Some(doorbell) = offset.checked_sub(0x1000) {
            if bytes == 4
                && doorbell.is_multiple_of(4)
                && let Some(doorbell) = self.doorbells().get(doorbell as usize / 4)
            {
                doorbell.store(value as u32, Ordering::Release);
                self.wake();
            }
            return;
        }
        let mut core = self.visit();
        let memory = self.memory(&core);
        core.write_register(offset, bytes, value, &memory);
        core.interrupts.deliver();
        drop((memory, core));
        self.wake();
    }

    /// Reads configuration space; all ones past its 4096 bytes, or when the controller is gone.
    pub fn config_read(&self, offset: u64, into: &mut [u8]) {
        let core = self.visit();
        if core.unreachable() {
            into.fill(0xff);
        } else {
            core.config_space.read(offset, into);
        }
    }

    /// Writes configuration space; only bits that can be written change. Initiate Function Level Reset is [`Emulator::reset`].
    pub fn config_write(&self, offset: u64, from: &[u8]) {
        self.visit().write_config_space(offset, from);
    }

    /// A function-level reset: whatever is under way ends at once, CC and CSTS are 0, bus mastering is off, AQA, ASQ and ACQ are 0. When it returns, no memory is touched for
    /// an earlier command any more; only commands that a [`CommandHandler`] has are still waited for, for as long as [`Emulator::is_resetting`] says.
    pub fn reset(&self) {
        self.visit().function_reset();
    }

    /// Whether a function-level reset waits for commands that a handler has.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.resetting.load(Ordering::Acquire)
    }

    /// Does what is pending: doorbells, commands, completions. How many completions were posted.
    pub fn step(&self) -> usize {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.memory(&core);
        core.step(&memory)
    }

    /// Steps until nothing was pending for `patience` steps in a row, or somebody else wants in; how many completions were posted.
    /// It costs less than [`Emulator::step`], since the locks are taken once, and head doorbells are looked at only where room runs short.
    pub fn work(&self, patience: u32) -> u64 {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.memory(&core);
        memory.set_hints(core.hints);
        let before = core.statistics.completions;
        let (mut idle, mut quiet) = (0, false);
        // Bounded, so that a controller that never rests is asked now and then whether it shall end.
        for _ in 0..1 << 16 {
            if idle == patience {
                break;
            }
            let posted = if quiet {
                let (posted, still) = core.look(&memory);
                quiet = still;
                posted
            } else {
                let posted = core.advance(&memory);
                quiet = core.watch();
                posted
            };
            if posted > 0 {
                idle = 0;
            } else {
                idle += 1;
                std::hint::spin_loop();
            }
            if self.is_wanted() {
                break;
            }
        }
        core.hints = memory.hints();
        core.rests += u32::from(idle == patience);
        if core.rests >= RESTS && core.running() && !core.gone() {
            core.rests = 0;
            core.find_stray_doorbells();
        }
        core.statistics.completions - before
    }

    /// Tells the host that what it sees of a namespace has changed: by the log of changed namespaces, and by an event if it asked for those. For a
    /// [`CommandHandler`] that changes what its `identify` says.
    pub fn tell_namespace_changed(&self, nsid: u32) {
        self.visit().namespace_changed(nsid);
        self.wake();
    }

    /// Tells the host that these bits of Critical Warning have come to be set, by an event for those that it asked to be told of. For a [`CommandHandler`] whose `log` says so.
    pub fn tell_critical_warnings(&self, warnings: u8) {
        self.visit().warnings_came(warnings);
        self.wake();
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.inject_when(When::Now, fault);
    }

    /// Arms a fault when its time comes.
    pub fn inject_when(&self, when: When, fault: Fault) {
        self.visit().inject_when(when, fault);
    }

    /// Arms all faults of a script. The steps and commands after which some are armed are counted from now.
    pub fn play(&self, script: &FaultScript) {
        let mut core = self.visit();
        let (steps, commands) = (core.statistics.steps, core.statistics.commands);
        for (when, fault) in script.faults() {
            let when = match *when {
                When::Now => When::Now,
                When::Step(step) => When::Step(steps.saturating_add(step)),
                When::Commands(count) => When::Commands(commands.saturating_add(count)),
            };
            core.inject_when(when, fault.clone());
        }
    }

    /// Disarms all faults, those too that wait for their time. Commands that hang already go on hanging until [`Emulator::release`].
    pub fn clear_faults(&self) {
        self.visit().clear_faults();
    }

    /// Lets all commands go that hang: they run in the next step, their data moves then. How many there were.
    pub fn release(&self) -> usize {
        self.visit().release(|_, _| true)
    }

    /// Lets one command go that hangs; whether it was found.
    pub fn release_command(&self, sqid: u16, cid: u16) -> bool {
        self.visit()
            .release(|queue, entry| queue == sqid && entry.cid() == cid)
            > 0
    }

    /// Writes down from now on what the controller does; at most `capacity` records are kept for the reader. `None` while another
    /// trace is being read. Commands take a longer way meanwhile.
    #[must_use]
    pub fn trace(&self, capacity: usize) -> Option<Trace> {
        let mut core = self.visit();
        let trace = Trace::start(&self.trace, capacity);
        self.trace.at_step(core.statistics.steps);
        core.look_for_interposers();
        trace
    }

    /// Whether latencies are in the time of the clock, as for a controller that a thread runs, or in that of the steps, as they are at the beginning. For whoever calls
    /// [`Emulator::work`] all the time.
    pub fn tell_time(&self, real: bool) {
        self.visit().tell_time(real);
    }

    /// How long an idle controller can be left alone, at most `longest`.
    pub(crate) fn rest(&self, longest: Duration) -> Duration {
        let core = self.visit();
        if core.backend.is_working() {
            return Duration::ZERO;
        }
        match core.next_due() {
            Some(nanoseconds) => longest.min(Duration::from_nanos(nanoseconds)),
            None => longest,
        }
    }

    /// The memory that the controller reaches, for one step or register access.
    fn memory(&self, core: &Core) -> DeviceMemory<'_> {
        self.iommu
            .memory(core.config_space.bus_master(), self.trace.when_on())
    }

    /// The same, unless the mappings are being changed.
    fn try_memory(&self, core: &Core) -> Option<DeviceMemory<'_>> {
        self.iommu
            .try_memory(core.config_space.bus_master(), self.trace.when_on())
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.visit().statistics()
    }
}
