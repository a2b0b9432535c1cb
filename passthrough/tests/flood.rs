//! What a flood of refused commands costs a neighbour: measured and printed, for whoever reads it on a quiet machine. Nothing here depends on time but what is printed.
#![allow(unsafe_code)] // Sends commands that the driver would not build: blocks outside of the namespace.

mod common;
#[path = "../src/scratch.rs"]
mod scratch;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::client::{Client, pages};
use common::judge::Piece;
use common::world::{Lent, World};
use common::{command, with_blocks, with_prps};
use nix::time::{ClockId, clock_gettime};
use nvme_vfio::{Address, Buffer, Controller, IoQueue, Namespace, QueueOptions};
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{ServeOptions, Serving};
use nvme_vfio_queues::{Command, Status};

/// Reads that the neighbour keeps in flight.
const DEPTH: u32 = 8;
/// Refused commands that the other keeps in flight.
const FLOOD: u32 = 128;

fn open(socket: &Path) -> Controller {
    Controller::open(&Address::VfioUser(socket.to_owned())).unwrap()
}

/// Commands of blocks outside, as many as go: what comes back is taken, and the queue filled again.
fn refused(queue: &mut IoQueue) -> u64 {
    let verify = Command {
        opcode: 0x0c,
        nsid: 1,
        cdw10: u32::MAX,
        ..Command::ZERO
    };
    let mut count = 0;
    while let Some(completion) = queue.poll() {
        assert!(
            completion.entry.status().is(Status::LBA_OUT_OF_RANGE),
            "{completion:?}"
        );
        count += 1;
    }
    while !queue.is_full() {
        // SAFETY: Verify has no data.
        unsafe { queue.submit_raw(verify, 0) }.unwrap();
    }
    queue.ring();
    count
}

/// The two clients of a server, driven by one thread: they take nothing from each other but what the server gives.
struct Clients {
    neighbour: IoQueue,
    flood: IoQueue,
    namespace: Namespace,
    spare: Vec<Buffer>,
    token: u64,
}

impl Clients {
    /// The neighbour's reads in a second, and how many commands of the other were refused meanwhile.
    fn reads(&mut self, flooded: bool, time: Duration) -> (f64, u64) {
        let (began, mut done, mut refusals) = (Instant::now(), 0u64, 0);
        // At least so many, on however slow a machine.
        while began.elapsed() < time
            || done < 8 * u64::from(DEPTH)
            || flooded && refusals < 8 * u64::from(FLOOD)
        {
            if flooded {
                refusals += refused(&mut self.flood);
            }
            while let Some(completion) = self.neighbour.poll() {
                completion.result().unwrap();
                self.spare.extend(completion.buffer);
                done += 1;
            }
            while let Some(buffer) = self.spare.pop() {
                self.token += 1;
                let lba = self.token % 500 * 8;
                let read = self
                    .neighbour
                    .read(&self.namespace, lba, buffer, self.token);
                read.unwrap_or_else(|refused| panic!("{}", refused.error));
            }
            self.neighbour.ring();
        }
        let rate = done as f64 / began.elapsed().as_secs_f64();
        while self.flood.in_flight() > 0 {
            self.flood.poll();
        }
        (rate, refusals)
    }
}

#[test]
fn a_flood_of_refusals_is_measured() {
    let whole = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let (rounds, time) = if whole {
        (20, Duration::from_millis(500))
    } else {
        (2, Duration::from_millis(60))
    };
    let folder = scratch::folder();
    let uid = nix::unistd::geteuid().as_raw();
    let client = |name: &str, start: u64| {
        format!(
            "[[client]]\nname = \"{name}\"\nuid = [{uid}]\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1, start = {start}, blocks = 4096 }}]\nallow = [\"read\", \"verify\"]\n"
        )
    };
    // About what an SSD takes.
    let text = format!(
        "controller = [\"emulated:size=16M,latency.read=80us\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{}{}",
        client("flood", 0),
        client("neighbour", 4096)
    );
    let policy = PolicyFile::parse(&text, folder.path()).unwrap();
    let serving = Serving::start(&policy, &ServeOptions::default()).unwrap();
    let sockets: Vec<_> = serving.clients().map(|(_, path)| path.to_owned()).collect();
    let controllers = [open(&sockets[0]), open(&sockets[1])];
    let queue = |index: usize, depth| {
        let controller: &Controller = &controllers[index];
        controller.io_queue(QueueOptions::with_depth(depth))
    };
    let mut clients = Clients {
        flood: queue(0, FLOOD).unwrap(),
        neighbour: queue(1, DEPTH).unwrap(),
        namespace: controllers[1].only_namespace().unwrap(),
        spare: (0..DEPTH)
            .map(|_| controllers[1].allocate(4096).unwrap())
            .collect(),
        token: 0,
    };
    let (mut rates, mut refusals) = ([Vec::new(), Vec::new()], 0);
    for round in 0..2 * rounds {
        let flooded = round % 2 == 1;
        clients.reads(flooded, time / 10);
        let (rate, refused) = clients.reads(flooded, time);
        rates[round % 2].push(rate);
        refusals += refused;
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let [quiet, flooded] = rates.each_mut().map(median);
    println!(
        "{quiet:.0} reads/s at depth {DEPTH} alone, {flooded:.0} beside a flood of refused commands ({:+.1} %), of which there were {:.0} a second",
        (flooded / quiet - 1.0) * 100.0,
        refusals as f64 / (time * rounds as u32).as_secs_f64()
    );
    assert!(refusals > 1000 && quiet > 0.0 && flooded > 0.0);
    drop((clients, controllers));
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
    // At least one, however much of the processor's time somebody else has had.
    while now < time || done == 0 {
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
