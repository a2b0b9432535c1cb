//! The software IOMMU: limits, and every access outside a mapping.

use std::ptr::NonNull;

use nvme_vfio_dma::{Access, IommuDomain, Iova, MapError, MapRegion, UnmapError};
use nvme_vfio_emulator::{DmaOrigin, Emulator, FaultReason};

use crate::host::*;

#[test]
fn reads_and_writes_outside_are_faults_with_an_error_status() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(4096);
    let iova = memory.iova().0;
    for (opcode, access) in [
        (2, Access::DEVICE_WRITE),
        (1, Access::DEVICE_READ),
        (5, Access::DEVICE_READ),
    ] {
        host.emulator.iommu().clear_faults();
        let cid = host.submit(1, Host::transfer(opcode, 0, 8, 0x12_3456_7000, 0));
        host.emulator.step();
        assert_eq!(host.take(1).unwrap().status, 0x004);
        let fault = host.emulator.iommu().faults()[0];
        assert_eq!(
            (fault.iova, fault.length, fault.access),
            (Iova(0x12_3456_7000), 4096, access)
        );
        assert_eq!(fault.reason, FaultReason::Unmapped);
        let command = fault.command.unwrap();
        assert_eq!(
            (command.sqid, command.cid, command.opcode),
            (1, cid, opcode)
        );
        assert_eq!(fault.origin, DmaOrigin::Data(command));
    }
    // The last byte counts, and nothing is moved before all was found.
    memory.write_bytes(0, &[0x55; 4096]).unwrap();
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 8, iova + 512, iova + 4096)),
        0x004
    );
    assert_eq!(bytes(&memory, 4096), [0x55; 4096]);
    let faults = host.emulator.iommu().faults();
    assert_eq!((faults[1].iova.0, faults[1].length), (iova + 4096, 512));
    assert_eq!(host.emulator.iommu().fault_count(), 4);
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 8, iova, 0)).status,
        0,
        "the controller goes on"
    );
}

#[test]
fn prp_lists_outside_are_faults() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(4096);
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 24, memory.iova().0, 0x12_3456_7000)),
        0x004
    );
    let fault = host.emulator.iommu().faults()[0];
    assert_eq!(
        (fault.iova.0, fault.length, fault.access),
        (0x12_3456_7000, 16, Access::DEVICE_READ)
    );
    assert!(matches!(fault.origin, DmaOrigin::PrpList(_)));
}

#[test]
fn mappings_allow_their_direction_only() {
    let mut host = Host::with_queue("", 8);
    let readable = host.space.shared(4096, Access::DEVICE_READ).unwrap();
    let writable = host.space.shared(4096, Access::DEVICE_WRITE).unwrap();
    assert_eq!(
        host.run(1, Host::transfer(1, 0, 8, readable.iova().0, 0))
            .status,
        0
    );
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 8, writable.iova().0, 0))
            .status,
        0
    );
    assert_eq!(
        host.refused(1, Host::transfer(2, 0, 8, readable.iova().0, 0)),
        0x004
    );
    assert_eq!(
        host.refused(1, Host::transfer(1, 0, 8, writable.iova().0, 0)),
        0x004
    );
    let reasons: Vec<_> = host
        .emulator
        .iommu()
        .faults()
        .iter()
        .map(|fault| fault.reason)
        .collect();
    assert_eq!(reasons, [FaultReason::AccessDenied; 2]);
}

#[test]
fn rings_that_go_away_are_fatal() {
    let mut host = Host::with_queue("", 8);
    host.rings.remove(&1);
    host.ring_doorbell(1, false, 1);
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.read(CSTS), RDY | CFS);
    assert_eq!(
        host.emulator.iommu().faults()[0].origin,
        DmaOrigin::SubmissionFetch(1)
    );

    let mut host = Host::enabled("");
    let submission = host.memory(4096);
    let create = host.create_completion_queue(1, 8, 0x12_3456_7000);
    host.admin(create);
    let create = host.create_submission_queue(1, 8, submission.iova().0, 1);
    host.admin(create);
    host.ring_doorbell(1, false, 1);
    host.emulator.step();
    assert_eq!(host.read(CSTS), RDY | CFS);
    assert_eq!(
        host.emulator.iommu().faults()[0].origin,
        DmaOrigin::CompletionPost(1)
    );
}

#[test]
fn unmapped_memory_is_not_reached_any_more() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(4096);
    let read = Host::transfer(2, 0, 8, memory.iova().0, 0);
    assert_eq!(host.run(1, read).status, 0);
    drop(memory);
    assert_eq!(host.refused(1, read), 0x004);
}

#[test]
fn one_transfer_may_span_mappings() {
    let mut host = Host::with_queue("size=1M", 8);
    let iommu = host.emulator.iommu();
    let mut memory = vec![0u64; 4 * 4096 / 8];
    let start = memory.as_mut_ptr().cast::<u8>();
    let start = start.wrapping_add(start.align_offset(4096));
    // Two neighbours at the device, swapped in this process.
    for (iova, offset) in [(0x100_0000, 4096), (0x100_1000, 0)] {
        let pointer = NonNull::new(start.wrapping_add(offset)).unwrap();
        let region = MapRegion {
            pointer,
            length: 4096,
            descriptor: None,
            access: Access::READ_WRITE,
        };
        // SAFETY: the vector outlives the mappings, which end below, and is not touched meanwhile.
        #[allow(unsafe_code)]
        unsafe { iommu.map(&region, Iova(iova)) }.unwrap();
    }
    let data = host.memory(8192);
    let pattern: Vec<u8> = (0..8192).map(|index| (index / 32) as u8).collect();
    data.write_bytes(0, &pattern).unwrap();
    assert_eq!(
        host.run(
            1,
            Host::transfer(1, 0, 16, data.iova().0, data.iova().0 + 4096)
        )
        .status,
        0
    );
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 16, 0x100_0000, 0x100_1000))
            .status,
        0
    );
    for iova in [0x100_0000, 0x100_1000] {
        iommu.unmap(Iova(iova), 4096).unwrap();
    }
    let begin = start.addr() - memory.as_ptr().addr();
    let all: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(all[begin..begin + 4096] == pattern[4096..]);
    assert!(all[begin + 4096..begin + 8192] == pattern[..4096]);
}

#[test]
fn limits_are_kept() {
    let host = Host::new("iova_bits=39,mappings=3");
    let iommu = host.emulator.iommu();
    let memory = vec![0u64; 4 * 4096 / 8].leak().as_mut_ptr().cast::<u8>();
    let pointer = NonNull::new(memory.wrapping_add(memory.align_offset(4096))).unwrap();
    let map = |iova, length, access| {
        let region = MapRegion {
            pointer,
            length,
            descriptor: None,
            access,
        };
        // SAFETY: the memory is leaked, so it stays, and nothing else uses it.
        #[allow(unsafe_code)]
        unsafe {
            iommu.map(&region, Iova(iova))
        }
    };
    let both = Access::READ_WRITE;
    assert!(matches!(
        map(0xfee0_0000, 4096, both),
        Err(MapError::OutsideIovaRanges { .. })
    ));
    assert!(matches!(
        map(1 << 39, 4096, both),
        Err(MapError::OutsideIovaRanges { .. })
    ));
    assert!(matches!(
        map(0x1000, 100, both),
        Err(MapError::MisalignedLength { .. })
    ));
    assert!(matches!(map(0x1000, 0, both), Err(MapError::ZeroLength)));
    map(0x3000, 8192, both).unwrap();
    for (iova, length) in [
        (0x3000, 4096),
        (0x4000, 4096),
        (0x2000, 8192),
        (0x2000, 4 * 4096 - 4096),
    ] {
        assert!(
            matches!(map(iova, length, both), Err(MapError::Overlap { .. })),
            "{iova:#x}"
        );
    }
    map(0x2000, 4096, Access::DEVICE_READ).unwrap();
    assert_eq!(iommu.limits().mappings, Some(1));
    map((1 << 39) - 4096, 4096, both).unwrap();
    assert!(matches!(
        map(0x10_0000, 4096, both),
        Err(MapError::TooManyMappings)
    ));
    assert!(matches!(
        iommu.unmap(Iova(0x3000), 4096),
        Err(UnmapError::PartOfMapping { .. })
    ));
    assert!(matches!(
        iommu.unmap(Iova(0x4000), 4096),
        Err(UnmapError::PartOfMapping { .. })
    ));
    assert!(matches!(
        iommu.unmap(Iova(0x2000), 8192),
        Err(UnmapError::SizeDiffers { .. })
    ));
    assert!(matches!(
        iommu.unmap(Iova(0x5000), 4096),
        Err(UnmapError::NotMapped { .. })
    ));
    assert!(matches!(
        iommu.unmap(Iova(0), 4096),
        Err(UnmapError::NotMapped { .. })
    ));
    assert_eq!(iommu.mappings().len(), 3);
    iommu.unmap(Iova(0x3000), 8192).unwrap();
    assert!(matches!(
        iommu.unmap(Iova(0x3000), 8192),
        Err(UnmapError::NotMapped { .. })
    ));
    map(0x10_0000, 4096, both).unwrap();
    for (iova, length) in iommu.mappings() {
        iommu.unmap(iova, length).unwrap();
    }
    assert_ne!(iommu.id(), Host::new("").emulator.iommu().id());
}

#[test]
fn two_controllers_of_one_group_share_a_domain() {
    let mut first = Host::with_queue("size=1M", 8);
    let mut second = Host::new("size=1M");
    second.emulator =
        Emulator::in_domain(second.emulator.config().clone(), first.emulator.iommu()).unwrap();
    second.emulator.config_write(4, &[6, 0]);
    second.space = first.space.clone();
    second.enable();
    second.create_queue(1, 8);
    let memory = first.memory(4096);
    memory.write_bytes(0, &[0x31; 4096]).unwrap();
    let transfer = |opcode| Host::transfer(opcode, 0, 8, memory.iova().0, 0);
    assert_eq!(first.run(1, transfer(1)).status, 0);
    assert_eq!(second.run(1, transfer(2)).status, 0);
    assert_eq!(
        bytes(&memory, 4096),
        [0; 4096],
        "the other controller's own medium"
    );
    assert_eq!(first.run(1, transfer(2)).status, 0);
    assert_eq!(bytes(&memory, 4096), [0x31; 4096]);
    assert_eq!(first.emulator.iommu().id(), second.emulator.iommu().id());
    assert_eq!(
        second.refused(1, Host::transfer(2, 0, 8, 0x7000_0000, 0)),
        0x004
    );
    assert_eq!(first.emulator.iommu().fault_count(), 1);
}
