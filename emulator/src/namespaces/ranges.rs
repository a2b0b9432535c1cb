//! A set of logical blocks, kept as ranges.

use std::collections::BTreeMap;

/// Logical blocks, as ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// End (exclusive) by start.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds `count` blocks from `first` on, which do not go past 2^64.
    pub(crate) fn insert(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut start, mut end) = (first, first + count);
        while let Some((&other, &other_end)) = self.ends.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other);
            end = end.max(other_end);
            self.ends.remove(&other);
        }
        self.ends.insert(start, end);
    }

    /// Takes `count` blocks from `first` on away.
    pub(crate) fn remove(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = first + count;
        while let Some((&other, &other_end)) = self.ends.range(..end).next_back() {
            if other_end <= first {
                break;
            }
            self.ends.remove(&other);
            if other_end > end {
                self.ends.insert(end, other_end);
            }
            if other < first {
                self.ends.insert(other, first);
            }
        }
    }

    /// How many ranges there are: what it costs to keep them.
    pub(crate) fn ranges(&self) -> usize {
        self.ends.len()
    }

    /// How many blocks there are.
    pub(crate) fn count(&self) -> u64 {
        self.ends.iter().map(|(start, end)| end - start).sum()
    }

    /// Where the range ends that begins at `first`, if that is all there is.
    pub(crate) fn starting_at(&self, first: u64) -> Option<u64> {
        let end = self.ends.get(&first).copied();
        end.filter(|_| self.ends.len() == 1)
    }

    /// The first of `count` blocks from `first` on that is in the set.
    pub(crate) fn first_of(&self, first: u64, count: u64) -> Option<u64> {
        let end = first + count;
        let before = self.ends.range(..=first).next_back();
        if let Some((_, &other_end)) = before
            && other_end > first
            && count > 0
        {
            return Some(first);
        }
        self.ends.range(first..end).next().map(|(&start, _)| start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(500))]

        /// Against a plain set of numbers.
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((0..3u8, 0..60u64, 0..20u64), 1..60)) {
            let mut ranges = Ranges::default();
            let mut blocks = std::collections::BTreeSet::new();
            for (step, first, count) in steps {
                match step {
                    0 => {
                        ranges.insert(first, count);
                        blocks.extend(first..first + count);
                    }
                    1 => {
                        ranges.remove(first, count);
                        blocks.retain(|block| !(first..first + count).contains(block));
                    }
                    _ => {
                        let expected = blocks.range(first..first + count).next().copied();
                        prop_assert_eq!(ranges.first_of(first, count), expected);
                    }
                }
                prop_assert_eq!(ranges.is_empty(), blocks.is_empty());
                prop_assert_eq!(ranges.count(), blocks.len() as u64);
                let kept: Vec<_> = ranges.ends.iter().flat_map(|(&a, &b)| a..b).collect();
                prop_assert!(kept.iter().eq(blocks.iter()));
                let pairs: Vec<_> = ranges.ends.iter().collect();
                prop_assert!(pairs.windows(2).all(|pair| pair[0].1 < pair[1].0), "neither overlap nor touch");
            }
        }
    }
}
