//! An NVMe 2.0 controller in software, in this process or served to another.
//!
//! It is what the driver runs on where there is no SSD, no root and no IOMMU, and what its tests run on everywhere: it can be stepped, so
//! that a run repeats exactly; its IOMMU reports every access outside a live mapping; and it does wrong what it is told to
//! do wrong.
//!
//! - [`Emulator`]: the controller: registers, doorbells, configuration space, [`step`](Emulator::step) or
//!   [`spawn`](Emulator::spawn).
//! - [`Config`]: what to build, also as the text `size=1G,lba=4096,...`.
//! - [`SoftwareIommu`]: the domain behind the controller, with its [`IommuFault`]s.
//! - [`Backend`]: the seam to what executes commands; [`MemoryBackend`] and [`FileBackend`] keep data, [`NullBackend`] moves none.
//! - [`CommandHandler`]: the seam to whoever carries out commands from their 64 bytes on, in the front end's place.
//! - [`ServedController`]: the controller as a device for a vfio-user server, with interrupts by eventfd and doorbells that a client maps.
//! - [`Fault`]: what goes wrong on demand.
//!
//! ```
//! use nvme_vfio_emulator::Emulator;
//!
//! let emulator = Emulator::new("size=64M,lba=4096".parse()?)?;
//! assert_eq!(emulator.register_read(0x08, 4), 0x0002_0000); // VS: version 2.0
//! assert_eq!(emulator.register_read(0x1c, 4) & 1, 0); // CSTS.RDY
//! # Ok::<(), nvme_vfio_emulator::ConfigError>(())
//! ```
//!
//! # How it judges
//! The controller reads the 64 raw bytes of a command with code of its own and does literally what they say. It shares no decoder with the
//! crates that build commands or judge them, so that one misread field cannot hide in both. What it does not implement answers
//! Invalid Command Opcode, and is counted.
//!
//! # Threads
//! One lock holds the controller's state. Register accesses take it and act at once; a step takes it for all that is pending. Doorbells are plain
//! shared memory, as on real hardware: a write is seen at the next step. While a step runs, nothing can be unmapped from
//! the software IOMMU, so an `unmap` that returned proves that no copy is under way. A polling thread ([`Emulator::work`]) keeps the locks from step to
//! step and gives them up as soon as anybody waits for one; while the controller waits for nothing but doorbells, it looks at nothing else.
//!
//! A mapping of a client is taken away in two steps: first every new access is refused ([`SoftwareIommu::begin_unmap`]), then the commands that
//! were in flight are waited for, aborted or, at last, given up with the controller ([`Patience`]); only then it is unmapped.
//!
//! # Memory
//! Host memory is touched in one module only, by raw copies bounded by the mapping. A completion entry's last dword is stored with Release after
//! its data and its other dwords; doorbells are read with Acquire.

mod admin;
mod backend;
mod command;
mod config;
mod config_space;
mod controller;
mod doorbells;
mod emulator;
mod execute;
mod fault;
mod flight;
mod handled;
mod handler;
mod interpose;
mod interrupts;
mod io;
mod iommu;
mod latency;
mod life;
mod lines;
mod memory;
mod namespaces;
mod prp;
mod queue;
mod quick;
mod random;
mod registers;
mod rung;
mod script;
mod serve;
mod thread;
mod trace;
mod watch;

pub use backend::{
    Backend, BackendCompletion, FileBackend, Immediate, MemoryBackend, NullBackend, Operation,
    Outcome, Request,
};
pub use config::{
    BackendKind, CommandLimits, Config, ConfigError, LbaFormats, Names, NamespaceConfig,
    NamespaceNames, Offers,
};
pub use controller::Statistics;
pub use doorbells::Doorbells;
pub use emulator::{Emulator, Turn};
pub use fault::{
    CommandFault, ControllerFault, Fault, Matcher, MediaFault, MediaOperation, MediaUntil, OnAbort,
    QueueKind, Until, When,
};
pub use handler::{CommandHandler, FetchedCommand, HandlerCompletion, Handling};
pub use interrupts::InterruptSink;
pub use iommu::{
    DeviceMemory, DmaOrigin, DmaRefused, FaultReason, FaultingCommand, IommuFault, RegionHandle,
    Segment, SoftwareIommu,
};
pub use latency::{Latencies, Latency};
pub use script::{FaultScript, ScriptError};
pub use serve::{Lender, Patience, ServedController, served_domain};
pub use thread::{EmulatorThread, ThreadOptions};
pub use trace::{DmaDirection, Trace, TraceEvent, TracePurpose, TraceRecord, TraceWriter};
