//! The judge of the confinement test sees what it is there for: on a device that is lent without any check, each kind of breach is told.

mod common;

use std::sync::Arc;

use common::client::{Client, pages};
use common::honest::Honest;
use common::judge::{BLOCK, Grant, Judge, Piece};
use common::medium::Medium;
use common::memory::lend;
use common::random::Random;
use common::{Dwords, command, seeded, with, with_blocks, with_prps};
use nvme_vfio_emulator::Emulator;

const NOT_MINE: &[Piece] = &[Piece {
    nsid: 1,
    first: 40,
    blocks: 8,
}];
const MINE: &[Piece] = &[
    Piece {
        nsid: 1,
        first: 20,
        blocks: 10,
    },
    Piece {
        nsid: 1,
        first: 30,
        blocks: 10,
    },
];

struct Bench {
    device: Arc<Emulator>,
    judge: Judge,
    client: Client,
    foreign: u64,
    number: usize,
}

/// A client that has the whole device, of which it was granted a part.
fn bench() -> Bench {
    let medium = Medium::default();
    let config = "namespaces=2,size=64K,stepped".parse().unwrap();
    let device = Emulator::with_backend(config, medium.backend()).unwrap();
    let mut client = Client::new(Arc::clone(&device), 1 << 32);
    // Its rings and lists stand for the server's memory here, the second half of its data for its own.
    lend(
        &device.iommu(),
        &client.memory,
        client.memory.runs[0],
        client.memory.runs[0].guest,
    );
    lend(
        &device.iommu(),
        &client.memory,
        client.memory.runs[2],
        client.memory.runs[2].guest,
    );
    let stepped = Arc::clone(&device);
    client.start(&mut || {
        stepped.step();
    });
    let mut judge = Judge::new(&device, medium.clone());
    let before = judge.mappings();
    lend(
        &device.iommu(),
        &client.memory,
        client.memory.runs[1],
        client.memory.runs[1].guest,
    );
    let number = judge.know(
        Grant::new(
            "mine",
            &[(1, MINE)],
            &[0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x19],
        ),
        &before,
    );
    let other = Client::new(Arc::clone(&device), 2 << 32);
    let before = judge.mappings();
    lend(
        &device.iommu(),
        &other.memory,
        other.memory.runs[1],
        other.memory.runs[1].guest,
    );
    judge.know(Grant::new("other", &[(1, NOT_MINE)], &[0x02]), &before);
    let foreign = other.memory.runs[1].guest;
    // Its memory stays mapped for as long as the device lives.
    std::mem::forget(other);
    let mut bench = Bench {
        device,
        judge,
        client,
        foreign,
        number,
    };
    bench.run(1, bench.read(20, 1));
    bench.judge.learn_queues(number);
    bench.judge.rebase();
    bench
}

impl Bench {
    fn data(&self) -> u64 {
        self.client.page(pages::SEAM)
    }

    fn read(&self, first: u64, blocks: u32) -> Dwords {
        with_prps(with_blocks(command(0x02, 1), first, blocks), self.data(), 0)
    }

    fn run(&mut self, qid: u16, entry: Dwords) {
        let device = Arc::clone(&self.device);
        let mut step = || {
            device.step();
        };
        self.client.run(qid, entry, &mut step);
    }

    /// What the judge says of a command.
    fn verdict(&mut self, qid: u16, entry: Dwords) -> String {
        self.run(qid, entry);
        let mut breaches = self.judge.look(&[self.number]);
        breaches.extend(self.judge.compare_media(&[self.number]));
        breaches.join("\n")
    }
}

fn told(entry: impl Fn(&Bench) -> Dwords, qid: u16, words: &[&str]) {
    let mut bench = bench();
    let entry = entry(&bench);
    let verdict = bench.verdict(qid, entry);
    for word in words {
        assert!(
            verdict.contains(word),
            "{entry:x?}: '{word}' is missing in: {verdict}"
        );
    }
}

#[test]
fn what_is_granted_is_no_breach() {
    let mut bench = bench();
    let data = bench.data();
    let entries = [
        bench.read(20, 8),
        // Over the seam of two pieces that adjoin.
        bench.read(28, 4),
        with_prps(with_blocks(command(0x01, 1), 39, 1), data, 0),
        with_blocks(command(0x08, 1), 20, 20),
        with_blocks(command(0x0c, 1), 20, 20),
        command(0x00, 1),
    ];
    for entry in entries {
        assert_eq!(bench.verdict(1, entry), "", "{entry:x?}");
    }
}

#[test]
fn blocks_outside_are_told() {
    told(
        |bench| bench.read(19, 1),
        1,
        &["Read: namespace 1, 1 blocks from 19", "blocks 19 to 20"],
    );
    told(|bench| bench.read(39, 2), 1, &["blocks 39 to 41"]);
    told(|bench| with(bench.read(20, 1), 1, 2), 1, &["namespace 2"]);
    told(
        |_| with_blocks(command(0x08, 1), 40, 1),
        1,
        &["Changed: namespace 1", "blocks 40 to 41"],
    );
    told(
        |_| with_blocks(command(0x0c, 1), 10, 1),
        1,
        &["Read: namespace 1"],
    );
    told(|_| command(0x00, u32::MAX), 1, &["namespace 0 was flushed"]);
    // The whole namespace, at once.
    told(
        |_| with(with_blocks(command(0x08, 1), 20, 1), 12, 1 << 23),
        1,
        &["CDW12"],
    );
}

#[test]
fn what_changes_outside_is_told() {
    let mut bench = bench();
    bench.client.memory.store(bench.data(), 0xdead);
    let entry = with_prps(with_blocks(command(0x01, 1), 41, 1), bench.data(), 0);
    assert!(
        bench
            .verdict(1, entry)
            .contains("block Some(41) outside of the slice has changed")
    );
}

#[test]
fn lists_that_name_blocks_outside_are_told() {
    let dataset = |bench: &Bench| {
        let list = bench.client.page(pages::LISTS);
        bench.client.memory.store(list, 2 << 32);
        bench.client.memory.store(list + 8, 39);
        with_prps(with(command(0x09, 1), 11, 4), list, 0)
    };
    told(dataset, 1, &["Changed: namespace 1, blocks 39 to 41"]);
    let copy = |bench: &Bench| {
        let list = bench.client.page(pages::LISTS);
        bench.client.memory.store(list + 8, 15);
        bench.client.memory.store(list + 16, 0);
        with_prps(with(command(0x19, 1), 10, 20), list, 0)
    };
    told(copy, 1, &["Read: namespace 1, blocks 15 to 16"]);
}

#[test]
fn commands_that_never_pass_are_told() {
    told(
        |_| with_blocks(command(0x04, 1), 20, 1),
        1,
        &["never passes"],
    );
    told(|_| command(0xc1, 1), 1, &["never passes"]);
    told(|_| with(command(0x09, 0), 10, 0x06), 0, &["admin command"]);
    told(
        |_| with(command(0x80, 2), 10, 0),
        0,
        &["admin command", "namespace 2 was erased"],
    );
    told(|_| with(command(0x00, 0), 10, 9), 0, &["admin command"]);
}

#[test]
fn bits_that_nobody_rebuilds_are_told() {
    told(|bench| with(bench.read(20, 1), 13, 1), 1, &["CDW13"]);
    told(|bench| with(bench.read(20, 1), 4, 0x1000), 1, &["metadata"]);
    told(|bench| with(bench.read(20, 1), 2, 1), 1, &["CDW2"]);
    told(
        |bench| {
            let entry = bench.read(20, 1);
            with(entry, 0, entry[0] | 1 << 8)
        },
        1,
        &["FUSE"],
    );
    told(
        |bench| {
            let entry = bench.read(20, 1);
            with(entry, 12, entry[12] | 1 << 20)
        },
        1,
        &["CDW12"],
    );
}

#[test]
fn memory_of_others_is_told() {
    told(
        |bench| with_prps(bench.read(20, 1), bench.foreign, 0),
        1,
        &["memory of other"],
    );
    told(
        |bench| with_prps(bench.read(20, 1), 7 << 32, 0),
        1,
        &["IommuFault"],
    );
    // A list that the client could change while it is read.
    told(
        |bench| {
            let data = bench.data();
            for entry in 0..4 {
                bench
                    .client
                    .memory
                    .store(data + entry * 8, data + 0x1000 * (entry + 1));
            }
            with_prps(bench.read(20, 20), data + 0x2000, data)
        },
        1,
        &["PrpList"],
    );
}

#[test]
fn what_is_not_a_command_is_told() {
    let mut bench = bench();
    bench.device.register_write(0x24, 4, 0);
    bench.device.config_write(4, &[6]);
    let said = bench.judge.look(&[bench.number]).join("\n");
    assert!(
        said.contains("RegisterWrite") && said.contains("ConfigWrite"),
        "{said}"
    );
}

#[test]
fn canaries_and_guards_are_watched() {
    let bench = bench();
    assert!(bench.client.guards_live());
    bench
        .client
        .memory
        .store(bench.client.page(pages::GUARD), 0);
    assert!(!bench.client.guards_live());
    assert!(Random::new(1).below(BLOCK) < BLOCK);
}

/// The honest client asks for nothing that an ordinary controller does not do.
#[test]
fn the_honest_client_is_honest() {
    let medium = Medium::default();
    let config = "nsids=1/550K:2/250K,stepped".parse().unwrap();
    let device = Emulator::with_backend(config, medium.backend()).unwrap();
    let mut client = Client::new(Arc::clone(&device), 1 << 32);
    for run in &client.memory.runs {
        lend(&device.iommu(), &client.memory, *run, run.guest);
    }
    let mut step = || {
        device.step();
    };
    client.start(&mut step);
    let namespaces = [(1, 1100), (2, 500)];
    let mut honest = Honest::new(&mut client, &mut step, &namespaces, seeded("honest"));
    let kinds = honest.everything(1000);
    assert!(kinds >= 60, "{kinds} kinds of commands");
    assert!(client.guards_live());
}
