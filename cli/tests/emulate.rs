//! `emulate`, run as a user runs it: a server in one process, clients in others.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

mod started;

use started::Started;

fn nvme_vfio(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A server, with a folder of its own.
struct Server {
    folder: tempfile::TempDir,
    started: Started,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Server {
        let mut command = nvme_vfio(&["emulate", "-o", "json", "--socket"]);
        command.arg(folder.path().join("nvme.sock")).args(arguments);
        let started = Started::new(&mut command);
        Server { folder, started }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nvme.sock")
    }

    fn address(&self) -> String {
        format!("vfio-user:{}", self.socket().display())
    }

    fn client(&self, command: &str, arguments: &[&str]) -> Output {
        nvme_vfio(&[command, &self.address()])
            .args(arguments)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn json(&self, command: &str, arguments: &[&str]) -> Value {
        let output = self.client(command, arguments);
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends it by a signal; its summary.
    fn end(mut self, signal: Signal) -> Value {
        let summary = self.started.end(&[signal]);
        assert!(!self.socket().exists(), "the socket is removed");
        summary
    }
}

#[test]
fn what_signals_interrupts_is_there_before_anybody_connects() {
    let server = Server::start(&[]);
    let maps =
        std::fs::read_to_string(format!("/proc/{}/maps", server.started.child.id())).unwrap();
    // The ring of its asynchronous I/O.
    assert!(maps.contains("[aio]"), "{maps}");
}

#[test]
fn clients_come_and_go_and_the_data_stays() {
    let server = Server::start(&["--size", "64M", "lba=4096,model=one of ours"]);
    assert_eq!(server.started.ready["event"], "ready");
    assert_eq!(
        server.started.ready["socket"],
        server.socket().display().to_string()
    );
    let controller = server.json("id-ctrl", &["-o", "json"]);
    assert_eq!(controller["mn"].as_str().unwrap().trim(), "one of ours");
    let namespace = server.json("id-ns", &["-n", "1", "-o", "json"]);
    assert_eq!(namespace["nsze"], 64 << 8);

    let data = server.folder.path().join("data");
    let content: Vec<u8> = (0..16384u32).map(|at| (at >> 3) as u8).collect();
    std::fs::write(&data, &content).unwrap();
    let data = data.display().to_string();
    let written = server.client("write", &["-s", "5", "-z", "16384", "-d", &data, "--force"]);
    assert!(written.status.success(), "{written:?}");
    // Another process, another session.
    let read = server.client("read", &["-s", "5", "-z", "16384"]);
    assert!(read.status.success(), "{read:?}");
    assert!(read.stdout == content);

    let summary = server.end(Signal::SIGINT);
    assert_eq!(summary["event"], "ended");
    assert!(summary["commands"].as_u64().unwrap() > 10, "{summary}");
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
    assert_eq!(summary["invalid_doorbells"], 0, "{summary}");
}

#[test]
fn a_file_outlives_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let backend = format!("file:{}", disk.display());
    let arguments = ["--size", "1M", "--backend", &backend, "lba=512"];
    let server = Server::start(&arguments);
    let data = server.folder.path().join("data");
    std::fs::write(&data, [0x5a; 4096]).unwrap();
    let data = data.display().to_string();
    let written = server.client("write", &["-s", "8", "-z", "4096", "-d", &data, "--force"]);
    assert!(written.status.success(), "{written:?}");
    assert!(server.client("flush", &[]).status.success());

    let other = tempfile::tempdir().unwrap();
    let refused = nvme_vfio(&["emulate", "-o", "json", "--socket"])
        .arg(other.path().join("sock"))
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(3), "two servers of one file");
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "busy", "{error}");
    let address = format!("emulated:size=1M,backend={backend}");
    let refused = nvme_vfio(&["id-ctrl", "-o", "json", &address])
        .output()
        .unwrap();
    assert_eq!(
        refused.status.code(),
        Some(3),
        "nor in a process of its own"
    );
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "busy", "{error}");
    let remedy = error["error"]["remedy"].as_str().unwrap();
    assert!(remedy.contains("backend=file:"), "{remedy}");

    server.end(Signal::SIGTERM);
    let file = std::fs::read(&disk).unwrap();
    assert_eq!(file.len(), 1 << 20);
    assert!(file[4096..8192].iter().all(|&byte| byte == 0x5a));
    let server = Server::start(&arguments);
    let read = server.client("read", &["-s", "8", "-z", "4096"]);
    assert_eq!(read.stdout, [0x5a; 4096]);
}

/// A client decides where is written, so it must not be able to end the server by that.
#[test]
#[allow(unsafe_code)] // The limit of another process has no wrapper.
fn a_limit_of_file_sizes_is_an_error_of_the_command() {
    use nix::libc::{RLIMIT_FSIZE, prlimit, rlimit};
    let folder = tempfile::tempdir().unwrap();
    let backend = format!("file:{}", folder.path().join("disk").display());
    let server = Server::start_in(folder, &["--size", "1M", "--backend", &backend, "lba=512"]);
    let limit = rlimit {
        rlim_cur: 256 << 10,
        rlim_max: 256 << 10,
    };
    // SAFETY: reads a structure that lives through the call, and writes nothing.
    let set = unsafe {
        prlimit(
            server.started.child.id() as i32,
            RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0);
    let data = server.folder.path().join("data");
    std::fs::write(&data, [0x5a; 4096]).unwrap();
    let data = data.display().to_string();
    let write = |slba| server.client("write", &["-s", slba, "-z", "4096", "-d", &data, "--force"]);
    let refused = write("1024");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(write("8").status.success());
    server.end(Signal::SIGTERM);
}

#[test]
fn configuration_faults_and_trace_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        path("controller.toml"),
        "queues = 3\nserial = \"FROMFILE\"\n",
    )
    .unwrap();
    std::fs::write(
        path("faults.toml"),
        "[[fault]]\ndo = \"status\"\nopcode = \"read\"\nsct = 2\nsc = 0x81\ntimes = 1\n",
    )
    .unwrap();
    let (config, faults, trace) = (path("controller.toml"), path("faults.toml"), path("trace"));
    let server = Server::start(&[
        "--config", &config, "--faults", &faults, "--trace", &trace, "--size", "1M",
    ]);
    let controller = server.json("id-ctrl", &["-o", "json"]);
    assert_eq!(controller["sn"].as_str().unwrap().trim(), "FROMFILE");
    let failed = server.client("read", &["-c", "0", "-o", "json", "-d", "/dev/null"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("\"sc\":129"));
    assert!(server.client("read", &["-c", "0"]).status.success());
    server.end(Signal::SIGTERM);
    let trace = std::fs::read_to_string(trace).unwrap();
    let records: Vec<Value> = trace
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(records.len() > 20, "{trace}");
}

#[test]
fn what_is_wrong_is_said_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("/tmp/{}", "x".repeat(103));
    let file = folder.path().join("file");
    std::fs::write(&file, "queues = 0\n").unwrap();
    let file = file.display().to_string();
    let socket = folder.path().join("sock").display().to_string();
    let in_file = format!("file:{}", folder.path().display());
    for (arguments, status, kind) in [
        (vec!["--socket", &file], 2, "file"),
        (vec!["--socket", "/nowhere/at/all"], 2, "file"),
        (vec!["--socket", &long], 2, "file"),
        (vec!["--socket", &socket, "--size", "0"], 2, "usage"),
        (
            vec!["--socket", &socket, "--size", "1M,lba=4096"],
            2,
            "usage",
        ),
        (vec!["--socket", &socket, "nonsense=1"], 2, "usage"),
        (vec!["--socket", &socket, "stepped=on"], 2, "usage"),
        (vec!["--socket", &socket, "--config", &file], 2, "usage"),
        (vec!["--socket", &socket, "--config", "/nowhere"], 2, "file"),
        (vec!["--socket", &socket, "--faults", &file], 2, "usage"),
        (
            vec!["--socket", &socket, "--trace", "/nowhere/t"],
            2,
            "file",
        ),
        (vec!["--socket", &socket, "--backend", "tape"], 2, "usage"),
        (vec!["--socket", &socket, "--backend", &in_file], 2, "file"),
        (vec!["--socket", &socket, "--cpu", "99999"], 2, "usage"),
        (vec!["--socket", &socket, "--mode", "9"], 2, "usage"),
    ] {
        let output = nvme_vfio(&["emulate", "-o", "json"])
            .args(&arguments)
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["kind"], kind, "{arguments:?}: {error}");
        assert!(
            error["error"]["remedy"].is_string() || kind == "file",
            "{arguments:?}: {error}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_socket_that_is_served_is_not_taken() {
    let server = Server::start(&["--size", "1M"]);
    let output = nvme_vfio(&["emulate", "-o", "json", "--socket"])
        .arg(server.socket())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "busy");
    assert!(server.client("id-ctrl", &[]).status.success(), "it goes on");
}

#[test]
fn a_client_killed_in_the_middle_costs_nothing() {
    let server = Server::start(&["--size", "64M", "lba=4096"]);
    for _ in 0..5 {
        let mut client = nvme_vfio(&["bench", &server.address()])
            .args(["--iodepth", "64", "--runtime", "30"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150));
        client.kill().unwrap();
        client.wait().unwrap();
        assert!(
            server.client("id-ctrl", &[]).status.success(),
            "the next client finds a controller"
        );
    }
    let summary = server.end(Signal::SIGTERM);
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
}
