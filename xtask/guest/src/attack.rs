//! Commands of every opcode with any body, from a client that was lent a part of a controller: whatever they ask for, they must reach, change and tell nothing else. What they did
//! on the drive is seen on the host, which compares it.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nvme_vfio_attacker::bodies::{Bodies, View};
use nvme_vfio_attacker::client::Client;
use nvme_vfio_attacker::honest::Honest;
use nvme_vfio_attacker::random::Random;
use nvme_vfio_attacker::siege::{
    self, BATCH, COMPARE, NAMESPACES, ORDINARY_OPCODES, SEAM, UNSETTLING,
};
use nvme_vfio_attacker::state::{differences, state_and_blocks};
use nvme_vfio_attacker::{Dwords, Served, learned};

/// The bystander's namespaces and their blocks.
const BYSTANDERS: [(u32, u64); 2] = [(1, 600), (2, 100)];
/// Whose marks are on whose blocks.
const ATTACKER: u32 = 0;
const CLIENTS: u32 = 2;
/// How long commands that may never end are waited for, once nothing happens. Those that are only late, on a busy machine, shall be counted.
const OPEN: Duration = Duration::from_millis(500);
/// Looks at a queue after which the processor is left to others for longer.
const SPINS: u32 = 64;

/// What became of the commands of a queue.
#[derive(Debug, Default)]
struct Count {
    by_status: BTreeMap<u16, u64>,
    /// By opcode.
    succeeded: BTreeMap<u8, u64>,
    sent: u64,
    /// Those that had not ended when the controller was started anew.
    open: u64,
}

struct Siege {
    attacker: Client,
    bystander: Client,
    bodies: Bodies,
    random: Random,
    /// What the attacker must not read anywhere, beside marks.
    secrets: Vec<Vec<u8>>,
    /// The bystander's state.
    state: Vec<(String, Vec<u8>)>,
    counts: BTreeMap<u16, Count>,
    sent: u64,
    compared: u64,
}

/// Sends `each` bodies of each opcode on both queues, and then as many of all that may pass.
pub(crate) fn attack(
    attacker: &Path,
    bystander: &Path,
    secrets: Vec<String>,
    seed: u64,
    each: u64,
) -> Result<()> {
    println!("the bodies come from seed {seed}");
    let mut siege = Siege::new(attacker, bystander, secrets, seed)?;
    let started = Instant::now();
    siege.run(each)?;
    let took = started.elapsed();
    siege.report();
    println!(
        "{} commands in {took:.1?}: {:.0} a second",
        siege.sent,
        siege.sent as f64 / took.as_secs_f64()
    );
    siege.passed(each)?;
    println!("nothing was reached, changed or told");
    Ok(())
}

/// Others move the controller: looks often at first, and then leaves them the processor.
fn stepper() -> impl FnMut() {
    let mut looks = 0u32;
    move || {
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(SPINS) {
            thread::sleep(Duration::from_micros(20));
        } else {
            thread::yield_now();
        }
    }
}

fn seat(socket: &Path, base: u64) -> Client {
    let served = Served::connect(socket);
    let mut client = Client::new_lent(base, |memory| {
        served.lend(memory);
        served
    });
    client.start(&mut stepper());
    client
}

impl Siege {
    fn new(attacker: &Path, bystander: &Path, secrets: Vec<String>, seed: u64) -> Result<Siege> {
        let mut random = Random::new(seed);
        let attacker = seat(attacker, 1 << 32);
        // At other addresses, which are worth a try to the attacker.
        let mut bystander = seat(bystander, 3 << 32);
        let view = View {
            namespaces: vec![(1, 1100, vec![SEAM]), (2, 500, vec![])],
            foreign_namespaces: vec![3, 4, 7, 77],
            real_blocks: vec![500, 900, 999, 1000, 2000, 2499, 3000, 3100, 4095, 4096],
            // The other's, and where the server's own memory, the machine's memory and its interrupts may lie.
            foreign_addresses: vec![3 << 32, 1 << 20, 2 << 20, 1 << 12, 16 << 20, 0xfee0_0000],
        };
        let state = state_and_blocks(&mut bystander, &mut stepper(), &BYSTANDERS);
        let again = state_and_blocks(&mut bystander, &mut stepper(), &BYSTANDERS);
        ensure!(
            state == again,
            "asking changes what is asked for: {}",
            differences(&state, &again)
        );
        let mut secrets: Vec<Vec<u8>> = secrets.into_iter().map(String::into_bytes).collect();
        secrets.extend(names(&state)?);
        Ok(Siege {
            attacker,
            bystander,
            bodies: Bodies::new(random.fork(), view),
            random,
            secrets,
            state,
            counts: BTreeMap::new(),
            sent: 0,
            compared: 0,
        })
    }

    fn run(&mut self, each: u64) -> Result<()> {
        for qid in [1, 0] {
            for opcode in 0..=u8::MAX {
                if opcode.is_multiple_of(64) {
                    self.honest()?;
                }
                let mut left = each;
                while left > 0 {
                    let count = left.min(BATCH);
                    self.together(qid, count, |_| opcode)?;
                    left -= count;
                }
            }
        }
        for _ in 0..(each * 64).div_ceil(BATCH) {
            self.together(1, BATCH, |random| random.one(ORDINARY_OPCODES))?;
        }
        self.honest()?;
        self.compare()
    }

    /// An honest client's work in the attacker's place.
    fn honest(&mut self) -> Result<()> {
        let (client, mut step) = (&mut self.attacker, stepper());
        client.start(&mut step);
        let mut honest = Honest::new(client, &mut step, &NAMESPACES, self.random.fork());
        honest.deallocated_reads_zeroes = false;
        let kinds = honest.everything(SEAM);
        ensure!(kinds >= 60, "{kinds} kinds of commands");
        client.start(&mut step);
        self.look(0, &[])
    }

    /// Sends commands together, and looks at all that came of it.
    fn together(&mut self, qid: u16, count: u64, opcode: impl Fn(&mut Random) -> u8) -> Result<()> {
        siege::refresh(&self.attacker, &mut self.random);
        let mut step = stepper();
        let client = &mut self.attacker;
        let (bodies, random) = (&mut self.bodies, &mut self.random);
        let sent = siege::send(client, bodies, random, (qid, count), opcode, || {});
        let unsettles = |(_, entry): &(u16, Dwords)| UNSETTLING.contains(&(entry[0] as u8));
        let done = if qid == 0 && sent.iter().any(unsettles) {
            client.drain_for(qid, OPEN, &mut step)
        } else {
            client.drain(qid, &mut step)
        };
        let ends = siege::ends(qid, &sent, &done, |opcode| {
            ORDINARY_OPCODES.contains(&opcode)
        });
        self.sent += count;
        let counted = self.counts.entry(qid).or_default();
        counted.sent += count;
        counted.open += count - done.len() as u64;
        for completion in &done {
            *counted.by_status.entry(completion.status).or_default() += 1;
        }
        for opcode in ends.succeeded {
            *counted.succeeded.entry(opcode).or_default() += 1;
        }
        self.look(qid, &sent)?;
        let client = &mut self.attacker;
        // Its status is a message away: only after what may have made it fail, and with each comparison.
        let compared = self.sent - self.compared >= COMPARE;
        let looked = compared || qid == 0 && sent.iter().any(unsettles);
        if ends.unsettled || looked && client.failed() {
            client.forget(0);
            client.start(&mut step);
            self.look(qid, &sent)?;
        }
        if compared {
            self.compare()?;
        }
        Ok(())
    }

    /// Looks for what the attacker must not have in its memory.
    fn look(&self, qid: u16, sent: &[(u16, Dwords)]) -> Result<()> {
        let mut breaches = learned::marks(&self.attacker, ATTACKER, CLIENTS);
        // Reads bring blocks, and nobody's name is on any.
        if qid == 0 {
            let secrets: Vec<_> = self.secrets.iter().map(|secret| (1, &secret[..])).collect();
            breaches.extend(learned::texts(&self.attacker, &secrets));
        }
        if !self.attacker.guards_live() {
            breaches.push("memory that no command names has changed".to_owned());
        }
        let entries: Vec<_> = sent
            .iter()
            .map(|(cid, entry)| format!("{cid:#x}: {entry:x?}"))
            .collect();
        ensure!(
            breaches.is_empty(),
            "after {} commands:\n{}\nin flight on queue {qid} were\n{}",
            self.sent,
            breaches.join("\n"),
            entries.join("\n")
        );
        Ok(())
    }

    /// Compares all that the bystander has and can see with what it was.
    fn compare(&mut self) -> Result<()> {
        self.compared = self.sent;
        let state = state_and_blocks(&mut self.bystander, &mut stepper(), &BYSTANDERS);
        ensure!(
            state == self.state,
            "after {} commands the other client's state has changed: {}",
            self.sent,
            differences(&self.state, &state)
        );
        ensure!(
            self.bystander.guards_live(),
            "after {} commands memory around the other client's has changed",
            self.sent
        );
        Ok(())
    }

    fn report(&self) {
        for (qid, count) in &self.counts {
            println!(
                "queue {qid}: {} commands, {} of them open until the controller was started anew",
                count.sent, count.open
            );
            for (status, times) in &count.by_status {
                println!("  {times:8} status {status:#05x}");
            }
            for (opcode, times) in &count.succeeded {
                println!("  {times:8} of opcode {opcode:#04x} succeeded");
            }
        }
    }

    /// Fails where too few commands succeeded for the others to mean anything.
    fn passed(&self, each: u64) -> Result<()> {
        let io = ORDINARY_OPCODES.iter().map(|opcode| (1, *opcode, each / 4));
        let asking = [0x02, 0x06, 0x08, 0x0a].map(|opcode| (0, opcode, each / 8));
        // After one that succeeds the controller is started anew, and so the rest of a batch may not be.
        let unsettling = [0x00, 0x01, 0x05, 0x09].map(|opcode| (0, opcode, each / 100));
        for (qid, opcode, least) in io.chain(asking).chain(unsettling) {
            let succeeded = &self.counts[&qid].succeeded;
            let times = succeeded.get(&opcode).copied().unwrap_or(0);
            ensure!(
                times >= least,
                "only {times} commands of opcode {opcode:#04x} on queue {qid} succeeded"
            );
        }
        Ok(())
    }
}

/// What names a client: serial number, NVM subsystem and namespaces, from what it sees itself.
fn names(state: &[(String, Vec<u8>)]) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for (what, from, to) in [
        ("identify 0x1 0", 4, 24),
        ("identify 0x1 0", 768, 1024),
        ("identify 0x0 1", 104, 120),
        ("identify 0x0 2", 104, 120),
    ] {
        let page = state.iter().find(|(name, _)| name == what);
        let bytes = page.map_or(&[][..], |(_, page)| &page[from..to]);
        let text = bytes.trim_ascii_end();
        let end = text
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        ensure!(end >= 8, "{what} has no name in bytes {from} to {to}");
        names.push(text[..end].to_vec());
    }
    Ok(names)
}
