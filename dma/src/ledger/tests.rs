//! Where regions are put, on IOMMUs of several shapes.

#[cfg(not(miri))]
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn ledger(ranges: &[RangeInclusive<u64>]) -> Ledger {
    Ledger::new(&DomainLimits {
        iova_ranges: ranges.to_vec(),
        page_sizes: PAGE,
        mappings: None,
    })
}

#[test]
fn never_the_first_mebibyte_nor_the_interrupt_window() {
    // A kernel before 5.4 tells no ranges, so everything is one.
    let ledger = ledger(&[0..=u64::MAX]);
    assert_eq!(ledger.choose(PAGE, PAGE), Some(Iova(0x10_0000)));
    // 4 GiB less what was taken: the piece below the window is too short for it, the one above begins behind it.
    assert_eq!(ledger.choose(0xfee0_0000, PAGE), Some(Iova(0x1_0000_0000)));
    assert_eq!(ledger.choose(0x1000_0000, PAGE), Some(Iova(0x1000_0000)));
    // But a caller who says so gets them.
    assert!(ledger.claim(Iova(0), 0x10_0000));
    assert!(ledger.claim(Iova(0xfee0_0000), 0x10_0000));
    assert!(!ledger.claim(Iova(0xfee0_0000), 0x1000));
}

#[test]
fn aligned_by_size_while_there_is_room() {
    let ledger = ledger(&[0..=0x7f_ffff_ffff]);
    for (length, alignment) in [
        (PAGE, PAGE),
        (3 * PAGE, 2 * PAGE),
        (2 << 20, 2 << 20),
        (3 << 20, 2 << 20),
        (1 << 30, 1 << 30),
        (5 << 30, 1 << 30),
    ] {
        let iova = ledger.choose(length, PAGE).unwrap();
        assert!(iova.is_aligned_to(alignment), "{length:#x} at {iova}");
    }
    assert_eq!(ledger.choose(1 << 39, PAGE), None);
    // Room for 2 MiB that does not begin on 2 MiB: taken all the same.
    let narrow = self::ledger(&[0x30_1000..=0x30_1000 + (2 << 20) - 1]);
    assert_eq!(narrow.choose(2 << 20, PAGE), Some(Iova(0x30_1000)));
    assert_eq!(narrow.choose(PAGE, PAGE), None);
    narrow.give_back(Iova(0x30_1000), 2 << 20);
    assert_eq!(
        narrow.choose(2 << 20, 2 << 20),
        None,
        "never less than the IOMMU's own page"
    );
}

#[test]
fn nothing_is_chosen_for_nothing() {
    let ledger = ledger(&[0..=u64::MAX]);
    assert_eq!(ledger.choose(0, PAGE), None);
    assert!(!ledger.claim(Iova(0), 0));
    assert!(!ledger.claim(Iova(u64::MAX - PAGE + 1), 2 * PAGE as usize));
    assert_eq!(self::ledger(&[]).choose(PAGE, PAGE), None);
}

#[cfg(not(miri))] // nothing unsafe in it, and an hour long there
proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(200))]

    /// A small IOMMU with a hole is filled until nothing fits, emptied in any order, and then has everything again.
    #[test]
    fn full_and_empty_again(lengths in proptest::collection::vec(1..400_u64, 1..40), order in any::<prop::sample::Index>()) {
        let ranges = [0..=0x3f_ffff, 0x48_0000..=0x9f_ffff];
        let ledger = ledger(&ranges);
        let everything: Vec<_> = ledger.lock().free.iter().collect();
        let mut held: Vec<(Iova, usize)> = Vec::new();
        let mut refused = 0;
        for pages in lengths.iter().cycle().take(500) {
            let length = pages * PAGE;
            let Some(iova) = ledger.choose(length, PAGE) else { refused += 1; continue };
            let last = iova.0 + length - 1;
            prop_assert!(iova.0 >= 0x10_0000 && iova.is_aligned_to(PAGE));
            prop_assert!(ranges.iter().any(|range| range.contains(&iova.0) && range.contains(&last)));
            prop_assert!(held.iter().all(|(other, size)| last < other.0 || other.0 + *size as u64 <= iova.0), "two at {iova}");
            ledger.mapped(iova, length as usize);
            held.push((iova, length as usize));
        }
        prop_assert!(refused > 0, "it was never full");
        held.sort_unstable();
        prop_assert_eq!(ledger.mappings(), held.clone());
        while !held.is_empty() {
            let (iova, length) = held.swap_remove(order.index(held.len()));
            ledger.unmapped(iova, length);
        }
        prop_assert_eq!(ledger.lock().free.iter().collect::<Vec<_>>(), everything);
        prop_assert!(ledger.mappings().is_empty());
    }
}
