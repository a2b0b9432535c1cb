//! Injected faults do what they say.

use nvme_vfio_emulator::{
    CommandFault, ControllerFault, Fault, FaultReason, Matcher, OnAbort, Until,
};
use nvme_vfio_queues::Status;

use crate::host::*;

fn abort(sqid: u16, cid: u16) -> Dwords {
    with(command(8, 0), 10, u32::from(cid) << 16 | u32::from(sqid))
}

/// A host with a block written, memory for a read, and a read that hangs; its identifier.
fn hanging_read(on_abort: OnAbort) -> (Host, nvme_vfio_dma::SharedMemory, u16) {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(4096);
    memory.write_bytes(0, &[0x77; 4096]).unwrap();
    assert_eq!(
        host.run(1, Host::transfer(1, 0, 8, memory.iova().0, 0))
            .status,
        0
    );
    memory.fill_zero();
    host.emulator.inject(Fault::on(
        Matcher::io().opcode(2).times(1),
        CommandFault::Hang(on_abort),
    ));
    let cid = host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    assert_eq!(host.emulator.step(), 0);
    assert!(host.take(1).is_none());
    assert_eq!(host.emulator.statistics().held_commands, 1);
    (host, memory, cid)
}

#[test]
fn a_command_hangs_until_it_is_released() {
    let (mut host, memory, cid) = hanging_read(OnAbort::NotAborted);
    assert_eq!(host.run(1, command(0, 1)).status, 0, "others go on");
    assert_eq!(host.admin(abort(1, cid)), 1, "not aborted");
    assert!(host.take(1).is_none());
    assert!(!host.emulator.release_command(1, cid + 1));
    assert!(host.emulator.release_command(1, cid));
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
    assert_eq!(host.emulator.step(), 1);
    let entry = host.take(1).unwrap();
    assert_eq!((entry.cid, entry.status), (cid, 0));
    assert_eq!(bytes(&memory, 4096), [0x77; 4096]);
}

#[test]
fn an_abort_that_works_ends_the_command_and_its_data() {
    let (mut host, memory, cid) = hanging_read(OnAbort::Aborted);
    assert_eq!(host.admin(abort(1, cid)), 0);
    let entry = host.take(1).unwrap();
    assert_eq!((entry.cid, entry.status), (cid, 0x007));
    assert_eq!(host.emulator.release(), 0);
    host.emulator.step();
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
    assert_eq!(host.admin(abort(1, cid)), 1, "it is gone");
}

#[test]
fn data_lands_after_the_abort() {
    let (mut host, memory, cid) = hanging_read(OnAbort::AbortedDataLater);
    assert_eq!(host.admin(abort(1, cid)), 0);
    assert_eq!(host.take(1).unwrap().status, 0x007);
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
    assert_eq!(host.emulator.release(), 1);
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(bytes(&memory, 4096), [0x77; 4096]);
    assert!(host.take(1).is_none(), "answered once only");
}

#[test]
fn late_data_into_unmapped_memory_is_a_fault() {
    let (mut host, memory, cid) = hanging_read(OnAbort::AbortedDataLater);
    let iova = memory.iova();
    host.admin(abort(1, cid));
    drop(memory);
    host.emulator.release();
    host.emulator.step();
    let fault = host.emulator.iommu().faults()[0];
    assert_eq!((fault.iova, fault.reason), (iova, FaultReason::Unmapped));
    assert_eq!(fault.command.unwrap().cid, cid);
}

#[test]
fn late_data_goes_where_the_prp_list_pointed_at_the_fetch() {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(16 << 10);
    let list = host.memory(4096);
    let iova = memory.iova().0;
    memory.write_bytes(0, &[0x99; 12 << 10]).unwrap();
    for page in 0..2 {
        list.write_u64(page * 8, iova + (page as u64 + 1) * 4096)
            .unwrap();
    }
    let transfer = |opcode| Host::transfer(opcode, 0, 24, iova, list.iova().0);
    assert_eq!(host.run(1, transfer(1)).status, 0);
    memory.fill_zero();
    host.emulator.inject(Fault::on(
        Matcher::io().times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    host.submit(1, transfer(2));
    host.emulator.step();
    list.fill_zero(); // the list page serves another command now
    host.emulator.release();
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().status, 0);
    assert_eq!(bytes(&memory, 12 << 10), [0x99; 12 << 10]);
    assert_eq!(host.emulator.iommu().fault_count(), 0);
}

#[test]
fn deleting_the_queue_or_resetting_proves_that_a_hanging_command_is_over() {
    type End = fn(&mut Host);
    let ends: [End; 3] = [
        |host| assert_eq!(host.admin(with(command(0, 0), 10, 1)), 0),
        |host| host.write(CC, 0),
        |host| host.emulator.reset(),
    ];
    for end in ends {
        let (mut host, memory, _) = hanging_read(OnAbort::NotAborted);
        end(&mut host);
        assert_eq!(host.emulator.release(), 0);
        host.emulator.step();
        assert_eq!(bytes(&memory, 4096), [0; 4096]);
        assert_eq!(host.emulator.statistics().held_commands, 0);
    }
}

#[test]
fn a_delay_is_counted_in_steps() {
    let mut host = Host::with_queue("", 8);
    host.emulator
        .inject(Fault::on(Matcher::io().times(1), CommandFault::Delay(3)));
    let slow = host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.run(1, command(0, 1)).status, 0);
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.emulator.step(), 1);
    assert_eq!(host.take(1).unwrap().cid, slow);
    // While it is delayed it can be aborted.
    host.emulator
        .inject(Fault::on(Matcher::io().times(1), CommandFault::Delay(100)));
    let slow = host.submit(1, command(0, 1));
    host.emulator.step();
    assert_eq!(host.admin(abort(1, slow)), 0);
    assert_eq!(host.take(1).unwrap().status, 0x007);
}

#[test]
fn an_admin_command_hangs_too() {
    let mut host = Host::enabled("");
    host.emulator.inject(Fault::on(
        Matcher::admin().opcode(6).dword10(1).times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    let memory = host.memory(4096);
    let cid = host.submit(0, with_prps(with(command(6, 0), 10, 1), memory.iova().0, 0));
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.identify(2, 0).0, 0, "another CNS");
    assert_eq!(host.emulator.release(), 1);
    host.emulator.step();
    assert_eq!(host.take(0).unwrap().cid, cid);
    assert_eq!(u32_at(&bytes(&memory, 4096), 516), 1);
}

#[test]
fn completions_are_bent() {
    let mut host = Host::with_queue("", 16);
    let io = || Matcher::io().times(1);
    host.emulator
        .inject(Fault::on(io(), CommandFault::WrongCid(0xbeef)));
    host.submit(1, command(0, 1));
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().cid, 0xbeef);

    host.emulator
        .inject(Fault::on(io(), CommandFault::DuplicateCompletion));
    let cid = host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 2);
    assert_eq!(
        (host.take(1).unwrap().cid, host.take(1).unwrap().cid),
        (cid, cid)
    );

    host.emulator
        .inject(Fault::on(io(), CommandFault::WrongSqHead(0xfff0)));
    assert_eq!(host.run(1, command(0, 1)).sq_head, 0xfff0);
    assert_eq!(
        host.run(1, command(0, 1)).sq_head,
        4,
        "the next is right again"
    );

    host.emulator.inject(Fault::on(
        io(),
        CommandFault::Status(Status::UNRECOVERED_READ_ERROR),
    ));
    assert_eq!(host.refused(1, command(0, 1)), 0x281);

    let memory = host.memory(4096);
    memory.write_bytes(0, &[1; 4096]).unwrap();
    host.emulator
        .inject(Fault::on(io(), CommandFault::NoEffect));
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 8, memory.iova().0, 0))
            .status,
        0
    );
    assert_eq!(bytes(&memory, 4096), [1; 4096]);

    host.emulator
        .inject(Fault::on(io(), CommandFault::StalePhase));
    host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 1);
    assert!(host.take(1).is_none());
    assert_eq!(host.emulator.statistics().faulted_commands, 6);
    host.emulator
        .inject(Fault::on(Matcher::io(), CommandFault::NoEffect));
    host.emulator.clear_faults();
    host.submit(1, command(0x7f, 1));
    host.emulator.step();
    assert_eq!(host.emulator.statistics().unsupported_commands, 1);
}

#[test]
fn identify_answers_junk() {
    let mut host = Host::enabled("");
    host.emulator.inject(Fault::on(
        Matcher::admin().opcode(6).times(1),
        CommandFault::JunkData(vec![0xff, 0x00, 0xa5]),
    ));
    let (status, page) = host.identify(1, 0);
    assert_eq!(
        (status, &page[..4], page[4095]),
        (0, &[0xff, 0, 0xa5, 0xff][..], 0xff)
    );
    let (_, page) = host.identify(1, 0);
    assert_eq!(page[111], 1, "once only");
}

#[test]
fn a_gone_controller_reads_all_ones_and_does_nothing() {
    let mut host = Host::with_queue("", 8);
    host.emulator.inject(Fault::Controller(
        ControllerFault::Gone,
        Until::FunctionReset,
    ));
    assert_eq!(host.read(CSTS), u32::MAX);
    assert_eq!(host.emulator.register_read(CAP, 8), u64::MAX);
    let mut header = [0; 4];
    host.emulator.config_read(0, &mut header);
    assert_eq!(header, [0xff; 4]);
    host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 0);
    assert!(host.take(1).is_none());
    host.write(CC, 0);
    host.emulator.reset();
    assert_eq!(host.read(CSTS), u32::MAX, "no reset brings it back");
}

#[test]
fn fatal_status_lasts_until_the_controller_is_disabled() {
    let mut host = Host::with_queue("", 8);
    host.emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    assert_eq!(host.read(CSTS), RDY | CFS);
    host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 0);
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), 0);
    host.enable();
    assert_eq!(host.read(CSTS), RDY);
}

#[test]
fn never_ready_ends_with_a_function_reset_or_not() {
    for (until, ready) in [(Until::FunctionReset, RDY), (Until::Cleared, 0)] {
        let mut host = Host::new("");
        host.emulator
            .inject(Fault::Controller(ControllerFault::NeverReady, until));
        host.enable();
        host.emulator.step();
        assert_eq!(host.read(CSTS), 0);
        host.write(CC, 0);
        host.emulator.reset();
        host.emulator.config_write(4, &[6, 0]);
        host.enable();
        assert_eq!(host.read(CSTS), ready);
    }
}

#[test]
fn never_disabled_needs_a_function_reset() {
    let mut host = Host::with_queue("", 8);
    host.emulator
        .inject(Fault::of_controller(ControllerFault::NeverDisabled));
    host.write(CC, 0);
    host.submit(1, command(0, 1));
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.read(CSTS), RDY);
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), RDY);
    host.emulator.reset();
    assert_eq!(host.read(CSTS), 0);
    host.emulator.config_write(4, &[6, 0]);
    host.enable();
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), 0, "the reset ended the fault");
}

#[test]
fn shutdown_never_completes() {
    let host = Host::enabled("");
    host.emulator.inject(Fault::of_controller(
        ControllerFault::ShutdownNeverCompletes,
    ));
    host.write(CC, CC_ENABLE | 1 << 14);
    host.emulator.step();
    assert_eq!(host.read(CSTS), RDY | 0b01 << 2);
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), 0);
}

#[test]
fn queue_grants_are_what_the_fault_says() {
    let mut host = Host::enabled("queues=8");
    let set = with(with(command(9, 0), 10, 7), 11, 7 << 16 | 7);
    host.emulator
        .inject(Fault::of_controller(ControllerFault::QueueGrant(2)));
    assert_eq!(host.admin(set), 1 << 16 | 1);
    let beyond = host.create_completion_queue(3, 8, 0x20_0000);
    assert_eq!(host.refused(0, beyond), 0x101);
    host.emulator.clear_faults();
    host.emulator
        .inject(Fault::of_controller(ControllerFault::QueueGrant(0)));
    assert_eq!(host.refused(0, set), 0x006);
    // More than was asked for, and more than there are.
    host.emulator.clear_faults();
    host.emulator
        .inject(Fault::of_controller(ControllerFault::QueueGrant(0xffff)));
    assert_eq!(host.admin(set), 0xfffe << 16 | 0xfffe);
    let beyond = host.create_completion_queue(9, 8, 0x20_0000);
    assert_eq!(host.refused(0, beyond), 0x101);
}
