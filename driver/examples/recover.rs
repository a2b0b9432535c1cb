//! What becomes of I/Os when the controller is reset under them, as README.md has it.
//!
//! ```text
//! cargo run -p nvme-vfio --example recover
//! ```

use nvme_vfio::{Address, Controller, Outcome, QueueOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: Address = "emulated:size=64M".parse()?;
    let controller = Controller::open(&address)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(32))?;
    for token in 0..32 {
        queue.read(&namespace, token, controller.allocate(4096)?, token)?;
    }
    controller.recover()?; // any thread may; check_deadlines does when a command hangs

    let mut lost = Vec::new();
    while let Some(completion) = queue.wait()? {
        match completion.outcome {
            Outcome::Done => drop(completion.result()?),
            // The controller may still write into the buffer, so it is kept back.
            Outcome::TimedOut => lost.push(completion.token),
            // Disabled under the command, done or not. The buffer is here.
            Outcome::Reset => lost.push(completion.token),
            _ => return Err("the controller is gone".into()),
        }
    }
    if queue.needs_rebuild() {
        queue.rebuild()?; // each owner its own queue; nothing is sent again by itself
    }
    for (token, buffer) in queue.reclaim() {
        println!("{token}: {} bytes are ours again", buffer.len());
    }
    for token in lost {
        queue.read_blocking(&namespace, token, controller.allocate(4096)?)?;
    }
    Ok(())
}
