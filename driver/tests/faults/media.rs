//! Blocks that cannot be read or written.

use nvme_vfio::{CommandError, RecoveryLimit};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};
use nvme_vfio_queues::Status;

use crate::bench::*;

ways![an_error_in_one_part_of_a_large_read_is_its_result,];

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
