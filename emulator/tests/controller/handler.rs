//! A handler that carries out commands in the front end's place: it delays, reorders, refuses, never answers, and answers twice.

mod turns;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use nvme_vfio_dma::{Access, DomainLimits};
use nvme_vfio_emulator::{
    CommandHandler, Config, DeviceMemory, Emulator, FetchedCommand, HandlerCompletion, Handling,
    Segment, SoftwareIommu,
};
use nvme_vfio_queues::Status;

use crate::host::{CC, CFS, CSTS, Host, RDY, command, u32_at, with, with_prps};

const FLUSH: u8 = 0x00;
const READ: u8 = 0x02;
const VERIFY: u8 = 0x0c;
/// An opcode of the test: the handler answers at once, with the entry's dword 10 as status.
const ANSWER: u8 = 0x81;

/// What a test sees of its handler, and tells it.
#[derive(Debug, Default)]
struct Script {
    /// What was taken and not reported, oldest first.
    taken: Vec<FetchedCommand>,
    /// What the next poll reports.
    report: Vec<HandlerCompletion>,
    cancelled: Vec<u32>,
    credit: u32,
    flushes: u32,
    restarts: u32,
    /// All commands seen, by opcode.
    seen: Vec<u8>,
    /// Data of the last read command, as its PRPs say.
    segments: Option<Result<Vec<Segment>, Status>>,
    shut_downs: Vec<u32>,
    /// What admin commands of the vendor do.
    vendor: Option<Handling>,
}

#[derive(Debug)]
struct Tester(Arc<Mutex<Script>>);

impl CommandHandler for Tester {
    fn credit(&mut self) -> u32 {
        self.0.lock().unwrap().credit
    }

    fn command(&mut self, command: &FetchedCommand, memory: &DeviceMemory<'_>) -> Handling {
        let mut script = self.0.lock().unwrap();
        let opcode = command.entry[0] as u8;
        script.seen.push(opcode);
        match (command.sqid, opcode) {
            (0, 0xc0..) => {
                let handling = script.vendor.unwrap_or(Handling::Execute);
                if handling == Handling::Taken {
                    script.taken.push(*command);
                }
                handling
            }
            (0, _) => Handling::Execute,
            (_, ANSWER) => Handling::Complete {
                status: Status::from_raw(command.entry[5] as u16),
                result: command.entry[6],
            },
            (_, VERIFY) => Handling::Execute,
            (_, READ) => {
                let mut segments = Vec::new();
                let length = u64::from(command.entry[6] as u32);
                let found = memory.data(command, length, Access::DEVICE_WRITE, &mut segments);
                assert!(found.is_ok() || segments.is_empty());
                script.segments = Some(found.map(|()| segments));
                script.taken.push(*command);
                Handling::Taken
            }
            _ => {
                script.taken.push(*command);
                Handling::Taken
            }
        }
    }

    fn flush(&mut self, _memory: &DeviceMemory<'_>) {
        self.0.lock().unwrap().flushes += 1;
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>) {
        done.append(&mut self.0.lock().unwrap().report);
    }

    fn cancel(&mut self, tags: &[u32]) {
        self.0.lock().unwrap().cancelled.extend(tags);
    }

    fn shut_down(&mut self, tag: u32, _memory: &DeviceMemory<'_>) -> Handling {
        self.0.lock().unwrap().shut_downs.push(tag);
        Handling::Taken
    }

    fn restarted(&mut self) {
        let mut script = self.0.lock().unwrap();
        assert!(script.taken.is_empty(), "restarted with commands in flight");
        script.restarts += 1;
    }

    fn identify(&self, cns: u8, nsid: u32, page: &mut [u8]) {
        if (cns, nsid) == (1, 0) {
            page[77] = 3;
        }
    }

    fn log(&self, lid: u8, _nsid: u32, page: &mut [u8]) {
        if lid == 2 {
            page[5] = 77;
        }
    }
}

/// A host with an I/O queue of 64 entries, and what it knows of the handler.
struct Bench {
    host: Host,
    script: Arc<Mutex<Script>>,
}

fn bench() -> Bench {
    let script = Arc::new(Mutex::new(Script {
        credit: u32::MAX,
        ..Script::default()
    }));
    let iommu = Arc::new(SoftwareIommu::new(DomainLimits {
        iova_ranges: vec![0..=u64::MAX >> 16],
        page_sizes: 0x1000,
        mappings: Some(1000),
    }));
    let handler = Box::new(Tester(Arc::clone(&script)));
    let emulator = Emulator::with_handler(Config::default(), handler, iommu).unwrap();
    let mut host = Host::of(emulator);
    host.enable();
    host.create_queue(1, 64);
    Bench { host, script }
}

impl Bench {
    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Starts a command that the handler keeps; its tag.
    fn start(&mut self) -> u32 {
        self.host.submit(1, command(FLUSH, 1));
        self.host.emulator.step();
        let script = self.script();
        script.taken.last().expect("taken").tag
    }

    /// Reports the command with this tag at the next poll.
    fn report(&self, tag: u32, status: Status, result: u64) {
        let mut script = self.script();
        script.taken.retain(|taken| taken.tag != tag);
        script.report.push(HandlerCompletion {
            tag,
            status,
            result,
        });
    }
}

#[test]
fn commands_end_when_and_as_the_handler_says() {
    let mut bench = bench();
    let tags: Vec<u32> = (0..3).map(|_| bench.start()).collect();
    assert!(bench.host.take(1).is_none());
    assert!(
        bench.script().flushes > 0,
        "it was told that the batch is over"
    );
    // In another order than they came.
    for &place in &[2usize, 0, 1] {
        let status = if place == 0 {
            Status::LBA_OUT_OF_RANGE
        } else {
            Status::SUCCESS
        };
        let first = bench
            .script()
            .taken
            .iter()
            .find(|taken| taken.tag == tags[place])
            .copied();
        bench.report(tags[place], status, 0x1_0000_0007);
        bench.host.emulator.step();
        let entry = bench.host.take(1).expect("reported");
        assert_eq!(entry.cid, first.unwrap().cid);
        assert_eq!(entry.status, status.to_raw() & 0x7ff);
        assert_eq!(entry.result, 7);
        assert_eq!(entry.more, place == 0, "an error is in the error log");
    }
    let (_, log) = bench.host.log(1, 64, 0, 0);
    assert_eq!(log[8], 1, "of that queue");
}

#[test]
fn a_command_is_answered_at_once_or_refused() {
    let mut bench = bench();
    let mut entry = with(command(ANSWER, 1), 10, 0);
    entry[12] = 99;
    let done = bench.host.run(1, entry);
    assert_eq!((done.status, done.result), (0, 99));
    let done = bench.host.run(1, with(command(ANSWER, 1), 10, 0x286));
    assert_eq!((done.status, done.more), (0x286, true));
    assert_eq!(
        bench.host.refused(1, command(VERIFY, 1)),
        0x001,
        "the front end has no I/O commands"
    );
    assert!(bench.script().taken.is_empty());
}

#[test]
fn a_tag_is_reported_once() {
    let mut bench = bench();
    let first = bench.start();
    bench.report(first, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert!(bench.host.take(1).is_some());
    // The place is another command's now.
    let second = bench.start();
    assert_eq!(first as u16, second as u16, "tags are small numbers");
    bench.report(first, Status::SUCCESS, 0);
    bench.report(second ^ 0xff, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert!(bench.host.take(1).is_none(), "not the other command's");
    bench.report(second, Status::SUCCESS, 0);
    bench.report(second, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert!(bench.host.take(1).is_some());
    assert!(bench.host.take(1).is_none(), "reported twice, posted once");
}

#[test]
fn ready_stays_until_the_last_command_was_reported() {
    let mut bench = bench();
    let tag = bench.start();
    bench.host.write(CC, 0);
    for _ in 0..100 {
        bench.host.emulator.step();
        assert_eq!(bench.host.read(CSTS) & RDY, RDY);
    }
    assert_eq!(bench.script().restarts, 0);
    bench.report(tag, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert_eq!(bench.host.read(CSTS) & RDY, 0);
    assert_eq!(bench.script().restarts, 1);
    bench.host.enable();
    bench.host.create_queue(1, 64);
    assert!(bench.host.take(1).is_none(), "nothing of before");
}

#[test]
fn a_function_reset_waits_and_cancels() {
    for by_config_space in [false, true] {
        let mut bench = bench();
        let tag = bench.start();
        if by_config_space {
            bench
                .host
                .emulator
                .config_write(express(&bench.host) + 8, &[0x00, 0x80]);
        } else {
            bench.host.emulator.reset();
        }
        assert_eq!(bench.script().cancelled, [tag]);
        for _ in 0..10 {
            bench.host.emulator.step();
            assert!(bench.host.emulator.is_resetting());
            assert_eq!(bench.host.read(CSTS) & RDY, RDY);
            assert_eq!(bench.host.read(CC), 0);
        }
        // Again, and still nothing is forgotten.
        bench.host.emulator.reset();
        assert!(bench.host.emulator.is_resetting());
        bench.report(tag, Status::ABORT_REQUESTED, 0);
        bench.host.emulator.step();
        assert!(!bench.host.emulator.is_resetting());
        assert_eq!(bench.host.read(CSTS), 0);
        bench.host.emulator.config_write(4, &[0x06, 0x00]);
        bench.host.enable();
        bench.host.create_queue(1, 64);
        let tag = bench.start();
        bench.report(tag, Status::SUCCESS, 0);
        bench.host.emulator.step();
        assert!(bench.host.take(1).is_some());
    }
}

/// Where the PCI Express capability is.
fn express(host: &Host) -> u64 {
    let byte = |at: u64| {
        let mut byte = [0];
        host.emulator.config_read(at, &mut byte);
        byte[0]
    };
    let mut at = u64::from(byte(0x34));
    while byte(at) != 0x10 {
        at = u64::from(byte(at + 1));
        assert_ne!(at, 0, "there is one");
    }
    at
}

#[test]
fn a_controller_that_failed_forgets_nothing() {
    let mut bench = bench();
    let tag = bench.start();
    // An invalid CC.MPS would not do: enabled while it stops.
    bench.host.write(CC, 0);
    bench.host.write(CC, 1);
    assert_eq!(bench.host.read(CSTS) & CFS, CFS);
    bench.host.write(CC, 0);
    for _ in 0..10 {
        bench.host.emulator.step();
        assert_ne!(bench.host.read(CSTS), 0);
    }
    bench.report(tag, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert_eq!(bench.host.read(CSTS), 0);
}

#[test]
fn a_queue_is_deleted_when_its_commands_have_ended() {
    let mut bench = bench();
    let tag = bench.start();
    bench.host.submit(0, with(command(0x00, 0), 10, 1));
    for _ in 0..10 {
        bench.host.emulator.step();
        assert!(bench.host.take(0).is_none(), "the queue's memory is in use");
    }
    bench.report(tag, Status::SUCCESS, 0);
    bench.host.emulator.step();
    bench.host.emulator.step();
    assert_eq!(bench.host.take(0).expect("deleted").status, 0);
}

#[test]
fn data_is_where_the_prps_say() {
    let mut bench = bench();
    let memory = bench.host.memory(64 << 10);
    let base = memory.iova().0;
    // A list of pages, every other one.
    for entry in 0..6u64 {
        let page = base + 0x4000 + entry * 0x2000;
        memory
            .write_bytes(0x1008 + entry as usize * 8, &page.to_le_bytes())
            .unwrap();
    }
    let length = 0x1000 - 0x10 + 5 * 0x1000 + 0x200;
    let read = |prp1, prp2, length| {
        let mut entry = with(command(READ, 1), 12, length);
        entry[10] = 0;
        with_prps(entry, prp1, prp2)
    };
    let run = |bench: &mut Bench, entry| {
        bench.host.submit(1, entry);
        bench.host.emulator.step();
        bench.script().segments.clone().unwrap()
    };
    let segments = run(&mut bench, read(base + 0x10, base + 0x1008, length)).unwrap();
    let places: Vec<(u64, u32)> = segments
        .iter()
        .map(|one| (one.offset, one.length))
        .collect();
    assert_eq!(places[0], (0x10, 0xff0));
    assert_eq!(places[1], (0x4000, 0x1000));
    assert_eq!(places[6], (0xe000, 0x200));
    assert_eq!(places.len(), 7);
    // Neighbours are joined.
    let segments = run(&mut bench, read(base, base + 0x1000, 0x2000)).unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0].length, 0x2000);
    // But not those of another mapping, which only look so.
    let other = bench.host.memory(64 << 10);
    let entry = read(base, other.iova().0 + 0x1000, 0x2000);
    let segments = run(&mut bench, entry).unwrap();
    assert_eq!(segments.len(), 2);
    assert_eq!((segments[1].offset, segments[1].length), (0x1000, 0x1000));
    for (prp1, prp2, length, status) in [
        (base + 1, 0, 512, Status::PRP_OFFSET_INVALID),
        (
            base + 0xe00,
            base + 0x1200,
            4096,
            Status::PRP_OFFSET_INVALID,
        ),
        (base, base + 0x1004, 0x3000, Status::PRP_OFFSET_INVALID),
        (1 << 40, 0, 512, Status::DATA_TRANSFER_ERROR),
        (base, 1 << 40, 0x2000, Status::DATA_TRANSFER_ERROR),
        (base, 1 << 40, 0x3000, Status::DATA_TRANSFER_ERROR),
        (
            other.iova().0 + 0xf000,
            other.iova().0 + 0x10000,
            0x2000,
            Status::DATA_TRANSFER_ERROR,
        ),
    ] {
        let refused = run(&mut bench, read(prp1, prp2, length));
        assert_eq!(refused, Err(status), "{prp1:x} {prp2:x}");
    }
}

#[test]
fn the_handler_has_the_last_word_on_pages() {
    let mut bench = bench();
    let (_, page) = bench.host.identify(1, 0);
    assert_eq!(page[77], 3);
    let (_, page) = bench.host.log(2, 512, 0, 0);
    assert_eq!(page[5], 77);
    assert_eq!(u32_at(&page, 0) & 0xff, 0, "the rest is the front end's");
}

#[test]
fn admin_commands_are_the_handlers_too() {
    let mut bench = bench();
    assert_eq!(
        bench.host.refused(0, command(0xc1, 0)),
        0x001,
        "the front end knows it not"
    );
    bench.script().vendor = Some(Handling::Complete {
        status: Status::SUCCESS,
        result: 5,
    });
    assert_eq!(bench.host.admin(command(0xc1, 0)), 5);
    bench.script().vendor = Some(Handling::Taken);
    bench.host.submit(0, command(0xc1, 0));
    bench.host.emulator.step();
    assert!(bench.host.take(0).is_none());
    let tag = bench.script().taken[0].tag;
    bench.report(tag, Status::SUCCESS, 6);
    bench.host.emulator.step();
    assert_eq!(bench.host.take(0).expect("done").result, 6);
    assert!(bench.script().seen.contains(&0x06) || bench.script().seen.contains(&0x05));
}

#[test]
fn a_shutdown_is_complete_when_the_handler_says_so() {
    let bench = bench();
    let now = bench.host.read(CC);
    bench.host.write(CC, now | 1 << 14);
    // Again and again: one is enough.
    for _ in 0..10 {
        bench.host.write(CC, now);
        bench.host.write(CC, now | 1 << 14);
    }
    assert_eq!(bench.script().shut_downs.len(), 1);
    let tag = bench.script().shut_downs[0];
    for _ in 0..10 {
        bench.host.emulator.step();
        assert_eq!(bench.host.read(CSTS) >> 2 & 3, 1, "occurring");
    }
    bench.report(tag, Status::SUCCESS, 0);
    bench.host.emulator.step();
    assert_eq!(bench.host.read(CSTS) >> 2 & 3, 2, "complete");
    // One that is disabled has nothing to make durable, and may be enabled at once.
    bench.host.write(CC, 0);
    bench.host.write(CC, 1 << 14);
    assert_eq!(bench.script().shut_downs.len(), 1);
}

#[test]
fn more_commands_than_slots_wait() {
    // Nothing is lost or mixed up however long commands stay: a thousand rounds of colliding identifiers.
    let mut bench = bench();
    let mut outstanding: Vec<FetchedCommand> = Vec::new();
    let mut answered = 0;
    for round in 0..1000u32 {
        let mut entry = command(FLUSH, 1);
        // All with the same identifier.
        entry[0] |= 7 << 16;
        entry[10] = round;
        bench.host.submit_raw(1, entry);
        bench.host.emulator.step();
        let mut script = bench.script();
        outstanding.append(&mut script.taken);
        let tags: std::collections::BTreeSet<u32> = outstanding.iter().map(|one| one.tag).collect();
        assert_eq!(tags.len(), outstanding.len(), "no two have the same");
        if outstanding.len() == 20 {
            for one in outstanding.drain(..).rev() {
                script.report.push(HandlerCompletion {
                    tag: one.tag,
                    status: Status::SUCCESS,
                    result: one.entry[5] & 0xffff_ffff,
                });
            }
        }
        drop(script);
        bench.host.emulator.step();
        while let Some(done) = bench.host.take(1) {
            assert_eq!(done.cid, 7);
            answered += 1;
        }
    }
    assert_eq!(answered, 1000);
    assert!(bench.host.emulator.doorbells()[2].load(Ordering::Relaxed) < 64);
}
