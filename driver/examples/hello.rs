//! The library in twenty lines, as README.md has them.
//!
//! ```text
//! cargo run -p nvme-vfio --example hello
//! ```

use nvme_vfio::{Address, Controller, QueueOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: Address = "emulated:size=64M".parse()?; // "0000:01:00.0" is an SSD on vfio-pci
    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(32))?;

    let mut buffer = controller.allocate(4096)?;
    buffer[..5].copy_from_slice(b"hello");
    let buffer = queue.write_blocking(&namespace, 0, buffer)?; // one I/O, waited for

    let blocks = 4096 / u64::from(namespace.block_size());
    queue.read(&namespace, 0, buffer, 0)?; // any number of I/Os: the buffer is the controller's now
    for token in 1..32 {
        let buffer = controller.allocate(4096)?;
        queue.read(&namespace, token * blocks, buffer, token)?;
    }
    // poll() does the same and never waits.
    while let Some(completion) = queue.wait()? {
        completion.result()?; // what the controller answered
        let buffer = completion.buffer.ok_or("no buffer")?; // and the buffer is ours again
        if completion.token == 0 {
            println!("{}", String::from_utf8_lossy(&buffer[..5]));
        }
    }
    Ok(())
}
