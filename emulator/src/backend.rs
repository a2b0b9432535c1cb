//! The seam to what executes commands: batched, asynchronous.
//!
//! The front end checks a command, translates its memory and hands the request over; the back end moves the data and tells later.
//! Data is named as region handle, offset and length, never as a slice: a back end may lend the memory on to another device
//! instead of touching it.

mod memory;
mod null;

pub use memory::MemoryBackend;
pub use null::NullBackend;

use std::fmt::Debug;
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
    /// Make what was written before durable; there is neither data nor a range.
    Flush,
}

/// One request. The front end has checked it: the namespace exists, the range is inside, the segments are as long as the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in its completion.
    pub tag: u32,
    /// What to do.
    pub operation: Operation,
    /// Which namespace: its place in [`Config::namespaces`](crate::Config::namespaces).
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
}

/// The end of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendCompletion {
    /// The request's tag.
    pub tag: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// Executes commands for a controller front end.
///
/// Memory is reached through the [`DeviceMemory`] of the call only. A back end that finishes a request in a later call gets another one then,
/// and finds out there whether the mapping still lives.
pub trait Backend: Send + Debug {
    /// Takes a batch. Segments are valid for this call; what a request needs later is copied.
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>);

    /// Appends what has ended since the last call, in any order, each request once.
    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>);

    /// Forgets everything in flight. After it returned, nothing touches memory for an earlier request or reports it.
    fn reset(&mut self);
}
