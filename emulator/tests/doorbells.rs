//! A client that comes when the system has no descriptor left for doorbells that nobody has mapped. In a process of its own: the limit is the whole process's.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nvme_vfio_emulator::{Emulator, Patience, ServedController, served_domain};
use nvme_vfio_user::ClientMemory;
use nvme_vfio_user::device::{Device, DmaAccess, Progress};

const RINGS: u64 = 0x10_0000;
const LENGTH: u64 = 64 << 10;
const DOORBELLS: u64 = 0x1000;

fn write(served: &ServedController, offset: u64, value: u32) {
    let value = value.to_le_bytes();
    served.region_write(0, offset, &value).unwrap();
}

/// Lends memory and enables the controller, with its admin queues at the memory's first two pages.
fn enable(served: &ServedController, memory: ClientMemory) {
    let access = DmaAccess::READ | DmaAccess::WRITE;
    served.dma_map(RINGS, LENGTH, access, Some(memory)).unwrap();
    served.region_write(7, 4, &[6, 0]).unwrap();
    write(served, 0x24, 15 << 16 | 15);
    for (register, iova) in [(0x28, RINGS), (0x30, RINGS + 0x1000)] {
        served
            .region_write(0, register, &iova.to_le_bytes())
            .unwrap();
    }
    write(served, 0x14, 4 << 20 | 6 << 16 | 1);
}

/// A client's memory; none can be had while there is no descriptor.
fn memory(file: &File) -> ClientMemory {
    let access = DmaAccess::READ | DmaAccess::WRITE;
    let descriptor = OwnedFd::from(file.try_clone().unwrap());
    ClientMemory::map(descriptor, 0, LENGTH, access).unwrap()
}

fn doorbells(served: &ServedController) -> Option<File> {
    let mapping = served.region(0).unwrap().mapping?;
    Some(mapping.descriptor.try_clone_to_owned().unwrap().into())
}

#[test]
fn without_new_doorbells_the_next_client_rings_by_message_and_the_last_one_not_at_all() {
    let config = "size=16M,mqes=64".parse().unwrap();
    let emulator = Emulator::in_domain(config, served_domain(16)).unwrap();
    let served = ServedController::new(emulator, Patience::default()).unwrap();
    let file = File::from(memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LENGTH).unwrap();
    let (first, second, third) = (memory(&file), memory(&file), memory(&file));

    enable(&served, first);
    let theirs = doorbells(&served).unwrap();
    theirs.write_all_at(&[1], DOORBELLS).unwrap();
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, 1, "they can ring");

    let limit = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, limit.1).unwrap();
    assert_eq!(served.disconnected(), Progress::Done);
    assert!(served.region(0).unwrap().mapping.is_none());
    enable(&served, second);
    let before = served.emulator().statistics().commands;
    theirs.write_all_at(&[2], DOORBELLS).unwrap();
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, before);
    write(&served, DOORBELLS, 1);
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, before + 1);
    // Again, and with what this one leaves in doorbells that it could not map.
    served.reset().unwrap();
    write(&served, DOORBELLS, 3);
    assert_eq!(served.disconnected(), Progress::Done);
    assert!(served.region(0).unwrap().mapping.is_none());
    setrlimit(Resource::RLIMIT_NOFILE, limit.0, limit.1).unwrap();
    enable(&served, memory(&file));
    let before = served.emulator().statistics().commands;
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, before);

    // With descriptors, the next but one can map some again, and they are not those of the first.
    assert_eq!(served.disconnected(), Progress::Done);
    let new = doorbells(&served).unwrap();
    enable(&served, third);
    let before = served.emulator().statistics().commands;
    theirs.write_all_at(&[2], DOORBELLS).unwrap();
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, before);
    new.write_all_at(&[1], DOORBELLS).unwrap();
    served.emulator().step();
    assert_eq!(served.emulator().statistics().commands, before + 1);
}
