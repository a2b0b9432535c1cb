//! Memory that the device may still write.
#![allow(unsafe_code)] // declares the one promise on which memory comes back; nothing unsafe is done here

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::shared::SharedMemory;

/// What has shown that a device is done with memory. Nothing else does: not a timeout, and not the answer to an Abort (data has been seen to land after
/// one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LetGo {
    /// The completion entry of the command that used it came.
    Completed,
    /// The submission queue of the commands that used it was deleted with success.
    QueueDeleted,
    /// CSTS.RDY was read as 0 after CC.EN was set to 0.
    Disabled,
    /// The function was reset, or is gone from the bus.
    Reset,
}

/// The statement that a device has let go of memory, at the moment that it is made: it says nothing of commands submitted later.
#[derive(Debug, PartialEq, Eq)]
pub struct Proof(LetGo);

impl Proof {
    /// States it.
    ///
    /// # Safety
    /// The event happened, at the device that used the memory which this proof will release, after the last command that uses the memory was submitted.
    #[must_use]
    pub const unsafe fn new(event: LetGo) -> Self {
        Self(event)
    }

    /// What happened.
    #[must_use]
    pub const fn event(&self) -> LetGo {
        self.0
    }
}

/// What a quarantine holds.
#[derive(Debug)]
pub enum Held {
    /// Data of a command.
    Buffer(Buffer),
    /// A ring or a PRP list.
    Shared(SharedMemory),
    /// The same, where others have it too: it is let go by the last of them.
    SharedWith(Arc<SharedMemory>),
}

impl Held {
    fn len(&self) -> usize {
        match self {
            Self::Buffer(buffer) => buffer.len(),
            Self::Shared(memory) => memory.len(),
            Self::SharedWith(memory) => memory.len(),
        }
    }
}

impl From<Buffer> for Held {
    fn from(buffer: Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl From<SharedMemory> for Held {
    fn from(memory: SharedMemory) -> Self {
        Self::Shared(memory)
    }
}

impl From<Arc<SharedMemory>> for Held {
    fn from(memory: Arc<SharedMemory>) -> Self {
        Self::SharedWith(memory)
    }
}

/// Keeps memory mapped and out of use until there is [`Proof`] that its device has let go.
///
/// Each thing is held under a number, such as the identifier of the command that used it.
///
/// A quarantine that is dropped **leaks** what it holds: for a program that ends or a controller that is given up, lost memory is better than memory
/// that changes under its next owner. [`AddressSpace::leaked_bytes`](crate::AddressSpace::leaked_bytes) counts it. A leak does not keep the domain alive.
#[derive(Debug, Default)]
pub struct Quarantine {
    held: Vec<(u64, Held)>,
}

impl Quarantine {
    /// One that holds nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { held: Vec::new() }
    }

    /// Takes something in. Several may share a number.
    pub fn hold(&mut self, number: u64, what: impl Into<Held>) {
        self.held.push((number, what.into()));
    }

    /// How many things it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held.iter().map(|(_, held)| held.len()).sum()
    }

    /// Lets everything go: buffers to the caller, in the order in which they came, and shared memory to the system.
    #[must_use = "buffers that are not kept go back to their pool"]
    pub fn release(&mut self, proof: Proof) -> Vec<Buffer> {
        tracing::debug!(event = ?proof.0, things = self.len(), "quarantine released");
        std::mem::take(&mut self.held)
            .into_iter()
            .filter_map(|(_, held)| freed(held))
            .collect()
    }

    /// Lets go what is held under one number, when the proof is about no more than that: a late completion.
    #[must_use = "buffers that are not kept go back to their pool"]
    pub fn release_one(&mut self, number: u64, proof: Proof) -> Vec<Buffer> {
        tracing::debug!(event = ?proof.0, number, "quarantine released in part");
        self.held
            .extract_if(.., |(held_under, _)| *held_under == number)
            .filter_map(|(_, held)| freed(held))
            .collect()
    }
}

fn freed(held: Held) -> Option<Buffer> {
    match held {
        Held::Buffer(buffer) => Some(buffer),
        Held::Shared(_) | Held::SharedWith(_) => None,
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        if !self.is_empty() {
            tracing::warn!(
                things = self.len(),
                bytes = self.bytes(),
                "a quarantine ends without proof; its memory is leaked"
            );
        }
        for (_, held) in self.held.drain(..) {
            match held {
                Held::Buffer(buffer) => buffer.leak(),
                Held::Shared(memory) => memory.leak(),
                // The count that is never taken back keeps it.
                Held::SharedWith(memory) => std::mem::forget(memory),
            }
        }
    }
}
