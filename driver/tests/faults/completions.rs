//! Completion entries that are wrong, late, lost or out of order.

use std::collections::HashSet;
use std::time::Instant;

use nvme_vfio::RecoveryLimit;
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};

use crate::bench::*;

ways![
    answers_for_commands_that_are_not_in_flight_are_not_believed,
    a_wrong_submission_queue_head_does_no_harm,
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

fn a_wrong_submission_queue_head_does_no_harm(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench
        .emulator
        .inject(Fault::on(Matcher::io(), CommandFault::WrongSqHead(0xfedc)));
    for token in 0..20 {
        bench.read(&mut queue, token);
        assert_eq!(result_of(&mut queue), (token, Ok(0), true));
    }
}
