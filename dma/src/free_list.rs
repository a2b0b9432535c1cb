//! Which ranges of numbers are free: IOVAs of a domain, bytes of an arena.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Free ranges, never touching each other. Ends are included, so that 2^64 − 1 can be one.
#[derive(Debug, Default, Clone)]
pub(crate) struct FreeList {
    /// First to last.
    ranges: BTreeMap<u64, u64>,
}

impl FreeList {
    /// The free range that holds `number`, or else the nearest before it.
    fn at_or_before(&self, number: u64) -> Option<(u64, u64)> {
        self.ranges
            .range(..=number)
            .next_back()
            .map(|(first, last)| (*first, *last))
    }

    /// Adds what is missing of a range to the free ones. Overlaps are allowed: this is for what the kernel tells, which may say things twice.
    pub(crate) fn add(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        if first > last {
            return;
        }
        if let Some((before, end)) = self.at_or_before(first)
            && end >= first.saturating_sub(1)
        {
            first = before;
            last = last.max(end);
            self.ranges.remove(&before);
        }
        // Every range that begins inside the new one, or just behind it, becomes part of it.
        while let Some((&next, &end)) = self.ranges.range(first..=last.saturating_add(1)).next() {
            last = last.max(end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(first, last);
    }

    /// Takes exactly this range. False, and nothing changes, when not all of it is free.
    #[must_use]
    pub(crate) fn take(&mut self, range: RangeInclusive<u64>) -> bool {
        let (first, last) = range.into_inner();
        match self.at_or_before(first) {
            Some((begin, end)) if first <= last && last <= end => {
                self.ranges.remove(&begin);
                if begin < first {
                    self.ranges.insert(begin, first - 1);
                }
                if last < end {
                    self.ranges.insert(last + 1, end);
                }
                true
            }
            _ => false,
        }
    }

    /// Takes the lowest free range of `length` (not zero) whose first number is a multiple of `alignment` (a power of two) and which touches none
    /// of `avoid`.
    #[must_use]
    pub(crate) fn allocate(
        &mut self,
        length: u64,
        alignment: u64,
        avoid: &[RangeInclusive<u64>],
    ) -> Option<u64> {
        let found = self.ranges.iter().find_map(|(&first, &end)| {
            let mut candidate = first.checked_next_multiple_of(alignment)?;
            loop {
                let last = candidate.checked_add(length.checked_sub(1)?)?;
                if last > end {
                    return None;
                }
                match avoid
                    .iter()
                    .find(|range| candidate <= *range.end() && *range.start() <= last)
                {
                    Some(range) => {
                        candidate = range
                            .end()
                            .checked_add(1)?
                            .checked_next_multiple_of(alignment)?
                    }
                    None => return Some(candidate),
                }
            }
        })?;
        self.take(found..=found + (length - 1)).then_some(found)
    }

    /// The free ranges, ascending.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.ranges.iter().map(|(first, last)| *first..=*last)
    }
}

#[cfg(test)]
mod tests;
