//! Commands of the operator classes.
#![allow(unsafe_code)] // admin commands whose data the driver points to

use nvme_vfio::{AdminData, CommandError, Error, IoQueue, QueueOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Controller, Options};
use nvme_vfio_emulator::{
    CommandFault, Config, ControllerFault, Emulator, Fault, Matcher, OnAbort,
};
use nvme_vfio_queues::command::LogPageId;
use nvme_vfio_queues::log::FirmwareSlotLog;
use nvme_vfio_queues::{AdminOpcode, Command, Status};
use zerocopy::FromBytes;

use super::rig::{Plan, Rig, slice};
use crate::audit::tests::Paper;
use crate::audit::{self, AuditOptions, Auditor};
use crate::client::ClientId;
use crate::command::ClassSet;

/// How long is waited for what is to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks of the real namespace.
const BLOCKS: u64 = 4096;

fn rig(whole: bool, operator: bool) -> Rig {
    let blocks = if whole { BLOCKS } else { BLOCKS / 2 };
    Rig::new(Plan {
        slices: vec![vec![slice(1, 0, blocks)]],
        operator,
        ..plan()
    })
}

/// An operator of a whole namespace.
fn plan() -> Plan {
    Plan {
        device: "size=2M,lba=512,lba_formats=512:4096,stepped,mdts=5".to_owned(),
        slices: vec![vec![slice(1, 0, BLOCKS)]],
        classes: ClassSet::all(),
        operator: true,
        ..Plan::default()
    }
}

fn admin(rig: &Rig, command: Command, data: AdminData<'_>) -> Result<u32, Status> {
    // SAFETY: none of the test's commands carries an address of its own.
    match unsafe { rig.client.admin_raw(command, data) } {
        Ok(entry) => Ok(entry.result()),
        Err(Error::Status { status, .. }) => Err(status.code()),
        Err(error) => panic!("{error}"),
    }
}

fn format(index: u32, erase: u32) -> Command {
    Command {
        opcode: AdminOpcode::FORMAT_NVM.0,
        nsid: 1,
        cdw10: index | erase << 9,
        ..Command::ZERO
    }
}

#[test]
fn an_operator_formats_its_namespace_but_not_to_other_blocks() {
    let rig = rig(true, true);
    rig.set_real(1, 100, &[7; 512]);
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    assert_eq!(
        admin(&rig, format(now ^ 1, 1), AdminData::None),
        Err(Status::INVALID_FORMAT)
    );
    // Metadata and protection information change the format, too.
    assert_eq!(
        admin(&rig, format(now | 1 << 4, 1), AdminData::None),
        Err(Status::INVALID_FORMAT)
    );
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
    admin(&rig, format(now, 1), AdminData::None).unwrap();
    assert_eq!(rig.real(1, 100, 1), [0; 512]);
    // The namespace is as before, and the client's.
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let buffer = rig.client.allocate(512).unwrap();
    queue
        .write_blocking(&namespace, BLOCKS - 1, buffer)
        .unwrap();
}

#[test]
fn an_operator_of_less_than_a_namespace_formats_nothing() {
    let rig = rig(false, true);
    rig.set_real(1, 100, &[7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    assert_eq!(
        admin(&rig, format(now, 1), AdminData::None),
        Err(Status::OPERATION_DENIED)
    );
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
}

/// A namespace whose blocks were made larger without the server's knowledge would move more than was counted, and read the client's data as a list of PRPs.
#[test]
fn a_format_that_is_of_all_namespaces_keeps_the_blocks_of_all() {
    for (lba, answer) in [(4096, Err(Status::INVALID_FORMAT)), (512, Ok(0))] {
        let device = "size=2M,lba=512,lba_formats=512:4096,stepped,mdts=5,namespaces=2";
        let mut config: Config = device.parse().unwrap();
        config.namespaces[1].lba = lba;
        let device = Emulator::new(config).unwrap();
        let transport = EmulatedTransport::stepped(Arc::clone(&device));
        let server = Controller::with_transport(Arc::new(transport), Options::default()).unwrap();
        let plan = Plan {
            slices: vec![
                vec![slice(1, 0, BLOCKS)],
                vec![slice(2, 0, (2 << 20) / u64::from(lba))],
            ],
            classes: ClassSet::all(),
            operator: true,
            // A format of one is a format of all.
            format_attributes: Some(1),
            ..Plan::default()
        };
        let rig = Rig::on(plan, device, server);
        rig.set_real(1, 100, &[7; 512]);
        let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
        assert_eq!(admin(&rig, format(now, 1), AdminData::None), answer);
        let formatted = answer.is_ok();
        assert_eq!(rig.real(1, 100, 1) == [0; 512], formatted);
    }
}

#[test]
fn who_is_no_operator_is_refused() {
    let rig = rig(true, false);
    rig.set_real(1, 100, &[7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    assert!(admin(&rig, format(now, 1), AdminData::None).is_err());
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
}

#[test]
fn data_of_an_operators_command_reaches_the_real_controller() {
    let rig = rig(true, true);
    let mut image = vec![0x5a; 8192];
    image[..8].copy_from_slice(b"99.9beta");
    for (chunk, offset) in image.chunks(4096).zip((0u32..).step_by(1024)) {
        let download = Command {
            opcode: AdminOpcode::FIRMWARE_DOWNLOAD.0,
            cdw10: 1023,
            cdw11: offset,
            ..Command::ZERO
        };
        admin(&rig, download, AdminData::ToController(chunk)).unwrap();
    }
    let commit = Command {
        opcode: AdminOpcode::FIRMWARE_COMMIT.0,
        // Slot 2, to be replaced and not activated.
        cdw10: 2,
        ..Command::ZERO
    };
    let slot = |rig: &Rig| {
        let log = rig
            .server
            .log_page(LogPageId::FIRMWARE_SLOT, 0, 512)
            .unwrap();
        FirmwareSlotLog::read_from_bytes(&log).unwrap().frs[1]
    };
    let before = slot(&rig);
    admin(&rig, commit, AdminData::None).unwrap();
    assert_ne!(slot(&rig), before);
    // More than the server takes at once is refused before any memory is had for it.
    let endless = Command {
        opcode: AdminOpcode::FIRMWARE_DOWNLOAD.0,
        cdw10: u32::MAX,
        ..Command::ZERO
    };
    assert_eq!(
        admin(&rig, endless, AdminData::ToController(&image)),
        Err(Status::INVALID_FIELD)
    );
    // What the real controller does not know it says itself.
    let security = Command {
        opcode: AdminOpcode::SECURITY_RECEIVE.0,
        cdw11: 512,
        ..Command::ZERO
    };
    let refused = admin(&rig, security, AdminData::FromController(&mut image[..512]));
    assert_eq!(refused, Err(Status::INVALID_OPCODE));
}

/// The client sends the command, which the controller holds, resets its own controller without waiting for the answer, and only then the controller goes on.
fn send_and_go(rig: &Rig, command: Command, data: AdminData<'_>) {
    leave(rig, command, data);
    rig.device.clear_faults();
    rig.device.release();
}

/// The client sends the command, which the controller holds, and resets its own controller without waiting for the answer.
fn leave(rig: &Rig, command: Command, data: AdminData<'_>) {
    let which = Matcher::admin().opcode(command.opcode);
    rig.device
        .inject(Fault::on(which, CommandFault::Hang(OnAbort::NotAborted)));
    std::thread::scope(|scope| {
        let client = rig.client.clone();
        let waiting = scope.spawn(move || {
            // SAFETY: the command carries no address of its own.
            unsafe { client.admin_raw(command, data) }.is_err()
        });
        while rig.device.statistics().held_commands == 0 {
            std::thread::yield_now();
        }
        rig.front.reset();
        while rig.front.is_resetting() {
            rig.step();
        }
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn a_client_that_resets_does_not_wait_for_its_operators_command() {
    let rig = rig(true, true);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    send_and_go(&rig, format(now, 1), AdminData::None);
}

/// The audit's file, and a rig whose commands it has.
fn recorded() -> (tempfile::TempDir, Auditor, Rig) {
    recorded_with(AuditOptions::default())
}

fn recorded_with(options: AuditOptions) -> (tempfile::TempDir, Auditor, Rig) {
    let folder = crate::scratch::folder();
    let file = audit::open(&folder.path().join("audit.jsonl")).unwrap();
    let auditor = Auditor::start(file, options).unwrap();
    let rig = Rig::new(Plan {
        audit: Some(auditor.client(ClientId(0), "tester", 64)),
        ..plan()
    });
    (folder, auditor, rig)
}

fn lines(folder: &tempfile::TempDir) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn download(rig: &Rig) -> Result<u32, Status> {
    let word = [0; 4];
    let download = Command {
        opcode: AdminOpcode::FIRMWARE_DOWNLOAD.0,
        ..Command::ZERO
    };
    admin(rig, download, AdminData::ToController(&word))
}

#[test]
fn what_an_operator_changes_is_recorded_or_not_done() {
    let paper = Paper::default();
    paper.shut(true);
    let auditor = Auditor::start(paper.clone(), AuditOptions::default()).unwrap();
    let rig = Rig::new(Plan {
        audit: Some(auditor.client(ClientId(0), "tester", 64)),
        ..plan()
    });
    rig.set_real(1, 100, &[7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    let mut sent = 0;
    // What the controller says to them does not matter: they were sent.
    let mut download_one = || {
        let interrupted = download(&rig) == Err(Status::COMMAND_INTERRUPTED);
        sent += u32::from(!interrupted);
        assert!(sent < 1000, "the paper takes nothing");
        interrupted
    };
    // There is no room, and whoever writes takes nothing more out of it.
    loop {
        while !download_one() {}
        paper.until_looked();
        if download_one() {
            break;
        }
    }
    let hidden = admin(&rig, format(now, 1), AdminData::None);
    assert_eq!(hidden, Err(Status::COMMAND_INTERRUPTED));
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
    paper.shut(false);
    let until = Instant::now() + PATIENCE;
    while admin(&rig, format(now, 1), AdminData::None).is_err() {
        assert!(Instant::now() < until, "there is no room again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rig.real(1, 100, 1), [0; 512]);
    drop(rig);
    auditor.finish().unwrap();
    let lines = paper.lines();
    let recorded = |line: &&serde_json::Value| line["ring"] == "operators";
    let numbers: Vec<_> = lines
        .iter()
        .filter(recorded)
        .map(|line| &line["number"])
        .collect();
    assert_eq!(numbers, (0..=sent).collect::<Vec<_>>());
}

#[test]
fn operators_commands_are_no_more_than_a_thousand_in_a_second() {
    const COMMANDS: u32 = 50;
    let rig = rig(true, true);
    let began = Instant::now();
    for _ in 0..COMMANDS {
        assert_ne!(download(&rig), Err(Status::COMMAND_INTERRUPTED));
    }
    assert!(began.elapsed() >= Duration::from_millis(1) * (COMMANDS - 1));
}

/// The records of the commands of that name.
fn records(folder: &tempfile::TempDir, name: &str) -> Vec<serde_json::Value> {
    let mut lines = lines(folder);
    lines.retain(|line| line["command"] == name);
    lines
}

#[test]
fn what_is_only_counted_of_an_operator_fails_in_the_count_too() {
    let (folder, auditor, rig) = recorded_with(AuditOptions {
        others_per_second: 0,
        ..AuditOptions::default()
    });
    let receive = Command {
        opcode: AdminOpcode::SECURITY_RECEIVE.0,
        cdw11: 512,
        ..Command::ZERO
    };
    let mut data = [0; 512];
    let declined = admin(&rig, receive, AdminData::FromController(&mut data));
    assert_eq!(declined, Err(Status::INVALID_OPCODE));
    // Not sent at all: other blocks.
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    assert!(admin(&rig, format(now ^ 1, 1), AdminData::None).is_err());
    drop(rig);
    auditor.finish().unwrap();
    assert!(records(&folder, "Security Receive").is_empty());
    assert!(records(&folder, "Format NVM").is_empty());
    let lines = lines(&folder);
    let count = |field: fn(&serde_json::Value) -> &serde_json::Value| -> u64 {
        let counted = lines.iter().filter(|line| line["kind"] == "counted");
        counted.filter_map(|line| field(line).as_u64()).sum()
    };
    assert_eq!(count(|line| &line["others"]["security"]), 1);
    assert_eq!(count(|line| &line["others"]["format"]), 1);
    assert_eq!(count(|line| &line["failed"]), 2);
}

#[test]
fn what_came_of_a_format_is_recorded_although_its_client_did_not_wait_for_it() {
    let (folder, auditor, rig) = recorded();
    rig.set_real(1, 100, &[7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    send_and_go(&rig, format(now, 1), AdminData::None);
    assert_eq!(rig.real(1, 100, 1), [0; 512]);
    // Nothing polls the client's controller any more.
    drop(rig);
    auditor.finish().unwrap();
    let records = records(&folder, "Format NVM");
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["ring"], "operators");
    assert_eq!(records[0]["verdict"], "allowed");
    assert_eq!(records[0]["status"]["sct"], 0);
    assert_eq!(records[0]["status"]["sc"], 0);
    assert!(records[0]["latency_ns"].is_u64());
}

#[test]
fn of_a_format_that_the_controller_never_answered_the_record_says_that_nothing_is_known() {
    let (folder, auditor, rig) = recorded();
    let formats = Matcher::admin().opcode(AdminOpcode::FORMAT_NVM.0);
    rig.device
        .inject(Fault::on(formats, CommandFault::Hang(OnAbort::NotAborted)));
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    std::thread::scope(|scope| {
        let client = rig.client.clone();
        // SAFETY: a format carries no address.
        let sent = scope
            .spawn(move || unsafe { client.admin_raw(format(now, 1), AdminData::None).is_err() });
        while rig.device.statistics().held_commands == 0 {
            std::thread::yield_now();
        }
        // Somebody pulls it out.
        rig.device
            .inject(Fault::of_controller(ControllerFault::Gone));
        assert!(sent.join().unwrap());
    });
    drop(rig);
    auditor.finish().unwrap();
    let records = records(&folder, "Format NVM");
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(records[0]["status"].is_null(), "{records:?}");
    assert!(records[0]["latency_ns"].is_u64());
}

#[test]
fn what_the_controller_declines_after_its_client_has_gone_takes_nothing_from_it_either() {
    let rig = rig(true, true);
    // It is attached already.
    let list = controllers(&[1]);
    send_and_go(&rig, attachment(1, 0), AdminData::ToController(&list));
    rig.client.recover().unwrap();
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let buffer = rig.client.allocate(512).unwrap();
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

/// A read of the client's: whether it ends within a hundred steps of a device that is stepped.
fn reads(rig: &Rig, queue: &mut IoQueue) -> bool {
    let namespace = rig.client.only_namespace().unwrap();
    let buffer = rig.client.allocate(512).unwrap();
    queue.read(&namespace, 0, buffer, 0).unwrap();
    queue.ring();
    (0..100).any(|_| {
        rig.step();
        queue.poll().is_some()
    })
}

/// For the front end the command is not in flight any more when it ends: it may not poll.
#[test]
fn a_clients_commands_go_on_when_the_operators_command_ends_that_it_did_not_wait_for() {
    let rig = rig(true, true);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    for later in ["a read", "a format"] {
        leave(&rig, format(now, 1), AdminData::None);
        rig.client.recover().unwrap();
        let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
        // It is still under way, and nothing else runs beside it.
        let beside = admin(&rig, format(now, 0), AdminData::None);
        assert_eq!(beside, Err(Status::COMMAND_INTERRUPTED));
        if later == "a read" {
            assert!(!reads(&rig, &mut queue));
        }
        rig.device.clear_faults();
        assert_eq!(rig.device.release(), 1);
        let until = Instant::now() + PATIENCE;
        if later == "a read" {
            while queue.poll().is_none() {
                assert!(Instant::now() < until, "the read is not fetched");
                rig.step();
            }
        } else {
            while admin(&rig, format(now, 1), AdminData::None).is_err() {
                assert!(Instant::now() < until, "the format is not sent");
            }
        }
    }
}

#[test]
fn an_operators_command_is_not_sent_beside_the_clients_reads() {
    let rig = rig(true, true);
    rig.set_real(1, 100, &[7; 512]);
    let now = rig.server.identify_namespace(1).unwrap().format_index() as u32;
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    rig.device.inject(Fault::on(Matcher::io(), hang));
    assert!(!reads(&rig, &mut queue));
    let beside = admin(&rig, format(now, 1), AdminData::None);
    assert_eq!(beside, Err(Status::COMMAND_INTERRUPTED));
    rig.device.clear_faults();
    assert_eq!(rig.device.release(), 1);
    let until = Instant::now() + PATIENCE;
    while queue.poll().is_none() {
        assert!(Instant::now() < until, "the read does not end");
        rig.step();
    }
    assert_eq!(rig.real(1, 100, 1), [7; 512]);
    admin(&rig, format(now, 1), AdminData::None).unwrap();
}

fn manage(nsid: u32, select: u32) -> Command {
    Command {
        opcode: AdminOpcode::NAMESPACE_MANAGEMENT.0,
        nsid,
        cdw10: select,
        ..Command::ZERO
    }
}

fn attachment(nsid: u32, select: u32) -> Command {
    Command {
        opcode: AdminOpcode::NAMESPACE_ATTACHMENT.0,
        ..manage(nsid, select)
    }
}

/// A list of these controllers.
fn controllers(identifiers: &[u16]) -> [u8; 4096] {
    let mut list = [0; 4096];
    let words = [identifiers.len() as u16];
    let words = words.iter().chain(identifiers);
    for (place, word) in list.chunks_exact_mut(2).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    list
}

/// A controller takes the length of data from the blocks that the namespace has: where they are larger than was counted, it takes what the client has in its pages for a list of
/// addresses.
#[test]
fn a_namespace_that_its_operator_has_made_anew_is_no_longer_the_client_s() {
    let rig = rig(true, true);
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let other = rig.server.identify_namespace(1).unwrap().format_index() as u8 ^ 1;
    admin(&rig, manage(1, 1), AdminData::None).unwrap();
    let mut wanted = [0; 4096];
    wanted[..8].copy_from_slice(&256_u64.to_le_bytes());
    wanted[8..16].copy_from_slice(&256_u64.to_le_bytes());
    wanted[26] = other;
    let made = admin(&rig, manage(0, 0), AdminData::ToController(&wanted));
    assert_eq!(made, Ok(1), "it has the name of the one before");
    let list = controllers(&[rig.server.identify().cntlid.get()]);
    let gone = Err(Status::INVALID_NAMESPACE_OR_FORMAT);
    let attached = admin(&rig, attachment(1, 0), AdminData::ToController(&list));
    assert_eq!(attached, gone);
    // Whoever attaches it: the client has blocks of 512 bytes in mind, and the controller of 4096.
    // SAFETY: the command carries no address of its own.
    unsafe {
        rig.server
            .admin_raw(attachment(1, 0), AdminData::ToController(&list))
    }
    .unwrap();
    assert_eq!(
        rig.server.identify_namespace(1).unwrap().block_size(),
        Some(4096)
    );
    let buffer = rig.client.allocate(8192).unwrap();
    let error = queue.read_blocking(&namespace, 0, buffer).unwrap_err();
    let status = match error {
        Error::Command(CommandError::Status(status)) => status.code(),
        other => panic!("{other}"),
    };
    assert_eq!(Err(status), gone);
    // Nor is it flushed for the client: the command before is all that its controller has sent.
    let (flushes, control) = (
        rig.device.statistics().commands,
        rig.front.register_read(0x14, 4),
    );
    rig.front
        .register_write(0x14, 4, control & !0xc000 | 1 << 14);
    for _ in 0..20 {
        rig.step();
    }
    assert_eq!(
        rig.front.register_read(0x1c, 4) >> 2 & 0b11,
        0b10,
        "it is shut down"
    );
    assert_eq!(rig.device.statistics().commands, flushes);
    // A controller that was shut down deletes no queue, and is waited for; one that was reset has none.
    rig.front.reset();
}

#[test]
fn what_the_controller_declines_takes_nothing_from_its_client() {
    let rig = rig(true, true);
    // It is attached already.
    let list = controllers(&[1]);
    let attached = admin(&rig, attachment(1, 0), AdminData::ToController(&list));
    assert!(attached.is_err());
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let buffer = rig.client.allocate(512).unwrap();
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

#[test]
fn an_operator_attaches_and_detaches_for_its_own_controller_alone() {
    let rig = rig(true, true);
    // None of these reaches the controller.
    let attachments = Matcher::admin().opcode(AdminOpcode::NAMESPACE_ATTACHMENT.0);
    let told = CommandFault::Status(Status::INTERNAL_ERROR);
    rig.device.inject(Fault::on(attachments, told));
    for list in [
        controllers(&[]),
        controllers(&[1, 2]),
        controllers(&[1; 2000]),
    ] {
        let detached = admin(&rig, attachment(1, 1), AdminData::ToController(&list));
        assert_eq!(detached, Err(Status::CONTROLLER_LIST_INVALID));
    }
    rig.device.clear_faults();
    // Whichever it names, it is its own.
    let list = controllers(&[0x1234]);
    admin(&rig, attachment(1, 1), AdminData::ToController(&list)).unwrap();
    assert!(
        rig.server
            .identify_namespace(1)
            .map_or(true, |identify| identify.nsze.get() == 0)
    );
}
