use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::backend::{Backend, BackendCompletion, Outcome, Request};
use crate::config::Config;
use crate::iommu::{DeviceMemory, Segment};

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;

/// A back end that keeps everything until it is told otherwise.
#[derive(Debug, Default)]
struct Stubborn {
    shared: Arc<Shared>,
    tags: Vec<u32>,
}

#[derive(Debug, Default)]
struct Shared {
    go: AtomicBool,
    /// Whether it heeds `cancel`.
    obedient: AtomicBool,
    cancelled: AtomicU32,
    resets: AtomicU32,
    /// Whether each batch takes until somebody else wants the controller.
    slow: Mutex<Option<std::sync::Weak<Emulator>>>,
    /// A slow batch has begun.
    begun: AtomicBool,
}

impl Backend for Stubborn {
    fn submit(&mut self, requests: &[Request], _segments: &[Segment], _memory: &DeviceMemory<'_>) {
        self.tags.extend(requests.iter().map(|request| request.tag));
        let slow = self.shared.slow.lock().unwrap().clone();
        if let Some(emulator) = slow.and_then(|slow| slow.upgrade()) {
            self.shared.begun.store(true, Ordering::Relaxed);
            wait_for(|| emulator.is_wanted());
        }
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        let cancelled = self.shared.cancelled.load(Ordering::Relaxed) > 0
            && self.shared.obedient.load(Ordering::Relaxed);
        let outcome = if cancelled {
            Outcome::Cancelled
        } else {
            Outcome::Done
        };
        if cancelled || self.shared.go.load(Ordering::Relaxed) {
            completions.extend(
                self.tags
                    .drain(..)
                    .map(|tag| BackendCompletion { tag, outcome }),
            );
        }
    }

    fn cancel(&mut self, tags: &[u32]) {
        self.shared
            .cancelled
            .fetch_add(tags.len() as u32, Ordering::Relaxed);
    }

    fn reset(&mut self) {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        self.tags.clear();
    }
}

/// A client's memory at IOVA `BASE`: rings at its start, data after them.
struct Client {
    served: ServedController,
    file: File,
    shared: Arc<Shared>,
}

const BASE: u64 = 0x1234_5000_0000_0000;
const LENGTH: u64 = 64 << 10;
/// Another mapping, for data alone.
const DATA: u64 = 0x1000_0000;

fn memory() -> (File, ClientMemory) {
    let file = File::from(memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LENGTH).unwrap();
    let descriptor = OwnedFd::from(file.try_clone().unwrap());
    let access = DmaAccess::READ | DmaAccess::WRITE;
    let memory = ClientMemory::map(descriptor, 0, LENGTH, access).unwrap();
    (file, memory)
}

fn access() -> DmaAccess {
    DmaAccess::READ | DmaAccess::WRITE
}

fn client(patience: Patience) -> Client {
    let shared = Arc::new(Shared::default());
    let backend = Stubborn {
        shared: Arc::clone(&shared),
        tags: Vec::new(),
    };
    let config = Config {
        mqes: 256,
        ..Config::default()
    };
    let emulator = Emulator::assembled(config, Box::new(backend), served_domain(16)).unwrap();
    let served = ServedController::new(emulator, patience).unwrap();
    let (file, memory) = memory();
    served
        .dma_map(BASE, LENGTH, access(), Some(memory))
        .unwrap();
    let client = Client {
        served,
        file,
        shared,
    };
    client.enable();
    client
}

impl Client {
    fn write(&self, offset: u64, value: u32) {
        self.served
            .region_write(0, offset, &value.to_le_bytes())
            .unwrap();
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.served.region_read(0, offset, &mut bytes).unwrap();
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

    fn status(&self, place: u64) -> u32 {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, place + 12).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Enables the controller with its admin rings at 0 and 0x1000, and an I/O queue pair at 0x2000 and 0x3000.
    fn enable(&self) {
        self.served.region_write(7, 4, &[6, 0]).unwrap();
        self.write(0x24, 15 << 16 | 15);
        for (register, iova) in [(0x28, BASE), (0x30, BASE + 0x1000)] {
            self.served
                .region_write(0, register, &iova.to_le_bytes())
                .unwrap();
        }
        self.write(CC, 4 << 20 | 6 << 16 | 1);
        assert_eq!(self.read(CSTS), 1);
        let high = (BASE >> 32) as u32;
        for (slot, opcode, offset, dword11) in [(0, 5, 0x3000, 1), (1, 1, 0x2000, 1 << 16 | 1)] {
            self.entry(
                slot * 64,
                &[
                    (0, opcode),
                    (6, BASE as u32 + offset),
                    (7, high),
                    (10, 15 << 16 | 1),
                    (11, dword11),
                ],
            );
        }
        self.write(DOORBELLS, 2);
        assert_eq!(self.served.emulator.step(), 2);
    }

    /// A read of one block into `DATA`, at a place of the I/O ring.
    fn start_read(&self, slot: u32) {
        self.entry(
            0x2000 + u64::from(slot) * 64,
            &[(0, slot << 16 | 2), (1, 1), (6, DATA as u32)],
        );
        self.write(DOORBELLS + 8, slot + 1);
        self.served.emulator.step();
    }

    fn map_data(&self) {
        let (_, memory) = memory();
        self.served
            .dma_map(DATA, LENGTH, access(), Some(memory))
            .unwrap();
    }
}

/// Waits for what is in flight for as long as it takes.
const PATIENT: Patience = Patience {
    abort: Duration::from_secs(3600),
    fatal: None,
};

const SOON: Patience = Patience {
    abort: Duration::from_millis(30),
    fatal: Some(Duration::from_millis(30)),
};

/// Has a thread panic while it has the controller.
pub(super) fn break_controller(served: &ServedController) {
    let emulator = Arc::clone(served.emulator());
    emulator.connect_interrupt(0, Some(Arc::new(|| panic!("as it was told to"))));
    assert!(!emulator.is_broken());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let all = IrqData::None;
        served.set_irqs(2, 0..1, IrqAction::Trigger, all)
    }));
    assert!(panicked.is_err() && emulator.is_broken());
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_unmap_waits_for_what_was_in_flight_and_for_nothing_later() {
    let client = client(PATIENT);
    client.map_data();
    client.start_read(0);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    client.start_read(1);
    assert_eq!(client.status(0x3000) >> 17 & 0x7ff, 0x004, "refused");
    let faults = client.served.iommu.faults();
    assert_eq!(faults[0].reason, crate::FaultReason::Leaving);
    assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Pending));
    client.shared.go.store(true, Ordering::Relaxed);
    client.served.emulator.step();
    assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Done));
    assert_eq!(client.served.iommu.mappings().len(), 1);
    assert_eq!(client.read(CSTS), 1, "the controller goes on");
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Err(Errno::ENOENT));
}

#[test]
fn an_unmap_aborts_what_takes_too_long() {
    let client = client(Patience {
        fatal: None,
        ..SOON
    });
    client.shared.obedient.store(true, Ordering::Relaxed);
    client.map_data();
    client.start_read(0);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    wait_for(|| {
        client.served.emulator.step();
        client.served.unmapping(DATA, LENGTH) == Ok(Progress::Done)
    });
    assert_eq!(client.shared.cancelled.load(Ordering::Relaxed), 1);
    assert_eq!(client.status(0x3000) >> 17 & 0x7ff, 0x007, "aborted");
    assert_eq!(client.read(CSTS), 1, "the controller goes on");
}

#[test]
fn an_unmap_ends_at_last_with_a_failed_controller() {
    let client = client(SOON);
    client.map_data();
    client.start_read(0);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    wait_for(|| client.served.unmapping(DATA, LENGTH) == Ok(Progress::Done));
    assert_eq!(client.shared.cancelled.load(Ordering::Relaxed), 1);
    assert_eq!(client.shared.resets.load(Ordering::Relaxed), 1);
    assert_eq!(client.read(CSTS), 0b11, "CSTS.CFS");
}

#[test]
fn an_unmap_never_ends_with_a_controller_that_is_broken() {
    let client = client(Patience {
        abort: Duration::ZERO,
        fatal: Some(Duration::ZERO),
    });
    client.map_data();
    client.start_read(0);
    let mark = client.served.emulator.flight_mark();
    break_controller(&client.served);
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    for _ in 0..10 {
        assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Pending));
    }
    assert_eq!(client.served.reset(), Err(Errno::EIO));
    assert_eq!(client.shared.resets.load(Ordering::Relaxed), 0);
    // What becomes of it now proves nothing, either.
    client.served.emulator.abandon("nobody does");
    assert!(client.served.emulator.any_in_flight(mark));
    assert_eq!(client.shared.cancelled.load(Ordering::Relaxed), 0);
    assert_eq!(client.served.iommu.mappings().len(), 2);
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let client = client(PATIENT);
    client.map_data();
    client
        .served
        .dma_map(0x7000_0000, 0x1000, access(), None)
        .unwrap();
    client.start_read(0);
    let old = client.served.emulator.doorbells();
    assert_eq!(client.served.disconnected(), Progress::Pending);
    client.start_read(1);
    let fetched = client.served.emulator.statistics().commands;
    client.served.emulator.step();
    assert_eq!(client.served.emulator.statistics().commands, fetched);
    client.shared.go.store(true, Ordering::Relaxed);
    client.served.emulator.step();
    assert_eq!(client.served.disconnected(), Progress::Done);
    assert_eq!(client.served.iommu.mappings(), []);
    assert_eq!((client.read(CC), client.read(CSTS)), (0, 0));
    for register in [0x24, 0x28, 0x2c, 0x30, 0x34] {
        assert_eq!(client.read(register), 0, "its admin queues");
    }
    old[0].store(1, Ordering::Relaxed);
    let new = client.served.emulator.doorbells();
    assert_eq!(new[0].load(Ordering::Relaxed), 0, "they are not the same");
    // What the next client maps is the new one.
    let region = client.served.region(0).unwrap();
    let file = File::from(
        region
            .mapping
            .unwrap()
            .descriptor
            .try_clone_to_owned()
            .unwrap(),
    );
    new[5].store(77, Ordering::Relaxed);
    let mut bytes = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, DOORBELLS + 20).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 77);

    let (_, memory) = memory();
    client
        .served
        .dma_map(BASE, LENGTH, access(), Some(memory))
        .unwrap();
}

#[test]
fn a_controller_that_failed_lets_go_of_memory_as_soon_as_its_back_end_does() {
    let client = client(PATIENT);
    client.map_data();
    client.start_read(0);
    client
        .served
        .emulator
        .inject(crate::Fault::of_controller(crate::ControllerFault::Fatal));
    assert_eq!(client.served.dma_unmap(DATA, LENGTH), Ok(Progress::Pending));
    client.shared.go.store(true, Ordering::Relaxed);
    client.served.emulator.step();
    assert_eq!(client.served.unmapping(DATA, LENGTH), Ok(Progress::Done));
    assert_eq!(client.status(0x3000), 0, "the host is told nothing");
    assert_eq!(client.shared.cancelled.load(Ordering::Relaxed), 0);
    assert_eq!(client.served.disconnected(), Progress::Done);
}

#[test]
fn what_one_client_wrote_to_doorbells_is_nothing_to_the_next() {
    let client = client(PATIENT);
    client.write(CC, 0);
    assert_eq!(client.read(CSTS), 0);
    client.served.emulator.doorbells()[11].store(7, Ordering::Relaxed);
    assert_eq!(client.served.disconnected(), Progress::Done);
    let (_, memory) = memory();
    client
        .served
        .dma_map(BASE, LENGTH, access(), Some(memory))
        .unwrap();
    client.enable();
    client.served.emulator.step();
    assert_eq!(client.served.emulator.statistics().invalid_doorbells, 0);
}

#[test]
fn memory_that_stays_with_a_stubborn_back_end_is_taken_when_the_client_goes() {
    let client = client(SOON);
    client.map_data();
    client.start_read(0);
    wait_for(|| client.served.disconnected() == Progress::Done);
    assert!(client.shared.resets.load(Ordering::Relaxed) > 0);
    assert_eq!(client.served.iommu.mappings(), []);
    assert_eq!(client.read(CSTS), 0);
}

#[test]
fn memory_without_a_descriptor_is_known_and_cannot_be_reached() {
    let client = client(PATIENT);
    let map = |iova, length| client.served.dma_map(iova, length, access(), None);
    map(DATA, 0x10000).unwrap();
    assert_eq!(map(DATA + 0x1000, 0x1000), Err(Errno::EEXIST));
    assert_eq!(map(DATA + 0x10800, 0x1000), Err(Errno::EINVAL));
    client.start_read(0);
    assert_eq!(client.status(0x3000) >> 17 & 0x7ff, 0x004);
    let faults = client.served.iommu.faults();
    assert_eq!(faults[0].reason, crate::FaultReason::NoMemory);
    assert_eq!(client.served.dma_unmap(DATA, 0x1000), Err(Errno::EINVAL));
    assert_eq!(client.served.dma_unmap(DATA, 0x10000), Ok(Progress::Done));
}

#[test]
fn regions_are_as_the_configuration_space_says() {
    let client = client(PATIENT);
    let served = &client.served;
    assert_eq!(served.region(0).unwrap().size, 0x2000);
    assert_eq!(
        served.region(0).unwrap().mapping.unwrap().areas,
        [SparseArea {
            offset: 0x1000,
            size: 0x1000
        }]
    );
    assert_eq!(served.region(4).unwrap().size, 0x2000);
    assert_eq!(served.region(7).unwrap().size, 4096);
    assert!(served.region(1).is_none() && served.region(8).is_none());
    assert_eq!(served.irq(2).unwrap().count, 17);
    assert!(served.irq(0).is_none());
    // Bytes of registers, and reads across them.
    let mut bytes = [0; 6];
    served.region_read(0, 7, &mut bytes).unwrap();
    let mut whole = [0; 16];
    served.region_read(0, 0, &mut whole).unwrap();
    assert_eq!(whole[7..13], bytes);
    assert_eq!(whole[8..12], 0x0002_0000u32.to_le_bytes());
    for (offset, length) in [(0x14, 2), (0x16, 4), (0x14, 12), (u64::MAX - 3, 4)] {
        let refused = served.region_write(0, offset, &vec![0xff; length]);
        assert_eq!(refused, Err(Errno::EINVAL), "{length} bytes at {offset:#x}");
    }
    assert_eq!(
        served.region_read(4, 0x1fff, &mut [0; 2]),
        Err(Errno::EINVAL)
    );
    assert_eq!(served.region_write(4, 0x1fff, &[0; 2]), Err(Errno::EINVAL));
    assert_eq!(served.region_read(3, 0, &mut [0; 2]), Err(Errno::EINVAL));
}

#[test]
fn interrupts_reach_the_eventfds() {
    let client = client(PATIENT);
    let served = &client.served;
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let theirs = EventFd::from_value_and_flags(0, flags).unwrap();
    let ours = Eventfd::new(theirs.as_fd().try_clone_to_owned().unwrap()).unwrap();
    served
        .set_irqs(
            2,
            0..2,
            IrqAction::Trigger,
            IrqData::Eventfds(vec![Some(ours), None]),
        )
        .unwrap();
    client.entry(2 * 64, &[(0, 0x0a), (10, 1)]); // Get Features
    client.write(DOORBELLS, 3);
    served.emulator.step();
    assert_eq!(theirs.read(), Ok(1), "the admin queue has vector 0");
    let trigger = |data| served.set_irqs(2, 0..1, IrqAction::Trigger, data);
    trigger(IrqData::None).unwrap();
    trigger(IrqData::Bool(vec![false])).unwrap();
    trigger(IrqData::Bool(vec![true])).unwrap();
    assert_eq!(theirs.read(), Ok(2));
    served
        .set_irqs(2, 0..0, IrqAction::Trigger, IrqData::None)
        .unwrap();
    trigger(IrqData::None).unwrap();
    assert_eq!(theirs.read(), Err(Errno::EAGAIN), "disabled");
    for (index, end, action) in [
        (2, 18, IrqAction::Trigger),
        (0, 1, IrqAction::Trigger),
        (2, 1, IrqAction::Mask),
    ] {
        assert_eq!(
            served.set_irqs(index, 0..end, action, IrqData::None),
            Err(Errno::EINVAL)
        );
    }
}

/// However much was submitted, and however long it takes: registers, mappings and the end of the server do not wait for all of it.
#[test]
fn a_full_queue_keeps_nobody_waiting() {
    use std::os::unix::fs::FileExt;
    let client = client(PATIENT);
    let (file, memory) = memory();
    client
        .served
        .dma_map(DATA, LENGTH, access(), Some(memory))
        .unwrap();
    for slot in 0..255u32 {
        let mut entry = [0; 64];
        entry[..4].copy_from_slice(&(slot << 16 | 2).to_le_bytes());
        entry[4] = 1;
        entry[24..28].copy_from_slice(&(DATA as u32 + 0x8000).to_le_bytes());
        file.write_all_at(&entry, u64::from(slot) * 64).unwrap();
    }
    for (slot, opcode, offset, dword11) in [(2, 5, 0x4000, 1), (3, 1, 0, 2 << 16 | 1)] {
        let address = DATA as u32 + offset;
        let queue = (10, 255 << 16 | 2);
        client.entry(
            slot * 64,
            &[(0, opcode), (6, address), queue, (11, dword11)],
        );
    }
    client.write(DOORBELLS, 4);
    assert_eq!(client.served.emulator.step(), 2);
    let before = client.served.emulator.statistics().commands;
    let emulator = &client.served.emulator;
    *client.shared.slow.lock().unwrap() = Some(Arc::downgrade(emulator));
    client.write(DOORBELLS + 16, 255);
    std::thread::scope(|scope| {
        let step = scope.spawn(|| emulator.step());
        wait_for(|| client.shared.begun.load(Ordering::Relaxed));
        assert_eq!(client.read(CSTS), 1);
        *client.shared.slow.lock().unwrap() = None;
        step.join().unwrap();
    });
    let fetched = emulator.statistics().commands - before;
    assert!((1..=64).contains(&fetched), "{fetched} commands at once");
    client.shared.go.store(true, Ordering::Relaxed);
    wait_for(|| {
        emulator.step();
        emulator.statistics().commands - before == 255
    });
}

/// Counts the events of its thread.
struct Counting(Arc<AtomicU32>);

impl tracing::Subscriber for Counting {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_client_cannot_fill_the_log() {
    let client = client(PATIENT);
    let emulator = &client.served.emulator;
    let count = Arc::new(AtomicU32::new(0));
    tracing::subscriber::with_default(Counting(Arc::clone(&count)), || {
        for _ in 0..2000 {
            emulator.doorbells()[11].store(7, Ordering::Relaxed);
            emulator.doorbells()[2].store(9999, Ordering::Relaxed);
            emulator.step();
            let memory = client.served.iommu.memory(true, None);
            let origin = crate::DmaOrigin::SubmissionFetch(1);
            assert!(memory.read_at(DATA, &mut [0; 64], origin).is_err());
        }
        // And a controller that it makes fail again and again.
        for _ in 0..2000 {
            client.write(CC, 0);
            client.write(CC, 1 << 4 | 1);
            assert_eq!(client.read(CSTS) & 2, 2);
        }
    });
    assert_eq!(client.served.iommu.fault_count(), 2000);
    assert_eq!(emulator.statistics().invalid_doorbells, 4000);
    let told = count.load(Ordering::Relaxed);
    assert!((2..=1000).contains(&told), "{told} lines");
    // A successor's failure is told all the same.
    assert_eq!(client.served.disconnected(), Progress::Done);
    tracing::subscriber::with_default(Counting(Arc::clone(&count)), || {
        client.write(CC, 1 << 4 | 1);
        assert_eq!(client.read(CSTS) & 2, 2);
    });
    assert_eq!(count.load(Ordering::Relaxed), told + 1);
}
