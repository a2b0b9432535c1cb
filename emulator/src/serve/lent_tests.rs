//! Memory that is lent on, and commands that a handler keeps: nothing is given back before the handler has reported them.

use std::fs::File;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_queues::Status;

use super::tests::break_controller;
use super::*;
use crate::config::Config;
use crate::handler::{CommandHandler, FetchedCommand, HandlerCompletion, Handling};
use crate::iommu::{DeviceMemory, Segment};
use crate::trace::{TraceEvent, TraceRecord};

const BASE: u64 = 0x10_0000;
const DATA: u64 = 0x100_0000;
const LENGTH: u64 = 64 << 10;
/// Where the lender puts the first memory; each next is 1 GiB further on.
const LENT: u64 = 0x40_0000_0000;

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happened {
    Lent(u64, Access),
    TakenBack(u64),
    Cancelled(u32),
}

#[derive(Debug, Default)]
struct Log {
    happened: Vec<Happened>,
    taken: Vec<u32>,
    report: Vec<u32>,
    /// Where the real device would have seen the data of the last command.
    lent: Option<Iova>,
    refuse: bool,
    lends: u64,
}

type Shared = Arc<Mutex<Log>>;

#[derive(Debug)]
struct Keeper(Shared);

impl CommandHandler for Keeper {
    fn command(&mut self, command: &FetchedCommand, memory: &DeviceMemory<'_>) -> Handling {
        if command.sqid == 0 {
            return Handling::Execute;
        }
        let mut segments: Vec<Segment> = Vec::new();
        if let Err(status) = memory.data(command, 512, Access::DEVICE_WRITE, &mut segments) {
            return Handling::Complete { status, result: 0 };
        }
        let too_long = Segment {
            length: LENGTH as u32,
            ..segments[0]
        };
        assert_eq!(memory.lent(&too_long), None, "it would leave the mapping");
        let mut log = self.0.lock().unwrap();
        log.lent = memory.lent(&segments[0]);
        log.taken.push(command.tag);
        Handling::Taken
    }

    fn flush(&mut self, _memory: &DeviceMemory<'_>) {}

    fn poll(&mut self, _memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>) {
        done.extend(
            self.0
                .lock()
                .unwrap()
                .report
                .drain(..)
                .map(|tag| HandlerCompletion {
                    tag,
                    status: Status::SUCCESS,
                    result: 0,
                }),
        );
    }

    fn cancel(&mut self, tags: &[u32]) {
        let mut log = self.0.lock().unwrap();
        log.happened
            .extend(tags.iter().map(|tag| Happened::Cancelled(*tag)));
    }
}

/// A real device that knows only what is lent, and looks at what the controller can reach meanwhile.
#[derive(Debug)]
struct Real(Shared, Arc<SoftwareIommu>);

impl Real {
    /// Whether the memory, all of which begins with an address of its own, can be reached by the controller.
    fn reaches(&self, memory: &ClientMemory) -> bool {
        self.1.has_host(memory.pointer())
    }
}

impl Lender for Real {
    fn lend(&self, memory: &ClientMemory, access: Access) -> Result<Iova, Errno> {
        assert_eq!(memory.len() as u64, LENGTH);
        assert!(!self.reaches(memory), "mapped before it was lent");
        let mut log = self.0.lock().unwrap();
        if log.refuse {
            return Err(Errno::ENOMEM);
        }
        let at = LENT + (log.lends << 30);
        log.lends += 1;
        log.happened.push(Happened::Lent(at, access));
        Ok(Iova(at))
    }

    fn take_back(&self, iova: Iova, memory: ClientMemory) {
        assert_eq!(memory.len() as u64, LENGTH);
        self.0
            .lock()
            .unwrap()
            .happened
            .push(Happened::TakenBack(iova.0));
    }
}

struct Client {
    served: ServedController,
    file: File,
    log: Shared,
}

fn memory() -> (File, ClientMemory) {
    let file = File::from(memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LENGTH).unwrap();
    let descriptor = OwnedFd::from(file.try_clone().unwrap());
    let access = DmaAccess::READ | DmaAccess::WRITE;
    let memory = ClientMemory::map(descriptor, 0, LENGTH, access).unwrap();
    (file, memory)
}

/// Aborts at once, and gives the controller up at once.
const GIVING_UP: Patience = Patience {
    abort: Duration::ZERO,
    fatal: Some(Duration::ZERO),
};

/// Aborts at once, and never gives the controller up.
const PATIENT: Patience = Patience {
    abort: Duration::ZERO,
    fatal: None,
};

fn client(patience: Patience) -> Client {
    let log = Shared::default();
    let handler = Box::new(Keeper(Arc::clone(&log)));
    let emulator = Emulator::with_handler(Config::default(), handler, served_domain(16)).unwrap();
    let lender = Arc::new(Real(Arc::clone(&log), emulator.iommu()));
    let served = ServedController::with_lender(emulator, patience, lender).unwrap();
    let (file, memory) = memory();
    let both = DmaAccess::READ | DmaAccess::WRITE;
    served.dma_map(BASE, LENGTH, both, Some(memory)).unwrap();
    let client = Client { served, file, log };
    client.enable();
    client
}

impl Client {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.served.region_write(0, offset, bytes).unwrap();
    }

    fn csts(&self) -> u32 {
        let mut bytes = [0; 4];
        self.served.region_read(0, 0x1c, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn entry(&self, place: u64, dwords: &[(usize, u32)]) {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 64];
        for &(index, value) in dwords {
            bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        self.file.write_all_at(&bytes, place).unwrap();
    }

    /// Enables the controller with its admin rings at 0 and 0x1000, and an I/O queue pair at 0x2000 and 0x3000.
    fn enable(&self) {
        self.served.region_write(7, 4, &[6, 0]).unwrap();
        self.write(0x24, &(15u32 << 16 | 15).to_le_bytes());
        self.write(0x28, &BASE.to_le_bytes());
        self.write(0x30, &(BASE + 0x1000).to_le_bytes());
        self.write(0x14, &(4u32 << 20 | 6 << 16 | 1).to_le_bytes());
        for (slot, opcode, offset, dword11) in [(0, 5, 0x3000, 1), (1, 1, 0x2000, 1 << 16 | 1)] {
            self.entry(
                slot * 64,
                &[
                    (0, opcode),
                    (6, BASE as u32 + offset),
                    (10, 15 << 16 | 1),
                    (11, dword11),
                ],
            );
        }
        self.write(DOORBELLS, &2u32.to_le_bytes());
        assert_eq!(self.served.emulator.turn(32).posted, 2);
    }

    fn map_data(&self) {
        let (_, memory) = memory();
        let both = DmaAccess::READ | DmaAccess::WRITE;
        self.served
            .dma_map(DATA, LENGTH, both, Some(memory))
            .unwrap();
    }

    /// A command with data at `DATA + 0x200`; its tag, if it was taken.
    fn start(&self, slot: u32) -> Option<u32> {
        self.entry(
            0x2000 + u64::from(slot) * 64,
            &[(0, slot << 16 | 2), (1, 1), (6, DATA as u32 + 0x200)],
        );
        self.write(DOORBELLS + 8, &(slot + 1).to_le_bytes());
        let before = self.log().taken.len();
        self.served.emulator.turn(16);
        self.log().taken.get(before).copied()
    }

    fn report(&self, tag: u32) {
        self.log().report.push(tag);
        self.served.emulator.turn(16);
    }
}

#[test]
fn memory_is_lent_before_it_is_mapped_and_taken_back_after_it_is_unmapped() {
    let client = client(PATIENT);
    client.map_data();
    let both = Access::DEVICE_READ | Access::DEVICE_WRITE;
    let lent = [
        Happened::Lent(LENT, both),
        Happened::Lent(LENT + (1 << 30), both),
    ];
    assert_eq!(client.log().happened, lent);
    let tag = client.start(0).expect("taken");
    assert_eq!(client.log().lent, Some(Iova(LENT + (1 << 30) + 0x200)));
    client.report(tag);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Done));
    assert_eq!(
        client.log().happened.last(),
        Some(&Happened::TakenBack(LENT + (1 << 30)))
    );
    assert_eq!(client.start(1), None, "nothing is mapped there");
}

#[test]
fn what_only_may_be_read_is_lent_so() {
    let client = client(PATIENT);
    let (_, memory) = memory();
    client
        .served
        .dma_map(DATA, LENGTH, DmaAccess::READ, Some(memory))
        .unwrap();
    let last = client.log().happened.last().copied();
    assert_eq!(
        last,
        Some(Happened::Lent(LENT + (1 << 30), Access::DEVICE_READ))
    );
    assert_eq!(client.start(0), None, "its data would be written");
}

#[test]
fn memory_that_cannot_be_lent_is_not_mapped() {
    let client = client(PATIENT);
    client.log().refuse = true;
    let (_, memory) = memory();
    let both = DmaAccess::READ | DmaAccess::WRITE;
    let refused = client
        .served
        .dma_map(DATA, LENGTH, both, Some(memory.clone()));
    assert_eq!(refused, Err(Errno::ENOMEM));
    assert_eq!(client.start(0), None);
    // The other way round: lent, and then it cannot be mapped.
    client.log().refuse = false;
    let overlap = client.served.dma_map(BASE, LENGTH, both, Some(memory));
    assert_eq!(overlap, Err(Errno::EEXIST));
    assert_eq!(
        client.log().happened.last(),
        Some(&Happened::TakenBack(LENT + (1 << 30)))
    );
    // Memory without a descriptor is nobody's to lend.
    client.served.dma_map(DATA, LENGTH, both, None).unwrap();
    assert_eq!(client.log().lends, 2);
}

#[test]
fn an_unmap_waits_for_taken_commands_however_long() {
    for patience in [PATIENT, GIVING_UP] {
        let client = client(patience);
        let trace = client.served.emulator.trace(1000).expect("the only one");
        client.map_data();
        let tag = client.start(0).expect("taken");
        assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
        for _ in 0..20 {
            client.served.emulator.turn(16);
            assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Pending));
        }
        let happened = client.log().happened.clone();
        let cancelled = Happened::Cancelled(tag);
        assert_eq!(
            happened[2..],
            [cancelled],
            "aborted once, and nothing taken back"
        );
        assert_eq!(client.csts() & 2 != 0, patience.fatal.is_some());
        let fatal = |record: &TraceRecord| matches!(record.event, TraceEvent::Fatal { .. });
        let failures = trace.take().iter().filter(|record| fatal(record)).count();
        assert_eq!(failures, usize::from(patience.fatal.is_some()), "once");
        drop(trace);
        assert_eq!(client.start(1), None, "nothing new begins there");
        client.report(tag);
        assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Done));
        assert_eq!(
            client.log().happened[3..],
            [Happened::TakenBack(LENT + (1 << 30))]
        );
    }
}

#[test]
fn a_client_that_goes_is_waited_for_however_long() {
    let client = client(PATIENT);
    client.map_data();
    let tag = client.start(0).expect("taken");
    for _ in 0..20 {
        assert_eq!(client.served.disconnected(), Progress::Pending);
        client.served.emulator.turn(16);
    }
    assert_eq!(client.log().happened[2..], [Happened::Cancelled(tag)]);
    // What it rang last is not fetched any more.
    assert_eq!(client.start(1), None);
    client.report(tag);
    assert_eq!(client.served.disconnected(), Progress::Done);
    assert_eq!(client.log().happened.len(), 5, "both taken back");
    assert_eq!(client.csts(), 0);
}

#[test]
fn a_client_that_goes_while_it_resets_is_waited_for() {
    let client = client(PATIENT);
    client.map_data();
    let tag = client.start(0).expect("taken");
    client.served.reset().unwrap();
    assert_eq!(client.served.settling(), Progress::Pending);
    assert_eq!(client.served.disconnected(), Progress::Pending);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    client.report(tag);
    assert_eq!(client.served.settling(), Progress::Done);
    assert_eq!(client.served.disconnected(), Progress::Done);
    let happened = client.log().happened.clone();
    let back = [LENT, LENT + (1 << 30)].map(Happened::TakenBack);
    assert_eq!(happened[happened.len() - 2..], back);
    let others = &happened[2..happened.len() - 2];
    assert!(
        others.iter().all(|one| *one == Happened::Cancelled(tag)),
        "{others:?}"
    );
}

#[test]
fn memory_that_is_in_use_outlives_whoever_served_it() {
    let client = client(PATIENT);
    client.map_data();
    let tag = client.start(0).expect("taken");
    let (log, emulator) = (Arc::clone(&client.log), Arc::clone(&client.served.emulator));
    drop(client);
    let taken_back = |log: &Shared| {
        let log = log.lock().unwrap();
        let all = log.happened.iter();
        all.filter(|one| matches!(one, Happened::TakenBack(_)))
            .count()
    };
    assert_eq!(taken_back(&log), 0);
    log.lock().unwrap().report.push(tag);
    emulator.turn(16);
    // And where nothing is in use, all goes back.
    let client = self::client(PATIENT);
    client.map_data();
    let log = Arc::clone(&client.log);
    drop(client);
    assert_eq!(taken_back(&log), 2);
}

#[test]
fn of_a_controller_that_is_broken_nothing_is_a_proof() {
    for in_flight in [true, false] {
        let client = client(GIVING_UP);
        client.map_data();
        let tag = in_flight.then(|| client.start(0).expect("taken"));
        let emulator = Arc::clone(&client.served.emulator);
        break_controller(&client.served);
        client.log().report.extend(tag);
        for unmap in [ServedController::dma_unmap, ServedController::unmapping] {
            for _ in 0..10 {
                assert_eq!(emulator.turn(16).posted, 0, "it does nothing any more");
                let unmapped = unmap(&client.served, DATA, LENGTH);
                assert_eq!(unmapped, Ok(Progress::Pending));
                assert_eq!(client.served.disconnected(), Progress::Pending);
            }
        }
        let Client { served, log, .. } = client;
        drop(served);
        let its_memory = |happened: &Happened| matches!(happened, Happened::Lent(..));
        assert!(log.lock().unwrap().happened.iter().all(its_memory));
        assert_eq!(emulator.iommu().mappings().len(), 2);
    }
}

#[test]
fn a_controller_that_is_broken_has_let_go_of_nothing_by_a_reset() {
    let client = client(PATIENT);
    assert_eq!(client.served.settling(), Progress::Done);
    break_controller(&client.served);
    // By whatever way its host asks for one, and looks whether it is over.
    client.write(0x14, &[0; 4]);
    client.served.emulator.turn(16);
    assert_eq!(client.csts(), u32::MAX, "CSTS.RDY never falls");
    assert_eq!(client.served.settling(), Progress::Pending);
    assert_eq!(client.served.reset(), Err(Errno::EIO));
    assert_eq!(client.served.settling(), Progress::Pending);
    let mut configuration = [0; 64];
    client.served.region_read(7, 0, &mut configuration).unwrap();
    assert_eq!(configuration, [0xff; 64]);
    assert_eq!(client.served.emulator.iommu().mappings().len(), 1);
}
