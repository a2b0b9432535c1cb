use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_vfio_dma::{DomainLimits, FakeDomain};
use nvme_vfio_user::message::DmaAccess;

use super::*;

fn memory(pages: u64, access: DmaAccess) -> ClientMemory {
    let file: OwnedFd = memfd_create("client", MFdFlags::MFD_CLOEXEC).unwrap();
    let bytes = pages * nvme_vfio_dma::page_size() as u64;
    ftruncate(&file, bytes as i64).unwrap();
    ClientMemory::map(file, 0, bytes, access).unwrap()
}

fn loans() -> (Arc<FakeDomain>, AddressSpace, Loans) {
    let domain = Arc::new(FakeDomain::new());
    let space = AddressSpace::new(domain.clone());
    (domain, space.clone(), Loans::new(space))
}

#[test]
fn each_region_is_one_range_with_the_clients_own_access_until_it_is_taken_back() {
    let (domain, space, loans) = loans();
    let first = memory(3, DmaAccess::READ);
    let second = memory(1, DmaAccess::all());
    let one = loans.lend(&first, Access::DEVICE_READ).unwrap();
    let two = loans.lend(&second, Access::READ_WRITE).unwrap();
    let page = nvme_vfio_dma::page_size();
    let mut expected = vec![
        (one, 3 * page, Access::DEVICE_READ),
        (two, page, Access::READ_WRITE),
    ];
    expected.sort_by_key(|(iova, ..)| *iova);
    assert_eq!(domain.mappings(), expected);
    assert_eq!(loans.live().len(), 2);
    loans.take_back(one, first);
    assert_eq!(space.mappings(), [(two, page)]);
    loans.take_back(two, second);
    assert!(space.mappings().is_empty());
    assert_eq!(loans.live().len(), 0);
}

#[test]
fn a_full_domain_is_no_space_and_a_distant_one_is_not_supported() {
    let limits = DomainLimits {
        iova_ranges: vec![0..=u64::MAX],
        page_sizes: !0xfff,
        mappings: Some(1),
    };
    let space = AddressSpace::new(Arc::new(FakeDomain::with_limits(limits)));
    let loans = Loans::new(space);
    let memory = memory(1, DmaAccess::all());
    loans.lend(&memory, Access::READ_WRITE).unwrap();
    assert_eq!(loans.lend(&memory, Access::READ_WRITE), Err(Errno::ENOSPC));
    let (domain, _, loans) = self::loans();
    domain.refuse_next_map(MapError::NotShareable);
    assert_eq!(
        loans.lend(&memory, Access::READ_WRITE),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(loans.live().len(), 0);
}

#[test]
fn memory_that_cannot_be_unmapped_stays() {
    let (domain, space, loans) = loans();
    let memory = memory(1, DmaAccess::all());
    let pointer = memory.pointer();
    let iova = loans.lend(&memory, Access::READ_WRITE).unwrap();
    domain.refuse_next_unmap();
    loans.take_back(iova, memory);
    assert!(space.leaked_bytes() > 0);
    // The device may still write there: it must be this process's, not somebody else's or nobody's.
    let resident = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = format!("{:x}-", pointer.as_ptr() as usize);
    assert!(
        resident.lines().any(|line| line.starts_with(&start)),
        "{start}"
    );
}

#[test]
fn what_was_never_taken_back_keeps_its_addresses() {
    let (domain, space, loans) = loans();
    let memory = memory(1, DmaAccess::all());
    let page = nvme_vfio_dma::page_size();
    let iova = loans.lend(&memory, Access::READ_WRITE).unwrap();
    // As a thread does that fails while commands are in flight, whose memory is kept.
    mem::forget(memory);
    drop(loans);
    assert_eq!(domain.mappings(), [(iova, page, Access::READ_WRITE)]);
    assert_eq!(space.mappings(), [(iova, page)]);
}
