//! Interrupt vectors, the MSI-X structures, and a function-level reset by configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nvme_vfio_emulator::{ControllerFault, Emulator, Fault};

use crate::host::*;

/// Counts what is signalled on a vector.
fn counter(emulator: &Emulator, vector: u16) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    let connected = emulator.connect_interrupt(
        vector,
        Some(Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        })),
    );
    assert!(connected);
    count
}

fn taken(count: &AtomicU32) -> u32 {
    count.swap(0, Ordering::Relaxed)
}

#[test]
fn completion_queues_signal_their_vector_once_per_step() {
    let mut host = Host::enabled("queues=4");
    assert_eq!(host.emulator.vectors(), 5);
    let (admin, third, other) = (
        counter(&host.emulator, 0),
        counter(&host.emulator, 3),
        counter(&host.emulator, 1),
    );
    assert!(!host.emulator.connect_interrupt(5, None));
    host.create_queue(1, 8);
    assert_eq!(taken(&admin), 2, "two commands, two steps");
    host.delete_queue(1);
    taken(&admin);

    // The same queue with IEN = 1 and IV = 3.
    let memory = host.memory(4096);
    let (completion, submission) = (host.memory(4096), host.memory(4096));
    let create = host.create_completion_queue(1, 8, completion.iova().0);
    host.admin(with(create, 11, 3 << 16 | 0b11));
    let create = host.create_submission_queue(1, 8, submission.iova().0, 1);
    host.admin(create);
    assert_eq!(taken(&admin), 2);
    for slot in 0..3 {
        for (index, dword) in Host::transfer(2, 0, 8, memory.iova().0, 0)
            .into_iter()
            .enumerate()
        {
            submission.write_u32(slot * 64 + index * 4, dword).unwrap();
        }
    }
    host.ring_doorbell(1, false, 3);
    assert_eq!(host.emulator.step(), 3);
    assert_eq!(taken(&third), 1, "three entries, one step");
    host.emulator.step();
    assert_eq!((taken(&third), taken(&admin), taken(&other)), (0, 0, 0));
}

#[test]
fn a_queue_without_interrupts_enabled_signals_nothing() {
    let mut host = Host::with_queue("", 8);
    let count = counter(&host.emulator, 0);
    let memory = host.memory(4096);
    host.run(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    assert_eq!(taken(&count), 0);
}

#[test]
fn vectors_past_the_last_are_refused() {
    let mut host = Host::enabled("queues=4");
    let completion = host.memory(4096);
    let create = host.create_completion_queue(1, 8, completion.iova().0);
    assert_eq!(host.refused(0, with(create, 11, 5 << 16 | 0b11)), 0x108);
}

#[test]
fn device_control_resets_the_function() {
    let host = Host::with_queue("", 8);
    assert!(host.emulator.msix_write(12, &0u32.to_le_bytes()));
    host.emulator.config_write(0x68, &0x8000u16.to_le_bytes());
    assert_eq!((host.read(CSTS), host.read(CC)), (0, 0));
    let mut command = [0; 2];
    host.emulator.config_read(4, &mut command);
    assert_eq!(command[0] & 4, 0, "bus mastering is off");
    let mut control = [0; 4];
    assert!(host.emulator.msix_read(12, &mut control));
    assert_eq!(control, [1, 0, 0, 0], "masked again");
}

#[test]
fn old_doorbells_ring_no_more() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(4096);
    let old = host.emulator.doorbells();
    host.emulator.renew_doorbells().unwrap();
    let before = host.emulator.statistics().commands;
    old[2].store(1, Ordering::Release);
    host.emulator.step();
    assert_eq!(host.emulator.statistics().commands, before);
    let read = Host::transfer(2, 0, 8, memory.iova().0, 0);
    assert_eq!(host.run(1, read).status, 0, "the new ones do");
}

#[test]
fn bars_are_as_large_as_what_they_hold() {
    let host = Host::new("queues=4096,dstrd=2");
    assert_eq!(host.emulator.vectors(), 2048);
    assert_eq!(host.emulator.bar4_size(), 0x1_0000);
    let doorbells = host.emulator.config().doorbell_bytes();
    assert!(host.emulator.bar0_size() >= 0x1000 + doorbells);
    for (bar, size) in [
        (0x10, host.emulator.bar0_size()),
        (0x20, host.emulator.bar4_size()),
    ] {
        host.emulator.config_write(bar, &[0xff; 8]);
        let mut back = [0; 8];
        host.emulator.config_read(bar, &mut back);
        assert_eq!(!(u64::from_le_bytes(back) & !0xf) + 1, size);
    }
}

#[test]
fn interrupts_are_lost_until_a_function_reset() {
    let mut host = Host::enabled("queues=4");
    let admin = counter(&host.emulator, 0);
    host.emulator
        .inject(Fault::of_controller(ControllerFault::LostInterrupts));
    host.create_queue(1, 8);
    assert_eq!(
        taken(&admin),
        0,
        "the completions are there, as the host saw"
    );
    host.emulator.clear_faults();
    host.delete_queue(1);
    assert_eq!(taken(&admin), 2);
    host.emulator
        .inject(Fault::of_controller(ControllerFault::LostInterrupts));
    host.emulator.reset();
    host.emulator.config_write(4, &[6]);
    host.enable();
    host.create_queue(2, 8);
    assert_eq!(taken(&admin), 2);
}
