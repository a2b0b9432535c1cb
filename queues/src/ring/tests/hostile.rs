//! A controller that writes what it likes.

use super::*;

proptest! {
    #![proptest_config(seeded(512))]

    /// Whatever the controller writes and wherever: no panic, an entry is taken exactly if its phase tag is the one of the round, and it
    /// is what lies in memory.
    #[test]
    fn any_bytes_are_an_entry_or_none(
        entries in 2u32..=70,
        writes in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 16]>(), 0u32..6), 0..300),
    ) {
        let memory = memory(8192);
        let mut ring = CompletionRing::new(
            CompletionMemory::new(&memory, 4096, entries).unwrap(),
            Doorbell::message(Arc::new(Registers::default()), HEAD_DOORBELL),
        );
        let mut copy = vec![[0u8; 16]; entries as usize];
        let (mut head, mut phase) = (0, 1);
        for (at, bytes, pops) in writes {
            let at = at.index(copy.len());
            copy[at] = bytes;
            memory.write_bytes(4096 + at * 16, &bytes).unwrap();
            for _ in 0..pops {
                let expected = (copy[head][14] & 1 == phase)
                    .then(|| CompletionEntry::read_from_bytes(&copy[head]).unwrap());
                prop_assert_eq!(ring.pop(), expected);
                if expected.is_some() {
                    head += 1;
                    if head == copy.len() {
                        (head, phase) = (0, 1 - phase);
                    }
                }
            }
        }
    }
}

/// A queue whose every entry already has the phase tag of the next round: it is taken once around, and then the tag is the old one.
#[test]
fn a_round_is_taken_once() {
    let memory = memory(4096);
    let mut ring = CompletionRing::new(
        CompletionMemory::new(&memory, 0, 16).unwrap(),
        Doorbell::message(Arc::new(Registers::default()), HEAD_DOORBELL),
    );
    assert_eq!(ring.pop(), None, "what was there before is cleared");
    memory.write_bytes(0, &[0xff; 256]).unwrap();
    for _ in 0..16 {
        assert_eq!(ring.pop().map(|entry| entry.cid), Some(0xffff));
    }
    assert_eq!(ring.pop(), None);
}
