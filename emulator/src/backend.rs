//! The seam to what executes commands: batched, asynchronous.
//!
//! The front end checks a command, translates its memory and hands the request over; the back end moves the data and tells later.
//! Data is named as region handle, offset and length, never as a slice: a back end may lend the memory on to another device
//! instead of touching it.

mod file;
mod memory;
mod null;

pub use file::FileBackend;
pub(crate) use file::file_of;
pub use memory::MemoryBackend;
pub use null::NullBackend;

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use crate::iommu::{DeviceMemory, Segment};

/// What to do with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the medium to memory.
    Read,
    /// From memory to the medium.
    Write,
    /// Compare memory with the medium.
    Compare,
    /// Make blocks read as zeroes; there is no data.
    WriteZeroes,
    /// Let go of blocks, which read as zeroes afterwards; there is no data.
    Deallocate,
    /// Read blocks and keep nothing, to find out whether they can be read; there is no data.
    Verify,
    /// Copy to the range from another, of the same length; there is no data. The two may overlap: the result is as if all had been
    /// read before the first was written.
    Copy {
        /// Identifier of the namespace that is read.
        namespace: u32,
        /// First byte that is read.
        offset: u64,
    },
    /// Make what was written before durable; there is neither data nor a range. Namespace 0 means all.
    Flush,
}

/// One request. The front end has checked it: the namespace exists, the range is inside, the segments are as long as the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in its completion.
    pub tag: u32,
    /// What to do.
    pub operation: Operation,
    /// Identifier of the namespace.
    pub namespace: u32,
    /// First byte on the medium.
    pub offset: u64,
    /// Bytes on the medium.
    pub length: u64,
    /// Its pieces of memory among those handed over with the batch.
    pub segments: Range<u32>,
    /// Whether the data must be durable at completion (Force Unit Access).
    pub force_unit_access: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// The medium could not be read.
    ReadError,
    /// The medium could not be written.
    WriteError,
    /// The data differs from the medium.
    Different,
    /// Memory could not be reached: its mapping went away.
    MemoryLost,
    /// It was given up because [`Backend::cancel`] said so.
    Cancelled,
}

/// The end of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendCompletion {
    /// The request's tag.
    pub tag: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// A plain read or write whose data is in one or two pieces, to be executed at once. The front end has checked it as a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Immediate {
    /// First byte on the medium.
    pub offset: u64,
    /// Bytes on the medium.
    pub length: u32,
    /// Identifier of the namespace.
    pub namespace: u32,
    /// Its pieces of memory. The second counts only if its length is not 0.
    pub segments: [Segment; 2],
    /// Whether it is a write, from memory to the medium, and not a read.
    pub write: bool,
    /// How it ended: [`Outcome::Done`] until the back end says otherwise.
    pub outcome: Outcome,
    pub(crate) cid: u16,
}

impl Immediate {
    pub(crate) const NONE: Immediate = Immediate {
        offset: 0,
        length: 0,
        namespace: 0,
        segments: [Segment::NONE; 2],
        write: false,
        outcome: Outcome::Done,
        cid: 0,
    };
}

/// Executes commands for a controller front end.
///
/// Memory is reached through the [`DeviceMemory`] of the call only. A back end that finishes a request in a later call gets another one then,
/// and finds out there whether the mapping still lives.
pub trait Backend: Send + Debug {
    /// Takes a batch. Segments are valid for this call; what a request needs later is copied.
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>);

    /// Appends what has ended since the last call, in any order, each request once. It is called after each [`Backend::submit`], and besides once in each turn of the controller that begins
    /// with a request in flight: there a back end goes on that does long work itself.
    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>);

    /// A namespace that the configuration names, once, before everything else: what its medium holds is kept.
    ///
    /// # Errors
    /// What the system says when the medium cannot be had. By default there is nothing to do.
    fn open(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        let _ = (namespace, bytes);
        Ok(())
    }

    /// A new namespace, which reads as zeroes. There is no other with that identifier.
    ///
    /// # Errors
    /// What the system says when the medium cannot be had. By default a back end makes none.
    fn create(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        let _ = (namespace, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A namespace is no more. No request for it is in flight.
    fn delete(&mut self, namespace: u32) {
        let _ = namespace;
    }

    /// Erases a namespace, which reads as zeroes afterwards. No request for it is in flight.
    ///
    /// # Errors
    /// What the system says. By default a back end erases nothing.
    fn erase(&mut self, namespace: u32) -> io::Result<()> {
        let _ = namespace;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether [`Backend::immediate`] may be called. The same at every call.
    fn is_immediate(&self) -> bool {
        false
    }

    /// Executes a batch of plain reads and writes before it returns, and says in each how it ended; whether all of them are done. Only called
    /// where [`Backend::is_immediate`] is true.
    fn immediate(&mut self, commands: &mut [Immediate], memory: &DeviceMemory<'_>) -> bool {
        let _ = memory;
        commands.is_empty()
    }

    /// Whether the back end unparks the thread that called [`Backend::submit`] whenever a request has ended, so that this thread need not poll for it. The
    /// same at every call.
    fn wakes(&self) -> bool {
        false
    }

    /// Whether the back end has requests that it goes on with in the next turn's [`Backend::poll`], so that it should come soon.
    fn is_working(&self) -> bool {
        false
    }

    /// Ends these requests as soon as possible, done or not: their client wants its memory back. Each is reported once, as ever. By default they take
    /// the time that they take.
    fn cancel(&mut self, tags: &[u32]) {
        let _ = tags;
    }

    /// Forgets everything in flight. After it returned, nothing touches memory for an earlier request or reports it.
    fn reset(&mut self);
}
