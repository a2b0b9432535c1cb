//! Memory comes back with proof, or never.
#![allow(unsafe_code)] // states proofs, and plays the device

use std::sync::Arc;

use nvme_vfio_dma::{
    Access, AddressSpace, FakeDomain, LetGo, Pool, PoolOptions, Proof, Quarantine, page_size,
};

fn setup() -> (Arc<FakeDomain>, AddressSpace, Pool) {
    let domain = Arc::new(FakeDomain::new());
    let space = AddressSpace::new(domain.clone());
    let pool = Pool::new(
        &space,
        PoolOptions {
            hugepages: false,
            ..PoolOptions::default()
        },
    );
    (domain, space, pool)
}

#[test]
fn late_data_lands_in_held_memory_which_then_comes_back() {
    let (domain, space, pool) = setup();
    let mut quarantine = Quarantine::new();
    let buffer = pool.allocate(page_size()).unwrap();
    let iova = buffer.iova();
    quarantine.hold(7, buffer);
    quarantine.hold(7, pool.allocate(10).unwrap());
    quarantine.hold(8, space.shared(1, Access::READ_WRITE).unwrap());
    quarantine.hold(9, pool.allocate(20).unwrap());
    assert_eq!(
        (quarantine.len(), quarantine.bytes()),
        (4, 2 * page_size() + 30)
    );
    let others: Vec<_> = (0..32)
        .map(|_| pool.allocate(page_size()).unwrap())
        .collect();
    assert!(
        others.iter().all(|other| other.iova() != iova),
        "quarantined memory was handed out"
    );
    // SAFETY: nobody has the quarantined buffer.
    assert!(unsafe { domain.device_write(iova, b"late") });
    assert!(
        others
            .iter()
            .all(|other| other.iter().all(|byte| *byte == 0))
    );

    // SAFETY: the device of this test does nothing more.
    let completed = unsafe { Proof::new(LetGo::Completed) };
    let one = quarantine.release_one(7, completed);
    assert_eq!(
        one.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(),
        [page_size(), 10]
    );
    assert_eq!(&one[0][..4], b"late");
    assert_eq!((quarantine.len(), domain.mappings().len()), (2, 2));

    // SAFETY: as above.
    let reset = unsafe { Proof::new(LetGo::Reset) };
    assert_eq!(reset.event(), LetGo::Reset);
    let rest = quarantine.release(reset);
    assert_eq!(
        rest.iter().map(|buffer| buffer.len()).collect::<Vec<_>>(),
        [20]
    );
    assert!(quarantine.is_empty());
    assert_eq!(
        domain.mappings().len(),
        1,
        "the ring is unmapped, the arena is not"
    );
    assert_eq!(space.leaked_bytes(), 0);
}

#[test]
fn without_proof_it_is_leaked_and_stays_mapped() {
    let (domain, space, pool) = setup();
    let mut quarantine = Quarantine::default();
    let (buffer, rest) = pool.allocate(page_size()).unwrap().split_at(100);
    let pointer = buffer.as_ptr();
    let iova = buffer.iova();
    quarantine.hold(1, buffer);
    let ring = space.shared(1, Access::READ_WRITE).unwrap();
    let ring_iova = ring.iova();
    quarantine.hold(1, ring);
    drop(quarantine);
    assert_eq!(space.leaked_bytes(), 100 + page_size() as u64);
    drop(rest);
    drop(pool);
    assert_eq!(domain.mappings().len(), 2);
    // SAFETY: leaked memory stays valid, and nobody has it.
    unsafe {
        assert!(domain.device_write(iova, b"late") && domain.device_write(ring_iova, b"late"));
        assert_eq!(pointer.read_volatile(), b'l');
    }
    // And yet the group can be closed.
    let weak = Arc::downgrade(&domain);
    drop((domain, space));
    assert!(weak.upgrade().is_none());
}
