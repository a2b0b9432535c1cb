//! A buffer that was submitted is the controller's.
use nvme_vfio::{Buffer, IoQueue, Namespace};

fn submit(queue: &mut IoQueue, namespace: &Namespace, buffer: Buffer) -> u8 {
    let _ = queue.read(namespace, 0, buffer, 0);
    buffer[0]
}

fn main() {}
