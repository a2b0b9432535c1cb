//! The controller's state, its registers, and what is asked of it from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::admin::events::Events;
use crate::admin::features::Features;
use crate::admin::firmware::Firmware;
use crate::admin::format::Deferred;
use crate::admin::log::Logs;
use crate::admin::shadow::Shadow;
use crate::backend::{
    Backend, BackendCompletion, FileBackend, Immediate, MemoryBackend, NullBackend, Request,
};
use crate::command::Entry;
use crate::config::{BackendKind, Config, ConfigError};
use crate::config_space::{Asked, ConfigSpace};
use crate::doorbells::Doorbells;
use crate::fault::{ControllerFault, Fault, Faults};
use crate::flight::{Flights, Held};
use crate::handler::{CommandHandler, HandlerCompletion};
use crate::interpose::Bends;
use crate::interrupts::{self, Interrupts};
use crate::io::Job;
use crate::iommu::{DeviceMemory, Segment};
use crate::latency::Clock;
use crate::namespaces::Namespaces;
use crate::prp::Extent;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::random::Random;
use crate::registers::{CFS, Effect, Registers, SHST};
use crate::trace::{TraceEvent, Tracer};
use crate::watch::Watch;

/// Submission entries fetched at once.
pub(crate) const BATCH: usize = 16;

/// Where the controller is between disabled and ready. CSTS says what the host may know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Disabled,
    /// CC.EN is 1, and a fault keeps CSTS.RDY at 0.
    Starting,
    Ready,
    /// CC.EN is 0, and CSTS.RDY stays 1 until the back end has let go of all memory.
    Stopping,
    /// CC.EN is 0, and a fault keeps CSTS.RDY at 1.
    Stuck,
}

/// What the controller has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Calls of [`Emulator::step`](crate::Emulator::step).
    pub steps: u64,
    /// Submission entries fetched.
    pub commands: u64,
    /// Completion entries posted.
    pub completions: u64,
    /// Commands that are not implemented and were answered with Invalid Command Opcode.
    pub unsupported_commands: u64,
    /// Doorbell values or doorbells that were invalid.
    pub invalid_doorbells: u64,
    /// Commands that an injected fault befell.
    pub faulted_commands: u64,
    /// Commands that hang or are delayed now.
    pub held_commands: usize,
}

/// Buffers that are kept from step to step, so that none is allocated per command.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) entries: Vec<[u64; 8]>,
    pub(crate) requests: Vec<Request>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) extents: Vec<Extent>,
    pub(crate) completions: Vec<BackendCompletion>,
    pub(crate) handled: Vec<HandlerCompletion>,
    pub(crate) quick: Option<Box<[Immediate; BATCH]>>,
}

/// Everything behind the controller's lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) registers: Registers,
    pub(crate) config_space: ConfigSpace,
    pub(crate) state: State,
    pub(crate) doorbells: Arc<Doorbells>,
    pub(crate) interrupts: Interrupts,
    /// By identifier; 0 is the admin queue.
    pub(crate) submission: Vec<Option<SubmissionQueue>>,
    pub(crate) completion: Vec<Option<CompletionQueue>>,
    /// Identifiers of the I/O submission queues that exist.
    pub(crate) active: Vec<u16>,
    /// The doorbells that a quiet controller looks at.
    pub(crate) watches: Vec<Watch>,
    /// The active queue that is served first in the next step.
    pub(crate) turn: usize,
    pub(crate) namespaces: Namespaces,
    pub(crate) features: Features,
    /// The values that a reset brings back.
    pub(crate) saved: Features,
    pub(crate) firmware: Firmware,
    /// Doorbells in the host's memory, where it set them up.
    pub(crate) shadow: Option<Box<Shadow>>,
    /// Formats and deletions that wait for commands in flight.
    pub(crate) deferred: Vec<Deferred>,
    pub(crate) events: Events,
    pub(crate) logs: Logs,
    pub(crate) backend: Box<dyn Backend>,
    /// What [`Backend::is_immediate`] says.
    pub(crate) immediate: bool,
    /// Who carries out commands instead of the back end.
    pub(crate) handler: Option<Box<dyn CommandHandler>>,
    /// The handler got commands, and was not told yet that there are no more for now.
    pub(crate) handed: bool,
    /// How many more entries may be fetched in this turn, where there is a handler.
    pub(crate) budget: u32,
    /// Those of them that may be of the admin queue.
    pub(crate) admin_budget: u32,
    /// A function-level reset waits for the handler to end its commands.
    pub(crate) resetting: Arc<AtomicBool>,
    /// Whether this step looks at every doorbell of a queue that it serves.
    pub(crate) thorough: bool,
    /// Where the thread's last accesses to memory were.
    pub(crate) hints: [u32; 4],
    /// Nothing but the watched doorbells can bring work; whoever takes the lock for anything but a turn ends that.
    pub(crate) quiet: bool,
    /// How often a thread found nothing to do since it last looked at all doorbells.
    pub(crate) rests: u32,
    /// Nothing new is fetched: the host is gone, and what it left in flight is waited for.
    pub(crate) paused: bool,
    /// How often it failed while it had this host.
    pub(crate) failures: u32,
    /// A thread has panicked while it had the controller: nothing here is to be believed. Known to whoever [visits](crate::Emulator).
    pub(crate) broken: bool,
    /// How many wait for the controller's lock.
    pub(crate) visitors: Arc<AtomicUsize>,
    pub(crate) flights: Flights,
    /// What is left of commands that work range by range, by the tag of the range that is with the back end.
    pub(crate) jobs: BTreeMap<u32, Job>,
    /// The block that a command failed at, when that is not the first it names; for the error log.
    pub(crate) failed_lba: Option<u64>,
    pub(crate) held: Vec<Held>,
    /// Delete I/O Submission Queue commands that wait for the queue's last command: their identifiers and the queue's.
    pub(crate) deletions: Vec<(u16, u16)>,
    pub(crate) faults: Faults,
    pub(crate) bends: Bends,
    pub(crate) trace: Arc<Tracer>,
    /// What latencies are drawn from, and the time by which they pass.
    pub(crate) random: Random,
    pub(crate) clock: Clock,
    /// Whether anything comes between the queues and single commands: the only question that the hot path asks.
    pub(crate) interposed: bool,
    pub(crate) junk: Option<Vec<u8>>,
    pub(crate) scratch: Scratch,
    pub(crate) statistics: Statistics,
}

/// Interrupt vectors: as many as asked for, else one for the admin queue and one for each pair, as far as MSI-X has them.
pub(crate) fn vectors(config: &Config) -> u16 {
    match config.vectors {
        0 => config.queues.saturating_add(1).min(interrupts::VECTORS_MAX),
        vectors => vectors,
    }
}

/// Bytes of BAR 0: the registers, the doorbells, and what makes it a power of two.
pub(crate) fn bar0_size(config: &Config) -> u64 {
    (0x1000 + config.doorbell_bytes()).next_power_of_two()
}

/// Configuration space as it is when the power comes.
pub(crate) fn config_space(config: &Config) -> ConfigSpace {
    let vectors = vectors(config);
    ConfigSpace::new(
        bar0_size(config),
        interrupts::bar_size(vectors),
        vectors,
        interrupts::pending_offset(vectors),
    )
}

impl Core {
    pub(crate) fn new(config: Config) -> Result<Core, ConfigError> {
        config.check()?;
        let backend: Box<dyn Backend> = match &config.backend {
            BackendKind::Null => Box::new(NullBackend::default()),
            BackendKind::Memory => Box::new(MemoryBackend::default()),
            BackendKind::File(path) => {
                Box::new(
                    FileBackend::new(path).map_err(|source| ConfigError::Medium {
                        namespace: 1,
                        bytes: 0,
                        source,
                    })?,
                )
            }
        };
        Core::with_backend(config, backend)
    }

    pub(crate) fn with_backend(
        config: Config,
        mut backend: Box<dyn Backend>,
    ) -> Result<Core, ConfigError> {
        config.check()?;
        for namespace in &config.namespaces {
            let opened = backend.open(namespace.nsid, namespace.size);
            opened.map_err(|source| ConfigError::Medium {
                namespace: namespace.nsid,
                bytes: namespace.size,
                source,
            })?;
        }
        let bytes = config.doorbell_bytes();
        let queues = usize::from(config.queues) + 1;
        let vectors = vectors(&config);
        let doorbells =
            Doorbells::new(bytes).map_err(|source| ConfigError::Memory { bytes, source })?;
        Ok(Core {
            registers: Registers::new(&config),
            config_space: config_space(&config),
            state: State::Disabled,
            doorbells: Arc::new(doorbells),
            interrupts: Interrupts::new(vectors),
            submission: (0..queues).map(|_| None).collect(),
            completion: (0..queues).map(|_| None).collect(),
            active: Vec::new(),
            watches: Vec::new(),
            turn: 0,
            namespaces: Namespaces::new(&config),
            features: Features::new(&config),
            saved: Features::new(&config),
            firmware: Firmware::new(&config),
            shadow: None,
            deferred: Vec::new(),
            events: Events::default(),
            logs: Logs::default(),
            immediate: backend.is_immediate(),
            handler: None,
            handed: false,
            budget: u32::MAX,
            admin_budget: u32::MAX,
            resetting: Arc::default(),
            thorough: false,
            hints: [0; 4],
            quiet: false,
            rests: 0,
            paused: false,
            failures: 0,
            broken: false,
            visitors: Arc::default(),
            backend,
            flights: Flights::default(),
            jobs: BTreeMap::new(),
            failed_lba: None,
            held: Vec::new(),
            deletions: Vec::new(),
            faults: Faults::default(),
            bends: Bends::default(),
            trace: Arc::default(),
            random: Random::new(config.latency.seed),
            clock: Clock::new(config.latency.step),
            interposed: !config.latency.none(),
            junk: None,
            scratch: Scratch {
                entries: vec![[0; 8]; BATCH],
                ..Scratch::default()
            },
            statistics: Statistics::default(),
            config,
        })
    }

    /// A controller whose commands go to a handler.
    pub(crate) fn with_handler(
        config: Config,
        handler: Box<dyn CommandHandler>,
    ) -> Result<Core, ConfigError> {
        let mut core = Core::with_backend(config, Box::new(NullBackend::default()))?;
        core.immediate = false;
        core.handler = Some(handler);
        Ok(core)
    }

    /// Bytes of a memory page as CC.MPS sets it.
    pub(crate) fn page(&self) -> u64 {
        4096 << self.registers.cc.mps()
    }

    pub(crate) fn gone(&self) -> bool {
        self.faults.armed(ControllerFault::Gone)
    }

    /// Whether registers and configuration space read all ones.
    pub(crate) fn unreachable(&self) -> bool {
        self.broken || self.gone() || self.faults.armed(ControllerFault::AllOnes)
    }

    /// Whether nothing of the host's is in use: CC.EN is 0, and CSTS.RDY too.
    pub(crate) fn is_disabled(&self) -> bool {
        self.state == State::Disabled && !self.registers.cc.enabled()
    }

    /// Whether somebody waits for the controller's lock or the mappings', and cannot wait until all that was submitted has been done: that is as long as
    /// the host likes.
    #[inline]
    pub(crate) fn is_wanted(&self, memory: &DeviceMemory<'_>) -> bool {
        // Relaxed: whoever waits goes on waiting until it is seen.
        self.visitors.load(Ordering::Relaxed) > 0 || memory.has_writers()
    }

    /// Whether commands are processed.
    pub(crate) fn running(&self) -> bool {
        self.state == State::Ready && self.registers.csts & (CFS | SHST) == 0
    }

    /// The doorbell of a queue: its submission tail or completion head.
    #[inline]
    pub(crate) fn doorbell(&self, qid: u16, completion: bool) -> Option<&AtomicU32> {
        self.doorbells.get(self.doorbell_place(qid, completion))
    }

    /// The place of a queue's doorbell among the doorbells.
    #[inline]
    pub(crate) fn doorbell_place(&self, qid: u16, completion: bool) -> usize {
        (2 * usize::from(qid) + usize::from(completion)) << self.config.dstrd
    }

    /// A new queue starts with its doorbell at 0, whatever was written there before.
    pub(crate) fn clear_doorbell(&self, qid: u16, completion: bool) {
        if let Some(doorbell) = self.doorbell(qid, completion) {
            doorbell.store(0, Ordering::Relaxed);
        }
    }

    /// The controller cannot go on: CSTS.CFS, until it is disabled.
    pub(crate) fn fatal(&mut self, why: &str) {
        /// How many are logged: a host can cause as many as it likes.
        const LOGGED: u32 = 64;
        self.failures = self.failures.saturating_add(1);
        if self.failures <= LOGGED {
            tracing::error!(why, "fatal status");
        }
        self.trace.record(|| TraceEvent::Fatal { why: why.into() });
        self.registers.csts |= CFS;
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.trace.record(|| TraceEvent::FaultArmed {
            fault: format!("{fault:?}"),
        });
        if matches!(fault, Fault::Controller(ControllerFault::Fatal, _)) {
            // It is an event, not a state: disabling the controller ends it.
            self.fatal("injected");
        } else {
            self.faults.inject(fault);
        }
        self.bend_hardware();
    }

    /// Tells registers and interrupts what faults make of them.
    pub(crate) fn bend_hardware(&mut self) {
        self.registers.bend_cap(self.faults.cap());
        self.interrupts.lost = self.faults.armed(ControllerFault::LostInterrupts);
    }

    /// Disarms all faults.
    pub(crate) fn clear_faults(&mut self) {
        self.faults.clear();
        self.bend_hardware();
        self.look_for_interposers();
    }

    pub(crate) fn read_register(
        &mut self,
        offset: u32,
        bytes: usize,
        memory: &DeviceMemory<'_>,
    ) -> u64 {
        if self.unreachable() {
            return if bytes == 8 {
                u64::MAX
            } else {
                u64::from(u32::MAX)
            };
        }
        if self.state == State::Stopping {
            self.finish_stopping(memory);
        }
        self.registers.read(offset, bytes)
    }

    pub(crate) fn write_register(
        &mut self,
        offset: u32,
        bytes: usize,
        value: u64,
        memory: &DeviceMemory<'_>,
    ) {
        if self.unreachable() {
            return;
        }
        self.trace.record(|| TraceEvent::RegisterWrite {
            offset,
            bytes,
            value,
        });
        match self.registers.write(offset, bytes, value) {
            Effect::Nothing => {}
            Effect::Configuration { before, now } => self.configure(before, now, memory),
        }
    }

    pub(crate) fn write_config_space(&mut self, offset: u64, from: &[u8]) {
        if self.unreachable() {
            return;
        }
        self.trace.record(|| TraceEvent::ConfigWrite {
            offset,
            data: from.to_vec(),
        });
        match self.config_space.write(offset, from) {
            Asked::Nothing => {}
            Asked::FunctionReset => {
                self.function_reset();
            }
        }
    }

    /// Goes over to doorbells that nobody else has mapped, with the values of the old ones unless the controller is disabled: what was written to these since
    /// then rang nothing. The old ones.
    pub(crate) fn change_doorbells(&mut self, new: Arc<Doorbells>) -> Arc<Doorbells> {
        if !self.is_disabled() {
            for (new, old) in new.iter().zip(self.doorbells.iter()) {
                new.store(old.load(Ordering::Acquire), Ordering::Relaxed);
            }
        }
        std::mem::replace(&mut self.doorbells, new)
    }

    pub(crate) fn submission(&mut self, sqid: u16) -> Option<&mut SubmissionQueue> {
        self.submission.get_mut(usize::from(sqid))?.as_mut()
    }

    pub(crate) fn completion(&mut self, cqid: u16) -> Option<&mut CompletionQueue> {
        self.completion.get_mut(usize::from(cqid))?.as_mut()
    }

    pub(crate) fn statistics(&self) -> Statistics {
        Statistics {
            faulted_commands: self.faults.fired(),
            held_commands: self.held.len(),
            ..self.statistics
        }
    }

    /// Lets the commands go that hang and that `which` names.
    pub(crate) fn release(&mut self, which: impl Fn(u16, &Entry) -> bool) -> usize {
        let mut released = 0;
        for held in &mut self.held {
            if held.due.is_none() && which(held.sqid, &held.entry) {
                held.due = Some(0);
                released += 1;
            }
        }
        released
    }
}
