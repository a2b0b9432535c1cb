//! Commands that end late, badly or never.

use nvme_vfio::{Buffer, CommandError, Error, IoQueue, RecoveryLimit, SubmitError};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher, OnAbort};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![
    data_that_lands_after_a_completed_abort_hits_that_buffer_alone,
    the_end_of_a_queue_ends_late_data_too,
    a_read_that_never_ends_times_out_and_the_reset_frees_it,
    late_data_lands_in_quarantine,
    an_aborted_read_is_reported_with_the_controllers_status,
    a_large_read_with_a_part_that_hangs_is_reported_once,
    an_admin_command_that_hangs_leads_to_a_reset,
    a_wrong_prp_is_a_fault_and_an_error_and_nothing_else,
    a_buffer_or_namespace_of_another_controller_is_refused,
];

fn a_read_that_never_ends_times_out_and_the_reset_frees_it(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    assert_eq!(
        result_of(&mut queue),
        (1, Err(CommandError::TimedOut), false)
    );
    assert!(queue.wait().unwrap().is_none(), "reported once");
    assert!(queue.needs_rebuild());
    assert_eq!(queue.poll().map(|completion| completion.token), None);
    let reclaimed: Vec<_> = queue
        .reclaim()
        .map(|(token, buffer)| (token, buffer.len()))
        .collect();
    assert_eq!(reclaimed, [(1, 4096)]);
    let events = bench.controller.events();
    assert_eq!(
        (
            events.timeouts,
            events.aborts,
            events.not_aborted,
            events.resets
        ),
        (1, 1, 1, 1)
    );
    bench.works(&mut queue);
}

fn late_data_lands_in_quarantine(way: Way) {
    let bench = way.bench(RecoveryLimit::Abort);
    let mut queue = bench.queue(4);
    // What the late data will be.
    let mut data = bench.controller.allocate(4096).unwrap();
    data.fill(0x99);
    queue.write_blocking(&bench.namespace, 8, data).unwrap();

    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    assert_eq!(
        result_of(&mut queue),
        (1, Err(CommandError::TimedOut), false)
    );
    assert_eq!(
        (queue.overdue(), queue.reclaim().count()),
        (1, 0),
        "nothing has proven that the controller let go"
    );
    // The queue goes on with the slots that it has left, on other memory.
    for token in 10..20 {
        bench.read(&mut queue, token);
        assert_eq!(result_of(&mut queue), (token, Ok(0), true));
    }
    bench.emulator.release();
    bench.settle(&mut queue);
    assert!(
        queue.poll().is_none(),
        "a late completion is not reported again"
    );
    let reclaimed = queue.reclaim().next().unwrap();
    assert_eq!(reclaimed.0, 1);
    assert!(
        reclaimed.1.iter().all(|byte| *byte == 0x99),
        "the late data is in the quarantined memory"
    );
    assert_eq!((queue.overdue(), bench.controller.events().late), (0, 1));
    assert_eq!(bench.emulator.iommu().fault_count(), 0);
    bench.works(&mut queue);
}

fn an_aborted_read_is_reported_with_the_controllers_status(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::Aborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    let (token, result, buffer) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::ABORT_REQUESTED), "{status}");
    assert!(token == 1 && buffer);
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(&mut queue);
}

fn a_large_read_with_a_part_that_hangs_is_reported_once(way: Way) {
    for recovery in [RecoveryLimit::Abort, RecoveryLimit::Controller] {
        let bench = way.bench(recovery);
        let mut queue = bench.queue(8);
        bench.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).nth(2).times(1),
            CommandFault::Hang(OnAbort::NotAborted),
        ));
        let length = 5 * bench.controller.max_transfer().unwrap();
        queue
            .read(
                &bench.namespace,
                0,
                bench.controller.allocate(length).unwrap(),
                3,
            )
            .unwrap();
        bench.let_hours_pass(&mut queue);
        assert_eq!(
            result_of(&mut queue),
            (3, Err(CommandError::TimedOut), false)
        );
        assert!(queue.wait().unwrap().is_none());
        if recovery == RecoveryLimit::Abort {
            assert_eq!(queue.reclaim().count(), 0);
            bench.emulator.release();
        }
        bench.settle(&mut queue);
        assert!(queue.poll().is_none());
        let reclaimed: Vec<_> = queue
            .reclaim()
            .map(|(token, buffer)| (token, buffer.len()))
            .collect();
        assert_eq!(reclaimed, [(3, length)]);
        bench.works(&mut queue);
    }
}

fn an_admin_command_that_hangs_leads_to_a_reset(way: Way) {
    let bench = way.with_options(impatient(way, RecoveryLimit::Controller));
    let mut queue = bench.queue(4);
    bench.emulator.inject(Fault::on(
        Matcher::admin().opcode(IDENTIFY).times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    assert!(matches!(
        bench.controller.namespaces(),
        Err(Error::TimedOut { .. })
    ));
    assert_eq!(bench.controller.events().resets, 1);
    assert_eq!(bench.controller.namespaces().unwrap(), [1]);
    bench.works(&mut queue);
}

fn a_wrong_prp_is_a_fault_and_an_error_and_nothing_else(way: Way) {
    use nvme_vfio_queues::{BlockCount, Command, DataPointer};
    let (one, two) = (
        way.bench(RecoveryLimit::Controller),
        way.bench(RecoveryLimit::Controller),
    );
    let (mut queue, mut other) = (one.queue(4), two.queue(4));
    let nowhere = DataPointer {
        prp1: 0x7_0000_0000,
        prp2: 0,
    };
    let command = Command::read(one.namespace.id(), 0, BlockCount::ONE, nowhere);
    // SAFETY: nothing is mapped there, which is the point: the software IOMMU refuses the access.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(command, 1) }.unwrap();
    let (_, result, _) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::DATA_TRANSFER_ERROR), "{status}");
    let faults = one.emulator.iommu().faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].iova.0, 0x7_0000_0000);
    assert_eq!(two.emulator.iommu().fault_count(), 0);
    one.works(&mut queue);
    two.works(&mut other);
}

fn a_buffer_or_namespace_of_another_controller_is_refused(way: Way) {
    let (one, two) = (
        way.bench(RecoveryLimit::Controller),
        way.bench(RecoveryLimit::Controller),
    );
    assert_ne!(
        one.controller.address_space().id(),
        two.controller.address_space().id()
    );
    let mut queue = one.queue(4);
    let foreign = two.controller.allocate(4096).unwrap();
    let refused = queue.read(&one.namespace, 0, foreign, 1).unwrap_err();
    assert_eq!(refused.error, SubmitError::ForeignBuffer);
    let refused = queue
        .read(&two.namespace, 0, one.controller.allocate(4096).unwrap(), 1)
        .unwrap_err();
    assert_eq!(refused.error, SubmitError::ForeignNamespace);
    assert_eq!(
        queue.flush(&two.namespace, 1).unwrap_err().error,
        SubmitError::ForeignNamespace
    );
    let vector = vec![
        one.controller.allocate(4096).unwrap(),
        two.controller.allocate(4096).unwrap(),
    ];
    assert_eq!(
        queue
            .read_vectored(&one.namespace, 0, vector, 1)
            .unwrap_err()
            .error,
        SubmitError::ForeignBuffer
    );
}

/// A read whose Abort succeeds, with its completion, while its data is still to come; its buffer.
fn aborted_with_data_to_come(bench: &Bench, queue: &mut IoQueue) -> Buffer {
    let mut data = bench.controller.allocate(4096).unwrap();
    data.fill(0x99);
    queue.write_blocking(&bench.namespace, 8, data).unwrap();
    bench.hang(OnAbort::AbortedDataLater);
    bench.read(queue, 1);
    bench.let_hours_pass(queue);
    let completion = queue.wait().unwrap().unwrap();
    let Err(CommandError::Status(status)) = completion.result() else {
        panic!("{completion:?}")
    };
    assert!(status.is(Status::ABORT_REQUESTED), "{status}");
    // Its completion is the controller's word that it let go.
    let buffer = completion.buffer.unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0x77));
    buffer
}

fn data_that_lands_after_a_completed_abort_hits_that_buffer_alone(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    let buffer = aborted_with_data_to_come(&bench, &mut queue);
    let mut others = Vec::new();
    for token in 10..20 {
        let other = bench.controller.allocate(4096).unwrap();
        queue.read(&bench.namespace, 0, other, token).unwrap();
        let completion = queue.wait().unwrap().unwrap();
        assert_eq!((completion.token, completion.result()), (token, Ok(0)));
        others.push(completion.buffer.unwrap());
    }
    assert_eq!(bench.emulator.release(), 1);
    bench.settle(&mut queue);
    assert!(queue.poll().is_none(), "reported once");
    assert!(buffer.iter().all(|byte| *byte == 0x99), "it did come");
    assert!(
        others
            .iter()
            .all(|other| other.iter().all(|byte| *byte == 0))
    );
    let events = bench.controller.events();
    assert_eq!((events.resets, events.unknown, events.stale), (0, 0, 0));
}

fn the_end_of_a_queue_ends_late_data_too(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    let buffer = aborted_with_data_to_come(&bench, &mut queue);
    // The queue is deleted with it: whoever does not trust an Abort can make sure so.
    drop(queue);
    assert_eq!(bench.emulator.release(), 0);
    while bench.emulator.step() > 0 {}
    assert!(buffer.iter().all(|byte| *byte == 0x77));
}
