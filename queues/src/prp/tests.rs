//! PRPs against a slow reference that walks them as a device would.

mod matrix;
mod reference;
mod refusals;

use super::*;

#[test]
fn page_sizes_are_powers_of_two_in_range() {
    assert_eq!(PageSize::new(4096), Some(PageSize::KIB_4));
    assert_eq!(PageSize::new(2048), None);
    assert_eq!(PageSize::new(4097), None);
    assert_eq!(PageSize::new(0), None);
    assert_eq!(PageSize::new(128 << 20).map(PageSize::mps), Some(15));
    assert_eq!(PageSize::new(256 << 20), None);
    assert_eq!(PageSize::from_mps(4).map(PageSize::bytes), Some(65536));
    assert_eq!(PageSize::from_mps(16), None);
}

#[test]
fn list_pages_at_the_worst_alignment() {
    let page = PageSize::KIB_4;
    assert_eq!(page.list_pages(0), 0);
    assert_eq!(page.list_pages(4100), 0);
    // 4 bytes, a page, 4 bytes: PRP1 and two entries.
    assert_eq!(page.list_pages(4104), 1);
    // PRP1's 4 bytes and 512 pages fill one list page to the last entry.
    assert_eq!(page.list_pages(4 + 512 * 4096), 1);
    assert_eq!(page.list_pages(8 + 512 * 4096), 2);
    assert_eq!(page.list_pages(8 << 20), 5);
}
