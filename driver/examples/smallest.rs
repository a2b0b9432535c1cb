//! The smallest loop that keeps a queue full: 4 KiB random reads at a fixed depth, nothing else.
//!
//! ```text
//! cargo run --release -p nvme-vfio --example smallest -- emulated 1000000 32
//! cargo run --release -p nvme-vfio --example smallest -- 0000:01:00.0 1000000 32
//! ```

use std::error::Error;

use nvme_vfio::{Address, Again, Buffer, Controller, IoQueue, Namespace, Polled, QueueOptions};

/// Keeps one read in flight per buffer until `reads` more have been submitted, then waits for the rest. `idle` is called when no
/// completion is there.
pub(crate) fn run(
    queue: &mut IoQueue,
    namespace: &Namespace,
    buffers: Vec<Buffer>,
    reads: u64,
    mut idle: impl FnMut(),
) -> Result<(), Box<dyn Error>> {
    let blocks = u64::from(4096 / namespace.block_size());
    // The largest power of two of blocks, so that an addition and a mask spread the reads over them.
    let mask = (namespace.blocks() + 1).next_power_of_two() / 2 - 1;
    let stride = (0x9e37_79b9_7f4a_7c15 & mask & !1) * blocks + blocks;
    let mut lba = 0;
    for buffer in buffers {
        lba = (lba + stride) & mask;
        queue.read(namespace, lba, buffer, lba)?;
    }
    let mut left = reads;
    while queue.in_flight() > 0 {
        let polled = queue.poll_and_read_again(namespace, |_ended| {
            left = left.checked_sub(1)?;
            lba = (lba + stride) & mask;
            Some(Again { lba, token: lba })
        });
        match polled {
            Polled::Again => {}
            Polled::Nothing => idle(),
            Polled::Completion(completion) => drop(completion.result()?),
            Polled::Refused(error, _) => return Err(error.into()),
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: Address = arguments.next().as_deref().unwrap_or("emulated").parse()?;
    let reads: u64 = arguments.next().as_deref().unwrap_or("1000000").parse()?;
    let depth: u32 = arguments.next().as_deref().unwrap_or("32").parse()?;

    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(depth))?;
    let in_flight = queue.depth().min(reads as usize);
    let buffers = (0..in_flight)
        .map(|_| controller.allocate(4096))
        .collect::<Result<_, _>>()?;
    run(&mut queue, &namespace, buffers, reads, || {})?;
    println!("{reads} reads");
    Ok(())
}
