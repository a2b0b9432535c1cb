//! `serve`, run as a user runs it: the server in one process, each client in another.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde_json::Value;

mod refusals;
#[path = "../started/mod.rs"]
mod started;

use refusals::refused;
use started::Started;

const PATIENCE: Duration = Duration::from_secs(60);

fn nvme_vfio(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A client of a policy: its name, where its slices begin, and a line of its own.
fn client(text: &mut String, name: &str, source: &str, more: &str) {
    let _ = write!(
        text,
        r#"
[[client]]
name = "{name}"
uid = [{}]
{more}
[[client.namespace]]
nsid = 1
source = [{source}]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]
"#,
        geteuid()
    );
}

fn head(controller: &str) -> String {
    format!(
        "controller = [\"{controller}\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n"
    )
}

fn two_clients(controller: &str) -> String {
    let mut text = head(controller);
    let halves =
        "{ nsid = 1, start = 1000, blocks = 20000 }, { nsid = 1, start = 90000, blocks = 5000 }";
    client(&mut text, "vm-a", halves, "");
    client(
        &mut text,
        "vm-b",
        "{ nsid = 1, start = 21000, blocks = 60000 }",
        "isolation = \"bounce\"",
    );
    text
}

/// What is made from now on is not for others to write, as a server wants it of a policy, whatever this process was started with.
fn keep_from_others() {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
}

/// A folder with a policy in it.
fn folder(policy: &str) -> tempfile::TempDir {
    keep_from_others();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn serve(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = nvme_vfio(&["serve", "-o", "json", "--policy"]);
    command.arg(folder.join("policy.toml")).args(arguments);
    command
}

/// A server, with a folder of its own.
struct Server {
    folder: tempfile::TempDir,
    started: Started,
}

impl Server {
    fn start(policy: &str, arguments: &[&str]) -> Server {
        Server::start_in(folder(policy), arguments)
    }

    fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Server {
        let started = Started::new(&mut serve(folder.path(), arguments));
        Server { folder, started }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder
            .path()
            .join("sockets")
            .join(format!("{name}.sock"))
    }

    fn address(&self, name: &str) -> String {
        format!("vfio-user:{}", self.socket(name).display())
    }

    fn client(&self, name: &str, command: &str, arguments: &[&str]) -> Command {
        let mut client = nvme_vfio(&[command, &self.address(name)]);
        client.args(arguments);
        client
    }

    #[track_caller]
    fn run(&self, name: &str, command: &str, arguments: &[&str]) -> Output {
        let output = self.client(name, command, arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{name} {command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    #[track_caller]
    fn json(&self, name: &str, command: &str, arguments: &[&str]) -> Value {
        let output = self.run(name, command, &[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Writes `data`, whole blocks, at the beginning of a client's namespace.
    #[track_caller]
    fn write(&self, name: &str, data: &[u8]) {
        let file = self.folder.path().join(format!("{name}.data"));
        std::fs::write(&file, data).unwrap();
        let blocks = (data.len() / 512 - 1).to_string();
        let size = data.len().to_string();
        let file = file.display().to_string();
        self.run(
            name,
            "write",
            &[
                "-n", "1", "-s", "0", "-c", &blocks, "-z", &size, "-d", &file, "--force",
            ],
        );
    }

    #[track_caller]
    fn read(&self, name: &str, length: usize) -> Vec<u8> {
        let blocks = (length / 512 - 1).to_string();
        let size = length.to_string();
        self.run(
            name,
            "read",
            &["-n", "1", "-s", "0", "-c", &blocks, "-z", &size],
        )
        .stdout
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits for an event in the audit, which is written a little later.
    #[track_caller]
    fn until_told(&self, event: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self
                .audit()
                .into_iter()
                .find(|record| record["event"] == event);
            if let Some(told) = told {
                return told;
            }
            assert!(Instant::now() < end, "the audit does not tell: {event}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clock ticks that the server has used.
    fn ticks(&self) -> u64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.started.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Ends it by a signal; its summary.
    fn end(self, signal: Signal) -> Value {
        self.end_by(&[signal])
    }

    fn end_by(mut self, signals: &[Signal]) -> Value {
        let summary = self.started.end(signals);
        // Of root's server nobody is left who may remove them.
        let removed = !self.socket("vm-a").exists();
        assert!(removed || geteuid().is_root(), "the sockets are removed");
        summary
    }
}

/// A process that is killed when a check fails, too.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| ((at >> 9) as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn what_signals_interrupts_is_there_before_anybody_connects() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root may look at a server's memory");
        return;
    }
    let server = Server::start(&two_clients("emulated:size=64M"), &[]);
    let maps =
        std::fs::read_to_string(format!("/proc/{}/maps", server.started.child.id())).unwrap();
    // The ring of its asynchronous I/O.
    assert!(maps.contains("[aio]"), "{maps}");
}

#[test]
fn two_clients_see_each_its_own_controller_and_its_own_blocks() {
    let server = Server::start(&two_clients("emulated:size=64M"), &[]);
    assert_eq!(server.started.ready["event"], "ready");
    assert_eq!(server.started.ready["clients"][0]["name"], "vm-a");
    assert_eq!(server.started.ready["clients"][1]["isolation"], "bounce");
    assert_eq!(
        server.started.ready["clients"][1]["socket"],
        server.socket("vm-b").display().to_string()
    );
    let directory = server.folder.path().join("sockets");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&directory), mode(&server.socket("vm-a"))),
        (0o711, 0o600)
    );

    let (a, b) = (
        server.json("vm-a", "id-ctrl", &[]),
        server.json("vm-b", "id-ctrl", &[]),
    );
    assert_ne!(a["sn"], b["sn"]);
    assert_ne!(a["subnqn"], b["subnqn"]);
    assert_eq!(server.json("vm-a", "id-ns", &["-n", "1"])["nsze"], 25000);
    assert_eq!(server.json("vm-b", "id-ns", &["-n", "1"])["nsze"], 60000);

    let (of_a, of_b) = (content(1, 1 << 18), content(77, 1 << 18));
    server.write("vm-a", &of_a);
    server.write("vm-b", &of_b);
    assert_eq!(server.read("vm-a", 1 << 18), of_a);
    assert_eq!(server.read("vm-b", 1 << 18), of_b);

    // The last block is there, and the one behind it is not.
    let last = |block: &str| {
        let arguments = ["-n", "1", "-s", block, "-c", "0", "-z", "512", "-o", "json"];
        server
            .client("vm-a", "read", &arguments)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!((last("24999"), last("25000")), (Some(0), Some(1)));
    let summary = server.end(Signal::SIGTERM);
    assert_eq!(summary["event"], "ended");
    assert_eq!(summary["controller_resets"], 0);
    assert!(summary["audit_lines"].as_u64().unwrap() > 10);
}

#[test]
fn signals_that_come_together_end_it_once() {
    let server = Server::start(&two_clients("emulated:size=64M"), &[]);
    // As timeout(1) and terminals send more than one; it gets all of them when it goes on.
    let together = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT];
    let all = [&[Signal::SIGSTOP], &together[..], &[Signal::SIGCONT]].concat();
    assert_eq!(server.end_by(&all)["event"], "ended");
}

#[test]
fn a_client_without_flush_that_shuts_down_in_order_is_no_offender() {
    let mut text = head("emulated:size=64M");
    client(
        &mut text,
        "vm-a",
        "{ nsid = 1, start = 0, blocks = 1000 }",
        "",
    );
    let allowed = text.find("allow").unwrap();
    let policy = format!("{}allow = [\"read\"]\n", &text[..allowed]);
    let server = Server::start(&policy, &[]);
    server.json("vm-a", "id-ctrl", &[]);
    server.until_told("disconnected");
    let commands: Vec<Value> = server
        .audit()
        .into_iter()
        .filter(|record| record["verdict"] == "refused" || record["command"] == "Flush")
        .collect();
    assert!(commands.is_empty(), "{commands:?}");
}

#[test]
fn the_same_policy_gives_the_same_names_again() {
    let names = || {
        let server = Server::start(&two_clients("emulated:size=64M"), &[]);
        let controller = server.json("vm-a", "id-ctrl", &[]);
        (
            controller["sn"].clone(),
            controller["subnqn"].clone(),
            server.json("vm-a", "id-ns", &["-n", "1"])["nguid"].clone(),
        )
    };
    assert_eq!(names(), names());
}

#[test]
fn a_client_is_killed_at_full_depth_and_its_successor_comes_at_once() {
    let server = Server::start(&two_clients("emulated:size=64M"), &[]);
    let (of_a, of_b) = (content(3, 1 << 17), content(9, 1 << 17));
    server.write("vm-a", &of_a);
    server.write("vm-b", &of_b);
    for round in 0..4 {
        let load = [
            "--rw",
            "randread",
            "--bs",
            "4k",
            "--iodepth",
            "128",
            "--runtime",
            "60",
        ];
        let mut child = server
            .client("vm-a", "bench", &load)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(400 + 37 * round));
        child.kill().unwrap();
        let began = Instant::now();
        assert_eq!(server.read("vm-a", 1 << 17), of_a, "round {round}");
        println!(
            "round {round}: the successor was done {:?} later",
            began.elapsed()
        );
        assert_eq!(server.read("vm-b", 1 << 17), of_b, "round {round}");
        child.wait().unwrap();
    }
    // All have ended, the killed ones too, and that is recorded a little later.
    let end = Instant::now() + PATIENCE;
    loop {
        let audit = server.audit();
        let count = |event: &str| {
            audit
                .iter()
                .filter(|record| record["event"] == event)
                .count()
        };
        let (connected, disconnected) = (count("connected"), count("disconnected"));
        if connected >= 10 && connected == disconnected {
            break;
        }
        assert!(
            Instant::now() < end,
            "{connected} came and {disconnected} went"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.end(Signal::SIGINT)["controller_resets"], 0);
}

#[test]
fn the_server_keeps_no_privileges_and_its_successor_takes_its_sockets() {
    let mut server = Server::start(&two_clients("emulated:size=64M"), &[]);
    let data = content(8, 1 << 16);
    server.write("vm-a", &data);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.started.child.id())).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("CapPrm:"), ["0000000000000000"]);
    assert_eq!(
        (field("NoNewPrivs:"), field("Seccomp:")),
        (vec!["1".to_owned()], vec!["2".to_owned()])
    );
    server.until_told("privileges-dropped");
    // Everything that a client's end needs is still allowed: doorbells are renewed, memory is let go of.
    for _ in 0..3 {
        assert_eq!(server.read("vm-a", 1 << 16), data);
    }
    let folder = std::mem::replace(&mut server.folder, tempfile::tempdir().unwrap());
    server.end(Signal::SIGTERM);
    let next = Server::start_in(folder, &[]);
    next.json("vm-a", "id-ctrl", &[]);
    next.end(Signal::SIGTERM);
}

#[test]
fn both_at_once_under_load() {
    let server = Server::start(&two_clients("emulated:size=64M"), &["--poll"]);
    let load = [
        "--rw",
        "randwrite",
        "--bs",
        "4k",
        "--iodepth",
        "32",
        "--size",
        "12M",
        "--force",
        "-o",
        "json",
    ];
    let children: Vec<Child> = ["vm-a", "vm-b"]
        .map(|name| {
            server
                .client(name, "bench", &load)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .into();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["jobs"][0]["write"]["total_ios"], 3072, "{report}");
    }
    server.end(Signal::SIGTERM);
}

#[test]
fn an_idle_server_uses_next_to_no_processor_time() {
    let server = Server::start(&two_clients("emulated:size=64M"), &[]);
    let seconds = 3;
    let used = |server: &Server| {
        // What came before has ended, and it has had the time to find that out.
        std::thread::sleep(Duration::from_millis(2500));
        let before = server.ticks();
        std::thread::sleep(Duration::from_secs(seconds));
        (server.ticks() - before) as f64 / seconds as f64
    };
    let alone = used(&server);
    let address: nvme_vfio::Address = server.address("vm-a").parse().unwrap();
    let controller = nvme_vfio::Controller::open(&address).unwrap();
    let connected = used(&server);
    drop(controller);
    // Ticks are a hundredth of a second. Most of it is the emulated controller's, which looks at its doorbells a thousand times a second.
    println!(
        "of a processor: {alone:.1} % with nobody connected, {connected:.1} % with an idle client"
    );
    assert!(alone < 10.0 && connected < 12.0, "{alone} and {connected}");
}

#[test]
fn somebody_who_is_not_in_the_policy_is_told_so_and_recorded() {
    let policy = two_clients("emulated:size=64M").replace(
        &format!("uid = [{}]", geteuid()),
        &format!("uid = [{}]", geteuid().as_raw() + 1),
    );
    let server = Server::start(&policy, &[]);
    let output = server
        .client("vm-a", "id-ctrl", &["-o", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    let remedy = told["error"]["remedy"].as_str().unwrap_or_default();
    assert_eq!(told["error"]["kind"], "permission");
    assert!(remedy.contains("uid in the policy"), "{remedy}");
    let owner = std::fs::metadata(server.socket("vm-a")).unwrap().uid();
    if !geteuid().is_root() {
        assert_eq!(owner, geteuid().as_raw());
        return;
    }
    assert_eq!(owner, 1, "the socket is its user's");
    let refused = server.until_told("connection-refused");
    assert_eq!(
        (&refused["client"], &refused["uid"]),
        (&"vm-a".into(), &0.into())
    );
}

#[test]
fn a_controller_of_another_process_is_lent_on_by_copy() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nvme.sock");
    let mut emulate = Killed(
        nvme_vfio(&["emulate", "-o", "json", "--size", "64M", "--socket"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(emulate.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = format!("vfio-user:{}", socket.display());
    let mut policy = head(&address);
    client(
        &mut policy,
        "vm-a",
        "{ nsid = 1, start = 0, blocks = 10000 }",
        "isolation = \"bounce\"",
    );
    let server = Server::start(&policy, &[]);
    let data = content(5, 1 << 16);
    server.write("vm-a", &data);
    assert_eq!(server.read("vm-a", 1 << 16), data);
    server.end(Signal::SIGHUP);
    // Its memory cannot be passed on.
    let error = refused(&policy.replace("isolation = \"bounce\"", ""), &[]);
    assert_eq!(error["status"], 2);
    assert!(
        error["remedy"].as_str().unwrap().contains("bounce"),
        "{error}"
    );
}
