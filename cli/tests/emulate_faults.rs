//! `emulate --faults --trace`: a controller of another process that does wrong what it was told to, and what it wrote down of it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a server or a command may take.
const SOON: Duration = Duration::from_secs(60);

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
}

/// A server, which is ended with the test.
struct Server(Child);

impl Server {
    /// Starts one, and waits until clients can connect.
    fn start(folder: &Path, faults: &str) -> Server {
        std::fs::write(folder.join("faults.toml"), faults).unwrap();
        let mut child = command()
            .current_dir(folder)
            .args(
                "emulate --socket s --size 64M --faults faults.toml --trace trace -o json"
                    .split(' '),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready");
        // The rest is not of interest, but there must be somebody to take it.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Server(child)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).unwrap();
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Ends it as Ctrl-C does; whether that was a success.
    fn end(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(start.elapsed() < SOON, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(folder: &Path, block: u32) -> Output {
    command()
        .current_dir(folder)
        .args(["read", "vfio-user:s", "-c", "0", "-z", "512", "-o", "json"])
        .args(["-s", &block.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_bad_block_is_told_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "[[fault]]\ndo = 'media-error'\nlba = [8, 15]\n";
    let server = Server::start(folder.path(), faults);
    for (block, status) in [(7, 0), (8, 1), (15, 1), (16, 0)] {
        let output = read(folder.path(), block);
        assert_eq!(output.status.code(), Some(status), "{block}: {output:?}");
    }
    assert!(server.end());
    let trace = std::fs::read_to_string(folder.path().join("trace")).unwrap();
    let records: Vec<Value> = trace
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |event: &str| {
        let same = records.iter().filter(|record| record["event"] == event);
        same.count()
    };
    assert_eq!((count("fault-armed"), count("fault")), (1, 2));
    assert_eq!((count("lost"), count("iommu-fault")), (0, 0));
    let reads = records.iter().filter(|record| {
        record["event"] == "command" && record["sqid"] == 1 && record["opcode"] == 2
    });
    assert_eq!(reads.count(), 4);
    // 2/81h, with More set, since the error log tells more.
    let failed = records
        .iter()
        .filter(|record| record["event"] == "completion" && record["status"] == 0x2281);
    assert_eq!(failed.count(), 2);
}

#[test]
fn a_controller_that_never_starts_is_an_error_of_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "[[fault]]\ndo = 'never-ready'\nuntil = 'cleared'\n";
    let server = Server::start(folder.path(), faults);
    let output = read(folder.path(), 0);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(output.stdout.is_empty());
    assert!(server.end());
}

#[test]
fn a_wrong_script_is_wrong_usage_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "[[fault]]\ndo = 'explode'\n").unwrap();
    let output = command()
        .current_dir(folder.path())
        .args("emulate --socket s --faults f -o json".split(' '))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("f: line 2: "), "{message}");
    assert!(!folder.path().join("s").exists());
}
