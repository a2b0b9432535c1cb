//! Whether a server has ended. Servers are processes of their own here: this test program again, asked to listen.

use std::os::unix::net::UnixListener;
use std::process::{Child, Command as Process, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::*;

const LISTEN: &str = "NVME_VFIO_USER_TEST_LISTEN";
const HAND_OVER: &str = "NVME_VFIO_USER_TEST_HAND_OVER";

fn now() -> Deadline {
    Deadline::at(Instant::now())
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// A process that runs one of the tests below, killed when this is dropped.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn process(test: &str) -> Process {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process
        .args([test, "--exact", "--nocapture"])
        .stdout(Stdio::null());
    process
}

/// Waits for a file, which a process makes when it has got that far.
fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < FAR, "{} never comes", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

fn listener(path: &Path, hand_over: bool) -> Listener {
    let mut process = process("client::tests::end::listening_process");
    process.env(LISTEN, path);
    if hand_over {
        process.env(HAND_OVER, path);
    }
    let listener = Listener(process.spawn().unwrap());
    wait_for(&path.with_extension("ready"));
    listener
}

/// Ends this process whatever becomes of the test that started it.
fn end_in_time() {
    thread::spawn(|| {
        thread::sleep(3 * FAR);
        std::process::exit(1);
    });
}

/// Not a test by itself: what `listener` runs.
#[test]
fn listening_process() {
    let Ok(path) = std::env::var(LISTEN) else {
        return;
    };
    end_in_time();
    let listener = UnixListener::bind(&path).unwrap();
    if std::env::var(HAND_OVER).is_ok() {
        let child = process("client::tests::end::accepting_process")
            .env_remove(LISTEN)
            .stdin(OwnedFd::from(listener))
            .spawn();
        std::fs::write(
            Path::new(&path).with_extension("pid"),
            child.unwrap().id().to_string(),
        )
        .unwrap();
        std::fs::write(Path::new(&path).with_extension("ready"), "").unwrap();
        return;
    }
    std::fs::write(Path::new(&path).with_extension("ready"), "").unwrap();
    let _connection = listener.accept().unwrap();
    thread::sleep(FAR);
}

/// Not a test by itself: what `listening_process` leaves its socket to.
#[test]
fn accepting_process() {
    if std::env::var(HAND_OVER).is_err() || std::env::var(LISTEN).is_ok() {
        return;
    }
    end_in_time();
    let listener = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (connection, _) = UnixListener::from(listener).accept().unwrap();
    // Closed on the first byte, to live on without it.
    let _ = nix::unistd::read(&connection, &mut [0]);
    drop(connection);
    thread::sleep(FAR);
}

/// A server that is killed has ended; one that lives, or was stopped, has not.
#[test]
fn only_the_end_of_the_process_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut server = listener(&path, false);
    let socket = Socket::connect(&path, Deadline::after(FAR)).unwrap();
    let peer = Peer::of(&socket);
    let by_number = crate::process::pidfd_open(server.0.id() as i32).unwrap();
    assert!(!peer.has_ended(&socket, now()));
    kill(pid(&server.0), Signal::SIGSTOP).unwrap();
    assert!(!peer.has_ended(&socket, now()));
    server.0.kill().unwrap();
    let start = Instant::now();
    while !peer.has_ended(&socket, now()) {
        assert!(start.elapsed() < FAR, "the end of the process was not seen");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(crate::process::has_exited_by(&by_number, now()));
}

/// A process that listened and has gone tells nothing of the one that it left its socket to.
#[test]
fn one_that_took_a_socket_over_is_never_said_to_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = listener(&path, true);
    // Its end is waited for and not taken note of: the kernel still knows it, as one that has exited.
    let exited = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let status = waitid(Id::Pid(pid(&first.0)), exited).unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    let socket = Socket::connect(&path, Deadline::after(FAR)).unwrap();
    let peer = Peer::of(&socket);
    assert!(!peer.has_ended(&socket, now()));
    // It closes the connection and lives on.
    assert_eq!(socket.try_send(b"x", &[]).unwrap(), Some(1));
    socket.wait_readable(Deadline::after(FAR)).unwrap();
    assert!(!peer.has_ended(&socket, Deadline::after(Duration::from_millis(50))));
    let second = std::fs::read_to_string(path.with_extension("pid")).unwrap();
    kill(Pid::from_raw(second.parse().unwrap()), Signal::SIGKILL).unwrap();
    assert!(!peer.has_ended(&socket, Deadline::after(Duration::from_millis(50))));
}

/// As the kernel says it of a server in this process, which lives on.
#[test]
fn a_closed_connection_is_not_the_end() {
    let (socket, other) = Socket::pair().unwrap();
    let peer = Peer::of(&socket);
    drop(other);
    assert!(!peer.has_ended(&socket, Deadline::after(Duration::from_millis(50))));
}
