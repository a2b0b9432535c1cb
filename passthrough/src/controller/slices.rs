//! Which real blocks a client's blocks are.

use thiserror::Error;

/// Blocks of a real namespace that are lent. Concatenated in their order, slices are what a client sees as one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The real controller: its index among those that the client's virtual controller has queues on.
    pub target: u16,
    /// The real namespace.
    pub nsid: u32,
    /// First block, as the real namespace numbers them.
    pub start: u64,
    /// Blocks, at least one.
    pub blocks: u64,
}

impl Slice {
    /// Whether `next` goes on where this one ends, in the same real namespace.
    fn continues_in(&self, next: &Slice) -> bool {
        (self.target, self.nsid) == (next.target, next.nsid)
            && self.start.checked_add(self.blocks) == Some(next.start)
    }
}

/// Why slices make no namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SliceError {
    /// There is none.
    #[error("a namespace needs one slice at least")]
    None,
    /// A slice has no blocks.
    #[error("slice {0} has no blocks")]
    Empty(usize),
    /// A slice, or all of them together, reaches past the last block that can be numbered.
    #[error("slice {0} reaches past the last block that can be numbered")]
    TooLong(usize),
}

/// Consecutive blocks of a client that are consecutive blocks of a real namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The real controller.
    pub target: u16,
    /// The real namespace.
    pub nsid: u32,
    /// First real block.
    pub lba: u64,
    /// Blocks, at least one.
    pub blocks: u64,
}

/// The blocks of one of a client's namespaces.
#[derive(Debug, Clone)]
pub struct SliceMap {
    slices: Box<[Slice]>,
    /// The first block of each slice, as the client numbers them.
    firsts: Box<[u64]>,
    blocks: u64,
    /// The slice that was hit last.
    last: usize,
}

impl SliceMap {
    /// The namespace that these slices make. Neighbours that are one range of the real namespace are joined.
    ///
    /// # Errors
    /// [`SliceError`]
    pub fn new(slices: &[Slice]) -> Result<Self, SliceError> {
        let mut joined: Vec<Slice> = Vec::with_capacity(slices.len());
        let mut firsts = Vec::with_capacity(slices.len());
        let mut blocks = 0u64;
        for (index, slice) in slices.iter().enumerate() {
            if slice.blocks == 0 {
                return Err(SliceError::Empty(index));
            }
            let end = blocks.checked_add(slice.blocks);
            let (Some(end), Some(_)) = (end, slice.start.checked_add(slice.blocks)) else {
                return Err(SliceError::TooLong(index));
            };
            match joined.last_mut() {
                Some(last) if last.continues_in(slice) => last.blocks += slice.blocks,
                _ => {
                    joined.push(*slice);
                    firsts.push(blocks);
                }
            }
            blocks = end;
        }
        if joined.is_empty() {
            return Err(SliceError::None);
        }
        Ok(Self {
            slices: joined.into(),
            firsts: firsts.into(),
            blocks,
            last: 0,
        })
    }

    /// Blocks that the client sees.
    #[inline]
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The slices, joined where they go on in each other.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// A real controller has another number from now on.
    pub(super) fn moved(&mut self, before: usize, now: u16) {
        for slice in &mut self.slices {
            if usize::from(slice.target) == before {
                slice.target = now;
            }
        }
    }

    /// The real controllers and namespaces that hold blocks, each once, in the order in which the client's blocks reach them.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(u16, u32)> {
        let mut found: Vec<(u16, u32)> = Vec::new();
        for slice in &self.slices {
            let one = (slice.target, slice.nsid);
            if !found.contains(&one) {
                found.push(one);
            }
        }
        found
    }

    /// What the first of `blocks` blocks from `first` on are, as far as they are consecutive in one real namespace and at most `limit`. `None` where `blocks` or
    /// `limit` is 0, or not all of them are the client's.
    #[inline]
    pub fn piece(&mut self, first: u64, blocks: u64, limit: u64) -> Option<Piece> {
        if first.checked_add(blocks)? > self.blocks {
            return None;
        }
        let (slice, within) = match self.within(self.last, first) {
            Some(found) => found,
            None => self.search(first)?,
        };
        let blocks = (slice.blocks - within).min(blocks).min(limit);
        (blocks > 0).then_some(Piece {
            target: slice.target,
            nsid: slice.nsid,
            lba: slice.start + within,
            blocks,
        })
    }

    /// A slice, and how many of its blocks are before `first`, if that one is in it.
    #[inline]
    fn within(&self, index: usize, first: u64) -> Option<(Slice, u64)> {
        let slice = self.slices.get(index)?;
        let within = first.wrapping_sub(*self.firsts.get(index)?);
        (within < slice.blocks).then_some((*slice, within))
    }

    #[cold]
    fn search(&mut self, first: u64) -> Option<(Slice, u64)> {
        let index = self.firsts.partition_point(|start| *start <= first);
        self.last = index.checked_sub(1)?;
        self.within(self.last, first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slice(nsid: u32, start: u64, blocks: u64) -> Slice {
        Slice {
            target: 0,
            nsid,
            start,
            blocks,
        }
    }

    #[test]
    fn what_makes_no_namespace_is_refused() {
        let new = |slices: &[Slice]| SliceMap::new(slices).map(|map| map.blocks());
        assert_eq!(new(&[]), Err(SliceError::None));
        assert_eq!(
            new(&[slice(1, 0, 1), slice(1, 5, 0)]),
            Err(SliceError::Empty(1))
        );
        assert_eq!(new(&[slice(1, u64::MAX, 1)]), Err(SliceError::TooLong(0)));
        assert_eq!(new(&[slice(1, u64::MAX - 1, 1)]), Ok(1));
        let half = slice(1, 0, 1 << 63);
        assert_eq!(new(&[half, half]), Err(SliceError::TooLong(1)));
    }

    #[test]
    fn neighbours_are_joined_and_others_are_not() {
        let slices = [
            slice(1, 10, 5),
            slice(1, 15, 5),
            slice(2, 20, 5),
            slice(1, 25, 1),
        ];
        let map = SliceMap::new(&slices).unwrap();
        assert_eq!(
            map.slices(),
            [slice(1, 10, 10), slice(2, 20, 5), slice(1, 25, 1)]
        );
        assert_eq!(map.blocks(), 16);
        assert_eq!(map.namespaces(), [(0, 1), (0, 2)]);
    }

    #[test]
    fn nothing_past_the_end_has_a_piece() {
        let mut map = SliceMap::new(&[slice(1, 100, 8)]).unwrap();
        assert_eq!(map.piece(8, 1, 1), None);
        assert_eq!(map.piece(7, 2, 9), None);
        assert_eq!(map.piece(u64::MAX, 1, 9), None);
        assert_eq!(map.piece(u64::MAX, 2, 9), None);
        assert_eq!(map.piece(0, 0, 9), None);
        assert_eq!(map.piece(0, 1, 0), None);
        assert!(map.piece(7, 1, 9).is_some());
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(1_000))]
        /// Against one table entry for each block.
        #[test]
        fn pieces_are_the_blocks_of_the_table(
            parts in prop::collection::vec((0u16..3, 1u32..3, 0u64..50, 1u64..9), 1..8),
            asks in prop::collection::vec((0u64..70, 0u64..70, 1u64..12), 1..40),
        ) {
            let slices: Vec<Slice> = parts
                .iter()
                .map(|&(target, nsid, start, blocks)| Slice { target, nsid, start, blocks })
                .collect();
            let table: Vec<(u16, u32, u64)> = slices
                .iter()
                .flat_map(|slice| {
                    (slice.start..slice.start + slice.blocks).map(|lba| (slice.target, slice.nsid, lba))
                })
                .collect();
            let mut map = SliceMap::new(&slices).unwrap();
            prop_assert_eq!(map.blocks(), table.len() as u64);
            for (first, blocks, limit) in asks {
                let (mut at, mut left) = (first, blocks);
                let inside = blocks > 0 && first + blocks <= table.len() as u64;
                prop_assert_eq!(map.piece(first, blocks, limit).is_some(), inside);
                while inside && left > 0 {
                    let piece = map.piece(at, left, limit).unwrap();
                    prop_assert!(piece.blocks <= limit && piece.blocks <= left);
                    for block in 0..piece.blocks {
                        let want = table[(at + block) as usize];
                        prop_assert_eq!((piece.target, piece.nsid, piece.lba + block), want);
                    }
                    // As long as it can be.
                    let next = table.get((at + piece.blocks) as usize);
                    if piece.blocks < left.min(limit) {
                        prop_assert_ne!(next, Some(&(piece.target, piece.nsid, piece.lba + piece.blocks)));
                    }
                    at += piece.blocks;
                    left -= piece.blocks;
                }
            }
        }
    }
}
