//! Faults of completions, of blocks and of registers, and faults that wait for their time.

use nvme_vfio_emulator::{
    CommandFault, ControllerFault, Fault, FaultScript, Matcher, MediaFault, MediaOperation,
    MediaUntil, When,
};
use nvme_vfio_queues::Status;

use crate::host::*;

/// A host with one I/O queue of eight entries, and a page of memory.
fn host() -> (Host, nvme_vfio_dma::SharedMemory) {
    let host = Host::with_queue("size=1M", 8);
    let memory = host.memory(4096);
    (host, memory)
}

fn read(lba: u64, memory: &nvme_vfio_dma::SharedMemory) -> Dwords {
    Host::transfer(2, lba, 8, memory.iova().0, 0)
}

fn cids(host: &mut Host) -> Vec<u16> {
    std::iter::from_fn(|| host.take(1))
        .map(|entry| entry.cid)
        .collect()
}

#[test]
fn a_lost_completion_never_comes_but_its_data_does() {
    let (mut host, memory) = host();
    memory.write_bytes(0, &[0x55; 4096]).unwrap();
    host.emulator.inject(Fault::on(
        Matcher::io().times(1),
        CommandFault::LostCompletion,
    ));
    // More of them than the completion queue has entries: the promise of an entry is taken back.
    for _ in 0..20 {
        host.submit(1, read(0, &memory));
        host.emulator.step();
        host.emulator.inject(Fault::on(
            Matcher::io().times(1),
            CommandFault::LostCompletion,
        ));
    }
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
    assert!(host.take(1).is_none());
    assert_eq!(host.emulator.release(), 0, "nothing hangs");
    host.emulator.clear_faults();
    assert_eq!(host.run(1, read(0, &memory)).status, 0);
}

#[test]
fn completions_come_late_or_out_of_order() {
    let (mut host, memory) = host();
    host.emulator
        .inject(Fault::on(Matcher::io().times(1), CommandFault::Reorder(2)));
    let submitted: Vec<u16> = (0..4)
        .map(|lba| host.submit(1, read(lba, &memory)))
        .collect();
    host.emulator.step();
    host.emulator.step();
    assert_eq!(
        cids(&mut host),
        [submitted[1], submitted[2], submitted[3], submitted[0]]
    );
    host.emulator.inject(Fault::on(
        Matcher::io().times(1),
        CommandFault::LateCompletion(3),
    ));
    let late = host.submit(1, read(0, &memory));
    for _ in 0..3 {
        host.emulator.step();
        assert!(cids(&mut host).is_empty());
    }
    host.emulator.step();
    assert_eq!(cids(&mut host), [late]);
}

/// Makes submission queue 1 anew on its completion queue, which stays as it is.
fn renew_submission_queue(host: &mut Host) {
    let ring = host.rings.get_mut(&1).unwrap();
    ring.tail = 0;
    let (size, iova) = (ring.size, ring.submission.iova().0);
    let create = host.create_submission_queue(1, size, iova, 1);
    assert_eq!(host.admin(create), 0);
}

/// As many commands at once as there can be are all answered: no completion entry is promised to one that is gone.
fn all_entries_are_free(host: &mut Host) {
    let submitted: Vec<u16> = (0..7).map(|_| host.submit(1, command(0, 1))).collect();
    for _ in 0..3 {
        host.emulator.step();
    }
    let mut answered = cids(host);
    answered.sort_unstable();
    assert_eq!(answered, submitted);
}

#[test]
fn a_completion_that_is_kept_back_ends_with_its_queue() {
    let (mut host, memory) = host();
    for fault in [CommandFault::LateCompletion(1000), CommandFault::Reorder(5)] {
        host.emulator
            .inject(Fault::on(Matcher::io().times(2), fault));
        host.submit(1, read(0, &memory));
        host.submit(1, read(0, &memory));
        host.emulator.step();
        assert_eq!(host.admin(with(command(0, 0), 10, 1)), 0);
        for _ in 0..2000 {
            host.emulator.step();
        }
        assert!(host.take(1).is_none());
        renew_submission_queue(&mut host);
        all_entries_are_free(&mut host);
    }
}

#[test]
fn the_end_of_a_queue_does_not_wait_for_completions_to_be_late() {
    let (mut host, go, _) = crate::thread::slow();
    let memory = host.memory(4096);
    host.emulator.inject(Fault::on(
        Matcher::io().times(1),
        CommandFault::LateCompletion(1000),
    ));
    let cid = host.submit(1, read(0, &memory));
    host.emulator.step();
    host.submit(0, with(command(0, 0), 10, 1));
    host.emulator.step();
    assert!(host.take(0).is_none(), "the back end has it");
    go.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..4 {
        host.emulator.step();
    }
    assert_eq!(cids(&mut host), [cid]);
    assert_eq!(host.take(0).unwrap().status, 0);
    renew_submission_queue(&mut host);
    all_entries_are_free(&mut host);
}

#[test]
fn completions_carry_wrong_fields() {
    let (mut host, memory) = host();
    let mut bent = |fault| {
        host.emulator
            .inject(Fault::on(Matcher::io().times(1), fault));
        let cid = host.submit(1, read(0, &memory));
        host.emulator.step();
        let entry = host.take(1).unwrap();
        (entry.cid == cid, entry.status, entry.result, entry.sqid)
    };
    assert_eq!(bent(CommandFault::FlipStatus(0x7fff)), (true, 0x7ff, 0, 1));
    assert_eq!(bent(CommandFault::WrongResult(7)), (true, 0, 7, 1));
    assert_eq!(bent(CommandFault::WrongSqid(0xabc)), (true, 0, 0, 0xabc));
    assert_eq!(bent(CommandFault::WrongCid(0xffff)), (false, 0, 0, 1));
}

#[test]
fn bad_blocks_fail_until_they_are_rewritten() {
    let (mut host, memory) = host();
    host.emulator.inject(Fault::unreadable(4..=4));
    let status = |host: &mut Host, command| host.run(1, command).status & 0x7ff;
    assert_eq!(status(&mut host, read(0, &memory)), 0x281);
    assert_eq!(status(&mut host, read(5, &memory)), 0);
    // A write that fails cures nothing.
    let misaligned = Host::transfer(1, 4, 1, memory.iova().0 + 1, 0);
    assert_ne!(status(&mut host, misaligned), 0);
    assert_eq!(status(&mut host, read(0, &memory)), 0x281);
    assert_eq!(
        status(&mut host, Host::transfer(1, 4, 1, memory.iova().0, 0)),
        0
    );
    assert_eq!(status(&mut host, read(0, &memory)), 0);
    host.emulator.inject(Fault::Media(MediaFault {
        nsid: Some(1),
        lbas: 0..=9,
        operation: MediaOperation::Write,
        until: MediaUntil::Cleared,
    }));
    let write = Host::transfer(1, 8, 8, memory.iova().0, 0);
    for _ in 0..2 {
        assert_eq!(status(&mut host, write), 0x280);
    }
    host.emulator.clear_faults();
    assert_eq!(status(&mut host, write), 0);
}

#[test]
fn faults_wait_for_their_step_or_command() {
    let (mut host, memory) = host();
    let steps = host.emulator.statistics().steps;
    let commands = host.emulator.statistics().commands;
    host.emulator.inject_when(
        When::Commands(commands + 2),
        Fault::on(
            Matcher::io().times(1),
            CommandFault::Status(Status::INTERNAL_ERROR),
        ),
    );
    host.emulator.inject_when(
        When::Step(steps + 10),
        Fault::of_controller(ControllerFault::Fatal),
    );
    // In one batch: the third is the one.
    for _ in 0..3 {
        host.submit(1, read(0, &memory));
    }
    host.emulator.step();
    let mut ends: Vec<(u16, bool)> = std::iter::from_fn(|| host.take(1))
        .map(|entry| (entry.cid, entry.status == 0))
        .collect();
    ends.sort_unstable();
    let good: Vec<bool> = ends.into_iter().map(|(_, good)| good).collect();
    assert_eq!(good, [true, true, false]);
    for _ in 0..8 {
        host.emulator.step();
    }
    assert_eq!(host.emulator.register_read(0x1c, 4) & 2, 0);
    host.emulator.step();
    assert_eq!(host.emulator.register_read(0x1c, 4) & 2, 2);
}

#[test]
fn registers_read_all_ones_until_a_function_reset() {
    let (mut host, memory) = host();
    host.emulator
        .inject(Fault::of_controller(ControllerFault::AllOnes));
    assert_eq!(host.emulator.register_read(0x1c, 4), 0xffff_ffff);
    let mut id = [0; 4];
    host.emulator.config_read(0, &mut id);
    assert_eq!(id, [0xff; 4]);
    host.emulator.register_write(0x14, 4, 0);
    assert_eq!(host.run(1, read(0, &memory)).status, 0, "queues go on");
    host.emulator.reset();
    assert_eq!(host.emulator.register_read(0x14, 4), 0);
    host.emulator.config_read(0, &mut id);
    assert_ne!(id, [0xff; 4]);
}

#[test]
fn capabilities_read_what_a_fault_says() {
    let emulator = nvme_vfio_emulator::Emulator::new("size=1M".parse().unwrap()).unwrap();
    let cap = emulator.register_read(0, 8);
    emulator.inject(Fault::of_controller(ControllerFault::Cap(0x1234)));
    assert_eq!(emulator.register_read(0, 8), 0x1234);
    emulator.clear_faults();
    assert_eq!(emulator.register_read(0, 8), cap);
}

#[test]
fn random_identify_data_is_the_same_for_the_same_seed() {
    let mut host = Host::with_queue("size=1M", 8);
    let page = host.memory(4096);
    let mut identify = |seed| {
        host.emulator.inject(Fault::on(
            Matcher::admin().opcode(6).times(1),
            CommandFault::RandomData(seed),
        ));
        let mut entry = with(command(6, 0), 10, 1);
        entry[6] = page.iova().0 as u32;
        entry[7] = (page.iova().0 >> 32) as u32;
        host.admin(entry);
        bytes(&page, 4096)
    };
    let first = identify(1);
    assert_eq!(first, identify(1));
    assert_ne!(first, identify(2));
}

#[test]
fn a_script_is_played() {
    let (mut host, memory) = host();
    let script = FaultScript::parse(
        "[[fault]]\ndo = 'status'\nsct = 2\nsc = 0x81\nopcode = 'read'\nlba = [8, 15]\nafter_commands = 2\ntimes = 1\n\
         [[fault]]\ndo = 'fatal'\nat_step = 10\n",
    )
    .unwrap();
    host.emulator.play(&script);
    let mut statuses = Vec::new();
    for lba in [8, 8, 0, 12, 12] {
        statuses.push(host.run(1, read(lba, &memory)).status);
    }
    assert_eq!(statuses, [0, 0, 0, 0x281, 0]);
    for _ in 0..10 {
        host.emulator.step();
    }
    assert_eq!(host.read(CSTS) & CFS, CFS);
}

#[test]
fn a_controller_that_goes_in_the_middle_of_a_batch_answers_nothing_of_it() {
    let (mut host, memory) = host();
    memory.write_bytes(0, &[0x55; 4096]).unwrap();
    let commands = host.emulator.statistics().commands;
    host.emulator.inject_when(
        When::Commands(commands + 2),
        Fault::of_controller(ControllerFault::Gone),
    );
    host.submit(1, command(0, 1));
    host.submit(1, command(0, 1));
    host.submit(1, read(0, &memory));
    host.emulator.step();
    host.emulator.step();
    assert!(host.take(1).is_none());
    assert_eq!(bytes(&memory, 4096), [0x55; 4096], "nothing was read");
    assert_eq!(host.read(CSTS), u32::MAX);
}
