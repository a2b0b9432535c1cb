//! Ceilings of operations and bytes, and what commands cost of them.
#![allow(unsafe_code)] // raw entries over the test's own buffers

use std::time::{Duration, Instant};

use nvme_vfio::{Buffer, CommandError, QueueOptions};
use nvme_vfio_queues::{Command, NvmOpcode, Status};

use super::super::Ceilings;
use super::super::bucket::RANGE_COST;
use super::faults::device;
use super::rig::{Plan, Rig, slice};

/// A client of the first blocks of a namespace, with these ceilings in a second.
fn under(blocks: u64, operations: Option<u64>, bandwidth: Option<u64>) -> Rig {
    let (device, server) = device();
    let plan = Plan {
        slices: vec![vec![slice(1, 0, blocks)]],
        ceilings: Ceilings {
            outstanding: 16,
            operations,
            bandwidth,
        },
        ..Plan::default()
    };
    Rig::on(plan, device, server)
}

/// Reads of a block that a client ends in half a second of a clock that the test sets, with these ceilings.
fn reads_in_half_a_second(operations: Option<u64>, bandwidth: Option<u64>, blocks: usize) -> u64 {
    let rig = under(1000, operations, bandwidth);
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
    let mut buffers: Vec<Buffer> = (0..16)
        .map(|_| rig.client.allocate(blocks * 512).unwrap())
        .collect();
    // What was saved up until now is spent first.
    let (start, mut ended) = (Instant::now() + Duration::from_secs(1), 0);
    for tick in 0..500u32 {
        rig.clock.set(start + Duration::from_millis(1) * tick);
        for _ in 0..4 {
            while let Some(buffer) = buffers.pop() {
                queue.read(&namespace, 0, buffer, 0).unwrap();
            }
            queue.ring();
            // As a server does it: nothing of what waits is forgotten although no doorbell is rung again.
            rig.front.turn(32);
            rig.device.step();
            rig.front.turn(32);
            while let Some(completion) = queue.poll() {
                assert!(completion.result().is_ok());
                buffers.extend(completion.buffer);
                ended += 1;
            }
        }
    }
    ended
}

#[test]
fn ceilings_are_kept_over_time_and_reached() {
    // A fiftieth of a second's worth more than comes in the time.
    let within = |ended: u64, want: u64| {
        assert!(
            (want * 95 / 100..=want * 105 / 100).contains(&ended),
            "{ended} instead of {want}"
        );
    };
    within(reads_in_half_a_second(Some(2_000), None, 1), 1_040);
    within(reads_in_half_a_second(None, Some(1 << 20), 1), 1_065);
    within(reads_in_half_a_second(Some(100), Some(1 << 30), 16), 52);
    let free = reads_in_half_a_second(None, None, 1);
    assert!(free > 10_000, "{free}");
}

/// Commands like this one that a client has refused in half a second of a clock that the test sets, under this ceiling.
fn refusals_in_half_a_second(operations: Option<u64>, command: Command, status: Status) -> u64 {
    let rig = under(1000, operations, None);
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
    let before = rig.device.statistics().commands;
    let start = Instant::now() + Duration::from_secs(1);
    let (mut sent, mut ended) = (0, 0);
    for tick in 0..500u32 {
        rig.clock.set(start + Duration::from_millis(1) * tick);
        for _ in 0..4 {
            while sent - ended < 15 {
                // SAFETY: it is refused, and no memory is touched.
                unsafe { queue.submit_raw(command, 0) }.unwrap();
                sent += 1;
            }
            queue.ring();
            rig.front.turn(32);
            while let Some(completion) = queue.poll() {
                match completion.result() {
                    Err(CommandError::Status(its)) => assert_eq!(its.code(), status),
                    other => panic!("{other:?}"),
                }
                ended += 1;
            }
        }
    }
    assert_eq!(rig.device.statistics().commands, before);
    ended
}

/// What is refused is work for the server all the same.
#[test]
fn refused_commands_are_no_way_around_the_ceiling_of_operations() {
    let outside = Command {
        opcode: NvmOpcode::READ.0,
        nsid: 1,
        cdw10: 1000,
        ..Command::ZERO
    };
    // Its list of ranges is nowhere.
    let unreadable = Command {
        opcode: NvmOpcode::DATASET_MANAGEMENT.0,
        nsid: 1,
        prp1: 0x5000_0000_0000,
        cdw11: 4,
        ..Command::ZERO
    };
    for (command, status) in [
        (outside, Status::LBA_OUT_OF_RANGE),
        (unreadable, Status::DATA_TRANSFER_ERROR),
    ] {
        // A fiftieth of a second's worth more than comes in the time.
        let refused = refusals_in_half_a_second(Some(2_000), command, status);
        assert!((988..=1_092).contains(&refused), "{refused}");
        let free = refusals_in_half_a_second(None, command, status);
        assert!(free > 10_000, "{free}");
    }
}

/// Bytes that a command costs of a ceiling of a MiB in a second, by the time, in steps of a millisecond, after which the next command is fetched.
fn cost(command: Command, list: &[u64]) -> u64 {
    let rig = under(16_000, None, Some(1 << 20));
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
    let mut data = rig.client.allocate(4096).unwrap();
    for (place, word) in data.chunks_exact_mut(8).zip(list) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let command = Command {
        nsid: 1,
        prp1: if list.is_empty() { 0 } else { data.iova().0 },
        ..command
    };
    let next = Command {
        opcode: NvmOpcode::FLUSH.0,
        nsid: 1,
        ..Command::ZERO
    };
    let start = Instant::now() + Duration::from_secs(1);
    rig.clock.set(start);
    // Nothing is saved up but a fiftieth of a second's.
    for entry in [command, next] {
        // SAFETY: the data lies in the test's buffer, which it does not touch meanwhile.
        unsafe { queue.submit_raw(entry, 0) }.unwrap();
        queue.ring();
        rig.front.turn(1);
    }
    let mut ended = 0;
    for tick in 0..60_000u32 {
        rig.clock.set(start + Duration::from_millis(1) * tick);
        for _ in 0..3 {
            rig.front.turn(32);
            rig.device.step();
        }
        while let Some(completion) = queue.poll() {
            assert!(completion.result().is_ok(), "{:?}", completion.entry);
            ended += 1;
        }
        if ended == 2 {
            return u64::from(tick) * (1 << 20) / 1000 + (1 << 20) / 50;
        }
    }
    panic!("the next command never came");
}

/// What has the controller read or write counts as data, whether the client moves any or not.
#[test]
fn commands_without_data_are_no_way_around_the_ceiling_of_bytes() {
    let about = |want: u64, command: Command, list: &[u64]| {
        let cost = cost(command, list);
        let off = cost.abs_diff(want);
        assert!(
            off <= 3 << 10,
            "opcode {:#x}: {cost} instead of {want}",
            command.opcode
        );
    };
    for opcode in [
        NvmOpcode::WRITE_ZEROES,
        NvmOpcode::VERIFY,
        NvmOpcode::WRITE_UNCORRECTABLE,
    ] {
        let command = Command {
            opcode: opcode.0,
            cdw12: 999,
            ..Command::ZERO
        };
        about(1000 * 512, command, &[]);
    }
    // Three ranges: a small one, one that costs the most there is, and one of no blocks.
    let deallocate = Command {
        opcode: NvmOpcode::DATASET_MANAGEMENT.0,
        cdw10: 2,
        cdw11: 4,
        ..Command::ZERO
    };
    let ranges = [100 << 32, 0, 9_000 << 32, 1_000, 0, 0];
    about(100 * 512 + RANGE_COST, deallocate, &ranges);
    // Two ranges, which are read and written.
    let copy = Command {
        opcode: NvmOpcode::COPY.0,
        cdw10: 5_000,
        cdw12: 1,
        ..Command::ZERO
    };
    let ranges = [0, 0, 99, 0, 0, 1_000, 49, 0];
    about(2 * 150 * 512, copy, &ranges);
}
