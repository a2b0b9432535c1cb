//! Whether a server has ended.

use super::*;

/// A server in a process of its own that is killed has ended; one that only closed the connection has not, and neither has one that was stopped.
#[test]
fn only_the_end_of_the_process_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // A process that listens, accepts, and then does nothing: the shell's `read` waits on the socket's file as its input.
    let mut child = match fork_listener(&path) {
        Ok(child) => child,
        Err(why) => panic!("no server process: {why}"),
    };
    let socket = Socket::connect(&path, Deadline::after(FAR)).unwrap();
    let peer = Peer::of(&socket);
    assert!(!peer.has_ended(&socket, Deadline::at(Instant::now())));
    nix::sys::signal::kill(child.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert!(!peer.has_ended(&socket, Deadline::at(Instant::now())));
    child.kill();
    let start = Instant::now();
    while !peer.has_ended(&socket, Deadline::at(Instant::now())) {
        assert!(start.elapsed() < FAR, "the end of the process was not seen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// This test program again, as a server: see `listener_process`.
struct Listener(std::process::Child);

impl Listener {
    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0.id() as i32)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LISTEN: &str = "NVME_VFIO_USER_TEST_LISTEN";

fn fork_listener(path: &Path) -> std::io::Result<Listener> {
    let child = std::process::Command::new(std::env::current_exe()?)
        .args([
            "client::tests::end::listener_process",
            "--exact",
            "--nocapture",
        ])
        .env(LISTEN, path)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let listener = Listener(child);
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < FAR, "the server process does not listen");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(listener)
}

/// Not a test by itself: what `fork_listener` runs.
#[test]
fn listener_process() {
    let Ok(path) = std::env::var(LISTEN) else {
        return;
    };
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let _connection = listener.accept().unwrap();
    thread::sleep(FAR);
}
