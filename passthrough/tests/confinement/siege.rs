//! One client against all the others, the device, and the server.

use crate::common::before::Before;
use crate::common::bodies::{Bodies, View};
use crate::common::honest::Honest;
use crate::common::judge::{Breach, Piece};
use crate::common::random::Random;
use crate::common::siege::{self, BATCH, COMPARE, NAMESPACES, ORDINARY, SEAM, UNSETTLING};
use crate::common::world::{Lent, World};
use crate::common::{Dwords, seeded};

/// The seat of the client that attacks.
const ACTING: usize = 0;
/// The seat of one that does nothing.
const BYSTANDER: usize = 1;
const DEVICE: &str = "nsids=1/2M:2/2M:3/2M:7/2M,serial=REALSERIAL42,stepped";

fn piece(nsid: u32, first: u64, blocks: u64) -> Piece {
    Piece {
        nsid,
        first,
        blocks,
    }
}

/// How the attacker is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// The device reaches its memory.
    Shared,
    /// Its data is copied.
    Bounce,
    /// It was granted nothing but to read, and is only observed: it may do to its own blocks whatever can be granted.
    Observed,
}

pub(crate) fn lent(held: Held) -> Vec<Lent> {
    let ordinary = || match held {
        Held::Observed => vec!["read"],
        _ => ORDINARY.to_vec(),
    };
    let bounce = held == Held::Bounce;
    vec![
        Lent {
            name: "attacker-alpha",
            namespaces: vec![
                (
                    1,
                    vec![piece(1, 1000, 1000), piece(1, 3000, 100)],
                    ordinary(),
                ),
                (2, vec![piece(2, 500, 500)], ordinary()),
            ],
            bounce,
            more: match held {
                Held::Observed => "mode = \"observe\"",
                _ => "",
            },
        },
        // Right beside the first, on both sides.
        Lent {
            name: "bystander-zeta",
            namespaces: vec![
                (
                    1,
                    vec![piece(1, 2000, 500), piece(3, 0, 100)],
                    vec!["read", "write"],
                ),
                (2, vec![piece(1, 900, 100)], ORDINARY.to_vec()),
            ],
            bounce: false,
            more: "",
        },
    ]
}

/// A client that attacks, and all that is watched meanwhile.
#[derive(Debug)]
pub(crate) struct Siege {
    world: World,
    bodies: Bodies,
    random: Random,
    sent: u64,
    compared: u64,
    before: Before,
    /// Commands that succeeded although they were bent.
    succeeded: u64,
    held: Held,
}

impl Siege {
    pub(crate) fn new(held: Held, what: &str) -> Siege {
        let mut random = seeded(what);
        let mut world = World::new(DEVICE, &lent(held));
        if held == Held::Observed {
            world
                .judge
                .also(ACTING, &[0x00, 0x01, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19]);
        }
        let mut foreign_addresses: Vec<u64> =
            world.judge.mappings().iter().map(|at| at.0).collect();
        foreign_addresses.extend(world.judge.lent(BYSTANDER).iter().map(|at| at.0));
        let view = View {
            namespaces: vec![(1, 1100, vec![SEAM]), (2, 500, vec![])],
            foreign_namespaces: vec![3, 4, 7, 77],
            real_blocks: vec![500, 900, 999, 1000, 2000, 2499, 3000, 3100, 4095, 4096],
            foreign_addresses,
        };
        let before = Before::of(&mut world, BYSTANDER);
        Siege {
            bodies: Bodies::new(random.fork(), view),
            random,
            world,
            sent: 0,
            compared: 0,
            before,
            succeeded: 0,
            held,
        }
    }

    /// Every opcode of both kinds of queue, with so many bodies; an honest client's work in between.
    pub(crate) fn run(mut self, each: u64) {
        for qid in [1, 0] {
            for opcode in 0..=u8::MAX {
                if opcode.is_multiple_of(64) {
                    self.honest();
                }
                let mut left = each;
                while left > 0 {
                    let count = left.min(BATCH);
                    self.batch(qid, opcode, count);
                    left -= count;
                    if self.sent - self.compared >= COMPARE {
                        self.compare();
                    }
                }
            }
        }
        // Now all that may pass, mixed.
        for _ in 0..(each * 64).div_ceil(BATCH) {
            self.mixed();
            if self.sent - self.compared >= COMPARE {
                self.compare();
            }
        }
        self.honest();
        self.compare();
        let seen = &self.world.judge.seen;
        println!(
            "{} commands sent, {} succeeded; the device saw of each opcode: {seen:?}",
            self.sent, self.succeeded
        );
        for opcode in [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x19] {
            assert!(
                seen.contains_key(&opcode),
                "no command {opcode:#x} came to the device: nothing was tried"
            );
        }
    }

    /// An honest client's work in the attacker's place.
    fn honest(&mut self) {
        // One that poisons its own blocks reads them no more.
        if self.held == Held::Observed {
            return;
        }
        let mut step = self.world.stepper(&self.world.seats[ACTING].emulator);
        let client = &mut self.world.seats[ACTING].client;
        client.start(&mut step);
        let mut honest = Honest::new(client, &mut step, &NAMESPACES, self.random.fork());
        let kinds = honest.everything(SEAM);
        assert!(kinds >= 60, "{kinds} kinds of commands");
        client.start(&mut step);
        let breaches = self.world.judge.look(&[ACTING]);
        self.verdict(breaches, "honest work", &[]);
    }

    fn verdict(&self, breaches: Vec<Breach>, what: &str, sent: &[(u16, Dwords)]) {
        if breaches.is_empty() {
            return;
        }
        let entries: Vec<_> = sent
            .iter()
            .map(|(cid, entry)| format!("{cid:#x}: {entry:x?}"))
            .collect();
        panic!(
            "after {} commands, {what}:\n{}\nin flight were\n{}",
            self.sent,
            breaches.join("\n"),
            entries.join("\n")
        );
    }

    /// Sends commands of one opcode together, and looks at all that came of it.
    fn batch(&mut self, qid: u16, opcode: u8, count: u64) {
        self.together(qid, count, |_| opcode);
    }

    /// Sends commands together that may pass, most of them right.
    fn mixed(&mut self) {
        let granted: Vec<u8> = self
            .world
            .judge
            .grant(ACTING)
            .opcodes
            .iter()
            .copied()
            .collect();
        self.together(1, BATCH, |random| random.one(&granted));
    }

    fn together(&mut self, qid: u16, count: u64, opcode: impl Fn(&mut Random) -> u8) {
        siege::refresh(&self.world.seats[ACTING].client, &mut self.random);
        let mut step = self.world.stepper(&self.world.seats[ACTING].emulator);
        let client = &mut self.world.seats[ACTING].client;
        let (bodies, random) = (&mut self.bodies, &mut self.random);
        let sent = siege::send(client, bodies, random, (qid, count), opcode, &mut step);
        let done = client.drain(qid, &mut step);
        let granted = &self.world.judge.grant(ACTING).opcodes;
        let ends = siege::ends(qid, &sent, &done, |opcode| granted.contains(&opcode));
        self.succeeded += ends.succeeded.len() as u64;
        self.sent += count;
        let mut breaches = self.world.judge.look(&[ACTING]);
        breaches.extend(self.world.learned(ACTING));
        if qid == 0 {
            breaches.extend(self.world.learned_texts(ACTING));
        }
        let client = &mut self.world.seats[ACTING].client;
        if !client.guards_live() {
            breaches.push("memory that no command names has changed".to_owned());
        }
        if ends.unsettled || client.failed() {
            client.forget(0);
            client.start(&mut step);
            breaches.extend(self.world.judge.look(&[ACTING]));
        }
        self.verdict(breaches, &format!("queue {qid}"), &sent);
    }

    /// Compares all that this client can have no part in with what it was.
    fn compare(&mut self) {
        self.compared = self.sent;
        let breaches = self.before.changes(&mut self.world, ACTING);
        self.verdict(breaches, "comparing everything", &[]);
    }

    /// The same bodies for two namespaces, of which one exists and belongs to others and one does not: the same answers, byte for byte.
    pub(crate) fn hides(mut self, nsids: [u32; 2], each: u64) {
        let mut step = self.world.stepper(&self.world.seats[ACTING].emulator);
        let mut told = 0;
        for qid in [1, 0] {
            for opcode in 0..=u8::MAX {
                // Its effects would differ by what was there before.
                if qid == 0 && UNSETTLING.contains(&opcode) {
                    continue;
                }
                for _ in 0..each.div_ceil(4) {
                    siege::refresh(&self.world.seats[ACTING].client, &mut self.random);
                    let client = &mut self.world.seats[ACTING].client;
                    let mut entry = match qid {
                        0 => self.bodies.admin(client, opcode),
                        _ => self.bodies.io(client, opcode),
                    };
                    let answers = nsids.map(|nsid| {
                        entry[1] = nsid;
                        let done = client.run(qid, entry, &mut step);
                        (done.status, done.dnr, done.result)
                    });
                    assert_eq!(answers[0], answers[1], "queue {qid}: {entry:x?}");
                    told += u64::from(answers[0].0 == 0x00b);
                }
            }
        }
        assert!(told > 0, "Invalid Namespace or Format was never the answer");
        let breaches = self.world.judge.look(&[ACTING]);
        self.verdict(breaches, "namespaces of others", &[]);
    }
}
