//! NVMe on the wire, as NVM Express Base Specification 2.0 and NVM Command Set
//! Specification 1.0 define it, free of any operating system call.
//!
//! | module | what it holds |
//! |---|---|
//! | [`entry`] | [`Command`] (a 64-byte submission queue entry) and [`CompletionEntry`] (16 bytes) |
//! | [`command`] | constructors of admin and NVM commands, cheap enough for the I/O path |
//! | [`opcode`], [`status`], [`features`] | numbers that have names; an unknown number is a value too |
//! | [`prp`] | PRP1, PRP2 and chained PRP lists from a contiguous or scattered buffer |
//! | [`ring`] | the host's side of submission and completion queues: tail, head, phase, doorbells |
//! | [`slots`] | which command an identifier in a completion names |
//! | [`registers`] | where the controller's registers are and what their bits mean |
//! | [`identify`], [`log`] | the data structures a controller returns, with checked accessors |
//!
//! Everything a controller returns is treated as input: any byte pattern is a
//! valid value of the types here, an accessor bounds what it reads, and answers
//! `None` (or an unnamed value) where the specification leaves no meaning.
//!
//! # Units
//!
//! The specification counts many things from zero and in powers of two. Fields
//! keep the raw value under the specification's name; methods return counts
//! that start at one, bytes, or a [`Duration`](core::time::Duration), and say so.
//!
//! # Byte order
//!
//! NVMe is little-endian. Queue entries are stored in native integers so that
//! building one costs plain stores, hence the crate refuses to compile for
//! a big-endian host. Structures that a controller returns have alignment 1 and little-endian
//! field types, so they can be read in place from any byte slice.
#![deny(unsafe_code)]

pub mod command;
pub mod entry;
pub mod features;
pub mod identify;
pub mod log;
mod named;
pub mod opcode;
pub mod prp;
pub mod registers;
pub mod ring;
pub mod slots;
pub mod status;
mod sync;

pub use command::{BlockCount, QueueSize};
pub use entry::{Command, CompletionEntry};
pub use features::FeatureId;
pub use identify::{IdentifyController, IdentifyNamespace};
pub use opcode::{AdminOpcode, Direction, NvmOpcode};
pub use prp::{DataPointer, PageSize, PrpError, PrpListMemory};
pub use status::Status;
