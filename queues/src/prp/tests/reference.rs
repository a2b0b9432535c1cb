//! What a controller does with PRP1 and PRP2, written from the specification (Base
//! Specification 2.0, 4.1.1) and from nothing in the builder: byte counts only, one page at a time.

use std::collections::HashMap;

use super::super::{PageSize, PrpListMemory};

/// What unused list entries hold: no page address, so that following one is seen.
pub(super) const POISON: u64 = 0xdead_dead_dead_dead;

/// List pages at scattered addresses, poisoned, that remember what was written.
pub(super) struct List {
    iovas: Vec<u64>,
    entries: HashMap<u64, u64>,
    entries_per_page: usize,
    pub(super) writes: usize,
}

impl List {
    /// `pages` pages, neither adjacent nor in ascending order.
    pub(super) fn new(pages: usize, page: PageSize) -> Self {
        let iovas = (0..pages as u64)
            .map(|index| 0x4000_0000_0000 + (index ^ 1) * 3 * page.bytes() as u64)
            .collect();
        Self {
            iovas,
            entries: HashMap::new(),
            entries_per_page: page.bytes() / 8,
            writes: 0,
        }
    }

    /// With every page moved by `offset` bytes.
    pub(super) fn shifted(mut self, offset: u64) -> Self {
        for iova in &mut self.iovas {
            *iova += offset;
        }
        self
    }

    pub(super) fn reset(&mut self) {
        self.entries.clear();
        self.writes = 0;
    }

    /// The eight bytes at `iova` as the device reads them; `None` outside the list pages.
    pub(super) fn read(&self, iova: u64) -> Option<u64> {
        let bytes = self.entries_per_page as u64 * 8;
        let inside = self
            .iovas
            .iter()
            .any(|page| (*page..*page + bytes).contains(&iova));
        inside.then(|| self.entries.get(&iova).copied().unwrap_or(POISON))
    }
}

impl PrpListMemory for List {
    fn pages(&self) -> usize {
        self.iovas.len()
    }

    fn page_iova(&self, page: usize) -> u64 {
        self.iovas[page]
    }

    fn write(&mut self, page: usize, entry: usize, value: u64) {
        assert!(
            entry < self.entries_per_page,
            "entry {entry} is outside the list page"
        );
        let before = self
            .entries
            .insert(self.iovas[page] + 8 * entry as u64, value);
        assert_eq!(
            before, None,
            "entry {entry} of page {page} was written twice"
        );
        self.writes += 1;
    }
}

/// A walk: the pieces that the device touches, in order, and how many list entries it read.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) pieces: Vec<(u64, usize)>,
    pub(super) entries_read: usize,
}

/// Walks `len` bytes. Strict: an offset in PRP2 or a list entry, a poisoned
/// entry, and a read outside the list are errors.
pub(super) fn walk(
    prp1: u64,
    prp2: u64,
    len: usize,
    page: PageSize,
    list: &List,
) -> Result<Walk, String> {
    let size = page.bytes() as u64;
    if !prp1.is_multiple_of(4) {
        return Err(format!("PRP1 {prp1:#x} is not dword aligned"));
    }
    let first = len.min((size - prp1 % size) as usize);
    let mut walk = Walk {
        pieces: vec![(prp1, first)],
        entries_read: 0,
    };
    let mut left = len - first;
    if left == 0 {
        return if prp2 == 0 {
            Ok(walk)
        } else {
            Err(format!("PRP2 {prp2:#x} is not used"))
        };
    }
    if left as u64 <= size {
        aligned(prp2, size)?;
        walk.pieces.push((prp2, left));
        return Ok(walk);
    }
    if !prp2.is_multiple_of(8) {
        return Err(format!("list pointer {prp2:#x} is not qword aligned"));
    }
    let mut at = prp2;
    while left > 0 {
        let value = list
            .read(at)
            .ok_or_else(|| format!("read of {at:#x}, outside the list"))?;
        walk.entries_read += 1;
        let last_of_page = at % size == size - 8;
        if last_of_page && left as u64 > size {
            aligned(value, size)?;
            at = value;
            continue;
        }
        aligned(value, size)?;
        let piece = left.min(size as usize);
        walk.pieces.push((value, piece));
        left -= piece;
        at += 8;
    }
    Ok(walk)
}

fn aligned(address: u64, size: u64) -> Result<(), String> {
    if address.is_multiple_of(size) {
        Ok(())
    } else {
        Err(format!("{address:#x} is not page aligned"))
    }
}

/// The pages' pieces of a buffer that lies as `segments` say: what a walk must give.
pub(super) fn expected(segments: &[(u64, usize)], page: PageSize) -> Vec<(u64, usize)> {
    let size = page.bytes() as u64;
    let mut pieces: Vec<(u64, usize)> = Vec::new();
    for (iova, len) in segments {
        let (mut at, mut left) = (*iova, *len);
        while left > 0 {
            let piece = left.min((size - at % size) as usize);
            match pieces.last_mut() {
                // The same page goes on.
                Some((start, length))
                    if *start + *length as u64 == at && !at.is_multiple_of(size) =>
                {
                    *length += piece
                }
                _ => pieces.push((at, piece)),
            }
            at += piece as u64;
            left -= piece;
        }
    }
    pieces
}

/// The walker must itself refuse what a device refuses, or agreement with it would mean nothing.
#[test]
fn the_walker_is_strict() {
    let page = PageSize::KIB_4;
    let mut list = List::new(2, page);
    assert!(walk(0x1002, 0, 8, page, &list).is_err());
    assert!(walk(0x1000, 0x2000, 4096, page, &list).is_err());
    assert!(walk(0x1000, 0x2004, 8192, page, &list).is_err());
    assert!(
        walk(0x1000, list.page_iova(0), 12_288, page, &list)
            .unwrap_err()
            .contains("0xdead")
    );
    assert!(
        walk(0x1000, 0x9000, 12_288, page, &list)
            .unwrap_err()
            .contains("outside")
    );
    list.write(0, 0, 0x2000);
    list.write(0, 1, 0x3000);
    let walked = walk(0x1ffc, list.page_iova(0), 4 + 8192, page, &list).unwrap();
    assert_eq!(walked.pieces, [(0x1ffc, 4), (0x2000, 4096), (0x3000, 4096)]);
    // The third page is not described.
    assert!(walk(0x1ffc, list.page_iova(0), 8 + 8192, page, &list).is_err());
}
