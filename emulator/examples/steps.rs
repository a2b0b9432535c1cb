//! How many 4 KiB reads one thread of the emulated controller executes, driven by hand and without a driver.
//!
//! `cargo run --release -p nvme-vfio-emulator --example steps`

use std::error::Error;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_vfio_dma::{Access, AddressSpace, SharedMemory};
use nvme_vfio_emulator::Emulator;

const SLOTS: u32 = 1024;

fn put(ring: &SharedMemory, slot: u32, dwords: [u32; 16]) -> Result<(), Box<dyn Error>> {
    for (index, dword) in dwords.into_iter().enumerate() {
        ring.write_u32(slot as usize * 64 + index * 4, dword)?;
    }
    Ok(())
}

/// Reads per second with `depth` of them submitted for each step.
fn measure(backend: &str, depth: u32) -> Result<f64, Box<dyn Error>> {
    let emulator = Emulator::new(format!("backend={backend}").parse()?)?;
    emulator.config_write(4, &[6, 0]); // bus mastering
    let space = AddressSpace::new(emulator.iommu());
    let ring = || space.shared(SLOTS as usize * 64, Access::READ_WRITE);
    let (asq, acq, sq, cq) = (ring()?, ring()?, ring()?, ring()?);
    let data = space.shared(SLOTS as usize * 4096, Access::DEVICE_WRITE)?;
    emulator.register_write(0x24, 4, 15 << 16 | 15);
    emulator.register_write(0x28, 8, asq.iova().0);
    emulator.register_write(0x30, 8, acq.iova().0);
    emulator.register_write(0x14, 4, 4 << 20 | 6 << 16 | 1);

    let mut create = [0; 16];
    (create[0], create[6], create[10], create[11]) =
        (0x05, cq.iova().0 as u32, (SLOTS - 1) << 16 | 1, 1);
    put(&asq, 0, create)?;
    (create[0], create[6], create[11]) = (0x01, sq.iova().0 as u32, 1 << 16 | 1);
    put(&asq, 1, create)?;
    let doorbells = emulator.doorbells();
    doorbells[0].store(2, Ordering::Release);
    assert_eq!(emulator.step(), 2, "both queues are created");

    for slot in 0..SLOTS {
        let mut read = [0; 16];
        (read[0], read[1]) = (slot << 16 | 0x02, 1);
        (read[6], read[10], read[12]) = (data.iova().0 as u32 + slot * 4096, slot * 8, 7);
        put(&sq, slot, read)?;
    }
    let (mut tail, mut done) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        for _ in 0..64 {
            tail = (tail + depth) % SLOTS;
            doorbells[2].store(tail, Ordering::Release);
            done += emulator.step();
            doorbells[3].store(tail, Ordering::Release);
        }
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn Error>> {
    for backend in ["null", "memory"] {
        for depth in [1, 32, 128] {
            println!(
                "{backend}, {depth} per step: {:.2} M/s",
                measure(backend, depth)? / 1e6
            );
        }
    }
    Ok(())
}
