use std::sync::Arc;

use nvme_vfio_dma::{Access, AddressSpace, FakeDomain};
use proptest::prelude::*;

use super::*;

const PAGE: usize = 4096;

/// The address of each dword that PRPs name, read back as a controller does: from the list in memory.
fn addresses(pages: &Pages, slot: u16, pointer: DataPointer, length: usize) -> Vec<u64> {
    let page_of = |address: u64| address & !(PAGE as u64 - 1);
    let mut firsts = vec![pointer.prp1];
    let in_first = PAGE - (pointer.prp1 as usize & (PAGE - 1));
    let rest = length.saturating_sub(in_first);
    let count = rest.div_ceil(PAGE);
    if count == 1 {
        firsts.push(pointer.prp2);
    } else if count > 1 {
        assert_eq!(pointer.prp2, pages.of(slot).iova());
        let base = usize::from(slot) * PAGE;
        firsts.extend((0..count).map(|index| pages.memory.read_u64(base + index * 8).unwrap()));
    }
    assert!(firsts[1..].iter().all(|first| page_of(*first) == *first));
    let bytes = firsts
        .iter()
        .flat_map(|&first| first..page_of(first) + PAGE as u64);
    bytes.take(length).collect()
}

fn pages(slots: usize) -> Pages {
    let space = AddressSpace::new(Arc::new(FakeDomain::new()));
    let memory = space.shared(slots * PAGE, Access::DEVICE_READ).unwrap();
    Pages::new(memory, PageSize::new(PAGE).unwrap())
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(500))]

    /// Any cut of any scattered data names the same bytes as the data itself does.
    #[test]
    fn prps_of_a_part_name_its_bytes(
        first in (0usize..1024).prop_map(|dwords| dwords * 4),
        runs in prop::collection::vec((1u64..1000, 1usize..5), 1..12),
        last in 1usize..=PAGE,
        cut in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        slot in 0u16..4,
    ) {
        let pages = pages(4);
        let page = PageSize::new(PAGE).unwrap();
        // Whole pages, but for the begin of the first and the end of the last.
        let mut segments: Vec<Segment> = runs
            .iter()
            .map(|&(at, count)| Segment { iova: 1 << 32 | at << 16, len: count * PAGE })
            .collect();
        segments[0].iova += first as u64;
        segments[0].len -= first;
        let end = segments.len() - 1;
        let spare = PAGE - last;
        if segments[end].len > spare {
            segments[end].len -= spare;
        }
        let bytes: Vec<u64> = segments
            .iter()
            .flat_map(|segment| segment.iova..segment.iova + segment.len as u64)
            .collect();
        // A dword to begin at, as blocks do.
        let skip = cut.0.index(bytes.len()) & !3;
        let length = cut.1.index(bytes.len() - skip) + 1;
        let mut window = Vec::new();
        let pointer = pointer(&segments, skip, length, page, &mut pages.of(slot), &mut window).unwrap();
        prop_assert_eq!(addresses(&pages, slot, pointer, length), &bytes[skip..skip + length]);
        // Nothing is written to other slots' pages.
        for other in (0..4u16).filter(|other| *other != slot) {
            let base = usize::from(other) * PAGE;
            let word = |index| pages.memory.read_u64(base + index * 8).unwrap();
            prop_assert_eq!((0..PAGE / 8).map(word).max(), Some(0));
        }
    }
}

#[test]
fn what_prps_cannot_say_is_refused() {
    let pages = pages(1);
    let page = PageSize::new(PAGE).unwrap();
    let whole = |iova, len| Segment { iova, len };
    let ask = |segments: &[Segment], skip, length| {
        pointer(
            segments,
            skip,
            length,
            page,
            &mut pages.of(0),
            &mut Vec::new(),
        )
    };
    // More than there is.
    assert!(ask(&[whole(0x10000, PAGE)], 0, PAGE + 4).is_err());
    assert!(
        ask(
            &[whole(0x10000, PAGE), whole(0x30000, PAGE)],
            PAGE,
            PAGE + 4
        )
        .is_err()
    );
    // A hole inside of a page.
    assert!(ask(&[whole(0x10000, 512), whole(0x30000, PAGE)], 0, 1024).is_err());
    // More than one page of list describes.
    let many: Vec<Segment> = (0..600).map(|at| whole(at << 20, PAGE)).collect();
    assert!(ask(&many, 0, 513 * PAGE).is_ok());
    assert!(ask(&many, 0, 514 * PAGE).is_err());
}
