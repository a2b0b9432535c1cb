//! Completion entries that are wrong, late, lost or out of order.

use std::collections::HashSet;
use std::time::Instant;

use nvme_vfio::{CommandError, Error, IoQueue, RecoveryLimit};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher, OnAbort};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![
    answers_for_commands_that_are_not_in_flight_are_not_believed,
    a_wrong_submission_queue_or_head_does_no_harm,
    completions_in_another_order_go_to_their_own_commands,
    a_completion_that_never_comes_is_a_timeout_and_keeps_the_memory,
    a_completion_that_comes_after_its_time_is_counted_and_frees_the_memory,
    a_wrong_phase_hides_all_that_follows_and_a_reset_ends_it,
    corrupt_status_bits_are_a_status_and_no_reason_for_a_reset,
    wrong_admin_completions_cost_a_reset_at_most,
    a_corrupt_admin_status_is_an_error_and_nothing_else,
];

fn answers_for_commands_that_are_not_in_flight_are_not_believed(way: Way) {
    for fault in [
        CommandFault::WrongCid(0xfffe),
        CommandFault::WrongCid(0x7ff0),
        CommandFault::DuplicateCompletion,
    ] {
        let bench = way.bench(RecoveryLimit::Controller);
        let mut queue = bench.queue(8);
        bench.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).times(1),
            fault.clone(),
        ));
        for token in 0..4 {
            bench.read(&mut queue, token);
        }
        let mut seen = HashSet::new();
        while let Some(completion) = queue.wait().unwrap() {
            assert!(
                seen.insert(completion.token),
                "{fault:?}: {} was reported twice",
                completion.token
            );
        }
        assert_eq!(seen.len(), 4, "{fault:?}");
        bench.settle(&mut queue);
        assert!(queue.poll().is_none());
        queue.check_deadlines(Instant::now()).unwrap();
        let events = bench.controller.events();
        assert!(events.unknown + events.stale >= 1, "{fault:?}: {events:?}");
        assert_eq!(
            events.resets, 1,
            "{fault:?}: integrity of the queue is lost, so the controller is reset"
        );
        while queue.poll().is_some() {}
        bench.works(&mut queue);
    }
}

fn a_wrong_submission_queue_or_head_does_no_harm(way: Way) {
    for fault in [
        CommandFault::WrongSqHead(0xfedc),
        CommandFault::WrongSqid(0xfedc),
        CommandFault::WrongSqid(0),
    ] {
        let bench = way.bench(RecoveryLimit::Controller);
        let mut queue = bench.queue(4);
        bench.inject(Matcher::io(), fault);
        for token in 0..20 {
            bench.read(&mut queue, token);
            assert_eq!(result_of(&mut queue), (token, Ok(0), true));
        }
        assert_eq!(bench.controller.events().resets, 0);
    }
}

/// Writes a block that says where it is.
fn write_blocks(bench: &Bench, queue: &mut IoQueue, tokens: std::ops::Range<u64>) {
    for token in tokens {
        let mut buffer = bench.controller.allocate(4096).unwrap();
        buffer.fill(token as u8 + 1);
        queue
            .write_blocking(&bench.namespace, token * 8, buffer)
            .unwrap();
    }
}

fn completions_in_another_order_go_to_their_own_commands(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(8);
    write_blocks(&bench, &mut queue, 0..8);
    for (nth, others) in [(1, 5), (3, 1), (4, 2)] {
        bench.inject(
            Matcher::io().opcode(READ).nth(nth).times(1),
            CommandFault::Reorder(others),
        );
    }
    for token in 0..8 {
        bench.read(&mut queue, token);
    }
    let mut order = Vec::new();
    while let Some(completion) = queue.wait().unwrap() {
        assert_eq!(completion.result(), Ok(0));
        let buffer = completion.buffer.unwrap();
        let expected = completion.token as u8 + 1;
        assert!(buffer.iter().all(|byte| *byte == expected));
        order.push(completion.token);
    }
    assert!(
        !order.is_sorted(),
        "{order:?}: they did come in another order"
    );
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    let events = bench.controller.events();
    assert_eq!((events.unknown, events.stale, events.resets), (0, 0, 0));
}

fn a_completion_that_never_comes_is_a_timeout_and_keeps_the_memory(way: Way) {
    for recovery in [RecoveryLimit::Abort, RecoveryLimit::Controller] {
        let bench = way.bench(recovery);
        let mut queue = bench.queue(4);
        write_blocks(&bench, &mut queue, 1..2);
        bench.inject(Matcher::io().times(1), CommandFault::LostCompletion);
        bench.read(&mut queue, 1);
        bench.let_hours_pass(&mut queue);
        assert_eq!(
            result_of(&mut queue),
            (1, Err(CommandError::TimedOut), false)
        );
        assert!(queue.wait().unwrap().is_none(), "reported once");
        // The data has come, but nothing says so: only a reset does.
        let reclaimed = queue.reclaim().count();
        match recovery {
            RecoveryLimit::Abort => {
                assert_eq!((reclaimed, queue.overdue()), (0, 1));
                bench.read(&mut queue, 2);
                assert_eq!(result_of(&mut queue), (2, Ok(0), true));
            }
            _ => {
                // What was lost in the reset is told by the next poll.
                assert!(queue.poll().is_none());
                assert_eq!(reclaimed + queue.reclaim().count(), 1);
                bench.works(&mut queue);
            }
        }
    }
}

fn a_completion_that_comes_after_its_time_is_counted_and_frees_the_memory(way: Way) {
    let bench = way.bench(RecoveryLimit::Abort);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    assert_eq!(
        result_of(&mut queue),
        (1, Err(CommandError::TimedOut), false)
    );
    bench.inject(
        Matcher::io().opcode(READ).times(1),
        CommandFault::Reorder(1),
    );
    // The late one comes between two others, which have changed places.
    bench.read(&mut queue, 2);
    bench.settle(&mut queue);
    bench.emulator.release();
    bench.settle(&mut queue);
    assert_eq!(result_of(&mut queue), (2, Ok(0), true));
    assert!(queue.poll().is_none());
    assert_eq!(bench.controller.events().late, 1);
    assert_eq!(queue.reclaim().count(), 1);
    assert_eq!(queue.overdue(), 0);
}

fn a_wrong_phase_hides_all_that_follows_and_a_reset_ends_it(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(8);
    bench.inject(
        Matcher::io().opcode(READ).nth(2).times(1),
        CommandFault::StalePhase,
    );
    for token in 1..=4 {
        bench.read(&mut queue, token);
    }
    bench.settle(&mut queue);
    assert_eq!(result_of(&mut queue), (1, Ok(0), true));
    assert!(
        queue.poll().is_none(),
        "the second is not seen, nor what is behind it"
    );
    bench.let_hours_pass(&mut queue);
    let mut seen = Vec::new();
    while let Some(completion) = queue.wait().unwrap() {
        assert!(completion.result().is_err());
        seen.push(completion.token);
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 3, 4]);
    assert_eq!(bench.controller.events().resets, 1);
    bench.works(&mut queue);
}

fn corrupt_status_bits_are_a_status_and_no_reason_for_a_reset(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    for bit in 0..15 {
        let status = Status::from_raw(1 << bit);
        bench.inject(Matcher::io().times(1), CommandFault::FlipStatus(1 << bit));
        bench.read(&mut queue, bit);
        let expected = if status.is_success() {
            // Retry delay, More and Do Not Retry alone are no failure.
            Ok(0)
        } else {
            Err(CommandError::Status(status))
        };
        assert_eq!(result_of(&mut queue), (bit, expected, true));
    }
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(&mut queue);
}

fn wrong_admin_completions_cost_a_reset_at_most(way: Way) {
    for (fault, ends) in [
        (CommandFault::WrongCid(0xfffe), false),
        (CommandFault::WrongCid(0), false),
        (CommandFault::LostCompletion, false),
        (CommandFault::StalePhase, false),
        (CommandFault::DuplicateCompletion, true),
        (CommandFault::WrongSqHead(0xffff), true),
        (CommandFault::WrongSqid(0xffff), true),
        (CommandFault::WrongResult(u32::MAX), true),
    ] {
        let bench = way.with_options(impatient(way, RecoveryLimit::Controller));
        let mut queue = bench.queue(4);
        bench.inject(Matcher::admin().opcode(IDENTIFY).times(1), fault.clone());
        let answer = bench.controller.namespaces();
        match answer {
            Ok(namespaces) => assert!(ends && namespaces == [1], "{fault:?}"),
            Err(Error::TimedOut { .. }) => assert!(!ends, "{fault:?}"),
            Err(error) => panic!("{fault:?}: {error}"),
        }
        let resets = bench.controller.events().resets;
        assert_eq!(resets, u64::from(!ends), "{fault:?}");
        assert_eq!(bench.controller.namespaces().unwrap(), [1], "{fault:?}");
        while queue.poll().is_some() {}
        bench.works(&mut queue);
    }
}

fn a_corrupt_admin_status_is_an_error_and_nothing_else(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    bench.inject(
        Matcher::admin().opcode(IDENTIFY).times(1),
        CommandFault::FlipStatus(0x7fff),
    );
    let error = bench.controller.namespaces().unwrap_err();
    assert!(
        matches!(error, Error::Status { status, .. } if status.to_raw() == 0x7fff),
        "{error}"
    );
    assert_eq!(bench.controller.events().resets, 0);
    assert_eq!(bench.controller.namespaces().unwrap(), [1]);
}
