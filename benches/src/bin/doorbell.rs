//! How many entries should gather before a doorbell is rung: `doorbell [ADDRESS [ROUNDS]]`.
//!
//! 4 KiB random reads at each depth with each `QueueOptions::doorbell_batch`, in a random order, for a number of short rounds. What is
//! printed is the upper quartile of the rounds, as part of the best of its depth.

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

/// What three of four rounds did not exceed: neither the odd round that had luck nor those that something else disturbed.
fn upper_quartile(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() * 3 / 4).copied().unwrap_or(0.0)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: Address = arguments.next().as_deref().unwrap_or(ADDRESS).parse()?;
    let rounds: u32 = arguments.next().as_deref().unwrap_or("50").parse()?;
    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;

    let mut rates: [[Vec<f64>; BATCHES.len()]; DEPTHS.len()] = Default::default();
    let mut turns: Vec<(usize, usize)> = (0..DEPTHS.len())
        .flat_map(|row| (0..BATCHES.len()).map(move |column| (row, column)))
        .collect();
    let mut random = 1_usize;
    for _ in 0..rounds {
        // In another order each time: what disturbs a machine often comes at intervals, and would always hit the same ones.
        for last in (1..turns.len()).rev() {
            random = random * 48_271 % 0x7fff_ffff;
            turns.swap(last, random % (last + 1));
        }
        for &(row, column) in &turns {
            let options = QueueOptions {
                depth: DEPTHS[row],
                doorbell_batch: BATCHES[column],
                ..QueueOptions::default()
            };
            rates[row][column].push(measure(&controller, &namespace, options)?);
        }
    }

    println!("{address}, upper quartile of {rounds} rounds, as part of the best of each depth");
    print!("| batch |");
    BATCHES.iter().for_each(|batch| print!(" {batch} |"));
    println!("\n|---|{}", "---|".repeat(BATCHES.len()));
    for (row, depth) in rates.into_iter().zip(DEPTHS) {
        let row = row.map(upper_quartile);
        let top = row.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        print!("| depth {depth} |");
        row.iter().for_each(|iops| print!(" {:.2} |", iops / top));
        println!();
    }
    Ok(())
}
