//! A load with everything of a script going wrong in it: every command is reported once, and what is said to be read was read.

use std::collections::HashMap;
use std::time::Instant;

use nvme_vfio::{Error, Outcome, RecoveryLimit, SubmitError};
use nvme_vfio_emulator::FaultScript;

use crate::bench::*;

ways![a_load_survives_a_script_of_faults];

/// Blocks of 4 KiB that are read, each filled with its own number.
const BLOCKS: u64 = 64;
const READS: u64 = 3000;

const SCRIPT: &str = r#"
[[fault]]
do = "media-error"
lba = 42

[[fault]]
do = "reorder"
behind = 2
opcode = "read"
nth = 10
times = 20

[[fault]]
do = "delay"
steps = 3
opcode = "read"
after_commands = 300
times = 5

[[fault]]
do = "duplicate-completion"
opcode = "read"
after_commands = 600
times = 1

[[fault]]
do = "wrong-cid"
value = 0x7777
opcode = "read"
after_commands = 900
times = 1

[[fault]]
do = "hang"
opcode = "read"
after_commands = 1200
times = 2

[[fault]]
do = "stale-phase"
opcode = "read"
after_commands = 1500
times = 1

[[fault]]
do = "fatal"
after_commands = 1800

[[fault]]
do = "lose-completion"
opcode = "read"
after_commands = 2100
times = 3

[[fault]]
do = "hang"
on_abort = "aborted"
opcode = "read"
after_commands = 2400
times = 2

[[fault]]
do = "flip-status"
bits = 0x100
opcode = "read"
after_commands = 2500
times = 4
"#;

fn a_load_survives_a_script_of_faults(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(8);
    for block in 0..BLOCKS {
        let mut buffer = bench.controller.allocate(4096).unwrap();
        buffer.fill(block as u8);
        queue
            .write_blocking(&bench.namespace, block * 8, buffer)
            .unwrap();
    }
    bench.emulator.play(&FaultScript::parse(SCRIPT).unwrap());
    let mut ends: HashMap<u64, Outcome> = HashMap::new();
    let (mut submitted, mut reclaimed, mut kept, mut bad) = (0, 0, 0, 0);
    let mut now = Instant::now();
    let mut idle = 0;
    while (ends.len() as u64) < READS {
        while submitted < READS && !queue.is_full() {
            let mut buffer = bench.controller.allocate(4096).unwrap();
            buffer.fill(0xee);
            let lba = submitted % BLOCKS * 8;
            match queue.read(&bench.namespace, lba, buffer, submitted) {
                Ok(()) => submitted += 1,
                Err(refused) => {
                    assert_eq!(refused.error, SubmitError::Reset);
                    break;
                }
            }
        }
        bench.settle(&mut queue);
        let before = ends.len();
        while let Some(completion) = queue.poll() {
            let (token, outcome) = (completion.token, completion.outcome);
            match &completion.buffer {
                Some(buffer) if completion.result().is_ok() => {
                    let expected = (token % BLOCKS) as u8;
                    assert!(buffer.iter().all(|byte| *byte == expected), "{token}");
                }
                Some(_) => bad += u64::from(outcome == Outcome::Done),
                None => kept += 1,
            }
            assert!(ends.insert(token, outcome).is_none(), "{token} twice");
        }
        reclaimed += queue.reclaim().count();
        idle = if ends.len() > before { 0 } else { idle + 1 };
        if idle > 20 {
            // Whatever is missing does not come by itself.
            now += HOUR;
        }
        if let Err(error) = queue.check_deadlines(now) {
            // An Abort that a controller with a fatal status does not answer.
            assert!(matches!(error, Error::NotReady { .. }), "{error}");
        }
        if queue.needs_rebuild()
            && queue.in_flight() == 0
            && let Err(error) = queue.rebuild()
        {
            // The fatal status came while the queue was being made again: nobody else looks after the controller then.
            assert!(matches!(error, Error::NotReady { .. }), "{error}");
            bench.controller.recover().unwrap();
        }
    }
    assert_eq!(queue.in_flight(), 0);
    reclaimed += queue.reclaim().count();
    assert_eq!(reclaimed, kept, "all memory came back, once");
    // One block of 64 is bad in all rounds, and four statuses and two aborted ones come on top.
    assert!(bad >= READS / BLOCKS, "{bad}");
    let events = bench.controller.events();
    assert!((3..=8).contains(&events.resets), "{events:?}");
    assert!(
        events.unknown + events.stale >= 2 && events.timeouts >= 4,
        "{events:?}"
    );
    assert_eq!(bench.emulator.iommu().fault_count(), 0);
    bench.emulator.clear_faults();
    bench.works(&mut queue);
}
