//! A client whose other thread changes everything that the server reads, at the moment at which it is read: entries, PRP lists and range lists.
//!
//! Whatever the server took for the command must be what it checked. Each command is a try: 10 million, a hundredth of them in an ordinary run.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::client::{Client, pages};
use common::judge::Piece;
use common::memory::{GuestMemory, PAGE};
use common::random::Random;
use common::world::{Lent, World};
use common::{command, seeded, whole, with, with_blocks, with_prps};

const ACTING: usize = 0;
const BLOCKS: u64 = 600;
/// Commands in flight at once: few, so that each of them is changed often.
const TOGETHER: u64 = 8;
/// Entries of the queue.
const ENTRIES: u32 = 9;
/// Batches between two looks through all of the memory and the medium.
const LOOK: u64 = 256;

/// Pages of PRP lists, then of ranges for Dataset Management, then of sources for Copy.
const PRP_LISTS: [usize; 3] = [pages::LISTS, pages::LISTS + 1, pages::LISTS + 2];
const RANGES: usize = pages::LISTS + 4;
const SOURCES: usize = pages::LISTS + 5;

fn piece(nsid: u32, first: u64, blocks: u64) -> Piece {
    Piece {
        nsid,
        first,
        blocks,
    }
}

fn world(bounce: bool) -> World {
    let all = vec![
        "read",
        "write",
        "flush",
        "compare",
        "write-zeroes",
        "deallocate",
        "verify",
        "copy",
    ];
    let lent = [
        Lent {
            name: "racer",
            namespaces: vec![(
                1,
                vec![piece(1, 1000, 500), piece(1, 3000, 100)],
                all.clone(),
            )],
            bounce,
            more: "",
        },
        Lent {
            name: "victim",
            namespaces: vec![(1, vec![piece(1, 1500, 500)], all)],
            bounce: false,
            more: "",
        },
    ];
    World::new("nsids=1/2M:2/2M,stepped", &lent)
}

/// What the other thread knows.
#[derive(Clone)]
struct Targets {
    /// Addresses that are right for data.
    good: Vec<u64>,
    /// Addresses that lead to somebody else, or nowhere.
    evil: Vec<u64>,
    queue: u64,
    lists: [u64; 3],
    ranges: u64,
    sources: u64,
}

fn targets(world: &World) -> Targets {
    let client = &world.seats[ACTING].client;
    let mut evil: Vec<u64> = world
        .judge
        .lent(1)
        .iter()
        .map(|at| at.0 + PAGE as u64)
        .collect();
    evil.extend(world.judge.mappings().iter().map(|at| at.0));
    evil.extend([
        0,
        client.page(pages::ROM),
        client.page(pages::END),
        !0xfff,
        client.page(pages::DATA) + 1,
    ]);
    Targets {
        good: (pages::DATA..pages::DATA_END)
            .map(|page| client.page(page))
            .collect(),
        evil,
        queue: client.page(pages::SUBMISSION),
        lists: PRP_LISTS.map(|page| client.page(page)),
        ranges: client.page(RANGES),
        sources: client.page(SOURCES),
    }
}

fn address(random: &mut Random, targets: &Targets) -> u64 {
    if random.percent(35) {
        random.one(&targets.evil)
    } else {
        random.one(&targets.good)
    }
}

fn first_block(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => BLOCKS + random.below(1000),
        1 => random.one(&[490, 499, 500, 595, 599, 1000, 1500, u64::MAX - 3]),
        _ => random.below(BLOCKS - 16),
    }
}

/// Changes one word of what the server reads.
fn change(memory: &GuestMemory, random: &mut Random, targets: &Targets) {
    match random.below(8) {
        // An entry.
        0..=3 => {
            let entry = targets.queue + random.below(ENTRIES.into()) * 64;
            match random.below(8) {
                0 => {
                    // Its opcode, flags and namespace; never its identifier, by which the client knows it.
                    let word = memory.at(entry);
                    let now = word.load(Ordering::Relaxed);
                    let low = random.one(&[
                        0x02u64, 0x02, 0x02, 0x01, 0x01, 0x05, 0x08, 0x09, 0x0c, 0x19, 0x04, 0xc1,
                        0x4002, 0x0102,
                    ]);
                    let nsid = random.one(&[1u64, 1, 1, 1, 2, 3, 0, u32::MAX.into()]);
                    let new = now & 0xffff_0000 | low | nsid << 32;
                    // Where the client has just written another identifier, that one stays.
                    let _ = word.compare_exchange(now, new, Ordering::Relaxed, Ordering::Relaxed);
                }
                1 => memory.store(entry + 24, address(random, targets)),
                2 | 3 => {
                    let prp2 = if random.percent(50) {
                        random.one(&targets.lists)
                    } else {
                        address(random, targets)
                    };
                    memory.store(entry + 32, prp2);
                }
                4 | 5 => memory.store(entry + 40, first_block(random)),
                6 => {
                    let count = random.one(&[0u64, 3, 7, 15, 31, 100, 255, 0xffff]);
                    let flags = random.one(&[0u64, 0, 0, 1 << 23, 1 << 20]);
                    memory.store(entry + 48, count | flags);
                }
                _ => memory.store(entry + 16, random.one(&[0, 0, 0, 0x1000])),
            }
        }
        4 | 5 => {
            let list = random.one(&targets.lists);
            let at = random.below(24) * 8;
            memory.store(list + at, address(random, targets));
        }
        6 => {
            let range = targets.ranges + random.below(8) * 16;
            if random.percent(50) {
                memory.store(range + 8, first_block(random));
            } else {
                memory.store(
                    range,
                    random.one(&[1u64, 8, 16, 700, u32::MAX.into()]) << 32,
                );
            }
        }
        _ => {
            let source = targets.sources + random.below(4) * 32;
            match random.below(4) {
                0 => memory.store(source, random.one(&[0, 0, 1, 2])),
                1 => memory.store(source + 16, random.one(&[0u64, 3, 15, 700])),
                _ => memory.store(source + 8, first_block(random)),
            }
        }
    }
}

/// Sends commands that are right, if nobody changes them.
fn push(client: &mut Client, random: &mut Random, targets: &Targets) {
    let entry = match random.below(8) {
        0..=4 => {
            let opcode = random.one(&[0x02, 0x02, 0x02, 0x01, 0x05]);
            let blocks = random.one(&[1, 8, 16, 24, 40, 100]);
            let entry = with_blocks(command(opcode, 1), random.below(BLOCKS - 100), blocks);
            let prp2 = match blocks {
                1 | 8 => 0,
                16 => random.one(&targets.good),
                _ => random.one(&targets.lists),
            };
            with_prps(entry, random.one(&targets.good), prp2)
        }
        5 => {
            let entry = with(with(command(0x09, 1), 10, 3), 11, 4);
            with_prps(entry, targets.ranges, 0)
        }
        6 => {
            let mut entry = command(0x19, 1);
            entry[10] = random.below(500) as u32;
            entry[12] = 1;
            with_prps(entry, targets.sources, 0)
        }
        _ => with_blocks(
            command(random.one(&[0x08, 0x0c]), 1),
            random.below(BLOCKS - 16),
            16,
        ),
    };
    client.push(1, entry);
}

fn race(bounce: bool, tries: u64, what: &str) {
    let mut random = seeded(what);
    let mut world = world(bounce);
    let mut step = world.stepper(&world.seats[ACTING].emulator);
    // A queue as short as can be, so that few places are changed often.
    let client = &mut world.seats[ACTING].client;
    client.run(0, with(command(0x00, 0), 10, 1), &mut step);
    client.run(0, with(command(0x04, 0), 10, 1), &mut step);
    client.create_queue(1, ENTRIES, &mut step);
    let targets = targets(&world);
    let memory = std::sync::Arc::clone(&world.seats[ACTING].client.memory);
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut other = random.fork();
    let started = Instant::now();
    let (mut sent, mut succeeded) = (0, 0);
    thread::scope(|scope| {
        let (for_other, stopped, counted) = (targets.clone(), &stop, &changes);
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    change(&memory, &mut other, &for_other);
                }
                counted.fetch_add(64, Ordering::Relaxed);
            }
        });
        /// The other thread ends when a check fails, too.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _ends = Ends(&stop);
        let mut batches = 0;
        while sent < tries {
            let client = &mut world.seats[ACTING].client;
            for _ in 0..TOGETHER {
                push(client, &mut random, &targets);
            }
            client.ring(1);
            let done = client.drain(1, &mut step);
            assert_eq!(done.len() as u64, TOGETHER, "commands do not end");
            sent += TOGETHER;
            succeeded += done.iter().filter(|done| done.status == 0).count();
            batches += 1;
            let mut breaches = world.judge.look(&[ACTING]);
            if batches % LOOK == 0 || sent >= tries {
                breaches.extend(world.judge.compare_media(&[ACTING]));
                breaches.extend(world.learned(ACTING));
                assert!(world.seats.iter().all(|seat| seat.client.guards_live()));
            }
            assert!(
                breaches.is_empty(),
                "after {sent} commands:\n{}",
                breaches.join("\n")
            );
        }
    });
    let changes = changes.load(Ordering::Relaxed);
    println!(
        "{what}: {sent} commands, of which {succeeded} succeeded, and {changes} changes in {:?}; the device saw {:?}",
        started.elapsed(),
        world.judge.seen
    );
    // Both sides did something.
    assert!(changes > sent / 4 && succeeded > 0);
}

#[test]
fn what_is_changed_in_flight_changes_nothing_that_was_checked() {
    race(false, whole("NVME_VFIO_SOAK", 10_000_000), "races");
}

#[test]
fn what_is_changed_in_flight_changes_nothing_by_copies() {
    race(true, whole("NVME_VFIO_SOAK", 2_000_000), "races by copies");
}
