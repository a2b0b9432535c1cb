//! What the audit says of commands that a virtual controller does not carry out, or that fail.
#![allow(unsafe_code)] // raw entries over the test's own buffers

use std::time::{Duration, Instant};

use nvme_vfio::{IoQueue, QueueOptions};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};
use nvme_vfio_queues::{Command, NvmOpcode, Status};
use serde_json::Value;

use super::super::Isolated;
use super::rig::{Plan, Rig};
use crate::audit::{self, AuditOptions, Auditor};
use crate::client::ClientId;

const PATIENCE: Duration = Duration::from_secs(60);

fn ask(rig: &Rig, queue: &mut IoQueue, command: Command) -> Status {
    // SAFETY: what data there is lies in the test's buffer, which it does not touch meanwhile.
    unsafe { queue.submit_raw(command, 0) }.unwrap();
    queue.ring();
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = queue.poll() {
            return completion.entry.status();
        }
        assert!(Instant::now() < until);
        rig.step();
    }
}

#[test]
fn what_points_outside_of_the_clients_memory_is_recorded_as_refused() {
    for isolated in [Isolated::Shared, Isolated::Bounce] {
        let folder = crate::scratch::folder();
        let path = folder.path().join("audit.jsonl");
        let options = AuditOptions {
            sample_allowed_io: 0,
            ..AuditOptions::default()
        };
        let auditor = Auditor::start(audit::open(&path).unwrap(), options).unwrap();
        let rig = Rig::new(Plan {
            isolated,
            audit: Some(auditor.client(ClientId(0), "tester", 64)),
            ..Plan::default()
        });
        let mut queue = rig.client.io_queue(QueueOptions::with_depth(4)).unwrap();
        let data = rig.client.allocate(65_536).unwrap();
        let read = Command {
            opcode: NvmOpcode::READ.0,
            nsid: 1,
            prp1: data.iova().0,
            cdw10: 8,
            cdw12: 7,
            ..Command::ZERO
        };
        assert!(ask(&rig, &mut queue, read).is_success());
        let nowhere = Command {
            prp1: 0xf00d_0000,
            ..read
        };
        assert!(ask(&rig, &mut queue, nowhere).is(Status::DATA_TRANSFER_ERROR));
        let crooked = Command {
            prp2: data.iova().0 + 4096 + 8,
            cdw12: 15,
            ..read
        };
        assert!(ask(&rig, &mut queue, crooked).is(Status::PRP_OFFSET_INVALID));
        let fault = CommandFault::Status(Status::UNRECOVERED_READ_ERROR);
        rig.device.inject(Fault::on(Matcher::io().times(1), fault));
        assert!(ask(&rig, &mut queue, read).is(Status::UNRECOVERED_READ_ERROR));
        drop(queue);
        drop(rig);
        auditor.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let refused: Vec<_> = lines
            .iter()
            .filter(|line| line["verdict"] == "refused")
            .map(|line| (line["command"].as_str(), line["reason"].as_str()))
            .collect();
        assert_eq!(
            refused,
            [
                (Some("Read"), Some("outside-memory")),
                (Some("Read"), Some("prp-offset"))
            ],
            "{text}"
        );
        let sum = |key: &str| -> u64 {
            let counted = lines.iter().filter(|line| line["kind"] == "counted");
            counted.map(|line| line[key].as_u64().unwrap()).sum()
        };
        // The one that succeeded and the one that the device failed; the others were never carried out.
        assert_eq!((sum("reads"), sum("failed")), (2, 1), "{text}");
    }
}

#[test]
fn what_has_nothing_to_do_is_recorded_as_done() {
    let folder = crate::scratch::folder();
    let path = folder.path().join("audit.jsonl");
    let auditor = Auditor::start(audit::open(&path).unwrap(), AuditOptions::default()).unwrap();
    let rig = Rig::new(Plan {
        audit: Some(auditor.client(ClientId(0), "tester", 64)),
        ..Plan::default()
    });
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(4)).unwrap();
    let mut list = rig.client.allocate(4096).unwrap();
    list.fill(0);
    let deallocate = Command {
        opcode: NvmOpcode::DATASET_MANAGEMENT.0,
        nsid: 1,
        prp1: list.iova().0,
        // Two ranges of no blocks.
        cdw10: 1,
        cdw11: 1 << 2,
        ..Command::ZERO
    };
    assert!(ask(&rig, &mut queue, deallocate).is_success());
    drop(queue);
    drop(rig);
    auditor.finish().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let verdicts: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["command"] == "Dataset Management")
        .map(|line| line["verdict"].to_string())
        .collect();
    assert_eq!(verdicts, [r#""allowed""#], "{text}");
}
