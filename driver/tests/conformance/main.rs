//! Conformance on the emulated controller in this process, or on the controller that `NVME_VFIO_TEST_ADDRESS` names: a real one behind VFIO,
//! or one that a vfio-user server has.

mod cases;
#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Way, address, open, open_with};
use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Controller, Options, QueueOptions};

#[test]
fn a_second_owner_finds_a_controller_that_was_left_running() {
    // Forgotten, the first owner never shuts the controller down. Only on the emulated controller can it be opened again then.
    if !address().to_string().starts_with("emulated") {
        return;
    }
    let emulator = nvme_vfio_emulator::Emulator::new("size=16M".parse().unwrap()).unwrap();
    let transport = Arc::new(EmulatedTransport::running(emulator).unwrap());
    // Each owner has its own way to the controller, as each process has its own VFIO descriptor.
    let open = || {
        let way = Arc::new(Way(Arc::clone(&transport)));
        Controller::with_transport(way, Options::default()).unwrap()
    };
    let before = open();
    let namespace = cases::first(&before);
    let mut queue = before.io_queue(QueueOptions::default()).unwrap();
    for token in 0..32 {
        queue
            .read(&namespace, token, before.allocate(4096).unwrap(), token)
            .unwrap();
    }
    std::mem::forget((before, queue));
    let after = open();
    let mut queue = after.io_queue(QueueOptions::default()).unwrap();
    queue
        .read_blocking(&cases::first(&after), 0, after.allocate(4096).unwrap())
        .unwrap();
}
