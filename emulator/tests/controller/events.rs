//! Asynchronous events and invalid doorbells.

use crate::host::*;

fn request(host: &mut Host) -> u16 {
    let cid = host.submit(0, command(0x0c, 0));
    host.emulator.step();
    cid
}

#[test]
fn invalid_doorbell_values_are_told_once_and_ignored() {
    let mut host = Host::with_queue("mqes=16", 8);
    let cid = request(&mut host);
    assert!(host.take(0).is_none(), "it waits");
    host.ring_doorbell(1, false, 0x7fff);
    host.emulator.step();
    host.emulator.step();
    let event = host.take(0).unwrap();
    assert_eq!(
        (event.cid, event.status, event.result),
        (cid, 0, 0x0001_0100)
    );
    assert_eq!(host.emulator.statistics().invalid_doorbells, 1);
    assert_eq!(
        host.run(1, command(0, 1)).status,
        0,
        "the queue still works"
    );
    // Masked until the log page was read, which also clears what came meanwhile.
    let cid = request(&mut host);
    host.ring_doorbell(1, true, 8);
    host.emulator.step();
    host.emulator.step();
    assert!(host.take(0).is_none());
    host.log(1, 64, 0, 0);
    host.emulator.step();
    assert!(host.take(0).is_none());
    host.ring_doorbell(1, true, 8);
    host.emulator.step();
    host.emulator.step();
    let event = host.take(0).unwrap();
    assert_eq!((event.cid, event.result), (cid, 0x0001_0100));
}

#[test]
fn an_event_that_a_log_page_told_is_not_told_again() {
    let mut host = Host::with_queue("", 8);
    // Nobody asks when it happens.
    host.ring_doorbell(1, false, 99);
    host.admin(with(with(command(9, 0), 10, 0x0b), 11, 2));
    host.admin(with(with(command(9, 0), 10, 4), 11, 300));
    host.emulator.step();
    host.log(1, 64, 0, 0);
    let cid = request(&mut host);
    let event = host.take(0).unwrap();
    assert_eq!(
        (event.cid, event.result),
        (cid, 0x0002_0101),
        "of the temperature: the error log does not clear it"
    );
    request(&mut host);
    host.emulator.step();
    assert!(host.take(0).is_none(), "the error log was read");
}

#[test]
fn a_request_is_not_aborted_without_room_for_its_completion() {
    let mut host = Host::enabled("");
    host.write(CC, 0);
    host.write(AQA, 1 << 16 | 15);
    host.rings.get_mut(&0).unwrap().tail = 0;
    host.rings.get_mut(&0).unwrap().size = 16;
    host.write(CC, CC_ENABLE);
    let cid = request(&mut host);
    let abort = with(command(8, 0), 10, u32::from(cid) << 16);
    // The one free entry is for the Abort itself.
    host.submit(0, abort);
    assert_eq!(host.emulator.step(), 1);
    let result = host.rings[&0].completion.read_u32(0).unwrap();
    assert_eq!(result & 1, 1, "not aborted");
    host.ring_doorbell(0, true, 1);
    // It still waits, and meets an event.
    host.ring_doorbell(3, false, 1);
    host.emulator.step();
    assert_eq!(host.emulator.step(), 1);
    let status = host.rings[&0].completion.read_u32(16 + 12).unwrap();
    assert_eq!(status & 0xffff, u32::from(cid));
}

#[test]
fn log_page_read_with_rae_keeps_the_event_masked() {
    let mut host = Host::with_queue("", 8);
    request(&mut host);
    request(&mut host);
    host.ring_doorbell(1, false, 99);
    host.emulator.step();
    assert!(host.take(0).is_some());
    let memory = host.memory(4096);
    let read = |rae: u32| {
        with_prps(
            with(command(2, 0), 10, 15 << 16 | rae << 15 | 1),
            memory.iova().0,
            0,
        )
    };
    host.admin(read(1));
    host.ring_doorbell(1, false, 99);
    host.emulator.step();
    host.emulator.step();
    assert!(host.take(0).is_none());
    host.admin(read(0));
    host.ring_doorbell(1, false, 99);
    host.emulator.step();
    host.emulator.step();
    assert!(host.take(0).is_some());
}

#[test]
fn a_head_beyond_what_was_posted_is_invalid() {
    let mut host = Host::with_queue("", 8);
    host.ring_doorbell(1, true, 1);
    host.submit(1, command(0, 1));
    host.emulator.step();
    assert_eq!(host.emulator.statistics().invalid_doorbells, 1);
    assert!(host.take(1).is_some());
}

#[test]
fn doorbells_of_queues_that_do_not_exist_are_told() {
    let mut host = Host::enabled("queues=4");
    let cid = request(&mut host);
    host.ring_doorbell(3, false, 1);
    host.emulator.step();
    host.emulator.step();
    let event = host.take(0).unwrap();
    assert_eq!((event.cid, event.result), (cid, 0x0001_0000));
    // What was written before a queue existed is not its doorbell.
    host.ring_doorbell(3, false, 1);
    host.create_queue(3, 8);
    host.emulator.step();
    assert!(host.take(3).is_none());
    assert_eq!(host.run(3, command(0, 1)).status, 0);
}

#[test]
fn the_fifth_request_is_one_too_many() {
    let mut host = Host::enabled("");
    let cids: Vec<u16> = (0..4).map(|_| request(&mut host)).collect();
    assert_eq!(host.refused(0, command(0x0c, 0)), 0x105);
    // An Abort ends one.
    let abort = host.submit(0, with(command(8, 0), 10, u32::from(cids[2]) << 16));
    host.emulator.step();
    let first = host.take(0).unwrap();
    let second = host.take(0).unwrap();
    assert_eq!((first.cid, first.status), (cids[2], 0x007));
    assert_eq!((second.cid, second.status, second.result), (abort, 0, 0));
    request(&mut host);
    assert!(host.take(0).is_none());
}

#[test]
fn temperature_events_are_told_when_they_are_wanted() {
    let mut host = Host::enabled("");
    let cid = request(&mut host);
    let threshold = with(with(command(9, 0), 10, 4), 11, 300);
    host.admin(threshold);
    host.emulator.step();
    assert!(host.take(0).is_none(), "not asked for");
    host.admin(with(with(command(9, 0), 10, 0x0b), 11, 2));
    host.submit(0, threshold);
    host.emulator.step();
    host.take(0).unwrap();
    let event = host.take(0).unwrap();
    assert_eq!((event.cid, event.result), (cid, 0x0002_0101));
}

#[test]
fn waiting_requests_do_not_take_the_room_of_commands() {
    let mut host = Host::enabled("");
    // Room for one completion only.
    host.write(CC, 0);
    host.write(AQA, 1 << 16 | 15);
    host.rings.get_mut(&0).unwrap().tail = 0;
    host.write(CC, CC_ENABLE);
    for _ in 0..3 {
        request(&mut host);
    }
    host.submit(0, with(command(0x0a, 0), 10, 7));
    assert_eq!(host.emulator.step(), 1);
    host.submit(0, with(command(0x0a, 0), 10, 7));
    assert_eq!(host.emulator.step(), 0, "the completion queue is full");
    host.ring_doorbell(0, true, 1);
    assert_eq!(host.emulator.step(), 1);
}
