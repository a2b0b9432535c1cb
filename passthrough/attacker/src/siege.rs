//! Commands together: which may succeed, which may never end, and what there is to read and write.

use crate::Dwords;
use crate::bodies::Bodies;
use crate::client::{Client, Completion, pages};
use crate::learned::UNLIKE_MARKS;
use crate::memory::PAGE;
use crate::random::Random;

/// Commands that are in flight at once.
pub const BATCH: u64 = 32;
/// Commands between two comparisons of everything.
pub const COMPARE: u64 = 1_000;
/// The attacker's namespaces and their blocks.
pub const NAMESPACES: [(u32, u64); 2] = [(1, 1100), (2, 500)];
/// Where the first piece of namespace 1 ends.
pub const SEAM: u64 = 1000;
/// Admin commands that a virtual controller carries out on what it keeps for its client, and those that it may leave open.
pub const VIRTUAL: &[u8] = &[
    0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x7c, 0x86,
];
/// Those of them after which the client's queues may not be what they were.
pub const UNSETTLING: &[u8] = &[0x00, 0x01, 0x04, 0x05, 0x09, 0x0c, 0x7c];

/// What an ordinary client is granted, in the words of the policy.
pub const ORDINARY: &[&str] = &[
    "read",
    "write",
    "flush",
    "compare",
    "write-zeroes",
    "deallocate",
    "verify",
    "copy",
];
/// The same as opcodes on an I/O queue.
pub const ORDINARY_OPCODES: &[u8] = &[0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x19];

/// How commands that were sent together ended.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Opcodes of those that succeeded.
    pub succeeded: Vec<u8>,
    /// Whether the client's controller has to be started anew.
    pub unsettled: bool,
}

/// Looks at how commands ended, for a client that was granted these opcodes.
///
/// # Panics
/// When one succeeded that was not granted, or does not end though it must.
#[must_use]
pub fn ends(
    qid: u16,
    sent: &[(u16, Dwords)],
    done: &[Completion],
    granted: impl Fn(u8) -> bool,
) -> Ends {
    let mut ends = Ends::default();
    for (cid, entry) in sent {
        let opcode = entry[0] as u8;
        let unsettles = qid == 0 && UNSETTLING.contains(&opcode);
        match done.iter().find(|completion| completion.cid == *cid) {
            Some(completion) if completion.status == 0 => {
                ends.succeeded.push(opcode);
                let may = match qid {
                    0 => VIRTUAL.contains(&opcode),
                    _ => granted(opcode),
                };
                assert!(may, "queue {qid}: {entry:x?} succeeded");
                ends.unsettled |= unsettles;
            }
            Some(_) => {}
            // Events wait, and whoever takes its own queues or doorbells away waits for ever.
            None => {
                assert!(unsettles, "queue {qid}: {entry:x?} does not end");
                ends.unsettled = true;
            }
        }
    }
    ends
}

/// Fills a client's data with something to write, zero for the most part.
pub fn refresh(client: &Client, random: &mut Random) {
    client.memory.fill(
        client.page(pages::LISTS),
        (pages::DATA_END - pages::LISTS) * PAGE,
        0,
    );
    for _ in 0..64 {
        let word = random.below(((pages::DATA_END - pages::DATA) * PAGE / 8) as u64);
        client.memory.store(
            client.page(pages::DATA) + word * 8,
            random.next() | UNLIKE_MARKS,
        );
    }
}

/// Submits so many commands together; what was sent, with its identifiers. Rings now and then, calls `rung` then, and rings at the end.
pub fn send(
    client: &mut Client,
    bodies: &mut Bodies,
    random: &mut Random,
    (qid, count): (u16, u64),
    opcode: impl Fn(&mut Random) -> u8,
    mut rung: impl FnMut(),
) -> Vec<(u16, Dwords)> {
    let mut sent = Vec::new();
    for _ in 0..count {
        let opcode = opcode(random);
        let entry = match qid {
            0 => bodies.admin(client, opcode),
            _ => bodies.io(client, opcode),
        };
        sent.push((client.push(qid, entry), entry));
        if random.percent(10) {
            client.ring(qid);
            rung();
        }
    }
    client.ring(qid);
    sent
}
