//! What PRPs cannot express is refused, by name, with the list untouched.

use super::super::{NoList, PageSize, PrpError, Segment, build, build_scattered};
use super::reference::List;

const PAGE: PageSize = PageSize::KIB_4;

fn refused(segments: &[(u64, usize)]) -> PrpError {
    let segments: Vec<_> = segments
        .iter()
        .map(|&(iova, len)| Segment { iova, len })
        .collect();
    let mut list = List::new(4, PAGE);
    let error = build_scattered(&segments, PAGE, &mut list).unwrap_err();
    assert_eq!(list.writes, 0);
    if let [Segment { iova, len }] = *segments {
        assert_eq!(build(iova, len, PAGE, &mut list), Err(error));
        assert_eq!(list.writes, 0);
    }
    error
}

#[test]
fn empty() {
    assert_eq!(refused(&[]), PrpError::Empty { segment: 0 });
    assert_eq!(refused(&[(0x1000, 0)]), PrpError::Empty { segment: 0 });
    assert_eq!(
        refused(&[(0x1000, 4096), (0x3000, 0)]),
        PrpError::Empty { segment: 1 }
    );
}

#[test]
fn prp1_off_a_dword() {
    for offset in [1, 2, 3] {
        for len in [4, 4096, 8192, 1 << 20] {
            let iova = 0x1000 + offset;
            assert_eq!(refused(&[(iova, len)]), PrpError::NotDwordAligned { iova });
        }
    }
}

#[test]
fn past_the_end_of_the_address_space() {
    let overflow = |segment| PrpError::AddressOverflow { segment };
    for len in [4097, 8192, 8193, 1 << 20] {
        assert_eq!(refused(&[(u64::MAX - 4095, len)]), overflow(0), "{len}");
    }
    assert_eq!(refused(&[(u64::MAX - 4095, usize::MAX)]), overflow(0));
    assert_eq!(
        refused(&[(0x1000, 4096), (u64::MAX - 4095, 4097)]),
        overflow(1)
    );
    // Nothing continues behind the last byte.
    assert!(matches!(
        refused(&[(u64::MAX - 4095, 4096), (4, 4)]),
        PrpError::StartNotPageAligned { segment: 1, .. }
    ));
}

#[test]
fn holes_inside_a_page() {
    assert_eq!(
        refused(&[(0x1000, 512), (0x3000, 4096)]),
        PrpError::EndNotPageAligned {
            segment: 0,
            end: 0x1200
        }
    );
    assert_eq!(
        refused(&[(0x1000, 4096), (0x3000, 100), (0x5000, 4096)]),
        PrpError::EndNotPageAligned {
            segment: 1,
            end: 0x3064
        }
    );
    assert_eq!(
        refused(&[(0x1000, 4096), (0x3200, 512)]),
        PrpError::StartNotPageAligned {
            segment: 1,
            iova: 0x3200
        }
    );
    assert_eq!(
        refused(&[(0x1000, 4096), (0x3000, 4096), (0x5004, 4)]),
        PrpError::StartNotPageAligned {
            segment: 2,
            iova: 0x5004
        }
    );
}

#[test]
fn list_too_short_or_misplaced() {
    let too_short = |needed, available| Err(PrpError::ListTooShort { needed, available });
    assert_eq!(
        build(0x1000, 8192, PAGE, &mut NoList).map(|data| data.prp2),
        Ok(0x2000)
    );
    assert_eq!(build(0x1000, 8196, PAGE, &mut NoList), too_short(1, 0));
    let mut list = List::new(1, PAGE);
    assert!(build(0x1000, 513 * 4096, PAGE, &mut list).is_ok());
    list.reset();
    assert_eq!(build(0x1000, 514 * 4096, PAGE, &mut list), too_short(2, 1));
    assert_eq!(list.writes, 0);
    let mut shifted = List::new(2, PAGE).shifted(8);
    let misplaced = build(0x1000, 12_288, PAGE, &mut shifted);
    assert!(
        matches!(misplaced, Err(PrpError::ListNotPageAligned { page: 0, .. })),
        "{misplaced:?}"
    );
    assert_eq!(shifted.writes, 0);
}

#[test]
fn a_huge_length_is_refused_in_time() {
    let error = build(0, usize::MAX, PAGE, &mut List::new(1, PAGE)).unwrap_err();
    assert!(
        matches!(error, PrpError::ListTooShort { available: 1, .. }),
        "{error:?}"
    );
}
