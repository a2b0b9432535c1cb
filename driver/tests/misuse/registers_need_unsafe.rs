//! A register can tell the controller where to write, so writing one is the caller's responsibility.

fn move_the_admin_queue(controller: &nvme_vfio::Controller) {
    controller.transport().write64(0x30, 0x1000);
}

fn main() {}
