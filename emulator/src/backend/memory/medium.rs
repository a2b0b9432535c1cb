//! The memory of one namespace.
#![allow(unsafe_code)] // Giving pages back to the system is unsafe in general; here nothing else can see them.

use std::io;

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

/// Bytes that are looked at once.
const CHUNK: usize = 64 << 10;

/// Anonymous memory, of which the system gives a page when it is first written.
#[derive(Debug)]
pub(super) struct Medium(MmapMut);

impl Medium {
    pub(super) fn new(bytes: u64) -> io::Result<Medium> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new()
            .len(length)
            .no_reserve_swap()
            .map_anon()?;
        Ok(Medium(map))
    }

    /// A range of it; `None` when it is not all inside.
    pub(super) fn range(&mut self, offset: u64, length: u64) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(length).ok()?)?;
        self.0.get_mut(offset..end)
    }

    /// Makes a range read as zeroes, by whatever costs less; `None` when it is not all inside.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Option<()> {
        if length > CHUNK as u64 {
            return self.discard(offset, length);
        }
        self.range(offset, length).map(zero)
    }

    /// Makes a range read as zeroes and gives its whole pages back to the system; `None` when it is not all inside.
    pub(super) fn discard(&mut self, offset: u64, length: u64) -> Option<()> {
        let page = nvme_vfio_dma::page_size() as u64;
        let end = offset.checked_add(length)?;
        let (first, last) = (offset.next_multiple_of(page).min(end), end / page * page);
        if first >= last {
            return self.range(offset, length).map(zero);
        }
        zero(self.range(offset, first - offset)?);
        zero(self.range(last, end - last)?);
        self.range(first, last - first)?;
        let (start, count) = (first as usize, (last - first) as usize);
        // SAFETY: the mapping is private, anonymous and borrowed for writing here, so that nobody holds a reference into the range
        // or counts on its contents; the range was checked to be inside. Its pages read as zeroes afterwards.
        let given = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, count)
        };
        if given.is_err() {
            zero(self.range(first, last - first)?);
        }
        Some(())
    }

    /// Makes all of it read as zeroes.
    pub(super) fn clear(&mut self) -> Option<()> {
        self.discard(0, self.0.len() as u64)
    }

    /// Copies within; `None` when it is not all inside.
    pub(super) fn copy(&mut self, from: u64, to: u64, length: u64) -> Option<()> {
        self.range(from, length)?;
        self.range(to, length)?;
        let from = from as usize;
        self.0
            .copy_within(from..from + length as usize, to as usize);
        Some(())
    }
}

/// Zeroes memory. A page that was never written is zero already and stays untouched.
fn zero(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(CHUNK) {
        if chunk.iter().any(|&byte| byte != 0) {
            chunk.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarding_zeroes_exactly_the_range() {
        let page = nvme_vfio_dma::page_size() as u64;
        for (offset, length) in [
            (0, page),
            (1, page),
            (1, 2 * page),
            (page, 2 * page),
            (page - 1, page + 2),
            (3 * page, page),
            (0, 4 * page),
            (5, 10),
            (7, 0),
        ] {
            let mut medium = Medium::new(4 * page).unwrap();
            medium.range(0, 4 * page).unwrap().fill(1);
            medium.discard(offset, length).unwrap();
            for (place, &byte) in medium.range(0, 4 * page).unwrap().iter().enumerate() {
                let inside = (offset..offset + length).contains(&(place as u64));
                assert_eq!(byte, u8::from(!inside), "{offset}+{length} at {place}");
            }
        }
        let mut medium = Medium::new(page).unwrap();
        assert!(medium.discard(page, 1).is_none());
        assert!(medium.discard(1, u64::MAX).is_none());
        assert!(medium.copy(0, 1, page).is_none());
    }

    #[test]
    fn zeroing_is_exact_for_short_and_long_ranges() {
        let bytes = 4 * CHUNK as u64;
        for (offset, length) in [(3, 5), (1, CHUNK as u64), (7, CHUNK as u64 + 1), (0, bytes)] {
            let mut medium = Medium::new(bytes).unwrap();
            medium.range(0, bytes).unwrap().fill(1);
            medium.zero(offset, length).unwrap();
            let zeroes = medium
                .range(0, bytes)
                .unwrap()
                .iter()
                .filter(|&&byte| byte == 0);
            assert_eq!(zeroes.count() as u64, length);
            let inside = medium.range(offset, length).unwrap();
            assert!(inside.iter().all(|&byte| byte == 0), "{offset}+{length}");
        }
        assert!(Medium::new(bytes).unwrap().zero(1, bytes).is_none());
    }
}
