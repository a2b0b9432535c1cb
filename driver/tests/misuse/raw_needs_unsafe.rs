//! A raw entry may carry any address.
use nvme_vfio::IoQueue;

fn submit(queue: &mut IoQueue) {
    let _ = queue.submit_raw(nvme_vfio_queues::Command::flush(1), 0);
}

fn main() {}
