//! What a flood of refused commands costs a neighbour: measured and printed, for whoever reads it on a quiet machine. Nothing here depends on time but what is printed.
#![allow(unsafe_code)] // Sends commands that the driver would not build: blocks outside of the namespace.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Client, pages};
use common::judge::Piece;
use common::world::{Lent, World};
use common::{command, with_blocks, with_prps};
use nix::time::{ClockId, clock_gettime};
use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, Controller, Options, QueueOptions};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{OpenedGroup, ServeOptions, Serving};
use nvme_vfio_queues::{Command, Status};

/// Reads that the neighbour keeps in flight.
const DEPTH: u32 = 8;
/// Refused commands that the other keeps in flight.
const FLOOD: u32 = 128;

fn open(socket: &Path) -> Controller {
    Controller::open(&Address::VfioUser(socket.to_owned())).unwrap()
}

/// Sends commands of blocks outside, as many as go, while `on` is set.
fn refused(socket: &Path, on: &AtomicBool, stop: &AtomicBool, count: &AtomicU64) {
    let controller = open(socket);
    let mut queue = controller
        .io_queue(QueueOptions::with_depth(FLOOD))
        .unwrap();
    let verify = Command {
        opcode: 0x0c,
        nsid: 1,
        cdw10: u32::MAX,
        ..Command::ZERO
    };
    while !stop.load(Ordering::Relaxed) {
        if !on.load(Ordering::Relaxed) && queue.in_flight() == 0 {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        while on.load(Ordering::Relaxed) && !queue.is_full() {
            // SAFETY: Verify has no data.
            unsafe { queue.submit_raw(verify, 0) }.unwrap();
        }
        queue.ring();
        while let Some(completion) = queue.poll() {
            assert!(
                completion.entry.status().is(Status::LBA_OUT_OF_RANGE),
                "{completion:?}"
            );
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Reads in a second.
fn reads(queue: &mut nvme_vfio::IoQueue, controller: &Controller, time: Duration) -> f64 {
    let namespace = controller.only_namespace().unwrap();
    let mut spare: Vec<_> = (0..DEPTH)
        .map(|_| controller.allocate(4096).unwrap())
        .collect();
    let (began, mut done, mut token) = (Instant::now(), 0u64, 0u64);
    while began.elapsed() < time {
        while let Some(buffer) = spare.pop() {
            token += 1;
            let submitted = queue.read(&namespace, token % 500 * 8, buffer, token);
            submitted.unwrap_or_else(|refused| panic!("{}", refused.error));
        }
        queue.ring();
        while let Some(completion) = queue.poll() {
            completion.result().unwrap();
            done += 1;
            spare.extend(completion.buffer);
        }
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    while queue.in_flight() > 0 {
        queue.poll();
    }
    rate
}

#[test]
fn a_flood_of_refusals_is_measured() {
    let whole = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let (rounds, time) = if whole {
        (10, Duration::from_millis(500))
    } else {
        (2, Duration::from_millis(60))
    };
    let folder = tempfile::tempdir().unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    let client = |name: &str, start: u64| {
        format!(
            "[[client]]\nname = \"{name}\"\nuid = [{uid}]\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1, start = {start}, blocks = 4096 }}]\nallow = [\"read\", \"verify\"]\n"
        )
    };
    let text = format!(
        "controller = [\"emulated\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{}{}",
        client("flood", 0),
        client("neighbour", 4096)
    );
    let policy = PolicyFile::parse(&text, folder.path()).unwrap();
    // About what an SSD takes.
    let device = Emulator::new("size=16M,latency.read=80us".parse().unwrap()).unwrap();
    let transport = EmulatedTransport::running(Arc::clone(&device)).unwrap();
    let real = Controller::with_transport(Arc::new(transport), Options::default()).unwrap();
    let group = OpenedGroup::of(&policy, vec![real]).unwrap();
    let serving = Serving::with_group(&policy, group, &ServeOptions::default()).unwrap();
    let sockets: Vec<_> = serving.clients().map(|(_, path)| path.to_owned()).collect();
    let (on, stop, count) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    let mut rates = [Vec::new(), Vec::new()];
    thread::scope(|scope| {
        let flood = scope.spawn(|| refused(&sockets[0], &on, &stop, &count));
        let controller = open(&sockets[1]);
        let mut queue = controller
            .io_queue(QueueOptions::with_depth(DEPTH))
            .unwrap();
        for round in 0..2 * rounds {
            on.store(round % 2 == 1, Ordering::Relaxed);
            reads(&mut queue, &controller, time / 10);
            rates[round % 2].push(reads(&mut queue, &controller, time));
        }
        stop.store(true, Ordering::Relaxed);
        on.store(false, Ordering::Relaxed);
        flood.join().unwrap();
    });
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let [quiet, flooded] = rates.each_mut().map(median);
    let refusals = count.load(Ordering::Relaxed);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if processors < 4 {
        println!(
            "four threads are busy and there are {processors} processors: what follows is the system's time slices, not the server's turns"
        );
    }
    println!(
        "on {processors} processors: {quiet:.0} reads/s at depth {DEPTH} alone, {flooded:.0} beside a flood of refused commands ({:+.1} %), of which there were {refusals}",
        (flooded / quiet - 1.0) * 100.0
    );
    assert!(refusals > 1000 && quiet > 0.0 && flooded > 0.0);
    serving.finish().unwrap();
}

/// Time of the processor that this thread has had.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// Has the virtual controller take turns with full queues of one entry, and steps the device in between; processor time of its turns for each command.
fn turns(world: &mut World, lba: u64, status: u16, rounds: u64) -> Duration {
    let emulator = Arc::clone(&world.seats[0].emulator);
    let (mut time, mut done) = (Duration::ZERO, 0);
    for _ in 0..rounds {
        let client: &mut Client = &mut world.seats[0].client;
        let page = client.page(pages::DATA);
        while client.in_flight(1) < 32 {
            client.push(1, with_prps(with_blocks(command(0x02, 1), lba, 8), page, 0));
        }
        client.ring(1);
        let before = spent();
        emulator.turn(32);
        time += spent() - before;
        world.device.step();
        while let Some(completion) = client.take(1) {
            assert_eq!(completion.status, status);
            done += 1;
        }
    }
    assert!(done > 0);
    time / done
}

/// The neighbour's reads in a second, where the thread that polls has a processor of its own and the device takes 80 us: time is that which the turns take.
fn paced(world: &mut World, flooded: bool, time: Duration) -> f64 {
    let [flood, neighbour] = [0, 1].map(|seat| Arc::clone(&world.seats[seat].emulator));
    let (mut now, mut stepped, mut done) = (Duration::ZERO, Duration::ZERO, 0u64);
    while now < time {
        for (seat, depth, lba) in [(0, FLOOD as usize, 1000), (1, DEPTH as usize, 0)] {
            let client: &mut Client = &mut world.seats[seat].client;
            while let Some(completion) = client.take(1) {
                let status = if seat == 0 { 0x080 } else { 0 };
                assert_eq!(completion.status, status);
                done += seat as u64;
            }
            let depth = if seat == 0 && !flooded { 0 } else { depth };
            let page = client.page(pages::DATA);
            let full = client.in_flight(1) >= depth;
            while client.in_flight(1) < depth {
                client.push(1, with_prps(with_blocks(command(0x02, 1), lba, 8), page, 0));
            }
            if !full {
                client.ring(1);
            }
        }
        let before = spent();
        flood.turn(32);
        neighbour.turn(32);
        now += spent() - before;
        // The device has its own time for itself.
        while stepped < now {
            world.device.step();
            stepped += Duration::from_micros(1);
        }
    }
    for seat in 0..2 {
        let mut step = world.stepper(&world.seats[seat].emulator);
        world.seats[seat].client.drain(1, &mut step);
    }
    done as f64 / now.as_secs_f64()
}

/// The same without threads, where nothing else runs: the time is the processor's.
#[test]
fn a_flood_of_refusals_is_measured_in_processor_time() {
    let lent = |name: &'static str, first: u64| Lent {
        name,
        namespaces: vec![(
            1,
            vec![Piece {
                nsid: 1,
                first,
                blocks: 1000,
            }],
            vec!["read"],
        )],
        bounce: false,
        more: "",
    };
    let device = "size=2M,latency.read=80us,latency.step=1us,stepped";
    let mut world = World::new(device, &[lent("flood", 0), lent("neighbour", 1000)]);
    world.judge.close_eyes();
    let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        quiet.push(paced(&mut world, false, Duration::from_millis(20)));
        flooded.push(paced(&mut world, true, Duration::from_millis(20)));
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (quiet, flooded) = (median(quiet), median(flooded));
    println!(
        "in processor time: {quiet:.0} reads/s at depth {DEPTH} alone, {flooded:.0} beside a flood of refused commands ({:+.1} %)",
        (flooded / quiet - 1.0) * 100.0
    );
    assert!(quiet > 0.0 && flooded > 0.0);
}

/// The same without threads: what a turn full of refused commands costs the thread that polls, beside one full of reads.
#[test]
fn a_refusal_costs_the_thread_that_polls_as_much_as_is_printed() {
    let lent = Lent {
        name: "flood",
        namespaces: vec![(
            1,
            vec![Piece {
                nsid: 1,
                first: 0,
                blocks: 1000,
            }],
            vec!["read"],
        )],
        bounce: false,
        more: "",
    };
    let mut world = World::new("size=1M,stepped", &[lent]);
    world.judge.close_eyes();
    let reads = turns(&mut world, 0, 0, 2_000);
    let refusals = turns(&mut world, 1000, 0x080, 2_000);
    println!(
        "at the thread that polls: {} ns for a read, {} ns for a refused one, {} us for a turn of 32 of these",
        reads.as_nanos(),
        refusals.as_nanos(),
        (refusals * 32).as_nanos() as f64 / 1000.0
    );
}
