//! Loops whose instructions `cargo xtask bench-instructions` counts: `instructions LOOP DEPTH COUNT`.
//!
//! callgrind counts what happens between the beginning and the end of a function named `counted_…`, less what happens in
//! `controllers_own_work`. Each loop is run with two counts, so that what is not per I/O cancels out.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use nvme_vfio::{IoQueue, Namespace, QueueOptions};
use nvme_vfio_benches::{BrokerRig, GateRig, Rig};
use nvme_vfio_cli::args::Rw;
use nvme_vfio_cli::bench::clock::Clock;
use nvme_vfio_cli::bench::plan::Limit;
use nvme_vfio_cli::bench::worker::{Control, Hook, Job, run_worker};
use nvme_vfio_emulator::Emulator;

#[path = "../../../driver/examples/smallest.rs"]
#[allow(dead_code)] // its `main` is for people
mod smallest;

/// Everything that a real controller would do by itself.
#[inline(never)]
fn controllers_own_work(emulator: &Emulator) {
    emulator.step();
}

struct Step(Arc<Emulator>);

impl Hook for Step {
    #[inline]
    fn idle(&mut self) {
        controllers_own_work(&self.0);
    }
}

/// The smallest loop that a user of the library can write.
#[inline(never)]
fn counted_smallest(
    rig: &mut Rig,
    buffers: Vec<nvme_vfio::Buffer>,
    count: u64,
) -> Result<(), Box<dyn Error>> {
    let Rig {
        emulator,
        namespace,
        queue,
        ..
    } = rig;
    smallest::run(queue, namespace, buffers, count, || {
        controllers_own_work(emulator)
    })
}

/// The loop of `nvme-vfio bench`, with the latency of every I/O recorded.
#[inline(never)]
fn counted_bench(
    rig: &mut Rig,
    job: &Job,
    buffers: Vec<nvme_vfio::Buffer>,
) -> Result<(), Box<dyn Error>> {
    let mut step = Step(Arc::clone(&rig.emulator));
    let result = run_worker(
        &mut rig.queue,
        job,
        buffers,
        &Clock::nearly_standing(),
        &Control::new(1),
        &mut step,
    )?;
    black_box(result);
    Ok(())
}

/// What the emulated controller does for a batch, as its own thread does it: the commands, and the first look after them that finds nothing.
#[inline(never)]
fn counted_controller(emulator: &Emulator) -> u64 {
    emulator.work(1)
}

/// The controller's half alone: the driver's work is not counted.
fn controller(
    rig: &mut Rig,
    buffers: Vec<nvme_vfio::Buffer>,
    count: u64,
) -> Result<(), Box<dyn Error>> {
    let Rig {
        emulator,
        namespace,
        queue,
        ..
    } = rig;
    smallest::run(queue, namespace, buffers, count, || {
        counted_controller(emulator);
    })
}

/// A turn of a client's virtual controller: what a server does for its commands.
#[inline(never)]
fn counted_turn(front: &Emulator) {
    black_box(front.turn(256));
}

/// A server's half alone, between a client's driver and a real controller: neither's work is counted.
fn broker(rig: BrokerRig, count: u64) -> Result<(), Box<dyn Error>> {
    let BrokerRig {
        front,
        device,
        client,
        namespace,
        mut queue,
    } = rig;
    let buffers = (0..queue.depth())
        .map(|_| client.allocate(4096))
        .collect::<Result<_, _>>()?;
    smallest::run(&mut queue, &namespace, buffers, count, || {
        counted_turn(&front);
        // Not counted, since it is outside of what is.
        device.step();
        counted_turn(&front);
    })
}

/// Steps of a controller that has nothing to do.
#[inline(never)]
fn counted_empty_steps(emulator: &Emulator, count: u64) {
    // One call makes so many steps at most.
    const AT_ONCE: u64 = 20_000;
    let mut left = count;
    while left > 0 {
        let steps = left.min(AT_ONCE);
        emulator.work(steps as u32);
        left -= steps;
    }
}

/// Polls of a queue that has nothing to tell.
#[inline(never)]
fn counted_empty_polls(queue: &mut IoQueue, count: u64) {
    for _ in 0..count {
        if queue.poll().is_some() {
            unreachable!("nothing was submitted");
        }
    }
}

/// Reads of a client that are decoded, judged and counted.
#[inline(never)]
fn counted_gate(rig: &mut GateRig, count: u64) -> Result<(), Box<dyn Error>> {
    rig.check(count)
}

/// The same, only decoded.
#[inline(never)]
fn counted_decode(rig: &mut GateRig, count: u64) -> Result<(), Box<dyn Error>> {
    rig.decode(count)
}

/// The same, only counted.
#[inline(never)]
fn counted_audit(rig: &mut GateRig, count: u64) -> Result<(), Box<dyn Error>> {
    rig.audit(count)
}

fn bench_job(namespace: Namespace, count: u64) -> Job {
    let blocks_per_io = u64::from(4096 / namespace.block_size());
    Job {
        number: 0,
        namespace,
        rw: Rw::RandRead,
        first_lba: 0,
        blocks_per_io,
        places: namespace.blocks() / blocks_per_io,
        limit: Limit::Ios(count),
        seed: 1,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, depth, count] = arguments.as_slice() else {
        return Err(
            "usage: instructions smallest|bench|empty-poll|controller|empty-step|gate|decode|audit|broker DEPTH COUNT"
                .into(),
        );
    };
    let count: u64 = count.parse()?;
    match name.as_str() {
        "gate" => return counted_gate(&mut GateRig::new()?, count),
        "decode" => return counted_decode(&mut GateRig::new()?, count),
        "audit" => return counted_audit(&mut GateRig::new()?, count),
        _ => {}
    }
    if name == "broker" {
        return broker(BrokerRig::new(depth.parse()?)?, count);
    }
    let mut rig = Rig::new(QueueOptions::with_depth(depth.parse()?))?;
    let buffers = rig.buffers()?;
    match name.as_str() {
        "smallest" => counted_smallest(&mut rig, buffers, count),
        "bench" => {
            let job = bench_job(rig.namespace, count);
            counted_bench(&mut rig, &job, buffers)
        }
        "controller" => controller(&mut rig, buffers, count),
        "empty-step" => {
            counted_empty_steps(&rig.emulator, count);
            Ok(())
        }
        "empty-poll" => {
            counted_empty_polls(&mut rig.queue, count);
            Ok(())
        }
        _ => Err(format!("no loop is called {name}").into()),
    }
}
