//! The pool against a model: nothing overlaps, nothing is lost, few mappings.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use nvme_vfio_dma::{
    Access, AddressSpace, Buffer, DmaError, DomainLimits, FakeDomain, HUGE_PAGE_SIZE, Iova,
    MapError, Pool, PoolOptions, page_size,
};
use proptest::prelude::*;

fn pool(domain: FakeDomain, options: PoolOptions) -> (Arc<FakeDomain>, Pool) {
    let domain = Arc::new(domain);
    let pool = Pool::new(&AddressSpace::new(domain.clone()), options);
    (domain, pool)
}

fn small() -> PoolOptions {
    PoolOptions {
        hugepages: false,
        ..PoolOptions::default()
    }
}

#[test]
fn few_mappings_for_many_buffers() {
    let (domain, pool) = pool(FakeDomain::new(), small());
    assert!(
        domain.mappings().is_empty(),
        "nothing is mapped before it is needed"
    );
    let buffers: Vec<_> = (0..4096).map(|_| pool.allocate(4096).unwrap()).collect();
    let sizes: Vec<_> = domain
        .mappings()
        .iter()
        .map(|(_, length, _)| length / HUGE_PAGE_SIZE)
        .collect();
    assert_eq!(
        sizes,
        [1, 1, 2, 4],
        "{} bytes",
        pool.mapped_bytes() - 8 * HUGE_PAGE_SIZE
    );
    assert!(
        buffers
            .iter()
            .all(|buffer| buffer.iter().all(|byte| *byte == 0))
    );
    drop(buffers);
    // They are used again, lowest first, and hold what was in them.
    let mut again = pool.allocate(1).unwrap();
    assert_eq!(
        (again.len(), again.iova(), domain.maps_made()),
        (1, domain.mappings()[0].0, 4)
    );
    again[0] = 0xaa;
    let iova = again.iova();
    drop(again);
    let again = pool.allocate(1).unwrap();
    assert_eq!((again.iova(), again[0]), (iova, 0xaa));

    pool.trim();
    assert_eq!(
        domain.mappings().len(),
        1,
        "only the arena with a buffer in it is left"
    );
    drop(again);
    pool.trim();
    assert_eq!(
        (domain.mappings().len(), pool.mapped_bytes(), pool.is_huge()),
        (0, 0, false)
    );
}

#[test]
fn buffers_outlive_the_pool() {
    let (domain, pool) = pool(FakeDomain::new(), small());
    let space = pool.space().clone();
    let buffer = pool.allocate(page_size()).unwrap();
    drop(pool);
    assert_eq!(domain.mappings().len(), 1);
    drop(buffer);
    assert!(domain.mappings().is_empty() && space.mappings().is_empty());
}

#[test]
fn alignment_is_for_the_device() {
    let (_, pool) = pool(FakeDomain::new(), small());
    let mut kept = Vec::new();
    for bit in 0..=21 {
        kept.push(pool.allocate(1).unwrap());
        let buffer = pool.allocate_aligned(page_size() + 1, 1 << bit).unwrap();
        assert!(
            buffer.iova().is_aligned_to(1 << bit)
                && buffer.iova().is_aligned_to(page_size() as u64)
        );
        assert!(buffer.as_ptr().addr().get().is_multiple_of(page_size()));
        kept.push(buffer);
    }
    for alignment in [0, 3, 1 << 22, usize::MAX] {
        assert!(
            matches!(
                pool.allocate_aligned(1, alignment),
                Err(DmaError::Alignment { .. })
            ),
            "{alignment}"
        );
    }
}

#[test]
fn lengths_are_bounded() {
    let (domain, pool) = pool(FakeDomain::new(), small());
    assert!(matches!(pool.allocate(0), Err(DmaError::ZeroLength)));
    for length in [Buffer::MAX_LENGTH + 1, u32::MAX as usize + 1, usize::MAX] {
        assert!(
            matches!(pool.allocate(length), Err(DmaError::TooLong { .. })),
            "{length}"
        );
    }
    assert_eq!(domain.maps_made(), 0);
    let large = pool.allocate(9 * HUGE_PAGE_SIZE - 1).unwrap();
    assert_eq!(
        (large.len(), domain.mappings()[0].1),
        (9 * HUGE_PAGE_SIZE - 1, 9 * HUGE_PAGE_SIZE)
    );
}

#[test]
fn limit_is_kept_and_used_up() {
    let (domain, pool) = pool(
        FakeDomain::new(),
        PoolOptions {
            limit: Some(4 * HUGE_PAGE_SIZE + 5),
            ..small()
        },
    );
    let first = pool.allocate(3 * HUGE_PAGE_SIZE).unwrap();
    // Doubling would need six more; one is left.
    let second = pool.allocate(page_size()).unwrap();
    assert_eq!(pool.mapped_bytes(), 4 * HUGE_PAGE_SIZE);
    match pool.allocate(HUGE_PAGE_SIZE) {
        Err(DmaError::PoolLimit { needed, limit }) => assert_eq!(
            (needed, limit),
            (5 * HUGE_PAGE_SIZE, 4 * HUGE_PAGE_SIZE + 5)
        ),
        other => panic!("{other:?}"),
    }
    assert!(pool.allocate(HUGE_PAGE_SIZE - page_size()).is_ok());
    drop((first, second));
    assert!(pool.allocate(3 * HUGE_PAGE_SIZE).is_ok());
    assert_eq!(domain.maps_made(), 2);
}

#[test]
fn refused_growth_is_tried_smaller_and_harms_nothing() {
    let (domain, pool) = pool(
        FakeDomain::new(),
        PoolOptions {
            arena: 8 * HUGE_PAGE_SIZE,
            ..small()
        },
    );
    domain.refuse_next_map(MapError::MemlockLimit {
        needed: 1,
        limit: 1,
    });
    let first = pool.allocate(page_size()).unwrap();
    assert_eq!(pool.mapped_bytes(), HUGE_PAGE_SIZE);
    domain.refuse_next_map(MapError::MemlockLimit {
        needed: 1,
        limit: 1,
    });
    // Needs as much as the pool would like: there is nothing smaller to try.
    let refused = pool.allocate(8 * HUGE_PAGE_SIZE).unwrap_err();
    assert!(
        matches!(refused, DmaError::Map(MapError::MemlockLimit { .. })),
        "{refused}"
    );
    assert_eq!(first[0], 0);
    assert!(pool.allocate(8 * HUGE_PAGE_SIZE).is_ok());
}

#[test]
fn mappings_run_out_and_what_is_there_stays_good() {
    let limits = DomainLimits {
        iova_ranges: vec![0..=0x7f_ffff_ffff],
        page_sizes: 0x1000,
        mappings: Some(2),
    };
    let (_, pool) = pool(FakeDomain::with_limits(limits), small());
    let mut buffers = vec![
        pool.allocate(HUGE_PAGE_SIZE).unwrap(),
        pool.allocate(HUGE_PAGE_SIZE).unwrap(),
    ];
    assert!(matches!(
        pool.allocate(1),
        Err(DmaError::Map(MapError::TooManyMappings))
    ));
    buffers[0].fill(1);
    buffers.pop();
    assert!(pool.allocate(1).is_ok());
    assert!(buffers[0].iter().all(|byte| *byte == 1));
}

#[test]
fn access_is_what_was_asked_for() {
    let (domain, pool) = pool(
        FakeDomain::new(),
        PoolOptions {
            access: Access::DEVICE_READ,
            ..small()
        },
    );
    let buffer = pool.allocate(1).unwrap();
    assert_eq!(domain.mappings()[0].2, Access::DEVICE_READ);
    assert_eq!(
        domain.translate(buffer.iova(), 1, Access::DEVICE_WRITE),
        None
    );
}

#[test]
fn works_with_and_without_hugepages() {
    let (domain, pool) = pool(FakeDomain::new(), PoolOptions::default());
    let mut buffer = pool.allocate(HUGE_PAGE_SIZE).unwrap();
    buffer.fill(7);
    assert_eq!(domain.mappings().len(), 1);
    assert!(domain.mappings()[0].0.is_aligned_to(HUGE_PAGE_SIZE as u64));
    // Whether there are any is the machine's affair; that it says truly is tested with the memory.
    if pool.is_huge() {
        assert!(buffer.as_ptr().addr().get().is_multiple_of(HUGE_PAGE_SIZE));
    }
}

#[test]
fn threads_share_it() {
    let (domain, pool) = pool(FakeDomain::new(), small());
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(u8, Buffer)>(64);
    let threads: Vec<_> = (1..=3_u8)
        .map(|tag| {
            let (pool, sender) = (pool.clone(), sender.clone());
            thread::spawn(move || {
                for round in 0..500_usize {
                    let mut buffer = pool.allocate(1 + round * 37 % (5 * page_size())).unwrap();
                    buffer.fill(tag);
                    sender.send((tag, buffer)).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let mut seen = 0;
    for (tag, buffer) in receiver {
        assert!(
            buffer.iter().all(|byte| *byte == tag),
            "two threads got the same memory"
        );
        seen += 1;
    }
    assert_eq!(seen, 1500);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    pool.trim();
    assert!(domain.mappings().is_empty(), "a page was lost");
}

#[derive(Debug, Clone)]
enum Step {
    Allocate { length: usize, bit: u32 },
    Drop(prop::sample::Index),
    Split(prop::sample::Index, prop::sample::Index),
    Unsplit(prop::sample::Index, prop::sample::Index),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..80_000_usize, 0..18_u32).prop_map(|(length, bit)| Step::Allocate { length, bit }),
        1 => (1..3 * HUGE_PAGE_SIZE).prop_map(|length| Step::Allocate { length, bit: 0 }),
        3 => any::<prop::sample::Index>().prop_map(Step::Drop),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(which, middle)| Step::Split(which, middle)),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Step::Unsplit(a, b)),
        1 => Just(Step::Trim),
    ]
}

/// What the bytes of an allocation hold.
fn mark(tag: u64) -> u8 {
    (tag % 251) as u8
}

struct Part {
    tag: u64,
    offset: usize,
    buffer: Buffer,
}

impl Part {
    fn check(&self, domain: &FakeDomain) {
        let ends = [
            0,
            self.buffer.len() / 2,
            self.buffer.len().saturating_sub(1),
        ];
        for at in ends.into_iter().filter(|at| *at < self.buffer.len()) {
            assert_eq!(self.buffer[at], mark(self.tag), "overwritten");
        }
        if !self.buffer.is_empty() {
            let seen = domain.translate(self.buffer.iova(), self.buffer.len(), Access::READ_WRITE);
            assert_eq!(
                seen,
                Some(self.buffer.as_ptr()),
                "the device sees other memory"
            );
        }
    }
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(60))]

    #[test]
    fn nothing_overlaps_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..120)) {
        let (domain, pool) = pool(FakeDomain::new(), PoolOptions { limit: Some(32 * HUGE_PAGE_SIZE), ..small() });
        let mut parts: Vec<Part> = Vec::new();
        for (tag, step) in (0_u64..).zip(steps) {
            match step {
                Step::Allocate { length, bit } => match pool.allocate_aligned(length, 1 << bit) {
                    Ok(mut buffer) => {
                        prop_assert_eq!(buffer.len(), length);
                        prop_assert!(buffer.iova().is_aligned_to(1 << bit));
                        buffer.fill(mark(tag));
                        parts.push(Part { tag, offset: 0, buffer });
                    }
                    Err(error) => prop_assert!(matches!(error, DmaError::PoolLimit { .. }), "{error}"),
                },
                Step::Drop(which) if !parts.is_empty() => parts.swap_remove(which.index(parts.len())).check(&domain),
                Step::Split(which, middle) if !parts.is_empty() => {
                    let Part { tag, offset, buffer } = parts.swap_remove(which.index(parts.len()));
                    let middle = middle.index(buffer.len() + 1);
                    let (a, b) = buffer.split_at(middle);
                    parts.push(Part { tag, offset, buffer: a });
                    parts.push(Part { tag, offset: offset + middle, buffer: b });
                }
                Step::Unsplit(a, b) if parts.len() > 1 => {
                    let a = parts.swap_remove(a.index(parts.len()));
                    // Its neighbour if there is one, so that some joins succeed.
                    let next = parts.iter().position(|part| part.tag == a.tag && part.offset == a.offset + a.buffer.len());
                    let b = parts.swap_remove(next.unwrap_or(b.index(parts.len())));
                    match a.buffer.unsplit(b.buffer) {
                        Ok(buffer) => {
                            prop_assert!(a.tag == b.tag && next.is_some());
                            parts.push(Part { tag: a.tag, offset: a.offset, buffer });
                        }
                        Err((left, right)) => {
                            prop_assert!(next.is_none());
                            parts.push(Part { tag: a.tag, offset: a.offset, buffer: left });
                            parts.push(Part { tag: b.tag, offset: b.offset, buffer: right });
                        }
                    }
                }
                Step::Trim => pool.trim(),
                Step::Drop(_) | Step::Split(..) | Step::Unsplit(..) => {}
            }
        }
        parts.iter().for_each(|part| part.check(&domain));
        // Every page of every allocation comes back exactly when its last part does.
        let tags: HashMap<u64, Iova> = parts.iter().map(|part| (part.tag, part.buffer.iova())).collect();
        pool.trim();
        prop_assert!(domain.mappings().len() <= tags.len());
        parts.clear();
        pool.trim();
        prop_assert!(domain.mappings().is_empty());
        prop_assert_eq!(pool.space().leaked_bytes(), 0);
    }
}
