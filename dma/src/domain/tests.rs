//! Each mistake that Linux calls EINVAL has its own name, on a 39-bit IOMMU with the interrupt hole.

use super::*;

fn limits() -> DomainLimits {
    DomainLimits {
        iova_ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff],
        page_sizes: 0x4020_1000,
        mappings: Some(65_535),
    }
}

fn region(pointer: usize, length: usize, access: Access) -> MapRegion<'static> {
    let pointer = NonNull::new(std::ptr::without_provenance_mut(pointer)).unwrap();
    MapRegion {
        pointer,
        length,
        descriptor: None,
        access,
    }
}

fn check(pointer: usize, length: usize, iova: u64) -> Result<(), MapError> {
    check_region(
        &limits(),
        &region(pointer, length, Access::READ_WRITE),
        Iova(iova),
    )
}

#[test]
fn good_regions_pass() {
    let page = limits().page_size() as usize;
    check(0x10_0000, page, 0x10_0000).unwrap();
    check(0x10_0000, page, 0).unwrap();
    check(0x10_0000, page, 0xfee0_0000 - page as u64).unwrap();
    check(0x10_0000, page, 0x80_0000_0000 - page as u64).unwrap();
    check(usize::MAX - page + 1, page, 0x10_0000).unwrap();
    check_region(
        &limits(),
        &region(0x10_0000, page, Access::DEVICE_READ),
        Iova(0),
    )
    .unwrap();
    check_region(
        &limits(),
        &region(0x10_0000, page, Access::DEVICE_WRITE),
        Iova(0),
    )
    .unwrap();
}

#[test]
fn each_mistake_has_its_own_name() {
    let page = limits().page_size() as usize;
    assert!(matches!(check(0x10_0000, 0, 0), Err(MapError::ZeroLength)));
    assert!(matches!(
        check(0x10_0000, page + 1, 0),
        Err(MapError::MisalignedLength { .. })
    ));
    assert!(matches!(
        check(0x10_0000, page / 2, 0),
        Err(MapError::MisalignedLength { .. })
    ));
    assert!(matches!(
        check(0x10_0008, page, 0),
        Err(MapError::MisalignedPointer {
            pointer: 0x10_0008,
            ..
        })
    ));
    assert!(matches!(
        check(0x10_0000, page, 0x200),
        Err(MapError::MisalignedIova {
            iova: Iova(0x200),
            ..
        })
    ));
    assert!(matches!(
        check(usize::MAX - page + 1, 2 * page, 0),
        Err(MapError::PointerWraps { .. })
    ));
    assert!(matches!(
        check(0x10_0000, 2 * page, u64::MAX - page as u64 + 1),
        Err(MapError::IovaWraps { .. })
    ));
    for bits in [0, 4, 7] {
        let region = region(0x10_0000, page, Access::from_bits_retain(bits));
        assert!(
            matches!(check_region(&limits(), &region, Iova(0)), Err(MapError::NoAccess { bits: got }) if got == bits)
        );
    }
    let full = DomainLimits {
        mappings: Some(0),
        ..limits()
    };
    let region = region(0x10_0000, page, Access::READ_WRITE);
    assert!(matches!(
        check_region(&full, &region, Iova(0)),
        Err(MapError::TooManyMappings)
    ));
    check_region(
        &DomainLimits {
            mappings: None,
            ..limits()
        },
        &region,
        Iova(0),
    )
    .unwrap();
}

#[test]
fn a_hole_is_named() {
    let page = limits().page_size() as usize;
    let interrupts = 0xfee0_0000..=0xfeef_ffff;
    let beyond = 0x80_0000_0000..=u64::MAX;
    let cases = [
        (0xfee0_0000, page, interrupts.clone()),
        (0xfee0_0000 - page as u64, 2 * page, interrupts.clone()), // begins well, ends in the hole
        (0xfeef_0000, 0x2_0000, interrupts.clone()),               // begins in the hole, ends well
        (0xfe00_0000, 0x200_0000, interrupts),                     // straddles it
        (0x80_0000_0000, page, beyond.clone()),
        (0x80_0000_0000 - page as u64, 2 * page, beyond),
    ];
    for (iova, length, expected) in cases {
        match check(0x10_0000, length, iova) {
            Err(MapError::OutsideIovaRanges { hole, .. }) => {
                assert_eq!(hole, expected, "{iova:#x}")
            }
            other => panic!("{iova:#x}: {other:?}"),
        }
    }
}

#[test]
fn ranges_in_any_order_and_touching_are_one() {
    let limits = DomainLimits {
        iova_ranges: vec![0x2000..=0x3fff, 0x0..=0x1fff, RangeInclusive::new(9, 3)],
        page_sizes: 0,
        mappings: None,
    };
    assert_eq!(limits.contains(0, 0x3fff), Ok(()));
    assert_eq!(limits.contains(0, 0x4000), Err(0x4000..=u64::MAX));
    let all = DomainLimits {
        iova_ranges: vec![0..=u64::MAX],
        ..limits.clone()
    };
    assert_eq!(all.contains(0, u64::MAX), Ok(()));
    let none = DomainLimits {
        iova_ranges: vec![],
        ..limits
    };
    assert_eq!(none.contains(7, 8), Err(0..=u64::MAX));
}

#[test]
fn page_size_is_never_below_the_systems() {
    let with = |page_sizes| {
        DomainLimits {
            page_sizes,
            ..limits()
        }
        .page_size()
    };
    let system = crate::page_size() as u64;
    assert_eq!(with(0), system);
    assert_eq!(with(0x200), system);
    assert_eq!(with(1 << 21), 1 << 21);
    assert_eq!(with(1 << 63), 1 << 63);
}

#[test]
fn identities_differ() {
    let ids: std::collections::HashSet<_> = (0..100).map(|_| DomainId::new()).collect();
    assert_eq!(ids.len(), 100);
}

#[test]
fn addresses_print_in_hexadecimal() {
    assert_eq!(
        format!("{} {:?}", Iova(0xfee0_0000), Iova(16)),
        "0xfee00000 0x10"
    );
    assert_eq!(Iova(u64::MAX).checked_add(1), None);
    assert!(!Iova(0).is_aligned_to(0));
}
