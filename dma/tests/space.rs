//! Mapping and unmapping in a domain that answers as the kernel does, with good and bad requests.
#![allow(unsafe_code)] // lends memory of the test, and plays the device

use std::error::Error as _;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::Arc;

use nvme_vfio_dma::{
    Access, AddressSpace, Buffer, DmaError, DomainLimits, FakeDomain, IommuDomain, Iova, MapError,
    Memory, Pages, Rejected, page_size,
};

fn limits(ranges: &[RangeInclusive<u64>], mappings: Option<u32>) -> DomainLimits {
    DomainLimits {
        iova_ranges: ranges.to_vec(),
        page_sizes: 0x4020_1000,
        mappings,
    }
}

fn space(domain: FakeDomain) -> (Arc<FakeDomain>, AddressSpace) {
    let domain = Arc::new(domain);
    (domain.clone(), AddressSpace::new(domain))
}

/// Fewer than all bytes of three pages: where whole pages begin inside, and the memory that owns them.
fn three_pages() -> (Vec<u8>, NonNull<u8>) {
    let mut bytes = vec![0x55; 4 * page_size()];
    let before = bytes.as_ptr().align_offset(page_size());
    let pointer = NonNull::new(bytes.as_mut_ptr().wrapping_add(before)).unwrap();
    (bytes, pointer)
}

fn reason(rejected: Rejected) -> MapError {
    match rejected.error {
        DmaError::Map(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn shared_memory_is_zeroed_mapped_and_unmapped() {
    let (domain, space) = space(FakeDomain::new());
    let ring = space.shared(100, Access::DEVICE_READ).unwrap();
    assert_eq!(ring.len(), page_size());
    assert_eq!(ring.domain_id(), domain.id());
    assert_eq!(
        domain.mappings(),
        [(ring.iova(), page_size(), Access::DEVICE_READ)]
    );
    assert_eq!(space.mappings(), [(ring.iova(), page_size())]);
    assert!(ring.iova().0 >= 0x10_0000);
    assert_eq!(ring.read_u64(page_size() - 8), Ok(0));
    assert_eq!(
        domain.translate(ring.iova(), page_size(), Access::DEVICE_READ),
        Some(ring.as_ptr())
    );
    assert_eq!(
        ring.iova_at(page_size() - 1),
        Some(Iova(ring.iova().0 + page_size() as u64 - 1))
    );
    assert_eq!(ring.iova_at(page_size()), None);
    drop(ring);
    assert!(domain.mappings().is_empty() && space.mappings().is_empty());
    assert_eq!(space.leaked_bytes(), 0);
}

#[test]
fn shared_memory_is_bounded_and_little_endian() {
    let (_, space) = space(FakeDomain::new());
    let memory = space.shared(1, Access::READ_WRITE).unwrap();
    let end = memory.len();
    memory.write_u32(4, 0x0403_0201).unwrap();
    let mut bytes = [0; 6];
    memory.read_bytes(3, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
    assert_eq!(memory.read_u64(0), Ok(0x0403_0201 << 32));
    memory.write_u64(8, 0x0807_0605_0403_0201).unwrap();
    assert_eq!(
        (memory.read_u32(8), memory.read_u32(12)),
        (Ok(0x0403_0201), Ok(0x0807_0605))
    );
    memory.write_bytes(end - 3, &[1, 2, 3]).unwrap();
    assert_eq!(memory.read_u32(end - 4), Ok(0x0302_0100));
    memory.write_bytes(end, &[]).unwrap();

    for offset in [end, end - 3, 2, usize::MAX, usize::MAX - 3] {
        assert!(
            memory.read_u32(offset).is_err() && memory.write_u32(offset, 1).is_err(),
            "{offset:#x}"
        );
    }
    for offset in [end, end - 4, 4, usize::MAX - 7] {
        assert!(
            memory.read_u64(offset).is_err() && memory.write_u64(offset, 1).is_err(),
            "{offset:#x}"
        );
    }
    for offset in [end - 5, end, usize::MAX] {
        assert!(
            memory.read_bytes(offset, &mut bytes).is_err()
                && memory.write_bytes(offset, &bytes).is_err(),
            "{offset:#x}"
        );
    }
    memory.fill_zero();
    assert!(
        (0..end)
            .step_by(8)
            .all(|offset| memory.read_u64(offset) == Ok(0))
    );
}

#[test]
fn budget_ends_and_old_mappings_stay() {
    let (domain, space) = space(FakeDomain::with_limits(limits(
        &[0..=0x7f_ffff_ffff],
        Some(3),
    )));
    let mut kept: Vec<_> = (0..3)
        .map(|_| space.shared(1, Access::READ_WRITE).unwrap())
        .collect();
    assert!(matches!(
        space.shared(1, Access::READ_WRITE),
        Err(DmaError::Map(MapError::TooManyMappings))
    ));
    assert_eq!(domain.mappings().len(), 3);
    kept[2].write_u32(0, 7).unwrap();
    kept.remove(0);
    kept.push(space.shared(1, Access::READ_WRITE).unwrap());
    assert_eq!(kept[1].read_u32(0), Ok(7));
}

#[test]
fn addresses_end_and_come_back() {
    let room = 4 * page_size() as u64;
    let (_, space) = space(FakeDomain::with_limits(limits(
        &[0..=0xf_ffff, 0x20_0000..=0x20_0000 + room - 1],
        None,
    )));
    let kept: Vec<_> = (0..4)
        .map(|_| space.shared(1, Access::READ_WRITE).unwrap())
        .collect();
    match space.shared(1, Access::READ_WRITE) {
        Err(DmaError::OutOfIova { length, .. }) => assert_eq!(length, page_size() as u64),
        other => panic!("{other:?}"),
    }
    drop(kept);
    assert_eq!(
        space
            .shared(room as usize, Access::READ_WRITE)
            .unwrap()
            .iova(),
        Iova(0x20_0000)
    );
}

#[test]
fn a_refusal_gives_memory_and_address_back() {
    let (domain, space) = space(FakeDomain::new());
    let limit = MapError::MemlockLimit {
        needed: 4096,
        limit: 0,
    };
    domain.refuse_next_map(limit);
    let memory = Memory::new(1, Pages::Small).unwrap();
    let pointer = memory.pointer();
    let rejected = space.map(memory, Access::READ_WRITE).unwrap_err();
    assert_eq!(rejected.memory.pointer(), pointer);
    let text = rejected.error.source().unwrap().to_string();
    assert!(text.ends_with("ulimit -l 65536"), "{text}");
    let before = space.map(rejected.memory, Access::READ_WRITE).unwrap();
    assert_eq!(
        before.iova(),
        Iova(0x10_0000),
        "the first address was given back"
    );
    assert!(matches!(
        reason(
            space
                .map(Memory::new(1, Pages::Small).unwrap(), Access::empty())
                .unwrap_err()
        ),
        MapError::NoAccess { bits: 0 }
    ));
}

#[test]
fn a_chosen_address_is_had_or_refused_by_name() {
    let (domain, space) = space(FakeDomain::new());
    let page = page_size() as u64;
    let at = |iova: u64, pages: usize| {
        let memory = Memory::new(pages * page_size(), Pages::Small).unwrap();
        space.map_at(memory, Iova(iova), Access::READ_WRITE)
    };
    let low = at(0, 2).unwrap();
    let high = at(0x8000_0000, 1).unwrap();
    assert_eq!(domain.mappings().len(), 2);
    assert!(matches!(
        reason(at(page, 2).unwrap_err()),
        MapError::Overlap { .. }
    ));
    assert!(matches!(
        reason(at(0x8000_0000 - page, 2).unwrap_err()),
        MapError::Overlap { .. }
    ));
    assert!(matches!(
        reason(at(0xfee0_0000, 1).unwrap_err()),
        MapError::OutsideIovaRanges { .. }
    ));
    assert!(matches!(
        reason(at(0x80_0000_0000, 1).unwrap_err()),
        MapError::OutsideIovaRanges { .. }
    ));
    assert!(matches!(
        reason(at(u64::MAX - page + 1, 2).unwrap_err()),
        MapError::IovaWraps { .. }
    ));
    assert!(matches!(
        reason(at(0x200, 1).unwrap_err()),
        MapError::MisalignedIova { .. }
    ));
    drop((low, high));
    assert_eq!(at(0, 3).unwrap().iova(), Iova(0));
    // What somebody else mapped in the domain is for the domain to find.
    let other = AddressSpace::new(space.domain().clone());
    let first = space.shared(1, Access::READ_WRITE).unwrap();
    assert!(
        matches!(other.shared(1, Access::READ_WRITE), Err(DmaError::Map(MapError::Overlap { iova, .. })) if iova == first.iova())
    );
}

#[test]
fn owned_memory_is_whole_pages_or_comes_back() {
    let (domain, space) = space(FakeDomain::new());
    let (bytes, pointer) = three_pages();
    let offset = pointer.addr().get() - bytes.as_ptr().addr();
    if offset == 0 {
        drop(
            space
                .register_owned(Memory::from_owned(bytes), Access::READ_WRITE)
                .unwrap(),
        );
    } else {
        let rejected = space
            .register_owned(Memory::from_owned(bytes), Access::READ_WRITE)
            .unwrap_err();
        assert!(matches!(
            reason(rejected),
            MapError::MisalignedPointer { .. }
        ));
    }
    let empty = space
        .register_owned(Memory::from_owned(Vec::new()), Access::READ_WRITE)
        .unwrap_err();
    assert!(matches!(empty.error, DmaError::ZeroLength));
    let short = vec![0; page_size() + 1].into_boxed_slice();
    assert!(matches!(
        reason(
            space
                .map(Memory::from_owned(short), Access::READ_WRITE)
                .unwrap_err()
        ),
        MapError::MisalignedLength { .. }
    ));
    assert!(domain.mappings().is_empty() && space.mappings().is_empty());

    let mut buffer = space
        .register_owned(Memory::new(1, Pages::Small).unwrap(), Access::DEVICE_READ)
        .unwrap();
    buffer[0] = 1;
    assert_eq!(
        domain.mappings(),
        [(buffer.iova(), page_size(), Access::DEVICE_READ)]
    );
    // SAFETY: nothing is written.
    let written = unsafe { domain.device_write(buffer.iova(), &[1]) };
    assert!(!written, "read-only for the device");
}

#[test]
fn lent_memory_is_whole_pages_unless_the_caller_promises_more() {
    let (domain, space) = space(FakeDomain::new());
    let (bytes, first) = three_pages();
    let inner = first.as_ptr().wrapping_add(100);
    let inner = NonNull::new(inner).unwrap();
    // SAFETY: `bytes` outlives every buffer made here, and is used by nothing else meanwhile.
    unsafe {
        assert!(matches!(
            space.register(inner, page_size(), Access::READ_WRITE),
            Err(DmaError::Map(MapError::MisalignedPointer { .. }))
        ));
        assert!(matches!(
            space.register(first, 100, Access::READ_WRITE),
            Err(DmaError::Map(MapError::MisalignedLength { .. }))
        ));
        assert!(matches!(
            space.register_outer(inner, 0, Access::READ_WRITE),
            Err(DmaError::ZeroLength)
        ));
        assert!(matches!(
            space.register_outer(inner, usize::MAX - page_size(), Access::READ_WRITE),
            Err(DmaError::Map(MapError::PointerWraps { .. }))
        ));
        assert!(matches!(
            space.register_outer(inner, Buffer::MAX_LENGTH + 1, Access::READ_WRITE),
            Err(DmaError::TooLong { .. })
        ));
        assert!(domain.mappings().is_empty());

        let whole = space
            .register(first, 2 * page_size(), Access::READ_WRITE)
            .unwrap();
        assert_eq!(
            (whole.len(), whole[0], whole.as_ptr()),
            (2 * page_size(), 0x55, first)
        );
        drop(whole);

        let outer = space
            .register_outer(inner, page_size(), Access::READ_WRITE)
            .unwrap();
        assert_eq!(
            (
                outer.len(),
                outer.as_ptr(),
                outer.iova().0 % page_size() as u64
            ),
            (page_size(), inner, 100)
        );
        assert_eq!(
            space.mappings(),
            [(Iova(outer.iova().0 - 100), 2 * page_size())]
        );
        assert!(domain.device_write(outer.iova(), b"x"));
        assert_eq!(outer[0], b'x');
    }
    assert!(domain.mappings().is_empty());
    drop(bytes);
}

#[test]
fn what_cannot_be_unmapped_is_leaked_and_counted() {
    let (domain, space) = space(FakeDomain::new());
    let memory = space.shared(1, Access::READ_WRITE).unwrap();
    let (iova, pointer) = (memory.iova(), memory.as_ptr());
    domain.refuse_next_unmap();
    drop(memory);
    assert_eq!(space.leaked_bytes(), page_size() as u64);
    assert_eq!(space.mappings(), [(iova, page_size())], "still there");
    // SAFETY: leaked memory stays valid, and nobody has it.
    unsafe {
        assert!(domain.device_write(iova, &[9]));
        assert_eq!(pointer.read_volatile(), 9);
    }
    assert_ne!(
        space.shared(1, Access::READ_WRITE).unwrap().iova(),
        iova,
        "its address is not used again"
    );
}

#[test]
fn a_domain_in_another_process_needs_a_descriptor() {
    let (_, space) = space(FakeDomain::new().needing_descriptor());
    let ring = space.shared(1, Access::READ_WRITE).unwrap();
    assert!(ring.descriptor().is_some());
    let (bytes, pointer) = three_pages();
    // SAFETY: refused, so nothing is lent; and `bytes` lives on.
    let refused = unsafe { space.register(pointer, page_size(), Access::READ_WRITE) };
    assert!(matches!(
        refused,
        Err(DmaError::Map(MapError::NotShareable))
    ));
    drop(bytes);
}

#[test]
fn what_is_mapped_does_not_keep_the_domain() {
    let (domain, space) = space(FakeDomain::new());
    let weak = Arc::downgrade(&domain);
    let ring = space.shared(1, Access::READ_WRITE).unwrap();
    let mut buffer = space
        .register_owned(Memory::new(1, Pages::Small).unwrap(), Access::READ_WRITE)
        .unwrap();
    drop((domain, space));
    assert!(
        weak.upgrade().is_none(),
        "a buffer in the application's hands keeps a group open"
    );
    // Plain memory now.
    buffer[0] = 1;
    ring.write_u32(0, 1).unwrap();
    assert_eq!(buffer[0], 1);
}

#[test]
fn while_the_domain_lives_its_mappings_are_ended_in_it() {
    let (domain, space) = space(FakeDomain::new());
    let ring = space.shared(1, Access::READ_WRITE).unwrap();
    drop(space);
    assert_eq!(domain.mappings().len(), 1);
    drop(ring);
    assert!(domain.mappings().is_empty());
}

#[test]
fn memory_of_a_file_goes_to_another_process_and_other_memory_of_the_caller_does_not() {
    let (_, space) = space(FakeDomain::new().needing_descriptor());
    let (_pages, first) = three_pages();
    let file = || std::fs::File::open("/dev/zero").unwrap().into();
    // SAFETY: the pages outlive both mappings, and nothing else uses them.
    let (named, plain) = unsafe {
        (
            Memory::from_raw_parts_of_file(first, page_size(), page_size(), file(), 0),
            Memory::from_raw_parts(first, page_size(), page_size()),
        )
    };
    let mapped = space.map(named, Access::DEVICE_READ).unwrap();
    assert!(
        mapped.descriptor().is_none(),
        "the file is not this crate's to give away"
    );
    drop(mapped);
    let refused = space.map(plain, Access::DEVICE_READ).unwrap_err();
    assert!(matches!(reason(refused), MapError::NotShareable));
}
