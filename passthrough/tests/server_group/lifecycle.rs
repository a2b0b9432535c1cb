//! Commands that hang, clients that go, and controllers that fail: each harms its own client alone.
#![allow(unsafe_code)] // an admin command that carries no address

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvme_vfio::{AdminData, CommandError, Controller, Error, QueueOptions};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Fault, Matcher, OnAbort, Until};
use nvme_vfio_passthrough::server::ServeError;
use nvme_vfio_queues::{AdminOpcode, Command, Status};
use serde_json::json;

use crate::place::{PATIENCE, Place, Service, TWO, check, fill, until};
use crate::raw::{DATA, DEPTH, Host, LENGTH};

/// The blocks of `vm-a` on the device.
const OF_A: std::ops::RangeInclusive<u64> = 0..=999;

/// A client that reads and checks its blocks all the time.
struct Neighbour {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<CommandError>>>,
}

impl Neighbour {
    /// Its namespace was filled with `seed`.
    fn start(controller: Controller, seed: u64) -> Neighbour {
        let stop = Arc::<AtomicBool>::default();
        let rounds = Arc::<AtomicU64>::default();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            let namespace = controller.only_namespace().unwrap();
            let mut queue = controller.io_queue(QueueOptions::default()).unwrap();
            let mut failures = Vec::new();
            let mut at = 0;
            while !stopped.load(Ordering::Relaxed) {
                let buffer = controller.allocate(512).unwrap();
                match queue.read_blocking(&namespace, at, buffer) {
                    Ok(buffer) => {
                        let expected = (seed + at) as u8;
                        assert!(buffer.iter().all(|byte| *byte == expected), "block {at}");
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::Command(error)) => failures.push(error),
                    Err(error) => panic!("{error}"),
                }
                at = (at + 1) % namespace.blocks();
            }
            failures
        });
        Neighbour {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until it has read once more from beginning to end.
    fn goes_on(&self) {
        let before = self.rounds();
        until("the neighbour goes on", || self.rounds() > before + 10);
    }

    /// What it saw fail.
    fn end(mut self) -> Vec<CommandError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn hang(service: &Service, how: OnAbort, count: u64) {
    let of_a = Matcher::io().lbas(OF_A).times(count);
    service
        .device
        .inject(Fault::on(of_a, CommandFault::Hang(how)));
}

const INTERRUPTED: u16 = 0x21;

/// Submits reads, and waits until the device has them: nobody else may use it meanwhile.
fn submit_all(service: &Service, host: &mut Host, count: u32) {
    let before = service.device.statistics().commands;
    host.submit(2, count);
    until("they are at the device", || {
        service.device.statistics().commands >= before + u64::from(count)
    });
}

#[test]
fn commands_that_hang_on_the_device_cost_their_client_its_queue_and_nobody_else_anything() {
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let neighbour = Neighbour::start(b, 100);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    hang(&service, OnAbort::NotAborted, 3);
    host.submit(2, 3);
    assert_eq!(host.statuses(3), [INTERRUPTED; 3]);
    service
        .place
        .until_told("queue-deleted", &[("client", json!("vm-a"))]);
    // It goes on.
    host.submit(2, 4);
    assert_eq!(host.statuses(7)[3..], [0; 4]);
    neighbour.goes_on();
    assert_eq!(neighbour.end(), []);
    assert_eq!(service.controller.events().resets, 0);
    drop(host);
    service.end();
}

#[test]
fn an_abort_that_works_ends_only_what_hangs() {
    let service = Service::start(TWO);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    hang(&service, OnAbort::Aborted, 1);
    host.submit(2, 8);
    let statuses = host.statuses(8);
    let aborted = statuses.iter().filter(|status| **status == 7).count();
    let done = statuses.iter().filter(|status| **status == 0).count();
    assert_eq!((aborted, done), (1, 7), "{statuses:?}");
    assert_eq!(service.controller.events().resets, 0);
    drop(host);
    service.end();
}

#[test]
fn a_reset_is_the_last_step_and_everybody_survives_it() {
    const DELETE_SQ: u8 = 0;
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let neighbour = Neighbour::start(b, 100);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    let delete = Matcher::admin().opcode(DELETE_SQ).times(1);
    let refused = CommandFault::Status(Status::INTERNAL_ERROR);
    service.device.inject(Fault::on(delete, refused));
    hang(&service, OnAbort::NotAborted, 1);
    host.submit(2, 1);
    assert_eq!(host.statuses(1), [INTERRUPTED]);
    let reset = [("controller", json!("emulated:size=64M"))];
    service.place.until_told("controller-reset", &reset);
    service
        .place
        .until_told("controller-recovered", &[("usable", json!(true))]);
    assert_eq!(service.controller.events().resets, 1);
    host.submit(2, 4);
    assert_eq!(host.statuses(5)[1..], [0; 4]);
    neighbour.goes_on();
    // What it had in flight was interrupted, and it may try again.
    for failure in neighbour.end() {
        let CommandError::Status(status) = failure else {
            panic!("{failure}");
        };
        assert!(
            status.is(Status::COMMAND_INTERRUPTED) && !status.dnr(),
            "{status}"
        );
    }
    drop(host);
    service.end();
}

#[test]
fn a_controller_that_fails_is_brought_back() {
    let service = Service::start(TWO);
    let a = service.place.open("vm-a");
    fill(&a, 3);
    service
        .device
        .inject(Fault::of_controller(ControllerFault::Fatal));
    service
        .place
        .until_told("controller-recovered", &[("usable", json!(true))]);
    until("it works again", || {
        let namespace = a.only_namespace().unwrap();
        let mut queue = a.io_queue(QueueOptions::default()).unwrap();
        queue
            .read_blocking(&namespace, 0, a.allocate(512).unwrap())
            .is_ok()
    });
    check(&a, 3);
    drop(a);
    service.end();
}

#[test]
fn memory_that_is_taken_back_in_flight_is_let_go_of_when_nothing_touches_it_any_more() {
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let data = host.lend();
    hang(&service, OnAbort::NotAborted, u64::from(DEPTH));
    submit_all(&service, &mut host, DEPTH);
    let neighbour = Neighbour::start(b, 100);
    let began = Instant::now();
    host.client.dma_unmap(DATA, LENGTH).unwrap();
    assert!(
        began.elapsed() >= Duration::from_millis(100),
        "they were in flight"
    );
    data.write_all_at(&[0xee; LENGTH as usize], 0).unwrap();
    // Were any of them still at the device they would write now.
    service.device.release();
    thread::sleep(Duration::from_millis(50));
    let mut bytes = vec![0; LENGTH as usize];
    data.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xee));
    assert_eq!(host.statuses(DEPTH).len(), DEPTH as usize);
    assert_eq!(neighbour.end(), []);
    assert_eq!(service.controller.events().resets, 0);
    drop(host);
    service.end();
}

#[test]
fn a_client_that_goes_with_hanging_commands_is_succeeded_and_leaves_no_memory_mapped() {
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let neighbour = Neighbour::start(b, 100);
    let own = service.controller.address_space().mappings().len();
    for _ in 0..3 {
        let mut host = Host::new(&service.place.socket("vm-a"), 1);
        let _data = host.lend();
        assert_eq!(service.controller.address_space().mappings().len(), own + 2);
        hang(&service, OnAbort::NotAborted, 8);
        // The neighbour's commands are counted too, so not all of these may be there yet.
        submit_all(&service, &mut host, DEPTH);
        drop(host);
        service.device.clear_faults();
        // Let in means that its predecessor's memory was let go of.
        let next = Host::new(&service.place.socket("vm-a"), 1);
        assert_eq!(service.controller.address_space().mappings().len(), own + 1);
        drop(next);
    }
    assert_eq!(neighbour.end(), []);
    assert_eq!(service.controller.events().resets, 0);
    service.end();
}

#[test]
fn a_client_that_cuts_its_memory_ends_its_own_session() {
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let neighbour = Neighbour::start(b, 100);
    for opcode in [1, 2] {
        let mut host = Host::new(&service.place.socket("vm-a"), 1);
        let data = host.lend();
        data.set_len(0).unwrap();
        host.submit(opcode, DEPTH);
        until("it is sent away", || {
            host.client.region_read(0, 0x1c, &mut [0; 4]).is_err()
        });
    }
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    host.submit(2, 4);
    assert_eq!(host.statuses(4), [0; 4]);
    assert_eq!(neighbour.end(), []);
    drop(host);
    service.end();
}

#[test]
fn a_client_that_takes_no_completions_is_throttled_and_not_waited_for() {
    let service = Service::start(TWO);
    let b = service.place.open("vm-b");
    fill(&b, 100);
    let neighbour = Neighbour::start(b, 100);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    // The completion queue holds 31; its head never moves.
    host.submit(2, DEPTH);
    assert_eq!(host.statuses(DEPTH), [0; DEPTH as usize]);
    host.submit(2, DEPTH);
    neighbour.goes_on();
    assert_eq!(host.completed(), DEPTH as usize);
    assert_eq!(neighbour.end(), []);
    drop(host);
    service.end();
}

#[test]
fn a_controller_that_is_reset_by_its_client_with_commands_at_the_device_waits_for_them() {
    let service = Service::start(TWO);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    hang(&service, OnAbort::NotAborted, 2);
    submit_all(&service, &mut host, 2);
    host.client.reset().unwrap();
    assert_eq!(host.read(0x1c) & 1, 0, "disabled");
    // A reset came only after the proof.
    service.device.release();
    drop(host);
    let again = service.place.open("vm-a");
    fill(&again, 9);
    check(&again, 9);
    drop(again);
    service.end();
}

#[test]
fn the_service_ends_with_commands_that_hang() {
    let service = Service::start(TWO);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    hang(&service, OnAbort::NotAborted, 4);
    submit_all(&service, &mut host, 4);
    service.end();
}

/// A client that is alone, on the whole namespace.
const OPERATOR: &str = r#"
[[client]]
name = "vm-a"
uid = [UID]
unsealed-memory = true
[[client.namespace]]
nsid = 1
source = [{ nsid = 1 }]
allow = ["read", "write", "flush", "format"]
"#;

/// How long the controllers' owner would wait for a format.
const FORMAT_TIMEOUT: Duration = PATIENCE.saturating_mul(4);

/// Begins a format that the controller holds; true when it has ended with an error.
fn hanging_format(service: &Service) -> JoinHandle<bool> {
    let formats = Matcher::admin().opcode(AdminOpcode::FORMAT_NVM.0);
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    service.device.inject(Fault::on(formats, hang));
    let client = service.place.open("vm-a");
    let format = Command {
        opcode: AdminOpcode::FORMAT_NVM.0,
        nsid: 1,
        ..Command::ZERO
    };
    let waiting = thread::spawn(move || {
        // SAFETY: a format carries no address.
        unsafe { client.admin_raw(format, AdminData::None) }.is_err()
    });
    until("the format is held", || {
        service.device.statistics().held_commands > 0
    });
    waiting
}

#[test]
fn the_service_ends_although_the_controller_formats_for_long() {
    let mut service = Service::start_with(OPERATOR, Duration::from_secs(2), FORMAT_TIMEOUT);
    let waiting = hanging_format(&service);
    let began = Instant::now();
    let error = service.serving.take().unwrap().finish().unwrap_err();
    assert!(
        began.elapsed() < FORMAT_TIMEOUT / 2,
        "{:?}",
        began.elapsed()
    );
    let ServeError::StillCarriedOut { commands, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*commands, ["Format NVM of vm-a"]);
    let audit = service.place.audit();
    let formats: Vec<_> = audit
        .iter()
        .filter(|record| record["command"] == "Format NVM")
        .collect();
    assert_eq!(formats.len(), 1, "{audit:?}");
    assert!(formats[0]["status"].is_null(), "{}", formats[0]);
    service.device.release();
    assert!(waiting.join().unwrap());
}

#[test]
fn the_service_waits_at_its_end_for_a_format_that_its_client_does_not_wait_for() {
    let mut service = Service::start_with(OPERATOR, PATIENCE, FORMAT_TIMEOUT);
    let waiting = hanging_format(&service);
    let device = Arc::clone(&service.device);
    let later = thread::spawn(move || {
        // The end of the service ends its session, long before the format ends.
        let failed = waiting.join().unwrap();
        thread::sleep(Duration::from_millis(1500));
        device.release();
        failed
    });
    service.serving.take().unwrap().finish().unwrap();
    assert!(later.join().unwrap());
    let audit = service.place.audit();
    let format = audit
        .iter()
        .find(|record| record["command"] == "Format NVM")
        .unwrap();
    assert_eq!(format["status"]["sc"], 0, "{format}");
}

#[test]
fn without_a_proof_memory_is_not_let_go_of_even_at_the_end() {
    let mut service = Service::start_with(TWO, Duration::from_secs(3), PATIENCE);
    let mut host = Host::new(&service.place.socket("vm-a"), 1);
    let _data = host.lend();
    let mapped = service.controller.address_space().mappings();
    hang(&service, OnAbort::NotAborted, 1);
    submit_all(&service, &mut host, 1);
    let gone = Fault::Controller(ControllerFault::Gone, Until::Cleared);
    service.device.inject(gone);
    service
        .place
        .until_told("controller-recovered", &[("usable", json!(false))]);
    drop(host);
    let serving = service.serving.take().unwrap();
    let Err(ServeError::StillInUse { clients, .. }) = serving.finish() else {
        panic!("it has ended");
    };
    assert_eq!(clients, ["vm-a"]);
    let kept = service.controller.address_space().mappings();
    assert!(mapped.iter().all(|mapping| kept.contains(mapping)));
}

#[test]
fn somebody_who_is_not_in_the_policy_is_turned_away_and_that_is_recorded() {
    let mine = nix::unistd::geteuid().as_raw();
    let clients = TWO.replace("UID", &(mine + 1).to_string());
    let place = Place::new("emulated:size=64M", &clients);
    let serving = place.serve();
    let refused = nvme_vfio_user::Client::connect(&place.socket("vm-a"), &Default::default());
    if nix::unistd::geteuid().is_root() {
        // Permissions do not hold root back; the policy does.
        assert!(refused.is_err());
        place.until_told(
            "connection-refused",
            &[("client", json!("vm-a")), ("uid", json!(mine))],
        );
    } else {
        assert!(refused.is_err());
    }
    serving.finish().unwrap();
}
