//! Memory for a queue pair's rings.
#![allow(unsafe_code)] // lays a submission ring into memory of which it is the only user, and takes its doorbells

use std::sync::Arc;

use nvme_vfio_dma::{Access, AddressSpace, SharedMemory};
use nvme_vfio_queues::registers::Cap;
use nvme_vfio_queues::ring::{CompletionMemory, Doorbell, SubmissionMemory};
use nvme_vfio_queues::{Command, CompletionEntry};

use crate::Error;
use crate::transport::Transport;

/// The tail and head doorbells of the queue pair `id`, for its rings; `None` where BAR 0 does not hold them.
pub(crate) fn doorbells(transport: &dyn Transport, cap: Cap, id: u16) -> Option<[Doorbell; 2]> {
    // SAFETY: queue identifiers have one owner at a time, which moves the doorbells into that pair's rings; these
    // ring for whole entries only.
    unsafe {
        Some([
            transport.doorbell(cap.sq_tail_doorbell(id))?,
            transport.doorbell(cap.cq_head_doorbell(id))?,
        ])
    }
}

/// The memory of a queue pair: what the controller only reads, and what it writes. Each begins on a memory page.
#[derive(Debug)]
pub(crate) struct QueueMemory {
    /// The submission ring, and from `lists_at` on whatever else the controller only reads.
    pub(crate) read_by_device: Arc<SharedMemory>,
    /// The completion ring.
    pub(crate) written_by_device: Arc<SharedMemory>,
    /// Where in `read_by_device` there is room for PRP lists.
    pub(crate) lists_at: usize,
}

impl QueueMemory {
    /// Rings of `submissions` and `completions` entries, and `lists` bytes for PRP lists, in pages of `page` bytes.
    pub(crate) fn new(
        space: &AddressSpace,
        submissions: u32,
        completions: u32,
        lists: usize,
        page: usize,
    ) -> Result<(Self, SubmissionMemory, CompletionMemory), Error> {
        let lists_at = (submissions as usize * size_of::<Command>()).next_multiple_of(page);
        let answers = (completions as usize * size_of::<CompletionEntry>()).next_multiple_of(page);
        let read_by_device = Arc::new(space.shared(lists_at + lists, Access::DEVICE_READ)?);
        let written_by_device = Arc::new(space.shared(answers, Access::DEVICE_WRITE)?);
        // SAFETY: the memory was just made, and nobody but the ring writes below `lists_at`: PRP lists begin there, and the rest of the
        // driver only holds it.
        let submission = unsafe { SubmissionMemory::new(&read_by_device, 0, submissions) }?;
        let completion = CompletionMemory::new(&written_by_device, 0, completions)?;
        let memory = Self {
            read_by_device,
            written_by_device,
            lists_at,
        };
        Ok((memory, submission, completion))
    }

    /// Both, to be held where they cannot be freed.
    pub(crate) fn both(&self) -> [Arc<SharedMemory>; 2] {
        [
            Arc::clone(&self.read_by_device),
            Arc::clone(&self.written_by_device),
        ]
    }
}
