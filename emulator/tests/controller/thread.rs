//! The controller's own thread, and an unmap that waits for it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nvme_vfio_dma::{Access, AddressSpace};
use nvme_vfio_emulator::{
    Backend, BackendCompletion, DeviceMemory, Emulator, Operation, Outcome, Request, Segment,
};

use crate::host::*;

fn wait(host: &mut Host, qid: u16) -> Entry {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(entry) = host.take(qid) {
            return entry;
        }
        assert!(Instant::now() < deadline, "no completion");
        std::thread::yield_now();
    }
}

#[test]
fn the_thread_works_sleeps_wakes_and_ends() {
    let mut host = Host::with_queue("size=1M", 8);
    let thread = host.emulator.spawn().unwrap();
    let memory = host.memory(4096);
    for pause in [0, 0, 1, 20] {
        std::thread::sleep(Duration::from_millis(pause));
        let cid = host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
        let entry = wait(&mut host, 1);
        assert_eq!((entry.cid, entry.status), (cid, 0));
    }
    // Registers act at once, thread or not.
    host.write(CC, 0);
    assert_eq!(host.read(CSTS), 0);
    drop(thread);
    let steps = host.emulator.statistics().steps;
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(
        host.emulator.statistics().steps,
        steps,
        "nobody steps any more"
    );
}

#[test]
fn an_idle_thread_sleeps() {
    let host = Host::enabled("");
    let _thread = host.emulator.spawn().unwrap();
    let steps = || host.emulator.statistics().steps;
    let deadline = Instant::now() + PATIENCE;
    // Once it is asleep it takes a millisecond for each step at least, however busy the machine.
    loop {
        let (begun, before) = (Instant::now(), steps());
        while steps() < before + 200 {
            assert!(Instant::now() < deadline, "it neither works nor sleeps");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (steps, took) = (steps() - before, begun.elapsed());
        if u128::from(steps) < 2 * took.as_millis() {
            break;
        }
        assert!(Instant::now() < deadline, "{steps} steps in {took:?}");
    }
}

#[test]
fn memory_comes_and_goes_under_load() {
    let mut host = Host::with_queue("size=1M", 8);
    let _thread = host.emulator.spawn().unwrap();
    for round in 0..500u32 {
        let memory = host.memory(4096);
        let opcode = 1 + (round % 2) as u8;
        host.submit(
            1,
            Host::transfer(opcode, u64::from(round), 8, memory.iova().0, 0),
        );
        if round % 3 == 0 {
            drop(memory); // too early: the controller may find nothing there
            wait(&mut host, 1);
        } else {
            assert_eq!(wait(&mut host, 1).status, 0);
        }
    }
    for fault in host.emulator.iommu().faults() {
        assert_eq!(fault.command.unwrap().sqid, 1);
    }
}

/// A back end that finishes requests only when the test says so, and then moves the data.
#[derive(Debug)]
struct Slow {
    go: Arc<AtomicBool>,
    resets: Arc<AtomicU32>,
    waiting: Vec<(u32, Operation, Vec<Segment>)>,
}

impl Backend for Slow {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], _memory: &DeviceMemory<'_>) {
        for request in requests {
            let own =
                segments[request.segments.start as usize..request.segments.end as usize].to_vec();
            self.waiting.push((request.tag, request.operation, own));
        }
    }

    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        if self.go.load(Ordering::Relaxed) {
            for (tag, _, segments) in self.waiting.drain(..).rev() {
                let moved = segments.iter().try_for_each(|segment| {
                    memory.write(segment, 0, &vec![0x42; segment.length as usize])
                });
                let outcome = if moved.is_ok() {
                    Outcome::Done
                } else {
                    Outcome::MemoryLost
                };
                completions.push(BackendCompletion { tag, outcome });
            }
        }
    }

    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.waiting.clear();
    }
}

pub(crate) fn slow() -> (Host, Arc<AtomicBool>, Arc<AtomicU32>) {
    let (go, resets) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let backend = Slow {
        go: Arc::clone(&go),
        resets: Arc::clone(&resets),
        waiting: Vec::new(),
    };
    let mut host = Host::new("");
    host.emulator = Emulator::with_backend(Default::default(), Box::new(backend)).unwrap();
    host.emulator.config_write(4, &[6, 0]);
    host.space = AddressSpace::new(host.emulator.iommu());
    host.enable();
    host.create_queue(1, 8);
    (host, go, resets)
}

#[test]
fn a_slow_back_end_completes_later_and_in_any_order() {
    let (mut host, go, _) = slow();
    let memory = host.space.shared(8192, Access::DEVICE_WRITE).unwrap();
    let first = host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    let second = host.submit(1, Host::transfer(2, 8, 8, memory.iova().0 + 4096, 0));
    for _ in 0..3 {
        assert_eq!(host.emulator.step(), 0);
    }
    go.store(true, Ordering::Relaxed);
    assert_eq!(host.emulator.step(), 2);
    assert_eq!(
        (host.take(1).unwrap().cid, host.take(1).unwrap().cid),
        (second, first)
    );
    assert_eq!(bytes(&memory, 8192), [0x42; 8192]);
}

#[test]
fn deleting_a_queue_and_disabling_wait_for_a_slow_back_end() {
    let (mut host, go, _) = slow();
    let memory = host.memory(4096);
    let read = Host::transfer(2, 0, 8, memory.iova().0, 0);
    host.submit(1, read);
    host.emulator.step();
    let delete = host.submit(0, with(command(0, 0), 10, 1));
    assert_eq!(host.emulator.step(), 0, "the read is still out");
    assert_eq!(host.refused(0, with(command(4, 0), 10, 1)), 0x10c);
    go.store(true, Ordering::Relaxed);
    assert_eq!(host.emulator.step(), 2);
    assert_eq!(host.take(0).unwrap().cid, delete);
    assert!(host.take(1).is_some());
    let again = host.create_submission_queue(1, 8, host.rings[&1].submission.iova().0, 1);
    host.admin(again);
    host.rings.get_mut(&1).unwrap().tail = 0;

    go.store(false, Ordering::Relaxed);
    host.submit(1, read);
    host.emulator.step();
    host.write(CC, CC_ENABLE | 1 << 14);
    assert_eq!(host.read(CSTS), RDY | 0b01 << 2, "shutdown waits");
    host.write(CC, 0);
    assert_eq!(host.read(CSTS) & RDY, RDY, "so does the reset");
    go.store(true, Ordering::Relaxed);
    assert_eq!(host.read(CSTS), 0);
}

#[test]
fn a_function_reset_does_not_wait() {
    let (mut host, go, resets) = slow();
    let memory = host.memory(4096);
    host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    host.emulator.step();
    host.emulator.reset();
    assert_eq!((host.read(CSTS), resets.load(Ordering::Relaxed)), (0, 1));
    go.store(true, Ordering::Relaxed);
    host.emulator.step();
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
}

#[test]
fn memory_that_a_slow_back_end_lost_is_an_error() {
    let (mut host, go, _) = slow();
    let memory = host.memory(4096);
    host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    host.emulator.step();
    drop(memory);
    let other = host.memory(4096); // takes the same address
    go.store(true, Ordering::Relaxed);
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().status, 0x004);
    assert_eq!(bytes(&other, 4096), [0; 4096]);
}

/// A back end that is in the middle of a copy until somebody waits for that, or need not wait any more.
#[derive(Debug)]
struct Copying(Arc<CopyUnderWay>);

#[derive(Debug, Default)]
struct CopyUnderWay {
    emulator: OnceLock<Weak<Emulator>>,
    begun: AtomicBool,
    ended: AtomicBool,
    unmapped: AtomicBool,
}

impl Backend for Copying {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        assert_eq!(requests.len(), 1);
        let copy = &self.0;
        let emulator = copy.emulator.get().and_then(Weak::upgrade).unwrap();
        copy.begun.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while !emulator.is_wanted() && !copy.unmapped.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "nobody unmaps anything");
            std::thread::yield_now();
        }
        // For whoever says that he waits, and does not.
        std::thread::sleep(Duration::from_millis(20));
        if !copy.unmapped.load(Ordering::SeqCst) {
            assert!(memory.write(&segments[0], 0, &[1; 512]).is_ok());
            copy.ended.store(true, Ordering::SeqCst);
        }
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, _completions: &mut Vec<BackendCompletion>) {}

    fn reset(&mut self) {}
}

#[test]
fn an_unmap_waits_for_the_copy_under_way() {
    let copy = Arc::<CopyUnderWay>::default();
    let backend = Box::new(Copying(Arc::clone(&copy)));
    let mut host = Host::new("");
    host.emulator = Emulator::with_backend(Default::default(), backend).unwrap();
    copy.emulator.set(Arc::downgrade(&host.emulator)).unwrap();
    host.emulator.config_write(4, &[6, 0]);
    host.space = AddressSpace::new(host.emulator.iommu());
    host.enable();
    host.create_queue(1, 8);
    let memory = host.memory(4096);
    host.submit(1, Host::transfer(2, 0, 8, memory.iova().0, 0));
    std::thread::scope(|scope| {
        scope.spawn(|| host.emulator.step());
        while !copy.begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(memory);
        let ended = copy.ended.load(Ordering::SeqCst);
        copy.unmapped.store(true, Ordering::SeqCst);
        assert!(ended, "unmapped in the middle of a copy");
    });
}

#[test]
fn completion_entries_are_promised_to_what_a_slow_back_end_has() {
    let (mut host, go, _) = slow();
    // A submission queue of 8 entries that reports to a completion queue of 4.
    let completion = host.memory(4096);
    let create = host.create_completion_queue(2, 4, completion.iova().0);
    host.admin(create);
    let submission = host.memory(4096);
    let create = host.create_submission_queue(2, 8, submission.iova().0, 2);
    host.admin(create);
    let data = host.memory(4096);
    for slot in 0..7 {
        for (index, dword) in Host::transfer(2, 0, 8, data.iova().0, 0)
            .into_iter()
            .enumerate()
        {
            submission.write_u32(slot * 64 + index * 4, dword).unwrap();
        }
    }
    let commands = host.emulator.statistics().commands;
    for tail in [2, 7] {
        host.ring_doorbell(2, false, tail);
        host.emulator.step();
    }
    assert_eq!(host.emulator.statistics().commands - commands, 3, "fetched");
    go.store(true, Ordering::Relaxed);
    assert_eq!(host.emulator.step(), 3);
    assert_eq!(host.emulator.step(), 0);
    host.ring_doorbell(2, true, 3);
    assert_eq!(host.emulator.step(), 3);
}
