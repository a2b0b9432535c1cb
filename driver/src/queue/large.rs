//! I/O that one command cannot carry: longer than a transfer may be, or in pieces that PRPs cannot join.
//!
//! It is cut into commands as slots are free: at least one when it is submitted, more as its commands end. So an I/O of
//! any length runs on a queue of any depth, and is reported once.

use std::slice;

use nvme_vfio_dma::Buffer;
use nvme_vfio_queues::prp::{self, PageSize, Segment};
use nvme_vfio_queues::slots::SlotTable;
use nvme_vfio_queues::{CompletionEntry, NvmOpcode};

use super::submit::transfer_command;
use super::{Completion, IoQueue, Outcome, Slot, SlotList};
use crate::error::{Refused, SubmitError};
use crate::namespace::Namespace;

/// The memory of a large I/O.
#[derive(Debug)]
pub(super) enum Segments {
    One(Buffer),
    Many(Vec<Buffer>),
}

impl Segments {
    fn as_slice(&self) -> &[Buffer] {
        match self {
            Self::One(buffer) => slice::from_ref(buffer),
            Self::Many(buffers) => buffers,
        }
    }

    #[expect(
        clippy::box_collection,
        reason = "a completion carries it, and short ones are moved faster"
    )]
    pub(super) fn into_parts(self) -> (Option<Buffer>, Option<Box<Vec<Buffer>>>) {
        match self {
            Self::One(buffer) => (Some(buffer), None),
            Self::Many(buffers) => (None, Some(Box::new(buffers))),
        }
    }

    fn refused(self, error: SubmitError) -> Refused {
        let (buffer, vector) = self.into_parts();
        Refused {
            error,
            buffer,
            vector,
        }
    }
}

/// A place in a list of segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    segment: usize,
    offset: usize,
}

/// An I/O that takes several commands.
#[derive(Debug)]
pub(super) struct Large {
    pub(super) token: u64,
    opcode: NvmOpcode,
    namespace: Namespace,
    lba: u64,
    cursor: Cursor,
    /// `None` once it was reported together with its memory.
    pub(super) segments: Option<Segments>,
    /// Commands with the controller.
    parts: u32,
    /// Commands of which the owner was told that they did not end in time.
    overdue: u32,
    /// What is to be reported: the first answer that is not success, or the last one.
    entry: CompletionEntry,
    reported: bool,
}

/// What one command of a large I/O carries.
struct Chunk {
    pieces: Vec<Segment>,
    length: usize,
    next: Cursor,
}

/// Takes a slot for a command that wants more than the common treatment when it ends.
fn insert_marked(slots: &mut SlotTable<Slot>, slot: Slot) -> Option<u16> {
    let identifier = slots.insert(slot).ok()?;
    if let Ok(mut occupied) = slots.occupied(identifier) {
        occupied.mark();
    }
    Some(identifier)
}

/// The longest run from `from` on that one command can carry: at most `limit` bytes, cut so that every PRP is on a page and
/// the length is a multiple of `block`.
///
/// # Errors
/// The segment at which a command would have to end inside a block.
fn next_chunk(
    segments: &[Buffer],
    from: Cursor,
    limit: usize,
    block: usize,
    page: PageSize,
) -> Result<Option<Chunk>, usize> {
    let mut pieces = Vec::new();
    let mut length = 0;
    let mut at = from;
    while let Some(buffer) = segments.get(at.segment) {
        let rest = buffer.len() - at.offset;
        if rest == 0 {
            at = Cursor {
                segment: at.segment + 1,
                offset: 0,
            };
            continue;
        }
        let iova = buffer.iova().0 + at.offset as u64;
        if let Some(&Segment { iova: before, len }) = pieces.last() {
            let end = before + len as u64;
            let joins = end == iova || (end | iova) & (page.bytes() as u64 - 1) == 0;
            if !joins {
                break;
            }
        }
        let take = rest.min(limit - length);
        pieces.push(Segment { iova, len: take });
        length += take;
        at.offset += take;
        if length == limit {
            break;
        }
    }
    if length == 0 {
        return Ok(None);
    }
    // A command carries whole blocks: give back what is too much, from the end.
    let mut surplus = length % block;
    length -= surplus;
    if length == 0 {
        return Err(from
            .segment
            .max(at.segment.min(segments.len().saturating_sub(1))));
    }
    while surplus > 0 {
        let Some(last) = pieces.last_mut() else { break };
        let back = surplus.min(last.len);
        last.len -= back;
        surplus -= back;
        if last.len == 0 {
            pieces.pop();
        }
    }
    Ok(Some(Chunk {
        next: advance(segments, from, length),
        pieces,
        length,
    }))
}

/// The place `bytes` after `from`.
fn advance(segments: &[Buffer], mut from: Cursor, mut bytes: usize) -> Cursor {
    while let Some(buffer) = segments.get(from.segment) {
        let rest = buffer.len() - from.offset;
        if bytes < rest {
            from.offset += bytes;
            break;
        }
        bytes -= rest;
        from = Cursor {
            segment: from.segment + 1,
            offset: 0,
        };
    }
    from
}

impl IoQueue {
    /// Reads the blocks from `lba` on into `buffers`, one after the other. Buffers that begin and end on memory pages travel
    /// in one command; others are split between commands, for which each must then end with a whole block.
    ///
    /// # Errors
    /// [`Refused`], with the buffers; nothing has reached the controller then.
    pub fn read_vectored(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffers: Vec<Buffer>,
        token: u64,
    ) -> Result<(), Refused> {
        self.vectored(NvmOpcode::READ, namespace, lba, buffers, token)
    }

    /// Writes `buffers`, one after the other, to the blocks from `lba` on. As [`read_vectored`](Self::read_vectored); not atomic.
    ///
    /// # Errors
    /// [`Refused`], with the buffers; nothing has reached the controller then.
    pub fn write_vectored(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffers: Vec<Buffer>,
        token: u64,
    ) -> Result<(), Refused> {
        self.vectored(NvmOpcode::WRITE, namespace, lba, buffers, token)
    }

    fn vectored(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        buffers: Vec<Buffer>,
        token: u64,
    ) -> Result<(), Refused> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        let checked = self
            .may_submit()
            .and_then(|()| self.check(namespace, lba, length))
            .and_then(|()| {
                buffers
                    .iter()
                    .try_for_each(|buffer| self.check_buffer(buffer))
            });
        match checked {
            Ok(()) => self.start_large(opcode, namespace, lba, Segments::Many(buffers), token),
            Err(error) => Err(Segments::Many(buffers).refused(error)),
        }
    }

    /// Takes an I/O that was checked but for its cuts.
    pub(super) fn start_large(
        &mut self,
        opcode: NvmOpcode,
        namespace: &Namespace,
        lba: u64,
        segments: Segments,
        token: u64,
    ) -> Result<(), Refused> {
        if self.slots.is_full() {
            return Err(segments.refused(SubmitError::QueueFull));
        }
        // Cut it once without sending anything, so that nothing is half done when a cut turns out to be impossible.
        let limit = self.part_limit(namespace);
        let block = namespace.block_size() as usize;
        let mut cursor = Cursor::default();
        loop {
            match next_chunk(segments.as_slice(), cursor, limit, block, self.page) {
                Ok(Some(chunk)) => cursor = chunk.next,
                Ok(None) => break,
                Err(segment) => return Err(segments.refused(SubmitError::Segment { segment })),
            }
        }
        let large = Large {
            token,
            opcode,
            namespace: *namespace,
            lba,
            cursor: Cursor::default(),
            segments: Some(segments),
            parts: 0,
            overdue: 0,
            entry: CompletionEntry::default(),
            reported: false,
        };
        let index = match self.cold.large.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.cold.large.push(None);
                self.cold.large.len() - 1
            }
        };
        if let Some(place) = self.cold.large.get_mut(index) {
            *place = Some(large);
        }
        self.waiting += 1;
        self.pump(index);
        Ok(())
    }

    /// The largest transfer of one part: whole blocks.
    fn part_limit(&self, namespace: &Namespace) -> usize {
        let block = namespace.block_size() as usize;
        (self.limit - self.limit % block).max(block)
    }

    /// Sends as many commands of a large I/O as there are slots for.
    fn pump(&mut self, index: usize) {
        while let Some((slot_index, _)) = self.slots.peek() {
            let Some(Some(large)) = self.cold.large.get_mut(index) else {
                return;
            };
            let failed = !large.entry.status().is_success();
            let Some(segments) = &large.segments else {
                return;
            };
            if failed || large.overdue > 0 {
                return;
            }
            let block = large.namespace.block_size() as usize;
            let limit = (self.limit - self.limit % block).max(block);
            let Ok(Some(chunk)) =
                next_chunk(segments.as_slice(), large.cursor, limit, block, self.page)
            else {
                return;
            };
            let Ok(pointer) = prp::build_scattered(
                &chunk.pieces,
                self.page,
                &mut SlotList {
                    lists: &self.lists,
                    slot: slot_index,
                },
            ) else {
                // The cuts were made so that this cannot be; an I/O that stops here still ends, with what it has.
                debug_assert!(false, "a chunk that PRPs cannot describe");
                return;
            };
            let blocks = chunk.length as u64 >> large.namespace.shift;
            let slot = Slot {
                token: large.token,
                large: index as u32 + 1,
                ..Slot::default()
            };
            let Some(identifier) = insert_marked(&mut self.slots, slot) else {
                return;
            };
            let command = transfer_command(
                large.opcode,
                large.namespace.nsid,
                large.lba,
                blocks,
                pointer,
                identifier,
            );
            large.parts += 1;
            large.lba += blocks;
            large.cursor = chunk.next;
            self.push(command);
        }
    }

    /// The numbers of the large I/Os that were submitted as `token`.
    pub(super) fn large_of(&self, token: u64) -> Vec<u32> {
        (1..)
            .zip(&self.cold.large)
            .filter(|(_, large)| large.as_ref().is_some_and(|large| large.token == token))
            .map(|(number, _)| number)
            .collect()
    }

    fn large(&mut self, number: u32) -> Option<&mut Large> {
        self.cold
            .large
            .get_mut((number as usize).checked_sub(1)?)?
            .as_mut()
    }

    /// One command of a large I/O has ended. Tells the I/O's completion when it was the last.
    pub(super) fn part_done(&mut self, number: u32, entry: CompletionEntry) -> Option<Completion> {
        let large = self.large(number)?;
        large.parts -= 1;
        if large.entry.status().is_success() {
            large.entry = entry;
        }
        self.pump(number as usize - 1);
        let large = self.large(number)?;
        if large.parts > 0 {
            return None;
        }
        if large.reported {
            self.part_forget(number);
            return None;
        }
        let completion = Self::large_completion(large, Outcome::Done, true);
        self.part_forget(number);
        self.waiting -= 1;
        Some(completion)
    }

    fn large_completion(large: &mut Large, outcome: Outcome, memory: bool) -> Completion {
        large.reported = true;
        let (buffer, vector) = match large.segments.take() {
            Some(segments) if memory => segments.into_parts(),
            kept => {
                large.segments = kept;
                (None, None)
            }
        };
        let entry = if outcome == Outcome::Done {
            large.entry
        } else {
            CompletionEntry::default()
        };
        Completion {
            token: large.token,
            entry,
            outcome,
            buffer,
            vector,
        }
    }

    /// A command of a large I/O has not ended in time: the whole I/O is reported so, and its memory kept. Tells the report, once.
    pub(super) fn part_overdue(&mut self, number: u32) -> Option<Completion> {
        let large = self.large(number)?;
        large.overdue += 1;
        (!large.reported).then(|| Self::large_completion(large, Outcome::TimedOut, false))
    }

    /// A command of a large I/O that was reported as overdue has ended after all.
    pub(super) fn part_let_go(&mut self, number: u32) {
        let Some(large) = self.large(number) else {
            return;
        };
        large.parts -= 1;
        if large.parts == 0 {
            self.part_forget(number);
        }
    }

    /// Ends a large I/O none of whose commands is with the controller. Memory that was not given back yet can be reclaimed.
    fn part_forget(&mut self, number: u32) {
        let Some(place) = self.cold.large.get_mut(number as usize - 1) else {
            return;
        };
        let Some(large) = place.take() else { return };
        let token = large.token;
        match large.segments {
            Some(Segments::One(buffer)) => self.cold.reclaimed.push((token, buffer)),
            Some(Segments::Many(buffers)) => self
                .cold
                .reclaimed
                .extend(buffers.into_iter().map(|buffer| (token, buffer))),
            None => {}
        }
    }

    /// Ends all large I/O because the controller was reset or has gone: tells what is to be reported, and what was reported before.
    pub(super) fn take_large(
        &mut self,
        outcome: Outcome,
        memory: bool,
    ) -> (Vec<Completion>, Vec<(u64, Segments)>) {
        let mut reports = Vec::new();
        let mut kept = Vec::new();
        for mut large in self.cold.large.drain(..).flatten() {
            if !large.reported {
                reports.push(Self::large_completion(&mut large, outcome, memory));
            }
            if let Some(segments) = large.segments {
                kept.push((large.token, segments));
            }
        }
        (reports, kept)
    }
}
