//! The two rings of a queue pair, as the host side of them (NVMe base 2.0, section 3.3.1).
//!
//! A [`SubmissionRing`] writes entries and tells the controller its tail; a [`CompletionRing`] sees new entries by their
//! phase tag and tells the controller its head. Both ring their doorbell only when told to, so that one write serves a
//! whole batch. Neither knows what a command means, nor who waits for it: that is [`SlotTable`](crate::slots::SlotTable)'s.
//!
//! Neither ring is ever overrun, by construction: a queue of *n* entries is used with at most *n* − 1 commands in flight
//! (the slot table's capacity), so an entry that is about to be written has been consumed, and the controller
//! always has room for a completion whose head doorbell is not delayed for ever. The submission queue head that completion
//! entries carry is therefore not needed, and a wrong one cannot hurt.
//!
//! # Memory ordering
//! An entry is written with plain stores, then a release fence, then the doorbell: the device (or a thread that plays the
//! device and loads the doorbell with acquire) sees the whole entry when it sees the tail. In the other direction the
//! last dword of a completion entry, which holds the phase tag, is loaded with acquire, and the rest of the entry
//! and the data that the command moved are read after it. `tests/loom.rs` checks both under every interleaving.

use crate::entry::Command;
use crate::sync::Ordering;

mod completion;
mod doorbell;
mod memory;
mod submission;
#[cfg(all(test, not(loom)))] // the fences are the model checker's there
mod tests;

pub use completion::CompletionRing;
pub use doorbell::{Doorbell, DoorbellMessage};
pub use memory::{CompletionMemory, RingMemoryError, SubmissionMemory};
pub use submission::SubmissionRing;

/// How the last dword of a completion entry is loaded: what is read after it was written before it.
pub const LAST_DWORD: Ordering = Ordering::Acquire;

/// The entries of a submission queue.
pub trait SubmissionEntries {
    /// How many there are.
    fn entries(&self) -> u32;
    /// Writes entry `index` with plain stores; the doorbell orders them.
    fn store(&mut self, index: u32, command: &Command);
}

/// The entries of a completion queue.
pub trait CompletionEntries {
    /// How many there are.
    fn entries(&self) -> u32;
    /// Loads the last dword of entry `index` (identifier, phase tag, status) with [`LAST_DWORD`].
    fn load_last(&self, index: u32) -> u32;
    /// Loads the first two dwords and the third, relaxed.
    fn load_rest(&self, index: u32) -> (u64, u32);
    /// Zeroes every entry.
    fn clear(&self);
}

/// A doorbell register.
pub trait DoorbellWrite {
    /// Writes `value`, relaxed; the ring has put the fence before it that is needed.
    fn write(&self, value: u32);
}
