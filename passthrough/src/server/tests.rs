//! What becomes of the service when one of its threads panics, and what root does not serve.
#![allow(unsafe_code)] // admin commands whose data the driver points to

use std::fs::Permissions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, AdminData, Controller, Options, QueueOptions};
use nvme_vfio_dma::Access;
use nvme_vfio_emulator::{CommandFault, Emulator, Fault, Matcher, OnAbort};
use nvme_vfio_queues::{AdminOpcode, Command, NvmOpcode};
use nvme_vfio_user::message::{DmaAccess, IrqAction, IrqSetData, SetIrqs};
use nvme_vfio_user::{Client, ClientOptions, Stop};

use super::running::Ending;
use super::*;
use crate::controller::MARKED_FIRMWARE;
use crate::policy::{PolicyError, PolicyFile};

/// Bytes of a client's memory over which the server panics, in these tests only: when it is lent, or when it is refused.
const MARKED: u64 = 1021 << 16;

pub(super) fn panic_if_marked(bytes: u64) {
    assert_ne!(bytes, MARKED, "memory that a test has marked");
}

/// Clients of an emulated controller.
struct Service {
    folder: tempfile::TempDir,
    device: Arc<Emulator>,
    serving: Serving,
}

/// Two clients; the second may lend next to nothing.
fn serve() -> Service {
    let uid = nix::unistd::geteuid().as_raw();
    let client = |name: &str, start: u64, memory: &str| {
        format!(
            "[[client]]\nname = \"{name}\"\nuid = [{uid}]\nlimits = {{ memory = \"{memory}\" }}\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1, start = {start}, blocks = 4096 }}]\nallow = [\"read\", \"write\"]\n"
        )
    };
    let options = ServeOptions {
        unmap_patience: Duration::from_secs(60),
        ..ServeOptions::default()
    };
    serve_with(
        &(client("a", 0, "2GiB") + &client("b", 4096, "16MiB")),
        &options,
    )
}

/// One client, an operator.
fn serve_operator(end_patience: Duration) -> Service {
    let uid = nix::unistd::geteuid().as_raw();
    let options = ServeOptions {
        end_patience,
        ..ServeOptions::default()
    };
    let client = format!(
        "[[client]]\nname = \"a\"\nuid = [{uid}]\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1 }}]\nallow = [\"read\", \"firmware\", \"format\"]\n"
    );
    serve_with(&client, &options)
}

fn serve_with(clients: &str, options: &ServeOptions) -> Service {
    let folder = crate::scratch::folder();
    let text = format!(
        "controller = [\"emulated\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{clients}"
    );
    let policy = PolicyFile::parse(&text, folder.path()).unwrap();
    let device = Emulator::new("size=16M".parse().unwrap()).unwrap();
    let transport = EmulatedTransport::running(Arc::clone(&device)).unwrap();
    let patient = Options {
        admin_timeout: Duration::from_secs(600),
        ..Options::default()
    };
    let real = Controller::with_transport(Arc::new(transport), patient).unwrap();
    let group = OpenedGroup::of(&policy, vec![real]).unwrap();
    let serving = Serving::with_group(&policy, group, options).unwrap();
    Service {
        folder,
        device,
        serving,
    }
}

impl Service {
    fn socket(&self, name: &str) -> PathBuf {
        let found = self.serving.clients().find(|(client, _)| *client == name);
        found.unwrap().1.to_owned()
    }
}

fn open(socket: &Path) -> Controller {
    Controller::open(&Address::VfioUser(socket.to_owned())).unwrap()
}

fn read(controller: &Controller) {
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

fn both() -> DmaAccess {
    DmaAccess::READ | DmaAccess::WRITE
}

fn memory(bytes: u64) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("client", flags).unwrap();
    ftruncate(&file, bytes as i64).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    file
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Why a service ends by itself; one that does not is asked to in the end.
fn ending(serving: &mut Serving) -> Ending {
    let stop = Stop::new().unwrap();
    let (ended, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let _ = waiting.recv_timeout(Duration::from_secs(60));
            stop.set();
        });
        let ending = serving.wait(stop);
        drop(ended);
        ending
    })
}

#[test]
fn a_panic_over_a_message_ends_that_client_in_order_and_nobody_else() {
    let service = serve();
    let (a, b) = (service.socket("a"), service.socket("b"));
    let (first, other) = (open(&a), open(&b));
    let namespace = first.only_namespace().unwrap();
    let mut queue = first.io_queue(QueueOptions::with_depth(4)).unwrap();
    let reads = Matcher::io().opcode(NvmOpcode::READ.0);
    service.device.inject(Fault::on(
        reads.times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    let buffer = first.allocate(4096).unwrap();
    queue.read(&namespace, 0, buffer, 0).unwrap();
    queue.ring();
    until(|| service.device.statistics().held_commands == 1);
    let lent = service.device.iommu().mappings();
    thread::scope(|scope| {
        let lending = scope.spawn(|| {
            let space = first.address_space();
            space.shared(MARKED as usize, Access::READ_WRITE).is_err()
        });
        // The controller may still write into what the client has lent: none of it is let go of, and the client is not told.
        for _ in 0..20 {
            read(&other);
            assert_eq!(service.device.iommu().mappings(), lent);
            assert!(!lending.is_finished());
            thread::sleep(Duration::from_millis(10));
        }
        service.device.release();
        assert!(lending.join().unwrap());
    });
    until(|| service.device.iommu().mappings().len() < lent.len());
    drop((queue, first));
    read(&open(&a));
    read(&other);
    drop(other);
    service.serving.finish().unwrap();
    let audit = std::fs::read_to_string(service.folder.path().join("audit.jsonl")).unwrap();
    let failed = |line: &str| line.contains("disconnected") && line.contains("server failed");
    assert_eq!(audit.lines().filter(|line| failed(line)).count(), 1);
}

#[test]
fn the_service_ends_when_a_clients_thread_is_no_more() {
    let mut service = serve();
    let client = Client::connect(&service.socket("b"), &ClientOptions::default()).unwrap();
    let memory = memory(MARKED);
    client
        .dma_map(0, MARKED, both(), Some((memory.as_fd(), 0)))
        .unwrap_err();
    assert_eq!(ending(&mut service.serving), Ending::ThreadLost);
    service.serving.finish().unwrap();
}

#[test]
fn the_service_ends_when_a_virtual_controller_is_broken() {
    let mut service = serve();
    let client = Client::connect(&service.socket("a"), &ClientOptions::default()).unwrap();
    let station = &service.serving.stations[0];
    let panics = Arc::new(|| panic!("as it was told to"));
    station.emulator.connect_interrupt(0, Some(panics));
    let trigger = SetIrqs {
        index: 2,
        start: 0,
        count: 1,
        action: IrqAction::Trigger,
        data: IrqSetData::None,
    };
    let memory = memory(4096);
    client
        .dma_map(0, 4096, both(), Some((memory.as_fd(), 0)))
        .unwrap();
    let lent = service.device.iommu().mappings();
    client.set_irqs(&trigger).unwrap_err();
    assert_eq!(ending(&mut service.serving), Ending::ThreadLost);
    assert!(
        lent.iter()
            .all(|map| service.device.iommu().mappings().contains(map))
    );
    service.serving.finish().unwrap();
}

/// A policy of one client, in a file of this user's alone.
fn policy_file(controller: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = crate::scratch::folder();
    let uid = nix::unistd::geteuid();
    let text = format!(
        "controller = [\"{controller}\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n[[client]]\nname = \"a\"\nuid = [{uid}]\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1 }}]\nallow = [\"read\"]\n"
    );
    let path = folder.path().join("policy.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn root_neither_opens_nor_serves_what_a_policy_of_somebody_else_says() {
    let (folder, path) = policy_file("emulated:size=1M,backend=file:/nowhere/at/all");
    let set = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let options = ServeOptions::default();
    let real = || {
        let device = Emulator::new("size=1M".parse().unwrap()).unwrap();
        let transport = EmulatedTransport::running(device).unwrap();
        Controller::with_transport(Arc::new(transport), Options::default()).unwrap()
    };
    let root = nix::unistd::geteuid().is_root();
    let is_foreign = |error: &ServeError| matches!(error, ServeError::Policy(PolicyError::Foreign { path: it, .. }) if *it == path);
    set(0o664);
    let policy = PolicyFile::open(&path).unwrap();
    // Before it is tried.
    let error = OpenedGroup::open(&policy, &options).unwrap_err();
    assert_eq!(is_foreign(&error), root, "{error}");
    // Nor are controllers that somebody else has opened.
    let group = OpenedGroup::of(&policy, vec![real()]).unwrap();
    match Serving::with_group(&policy, group, &options) {
        Ok(serving) => {
            assert!(!root);
            serving.finish().unwrap();
        }
        Err(error) => {
            assert!(root && is_foreign(&error), "{error}");
            assert!(!folder.path().join("sockets").exists());
        }
    }
    set(0o644);
    let policy = PolicyFile::open(&path).unwrap();
    let error = OpenedGroup::open(&policy, &options).unwrap_err();
    assert!(matches!(error, ServeError::Controller { .. }), "{error}");
    let group = OpenedGroup::of(&policy, vec![real()]).unwrap();
    let serving = Serving::with_group(&policy, group, &options).unwrap();
    serving.finish().unwrap();
}

/// Sends a command that does not end well, and does what comes after that.
fn send(client: Controller, command: Command, then: fn(&Controller)) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let data = match AdminOpcode(command.opcode) {
            AdminOpcode::FIRMWARE_DOWNLOAD => AdminData::ToController(&[0; 4]),
            _ => AdminData::None,
        };
        // SAFETY: it carries no address but that of its data, which the driver fills in.
        unsafe { client.admin_raw(command, data) }.unwrap_err();
        then(&client);
    })
}

/// What comes of the end of a service, if it ends at all.
fn finish(serving: Serving) -> Result<Summary, ServeError> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(serving.finish()));
    told.recv_timeout(Duration::from_secs(60)).unwrap()
}

#[test]
fn the_service_ends_when_the_thread_for_operators_commands_is_no_more() {
    let mut service = serve_operator(Duration::from_secs(3600));
    let download = Command {
        opcode: AdminOpcode::FIRMWARE_DOWNLOAD.0,
        cdw11: MARKED_FIRMWARE,
        ..Command::ZERO
    };
    let client = send(open(&service.socket("a")), download, |_| {});
    assert_eq!(ending(&mut service.serving), Ending::ThreadLost);
    finish(service.serving).unwrap();
    client.join().unwrap();
    let audit = std::fs::read_to_string(service.folder.path().join("audit.jsonl")).unwrap();
    let unknown =
        |line: &&str| line.contains(r#""ring":"operators""#) && line.contains(r#""status":null"#);
    assert_eq!(audit.lines().filter(unknown).count(), 1, "{audit}");
}

#[test]
fn the_end_of_a_service_whose_thread_is_no_more_waits_for_no_operators_command() {
    let mut service = serve_operator(Duration::from_millis(100));
    let formats = Matcher::admin().opcode(AdminOpcode::FORMAT_NVM.0);
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    service.device.inject(Fault::on(formats, hang));
    let format = Command {
        opcode: AdminOpcode::FORMAT_NVM.0,
        nsid: 1,
        ..Command::ZERO
    };
    let client = send(open(&service.socket("a")), format, |client| {
        // The thread that polls answers its commands, or should.
        let _ = client.recover();
    });
    until(|| service.device.statistics().held_commands == 1);
    let station = &service.serving.stations[0];
    let panics = Arc::new(|| panic!("as it was told to"));
    station.emulator.connect_interrupt(0, Some(panics));
    station.emulator.reset();
    assert_eq!(ending(&mut service.serving), Ending::ThreadLost);
    let ended = finish(service.serving);
    let carried_out = matches!(ended, Err(ServeError::StillCarriedOut { .. }));
    assert!(carried_out, "{ended:?}");
    assert_eq!(service.device.release(), 1);
    client.join().unwrap();
}

#[test]
fn root_keeps_no_audit_where_others_could_put_another_in_its_place() {
    let folder = crate::scratch::folder();
    let path = folder.path().canonicalize().unwrap();
    let logs = path.join("logs");
    std::fs::create_dir(&logs).unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    let text = format!(
        "controller = [\"emulated\"]\ndirectory = \"sockets\"\naudit = {{ path = \"logs/audit.jsonl\" }}\n[[client]]\nname = \"a\"\nuid = [{uid}]\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1 }}]\nallow = [\"read\"]\n"
    );
    let policy = PolicyFile::parse(&text, &path).unwrap();
    for (mode, lax) in [(0o777, true), (0o1777, false), (0o755, false)] {
        std::fs::set_permissions(&logs, Permissions::from_mode(mode)).unwrap();
        match Serving::start(&policy, &ServeOptions::default()) {
            Ok(serving) => {
                assert!(!lax || uid != 0, "{mode:o}");
                serving.finish().unwrap();
            }
            Err(error) => {
                assert!(lax && uid == 0, "{mode:o}: {error}");
                let words = format!("{} can be written by others", logs.display());
                assert!(error.to_string().contains(&words), "{error}");
                assert!(!logs.join("audit.jsonl").exists());
            }
        }
    }
}
