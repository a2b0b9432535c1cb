//! `nvme-vfio` as a server on the host, in a process of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use xtask::vm::build_binary;

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(60);

/// A server, which ends with this value. Its directory holds its sockets and what it said.
pub(crate) struct Server {
    child: Child,
    directory: TempDir,
}

/// An empty directory for a server.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("vm-").tempdir().unwrap()
}

impl Server {
    /// Starts `nvme-vfio` with arguments, in which `directory` may be named, and waits for the sockets.
    pub(crate) fn start(directory: TempDir, arguments: &[&str], sockets: &[PathBuf]) -> Server {
        let program = build_binary("nvme-vfio-cli", "nvme-vfio").unwrap();
        let file = |name| File::create(directory.path().join(name)).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        let mut server = Server { child, directory };
        let deadline = Instant::now() + START;
        while !sockets.iter().all(|socket| socket.exists()) {
            let ended = server.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no socket: {ended:?}\n{}",
                server.said()
            );
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
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

    /// Ends the server as a person would; what a file of its directory holds then.
    #[track_caller]
    pub(crate) fn stop(mut self, file: &str) -> String {
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
        fs::read_to_string(self.path().join(file)).unwrap()
    }

    fn said(&self) -> String {
        ["stdout", "stderr"]
            .map(|name| fs::read_to_string(self.path().join(name)).unwrap_or_default())
            .join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
