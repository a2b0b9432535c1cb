//! Two clients, each with its own blocks.
#![allow(unsafe_code)] // Sends admin commands of which the driver has no safe form.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::{AdminData, CommandError, Controller, Error, QueueOptions};
use nvme_vfio_passthrough::policy::GroupPolicy;
use nvme_vfio_passthrough::server::{OpenedGroup, Prepared, ServeOptions};
use nvme_vfio_passthrough::{Access, Client, DecodedCommand, Extent, Policy, Reason, Verdict};
use nvme_vfio_queues::{Command, Status};

use crate::place::{Place, check, fill};

#[test]
fn two_clients_have_each_its_own_blocks_and_nothing_else() {
    let place = Place::two_halves();
    let began = Instant::now();
    let serving = place.serve();
    let (a, b) = (place.open("vm-a"), place.open("vm-b"));
    let opened = Instant::now();
    assert_eq!(a.namespaces().unwrap(), [1]);
    assert_eq!(b.namespaces().unwrap(), [7]);
    assert_eq!(a.namespace(1).unwrap().blocks(), 2000);
    assert_eq!(b.namespace(7).unwrap().blocks(), 3000);
    assert_ne!(
        a.identify().serial_number().to_string(),
        b.identify().serial_number().to_string()
    );
    fill(&a, 1);
    fill(&b, 100);
    check(&a, 1);
    check(&b, 100);
    drop((a, b));
    let closed = Instant::now();
    let summary = serving.finish().unwrap();
    assert!(summary.commands > 1000, "{summary:?}");
    assert_eq!(summary.commands, summary.completions);
    assert!(!place.socket("vm-a").exists());
    assert!((closed - opened..=began.elapsed()).contains(&summary.time));
}

#[test]
fn what_a_client_leaves_it_finds_again() {
    let place = Place::two_halves();
    let serving = place.serve();
    let a = place.open("vm-a");
    fill(&a, 5);
    drop(a);
    let a = place.open("vm-a");
    check(&a, 5);
    drop(a);
    serving.finish().unwrap();
}

/// The Timestamp feature: milliseconds.
fn clock(controller: &Controller, set: Option<u64>) -> Duration {
    let mut bytes = set.unwrap_or_default().to_le_bytes();
    let command = Command {
        opcode: if set.is_some() { 0x09 } else { 0x0a },
        cdw10: 0x0e,
        ..Command::ZERO
    };
    let data = match set {
        Some(_) => AdminData::ToController(&bytes),
        None => AdminData::FromController(&mut bytes),
    };
    // SAFETY: Set and Get Features touch no memory but that of the data pointer, which the driver fills in for `bytes`.
    unsafe { controller.admin_raw(command, data) }.unwrap();
    Duration::from_millis(u64::from_le_bytes(bytes) & ((1 << 48) - 1))
}

#[test]
fn a_clients_clock_counts_milliseconds() {
    const SET: u64 = 1_000_000;
    let place = Place::two_halves();
    let serving = place.serve();
    let a = place.open("vm-a");
    let before = Instant::now();
    clock(&a, Some(SET));
    let set = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    let went = clock(&a, None) - Duration::from_millis(SET);
    // A millisecond that has begun may count or not.
    let (least, most) = (asked - set, before.elapsed());
    let one = Duration::from_millis(1);
    assert!(
        least <= went + one && went <= most + one,
        "{least:?} {went:?} {most:?}"
    );
    drop(a);
    serving.finish().unwrap();
}

/// A judge of somebody else's: the policy file's, and no writes to the first hundred blocks.
#[derive(Debug)]
struct NoHead(GroupPolicy);

impl Policy for NoHead {
    fn authorize(&self, command: &DecodedCommand<'_>, client: &Client) -> Verdict {
        let touches = |extent: &Extent| extent.access == Access::Write && extent.first < 100;
        if command.extents.iter().any(touches) {
            return Verdict::Deny(Reason::AccessNotGranted.refusal());
        }
        self.0.authorize(command, client)
    }
}

#[test]
fn the_judge_of_commands_can_be_replaced() {
    let place = Place::two_halves();
    let options = ServeOptions::default();
    let group = OpenedGroup::open(&place.policy, &options).unwrap();
    let prepared = Prepared::with_rules(&place.policy, group, &options, |resolved| {
        let rules: Arc<dyn Policy> = Arc::new(NoHead(GroupPolicy::new(resolved)));
        rules
    });
    let serving = prepared.unwrap().begin().unwrap();
    let a = place.open("vm-a");
    let namespace = a.only_namespace().unwrap();
    let mut queue = a.io_queue(QueueOptions::default()).unwrap();
    let mut write = |lba| queue.write_blocking(&namespace, lba, a.allocate(512).unwrap());
    let Err(Error::Command(CommandError::Status(status))) = write(99) else {
        panic!("it was written");
    };
    assert!(status.is(Status::ACCESS_DENIED), "{status}");
    write(100).unwrap();
    drop((queue, a));
    serving.finish().unwrap();
}
