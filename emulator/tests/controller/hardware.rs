//! The hardware is what the configuration says, and takes as long: in the time of the steps or of the clock.

use std::time::{Duration, Instant};

use nvme_vfio_emulator::{CommandFault, Config, Fault, Matcher};

use crate::host::*;

/// The completions of the next `steps` steps, as steps from now.
fn ends(host: &mut Host, steps: u64) -> Vec<(u64, u16)> {
    let mut ends = Vec::new();
    for step in 0..steps {
        host.emulator.step();
        while let Some(entry) = host.take(1) {
            ends.push((step, entry.cid));
        }
    }
    ends
}

#[test]
fn a_fixed_latency_is_so_many_steps() {
    let mut host = Host::with_queue(
        "size=1M,latency.read=80us,latency.write=20us,latency.step=10us",
        8,
    );
    let memory = host.memory(4096);
    let read = host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    let write = host.submit(1, Host::transfer(1, 0, 8, memory.iova().0, 0));
    let flush = host.submit(1, command(0, 1));
    assert_eq!(ends(&mut host, 100), [(0, flush), (2, write), (8, read)]);
}

#[test]
fn random_latencies_differ_and_repeat() {
    let run = |seed: u32| {
        let text = format!("size=1M,latency.other=1us..40us,latency.seed={seed}");
        let mut host = Host::with_queue(&text, 8);
        for _ in 0..7 {
            host.submit(1, with(command(8, 1), 12, 7));
        }
        ends(&mut host, 100)
    };
    let first = run(1);
    assert_eq!(first.len(), 7);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
    assert!(first.iter().any(|(step, _)| *step != first[0].0));
}

#[test]
fn a_queue_ends_before_its_commands_do() {
    let mut host = Host::with_queue("size=1M,latency.flush=1ms", 4);
    for _ in 0..3 {
        host.submit(1, command(0, 1));
    }
    host.emulator.step();
    assert_eq!(host.admin(with(command(0, 0), 10, 1)), 0);
    assert!(ends(&mut host, 2000).is_empty());
    // The promises of entries were taken back with it.
    let ring = host.rings.get_mut(&1).unwrap();
    ring.tail = 0;
    let iova = ring.submission.iova().0;
    let create = host.create_submission_queue(1, 4, iova, 1);
    assert_eq!(host.admin(create), 0);
    for _ in 0..3 {
        host.submit(1, command(0, 1));
    }
    assert_eq!(ends(&mut host, 2000).len(), 3);
}

#[test]
fn a_fault_comes_before_a_latency() {
    let mut host = Host::with_queue("size=1M,latency.flush=10us", 8);
    host.emulator.inject(Fault::on(
        Matcher::io().times(1),
        CommandFault::WrongResult(5),
    ));
    host.submit(1, command(0, 1));
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().result, 5);
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_thread_keeps_the_time_of_the_clock() {
    // In steps they would be three million, most of them a millisecond long.
    let mut host = Host::with_queue("size=1M,latency.flush=3ms,latency.step=1ns", 8);
    let _thread = host.emulator.spawn().unwrap();
    for _ in 0..3 {
        let before = Instant::now();
        host.submit(1, command(0, 1));
        until(|| host.take(1).is_some());
        let took = before.elapsed();
        assert!(took >= Duration::from_millis(3), "{took:?}");
    }
}

#[test]
fn what_waits_when_a_thread_ends_goes_on_by_steps_for_as_long_as_is_left() {
    let mut host = Host::with_queue("size=1M,latency.write=60s,latency.step=10ms", 8);
    let before = host.emulator.statistics().commands;
    let thread = host.emulator.spawn().unwrap();
    let memory = host.memory(4096);
    let write = host.submit(1, Host::transfer(1, 0, 1, memory.iova().0, 0));
    until(|| host.emulator.statistics().commands > before);
    // Some of its time passes by the clock.
    std::thread::sleep(Duration::from_millis(50));
    drop(thread);
    let rest = ends(&mut host, 7000);
    let &[(step, cid)] = rest.as_slice() else {
        panic!("{rest:?}")
    };
    assert_eq!(cid, write);
    assert!((3000..5996).contains(&step), "{step}");
}

#[test]
fn the_firmware_revision_is_what_was_configured() {
    let config = Config::from_toml("firmware = 'F 7'\nsize = '1M'\nvectors = 3\n").unwrap();
    let mut host = Host::enabled(&config.to_string());
    assert_eq!(&host.identify(1, 0).1[64..72], b"F 7     ");
    assert_eq!(&host.log(3, 512, 0, 0xffff_ffff).1[8..16], b"F 7     ");
    assert_eq!(host.emulator.vectors(), 3);
}

#[test]
fn only_the_configured_lba_formats_are_offered() {
    let mut host = Host::enabled("size=1M,lba=4096,lba_formats=4096:512");
    let (_, page) = host.identify(0, 1);
    assert_eq!((page[25], page[26]), (1, 0), "NLBAF, FLBAS");
    let sizes = [page[130], page[134], page[138]];
    assert_eq!(sizes, [12, 9, 0]);
    assert_eq!(u64_at(&page, 0), 256);
    assert_eq!(host.admin(with(command(0x80, 1), 10, 1)), 0);
    let (_, page) = host.identify(0, 1);
    assert_eq!((page[26], u64_at(&page, 0)), (1, 2048));
    assert_eq!(host.refused(0, with(command(0x80, 1), 10, 2)), 0x10a);
}
