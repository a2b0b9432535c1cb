//! Nor does a reference into it last longer than the application has it.

use nvme_vfio_dma::Buffer;

fn slice_kept(queue: &mut Vec<Buffer>, buffer: Buffer) -> u8 {
    let slice: &[u8] = &buffer;
    queue.push(buffer);
    slice[0]
}

fn main() {}
