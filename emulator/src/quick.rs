//! The short way of plain reads and writes: decoded, translated, executed and answered a batch at a time.
//!
//! It is taken only where it cannot make a difference: the back end finishes at once, nothing is armed that has to see each
//! command, and the command is a read or write without flags whose data is in one or two pages. Whatever it does not take, and whatever is wrong
//! in any way, goes the long way of [`execute`](crate::execute), which decides and tells.

use nvme_vfio_dma::Access;

use crate::backend::{Immediate, Operation, Outcome};
use crate::command::Entry;
use crate::controller::{BATCH, Core};
use crate::flight::Completion;
use crate::io;
use crate::iommu::{DeviceMemory, Segment};
use crate::memory::RingEntries;

/// A namespace, as a plain read or write needs it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Geometry {
    pub(crate) nsid: u32,
    /// Bytes of a block, as a power of two.
    pub(crate) shift: u32,
    /// Blocks; 0 lets nothing pass.
    pub(crate) blocks: u64,
    /// Most bytes that one command may move.
    pub(crate) most: u64,
}

/// What a batch moved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) written_bytes: u64,
}

impl Moved {
    #[inline]
    fn count(&mut self, command: &Immediate) {
        let bytes = u64::from(command.length);
        if command.operation == Operation::Read {
            self.reads += 1;
            self.read_bytes += bytes;
        } else {
            self.writes += 1;
            self.written_bytes += bytes;
        }
    }
}

/// What a batch of one queue needs to know.
struct Batch {
    geometry: Geometry,
    page: u64,
}

impl Batch {
    /// The command, if it is one for the short way.
    #[inline]
    fn decode(
        &self,
        first: u64,
        ring: &RingEntries<'_>,
        place: usize,
        memory: &DeviceMemory<'_>,
    ) -> Option<Immediate> {
        let dword12 = ring.word::<6>(place) as u32;
        let (operation, access) = match first as u8 {
            io::READ => (Operation::Read, Access::DEVICE_WRITE),
            io::WRITE => (Operation::Write, Access::DEVICE_READ),
            _ => return None,
        };
        let geometry = &self.geometry;
        // FUSE and PSDT, and the flags and fields of dword 12 above the number of blocks.
        if first & 0xff00 != 0
            || (first >> 32) as u32 != geometry.nsid
            || dword12 & 0xffff_0000 != 0
        {
            return None;
        }
        let blocks = u64::from(dword12) + 1;
        let lba = ring.word::<5>(place);
        let length = blocks << geometry.shift;
        if lba >= geometry.blocks || blocks > geometry.blocks - lba || length > geometry.most {
            return None;
        }
        let prp1 = ring.word::<3>(place);
        if prp1 & 0b11 != 0 {
            return None;
        }
        let head = self.page - (prp1 & (self.page - 1));
        let segments = if length <= head {
            [
                memory.piece(prp1, length as u32, access)?,
                Segment::default(),
            ]
        } else {
            let (prp2, tail) = (ring.word::<4>(place), length - head);
            if tail > self.page || prp2 & (self.page - 1) != 0 {
                return None;
            }
            [
                memory.piece(prp1, head as u32, access)?,
                memory.piece(prp2, tail as u32, access)?,
            ]
        };
        Some(Immediate {
            operation,
            namespace: geometry.nsid,
            offset: lba << geometry.shift,
            length: length as u32,
            segments,
            outcome: Outcome::Done,
            cid: (first >> 16) as u16,
            lba,
        })
    }
}

impl Core {
    /// Whether the short way is open: nothing is on that has to see each command. Whatever comes to be such a thing is asked for here.
    pub(crate) fn quick(&self) -> bool {
        self.immediate && !self.interposed
    }

    /// Runs fetched commands of one I/O queue, in order, each by the shortest way that it can go.
    ///
    /// The short way reads each word that it needs once. A command that it does not take is read anew, as a whole, for the long way, which trusts
    /// nothing that was seen before.
    pub(crate) fn run_batch(
        &mut self,
        sqid: u16,
        ring: &RingEntries<'_>,
        count: usize,
        memory: &DeviceMemory<'_>,
    ) {
        // One look at every entry first: they come from another processor's cache, and so come together.
        let mut firsts = [0; BATCH];
        for (place, first) in firsts.iter_mut().enumerate().take(count) {
            *first = ring.word::<0>(place);
        }
        let mut batch = Batch {
            geometry: Geometry::default(),
            page: self.page(),
        };
        let mut quick = std::mem::take(&mut self.scratch.quick);
        for (place, &first) in firsts.iter().enumerate().take(count) {
            let nsid = (first >> 32) as u32;
            if nsid != batch.geometry.nsid {
                self.finish_quick(sqid, batch.geometry.nsid, &mut quick, memory);
                batch.geometry = self.geometry(nsid);
            }
            if let Some(command) = batch.decode(first, ring, place, memory) {
                quick.push(command);
                continue;
            }
            self.finish_quick(sqid, batch.geometry.nsid, &mut quick, memory);
            self.dispatch(sqid, Entry(ring.entry(place)), memory);
            self.flush(memory);
            // It may have changed the namespace.
            batch.geometry = Geometry::default();
        }
        self.finish_quick(sqid, batch.geometry.nsid, &mut quick, memory);
        self.scratch.quick = quick;
    }

    /// Executes what was decoded and answers it.
    fn finish_quick(
        &mut self,
        sqid: u16,
        nsid: u32,
        quick: &mut Vec<Immediate>,
        memory: &DeviceMemory<'_>,
    ) {
        if quick.is_empty() {
            return;
        }
        let all_done = self.backend.immediate(quick, memory);
        let mut left = quick.as_slice();
        if all_done {
            let posted = self.post_quick(sqid, left, memory);
            left = left.get(posted..).unwrap_or_default();
            if !left.is_empty() {
                // The queue ended before.
                let posted = self.post_quick(sqid, left, memory);
                left = left.get(posted..).unwrap_or_default();
            }
        }
        if !left.is_empty() {
            self.post_singly(sqid, nsid, left, memory);
        }
        quick.clear();
    }

    /// Posts the success of all whose entries lie side by side and in one mapping, and counts them; how many those were.
    fn post_quick(&mut self, sqid: u16, quick: &[Immediate], memory: &DeviceMemory<'_>) -> usize {
        let Some(Some(submission)) = self.submission.get(usize::from(sqid)) else {
            return 0;
        };
        let middle = u32::from(sqid) << 16 | submission.head & 0xffff;
        let Some(Some(queue)) = self.completion.get_mut(usize::from(submission.cqid)) else {
            return 0;
        };
        let count = (quick.len() as u32).min(queue.size - queue.tail);
        let at = queue.base.wrapping_add(u64::from(queue.tail) * 16);
        let phase = u32::from(queue.phase) << 16;
        let mut moved = Moved::default();
        let entries = quick.iter().map(|command| {
            moved.count(command);
            [0, 0, middle, phase | u32::from(command.cid)]
        });
        if !memory.post(at, count as usize, entries) {
            return 0;
        }
        self.logs.count_many(&moved);
        queue.reserved = queue.reserved.saturating_sub(count);
        queue.tail += count;
        if queue.tail == queue.size {
            queue.tail = 0;
            queue.phase = !queue.phase;
        }
        if let Some(vector) = queue.vector {
            self.interrupts.raise(vector);
        }
        self.statistics.completions += u64::from(count);
        count as usize
    }

    /// Posts the answers one by one: some are errors, or the queue ends or changes its mapping among them.
    #[cold]
    fn post_singly(
        &mut self,
        sqid: u16,
        nsid: u32,
        quick: &[Immediate],
        memory: &DeviceMemory<'_>,
    ) {
        for command in quick {
            let status = self.status(command.outcome);
            let status = if status.is_success() {
                self.logs
                    .count(command.operation, u64::from(command.length));
                status
            } else {
                self.log_error(sqid, command.cid, status, nsid, command.lba)
            };
            let completion = Completion {
                sqid,
                cid: command.cid,
                result: 0,
                status,
            };
            self.post(&completion, memory);
        }
    }

    /// What the short way needs to know of a namespace; nothing passes where it is not for the short way.
    fn geometry(&self, nsid: u32) -> Geometry {
        let mut geometry = Geometry {
            nsid,
            ..Geometry::default()
        };
        if let Some(namespace) = self.namespaces.active(nsid)
            && !namespace.marked()
        {
            geometry.shift = u32::from(namespace.shift);
            geometry.blocks = namespace.blocks;
            geometry.most = self.config.transfer_max();
        }
        geometry
    }
}
