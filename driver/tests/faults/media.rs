//! Blocks that cannot be read or written.

use nvme_vfio::{CommandError, IoQueue, RecoveryLimit};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher, MediaFault, MediaOperation, MediaUntil};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![
    bad_blocks_fail_what_touches_them_until_they_are_written,
    a_bad_block_in_a_large_read_is_its_result,
    writes_that_fail_are_told_and_can_be_repeated,
    an_error_in_one_part_of_a_large_read_is_its_result,
];

fn an_error_in_one_part_of_a_large_read_is_its_result(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(2);
    let fault = CommandFault::Status(Status::UNRECOVERED_READ_ERROR);
    bench
        .emulator
        .inject(Fault::on(Matcher::io().opcode(READ).nth(3).times(1), fault));
    let length = 6 * bench.controller.max_transfer().unwrap();
    queue
        .read(
            &bench.namespace,
            0,
            bench.controller.allocate(length).unwrap(),
            3,
        )
        .unwrap();
    let (token, result, buffer) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::UNRECOVERED_READ_ERROR), "{status}");
    assert!(token == 3 && buffer && queue.in_flight() == 0);
    assert_eq!(
        bench.controller.events().resets,
        0,
        "a media error is no reason for a reset"
    );
    bench.works(&mut queue);
}

/// The status that the next completion has, its buffer being there.
fn status(queue: &mut IoQueue) -> Status {
    match result_of(queue) {
        (_, Err(CommandError::Status(status)), true) => status,
        other => panic!("{other:?}"),
    }
}

fn bad_blocks_fail_what_touches_them_until_they_are_written(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    // In the third page.
    bench.emulator.inject(Fault::unreadable(19..=20));
    for _ in 0..3 {
        bench.read(&mut queue, 2);
        let status = status(&mut queue);
        assert!(status.is(Status::UNRECOVERED_READ_ERROR), "{status}");
        bench.read(&mut queue, 3);
        assert_eq!(result_of(&mut queue), (3, Ok(0), true));
    }
    let buffer = bench.controller.allocate(4096).unwrap();
    queue.write_blocking(&bench.namespace, 16, buffer).unwrap();
    bench.read(&mut queue, 2);
    assert_eq!(result_of(&mut queue), (2, Ok(0), true));
    assert_eq!(bench.controller.events().resets, 0);
}

fn a_bad_block_in_a_large_read_is_its_result(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    let length = 5 * bench.controller.max_transfer().unwrap();
    let last = length as u64 / 512 - 1;
    bench.emulator.inject(Fault::unreadable(last..=last));
    let read = |queue: &mut IoQueue| {
        let buffer = bench.controller.allocate(length).unwrap();
        queue.read(&bench.namespace, 0, buffer, 1).unwrap();
    };
    read(&mut queue);
    let failed = status(&mut queue);
    assert!(failed.is(Status::UNRECOVERED_READ_ERROR), "{failed}");
    assert_eq!(queue.in_flight(), 0);
    bench.emulator.clear_faults();
    read(&mut queue);
    assert_eq!(result_of(&mut queue), (1, Ok(0), true));
    assert_eq!(bench.controller.events().resets, 0);
}

fn writes_that_fail_are_told_and_can_be_repeated(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.emulator.inject(Fault::Media(MediaFault {
        nsid: Some(1),
        lbas: 8..=8,
        operation: MediaOperation::Write,
        until: MediaUntil::Cleared,
    }));
    for token in 0..3 {
        let mut buffer = bench.controller.allocate(4096).unwrap();
        buffer.fill(0x11);
        queue.write(&bench.namespace, 8, buffer, token).unwrap();
        let status = status(&mut queue);
        assert!(status.is(Status::WRITE_FAULT), "{status}");
    }
    let buffer = bench.controller.allocate(4096).unwrap();
    let buffer = queue.read_blocking(&bench.namespace, 8, buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0), "nothing was written");
    bench.emulator.clear_faults();
    queue.write_blocking(&bench.namespace, 8, buffer).unwrap();
    assert_eq!(bench.controller.events().resets, 0);
}
