//! Every alignment class, every length class, three page sizes; then random ones.

use proptest::prelude::*;

use super::super::{PageSize, PrpListMemory, Segment, build, build_scattered};
use super::reference::{List, expected, walk};
use nvme_vfio_seeded::seeded;

const MAX_LEN: usize = 8 << 20;

/// Builds, walks, and compares: pieces, entries used, nothing else written.
fn agree(segments: &[(u64, usize)], page: PageSize, list: &mut List) {
    list.reset();
    let len = segments.iter().map(|(_, len)| len).sum();
    let data = match *segments {
        [(iova, len)] => build(iova, len, page, list),
        _ => {
            let segments: Vec<_> = segments
                .iter()
                .map(|&(iova, len)| Segment { iova, len })
                .collect();
            build_scattered(&segments, page, list)
        }
    };
    let data =
        data.unwrap_or_else(|error| panic!("{segments:x?} in pages of {}: {error}", page.bytes()));
    let walked = walk(data.prp1, data.prp2, len, page, list)
        .unwrap_or_else(|error| panic!("{segments:x?} in pages of {}: {error}", page.bytes()));
    let wanted = expected(segments, page);
    assert_eq!(
        walked.pieces,
        wanted,
        "{segments:x?} in pages of {}",
        page.bytes()
    );
    assert_eq!(
        walked.entries_read, list.writes,
        "entries written and never read"
    );
    assert!(
        wanted.len() > 2 || list.writes == 0,
        "two pages need no list"
    );
}

/// 512 bytes to 8 MiB: powers of two, and a block, a dword and a byte on either side.
fn lengths() -> Vec<usize> {
    let mut lengths: Vec<usize> = (9..=23)
        .map(|log2| 1usize << log2)
        .flat_map(|len| {
            [
                len - 512,
                len - 4,
                len - 1,
                len,
                len + 1,
                len + 4,
                len + 512,
            ]
        })
        .filter(|len| (4..=MAX_LEN).contains(len))
        .collect();
    // 511, 512 and 513 list entries of a 4 KiB list page, where the chain begins.
    lengths.extend((510..=514).map(|pages| pages * 4096));
    lengths.extend((1020..=1026).map(|pages| pages * 4096));
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Dword offsets: near both ends of the page, and around each power of two between.
fn offsets(page: PageSize) -> Vec<u64> {
    let size = page.bytes() as u64;
    let mut offsets: Vec<u64> = (0..8).flat_map(|n| [4 * n, size - 4 * (n + 1)]).collect();
    offsets
        .extend((5..size.ilog2()).flat_map(|log2| [(1 << log2) - 4, 1 << log2, (1 << log2) + 4]));
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

#[test]
fn matrix_of_offset_and_length() {
    for bytes in [4096, 8192, 65_536] {
        let page = PageSize::new(bytes).unwrap();
        let mut list = List::new(page.list_pages(MAX_LEN), page);
        for len in lengths() {
            for offset in offsets(page) {
                agree(&[(0x7f00_0000_0000 + offset, len)], page, &mut list);
            }
        }
    }
}

#[test]
fn every_dword_offset_of_a_page() {
    let page = PageSize::KIB_4;
    let mut list = List::new(1, page);
    for offset in (0..4096).step_by(4) {
        for len in [
            1, 4, 512, 4092, 4095, 4096, 4097, 4100, 8188, 8191, 8192, 8193, 8196, 12_288, 12_289,
            65_536,
        ] {
            agree(&[(0x10_0000 + offset, len)], page, &mut list);
        }
    }
}

#[test]
fn up_to_the_end_of_the_address_space() {
    let page = PageSize::KIB_4;
    let mut list = List::new(1, page);
    // The last byte of the address space is the last of the buffer. (The reference counts
    // past it, so what PRPs say is compared here.)
    for (len, prp2) in [
        (4u64, 0),
        (4096, 0),
        (4100, u64::MAX - 4095),
        (8192, u64::MAX - 4095),
    ] {
        let data = build(u64::MAX - (len - 1), len as usize, page, &mut list).unwrap();
        assert_eq!((data.prp1, data.prp2), (u64::MAX - (len - 1), prp2));
    }
    assert_eq!(list.writes, 0);
    assert!(build(u64::MAX - 0x7fff, 0x8000, page, &mut list).is_ok());
    assert_eq!(list.writes, 7);
}

#[test]
fn list_pages_is_just_enough_at_the_worst_offset() {
    for bytes in [4096, 8192, 65_536] {
        let page = PageSize::new(bytes).unwrap();
        for len in lengths() {
            let worst = bytes as u64 - 4;
            let pages = page.list_pages(len);
            agree(&[(worst, len)], page, &mut List::new(pages, page));
            if let Some(fewer) = pages.checked_sub(1) {
                let refused = build(worst, len, page, &mut List::new(fewer, page));
                assert!(
                    refused.is_err(),
                    "{len} bytes need fewer than {pages} list pages"
                );
            }
        }
    }
}

#[test]
fn scattered_segments() {
    let page = PageSize::KIB_4;
    let mut list = List::new(page.list_pages(MAX_LEN), page);
    // Two pages in all: no list.
    agree(&[(0x1ffc, 4), (0x9000, 4096)], page, &mut list);
    // Descending, and a page named twice.
    agree(
        &[(0x9000, 4096), (0x5000, 8192), (0x9000, 512)],
        page,
        &mut list,
    );
    // The last page of the address space, then the first: neighbours only to arithmetic that wraps.
    list.reset();
    let segments = [
        Segment {
            iova: u64::MAX - 4095,
            len: 4096,
        },
        Segment { iova: 0, len: 8192 },
    ];
    let data = build_scattered(&segments, page, &mut list).unwrap();
    let list_page = list.page_iova(0);
    assert_eq!((data.prp1, data.prp2), (u64::MAX - 4095, list_page));
    assert_eq!(
        (list.read(list_page), list.read(list_page + 8)),
        (Some(0), Some(4096))
    );
    // Segments that continue each other inside a page.
    agree(
        &[(0x1000, 100), (0x1064, 4000), (0x2004, 4092), (0x7000, 4)],
        page,
        &mut list,
    );
    agree(&[(0x1000, 1), (0x1001, 1), (0x1002, 2)], page, &mut list);
    // 2048 pages, each on its own.
    let pages: Vec<_> = (0..2048).map(|n| (0x10_0000 + n * 0x3000, 4096)).collect();
    agree(&pages, page, &mut list);
}

fn page_sizes() -> impl Strategy<Value = PageSize> {
    prop_oneof![Just(4096), Just(8192), Just(65_536)]
        .prop_map(|bytes| PageSize::new(bytes).unwrap())
}

/// Segments that PRPs can express: each run of whole pages cut at random places.
fn expressible(page: PageSize) -> impl Strategy<Value = Vec<(u64, usize)>> {
    let size = page.bytes();
    let run = (
        1usize..40,
        0u64..1 << 20,
        proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    );
    let runs = proptest::collection::vec(run, 1..6);
    (runs, 0..size / 4, 0..size).prop_map(move |(runs, first, last)| {
        let count = runs.len();
        let mut segments = Vec::new();
        for (index, (pages, number, cuts)) in runs.into_iter().enumerate() {
            let mut start = number * size as u64;
            let mut end = start + (pages * size) as u64;
            if index == 0 {
                start += 4 * first as u64;
            }
            if index == count - 1 {
                end -= (last as u64).min(end - start - 1);
            }
            let mut cuts: Vec<u64> = cuts
                .iter()
                .map(|cut| start + cut.index((end - start) as usize) as u64)
                .collect();
            cuts.extend([start, end]);
            cuts.sort_unstable();
            cuts.dedup();
            segments.extend(
                cuts.windows(2)
                    .map(|pair| (pair[0], (pair[1] - pair[0]) as usize)),
            );
        }
        segments
    })
}

proptest! {
    #![proptest_config(seeded(2_000))]

    #[test]
    fn contiguous_agrees(page in page_sizes(), start in 0u64..1 << 50, len in 1usize..=MAX_LEN) {
        let mut list = List::new(page.list_pages(len), page);
        agree(&[(start & !3, len)], page, &mut list);
    }

    #[test]
    fn scattered_agrees((page, segments) in page_sizes().prop_flat_map(|page| (Just(page), expressible(page)))) {
        let len = segments.iter().map(|(_, len)| len).sum();
        let mut list = List::new(page.list_pages(len), page);
        agree(&segments, page, &mut list);
    }

    /// Whatever is asked: no panic, and what is accepted walks back to what was asked.
    #[test]
    fn anything_is_refused_or_right(
        page in page_sizes(),
        segments in proptest::collection::vec((any::<u64>(), 0usize..1 << 18), 0..4),
        round in any::<bool>(),
    ) {
        let mask = if round { page.bytes() as u64 - 1 } else { 3 };
        let segments: Vec<_> = segments
            .iter()
            .map(|&(iova, len)| Segment { iova: iova & !mask, len: len & !(mask as usize) })
            .collect();
        let mut list = List::new(8, page);
        match build_scattered(&segments, page, &mut list) {
            Ok(data) => {
                let pairs: Vec<_> = segments.iter().map(|segment| (segment.iova, segment.len)).collect();
                let len = pairs.iter().map(|(_, len)| len).sum();
                let walked = walk(data.prp1, data.prp2, len, page, &list);
                prop_assert_eq!(walked.unwrap().pieces, expected(&pairs, page));
            }
            Err(_) => prop_assert_eq!(list.writes, 0),
        }
    }
}
