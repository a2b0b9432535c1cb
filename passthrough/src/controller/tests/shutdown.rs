//! Shutdowns that a client announces, and what they may cost the real controller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::QueueOptions;
use nvme_vfio_emulator::{CommandFault, Fault, Matcher, OnAbort};
use nvme_vfio_queues::NvmOpcode;

use super::super::{Ceilings, Isolated, Slice};
use super::faults::{Bench, device, mender};
use super::rig::{Plan, Rig, group, slice};

/// CC.SHN of a normal shutdown.
const NORMAL: u64 = 1 << 14;
/// CC.SHN of an abrupt one.
const ABRUPT: u64 = 2 << 14;

fn flushes() -> Matcher {
    Matcher::io().opcode(NvmOpcode::FLUSH.0)
}

/// Announces a shutdown, or takes it back.
fn announce(rig: &Rig, notification: u64) {
    let control = rig.front.register_read(0x14, 4) & !0xc000;
    rig.front.register_write(0x14, 4, control | notification);
}

/// CSTS.SHST.
fn progress(rig: &Rig) -> u64 {
    rig.front.register_read(0x1c, 4) >> 2 & 0b11
}

#[test]
fn a_shutdown_is_complete_when_what_was_written_is_durable() {
    let (device, server) = device();
    let bench = Bench::on(&device, &server, Some(mender(&server)), Isolated::Shared);
    bench.inject(flushes().times(1), CommandFault::Hang(OnAbort::NotAborted));
    announce(&bench.rig, NORMAL);
    bench.rig.step();
    bench.rig.step();
    assert_eq!(progress(&bench.rig), 0b01, "the flush hangs");
    assert_eq!(device.release(), 1);
    for _ in 0..20 {
        bench.rig.step();
    }
    assert_eq!(progress(&bench.rig), 0b10);
    // A controller that was shut down deletes no queue, and is waited for; one that was reset has none.
    bench.rig.front.reset();
}

/// A client of two namespaces.
fn rig(operations: Option<u64>, outstanding: u16) -> Rig {
    let (device, server) = device();
    let plan = Plan {
        slices: vec![vec![slice(1, 0, 1000)], vec![slice(1, 2000, 1000)]],
        ceilings: Ceilings {
            outstanding,
            operations,
            bandwidth: None,
        },
        ..Plan::default()
    };
    Rig::on(plan, device, server)
}

#[test]
fn a_client_has_one_shutdown_under_way_however_often_it_announces_some() {
    let rig = rig(None, 16);
    rig.device.inject(Fault::on(
        flushes(),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    for round in 0..50 {
        for notification in [NORMAL, 0, ABRUPT, NORMAL, ABRUPT, 0] {
            announce(&rig, notification);
            rig.step();
        }
        if round % 5 == 1 {
            // A reset that waits for the flush takes back what was announced.
            rig.front.reset();
        }
        // The two namespaces are of one real one.
        assert_eq!(rig.device.statistics().held_commands, 1);
    }
    announce(&rig, NORMAL);
    rig.device.clear_faults();
    rig.device.release();
    for _ in 0..20 {
        rig.step();
    }
    assert!(!rig.front.is_resetting());
    assert_eq!(rig.device.statistics().held_commands, 0);
}

/// How many commands the real controller gets in half a second of a clock that the test sets, of a client that announces a shutdown whenever the last one is complete.
fn flushes_in_half_a_second(operations: Option<u64>) -> u64 {
    let rig = rig(operations, 16);
    let start = Instant::now() + Duration::from_secs(1);
    let before = rig.device.statistics().commands;
    let mut complete = 0;
    for tick in 0..500u32 {
        rig.clock.set(start + Duration::from_millis(1) * tick);
        for _ in 0..4 {
            announce(&rig, NORMAL);
            rig.front.turn(32);
            rig.device.step();
            rig.front.turn(32);
            if progress(&rig) == 0b10 {
                announce(&rig, 0);
                complete += 1;
            }
        }
    }
    let sent = rig.device.statistics().commands - before;
    assert!(sent.abs_diff(complete) <= 1, "{complete} of {sent}");
    sent
}

#[test]
fn shutdowns_are_no_way_around_the_ceiling_of_operations() {
    // Each costs one for each of the client's namespaces.
    let sent = flushes_in_half_a_second(Some(100));
    assert!((24..=27).contains(&sent), "{sent}");
    let free = flushes_in_half_a_second(None);
    assert!(free > 1000, "{free}");
}

#[test]
fn a_shutdown_waits_until_less_than_the_ceiling_is_in_flight() {
    let mut group = group("size=1M,lba=512,stepped,mdts=5", 2);
    let (device, server) = group.remove(0);
    let second = Slice {
        target: 1,
        ..slice(1, 0, 100)
    };
    let plan = Plan {
        slices: vec![vec![slice(1, 0, 100)], vec![second]],
        ceilings: Ceilings {
            outstanding: 1,
            operations: None,
            bandwidth: None,
        },
        others: group,
        ..Plan::default()
    };
    let other = Arc::clone(&plan.others[0].0);
    let rig = Rig::on(plan, device, server);
    rig.device.inject(Fault::on(
        Matcher::io().opcode(NvmOpcode::READ.0),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    let namespace = rig.client.namespace(1).unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(4)).unwrap();
    let buffer = rig.client.allocate(4096).unwrap();
    queue.read(&namespace, 0, buffer, 0).unwrap();
    queue.ring();
    rig.step();
    rig.step();
    assert_eq!(rig.device.statistics().held_commands, 1);
    let sent = || rig.device.statistics().commands + other.statistics().commands;
    let before = sent();
    announce(&rig, NORMAL);
    for _ in 0..20 {
        rig.step();
    }
    assert_eq!(sent(), before);
    assert_eq!(progress(&rig), 0b01);
    assert_eq!(rig.device.release(), 1);
    for _ in 0..20 {
        rig.step();
    }
    assert_eq!(sent(), before + 2);
    assert_eq!(progress(&rig), 0b10);
    // As above.
    rig.front.reset();
}

#[test]
fn a_client_that_takes_its_memory_back_does_not_wait_for_the_ceiling() {
    let rig = rig(Some(1), 16);
    rig.clock.set(Instant::now() + Duration::from_secs(1));
    for _ in 0..2 {
        announce(&rig, 0);
        announce(&rig, NORMAL);
        for _ in 0..4 {
            rig.front.turn(32);
            rig.device.step();
            rig.front.turn(32);
        }
    }
    let before = rig.device.statistics().commands;
    assert_eq!(progress(&rig), 0b01, "the second waits");
    // The reset cancels all that is under way.
    rig.front.reset();
    rig.front.turn(32);
    assert!(!rig.front.is_resetting());
    assert_eq!(rig.device.statistics().commands, before);
}
