//! Two owners of one buffer: the application and the device.

fn twice(buffer: &nvme_vfio_dma::Buffer) -> nvme_vfio_dma::Buffer {
    buffer.clone()
}

fn main() {}
