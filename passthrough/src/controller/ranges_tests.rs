use proptest::prelude::*;

use super::*;
use crate::command::Access;
use crate::controller::slices::Slice;

fn extent(first: u64, blocks: u64, access: Access) -> Extent {
    Extent {
        nsid: 1,
        first,
        blocks,
        access,
    }
}

fn slices(parts: &[(u16, u32, u64, u64)]) -> SliceMap {
    let slices: Vec<Slice> = parts
        .iter()
        .map(|&(target, nsid, start, blocks)| Slice {
            target,
            nsid,
            start,
            blocks,
        })
        .collect();
    SliceMap::new(&slices).unwrap()
}

/// The real blocks that a client's blocks are, one by one.
fn table(parts: &[(u16, u32, u64, u64)]) -> Vec<(u16, u32, u64)> {
    let blocks = |&(target, nsid, start, blocks): &(u16, u32, u64, u64)| {
        (start..start + blocks).map(move |lba| (target, nsid, lba))
    };
    parts.iter().flat_map(blocks).collect()
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(1_000))]

    #[test]
    fn a_deallocation_names_each_block_as_often_as_its_ranges_do(
        parts in prop::collection::vec((0u16..2, 1u32..3, 0u64..50, 1u64..9), 1..6),
        asked in prop::collection::vec((0u64..40, 0u64..20), 1..12),
        ranges in 1u16..5, range_blocks in 1u32..9, blocks in 1u64..20,
    ) {
        let table = table(&parts);
        let mut map = slices(&parts);
        let asked: Vec<Extent> = asked
            .iter()
            .map(|&(first, blocks)| extent(first.min(map.blocks()), blocks, Access::Deallocate))
            .map(|range| Extent { blocks: range.blocks.min(map.blocks() - range.first), ..range })
            .collect();
        let mut want: Vec<(u16, u32, u64)> = asked
            .iter()
            .flat_map(|range| table[range.first as usize..][..range.blocks as usize].to_vec())
            .collect();
        let limits = DeallocateLimits { ranges, range_blocks, blocks };
        // The second controller takes less.
        let least = DeallocateLimits { blocks: blocks.div_ceil(2), ..limits };
        let mut plan = Deallocation::new(&asked);
        let (mut into, mut got) = (Vec::new(), Vec::new());
        while let Some((target, nsid)) = plan.next(&mut map, |target| if target == 0 { limits } else { least }, &mut into).unwrap() {
            let blocks = if target == 0 { blocks } else { least.blocks };
            prop_assert!(!into.is_empty() && into.len() <= usize::from(ranges));
            prop_assert!(into.iter().all(|range| (1..=range_blocks).contains(&range.blocks)));
            prop_assert!(into.iter().map(|range| u64::from(range.blocks)).sum::<u64>() <= blocks);
            for range in &into {
                got.extend((range.lba..range.lba + u64::from(range.blocks)).map(|lba| (target, nsid, lba)));
            }
        }
        want.sort_unstable();
        got.sort_unstable();
        prop_assert_eq!(got, want);
    }

    /// Every block goes from where the client's source is to where its destination is, in order.
    #[test]
    fn a_copy_moves_each_block_to_its_place(
        parts in prop::collection::vec((0u64..50, 1u64..9), 1..6),
        asked in prop::collection::vec((0u64..40, 1u64..12), 1..8),
        to in 0u64..40,
        ranges in 1u16..5, range_blocks in 1u16..9, blocks in 1u32..20,
    ) {
        let parts: Vec<(u16, u32, u64, u64)> = parts.iter().map(|&(start, blocks)| (0, 7, start, blocks)).collect();
        let table = table(&parts);
        let mut map = slices(&parts);
        let end = map.blocks();
        let mut sources: Vec<Extent> = asked
            .iter()
            .map(|&(first, blocks)| (first % end, blocks))
            .map(|(first, blocks)| extent(first, blocks.min(end - first), Access::Read))
            .collect();
        let to = to % end;
        // As much as fits.
        let mut room = end - to;
        for source in &mut sources {
            source.blocks = source.blocks.min(room);
            room -= source.blocks;
        }
        sources.retain(|source| source.blocks > 0);
        let total: u64 = sources.iter().map(|source| source.blocks).sum();
        let mut extents = vec![extent(to, total, Access::Write)];
        extents.extend(&sources);
        let overlaps = sources.iter().any(|source| {
            (source.first..source.first + source.blocks).any(|block| (to..to + total).contains(&block))
        });
        let limits = CopyLimits { ranges, range_blocks, blocks };
        let mut plan = Copying::new(&extents).unwrap();
        let mut into = Vec::new();
        let mut moved = Vec::new();
        let want: Vec<(u64, u64)> = sources
            .iter()
            .flat_map(|source| source.first..source.first + source.blocks)
            .zip(to..)
            .map(|(from, to)| (table[from as usize].2, table[to as usize].2))
            .collect();
        let mut commands = 0;
        loop {
            match plan.next(&mut map, &limits, &mut into) {
                Ok(Some(part)) => {
                    commands += 1;
                    prop_assert!(!into.is_empty() && into.len() <= usize::from(ranges));
                    let sum: u64 = into.iter().map(|range| u64::from(range.blocks)).sum();
                    prop_assert!(sum <= u64::from(blocks));
                    prop_assert!(into.iter().all(|range| (1..=u32::from(range_blocks)).contains(&range.blocks)));
                    for copied in 0..=into.len() as u32 {
                        // The range that holds the first block which was not copied.
                        let before = into.iter().take(copied as usize).map(|range| u64::from(range.blocks)).sum::<u64>();
                        let mut at = moved.len() as u64 + before.min(sum - 1);
                        let mut range = 0;
                        while at >= sources[range].blocks {
                            at -= sources[range].blocks;
                            range += 1;
                        }
                        prop_assert_eq!(plan.failed_at(copied), range as u32);
                    }
                    let froms = into.iter().flat_map(|range| range.lba..range.lba + u64::from(range.blocks));
                    moved.extend(froms.zip(part.lba..));
                }
                Ok(None) => {
                    prop_assert_eq!(&moved, &want);
                    prop_assert!(!overlaps || commands == 1);
                    break;
                }
                Err(status) => {
                    prop_assert!(overlaps && status.is(Status::OVERLAPPING_IO_RANGE));
                    prop_assert!(moved.is_empty());
                    break;
                }
            }
        }
    }
}

#[test]
fn a_copy_between_namespaces_is_refused() {
    let mut map = slices(&[(0, 1, 0, 8), (0, 2, 0, 8)]);
    let extents = [extent(0, 2, Access::Write), extent(8, 2, Access::Read)];
    let limits = CopyLimits {
        ranges: 8,
        range_blocks: 8,
        blocks: 8,
    };
    let mut plan = Copying::new(&extents).unwrap();
    let refused = plan.next(&mut map, &limits, &mut Vec::new());
    assert!(refused.is_err_and(|status| status.is(Status::INVALID_FIELD)));
}

#[test]
fn what_takes_no_ranges_gets_none() {
    let mut map = slices(&[(0, 1, 0, 8)]);
    let none = DeallocateLimits {
        ranges: 0,
        ..DeallocateLimits::default()
    };
    let mut plan = Deallocation::new(&[extent(0, 1, Access::Deallocate)]);
    assert!(plan.next(&mut map, |_| none, &mut Vec::new()).is_err());

    let extents = [extent(4, 1, Access::Write), extent(0, 1, Access::Read)];
    let mut plan = Copying::new(&extents).unwrap();
    let refused = plan.next(&mut map, &CopyLimits::default(), &mut Vec::new());
    assert!(refused.is_err());
}

#[test]
fn ranges_outside_are_refused_here_too() {
    let mut map = slices(&[(0, 1, 0, 8)]);
    for (first, blocks) in [(8, 1), (7, 2), (u64::MAX, 1), (1, u64::MAX)] {
        let mut plan = Deallocation::new(&[extent(first, blocks, Access::Deallocate)]);
        let refused = plan.next(&mut map, |_| DeallocateLimits::default(), &mut Vec::new());
        assert_eq!(refused, Err(Status::LBA_OUT_OF_RANGE.with_dnr()));
    }
}
