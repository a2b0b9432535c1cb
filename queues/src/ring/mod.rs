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

pub use completion::{CompletionRing, RawEntry};
pub use doorbell::{Doorbell, DoorbellMessage};
pub use memory::{CompletionMemory, Place, RingMemoryError, SubmissionMemory};
pub use submission::SubmissionRing;

/// How the last dword of a completion entry is loaded: what is read after it was written before it.
pub const LAST_DWORD: Ordering = Ordering::Acquire;

/// A ring of entries, walked by a cursor, which is always a place inside it.
#[allow(unsafe_code)] // declares what the rings answer for
pub trait Entries {
    /// A place in the ring.
    type Cursor: Copy + PartialEq;

    /// How many entries there are: always the same number, at least two.
    fn entries(&self) -> u32;

    /// The place of the first entry.
    fn first(&self) -> Self::Cursor;

    /// The place after `cursor`; `None` after the last.
    ///
    /// # Safety
    /// `cursor` is [`first`](Entries::first) of this ring, or came of it by `next`.
    unsafe fn next(&self, cursor: Self::Cursor) -> Option<Self::Cursor>;

    /// The index of the entry at `cursor`: what a doorbell is told.
    fn index(&self, cursor: Self::Cursor) -> u32;
}

/// The entries of a submission queue.
#[allow(unsafe_code)] // declares what the rings answer for
pub trait SubmissionEntries: Entries {
    /// Writes the entry at `cursor` with plain stores; the doorbell orders them.
    ///
    /// # Safety
    /// `cursor` is [`first`](Entries::first) of this ring, or came of it by [`next`](Entries::next).
    unsafe fn store(&mut self, cursor: Self::Cursor, command: &Command);
}

/// The entries of a completion queue.
#[allow(unsafe_code)] // declares what the rings answer for
pub trait CompletionEntries: Entries {
    /// Loads the last dword of the entry at `cursor` (identifier, phase tag, status) with [`LAST_DWORD`].
    ///
    /// # Safety
    /// `cursor` is [`first`](Entries::first) of this ring, or came of it by [`next`](Entries::next).
    unsafe fn load_last(&self, cursor: Self::Cursor) -> u32;

    /// Loads the first two dwords and the third, relaxed.
    ///
    /// # Safety
    /// As for [`load_last`](Self::load_last).
    unsafe fn load_rest(&self, cursor: Self::Cursor) -> (u64, u32);

    /// Zeroes every entry.
    fn clear(&self);
}

/// A doorbell register.
pub trait DoorbellWrite {
    /// Writes `value`, relaxed; the ring has put the fence before it that is needed.
    fn write(&self, value: u32);
}
