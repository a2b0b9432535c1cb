//! Many clients at once: none gets what is another's, none waits for another for long.

mod common;

use std::sync::Arc;

use common::client::{Client, pages};
use common::judge::Piece;
use common::world::{Lent, World};
use common::{command, seeded, whole, with_blocks, with_prps};
use nvme_vfio_emulator::Emulator;

const CLIENTS: usize = 16;
/// Commands of each client that are in flight at once. Their identifiers are 0 to 31, the same for all clients.
const DEPTH: usize = 32;
/// Blocks of each client's slice.
const BLOCKS: u64 = 64;
/// Commands that a client may have fetched in one turn, as the server gives them.
const TURN: u32 = 32;

const NAMES: [&str; CLIENTS] = [
    "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "c13", "c14",
    "c15",
];

fn lent(index: usize, bounce: bool) -> Lent {
    Lent {
        name: NAMES[index],
        namespaces: vec![(
            1,
            vec![Piece {
                nsid: 1,
                first: index as u64 * BLOCKS,
                blocks: BLOCKS,
            }],
            vec!["read", "write"],
        )],
        bounce,
        more: "",
    }
}

/// A command of a client that is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// Wrote these words to its block.
    Write(u64),
    /// Reads what was written before.
    Read(u64),
    /// Of a block outside.
    Refused,
}

/// A client that sends the same identifiers as all others, and knows what must come back.
struct Member {
    number: u64,
    slots: [Sent; DEPTH],
    written: [u64; DEPTH],
    sent: u64,
    done: u64,
}

impl Member {
    fn new(number: usize) -> Member {
        Member {
            number: number as u64,
            slots: [Sent::Nothing; DEPTH],
            written: [0; DEPTH],
            sent: 0,
            done: 0,
        }
    }

    fn page(client: &Client, slot: usize) -> u64 {
        client.page(pages::DATA + slot)
    }

    /// Fills every free slot.
    fn fill(&mut self, client: &mut Client, count: u64) {
        let mut any = false;
        for slot in 0..DEPTH {
            if self.slots[slot] != Sent::Nothing || self.sent == count {
                continue;
            }
            self.sent += 1;
            any = true;
            let page = Self::page(client, slot);
            let value = self.number << 56 | (slot as u64) << 48 | self.sent;
            let (opcode, lba) = match self.sent % 5 {
                0 => {
                    self.slots[slot] = Sent::Refused;
                    (0x02, BLOCKS + self.sent % 7)
                }
                // Only what was written can be read.
                1 | 2 if self.written[slot] != 0 => {
                    client.memory.fill(page, 512, 0);
                    self.slots[slot] = Sent::Read(self.written[slot]);
                    (0x02, slot as u64)
                }
                _ => {
                    client.memory.fill(page, 512, value);
                    self.slots[slot] = Sent::Write(value);
                    (0x01, slot as u64)
                }
            };
            let entry = with_prps(with_blocks(command(opcode, 1), lba, 1), page, 0);
            client.push_as(1, entry, slot as u16);
        }
        if any {
            client.ring(1);
        }
    }

    /// Takes what has ended, and checks each.
    fn take(&mut self, client: &mut Client) {
        let mut any = false;
        while let Some(completion) = client.peek(1) {
            any = true;
            let slot = usize::from(completion.cid);
            let sent = std::mem::replace(&mut self.slots[slot], Sent::Nothing);
            self.done += 1;
            let status = if sent == Sent::Refused { 0x080 } else { 0 };
            assert_eq!(
                completion.status, status,
                "client {}: {sent:?}",
                self.number
            );
            match sent {
                Sent::Nothing => panic!("client {}: {completion:?} of nothing", self.number),
                Sent::Write(value) => self.written[slot] = value,
                Sent::Read(value) => {
                    let page = Self::page(client, slot);
                    for word in 0..64 {
                        let read = client.memory.load(page + word * 8);
                        assert_eq!(
                            read, value,
                            "client {}, slot {slot}, word {word}",
                            self.number
                        );
                    }
                }
                Sent::Refused => {}
            }
        }
        if any {
            client.head(1);
        }
    }
}

/// The same identifiers from everybody: none lost, none doubled (a client knows what it has in flight), none foreign.
#[test]
fn colliding_identifiers_are_each_clients_own() {
    let count = whole("NVME_VFIO_SOAK", 100_000);
    // Data goes the one way for some and the other for the rest.
    let all: Vec<_> = (0..CLIENTS)
        .map(|index| lent(index, index % 4 == 3))
        .collect();
    let mut world = World::new("size=1M,queues=20,stepped", &all);
    world.judge.close_eyes();
    let mut members: Vec<_> = (0..CLIENTS).map(Member::new).collect();
    let mut idle = 0;
    while members.iter().any(|member| member.done < count) {
        let before: u64 = members.iter().map(|member| member.done).sum();
        for (member, seat) in members.iter_mut().zip(&mut world.seats) {
            member.fill(&mut seat.client, count);
            seat.emulator.turn(TURN);
            member.take(&mut seat.client);
        }
        world.device.step();
        let after: u64 = members.iter().map(|member| member.done).sum();
        idle = if after == before { idle + 1 } else { 0 };
        assert!(
            idle < 1000,
            "commands are lost: {:?}",
            members.iter().map(|member| member.done).collect::<Vec<_>>()
        );
    }
    for _ in 0..100 {
        for (member, seat) in members.iter_mut().zip(&mut world.seats) {
            seat.emulator.turn(TURN);
            member.take(&mut seat.client);
            assert_eq!((member.sent, member.done), (count, count));
        }
        world.device.step();
    }
    // What the medium holds is each one's own.
    let contents = world.medium.lock();
    for member in &members {
        for (slot, written) in member.written.iter().enumerate() {
            let at = (member.number * BLOCKS + slot as u64) as usize * 512;
            let word = u64::from_le_bytes(
                contents.namespaces[&1][at..at + 8]
                    .try_into()
                    .expect("8 bytes"),
            );
            assert!(
                *written == 0 || word == *written,
                "client {}, slot {slot}",
                member.number
            );
        }
    }
    drop(contents);
    assert!(world.seats.iter().all(|seat| seat.client.guards_live()));
    println!("{CLIENTS} clients, {count} commands each: every one ended once, at its own client");
}

/// Keeps a queue full of reads of one block.
fn flood(client: &mut Client, depth: usize, lba: u64) -> u64 {
    let mut taken = 0;
    while client.take(1).is_some() {
        taken += 1;
    }
    let page = client.page(pages::DATA);
    let mut any = false;
    while client.in_flight(1) < depth {
        client.push(1, with_prps(with_blocks(command(0x02, 1), lba, 1), page, 0));
        any = true;
    }
    if any {
        client.ring(1);
    }
    taken
}

/// Beside a client with a full queue, one with a single command is served in the first round after it rang.
#[test]
fn one_command_waits_for_no_more_than_one_round_of_a_deep_client() {
    let mut random = seeded("fairness");
    let mut world = World::new(
        "size=1M,queues=20,stepped",
        &[lent(0, false), lent(1, false)],
    );
    world.judge.close_eyes();
    let [deep, single] = [0, 1].map(|index| Arc::clone(&world.seats[index].emulator));
    let turn = |emulator: &Emulator| emulator.turn(TURN).fetched;
    let (mut served, mut fetched_by_deep) = (0, 0);
    for round in 0..20_000u64 {
        flood(&mut world.seats[0].client, 250, random.below(BLOCKS));
        // Who goes first changes from round to round.
        let mut others = 0;
        let asks = world.seats[1].client.in_flight(1) == 0;
        if asks {
            flood(&mut world.seats[1].client, 1, random.below(BLOCKS));
        }
        let fetched = if round % 2 == 0 {
            others += turn(&deep);
            turn(&single)
        } else {
            let fetched = turn(&single);
            others += turn(&deep);
            fetched
        };
        world.device.step();
        assert!(others <= u64::from(TURN), "a turn of {others} commands");
        fetched_by_deep += others;
        if asks {
            assert_eq!(
                fetched, 1,
                "round {round}: the single command was left for a later round"
            );
        }
        // Done by the device in that round, it ends in the next.
        while world.seats[1].client.take(1).is_some() {
            served += 1;
        }
    }
    assert!(
        served > 9_000 && fetched_by_deep > 100_000,
        "{served} and {fetched_by_deep}"
    );
    println!("{served} single commands served, beside {fetched_by_deep} of the deep client");
}
