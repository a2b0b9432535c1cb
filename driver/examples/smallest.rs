//! The smallest loop that keeps a queue full: 4 KiB random reads at a fixed depth, nothing else.
//!
//! ```text
//! cargo run --release -p nvme-vfio --features emulated --example smallest -- emulated 1000000 32
//! cargo run --release -p nvme-vfio --example smallest -- 0000:01:00.0 1000000 32
//! ```

use std::error::Error;

use nvme_vfio::{Address, Controller, QueueOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: Address = arguments.next().as_deref().unwrap_or("emulated").parse()?;
    let reads: u64 = arguments.next().as_deref().unwrap_or("1000000").parse()?;
    let depth: u32 = arguments.next().as_deref().unwrap_or("32").parse()?;

    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(depth))?;
    let blocks = u64::from(4096 / namespace.block_size().min(4096));
    let places = namespace.blocks() / blocks;

    let mut submitted = 0;
    let mut place = || {
        submitted += 1;
        // A multiplicative sequence, scaled to the namespace: random enough to spread, and cheap.
        let random = submitted_hash(submitted);
        ((u128::from(random) * u128::from(places)) >> 64) as u64 * blocks
    };
    for token in 0..reads.min(u64::from(depth)) {
        queue.read(&namespace, place(), controller.allocate(4096)?, token)?;
    }
    let mut done = 0;
    let mut started = reads.min(u64::from(depth));
    while done < reads {
        let Some(completion) = queue.poll() else {
            continue;
        };
        completion.result()?;
        done += 1;
        if started < reads
            && let Some(buffer) = completion.buffer
        {
            started += 1;
            queue.read(&namespace, place(), buffer, completion.token)?;
        }
    }
    println!("{done} reads");
    Ok(())
}

fn submitted_hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
