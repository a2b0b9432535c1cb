//! What a client of a served controller can learn by asking: every Identify structure, log page and feature, of every namespace identifier that means something to anybody.
#![allow(unsafe_code)] // Sends admin commands of every number to a controller that is served.

mod common;
#[path = "../src/scratch.rs"]
mod scratch;

use std::sync::Arc;

use common::medium::Medium;
use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, AdminData, Controller, Options};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{OpenedGroup, ServeOptions, Serving};
use nvme_vfio_queues::Command;
use nvme_vfio_queues::command::LogPageId;

const SERIAL: &str = "REALSERIAL42";
const MODEL: &str = "The real model of it";
const FIRMWARE: &str = "RealFw9";

/// Texts and numbers that are somebody else's, with what they are.
type Secrets = Vec<(String, Vec<u8>)>;

struct Sweep {
    controller: Controller,
    /// All answers, each with what was asked.
    answers: Vec<(String, Vec<u8>)>,
}

impl Sweep {
    fn ask(&mut self, what: String, command: Command) {
        let mut data = vec![0; 4096];
        // SAFETY: Identify, Get Log Page and Get Features touch no memory but that of the data pointer, which the driver fills in for `data`.
        let done = unsafe {
            self.controller
                .admin_raw(command, AdminData::FromController(&mut data))
        };
        if let Ok(entry) = done {
            data.extend(entry.result().to_le_bytes());
            self.answers.push((what, data));
        }
    }

    /// Sets the timestamp, which counts the milliseconds from the reset until then and would have every small number for one of them, also a secret one.
    fn tell_the_time(&mut self) {
        let command = Command {
            opcode: 0x09,
            cdw10: 0x0e,
            ..Command::ZERO
        };
        let time = (1_u64 << 40).to_le_bytes();
        // SAFETY: Set Features touches no memory but that of the data pointer, which the driver fills in for `time`.
        let done = unsafe {
            self.controller
                .admin_raw(command, AdminData::ToController(&time))
        };
        done.unwrap();
    }

    fn everything(&mut self) {
        let nsids = [0, 1, 2, 3, 7, 77, u32::MAX - 1, u32::MAX];
        for nsid in nsids {
            for cns in 0..=0xff {
                for set in [0, 2 << 24] {
                    let command = Command {
                        opcode: 0x06,
                        nsid,
                        cdw10: cns,
                        cdw11: set,
                        ..Command::ZERO
                    };
                    self.ask(
                        format!("Identify {cns:#x} of {nsid:#x}, set {set:#x}"),
                        command,
                    );
                }
            }
            for lid in 0..=0xff {
                let command = Command {
                    opcode: 0x02,
                    nsid,
                    cdw10: 1023 << 16 | 1 << 15 | lid,
                    ..Command::ZERO
                };
                self.ask(format!("log page {lid:#x} of {nsid:#x}"), command);
            }
            for fid in 0..=0xff {
                for select in 0..4 {
                    let command = Command {
                        opcode: 0x0a,
                        nsid,
                        cdw10: fid | select << 8,
                        ..Command::ZERO
                    };
                    self.ask(format!("feature {fid:#x} ({select}) of {nsid:#x}"), command);
                }
            }
        }
    }
}

/// What the real controller says of itself that names it.
fn names_of(controller: &Controller, nsids: &[u32]) -> Secrets {
    let mut secrets: Secrets = vec![
        ("the real serial number".to_owned(), SERIAL.into()),
        ("the real model".to_owned(), MODEL.into()),
        ("the real firmware".to_owned(), FIRMWARE.into()),
    ];
    let nqn = controller.identify().subsystem_nqn().to_string();
    if !nqn.is_empty() {
        secrets.push(("the real subsystem's name".to_owned(), nqn.into_bytes()));
    }
    for nsid in nsids {
        let namespace = controller.identify_namespace(*nsid).unwrap();
        let ids = [namespace.nguid.to_vec(), namespace.eui64.to_vec()];
        for id in ids {
            if id.iter().any(|byte| *byte != 0) {
                secrets.push((format!("an identifier of real namespace {nsid}"), id));
            }
        }
    }
    secrets
}

#[test]
fn nobody_learns_of_anybody_else_by_asking() {
    let folder = scratch::folder();
    let uid = nix::unistd::geteuid().as_raw();
    let client = |name: &str, nsid: u32, start: u64, blocks: u64| {
        format!(
            "[[client]]\nname = \"{name}\"\nuid = [{uid}]\nisolation = \"bounce\"\n[[client.namespace]]\nnsid = {nsid}\nsource = [{{ nsid = 1, start = {start}, blocks = {blocks} }}]\nallow = [\"read\", \"write\", \"flush\"]\n"
        )
    };
    let text = format!(
        "controller = [\"emulated\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{}{}",
        client("curious-carol", 1, 0, 1111),
        client("private-peter", 7, 2000, 1717),
    );
    let policy = PolicyFile::parse(&text, folder.path()).unwrap();
    let medium = Medium::default();
    let config =
        format!("nsids=1/4197K:3/2M,nn=9,serial={SERIAL},model={MODEL},firmware={FIRMWARE}");
    let device = Emulator::with_backend(config.parse().unwrap(), medium.backend()).unwrap();
    let transport = EmulatedTransport::running(Arc::clone(&device)).unwrap();
    let real = Controller::with_transport(Arc::new(transport), Options::default()).unwrap();
    let mut secrets = names_of(&real, &[1, 3]);
    let group = OpenedGroup::of(&policy, vec![real]).unwrap();
    let resolved = policy.resolve(group.facts(), &group.budget()).unwrap();
    let peter = &resolved.clients[1];
    secrets.push((
        "his name".to_owned(),
        peter.policy.name.clone().into_bytes(),
    ));
    secrets.push((
        "his serial number".to_owned(),
        peter.names.serial.clone().into_bytes(),
    ));
    secrets.push((
        "his subsystem".to_owned(),
        peter.names.subnqn.clone().into_bytes(),
    ));
    secrets.push((
        "his namespace's NGUID".to_owned(),
        peter.namespaces[0].names.nguid.to_vec(),
    ));
    secrets.push((
        "his namespace's UUID".to_owned(),
        peter.namespaces[0].names.uuid.to_vec(),
    ));
    secrets.push((
        "his namespace's size".to_owned(),
        1717u64.to_le_bytes().to_vec(),
    ));
    secrets.push((
        "the real namespace's size".to_owned(),
        8394u64.to_le_bytes().to_vec(),
    ));
    let own = resolved.clients[0].names.serial.clone();

    let serving = Serving::with_group(&policy, group, &ServeOptions::default()).unwrap();
    let open = |index: usize| {
        let (_, path) = serving.clients().nth(index).unwrap();
        Controller::open(&Address::VfioUser(path.to_owned())).unwrap()
    };
    // He is there, and does something.
    let other = open(1);
    let namespace = other.only_namespace().unwrap();
    let mut queue = other.io_queue(Default::default()).unwrap();
    let buffer = queue
        .write_blocking(&namespace, 5, other.allocate(4096).unwrap())
        .unwrap();
    drop(buffer);
    // An error of his, with his block in it.
    let past = nvme_vfio_queues::Command {
        opcode: 0x0c,
        nsid: 7,
        cdw10: 0x1717,
        ..Command::ZERO
    };
    // SAFETY: Verify has no data.
    unsafe { queue.submit_raw(past, 1) }.unwrap();
    queue.wait().unwrap();
    let mut sweep = Sweep {
        controller: open(0),
        answers: Vec::new(),
    };
    // Nothing of what he does is counted with her.
    let health = |controller: &Controller| {
        let page = controller
            .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
            .unwrap();
        // Data units, commands, media errors and error log entries.
        (page[32..96].to_vec(), page[160..192].to_vec())
    };
    let before = health(&sweep.controller);
    for block in 0..1500 {
        let buffer = other.allocate(512).unwrap();
        queue.write_blocking(&namespace, block, buffer).unwrap();
    }
    assert_eq!(
        health(&sweep.controller),
        before,
        "another client's work is counted"
    );
    assert_ne!(health(&other).0, before.0, "his own is not");
    sweep.tell_the_time();
    sweep.everything();
    let answers = sweep.answers;
    assert!(answers.len() > 30, "{} answers", answers.len());
    let found = |needle: &[u8]| {
        answers
            .iter()
            .filter(|(_, data)| data.windows(needle.len()).any(|window| window == needle))
            .map(|(what, _)| what.as_str())
            .collect::<Vec<_>>()
    };
    assert!(
        !found(own.as_bytes()).is_empty(),
        "not even its own serial number was found"
    );
    let leaks: Vec<_> = secrets
        .iter()
        .map(|(what, secret)| (what, found(secret)))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // A namespace that exists and one that does not have the same answers. (The log pages of errors and of health count what was refused meanwhile, and
    // the timestamp goes on.)
    let of = |nsid: u32| -> Vec<_> {
        let name = format!(" of {nsid:#x}");
        let counted = ["log page 0x1", "log page 0x2", "feature 0xe (0)"];
        answers
            .iter()
            .filter_map(|(what, data)| {
                let (asked, rest) = what.split_once(&name)?;
                let its = rest.is_empty() || rest.starts_with(',');
                (its && !counted.contains(&asked)).then(|| (format!("{asked}{rest}"), data))
            })
            .collect()
    };
    let absent = of(77);
    for nsid in [3, 7] {
        for (one, two) in of(nsid).iter().zip(&absent) {
            assert!(
                one == two,
                "namespace {nsid}: {} and {} differ",
                one.0,
                two.0
            );
        }
        assert_eq!(of(nsid).len(), absent.len());
    }
    drop((sweep.controller, queue, other));
    serving.finish().unwrap();
}
