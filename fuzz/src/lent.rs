//! A client's controller that is lent: all that lies between a client's entries and the real controller.
//!
//! An input is what a client does: commands whose every field it chooses, with their lists, changes of what is in flight, doorbells, steps. The real controller is emulated; what
//! it did is read from its trace by a judge who knows what the client was granted, and nothing of decoders or policies.

use std::cell::RefCell;

use nvme_vfio_attacker::bodies::{Bodies, View};
use nvme_vfio_attacker::client::pages;
use nvme_vfio_attacker::random::Random;
use nvme_vfio_attacker::siege::{ORDINARY, ORDINARY_OPCODES, SEAM, UNSETTLING, ends, refresh};

use common::before::Before;
use common::judge::{Breach, Piece};
use common::world::{Lent, World};

#[path = "../../passthrough/tests/common/mod.rs"]
mod common;

const DEVICE: &str = "nsids=1/2M:2/2M:3/1M,serial=REALSERIAL42,stepped";
const ATTACKER: usize = 0;
const BYSTANDER: usize = 1;
/// Most commands of one input on each queue: fewer than its queue has room for.
const COMMANDS: usize = 48;
/// Admin commands after which queues may lie elsewhere, or their doorbells: Delete and Create I/O Submission and Completion Queue, Doorbell Buffer Config.
const REMAKING: [u8; 5] = [0x00, 0x01, 0x04, 0x05, 0x7c];
/// Steps at the end of an input whose completions are not waited for.
const REST: usize = 64;
/// Inputs between two comparisons of everything.
const COMPARE: u64 = 64;

fn piece(nsid: u32, first: u64, blocks: u64) -> Piece {
    Piece {
        nsid,
        first,
        blocks,
    }
}

/// One that attacks, and one whose blocks lie on both sides of the first's.
fn clients() -> Vec<Lent> {
    vec![
        Lent {
            name: "attacker-alpha",
            namespaces: vec![
                (
                    1,
                    vec![piece(1, 1000, 1000), piece(1, 3000, 100)],
                    ORDINARY.to_vec(),
                ),
                (2, vec![piece(2, 500, 500)], vec!["read", "write", "flush"]),
            ],
            bounce: false,
            more: "",
        },
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

struct Lending {
    world: World,
    view: View,
    inputs: u64,
    before: Before,
}

thread_local! {
    /// Made once: each input begins with a reset of the client's controller and with cleared lists and data.
    static LENDING: RefCell<Lending> = RefCell::new(Lending::new());
}

/// A hostile client of a lent controller.
///
/// # Panics
/// Where the client reached, changed or learned what it was not granted, or a command ended that was not sent, ended twice, or did not end.
pub fn lent(data: &[u8]) {
    LENDING.with_borrow_mut(|lending| lending.play(data));
}

impl Lending {
    fn new() -> Lending {
        let mut world = World::new(DEVICE, &clients());
        let mut foreign_addresses: Vec<u64> =
            world.judge.mappings().iter().map(|at| at.0).collect();
        foreign_addresses.extend(world.judge.lent(BYSTANDER).iter().map(|at| at.0));
        let view = View {
            namespaces: vec![(1, 1100, vec![SEAM]), (2, 500, vec![])],
            foreign_namespaces: vec![3, 4, 77],
            real_blocks: vec![500, 900, 999, 1000, 2000, 2499, 3000, 3100, 4095, 4096],
            foreign_addresses,
        };
        let before = Before::of(&mut world, BYSTANDER);
        Lending {
            world,
            view,
            inputs: 0,
            before,
        }
    }

    fn play(&mut self, data: &[u8]) {
        let mut step = self.world.stepper(&self.world.seats[ATTACKER].emulator);
        let client = &mut self.world.seats[ATTACKER].client;
        client.forget(0);
        client.forget(1);
        client.start(&mut step);
        refresh(client, &mut Random::new(1));

        let mut bodies = Bodies::new(Random::of_bytes(data), self.view.clone());
        let mut sent = [Vec::new(), Vec::new()];
        let mut done = [Vec::new(), Vec::new()];
        let (mut stray, mut remade) = (false, false);
        while !bodies.random.is_at_end() {
            match bodies.random.below(16) {
                0 => client.ring(1),
                1 => client.ring(0),
                2 => step(),
                // Not after its queues may have been made anew: entries may be fetched from anywhere in its memory, and completed.
                3 if remade => {}
                3 => {
                    for qid in [0, 1] {
                        while let Some(completion) = client.take(qid) {
                            done[usize::from(qid)].push(completion);
                        }
                    }
                }
                4 => {
                    // What is in flight changes: lists and data.
                    let words = ((pages::DATA_END - pages::LISTS) * 512) as u64;
                    let at = client.page(pages::LISTS) + bodies.random.below(words) * 8;
                    let changed = client.memory.load(at) ^ 1 << bodies.random.below(64);
                    // It may be in a list of pages.
                    if !client.is_spared(changed) {
                        client.memory.store(at, changed);
                    }
                }
                5 => {
                    // Entries, too, whether they were fetched or not.
                    let qid = bodies.random.below(2) as u16;
                    let at = client.next_entry(qid) & !0xfff;
                    let at = at + bodies.random.below(512) * 8;
                    // Dword 0 names the command: the judge would not know it again.
                    let changed = bodies.random.odd();
                    if !at.is_multiple_of(64) && !client.is_spared(changed) {
                        client.memory.store(at, changed);
                        stray = true;
                    }
                }
                choice => {
                    let qid = u16::from(choice < 13);
                    let commands = &mut sent[usize::from(qid)];
                    if commands.len() == COMMANDS {
                        break;
                    }
                    let (opcode, entry);
                    if qid == 0 {
                        opcode = bodies.random.below(256) as u8;
                        entry = bodies.admin(client, opcode);
                    } else {
                        opcode = match bodies.random.below(4) {
                            0 => bodies.random.below(256) as u8,
                            _ => bodies.random.one(ORDINARY_OPCODES),
                        };
                        entry = bodies.io(client, opcode);
                    }
                    commands.push((client.push(qid, entry), entry));
                    remade |= qid == 0 && REMAKING.contains(&opcode);
                }
            }
        }
        for qid in [1, 0] {
            client.ring(qid);
            if !remade {
                done[usize::from(qid)].extend(client.drain(qid, &mut step));
            }
        }
        if remade {
            (0..REST).for_each(|_| step());
        }
        // Events wait, and one that takes its own queues away waits for ever; so may one whose entries have changed.
        let unsettling = |(_, entry): &(u16, [u32; 16])| UNSETTLING.contains(&(entry[0] as u8));
        let loose = stray || remade || client.failed() || sent[0].iter().any(unsettling);
        for (qid, (sent, done)) in (0..).zip(sent.iter().zip(&done)) {
            let ended = |cid: &u16| done.iter().any(|completion| completion.cid == *cid);
            let granted = |opcode| stray || ORDINARY_OPCODES.contains(&opcode);
            if loose {
                let sent: Vec<_> = sent.iter().filter(|(cid, _)| ended(cid)).copied().collect();
                if !stray {
                    let _ = ends(qid, &sent, done, granted);
                }
            } else {
                let _ = ends(qid, sent, done, granted);
            }
        }
        let mut breaches = self.world.judge.look(&[ATTACKER]);
        breaches.extend(self.world.learned(ATTACKER));
        breaches.extend(self.world.learned_texts(ATTACKER));
        if !self.world.seats[ATTACKER].client.guards_live() {
            breaches.push("memory that no command names has changed".to_owned());
        }
        verdict(&breaches);
        self.inputs += 1;
        if self.inputs.is_multiple_of(COMPARE) {
            verdict(&self.before.changes(&mut self.world, ATTACKER));
        }
    }
}

fn verdict(breaches: &[Breach]) {
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}
