//! What a client finds of its predecessor.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_queues::Status;

use super::*;
use crate::config::Config;
use crate::handler::{CommandHandler, FetchedCommand, HandlerCompletion, Handling};
use crate::iommu::DeviceMemory;

const BASE: u64 = 0x10_0000;
const LENGTH: u64 = 64 << 10;
/// Where a command's data is in the client's memory.
const PAGE: u64 = 0x8000;

const GET_LOG: u32 = 0x02;
const SET_FEATURES: u32 = 0x09;
const GET_FEATURES: u32 = 0x0a;
const ERRORS: u32 = 0x01;
const SMART: u32 = 0x02;
const TEMPERATURE_THRESHOLD: u32 = 0x04;
const TIMESTAMP: u32 = 0x0e;
const SAVE: u32 = 1 << 31;

/// Leaves everything to the front end.
#[derive(Debug)]
struct Indifferent;

impl CommandHandler for Indifferent {
    fn command(&mut self, _command: &FetchedCommand, _memory: &DeviceMemory<'_>) -> Handling {
        Handling::Execute
    }

    fn flush(&mut self, _memory: &DeviceMemory<'_>) {}

    fn poll(&mut self, _memory: &DeviceMemory<'_>, _done: &mut Vec<HandlerCompletion>) {}

    fn cancel(&mut self, _tags: &[u32]) {}
}

fn lent() -> ServedController {
    let config = Config::default();
    let emulator = Emulator::with_handler(config, Box::new(Indifferent), served_domain(16));
    ServedController::new(emulator.unwrap(), Patience::default()).unwrap()
}

fn emulated() -> ServedController {
    let emulator = Emulator::in_domain(Config::default(), served_domain(16)).unwrap();
    ServedController::new(emulator, Patience::default()).unwrap()
}

/// Registers of BAR 0, all of the MSI-X table and pending bits, and configuration space.
fn hardware(served: &ServedController) -> Vec<(u32, usize, u8)> {
    let read = |region, length: usize| {
        let mut bytes = vec![0; length];
        served.region_read(region, 0, &mut bytes).unwrap();
        let bytes = bytes.into_iter().enumerate();
        bytes.map(move |(offset, byte)| (region, offset, byte))
    };
    let msix = served.region(4).unwrap().size as usize;
    read(0, 0x1000)
        .chain(read(4, msix))
        .chain(read(7, 4096))
        .filter(|(_, _, byte)| *byte != 0)
        .collect()
}

struct Client<'a> {
    served: &'a ServedController,
    file: File,
    next: u32,
}

impl<'a> Client<'a> {
    fn new(served: &'a ServedController) -> Client<'a> {
        let file = File::from(memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LENGTH).unwrap();
        let access = DmaAccess::READ | DmaAccess::WRITE;
        let descriptor = OwnedFd::from(file.try_clone().unwrap());
        let memory = ClientMemory::map(descriptor, 0, LENGTH, access).unwrap();
        served.dma_map(BASE, LENGTH, access, Some(memory)).unwrap();
        let client = Client {
            served,
            file,
            next: 0,
        };
        served.region_write(7, 4, &[6, 0]).unwrap();
        client.write(0x24, 15 << 16 | 15);
        client.write(0x28, BASE as u32);
        client.write(0x30, BASE as u32 + 0x1000);
        client.write(0x14, 4 << 20 | 6 << 16 | 1);
        client
    }

    fn write(&self, offset: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.served.region_write(0, offset, &bytes).unwrap();
    }

    /// An admin command; its result and status.
    fn admin(&mut self, opcode: u32, dword10: u32, dword11: u32) -> (u32, Status) {
        let slot = self.next;
        self.next += 1;
        assert!(self.next < 16, "the queue does not wrap here");
        let mut entry = [0; 64];
        for (index, value) in [
            (0, slot << 16 | opcode),
            (6, BASE as u32 + PAGE as u32),
            (10, dword10),
            (11, dword11),
        ] {
            entry[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        self.file
            .write_all_at(&entry, u64::from(slot) * 64)
            .unwrap();
        self.write(DOORBELLS, self.next);
        self.served.emulator.step();
        let mut told = [0; 16];
        let place = 0x1000 + u64::from(slot) * 16;
        self.file.read_exact_at(&mut told, place).unwrap();
        let word = u16::from_le_bytes([told[14], told[15]]);
        assert_eq!(word & 1, 1, "it was answered");
        let result = u32::from_le_bytes([told[0], told[1], told[2], told[3]]);
        (result, Status::from_status_word(word))
    }

    fn data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, PAGE).unwrap();
        bytes
    }

    fn log(&mut self, lid: u32) -> Vec<u8> {
        assert!(self.admin(GET_LOG, 127 << 16 | lid, 0).1.is_success());
        self.data(512)
    }

    fn feature(&mut self, feature: u32) -> u32 {
        let (value, status) = self.admin(GET_FEATURES, feature, 0);
        assert!(status.is_success());
        value
    }

    fn timestamp(&mut self) -> Vec<u8> {
        self.feature(TIMESTAMP);
        self.data(8)
    }

    /// Does all that leaves traces, and goes, with the controller disabled.
    fn leave_traces(mut self) {
        let (_, refused) = self.admin(0x7f, 0xdead, 0xbeef);
        assert!(!refused.is_success());
        let (_, status) = self.admin(SET_FEATURES, SAVE | TEMPERATURE_THRESHOLD, 300);
        assert!(status.is_success());
        self.file.write_all_at(&[7; 6], PAGE).unwrap();
        assert!(self.admin(SET_FEATURES, TIMESTAMP, 0).1.is_success());
        self.served.region_write(4, 0, &[0x40; 16]).unwrap();
        self.served.region_write(7, 0x3c, &[0x55]).unwrap();
        self.write(0x14, 0);
        assert_eq!(self.served.disconnected(), Progress::Done);
    }
}

#[test]
fn a_lent_controller_begins_as_new_for_each_client() {
    let (used, new) = (lent(), lent());
    Client::new(&used).leave_traces();
    assert_eq!(hardware(&used), hardware(&new));
    let (mut after, mut first) = (Client::new(&used), Client::new(&new));
    for lid in [ERRORS, SMART] {
        assert_eq!(after.log(lid), first.log(lid), "{lid}");
    }
    for feature in [TEMPERATURE_THRESHOLD, 2 << 8 | TEMPERATURE_THRESHOLD] {
        assert_eq!(after.feature(feature), first.feature(feature));
    }
    assert_eq!(after.timestamp(), first.timestamp());
}

#[test]
fn an_emulated_controller_keeps_what_a_function_reset_leaves() {
    let (used, new) = (emulated(), emulated());
    Client::new(&used).leave_traces();
    assert_eq!(hardware(&used), hardware(&new));
    let mut after = Client::new(&used);
    assert_eq!(after.log(ERRORS)[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(after.feature(TEMPERATURE_THRESHOLD), 300, "it was saved");
    assert_eq!(after.timestamp()[6] >> 1 & 0b111, 0, "it was not");
}
