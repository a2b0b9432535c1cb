//! What a device may change at any moment is no `&[u8]`.

use nvme_vfio_dma::SharedMemory;

fn slice(memory: &SharedMemory) -> &[u8] {
    &memory[..]
}

fn reference(memory: &SharedMemory) -> &[u8] {
    memory.as_ref()
}

fn main() {}
