//! Capabilities, enabling, disabling, shutdown, fatal status, reset.

use crate::host::*;

#[test]
fn capabilities_say_what_was_configured() {
    let host = Host::new("mqes=4,dstrd=2,mpsmin=1,mpsmax=3,to=7");
    let cap = host.emulator.register_read(CAP, 8);
    assert_eq!(cap & 0xffff, 3, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 24 & 0xff, 7, "TO");
    assert_eq!(cap >> 32 & 0xf, 2, "DSTRD");
    assert_eq!(cap >> 36 & 1, 0, "NSSRS");
    assert_eq!(cap >> 37 & 0xff, 1, "CSS");
    assert_eq!((cap >> 48 & 0xf, cap >> 52 & 0xf), (1, 3), "MPSMIN, MPSMAX");
    assert_eq!(cap >> 59 & 0b11, 0b01, "CRMS");
    assert_eq!(host.read(0x00), cap as u32);
    assert_eq!(host.read(0x04), (cap >> 32) as u32);
    assert_eq!(host.read(0x08), 0x0002_0000, "VS");
    assert_eq!(host.read(0x68) & 0xffff, 7, "CRTO.CRWMT");
    for (offset, bytes) in [
        (0x02, 4),
        (0x00, 2),
        (0x00, 3),
        (0x1001, 4),
        (u32::MAX, 8),
        (0x20, 4),
    ] {
        assert_eq!(
            host.emulator.register_read(offset, bytes),
            0,
            "{offset:#x} of {bytes} bytes"
        );
    }
}

#[test]
fn interrupt_masks_set_and_clear() {
    let host = Host::new("");
    host.write(0x0c, 0b1101);
    host.write(0x10, 0b0100);
    assert_eq!((host.read(0x0c), host.read(0x10)), (0b1001, 0b1001));
}

#[test]
fn enable_and_disable() {
    let mut host = Host::with_queue("", 8);
    let asq = host.emulator.register_read(ASQ, 8);
    host.write(ASQ, 0x5000);
    host.write(AQA, 0);
    assert_eq!(
        host.emulator.register_read(ASQ, 8),
        asq,
        "locked while enabled"
    );
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), 0);
    assert_eq!(
        host.emulator.register_read(ASQ, 8),
        asq,
        "a controller reset keeps it"
    );
    assert_eq!(host.read(AQA), 15 << 16 | 15);
    assert!(
        host.emulator
            .doorbells()
            .iter()
            .all(|doorbell| doorbell.load(std::sync::atomic::Ordering::Relaxed) == 0)
    );
    host.enable();
    assert_eq!(host.read(CSTS), RDY);
    host.create_queue(1, 8); // identifier 1 is free again
    host.admin(with(command(0x0a, 0), 10, 0x07));
}

#[test]
fn what_cannot_be_enabled_is_fatal_and_recovers() {
    type Change = fn(&Host);
    let cases: [(&str, Change); 11] = [
        ("ASQ off by 8", |host| host.write(ASQ, host.read(ASQ) + 8)),
        ("ACQ off by 512", |host| {
            host.write(ACQ, host.read(ACQ) + 512)
        }),
        ("ASQS 0", |host| host.write(AQA, 15 << 16)),
        ("ACQS 0", |host| host.write(AQA, 15)),
        ("MPS 9", |host| host.write(CC, CC_ENABLE | 9 << 7)),
        ("MPS below MPSMIN", |host| host.write(CC, CC_ENABLE)),
        ("IOSQES 5", |host| {
            host.write(CC, 4 << 20 | 5 << 16 | 1 << 7 | 1)
        }),
        ("IOCQES 6", |host| {
            host.write(CC, 6 << 20 | 6 << 16 | 1 << 7 | 1)
        }),
        ("CSS 6", |host| host.write(CC, CC_ENABLE | 1 << 7 | 6 << 4)),
        ("CSS 7", |host| host.write(CC, CC_ENABLE | 1 << 7 | 7 << 4)),
        ("AMS 1", |host| host.write(CC, CC_ENABLE | 1 << 7 | 1 << 11)),
    ];
    for (name, change) in cases {
        let mut host = Host::new("mpsmin=1,mpsmax=2");
        host.enable();
        host.write(CC, 0);
        assert_eq!(host.read(CSTS), 0);
        change(&host);
        if host.read(CC) & 1 == 0 {
            host.write(CC, CC_ENABLE | 1 << 7);
        }
        assert_eq!(host.read(CSTS), CFS, "{name}");
        assert_eq!(host.emulator.step(), 0);
        host.write(CC, 0);
        assert_eq!(host.read(CSTS), 0, "{name}");
        host.enable();
        assert_eq!(host.read(CSTS), RDY, "{name}");
        host.admin(with(command(0x0a, 0), 10, 0x07));
    }
}

#[test]
fn entry_sizes_may_be_set_later_but_before_io_queues() {
    let mut host = Host::new("");
    host.enable();
    host.write(CC, 0);
    host.write(CC, 1);
    host.rings
        .values_mut()
        .for_each(|ring| (ring.tail, ring.head) = (0, 0));
    host.rings
        .values()
        .for_each(|ring| ring.completion.fill_zero());
    assert_eq!(host.read(CSTS), RDY);
    let create = host.create_completion_queue(1, 8, 0x20_0000);
    assert_eq!(host.refused(0, create), 0x102);
    host.write(CC, CC_ENABLE);
    host.admin(create);
    // The page size, however, stands.
    host.write(CC, CC_ENABLE | 1 << 7);
    assert_eq!(host.read(CC), CC_ENABLE);
}

#[test]
fn shutdown_completes_and_stops_processing() {
    for shn in [1, 2] {
        let mut host = Host::with_queue("", 8);
        host.write(CC, CC_ENABLE | shn << 14);
        assert_eq!(host.read(CSTS), RDY | 0b10 << 2);
        host.submit(1, command(0x00, 1));
        assert_eq!(host.emulator.step(), 0);
        assert!(host.take(1).is_none());
        host.write(CC, 0);
        assert_eq!(host.read(CSTS), 0);
        host.enable();
        host.create_queue(1, 8);
        assert_eq!(host.run(1, command(0x00, 1)).status, 0);
    }
}

#[test]
fn shutdown_of_a_disabled_controller_ends_with_the_next_enable() {
    let mut host = Host::new("");
    host.write(CC, 1 << 14);
    assert_eq!(host.read(CSTS), 0b10 << 2);
    host.enable();
    assert_eq!(host.read(CSTS), RDY);
}

#[test]
fn function_reset_clears_all_registers() {
    let mut host = Host::with_queue("", 8);
    host.emulator.reset();
    for register in [CC, CSTS, AQA, ASQ, ASQ + 4, ACQ, ACQ + 4] {
        assert_eq!(host.read(register), 0, "{register:#x}");
    }
    let mut command_register = [0; 2];
    host.emulator.config_read(4, &mut command_register);
    assert_eq!(command_register[0] & 4, 0, "bus mastering is off");
    host.emulator.config_write(4, &[6, 0]);
    host.enable();
    host.create_queue(1, 8);
}

#[test]
fn without_bus_mastering_every_access_is_a_fault_and_fatal() {
    let mut host = Host::enabled("");
    host.emulator.config_write(4, &[2, 0]);
    host.submit(0, command(0x0c, 0));
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.read(CSTS), RDY | CFS);
    let faults = host.emulator.iommu().faults();
    assert_eq!(
        faults[0].reason,
        nvme_vfio_emulator::FaultReason::BusMasterOff
    );
    assert_eq!(faults[0].iova, host.rings[&0].submission.iova());
}

#[test]
fn doorbells_can_be_rung_by_register_write() {
    let mut host = Host::enabled("dstrd=1");
    let submission = command(0x0a, 0);
    let ring = host.rings.get_mut(&0).unwrap();
    for (index, dword) in with(submission, 10, 7).into_iter().enumerate() {
        ring.submission.write_u32(index * 4, dword).unwrap();
    }
    host.emulator.register_write(0x1000, 4, 1);
    assert_eq!(host.emulator.step(), 1);
    assert_eq!(host.take(0).unwrap().status, 0);
    host.emulator.register_write(0x1008, 4, 1); // the head of the completion queue, 8 bytes on
    for offset in [0x1002, 0xffff_fffc] {
        host.emulator.register_write(offset, 4, 1);
    }
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.emulator.statistics().invalid_doorbells, 0);
}
