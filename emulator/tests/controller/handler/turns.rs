//! Turns of a thread that serves many controllers.

use super::*;

#[test]
fn no_more_is_fetched_than_the_handler_and_the_turn_allow() {
    let mut bench = bench();
    bench.script().credit = 3;
    for _ in 0..10 {
        bench.host.submit(1, command(FLUSH, 1));
    }
    let turn = bench.host.emulator.turn(2);
    assert_eq!((turn.fetched, turn.in_flight), (2, 2));
    // What the handler allows is asked before each batch, and it does not count here.
    bench.script().credit = 0;
    assert_eq!(bench.host.emulator.turn(100).fetched, 0);
    bench.script().credit = u32::MAX;
    assert_eq!(bench.host.emulator.turn(5).fetched, 5);
    assert_eq!(bench.host.emulator.turn(5).fetched, 3);
    assert_eq!(bench.script().taken.len(), 10);
    // Admin commands need no credit.
    bench.script().credit = 0;
    for _ in 0..3 {
        bench.host.submit(0, with(command(0x0a, 0), 10, 7));
    }
    assert_eq!(bench.host.emulator.turn(1).fetched, 1);
    assert_eq!(bench.host.emulator.turn(0).fetched, 0);
    assert_eq!(bench.host.emulator.turn(100).fetched, 2);
}

#[test]
fn a_flood_of_admin_commands_has_a_sixteenth_of_a_turn() {
    let mut bench = bench();
    for _ in 0..8 {
        // Get Features, Number of Queues: the front end carries it out.
        bench.host.submit(0, with(command(0x0a, 0), 10, 7));
    }
    for _ in 0..3 {
        bench.host.submit(1, command(FLUSH, 1));
    }
    let turn = bench.host.emulator.turn(32);
    assert_eq!((turn.fetched, turn.posted), (2 + 3, 2));
    assert_eq!(
        bench.script().taken.len(),
        3,
        "the others are not kept waiting"
    );
    // What is left has its turns without being rung for again.
    for (limit, fetched) in [(16, 1), (17, 2), (1, 1), (32, 2), (32, 0)] {
        assert_eq!(bench.host.emulator.turn(limit).fetched, fetched, "{limit}");
    }
}

#[test]
fn an_idle_turn_is_quiet_until_a_doorbell_or_a_register() {
    let mut bench = bench();
    bench.host.emulator.turn(1);
    assert!(bench.host.emulator.turn(1).quiet);
    let steps = bench.host.emulator.statistics().steps;
    bench.host.emulator.turn(1);
    for _ in 0..10 {
        assert!(bench.host.emulator.turn(1).quiet);
    }
    assert!(
        bench.host.emulator.statistics().steps <= steps + 1,
        "no steps for nothing"
    );
    bench.host.submit(1, command(FLUSH, 1));
    let turn = bench.host.emulator.turn(1);
    assert_eq!((turn.fetched, turn.quiet), (1, false));
    let tag = bench.script().taken[0].tag;
    bench.report(tag, Status::SUCCESS, 0);
    assert_eq!(bench.host.emulator.turn(1).posted, 1);
    // Disabled, it is quiet too, and wakes by a register.
    bench.host.write(CC, 0);
    bench.host.emulator.turn(1);
    assert!(bench.host.emulator.turn(1).quiet);
    bench.host.enable();
    bench.host.emulator.turn(1);
    bench.host.submit(0, with(command(0x0a, 0), 10, 7));
    assert_eq!(bench.host.emulator.turn(1).posted, 1);
}

#[test]
fn the_host_hears_of_changed_namespaces_and_stray_doorbells_also_when_quiet() {
    let mut bench = bench();
    // Namespace Attribute Notices.
    bench
        .host
        .admin(with(with(command(0x09, 0), 10, 0x0b), 11, 1 << 8));
    for _ in 0..2 {
        bench.host.submit(0, command(0x0c, 0));
    }
    bench.host.emulator.step();
    assert!(bench.host.take(0).is_none());
    bench.host.emulator.turn(16);
    assert!(bench.host.emulator.turn(16).quiet);
    bench.host.emulator.tell_namespace_changed(1);
    assert_eq!(bench.host.emulator.turn(16).posted, 1);
    assert_eq!(bench.host.take(0).expect("an event").result, 4 << 16 | 2);
    let (_, changed) = bench.host.log(4, 4096, 0, 0);
    assert_eq!(u32_at(&changed, 0), 1);
    // A doorbell that belongs to no queue.
    bench.host.ring_doorbell(7, false, 3);
    let posted = (0..20_000).any(|_| bench.host.emulator.turn(16).posted > 0);
    assert!(posted, "looked at now and then");
    assert_eq!(
        bench.host.take(0).expect("an event").result & 7,
        0,
        "an error event"
    );
}

#[test]
fn a_turn_waits_for_nobody() {
    let bench = bench();
    let (emulator, script) = (Arc::clone(&bench.host.emulator), Arc::clone(&bench.script));
    let blocked = script.lock().unwrap();
    std::thread::scope(|scope| {
        // It has the controller, and waits in the handler.
        let other = scope.spawn(|| bench.host.emulator.register_write(CC, 4, 0));
        let begun = std::time::Instant::now();
        let busy = nvme_vfio_emulator::Turn {
            in_flight: 1,
            ..Default::default()
        };
        while emulator.turn(1) != busy {
            assert!(begun.elapsed() < crate::host::PATIENCE && !other.is_finished());
        }
        drop(blocked);
    });
    assert_eq!(bench.host.read(CSTS), 0);
    assert_ne!(emulator.turn(1).in_flight, 1);
}
