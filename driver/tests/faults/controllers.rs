//! Controllers that do not start, do not stop, fail or go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::{
    CommandError, Controller, Error, NotReady, Options, Outcome, QueueOptions, RecoveryLimit,
    SubmitError,
};
use nvme_vfio_emulator::{
    CommandFault, ControllerFault, Fault, FaultScript, Matcher, OnAbort, Until,
};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![
    registers_that_read_all_ones_are_no_proof_and_the_memory_is_kept,
    registers_that_read_all_ones_at_the_beginning_are_a_controller_that_is_gone,
    capabilities_that_cannot_be_driven_are_refused_with_their_reason,
    capabilities_that_change_are_those_of_another_controller,
    more_queues_than_asked_for_are_not_believed,
    a_fatal_status_in_the_middle_of_a_load_reports_every_command_once,
    a_controller_that_is_gone_ends_everything_and_keeps_the_memory,
    a_fatal_status_is_noticed_and_cured,
    a_controller_that_is_fatal_at_enable_or_never_ready_is_refused_with_its_registers,
    a_controller_that_does_not_stop_needs_a_function_reset,
    a_shutdown_that_never_completes_does_not_hold_up_the_end,
    few_queues_or_none_are_granted,
    a_queue_that_cannot_be_created_leaves_nothing_behind,
    memory_that_the_kernel_maps_no_more_of_is_an_error_and_nothing_is_lost,
];

fn a_controller_that_is_gone_ends_everything_and_keeps_the_memory(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Gone));
    bench.read(&mut queue, 2);
    let error = queue.check_deadlines(Instant::now() + HOUR).unwrap_err();
    assert!(matches!(error, Error::Gone), "{error}");
    let mut seen = Vec::new();
    while let Some(completion) = queue.poll() {
        assert!(
            completion.buffer.is_none(),
            "nothing has proven that the controller let go"
        );
        seen.push((completion.token, completion.outcome));
    }
    seen.sort_by_key(|(token, _)| *token);
    assert_eq!(seen, [(1, Outcome::Gone), (2, Outcome::Gone)]);
    let refused = queue
        .read(
            &bench.namespace,
            0,
            bench.controller.allocate(4096).unwrap(),
            3,
        )
        .unwrap_err();
    assert_eq!(refused.error, SubmitError::Gone);
    assert!(matches!(queue.rebuild(), Err(Error::Gone)));
    assert!(matches!(bench.controller.namespaces(), Err(Error::Gone)));
    assert!(bench.controller.quarantined() >= 2 * 4096);
}

fn a_fatal_status_is_noticed_and_cured(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    bench.read(&mut queue, 1);
    queue.check_deadlines(Instant::now() + HOUR).unwrap();
    assert_eq!(result_of(&mut queue), (1, Err(CommandError::Reset), true));
    assert!(queue.wait().unwrap().is_none());
    assert_eq!(bench.controller.events().resets, 1);
    bench.works(&mut queue);
}

fn a_controller_that_is_fatal_at_enable_or_never_ready_is_refused_with_its_registers(way: Way) {
    let device = way.device("size=16M");
    device.emulator.inject(Fault::Controller(
        ControllerFault::NeverReady,
        Until::Cleared,
    ));
    let error = device.open(options(RecoveryLimit::Function)).unwrap_err();
    let Error::NotReady {
        what: NotReady::Enable(_),
        registers,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(registers.cc & 1, 1);
    assert_ne!(registers.asq, 0);
    device.emulator.clear_faults();
    device.open(options(RecoveryLimit::Function)).unwrap();
}

fn a_controller_that_does_not_stop_needs_a_function_reset(way: Way) {
    for (recovery, comes_back) in [
        (RecoveryLimit::Controller, false),
        (RecoveryLimit::Function, true),
    ] {
        let bench = way.bench(recovery);
        let mut queue = bench.queue(4);
        bench.hang(OnAbort::NotAborted);
        bench.read(&mut queue, 1);
        bench.settle(&mut queue);
        bench
            .emulator
            .inject(Fault::of_controller(ControllerFault::NeverDisabled));
        assert_eq!(bench.controller.recover().is_ok(), comes_back);
        let completion = queue.wait().unwrap().unwrap();
        let expected = if comes_back {
            Outcome::Reset
        } else {
            Outcome::Gone
        };
        assert_eq!(
            (completion.outcome, completion.buffer.is_some()),
            (expected, comes_back)
        );
        if comes_back {
            bench.works(&mut queue);
        }
    }
}

fn a_shutdown_that_never_completes_does_not_hold_up_the_end(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    bench.emulator.inject(Fault::of_controller(
        ControllerFault::ShutdownNeverCompletes,
    ));
    let emulator = Arc::clone(&bench.emulator);
    drop(bench);
    assert_eq!(emulator.iommu().mappings(), [], "everything was unmapped");
}

fn few_queues_or_none_are_granted(way: Way) {
    let device = way.device("size=16M,queues=1");
    let controller = device.open(Options::default()).unwrap();
    assert_eq!(controller.io_queues(), 1);
    let queue = controller.io_queue(QueueOptions::default()).unwrap();
    assert!(matches!(
        controller.io_queue(QueueOptions::default()),
        Err(Error::NoQueue { granted: 1 })
    ));
    drop((queue, controller));

    device.emulator.inject(Fault::Controller(
        ControllerFault::QueueGrant(0),
        Until::Cleared,
    ));
    let controller = device.open(Options::default()).unwrap();
    assert_eq!(controller.io_queues(), 0);
    assert!(matches!(
        controller.io_queue(QueueOptions::default()),
        Err(Error::NoQueue { granted: 0 })
    ));
    assert_eq!(
        controller.namespaces().unwrap(),
        [1],
        "it can still be administered"
    );
}

fn a_queue_that_cannot_be_created_leaves_nothing_behind(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mappings = bench.emulator.iommu().mappings().len();
    const CREATE_SQ: u8 = 1;
    const CREATE_CQ: u8 = 5;
    for opcode in [CREATE_CQ, CREATE_SQ] {
        let fault = CommandFault::Status(Status::INVALID_QUEUE_SIZE);
        bench
            .emulator
            .inject(Fault::on(Matcher::admin().opcode(opcode).times(1), fault));
        let error = bench
            .controller
            .io_queue(QueueOptions::default())
            .unwrap_err();
        assert!(matches!(error, Error::Status { .. }), "{error}");
        assert_eq!(bench.emulator.iommu().mappings().len(), mappings);
    }
    // All identifiers are free, and no completion queue is in the way.
    let queues: Vec<_> = (0..bench.controller.io_queues())
        .map(|_| bench.queue(2))
        .collect();
    assert_eq!(queues.len(), usize::from(bench.controller.io_queues()));
}

fn memory_that_the_kernel_maps_no_more_of_is_an_error_and_nothing_is_lost(way: Way) {
    let device = way.device("size=16M,mappings=5");
    let controller = device.open(Options::default()).unwrap();
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let buffer = queue
        .read_blocking(&namespace, 0, controller.allocate(4096).unwrap())
        .unwrap();
    let error = controller.io_queue(QueueOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Dma(_)), "{error}");
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

fn registers_that_read_all_ones_are_no_proof_and_the_memory_is_kept(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    let mut data = bench.controller.allocate(4096).unwrap();
    data.fill(0x99);
    queue.write_blocking(&bench.namespace, 8, data).unwrap();
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::AllOnes));
    let error = queue.check_deadlines(Instant::now() + HOUR).unwrap_err();
    assert!(matches!(error, Error::Gone), "{error}");
    let completion = queue.poll().unwrap();
    assert_eq!((completion.token, completion.outcome), (1, Outcome::Gone));
    assert!(completion.buffer.is_none());
    drop(queue);
    // The controller is alive behind its dead link, and its data still lands: in memory that nobody has got.
    bench.emulator.release();
    while bench.emulator.step() > 0 {}
    assert_eq!(bench.emulator.iommu().fault_count(), 0);
    assert!(bench.controller.quarantined() >= 4096);
}

fn registers_that_read_all_ones_at_the_beginning_are_a_controller_that_is_gone(way: Way) {
    let device = way.device("size=16M");
    let transport = device.transport();
    for fault in [ControllerFault::AllOnes, ControllerFault::Cap(u64::MAX)] {
        device
            .emulator
            .inject(Fault::Controller(fault, Until::Cleared));
        let opened =
            Controller::with_transport(Arc::clone(&transport), options(RecoveryLimit::Function));
        let error = opened.unwrap_err();
        assert!(matches!(error, Error::Gone), "{error}");
        device.emulator.clear_faults();
    }
    Controller::with_transport(transport, options(RecoveryLimit::Function)).unwrap();
}

/// CAP of the emulated controller, as a start.
const CAP: u64 = 0x0840_0020_0a01_03ff;

fn capabilities_that_cannot_be_driven_are_refused_with_their_reason(way: Way) {
    let device = way.device("size=16M");
    let transport = device.transport();
    for (cap, reason) in [
        (0, "zero"),
        (CAP & !0xffff, "fewer than two entries"),
        (CAP & !(0xff << 37), "no I/O command set"),
        (
            CAP & !(0xff << 48) | 0x44 << 48,
            "smallest memory page is 65536",
        ),
        (CAP & !(0xf << 32) | 0xf << 32, "doorbell"),
    ] {
        device
            .emulator
            .inject(Fault::Controller(ControllerFault::Cap(cap), Until::Cleared));
        let opened =
            Controller::with_transport(Arc::clone(&transport), options(RecoveryLimit::Controller));
        // A stride that leads past the end of the registers is met when a queue's doorbells are looked for.
        let error = match opened {
            Ok(controller) => controller.io_queue(QueueOptions::default()).unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(error, Error::Capabilities { .. }) && error.to_string().contains(reason),
            "{cap:#x}: {error}"
        );
        device.emulator.clear_faults();
    }
    Controller::with_transport(transport, options(RecoveryLimit::Controller)).unwrap();
}

fn capabilities_that_change_are_those_of_another_controller(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench.emulator.inject(Fault::Controller(
        ControllerFault::Cap(CAP ^ 1 << 24),
        Until::Cleared,
    ));
    assert!(matches!(bench.controller.recover(), Err(Error::Gone)));
    let completion = queue.wait().unwrap().unwrap();
    assert_eq!((completion.token, completion.outcome), (1, Outcome::Gone));
    assert!(completion.buffer.is_none(), "it may still have the memory");
}

fn more_queues_than_asked_for_are_not_believed(way: Way) {
    let device = way.device("size=16M,queues=4");
    device.emulator.inject(Fault::Controller(
        ControllerFault::QueueGrant(u16::MAX),
        Until::Cleared,
    ));
    let asked = Options {
        io_queues: 3,
        ..options(RecoveryLimit::Controller)
    };
    let controller = device.open(asked).unwrap();
    assert_eq!(controller.io_queues(), 3);
    device.emulator.clear_faults();
    drop(controller);
    // And an answer that is a wrong number altogether.
    device.emulator.inject(Fault::on(
        Matcher::admin().opcode(9).times(1),
        CommandFault::WrongResult(0x0001_fffe),
    ));
    let asked = Options {
        io_queues: 3,
        ..options(RecoveryLimit::Controller)
    };
    let controller = device.open(asked).unwrap();
    assert_eq!(
        controller.io_queues(),
        2,
        "the smaller of the two numbers, plus one"
    );
}

fn a_fatal_status_in_the_middle_of_a_load_reports_every_command_once(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(8);
    let script = FaultScript::parse("[[fault]]\ndo = 'fatal'\nafter_commands = 100\n").unwrap();
    bench.emulator.play(&script);
    let (mut submitted, mut ends) = (0, std::collections::HashMap::new());
    while submitted < 300 {
        while submitted < 300 && !queue.is_full() {
            let buffer = bench.controller.allocate(4096).unwrap();
            let read = queue.read(&bench.namespace, submitted % 64 * 8, buffer, submitted);
            match read {
                Ok(()) => submitted += 1,
                Err(refused) => {
                    assert_eq!(refused.error, SubmitError::Reset);
                    break;
                }
            }
        }
        bench.settle(&mut queue);
        queue
            .check_deadlines(Instant::now() + Duration::from_secs(submitted))
            .unwrap();
        while let Some(completion) = queue.poll() {
            assert!(ends.insert(completion.token, completion.outcome).is_none());
            assert!(completion.buffer.is_some());
        }
        if queue.needs_rebuild() {
            queue.rebuild().unwrap();
        }
    }
    while let Some(completion) = queue.wait().unwrap() {
        assert!(ends.insert(completion.token, completion.outcome).is_none());
    }
    assert_eq!(ends.len(), 300);
    let cancelled = ends.values().filter(|end| **end == Outcome::Reset).count();
    assert!((1..=8).contains(&cancelled), "{cancelled}");
    assert_eq!(bench.controller.events().resets, 1);
}
