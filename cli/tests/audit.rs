//! `audit`, run as a user runs it, on files that an auditor wrote and others spoiled.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nvme_vfio_passthrough::audit::{AuditOptions, Auditor, Event, open};
use nvme_vfio_passthrough::{ClientId, Identity, QueueKind, Reason};
use serde_json::Value;

const WHO: Identity = Identity {
    uid: 1000,
    gid: 1000,
    pid: 77,
    start_time: 5,
};

fn nvme_vfio(arguments: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"));
    command
        .arg("audit")
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str], path: &Path) -> Output {
    nvme_vfio(arguments, path).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What two clients and their server leave behind.
fn write_audit(path: &Path) {
    let auditor = Auditor::start(open(path).unwrap(), AuditOptions::default()).unwrap();
    let server = auditor.server();
    for (id, name) in [(0, "vm-a"), (1, "vm-b")] {
        let client = ClientId(id);
        let mut audit = auditor.client(client, name, 8);
        audit.identify(WHO);
        server.record(Event::Connected {
            client,
            identity: WHO,
        });
        let mut entry = [0; 16];
        (entry[0], entry[1], entry[10], entry[12]) = (1, 1, 100, 7);
        audit.refused(
            QueueKind::Io,
            &entry,
            Reason::OutOfRange.refusal(),
            Instant::now(),
        );
        server.record(Event::Disconnected {
            client,
            identity: WHO,
            cause: "said \u{1b}[2J\n\"goodbye\"".into(),
        });
    }
    auditor.finish().unwrap();
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_table_for_people_and_lines_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    write_audit(&path);
    let output = run(&[], &path);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(table.contains("vm-a"), "{table}");
    assert!(
        table.contains("Write (opcode 01h) on an I/O queue: write blocks 100 to 107 of namespace 1 -- out-of-range: "),
        "{table}"
    );
    assert!(table.contains("uid 1000, pid 77"), "{table}");
    assert!(
        table
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\n')),
        "{table:?}"
    );
    let output = run(&["-o", "json", "--client", "vm-b"], &path);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["client"] == "vm-b"));
    assert_eq!(lines[2]["cause"], "said \u{1b}[2J\n\"goodbye\"");
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let output = run(&["--client", "vm-\u{1b}c"], &path);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    assert!(
        said.ends_with("audit.jsonl has no line of a client vm-\\u{1b}c yet\n"),
        "{said}"
    );
    assert!(
        output
            .stdout
            .iter()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\n'))
    );
}

#[test]
fn a_policy_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    write_audit(&folder.path().join("audit.jsonl"));
    let policy = folder.path().join("policy.toml");
    std::fs::write(
        &policy,
        r#"
        controller = ["emulated:size=64M"]
        directory = "run"
        audit = { path = "audit.jsonl" }
        [[client]]
        name = "vm-a"
        uid = [1000]
        [[client.namespace]]
        nsid = 1
        source = [{ nsid = 1, start = 0, blocks = 8 }]
        allow = ["read"]
        "#,
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
        .args(["audit", "--policy"])
        .arg(&policy)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 7);
}

#[test]
fn what_is_wrong_with_the_file_is_said_and_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    append(&path, b"{\"seq\":5,\"kind\":\"event\",\"event\":\"x\"}\n");
    append(&path, b"{\"seq\":9,\"kind\":\"event\",\"event\":\"y\"}\n");
    append(&path, b"\x1b[31mno record \xff\xfe\x9b31m\r\n[1]\n");
    append(
        &path,
        "{\"seq\":10,\"kind\":\"event\",\"event\":\"\u{202e}\u{9b}2J\\u001b[2J\"}\n".as_bytes(),
    );
    append(&path, b"{\"seq\":11,\"ki");
    let output = run(&[], &path);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(
        shown
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\n')),
        "{shown:?}"
    );
    for expected in [
        "-- line 9 follows, line 6 should",
        "-- a line that is no record: \\u{1b}[31mno record",
        "-- a line that is no record: [1]",
        "\\u{202e}\\u{9b}2J\\u{1b}[2J",
        "-- a line that has no end: {\"seq\":11,\"ki",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    let output = run(&["-o", "json"], &path);
    let notes: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["kind"] == "note")
        .map(|line| line["note"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        notes,
        ["missing", "not-a-record", "not-a-record", "unfinished"]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("none"), folder.path().to_owned()] {
        let output = run(&["-o", "json"], &path);
        assert_eq!(output.status.code(), Some(2));
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["kind"], "file");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
        .arg("audit")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A process that follows, ended when this is dropped.
struct Follower {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Follower {
    fn start(path: &Path) -> Follower {
        let mut child = nvme_vfio(&["--follow", "-o", "json"], path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Follower { child, stdout }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn following_survives_growth_halves_of_lines_another_file_and_an_emptied_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    append(&path, b"{\"seq\":0,\"event\":\"a\"}\n");
    let mut follower = Follower::start(&path);
    assert_eq!(follower.next()["event"], "a");
    append(&path, b"{\"seq\":1,\"ev");
    std::thread::sleep(Duration::from_millis(300));
    append(&path, b"ent\":\"b\"}\nrubbish\n");
    assert_eq!(follower.next()["event"], "b");
    assert_eq!(follower.next()["note"], "not-a-record");
    std::fs::rename(&path, folder.path().join("audit.jsonl.1")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    append(&path, b"{\"seq\":2,\"event\":\"c\"}\n");
    assert_eq!(follower.next()["note"], "replaced");
    assert_eq!(follower.next()["event"], "c");
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    assert_eq!(follower.next()["note"], "truncated");
    append(&path, b"{\"seq\":3,\"event\":\"d\"}\n");
    assert_eq!(follower.next()["event"], "d");
    // Nobody reads any more: it ends by itself at the next line.
    follower.stdout = None;
    let child = &mut follower.child;
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        append(&path, b"{\"event\":\"e\"}\n");
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(0));
}
