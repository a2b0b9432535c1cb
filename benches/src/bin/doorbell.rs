//! How many entries should gather before a doorbell is rung: `doorbell [ADDRESS [ROUNDS]]`.
//!
//! 4 KiB random reads at each depth with each `QueueOptions::doorbell_batch`, in turn, for a number of rounds. Whatever else the machine does
//! only takes away, so the best of the rounds are compared, and printed as parts of the best of the depth.

use std::error::Error;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

use nvme_vfio::{Address, Again, Controller, Namespace, Polled, QueueOptions};

const ADDRESS: &str = "emulated:size=1G,lba=4096,backend=null";
const DEPTHS: [u32; 3] = [1, 32, 128];
const BATCHES: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Short, so that some rounds find a busy machine idle.
const ROUND: Duration = Duration::from_millis(10);

/// How often the clock is looked at, in polls.
const CLOCK_INTERVAL: u64 = 256;

/// How many polls in a row may find nothing before the processor is offered to the controller's thread, which may need it.
const PATIENCE: u32 = 2000;

/// Reads per second.
fn measure(
    controller: &Controller,
    namespace: &Namespace,
    options: QueueOptions,
) -> Result<f64, Box<dyn Error>> {
    let mut queue = controller.io_queue(options)?;
    let blocks = u64::from(4096 / namespace.block_size()).max(1);
    let places = namespace.blocks() / blocks;
    let mut place = 1_u64;
    let mut next = || {
        place = (place * 48_271 + 11) % places;
        place * blocks
    };
    for _ in 0..options.depth {
        queue.read(namespace, next(), controller.allocate(4096)?, 0)?;
    }
    let (mut reads, mut polls, mut idle) = (0_u64, 0_u64, 0_u32);
    let mut going = true;
    let begun = Instant::now();
    while queue.in_flight() > 0 {
        let polled = queue.poll_and_read_again(namespace, |_| {
            going.then(|| Again {
                lba: next(),
                token: 0,
            })
        });
        match polled {
            Polled::Again => (reads, idle) = (reads + 1, 0),
            Polled::Nothing if idle == PATIENCE => {
                idle = 0;
                std::thread::yield_now();
            }
            Polled::Nothing => {
                idle += 1;
                spin_loop();
            }
            Polled::Completion(completion) => {
                completion.result()?;
                reads += 1;
            }
            Polled::Refused(error, _) => return Err(error.into()),
        }
        polls += 1;
        if polls.is_multiple_of(CLOCK_INTERVAL) && begun.elapsed() >= ROUND {
            going = false;
        }
    }
    Ok(reads as f64 / begun.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: Address = arguments.next().as_deref().unwrap_or(ADDRESS).parse()?;
    let rounds: u32 = arguments.next().as_deref().unwrap_or("50").parse()?;
    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;

    let mut best = [[0_f64; BATCHES.len()]; DEPTHS.len()];
    for _ in 0..rounds {
        for (row, depth) in best.iter_mut().zip(DEPTHS) {
            for (cell, doorbell_batch) in row.iter_mut().zip(BATCHES) {
                let options = QueueOptions {
                    depth,
                    doorbell_batch,
                    ..QueueOptions::default()
                };
                *cell = cell.max(measure(&controller, &namespace, options)?);
            }
        }
    }

    println!("{address}, best of {rounds} rounds, as parts of the best of each depth");
    print!("| batch |");
    BATCHES.iter().for_each(|batch| print!(" {batch} |"));
    println!("\n|---|{}", "---|".repeat(BATCHES.len()));
    for (row, depth) in best.iter().zip(DEPTHS) {
        let top = row.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        print!("| depth {depth} |");
        row.iter().for_each(|iops| print!(" {:.2} |", iops / top));
        println!();
    }
    Ok(())
}
