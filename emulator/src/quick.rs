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
use crate::iommu::DeviceMemory;
use crate::memory::{RingEntries, RingEntry};

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

/// What a batch moves: how many commands and bytes, of reads and of writes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) commands: [u64; 2],
    pub(crate) bytes: [u64; 2],
}

/// The commands of one queue that go the short way together.
struct Batch<'a> {
    geometry: Geometry,
    page: u64,
    commands: &'a mut [Immediate; BATCH],
    count: usize,
    moved: Moved,
}

impl Batch<'_> {
    /// Takes a command in, if it is one for the short way.
    #[inline]
    fn take(&mut self, first: u64, entry: RingEntry<'_>, memory: &DeviceMemory<'_>) -> Option<()> {
        let dword12 = entry.word::<6>() as u32;
        let (write, access) = match first as u8 {
            io::READ => (false, Access::DEVICE_WRITE),
            io::WRITE => (true, Access::DEVICE_READ),
            _ => return None,
        };
        let geometry = &self.geometry;
        // FUSE and PSDT, and the flags and fields of dword 12 above the number of blocks.
        if first & 0xff00 != 0 || dword12 & 0xffff_0000 != 0 {
            return None;
        }
        let blocks = u64::from(dword12) + 1;
        let lba = entry.word::<5>();
        let length = blocks << geometry.shift;
        if lba >= geometry.blocks || blocks > geometry.blocks - lba || length > geometry.most {
            return None;
        }
        let prp1 = entry.word::<3>();
        if prp1 & 0b11 != 0 {
            return None;
        }
        let head = self.page - (prp1 & (self.page - 1));
        let command = self.commands.get_mut(self.count)?;
        if length <= head {
            command.segments[0] = memory.piece(prp1, length as u32, access)?;
            command.segments[1].length = 0;
        } else {
            let (prp2, tail) = (entry.word::<4>(), length - head);
            if tail > self.page || prp2 & (self.page - 1) != 0 {
                return None;
            }
            command.segments[0] = memory.piece(prp1, head as u32, access)?;
            command.segments[1] = memory.piece(prp2, tail as u32, access)?;
        }
        command.offset = lba << geometry.shift;
        command.length = length as u32;
        command.namespace = geometry.nsid;
        command.write = write;
        command.outcome = Outcome::Done;
        command.cid = (first >> 16) as u16;
        self.count += 1;
        self.moved.commands[usize::from(write)] += 1;
        self.moved.bytes[usize::from(write)] += length;
        Some(())
    }
}

impl Core {
    /// Whether the short way is open: nothing is on that has to see each command.
    pub(crate) fn quick(&self) -> bool {
        self.immediate && !self.interposed
    }

    /// Runs `count` fetched commands of one I/O queue, [`BATCH`] at most, in order, each by the shortest way that it can go.
    ///
    /// The short way reads each word that it needs once. A command that it does not take is read anew, as a whole, for the long way, which trusts
    /// nothing that was seen before.
    #[inline(never)] // The loop needs the registers for itself.
    pub(crate) fn run_batch(
        &mut self,
        sqid: u16,
        ring: &RingEntries<'_>,
        count: usize,
        memory: &DeviceMemory<'_>,
    ) {
        // One look at every entry first: they come from another processor's cache, and so come together.
        let mut firsts = [0; BATCH];
        let firsts = firsts.get_mut(..count).unwrap_or_default();
        for (place, first) in firsts.iter_mut().enumerate() {
            *first = ring.get(place).map_or(0, RingEntry::word::<0>);
        }
        let mut room = self.scratch.quick.take();
        let mut batch = Batch {
            geometry: Geometry::default(),
            page: self.page(),
            commands: room.get_or_insert_with(|| Box::new([Immediate::NONE; BATCH])),
            count: 0,
            moved: Moved::default(),
        };
        for (place, &first) in firsts.iter().enumerate() {
            let Some(entry) = ring.get(place) else {
                break;
            };
            let nsid = (first >> 32) as u32;
            if nsid != batch.geometry.nsid {
                self.finish_quick(sqid, &mut batch, memory);
                batch.geometry = self.geometry(nsid);
            }
            if batch.take(first, entry, memory).is_none() {
                self.finish_quick(sqid, &mut batch, memory);
                self.dispatch(sqid, Entry(entry.whole()), memory);
                self.flush(memory);
                // It may have changed the namespace.
                batch.geometry = Geometry::default();
            }
        }
        self.finish_quick(sqid, &mut batch, memory);
        self.scratch.quick = room;
    }

    /// Executes what was taken in and answers it.
    fn finish_quick(&mut self, sqid: u16, batch: &mut Batch<'_>, memory: &DeviceMemory<'_>) {
        let count = std::mem::take(&mut batch.count);
        let moved = std::mem::take(&mut batch.moved);
        let commands = batch.commands.get_mut(..count).unwrap_or_default();
        if commands.is_empty() {
            return;
        }
        let mut left = if self.backend.immediate(commands, memory) {
            self.logs.count_many(&moved);
            let posted = self.post_quick(sqid, commands, memory);
            let left = commands.get(posted..).unwrap_or_default();
            // The rest where the queue ended before.
            let posted = self.post_quick(sqid, left, memory);
            left.get(posted..).unwrap_or_default()
        } else {
            for command in commands.iter() {
                if command.outcome == Outcome::Done {
                    let operation = if command.write {
                        Operation::Write
                    } else {
                        Operation::Read
                    };
                    self.logs.count(operation, u64::from(command.length));
                }
            }
            commands
        };
        while let Some((command, rest)) = left.split_first() {
            self.post_singly(sqid, command, batch.geometry.shift, memory);
            left = rest;
        }
    }

    /// Posts the success of all whose entries lie side by side and in one mapping; how many those were.
    #[inline]
    fn post_quick(
        &mut self,
        sqid: u16,
        commands: &[Immediate],
        memory: &DeviceMemory<'_>,
    ) -> usize {
        if commands.is_empty() {
            return 0;
        }
        let Some(Some(submission)) = self.submission.get(usize::from(sqid)) else {
            return 0;
        };
        let middle = u32::from(sqid) << 16 | submission.head & 0xffff;
        let Some(Some(queue)) = self.completion.get_mut(usize::from(submission.cqid)) else {
            return 0;
        };
        let count = commands.len().min((queue.size - queue.tail) as usize);
        let commands = commands.get(..count).unwrap_or_default();
        let at = queue.base.wrapping_add(u64::from(queue.tail) * 16);
        let phase = u32::from(queue.phase) << 16;
        let posted = memory.post(at, commands, |command| {
            [0, 0, middle, phase | u32::from(command.cid)]
        });
        if !posted {
            return 0;
        }
        queue.reserved = queue.reserved.saturating_sub(count as u32);
        queue.tail += count as u32;
        if queue.tail == queue.size {
            queue.tail = 0;
            queue.phase = !queue.phase;
        }
        if let Some(vector) = queue.vector {
            self.interrupts.raise(vector);
        }
        self.statistics.completions += count as u64;
        count
    }

    /// Posts one answer, which is an error or has its place in a mapping of its own.
    #[cold]
    fn post_singly(
        &mut self,
        sqid: u16,
        command: &Immediate,
        shift: u32,
        memory: &DeviceMemory<'_>,
    ) {
        let mut status = self.status(command.outcome);
        if !status.is_success() {
            let lba = command.offset >> shift;
            status = self.log_error(sqid, command.cid, status, command.namespace, lba);
        }
        let completion = Completion {
            sqid,
            cid: command.cid,
            result: 0,
            status,
        };
        self.post(&completion, memory);
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
