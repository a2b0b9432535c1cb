//! What a client has mapped.

use std::collections::BTreeMap;

use crate::device::Errno;
use crate::memory::ClientMemory;

/// The mappings of one client, which do not overlap.
#[derive(Debug, Default)]
pub(super) struct Maps {
    by_address: BTreeMap<u64, Map>,
    /// Bytes of all that have memory.
    lent: u64,
    /// How many have memory whose file can be truncated.
    unsealed: usize,
}

#[derive(Debug)]
struct Map {
    length: u64,
    memory: Option<ClientMemory>,
}

impl Maps {
    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Bytes of all mappings that have memory.
    pub(super) const fn lent(&self) -> u64 {
        self.lent
    }

    /// Whether memory is there that the client can take away.
    pub(super) const fn can_be_lost(&self) -> bool {
        self.unsealed > 0
    }

    /// Whether a mapping has an address of `address` to `address + length - 1`, which does not wrap.
    pub(super) fn overlaps(&self, address: u64, length: u64) -> bool {
        let last = address.saturating_add(length - 1);
        self.by_address
            .range(..=last)
            .next_back()
            .is_some_and(|(start, map)| start.saturating_add(map.length - 1) >= address)
    }

    /// Whether there is a mapping of exactly that range.
    pub(super) fn contains(&self, address: u64, length: u64) -> bool {
        self.by_address
            .get(&address)
            .is_some_and(|map| map.length == length)
    }

    /// Enters a mapping that overlaps none.
    pub(super) fn insert(
        &mut self,
        address: u64,
        length: u64,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno> {
        if length == 0 || self.overlaps(address, length) {
            return Err(Errno::EEXIST);
        }
        if let Some(memory) = &memory {
            self.lent = self.lent.saturating_add(length);
            self.unsealed += usize::from(!memory.is_sealed());
        }
        self.by_address.insert(address, Map { length, memory });
        Ok(())
    }

    /// Forgets a mapping, and with it this session's handle of the memory.
    pub(super) fn remove(&mut self, address: u64) {
        if let Some(map) = self.by_address.remove(&address)
            && let Some(memory) = map.memory
        {
            self.lent = self.lent.saturating_sub(map.length);
            self.unsealed = self
                .unsealed
                .saturating_sub(usize::from(!memory.is_sealed()));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All mappings, as address and length.
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        self.by_address
            .iter()
            .map(|(address, map)| (*address, map.length))
            .collect()
    }

    /// The address of a mapping whose memory the client has taken away.
    pub(super) fn lost(&self) -> Option<u64> {
        let lost = |map: &Map| map.memory.as_ref().is_some_and(ClientMemory::is_lost);
        self.by_address
            .iter()
            .find(|(_, map)| lost(map))
            .map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_address_is_one_too() {
        let mut maps = Maps::default();
        let top = u64::MAX - 0xfff;
        maps.insert(top, 0x1000, None).expect("free");
        assert!(maps.overlaps(top - 0x1000, 0x1001));
        assert!(!maps.overlaps(top - 0x1000, 0x1000));
        assert!(maps.overlaps(u64::MAX, 1));
        maps.insert(0, top, None).expect("free");
        assert!(maps.contains(0, top) && !maps.contains(0, top - 1) && !maps.contains(1, top - 1));
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn overlaps_are_found_as_by_looking_at_each(ranges in prop::collection::vec((0u64..64, 1u64..16), 0..20), address in 0u64..64, length in 1u64..16) {
            let mut maps = Maps::default();
            let mut taken = Vec::new();
            let overlap = |taken: &[(u64, u64)], a: u64, l: u64| taken.iter().any(|(b, m)| a < b + m && *b < a + l);
            for (a, l) in ranges {
                prop_assert_eq!(maps.insert(a, l, None).is_err(), overlap(&taken, a, l));
                if !overlap(&taken, a, l) {
                    taken.push((a, l));
                }
            }
            prop_assert_eq!(maps.overlaps(address, length), overlap(&taken, address, length));
            prop_assert_eq!(maps.len(), taken.len());
        }
    }
}
