//! Arithmetic of slices: which blocks are where, and whether two share any.

use std::collections::HashMap;

use super::plain::{PolicyFile, Source};

/// Blocks of a real namespace, as a policy gives them to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// Index of the client.
    pub(super) client: usize,
    /// Index of its namespace.
    pub(super) namespace: usize,
    /// Whether other clients may have the blocks too.
    pub(super) shared: bool,
    /// The medium: the same number for the same real namespace.
    pub(super) medium: usize,
    /// First block.
    pub(super) first: u64,
    /// The block after the last; `u64::MAX` where the end is not known yet.
    pub(super) end: u64,
    /// What the policy says.
    pub(super) source: Source,
}

impl Slice {
    /// Blocks that both have, as the first and the one after the last.
    pub(super) fn common(&self, other: &Slice) -> Option<(u64, u64)> {
        let (first, end) = (self.first.max(other.first), self.end.min(other.end));
        (self.medium == other.medium && first < end).then_some((first, end))
    }

    /// Whether the two may have blocks in common.
    fn may_meet(&self, other: &Slice) -> bool {
        self.client != other.client && self.shared && other.shared
    }
}

/// All slices of a policy. `medium` tells real namespaces apart, by controller and NSID.
pub(super) fn of(policy: &PolicyFile, mut medium: impl FnMut(usize, u32) -> usize) -> Vec<Slice> {
    let mut slices = Vec::new();
    for (client, one) in policy.clients.iter().enumerate() {
        for (index, namespace) in one.namespaces.iter().enumerate() {
            for source in &namespace.source {
                let end = source
                    .blocks
                    .map_or(u64::MAX, |blocks| source.start.saturating_add(blocks));
                slices.push(Slice {
                    client,
                    namespace: index,
                    shared: namespace.shared,
                    medium: medium(namespace.controller, source.nsid),
                    first: source.start,
                    end,
                    source: *source,
                });
            }
        }
    }
    slices
}

/// Two slices that have blocks in common and may not; `None` where there are none.
///
/// Slices of one client never may; slices of two clients may where both are shared.
pub(super) fn conflict(slices: &[Slice]) -> Option<(Slice, Slice)> {
    let mut sorted: Vec<&Slice> = slices.iter().collect();
    sorted.sort_by_key(|slice| (slice.medium, slice.first));
    // Of those before, in order of their first blocks: the one that reaches furthest, of all, of those that are not shared, and of each client.
    let mut any: Option<&Slice> = None;
    let mut own: Option<&Slice> = None;
    let mut of_client: HashMap<usize, &Slice> = HashMap::new();
    for slice in sorted {
        let further = |old: Option<&Slice>| {
            old.is_none_or(|old| old.medium != slice.medium || old.end < slice.end)
        };
        let before = [
            of_client.get(&slice.client).copied(),
            own,
            any.filter(|_| !slice.shared),
        ];
        for other in before.into_iter().flatten() {
            if slice.common(other).is_some() && !slice.may_meet(other) {
                return Some((*other, *slice));
            }
        }
        if further(any) {
            any = Some(slice);
        }
        if !slice.shared && further(own) {
            own = Some(slice);
        }
        if further(of_client.get(&slice.client).copied()) {
            of_client.insert(slice.client, slice);
        }
    }
    None
}

/// All pairs of slices that have blocks in common, at most `limit`.
pub(super) fn meetings(slices: &[Slice], limit: usize) -> Vec<(Slice, Slice)> {
    let mut sorted: Vec<&Slice> = slices.iter().filter(|slice| slice.shared).collect();
    sorted.sort_by_key(|slice| (slice.medium, slice.first));
    let mut pairs = Vec::new();
    for (index, one) in sorted.iter().enumerate() {
        for other in sorted.iter().skip(index + 1) {
            if one.common(other).is_none() {
                // They come in the order of their first blocks: none of the rest meets this one.
                break;
            }
            if pairs.len() == limit {
                return pairs;
            }
            pairs.push((**one, **other));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::document::Place;
    use super::*;

    const ALL: u64 = 40;

    fn slices() -> impl Strategy<Value = Vec<Slice>> {
        // Mostly shared, of many clients: else almost every list has a conflict that is seen at once.
        let one = (
            0..8usize,
            prop::bool::weighted(0.8),
            0..2usize,
            0..ALL,
            1..20u64,
            0..10u8,
        );
        prop::collection::vec(one, 0..7).prop_map(|list| {
            let made = |(at, (client, shared, medium, first, blocks, to_the_end))| Slice {
                client,
                namespace: 0,
                shared,
                medium,
                first,
                end: if to_the_end == 0 {
                    u64::MAX
                } else {
                    first + blocks
                },
                source: Source {
                    nsid: 1,
                    start: first,
                    blocks: Some(blocks),
                    place: Place {
                        line: at,
                        column: 1,
                    },
                },
            };
            list.into_iter().enumerate().map(made).collect()
        })
    }

    /// Block by block.
    fn holds(slice: &Slice, medium: usize, block: u64) -> bool {
        slice.medium == medium && slice.first <= block && block < slice.end
    }

    fn slow_pairs(slices: &[Slice]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (index, one) in slices.iter().enumerate() {
            for (other_index, other) in slices.iter().enumerate().skip(index + 1) {
                let meet = (0..2).any(|medium| {
                    (0..ALL + 20)
                        .any(|block| holds(one, medium, block) && holds(other, medium, block))
                });
                if meet {
                    pairs.push((index, other_index));
                }
            }
        }
        pairs
    }

    #[test]
    fn a_short_slice_does_not_hide_a_long_one_before_it() {
        let place = Place { line: 1, column: 1 };
        let slice = |client, shared, first, end| Slice {
            client,
            namespace: 0,
            shared,
            medium: 0,
            first,
            end,
            source: Source {
                nsid: 1,
                start: first,
                blocks: Some(end - first),
                place,
            },
        };
        let (long, short) = (slice(0, true, 0, 100), slice(1, true, 10, 20));
        assert_eq!(conflict(&[long, short]), None);
        for last in [slice(2, false, 50, 60), slice(0, true, 50, 60)] {
            assert_eq!(conflict(&[long, short, last]), Some((long, last)));
            assert_eq!(conflict(&[last, short, long]), Some((long, last)));
        }
        // The one before is not shared, and another is in between.
        let own = slice(0, false, 0, 100);
        let beyond = slice(1, false, 100, 110);
        assert_eq!(conflict(&[own, beyond]), None);
        assert_eq!(
            conflict(&[own, beyond, slice(2, true, 99, 100)]),
            Some((own, slice(2, true, 99, 100)))
        );
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(2_000))]

        #[test]
        fn conflicts_are_those_that_a_block_by_block_search_finds(list in slices()) {
            let bad: Vec<(usize, usize)> = slow_pairs(&list)
                .into_iter()
                .filter(|(one, other)| {
                    let (one, other) = (&list[*one], &list[*other]);
                    one.client == other.client || !(one.shared && other.shared)
                })
                .collect();
            match conflict(&list) {
                None => prop_assert!(bad.is_empty(), "{bad:?}"),
                Some((one, other)) => {
                    let mut pair = [one.source.place.line, other.source.place.line];
                    pair.sort_unstable();
                    prop_assert!(bad.contains(&(pair[0], pair[1])), "{pair:?} {bad:?}");
                }
            }
        }

        #[test]
        fn meetings_are_all_pairs_of_shared_slices(list in slices()) {
            let want = slow_pairs(&list)
                .into_iter()
                .filter(|(one, other)| list[*one].shared && list[*other].shared)
                .count();
            prop_assert_eq!(meetings(&list, usize::MAX).len(), want);
            prop_assert_eq!(meetings(&list, 1).len(), want.min(1));
        }

        #[test]
        fn common_blocks_are_those_of_both(list in slices()) {
            for one in &list {
                for other in &list {
                    let both: Vec<u64> = (0..ALL + 20)
                        .filter(|block| (0..2).any(|m| holds(one, m, *block) && holds(other, m, *block)))
                        .collect();
                    let common = one.common(other);
                    prop_assert_eq!(common.map(|(first, _)| first), both.first().copied());
                    if let Some((_, end)) = common {
                        prop_assert_eq!(end.min(ALL + 20) - 1, *both.last().unwrap());
                    }
                }
            }
        }
    }
}
