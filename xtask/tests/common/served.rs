//! A controller of this project, served over vfio-user by a process of its own.

use std::fs::{self, File};
use std::path::PathBuf;
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

/// `nvme-vfio emulate`, which ends with this value.
pub(crate) struct Served {
    child: Child,
    directory: TempDir,
}

impl Served {
    /// Starts a server, for example with `["--size", "1G", "mdts=1"]`.
    pub(crate) fn start(arguments: &[&str]) -> Served {
        let program = build_binary("nvme-vfio-cli", "nvme-vfio").unwrap();
        let directory = tempfile::Builder::new().prefix("vm-").tempdir().unwrap();
        let file = |name| File::create(directory.path().join(name)).unwrap();
        let socket = directory.path().join("socket");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(["emulate", "-o", "json", "--socket"])
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        let mut served = Served { child, directory };
        let deadline = Instant::now() + START;
        while !socket.exists() {
            let ended = served.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no socket: {ended:?}\n{}",
                served.said()
            );
            thread::sleep(Duration::from_millis(5));
        }
        served
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
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

    /// Ends the server as a person would; what it counted.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Value {
        self.lives();
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).unwrap();
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
        let said = fs::read_to_string(self.directory.path().join("stdout")).unwrap();
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}\n{said}"))
    }

    fn said(&self) -> String {
        ["stdout", "stderr"]
            .map(|name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default())
            .join("\n")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
