//! The PRP walker: from PRP1, PRP2 and a length to pieces of memory (NVMe base specification 2.0, 4.1.1).

use crate::command::Entry;
use crate::iommu::{DeviceMemory, DmaOrigin, FaultingCommand};
use nvme_vfio_queues::Status;

/// Entries of a PRP list that are read at once.
const CHUNK: usize = 512;

/// A piece of memory as a command names it, not yet translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) iova: u64,
    pub(crate) length: u32,
}

/// The data pointer of a command, and what its entries are counted in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prps {
    pub(crate) first: u64,
    pub(crate) second: u64,
    /// Bytes of a memory page.
    pub(crate) page: u64,
}

/// Appends the pieces that hold `length` bytes of the command's data, neighbours joined.
pub(crate) fn walk(
    entry: &Entry,
    length: u64,
    page: u64,
    memory: &DeviceMemory<'_>,
    command: FaultingCommand,
    into: &mut Vec<Extent>,
) -> Result<(), Status> {
    let mut extents = Extents {
        first: into.len(),
        into,
    };
    let prps = Prps {
        first: entry.prp1(),
        second: entry.prp2(),
        page,
    };
    each(prps, length, memory, command, |iova, length| {
        extents.push(iova, length);
        Ok(())
    })
}

/// Tells of each piece, of a page at most, of `length` bytes of data, which is not 0.
#[inline]
pub(crate) fn each(
    prps: Prps,
    length: u64,
    memory: &DeviceMemory<'_>,
    command: FaultingCommand,
    mut piece: impl FnMut(u64, u64) -> Result<(), Status>,
) -> Result<(), Status> {
    let Prps {
        first: prp1,
        second: prp2,
        page,
    } = prps;
    if prp1 & 0b11 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let first = length.min(page - (prp1 & (page - 1)));
    piece(prp1, first)?;
    let mut left = length - first;
    if left == 0 {
        return Ok(());
    }
    if left <= page {
        if prp2 & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        return piece(prp2, left);
    }
    if prp2 & 0b111 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let origin = DmaOrigin::PrpList(command);
    let mut list = prp2;
    let mut buffer = [0u8; CHUNK * 8];
    while left > 0 {
        // The slots from here to the end of this list page; the last one chains when more data is left than it can name.
        let slots = (page - (list & (page - 1))) / 8;
        let needed = left.div_ceil(page);
        let here = slots.min(needed);
        let chains = needed > slots;
        let mut read = 0;
        while read < here {
            let count = (here - read).min(CHUNK as u64);
            let chunk = buffer.get_mut(..count as usize * 8).unwrap_or_default();
            memory
                .read_at(list.wrapping_add(read * 8), chunk, origin)
                .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            for (index, raw) in chunk.chunks_exact(8).enumerate() {
                let prp = raw
                    .iter()
                    .rev()
                    .fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                if prp & (page - 1) != 0 {
                    return Err(Status::PRP_OFFSET_INVALID);
                }
                if chains && read + index as u64 == slots - 1 {
                    list = prp;
                } else {
                    let now = left.min(page);
                    piece(prp, now)?;
                    left -= now;
                }
            }
            read += count;
        }
    }
    Ok(())
}

struct Extents<'a> {
    first: usize,
    into: &'a mut Vec<Extent>,
}

impl Extents<'_> {
    fn push(&mut self, iova: u64, length: u64) {
        let joined = self
            .into
            .get_mut(self.first..)
            .and_then(<[Extent]>::last_mut)
            .filter(|last| {
                last.iova.checked_add(u64::from(last.length)) == Some(iova)
                    && u64::from(last.length) + length <= u64::from(u32::MAX)
            });
        match joined {
            Some(last) => last.length += length as u32,
            None => self.into.push(Extent {
                iova,
                length: length as u32,
            }),
        }
    }
}
