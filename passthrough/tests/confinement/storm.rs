//! A client that resets, disables and misconfigures its controller in the middle of everything, while its commands are at the device.

use crate::common::bodies::{Bodies, View};
use crate::common::client::pages;
use crate::common::honest::Honest;
use crate::common::random::Random;
use crate::common::seeded;
use crate::common::world::World;
use crate::siege::{Held, lent};

const ACTING: usize = 0;
/// What it does between two looks at what came of it.
const TOGETHER: u64 = 64;
/// Commands take up to so long that a reset comes in the middle of them.
const DEVICE: &str = "nsids=1/2M:2/2M:3/2M:7/2M,latency.read=0us..40us,latency.write=0us..40us,latency.other=0us..40us,latency.step=1us,stepped";

/// A register, and what is written to it.
fn register(random: &mut Random, addresses: &[u64]) -> (u32, usize, u64) {
    match random.below(9) {
        // CC: enabled, disabled, shut down, and with page and entry sizes of all kinds.
        0 => (0x14, 4, 4 << 20 | 6 << 16 | random.below(2)),
        1 => (0x14, 4, 4 << 20 | 6 << 16 | random.below(4) << 14 | 1),
        2 => (0x14, 4, random.odd()),
        3 => (0x14, 4, 4 << 20 | 6 << 16 | random.below(8) << 7 | 1),
        4 => (0x24, 4, random.odd()),
        5 => (0x28, 8, random.one(addresses)),
        6 => (0x30, 8, random.one(addresses)),
        // NSSR, and whatever else there is.
        7 => (0x20, 4, 0x4e56_4d65),
        _ => (random.below(0x80) as u32 * 4, 4, random.odd()),
    }
}

pub(crate) fn storm(count: u64) {
    let mut random = seeded("storm");
    let mut world = World::new(DEVICE, &lent(Held::Shared));
    let mut addresses: Vec<u64> = world.judge.mappings().iter().map(|at| at.0).collect();
    let view = View {
        namespaces: vec![(1, 1100, vec![1000]), (2, 500, vec![])],
        foreign_namespaces: vec![3, 7],
        real_blocks: vec![900, 2000, 3100],
        foreign_addresses: addresses.clone(),
    };
    let client = &world.seats[ACTING].client;
    addresses.extend(
        [
            pages::ADMIN_SUBMISSION,
            pages::DATA,
            pages::ROM,
            pages::LISTS,
        ]
        .map(|page| client.page(page)),
    );
    let mut bodies = Bodies::new(random.fork(), view);
    let device = world.device_state();
    let bystander = world.seat_state(1);
    let opcodes = [
        0x00, 0x01, 0x01, 0x02, 0x02, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x19,
    ];
    let mut step = world.stepper(&world.seats[ACTING].emulator);
    let (mut done, mut resets, mut completed) = (0, 0u64, 0u64);
    while done < count {
        let seat = &mut world.seats[ACTING];
        let client = &mut seat.client;
        client.start(&mut step);
        // As long as its controller is as it made it, what ends is one of its commands; `take` sees to that.
        let mut intact = true;
        for _ in 0..TOGETHER {
            done += 1;
            match random.below(24) {
                0 => {
                    let (offset, bytes, value) = register(&mut random, &addresses);
                    seat.emulator.register_write(offset, bytes, value);
                    intact = false;
                }
                1 => {
                    let at = random.below(0x60) * 2;
                    seat.emulator
                        .config_write(at, &(random.odd() as u16).to_le_bytes());
                    intact = false;
                }
                2 => {
                    seat.emulator.reset();
                    intact = false;
                    resets += 1;
                }
                3 => {
                    let doorbells = seat.emulator.doorbells();
                    let doorbell = random.below(12) as usize;
                    if let Some(doorbell) = doorbells.get(doorbell) {
                        doorbell.store(random.odd() as u32, std::sync::atomic::Ordering::Release);
                    }
                    intact = false;
                }
                4 => {
                    let mut bytes = [0; 8];
                    bytes.copy_from_slice(&random.odd().to_le_bytes());
                    seat.emulator.msix_write(random.below(0x100) * 8, &bytes);
                }
                5..=12 => step(),
                _ if client.room(1) > 0 => {
                    let opcode = random.one(&opcodes);
                    let entry = bodies.right(client, opcode);
                    client.push(1, entry);
                    if random.percent(60) {
                        client.ring(1);
                    }
                }
                _ => step(),
            }
            while intact && let Some(_) = client.take(1) {
                completed += 1;
            }
        }
        let mut breaches = world.judge.look(&[ACTING]);
        if done % (TOGETHER * 16) == 0 {
            breaches.extend(world.learned(ACTING));
            breaches.extend(world.judge.compare_media(&[ACTING]));
        }
        assert!(
            breaches.is_empty(),
            "after {done} deeds:\n{}",
            breaches.join("\n")
        );
    }
    // All is well again for whoever keeps to the rules.
    let client = &mut world.seats[ACTING].client;
    client.start(&mut step);
    assert!(client.guards_live());
    let mut honest = Honest::new(client, &mut step, &[(1, 1100), (2, 500)], random.fork());
    assert!(honest.everything(1000) >= 60);
    assert!(world.judge.look(&[ACTING]).is_empty());
    assert!(
        device == world.device_state() && bystander == world.seat_state(1),
        "somebody else's state has changed"
    );
    assert!(
        resets > 0 && completed > 0,
        "{resets} resets, {completed} completions"
    );
    println!("{done} deeds, {resets} function resets, {completed} completions taken");
}
