//! A queue that is deleted under its commands, and raw commands: whose end becomes certain late, and that carry a buffer.

use std::time::{Duration, Instant};

use nvme_vfio::{CommandError, Error, IoQueue, Namespace, Outcome, RecoveryLimit, SubmitError};
use nvme_vfio_dma::{Access, SharedMemory};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Fault, Matcher, OnAbort};
use nvme_vfio_queues::{BlockCount, Command, DataPointer, Status};

use crate::bench::*;

const DELETE_SQ: u8 = 0;
const DELETE_CQ: u8 = 4;

ways![
    a_deleted_queue_reports_everything_once_and_gives_all_memory_back,
    what_was_answered_before_the_deletion_is_done,
    a_deleted_queue_of_a_controller_that_goes_keeps_no_memory,
    a_deletion_leaves_other_queues_alone,
    a_large_io_ends_with_its_queue_and_sends_nothing_after_it,
    a_refused_deletion_changes_nothing,
    a_deletion_that_does_not_end_becomes_a_reset_where_that_is_allowed,
    a_deletion_that_does_not_end_proves_nothing_where_no_reset_is_allowed,
    a_completion_queue_that_does_not_go_is_tried_again,
    a_controller_that_is_gone_deletes_nothing,
    a_reset_before_the_deletion_is_the_proof,
    raw_commands_tell_when_the_controller_has_let_go,
    an_abort_by_token_reaches_that_command,
    memory_that_is_kept_goes_with_the_reset,
    the_status_is_told_without_anything_in_flight,
    an_entry_with_a_buffer_moves_it_in_and_back,
];

/// Memory that only the controller and this test look at.
fn lent(bench: &Bench) -> SharedMemory {
    let space = bench.controller.address_space();
    space.shared(4096, Access::READ_WRITE).unwrap()
}

fn raw_read(queue: &mut IoQueue, namespace: &Namespace, memory: &SharedMemory, token: u64) {
    let pointer = DataPointer {
        prp1: memory.iova_at(0).unwrap().0,
        prp2: 0,
    };
    let command = Command::read(
        namespace.id(),
        8,
        BlockCount::new(4096 / namespace.block_size()).unwrap(),
        pointer,
    );
    // SAFETY: the memory is mapped, is reached by atomics only, and the tests keep it until they have seen the proof.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(command, token) }.unwrap();
}

/// Everything that `poll` has to tell, by token: the outcome and whether the buffer came back.
fn reports(queue: &mut IoQueue) -> Vec<(u64, Outcome, bool)> {
    let mut seen: Vec<_> = std::iter::from_fn(|| queue.poll())
        .map(|completion| {
            (
                completion.token,
                completion.outcome,
                completion.buffer.is_some(),
            )
        })
        .collect();
    seen.sort_by_key(|(token, _, _)| *token);
    seen
}

fn a_deleted_queue_reports_everything_once_and_gives_all_memory_back(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(8);
    let memory = lent(&bench);
    bench.inject(
        Matcher::io().opcode(READ),
        CommandFault::Hang(OnAbort::NotAborted),
    );
    for token in 1..=3 {
        bench.read(&mut queue, token);
    }
    raw_read(&mut queue, &bench.namespace, &memory, 4);
    bench.settle(&mut queue);
    // The fifth was never told to the controller.
    bench.read(&mut queue, 5);
    assert_eq!(queue.in_flight(), 5);

    queue.delete().unwrap();
    queue.delete().unwrap();
    let seen = reports(&mut queue);
    let outcomes: Vec<_> = [(1, true), (2, true), (3, true), (4, false), (5, true)]
        .map(|(token, memory)| (token, Outcome::Deleted, memory))
        .into();
    assert_eq!(seen, outcomes);
    assert_eq!((queue.in_flight(), queue.let_go().count()), (0, 0));

    // What the controller still had is lost with the queue: nothing lands any more, whatever is released.
    memory.fill_zero();
    bench.emulator.clear_faults();
    bench.emulator.release();
    bench.settle(&mut queue);
    assert_eq!(memory.read_u64(0).unwrap(), 0);
    assert_eq!(bench.emulator.iommu().fault_count(), 0);

    let refused = queue
        .read(
            &bench.namespace,
            0,
            bench.controller.allocate(4096).unwrap(),
            9,
        )
        .unwrap_err();
    assert_eq!(refused.error, SubmitError::Deleted);
    assert!(refused.buffer.is_some());
    assert!(queue.needs_rebuild());
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(&mut queue);
    assert!(!queue.needs_rebuild());
    queue.flush_blocking(&bench.namespace).unwrap();
}

fn a_deleted_queue_of_a_controller_that_goes_keeps_no_memory(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    queue.delete().unwrap();
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Gone));
    assert!(matches!(bench.controller.check_status(), Err(Error::Gone)));
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Deleted, true)]);
    drop(queue);
    assert_eq!(bench.controller.quarantined(), 0);
}

fn what_was_answered_before_the_deletion_is_done(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(8);
    bench.read(&mut queue, 1);
    queue.ring();
    // Over vfio-user the controller has a thread of its own; its deletion of the queue comes after the read in either case.
    while bench.emulator.statistics().commands < 1 {
        bench.settle(&mut queue);
    }
    bench.settle(&mut queue);
    queue.delete().unwrap();
    let seen = reports(&mut queue);
    assert_eq!(seen.len(), 1);
    assert!(matches!(
        seen[0],
        (1, Outcome::Done | Outcome::Deleted, true)
    ));
    if way == Way::InProcess {
        assert_eq!(seen[0].1, Outcome::Done);
    }
    bench.works(&mut queue);
}

fn a_deletion_leaves_other_queues_alone(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let (mut one, mut other) = (bench.queue(4), bench.queue(4));
    bench.inject(
        Matcher::io().sqid(one.id()),
        CommandFault::Hang(OnAbort::NotAborted),
    );
    bench.read(&mut one, 1);
    bench.settle(&mut one);
    for round in 0..50 {
        bench.read(&mut other, round);

        if round == 20 {
            one.delete().unwrap();
            assert_eq!(reports(&mut one), [(1, Outcome::Deleted, true)]);
        }
        assert_eq!(result_of(&mut other), (round, Ok(0), true));
    }
    assert!(!other.needs_rebuild());
    assert_eq!(bench.controller.events().resets, 0);
    // The identifier stays the queue's own, and is free again after it.
    let id = one.id();
    let third = bench.queue(4);
    assert_ne!(third.id(), id);
    drop(one);
    assert_eq!(bench.queue(4).id(), id);
}

fn a_large_io_ends_with_its_queue_and_sends_nothing_after_it(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(2);
    bench.inject(
        Matcher::io().opcode(READ).nth(2),
        CommandFault::Hang(OnAbort::NotAborted),
    );
    let length = 6 * bench.controller.max_transfer().unwrap();
    let buffer = bench.controller.allocate(length).unwrap();
    queue.read(&bench.namespace, 0, buffer, 3).unwrap();
    bench.settle(&mut queue);
    queue.delete().unwrap();
    let before = bench.emulator.statistics().commands;
    let completion = queue.poll().unwrap();
    assert_eq!(
        (completion.token, completion.result()),
        (3, Err(CommandError::Deleted))
    );
    assert_eq!(completion.buffer.unwrap().len(), length);
    assert!(queue.poll().is_none());
    bench.settle(&mut queue);
    assert_eq!(bench.emulator.statistics().commands, before);
    bench.emulator.clear_faults();
    bench.works(&mut queue);
}

fn a_refused_deletion_changes_nothing(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    for refusal in [Status::INTERNAL_ERROR, Status::INVALID_QUEUE_IDENTIFIER] {
        bench.inject(
            Matcher::admin().opcode(DELETE_SQ).times(1),
            CommandFault::Status(refusal),
        );
        let error = queue.delete().unwrap_err();
        assert!(
            matches!(error, Error::Status { status, .. } if status.is(refusal)),
            "{error}"
        );
        assert_eq!(queue.in_flight(), 1, "nothing was proven");
        assert!(queue.poll().is_none());
        assert!(!queue.needs_rebuild());
    }
    // The queue goes on.
    bench.read(&mut queue, 2);
    assert_eq!(result_of(&mut queue), (2, Ok(0), true));
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Deleted, true)]);
}

fn a_deletion_that_does_not_end_becomes_a_reset_where_that_is_allowed(way: Way) {
    let bench = way.with_options(impatient(way, RecoveryLimit::Controller));
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench.inject(
        Matcher::admin().opcode(DELETE_SQ).times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    );
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Reset, true)]);
    assert_eq!(bench.controller.events().resets, 1);
    bench.works(&mut queue);
}

fn a_deletion_that_does_not_end_proves_nothing_where_no_reset_is_allowed(way: Way) {
    let bench = way.with_options(impatient(way, RecoveryLimit::Abort));
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench.inject(
        Matcher::admin().opcode(DELETE_SQ).times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    );
    let error = queue.delete().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!((queue.in_flight(), queue.poll().is_some()), (1, false));
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Deleted, true)]);
}

fn a_completion_queue_that_does_not_go_is_tried_again(way: Way) {
    for rebuilt in [true, false] {
        let bench = way.bench(RecoveryLimit::Function);
        let mut queue = bench.queue(4);
        let id = queue.id();
        bench.hang(OnAbort::NotAborted);
        bench.read(&mut queue, 1);
        bench.settle(&mut queue);
        bench.inject(
            Matcher::admin().opcode(DELETE_CQ).times(2),
            CommandFault::Status(Status::INTERNAL_ERROR),
        );
        queue.delete().unwrap();
        assert_eq!(reports(&mut queue), [(1, Outcome::Deleted, true)]);
        let error = queue.rebuild().unwrap_err();
        assert!(matches!(error, Error::Status { .. }), "{error}");
        if rebuilt {
            bench.works(&mut queue);
        } else {
            drop(queue);
            assert_eq!(bench.queue(4).id(), id, "the drop has deleted the rest");
        }
        assert_eq!(bench.controller.quarantined(), 0);
    }
}

fn a_controller_that_is_gone_deletes_nothing(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    let memory = lent(&bench);
    bench.hang(OnAbort::NotAborted);
    raw_read(&mut queue, &bench.namespace, &memory, 1);
    bench.settle(&mut queue);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Gone));
    assert!(matches!(bench.controller.check_status(), Err(Error::Gone)));
    assert!(matches!(queue.delete(), Err(Error::Gone)));
    assert_eq!(reports(&mut queue), [(1, Outcome::Gone, false)]);
    assert_eq!(queue.let_go().count(), 0, "nothing is proven");
    assert!(!bench.controller.has_let_go());
    let before = bench.controller.quarantined();
    bench.controller.keep(memory);
    assert_eq!(bench.controller.quarantined(), before + 4096);
}

fn a_reset_before_the_deletion_is_the_proof(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench.controller.recover().unwrap();
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Reset, true)]);
    bench.works(&mut queue);
    // And a reset after it changes nothing about what was deleted.
    queue.delete().unwrap();
    bench.controller.recover().unwrap();
    assert_eq!(reports(&mut queue), []);
    bench.works(&mut queue);
}

fn raw_commands_tell_when_the_controller_has_let_go(way: Way) {
    enum End {
        Completion,
        Deletion,
    }
    for end in [End::Completion, End::Deletion] {
        let bench = way.bench(RecoveryLimit::Abort);
        let mut queue = bench.queue(4);
        let memory = lent(&bench);
        bench.hang(OnAbort::NotAborted);
        raw_read(&mut queue, &bench.namespace, &memory, 7);
        bench.let_hours_pass(&mut queue);
        assert_eq!(reports(&mut queue), [(7, Outcome::TimedOut, false)]);
        assert_eq!((queue.let_go().count(), queue.overdue()), (0, 1));
        match end {
            End::Completion => {
                bench.emulator.release();
                while queue.overdue() > 0 {
                    bench.settle(&mut queue);
                    assert!(queue.poll().is_none(), "it is not reported again");
                }
            }
            End::Deletion => queue.delete().unwrap(),
        }
        assert_eq!(reports(&mut queue), []);
        assert_eq!(queue.let_go().collect::<Vec<_>>(), [7]);
        assert_eq!(queue.let_go().count(), 0, "told once");
    }
    // A reset that follows the time-out is the proof, too.
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    let memory = lent(&bench);
    bench.hang(OnAbort::NotAborted);
    raw_read(&mut queue, &bench.namespace, &memory, 8);
    bench.let_hours_pass(&mut queue);
    assert_eq!(reports(&mut queue), [(8, Outcome::TimedOut, false)]);
    assert_eq!(queue.let_go().collect::<Vec<_>>(), [8]);
}

fn an_abort_by_token_reaches_that_command(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.inject(
        Matcher::io().opcode(READ).times(2),
        CommandFault::Hang(OnAbort::Aborted),
    );
    bench.read(&mut queue, 1);
    bench.read(&mut queue, 2);
    bench.settle(&mut queue);
    assert!(!queue.abort(9).unwrap(), "nothing of that name");
    assert!(queue.abort(2).unwrap());
    let (token, result, buffer) = result_of(&mut queue);
    assert!(token == 2 && buffer);
    assert!(
        matches!(result, Err(CommandError::Status(status)) if status.is(Status::ABORT_REQUESTED))
    );
    assert_eq!(
        (queue.in_flight(), bench.controller.events().aborts),
        (1, 1)
    );
    queue.delete().unwrap();
    assert_eq!(reports(&mut queue), [(1, Outcome::Deleted, true)]);
}

fn memory_that_is_kept_goes_with_the_reset(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let memory = lent(&bench);
    let mapped = bench.controller.address_space().mappings().len();
    bench.controller.keep(memory);
    assert_eq!(
        bench.controller.address_space().mappings().len(),
        mapped,
        "nothing was unmapped"
    );
    bench.controller.recover().unwrap();
    assert_eq!(
        bench.controller.address_space().mappings().len(),
        mapped - 1
    );
}

fn the_status_is_told_without_anything_in_flight(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let queue = bench.queue(4);
    bench.controller.check_status().unwrap();
    assert!(!queue.is_distrusted());
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    let start = Instant::now();
    let error = loop {
        match bench.controller.check_status() {
            Err(error) => break error,
            Ok(()) => assert!(start.elapsed() < Duration::from_secs(60)),
        }
    };
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    bench.controller.recover().unwrap();
    bench.controller.check_status().unwrap();
}

fn an_entry_with_a_buffer_moves_it_in_and_back(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    let block = bench.namespace.block_size();
    // More than two pages, so that there is a list.
    let blocks = BlockCount::new(5 * 4096 / block).unwrap();
    let command = Command::write(bench.namespace.id(), 0, blocks, DataPointer::NONE);
    let mut buffer = bench.controller.allocate(5 * 4096).unwrap();
    buffer.fill(0x5a);
    let submit = |queue: &mut IoQueue, command, buffer, token| {
        // SAFETY: the entry has no address but its data pointer.
        #[allow(unsafe_code)]
        unsafe {
            queue.submit_with_data(command, buffer, token)
        }
    };
    submit(&mut queue, command, buffer, 1).unwrap();
    assert_eq!(result_of(&mut queue), (1, Ok(0), true));
    let buffer = bench.controller.allocate(5 * 4096).unwrap();
    let buffer = queue.read_blocking(&bench.namespace, 0, buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0x5a));

    // A command that moves more than its buffer holds ends at the buffer: what an earlier list has left in the slot leads nowhere.
    for slot in 0..4 {
        let buffer = bench.controller.allocate(3 * 4096).unwrap();
        let faults = bench.emulator.iommu().fault_count();
        submit(&mut queue, command, buffer, 10 + slot).unwrap();
        let (_, result, memory) = result_of(&mut queue);
        assert!(matches!(result, Err(CommandError::Status(_))) && memory);
        assert_eq!(bench.emulator.iommu().fault_count(), faults + 1);
        assert!(
            bench
                .emulator
                .iommu()
                .faults()
                .iter()
                .all(|fault| fault.iova.0 < 1 << 20)
        );
    }

    let too_long = bench.controller.allocate(queue.max_transfer() + 1).unwrap();
    let refused = submit(&mut queue, command, too_long, 20).unwrap_err();
    assert!(matches!(refused.error, SubmitError::TooLong { .. }));
    assert!(refused.buffer.is_some());
}
