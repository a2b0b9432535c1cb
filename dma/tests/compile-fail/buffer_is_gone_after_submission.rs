//! What was moved into a queue is the device's.

use nvme_vfio_dma::Buffer;

struct Queue(Vec<Buffer>);

impl Queue {
    fn read(&mut self, buffer: Buffer) {
        self.0.push(buffer);
    }
}

fn use_after_submission(queue: &mut Queue, buffer: Buffer) -> u8 {
    queue.read(buffer);
    buffer[0]
}

fn main() {}
