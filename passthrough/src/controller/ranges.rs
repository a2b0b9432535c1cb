//! What becomes of lists of ranges: Dataset Management and Copy, cut into what real commands can name.
//!
//! Pure: nothing here touches a client's memory or a controller. The ranges come from the decoder, never from the client's bytes.

use nvme_vfio_queues::Status;

use super::slices::SliceMap;
use crate::command::Extent;

/// What one real Dataset Management may name. Limits of 0 in Identify data are [`u64::MAX`] and the like here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeallocateLimits {
    /// Ranges (DMRL): 1 to 256.
    pub ranges: u16,
    /// Blocks of a range (DMRSL).
    pub range_blocks: u32,
    /// Blocks altogether (DMSL).
    pub blocks: u64,
}

impl Default for DeallocateLimits {
    fn default() -> Self {
        Self {
            ranges: 256,
            range_blocks: u32::MAX,
            blocks: u64::MAX,
        }
    }
}

/// What one real Copy may name. All 0 where the namespace takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyLimits {
    /// Source ranges (MSRC, counted from 1).
    pub ranges: u16,
    /// Blocks of a source range (MSSRL).
    pub range_blocks: u16,
    /// Blocks altogether (MCL).
    pub blocks: u32,
}

/// A range of a real namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RealRange {
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

/// A place in a list of ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    range: usize,
    /// Blocks of that range that are dealt with.
    done: u64,
}

impl Place {
    /// The rest of the range here, after those that have none: its index, first block, and blocks.
    fn rest(&mut self, ranges: &[Extent]) -> Option<(usize, u64, u64)> {
        loop {
            let extent = ranges.get(self.range)?;
            let left = extent.blocks.saturating_sub(self.done);
            if left > 0 {
                // Outside of the namespace where this saturates, as whoever looks it up finds.
                return Some((self.range, extent.first.saturating_add(self.done), left));
            }
            *self = Place {
                range: self.range + 1,
                done: 0,
            };
        }
    }
}

/// A Dataset Management on its way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deallocation {
    ranges: Vec<Extent>,
    place: Place,
}

impl Deallocation {
    pub(crate) fn new(ranges: &[Extent]) -> Self {
        Self {
            ranges: ranges.to_vec(),
            place: Place::default(),
        }
    }

    /// The next real command: the controller and namespace that it goes to, its ranges in `into`. `None` when all is dealt with.
    pub(crate) fn next(
        &mut self,
        map: &mut SliceMap,
        limits: impl Fn(u16) -> DeallocateLimits,
        into: &mut Vec<RealRange>,
    ) -> Result<Option<(u16, u32)>, Status> {
        into.clear();
        let mut goes_to = None;
        let mut total = 0;
        while let Some((_, first, left)) = self.place.rest(&self.ranges) {
            let outside = Status::LBA_OUT_OF_RANGE.with_dnr();
            let whole = map.piece(first, left, u64::MAX).ok_or(outside)?;
            let to = (whole.target, whole.nsid);
            let limits = limits(whole.target);
            // Another controller, whose limits are lower, may come next: then there is no room, and this part ends.
            let most = u64::from(limits.range_blocks).min(limits.blocks.saturating_sub(total));
            let full = into.len() >= usize::from(limits.ranges) || most == 0;
            if goes_to.is_some_and(|before| before != to) || (full && !into.is_empty()) {
                break;
            }
            // A controller that says it takes no ranges takes none.
            if full {
                return Err(Status::INTERNAL_ERROR);
            }
            let blocks = whole.blocks.min(most);
            into.push(RealRange {
                lba: whole.lba,
                blocks: blocks as u32,
            });
            goes_to = Some(to);
            total += blocks;
            self.place.done += blocks;
        }
        Ok(goes_to)
    }
}

/// One real Copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyPart {
    pub(crate) target: u16,
    pub(crate) nsid: u32,
    /// The first block that is written.
    pub(crate) lba: u64,
}

/// A Copy on its way. Its parts go one after the other, since a source may hold what an earlier range has written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copying {
    sources: Vec<Extent>,
    place: Place,
    /// Where the next block goes.
    destination: u64,
    /// Whether a source overlaps what is written.
    overlaps: bool,
    /// The client's range that each range of the last part comes from.
    origins: Vec<usize>,
}

impl Copying {
    /// A Copy with these extents, destination first. `None` for no extent at all.
    pub(crate) fn new(extents: &[Extent]) -> Option<Self> {
        let (destination, sources) = extents.split_first()?;
        let overlaps = sources.iter().any(|source| {
            source.first < destination.first.saturating_add(destination.blocks)
                && destination.first < source.first.saturating_add(source.blocks)
        });
        Some(Self {
            sources: sources.to_vec(),
            place: Place::default(),
            destination: destination.first,
            overlaps,
            origins: Vec::new(),
        })
    }

    /// The next real command, its source ranges in `into`. `None` when all is dealt with.
    pub(crate) fn next(
        &mut self,
        map: &mut SliceMap,
        limits: &CopyLimits,
        into: &mut Vec<RealRange>,
    ) -> Result<Option<CopyPart>, Status> {
        into.clear();
        self.origins.clear();
        let began = self.place == Place::default();
        if self.place.rest(&self.sources).is_none() {
            return Ok(None);
        }
        let outside = Status::LBA_OUT_OF_RANGE.with_dnr();
        // As far as the destination is in one piece, whatever the sources are.
        let most = self.rest_blocks().min(u64::from(limits.blocks));
        let to = map
            .piece(self.destination, most.max(1), most)
            .ok_or(outside)?;
        let mut room = to.blocks;
        while let Some((range, first, left)) = self.place.rest(&self.sources) {
            let most = room.min(u64::from(limits.range_blocks));
            if into.len() >= usize::from(limits.ranges) || most == 0 {
                break;
            }
            let source = map.piece(first, left, most).ok_or(outside)?;
            if (source.target, source.nsid) != (to.target, to.nsid) {
                // One namespace's blocks cannot be had by another's Copy. A policy that grants Copy sees to it that this cannot be.
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            into.push(RealRange {
                lba: source.lba,
                blocks: source.blocks as u32,
            });
            self.origins.push(range);
            self.place.done += source.blocks;
            room -= source.blocks;
        }
        if into.is_empty() {
            // A namespace that takes no Copy at all.
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let copied: u64 = into.iter().map(|range| u64::from(range.blocks)).sum();
        self.destination += copied;
        let last = self.place.rest(&self.sources).is_none();
        if self.overlaps && !(began && last) {
            // In pieces it would not be what one command does.
            return Err(Status::OVERLAPPING_IO_RANGE.with_dnr());
        }
        Ok(Some(CopyPart {
            target: to.target,
            nsid: to.nsid,
            lba: to.lba,
        }))
    }

    /// Blocks that are still to be copied.
    fn rest_blocks(&self) -> u64 {
        let sources = self.sources.get(self.place.range..).unwrap_or_default();
        let all = sources
            .iter()
            .fold(0u64, |sum, source| sum.saturating_add(source.blocks));
        all.saturating_sub(self.place.done)
    }

    /// Of the client's ranges, the lowest that was not copied, when the last part failed and its controller says that `copied` of its ranges were.
    pub(crate) fn failed_at(&self, copied: u32) -> u32 {
        let index = (copied as usize).min(self.origins.len().saturating_sub(1));
        self.origins.get(index).map_or(0, |range| *range as u32)
    }
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
