//! Against a model that keeps one flag per number.
#![cfg(not(miri))] // nothing unsafe in it, and slow there

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 256;

#[derive(Debug, Clone)]
enum Step {
    Allocate {
        length: u64,
        alignment: u64,
    },
    Take {
        first: u64,
        length: u64,
    },
    /// Gives back the n-th (modulo) of what is held.
    Give(usize),
    Add {
        first: u64,
        length: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_u64, 0..5_u32).prop_map(|(length, bit)| Step::Allocate { length, alignment: 1 << bit }),
        2 => (0..SIZE, 1..20_u64).prop_map(|(first, length)| Step::Take { first, length }),
        5 => any::<usize>().prop_map(Step::Give),
        1 => (0..SIZE, 1..20_u64).prop_map(|(first, length)| Step::Add { first, length }),
    ]
}

/// `offset` moves the model to the ends of the number line, where sums wrap.
fn run(steps: &[Step], offset: u64, avoid: &RangeInclusive<u64>) {
    let mut list = FreeList::default();
    let mut model = vec![false; SIZE as usize];
    let mut held: Vec<(u64, u64)> = Vec::new();
    let add = |list: &mut FreeList, model: &mut Vec<bool>, first: u64, length: u64| {
        list.add(offset + first..=offset + (first + length - 1));
        model[first as usize..(first + length) as usize].fill(true);
    };
    add(&mut list, &mut model, 0, SIZE);
    let avoided = [offset + avoid.start()..=offset + avoid.end()];
    for step in steps {
        match *step {
            Step::Allocate { length, alignment } => {
                let fits = |first: u64| {
                    let numbers = first..first + length;
                    (offset + first).is_multiple_of(alignment)
                        && numbers.end <= SIZE
                        && numbers
                            .clone()
                            .all(|number| model[number as usize] && !avoid.contains(&number))
                };
                let expected = (0..SIZE).find(|first| fits(*first));
                let got = list.allocate(length, alignment, &avoided);
                assert_eq!(got, expected.map(|first| offset + first), "{step:?}");
                if let Some(first) = expected {
                    model[first as usize..(first + length) as usize].fill(false);
                    held.push((first, length));
                }
            }
            Step::Take { first, length } => {
                let length = length.min(SIZE - first);
                let free = (first..first + length).all(|number| model[number as usize]);
                assert_eq!(
                    list.take(offset + first..=offset + (first + length - 1)),
                    free,
                    "{step:?}"
                );
                if free {
                    model[first as usize..(first + length) as usize].fill(false);
                    held.push((first, length));
                }
            }
            Step::Give(index) if !held.is_empty() => {
                let (first, length) = held.swap_remove(index % held.len());
                add(&mut list, &mut model, first, length);
            }
            Step::Give(_) => {}
            Step::Add { first, length } => {
                // Only over what nobody holds, as with ranges that the kernel tells twice.
                let length = length.min(SIZE - first);
                if held
                    .iter()
                    .all(|(begin, size)| first + length <= *begin || begin + size <= first)
                {
                    add(&mut list, &mut model, first, length);
                }
            }
        }
        let flat: Vec<u64> = list
            .iter()
            .flat_map(|range| (range.start() - offset)..=(range.end() - offset))
            .collect();
        let expected: Vec<u64> = (0..SIZE).filter(|number| model[*number as usize]).collect();
        assert_eq!(flat, expected, "after {step:?}");
        let ends: Vec<_> = list.iter().collect();
        assert!(
            ends.windows(2)
                .all(|pair| pair[0].end() + 1 < *pair[1].start()),
            "neighbours are not joined: {ends:?}"
        );
    }
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(400))]

    #[test]
    fn behaves_as_one_flag_per_number(
        steps in proptest::collection::vec(step(), 1..80),
        offset in prop_oneof![Just(0), Just(u64::MAX - SIZE + 1), Just(0xfedf_ff80)],
        avoid in (0..SIZE, 0..64_u64).prop_map(|(first, length)| first..=(first + length).min(SIZE - 1)),
    ) {
        run(&steps, offset, &avoid);
    }
}

#[test]
fn whole_number_line() {
    let mut list = FreeList::default();
    list.add(0..=u64::MAX);
    list.add(0..=u64::MAX);
    assert_eq!(list.allocate(1 << 63, 1 << 63, &[]), Some(0));
    assert_eq!(list.allocate(1 << 63, 1 << 63, &[]), Some(1 << 63));
    assert_eq!(list.allocate(1, 1, &[]), None);
    assert!(!list.take(u64::MAX..=u64::MAX));
    list.add(1 << 63..=u64::MAX);
    assert!(list.take(u64::MAX..=u64::MAX));
    assert_eq!(list.iter().collect::<Vec<_>>(), [1 << 63..=u64::MAX - 1]);
}

#[test]
#[expect(
    clippy::reversed_empty_ranges,
    reason = "what a kernel should not say, but might"
)]
fn senseless_requests_change_nothing() {
    let mut list = FreeList::default();
    list.add(9..=3);
    list.add(4..=7);
    assert_eq!(list.allocate(0, 1, &[]), None);
    assert!(!list.take(7..=4));
    assert_eq!(list.iter().collect::<Vec<_>>(), [4..=7]);
}
