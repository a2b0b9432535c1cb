//! Controllers that do not start, do not stop, fail or go.

use std::sync::Arc;
use std::time::Instant;

use nvme_vfio::{
    CommandError, Error, NotReady, Options, Outcome, QueueOptions, RecoveryLimit, SubmitError,
};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Fault, Matcher, OnAbort, Until};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![
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
