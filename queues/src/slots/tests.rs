//! The slot table against a map and a stack.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use proptest::prelude::*;

use super::{IdentifierError, MAX_SLOTS, SlotTable};
use nvme_vfio_seeded::seeded;

/// The specification's special identifier.
const NEVER: u16 = 0xffff;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert,
    /// Looks up, then removes, one that is in flight.
    Remove(prop::sample::Index),
    /// Asks for one that was in flight before.
    Stale(prop::sample::Index),
    /// Asks for any identifier.
    Any(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Insert),
        5 => any::<prop::sample::Index>().prop_map(Step::Remove),
        2 => any::<prop::sample::Index>().prop_map(Step::Stale),
        2 => any::<u16>().prop_map(Step::Any),
    ]
}

/// How many values the index bits of an identifier have: the smallest power of two that leaves one value unused.
fn index_values(capacity: usize) -> usize {
    let mut values = 2;
    while values <= capacity {
        values *= 2;
    }
    values
}

/// The table, and what must be in it.
struct Checked {
    table: SlotTable<Rc<u64>>,
    capacity: usize,
    in_flight: HashMap<u16, Rc<u64>>,
    /// The indices of free slots; the one freed last is at the end.
    free: Vec<u16>,
    /// Identifiers that were in flight, in the order in which they ended.
    ended: Vec<u16>,
    inserted: u64,
}

impl Checked {
    fn new(capacity: u32) -> Self {
        Self {
            table: SlotTable::new(capacity),
            capacity: capacity as usize,
            in_flight: HashMap::new(),
            free: (0..u16::try_from(capacity).unwrap()).rev().collect(),
            ended: Vec::new(),
            inserted: 0,
        }
    }

    fn index_of(&self, identifier: u16) -> usize {
        usize::from(identifier) % index_values(self.capacity)
    }

    fn insert(&mut self) {
        let payload = Rc::new(self.inserted);
        let peeked = self.table.peek();
        assert_eq!(self.table.is_full(), self.free.is_empty());
        match (self.table.insert(Rc::clone(&payload)), self.free.pop()) {
            (Ok(identifier), Some(index)) => {
                assert_ne!(identifier, NEVER);
                assert_eq!(
                    self.index_of(identifier),
                    usize::from(index),
                    "last in, first out"
                );
                assert_eq!(peeked, Some((usize::from(index), identifier)));
                assert!(self.in_flight.insert(identifier, payload).is_none());
                self.inserted += 1;
            }
            (Err(refused), None) => {
                assert!(Rc::ptr_eq(&refused, &payload), "the payload comes back");
                assert_eq!(peeked, None);
            }
            (outcome, expected) => panic!("{outcome:?}, where slot {expected:?} is free"),
        }
    }

    fn remove(&mut self, identifier: u16) {
        let payload = self.in_flight.remove(&identifier).unwrap();
        assert!(Rc::ptr_eq(
            self.table.get_mut(identifier).unwrap(),
            &payload
        ));
        assert!(Rc::ptr_eq(
            &self.table.remove(identifier).unwrap(),
            &payload
        ));
        self.free
            .push(u16::try_from(self.index_of(identifier)).unwrap());
        self.ended.push(identifier);
    }

    /// Asks for an identifier, which is refused in the right words unless it is in flight.
    fn ask(&mut self, identifier: u16) {
        if self.in_flight.contains_key(&identifier) {
            self.remove(identifier);
        }
        let error = if self.index_of(identifier) < self.capacity {
            IdentifierError::Stale(identifier)
        } else {
            IdentifierError::Unknown(identifier)
        };
        assert_eq!(self.table.get_mut(identifier).unwrap_err(), error);
        assert_eq!(self.table.remove(identifier).unwrap_err(), error);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Insert => self.insert(),
            Step::Remove(pick) if !self.in_flight.is_empty() => {
                let mut identifiers: Vec<_> = self.in_flight.keys().copied().collect();
                identifiers.sort_unstable();
                self.remove(*pick.get(&identifiers));
            }
            Step::Stale(pick) if !self.ended.is_empty() => self.ask(*pick.get(&self.ended)),
            Step::Remove(_) | Step::Stale(_) => self.ask(NEVER),
            Step::Any(identifier) => self.ask(identifier),
        }
    }

    fn check(&mut self) {
        assert_eq!(self.table.capacity(), self.capacity);
        assert_eq!(self.table.is_full(), self.in_flight.len() == self.capacity);
        let listed: Vec<_> = self
            .table
            .iter_mut()
            .map(|(identifier, payload)| (identifier, Rc::clone(payload)))
            .collect();
        assert_eq!(listed.len(), self.in_flight.len());
        for (identifier, payload) in listed {
            assert!(Rc::ptr_eq(&self.in_flight[&identifier], &payload));
        }
    }
}

proptest! {
    #![proptest_config(seeded(256))]

    #[test]
    fn the_table_agrees_with_a_map_and_a_stack(
        capacity in prop_oneof![1u32..=9, 1u32..=300, 1u32..=MAX_SLOTS],
        filled in any::<prop::sample::Index>(),
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let mut checked = Checked::new(capacity);
        for _ in 0..filled.index(capacity as usize + 1) {
            checked.insert();
        }
        for step in steps {
            checked.step(step);
        }
        checked.check();
        // What is in flight is given back once; what has ended was dropped with its last owner.
        let in_flight = checked.in_flight;
        let left: HashSet<u64> = checked.table.into_payloads().map(|payload| *payload).collect();
        prop_assert_eq!(left.len(), in_flight.len());
        for payload in in_flight.into_values() {
            prop_assert!(left.contains(&payload));
            prop_assert_eq!(Rc::strong_count(&payload), 1);
        }
    }
}

/// For every capacity there is, the slot whose index is the highest goes through all its generations twice, which would be once if
/// an index had a bit less.
#[test]
fn no_capacity_ever_gives_out_ffff() {
    for capacity in 1..=MAX_SLOTS {
        let mut table = SlotTable::new(capacity);
        let mut last = 0;
        for _ in 0..capacity {
            last = table.insert(()).unwrap();
            assert_ne!(last, NEVER);
        }
        assert_eq!(u32::from(last), capacity - 1);
        assert!(table.get_mut(NEVER).is_err());
        let generations = 65_536 / index_values(capacity as usize);
        for _ in 0..2 * generations {
            table.remove(last).unwrap();
            last = table.insert(()).unwrap();
            assert_ne!(last, NEVER, "capacity {capacity}");
            assert!(table.remove(NEVER).is_err());
        }
    }
}

/// All slots through all generations: no identifier comes twice before the slot's generations are used up, and all that can
/// exist do come.
#[test]
fn an_identifier_comes_again_only_after_all_others_of_its_slot() {
    for capacity in [
        1, 2, 3, 4, 7, 8, 31, 32, 63, 127, 128, 1023, 1024, 2047, 2048, 4095,
    ] {
        let mut table = SlotTable::new(capacity);
        let generations = 65_536 / index_values(capacity as usize);
        assert!(generations >= 16);
        let mut seen = vec![false; 65_536];
        for _ in 0..generations {
            let identifiers: Vec<_> = (0..capacity).map(|_| table.insert(()).unwrap()).collect();
            assert_eq!(table.insert(()), Err(()));
            for identifier in identifiers {
                assert!(!seen[usize::from(identifier)], "{identifier:#x} came twice");
                seen[usize::from(identifier)] = true;
                assert_eq!(table.remove(identifier), Ok(()));
                assert_eq!(
                    table.remove(identifier),
                    Err(IdentifierError::Stale(identifier))
                );
            }
        }
        assert!(!seen[usize::from(NEVER)]);
        let all = seen.iter().filter(|&&seen| seen).count();
        assert_eq!(all, capacity as usize * generations);
    }
}

/// The late answer of a command whose slot another command has by now.
#[test]
fn a_late_answer_does_not_reach_the_next_command() {
    let mut table = SlotTable::new(4);
    let first = table.insert("first").unwrap();
    assert_eq!(table.remove(first), Ok("first"));
    let second = table.insert("second").unwrap();
    assert_ne!(first, second);
    assert_eq!(table.get_mut(first), Err(IdentifierError::Stale(first)));
    assert_eq!(table.remove(first), Err(IdentifierError::Stale(first)));
    assert_eq!(table.get_mut(second), Ok(&mut "second"));
}

#[test]
fn what_is_remembered_can_be_changed() {
    let mut table = SlotTable::new(2);
    let identifier = table.insert(1).unwrap();
    *table.get_mut(identifier).unwrap() = 2;
    for (_, payload) in table.iter_mut() {
        *payload *= 10;
    }
    assert_eq!(table.remove(identifier), Ok(20));
    assert_eq!(table.iter_mut().count(), 0);
}

#[test]
fn a_capacity_out_of_range_is_brought_into_it() {
    for (asked, given) in [
        (0, 1),
        (1, 1),
        (4094, 4094),
        (4095, 4095),
        (4096, 4095),
        (65_535, 4095),
        (65_536, 4095),
        (u32::MAX, 4095),
    ] {
        let mut table = SlotTable::new(asked);
        assert_eq!(table.capacity(), given);
        let inserted = std::iter::from_fn(|| table.insert(()).ok()).count();
        assert_eq!(inserted, given);
        assert!(table.is_full());
        assert_eq!(table.peek(), None);
    }
}

#[test]
fn a_dropped_table_drops_what_is_in_flight() {
    let payload = Rc::new(());
    let mut table = SlotTable::new(8);
    for _ in 0..8 {
        table.insert(Rc::clone(&payload)).unwrap();
    }
    let identifiers: Vec<_> = table.iter_mut().map(|(identifier, _)| identifier).collect();
    for identifier in &identifiers[..3] {
        table.remove(*identifier).unwrap();
    }
    assert_eq!(Rc::strong_count(&payload), 6);
    drop(table);
    assert_eq!(Rc::strong_count(&payload), 1);
}
