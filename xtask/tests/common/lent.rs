//! A controller that `nvme-vfio serve` lends to clients, in a process of its own on the host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use xtask::vm::build_binary;

const START: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(20);

/// `nvme-vfio serve`, which ends with this value.
pub(crate) struct Lent {
    child: Child,
    directory: TempDir,
}

/// The policy's text for a client whose one namespace is `blocks` blocks from `start` on of namespace 1.
pub(crate) fn slice(name: &str, start: u64, blocks: u64) -> String {
    format!(
        r#"
[[client]]
name = "{name}"
uid = [0]
limits = {{ memory = "2GiB" }}

[[client.namespace]]
nsid = 1
source = [{{ nsid = 1, start = {start}, blocks = {blocks} }}]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]
"#
    )
}

/// The policy's text before the clients: the controller at `address`, and the audit beside it.
pub(crate) fn head(address: &str) -> String {
    format!(
        r#"controller = ["{address}"]
directory = "run"
audit = {{ path = "audit.jsonl", sample-allowed-io = 100000 }}
"#
    )
}

impl Lent {
    /// Starts a server with a policy, and waits for the sockets of `clients`.
    pub(crate) fn start(policy: &str, clients: &[&str]) -> Lent {
        let program = build_binary("nvme-vfio-cli", "nvme-vfio").unwrap();
        let directory = tempfile::Builder::new().prefix("vm-").tempdir().unwrap();
        fs::create_dir(directory.path().join("run")).unwrap();
        fs::write(directory.path().join("policy.toml"), policy).unwrap();
        let file = |name| File::create(directory.path().join(name)).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(["serve", "--policy"])
            .arg(directory.path().join("policy.toml"))
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        let mut lent = Lent { child, directory };
        let deadline = Instant::now() + START;
        while !clients.iter().all(|client| lent.socket(client).exists()) {
            let ended = lent.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no sockets: {ended:?}\n{}",
                lent.said()
            );
            thread::sleep(Duration::from_millis(5));
        }
        lent
    }

    pub(crate) fn socket(&self, client: &str) -> PathBuf {
        self.path().join("run").join(format!("{client}.sock"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether the server still runs; what it said when it does not.
    #[track_caller]
    pub(crate) fn lives(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "the server ended: {ended:?}\n{}",
            self.said()
        );
    }

    /// Ends the server as a person would; its audit.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Vec<Value> {
        self.lives();
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )
        .unwrap();
        let deadline = Instant::now() + END;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end\n{}",
                self.said()
            );
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}\n{}", self.said());
        let audit = fs::read_to_string(self.path().join("audit.jsonl")).unwrap();
        let record = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        audit.lines().map(record).collect()
    }

    fn said(&self) -> String {
        ["stdout", "stderr"]
            .map(|name| fs::read_to_string(self.path().join(name)).unwrap_or_default())
            .join("\n")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Both fail only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
