//! Descriptors whose last close waits: whoever sends one makes nobody wait but a thread that has nothing else to do.

mod common;

use std::io::{ErrorKind, IoSlice, PipeReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use nvme_vfio_user::device::{Errno, IrqAction};
use nvme_vfio_user::message::{IrqSetData, Request, SetIrqs};
use nvme_vfio_user::{Doorkeeper, Peer, Server, ServerOptions, SessionEnd, Stop};

/// How long the close of a lingering socket takes at least.
const LINGER: Duration = Duration::from_secs(600);
/// How long nothing else takes, however busy the machine is.
const SOON: Duration = Duration::from_secs(60);

/// A socket whose last close waits until its peer is dropped, and that peer.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    setsockopt(&listener, sockopt::RcvBuf, &2048).expect("a small buffer");
    let mut socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (peer, _) = listener.accept().expect("accepted");
    socket.set_nonblocking(true).expect("set");
    loop {
        match socket.write(&[0; 65536]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: LINGER.as_secs() as i32,
    };
    setsockopt(&socket, sockopt::Linger, &linger).expect("it lingers");
    (socket, peer)
}

/// Whoever holds it keeps the server from looking at a new connection, so that the close of what is sent over that is the server's, and not the test's.
#[derive(Debug, Default)]
struct Gate {
    closed: AtomicBool,
    hold: Mutex<()>,
    /// Why clients have left.
    left: Mutex<Vec<String>>,
}

impl Doorkeeper for Gate {
    fn admit(&self, _: &Peer) -> Result<(), Errno> {
        drop(self.hold.lock());
        if self.closed.load(Ordering::Relaxed) {
            Err(Errno::EACCES)
        } else {
            Ok(())
        }
    }

    fn left(&self, _: &Peer, why: &SessionEnd) {
        self.left.lock().expect("a list").push(why.to_string());
    }
}

/// Runs a server for a test, and sees that it stops at once.
fn serve(test: impl FnOnce(&Path, &Gate, &TestDevice)) {
    let gate = Arc::new(Gate::default());
    let options = ServerOptions {
        doorkeeper: Some(Arc::clone(&gate) as _),
        ..ServerOptions::default()
    };
    let folder = tempfile::tempdir().expect("a directory");
    let server = Server::bind(&folder.path().join("socket"), options).expect("bound");
    let (device, stop) = (TestDevice::new(), Stop::new().expect("descriptors"));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&device, &stop));
        let stopping = StopAtEnd(&stop);
        test(server.path(), &gate, &device);
        let begun = Instant::now();
        drop(stopping);
        running.join().expect("it ran").expect("it stopped");
        assert!(begun.elapsed() < SOON, "the server stopped late");
    });
    // And whoever has not been accepted.
    let (socket, _peer) = lingering();
    let late = Client::connect(server.path());
    late.send_bytes(&[0], &[socket.as_fd()]).expect("sent");
    drop(socket);
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < SOON, "the listener was closed late");
}

/// A client that is let in is answered soon.
fn is_served(path: &Path) {
    let begun = Instant::now();
    let mut client = Client::connect(path);
    client.ask(&VERSION, &[]).expect("let in");
    client.ask(&Request::DeviceGetInfo, &[]).expect("answered");
    assert!(begun.elapsed() < SOON, "answered late");
}

/// The server is in the device, and receives nothing from its client, until what this returns is dropped.
fn keep_busy<'a>(client: &mut Client, device: &'a TestDevice) -> MutexGuard<'a, State> {
    let busy = device.state();
    let (reset, _) = client.encode(&Request::DeviceReset, true);
    client.send_bytes(&reset, &[]).expect("sent");
    busy
}

/// Ways to send descriptors without being let in, or before.
fn first_words(client: &mut Client, way: u32, descriptors: &[BorrowedFd<'_>]) {
    let (version, _) = client.encode(&VERSION, false);
    match way {
        0 => client.send_bytes(&version, descriptors).expect("sent"),
        1 => client.send_bytes(&version[..3], descriptors).expect("sent"),
        2 => {
            client.send_bytes(&version[..3], &[]).expect("sent");
            client.send_bytes(&version[3..], descriptors).expect("sent");
        }
        // Out of band: the last byte, and only that, is told to be urgent.
        3 => {
            let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            sendmsg::<()>(
                client.socket.as_fd().as_raw_fd(),
                &[IoSlice::new(&version[..1])],
                &[ControlMessage::ScmRights(&raw)],
                MsgFlags::MSG_OOB,
                None,
            )
            .expect("sent");
            client.send_bytes(&version[1..], &[]).expect("sent");
        }
        // Behind a whole message.
        _ => {
            client.send_bytes(&version, &[]).expect("sent");
            client.send_bytes(&version[..1], descriptors).expect("sent");
        }
    }
}

#[test]
fn whoever_is_not_admitted_makes_nobody_wait() {
    serve(|path, gate, _| {
        for way in 0..5 {
            gate.closed.store(true, Ordering::Relaxed);
            let (socket, peer) = lingering();
            let hold = gate.hold.lock();
            let mut stranger = Client::connect(path);
            first_words(&mut stranger, way, &[socket.as_fd()]);
            drop(socket);
            drop(hold);
            // At the latest after the second that a stranger has.
            assert!(
                stranger.receive().is_err() || stranger.receive().is_err(),
                "{way}"
            );
            gate.closed.store(false, Ordering::Relaxed);
            is_served(path);
            drop(peer);
        }
    });
}

#[test]
fn a_client_makes_nobody_wait_before_it_has_said_its_version() {
    serve(|path, gate, _| {
        for way in 0..5 {
            let (socket, peer) = lingering();
            let hold = gate.hold.lock();
            let mut client = Client::connect(path);
            first_words(&mut client, way, &[socket.as_fd()]);
            drop(socket);
            drop(client);
            drop(hold);
            is_served(path);
            drop(peer);
        }
    });
}

#[test]
fn a_client_makes_nobody_wait_by_any_message() {
    let eventfds = SetIrqs {
        index: MSIX,
        start: 0,
        count: 1,
        action: IrqAction::Trigger,
        data: IrqSetData::Eventfd,
    };
    serve(|path, _, device| {
        let (socket, peer) = lingering();
        let mut client = Client::connect(path);
        client.ask(&VERSION, &[]).expect("let in");
        for (request, errno) in [
            (Request::DeviceGetInfo, Some(Errno::EINVAL)),
            (map(0, PAGE), Some(Errno::ENODEV)),
            (Request::DeviceSetIrqs(eventfds), Some(Errno::EINVAL)),
            (unmap(1 << 30, PAGE), Some(Errno::ENOENT)),
        ] {
            let (socket, _peer) = lingering();
            let begun = Instant::now();
            let busy = keep_busy(&mut client, device);
            let id = client.send(&request, &[socket.as_fd()]);
            drop(socket);
            drop(busy);
            assert_eq!(client.answer(id).err(), errno, "{request:?}");
            client.ask(&Request::DeviceGetInfo, &[]).expect("answered");
            assert!(begun.elapsed() < SOON, "{request:?}");
        }
        assert!(device.state().maps.is_empty() && device.state().vectors.is_empty());
        // More than may be sent with a message; the kernel is not to close them either.
        let busy = keep_busy(&mut client, device);
        client.send(&Request::DeviceGetInfo, &[socket.as_fd(); 20]);
        drop(socket);
        drop(busy);
        assert!(client.receive().is_err());
        is_served(path);
        drop(peer);
    });
}

/// Sends as many lingering sockets as `count` batches of eight have, and returns their peers.
fn send_lingering(client: &mut Client, count: usize) -> Vec<TcpStream> {
    let mut peers = Vec::new();
    for _ in 0..count {
        let batch: Vec<_> = (0..8).map(|_| lingering()).collect();
        let sockets: Vec<_> = batch.iter().map(|(socket, _)| socket.as_fd()).collect();
        let (bytes, _) = client.encode(&Request::DeviceGetInfo, true);
        client.send_bytes(&bytes, &sockets).expect("sent");
        peers.extend(batch.into_iter().map(|(_, peer)| peer));
    }
    peers
}

/// How many descriptors of this process are of the same pipe.
fn open_ends(pipe: &PipeReader) -> usize {
    let name = |path: &Path| std::fs::read_link(path).ok();
    let own = name(format!("/proc/self/fd/{}", pipe.as_raw_fd()).as_ref()).expect("it is open");
    std::fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .filter(|entry| name(&entry.as_ref().expect("an entry").path()).as_ref() == Some(&own))
        .count()
}

#[test]
fn whoever_leaves_too_much_behind_is_kept_out_until_it_is_closed() {
    serve(|path, _, device| {
        // One connection after the other: what they leave behind does not grow with their number.
        let mut peers = Vec::new();
        let mut sessions = 0;
        let (mut late, id) = loop {
            let mut client = Client::connect(path);
            let id = client.send(&VERSION, &[]);
            // Two are let in: what the first leaves is half of what may wait.
            let patience = Duration::from_secs(if sessions < 2 { 60 } else { 3 });
            let patience = nvme_vfio_user::Deadline::after(patience);
            if client.socket.wait_readable(patience).is_err() {
                break (client, id);
            }
            client.answer(id).expect("let in");
            sessions += 1;
            assert!(sessions < 10, "everybody is let in");
            let busy = keep_busy(&mut client, device);
            peers.extend(send_lingering(&mut client, 8));
            drop(client);
            drop(busy);
        };
        assert_eq!(sessions, 2);
        // All that was waited for ends: the door is open again, and whoever waited is let in.
        drop(peers);
        late.answer(id).expect("let in");
        drop(late);
        is_served(path);
        assert!(device.state().disconnects > sessions);
    });
}

#[test]
fn whoever_is_ahead_of_what_is_closed_is_held_up_and_not_sent_away() {
    let most = ServerOptions::default().session.max_unclosed;
    serve(|path, _, device| {
        let (pipe, writer) = std::io::pipe().expect("a pipe");
        let mut client = Client::connect(path);
        client.ask(&VERSION, &[]).expect("let in");
        let busy = keep_busy(&mut client, device);
        let mut peers = send_lingering(&mut client, 1);
        let (bytes, _) = client.encode(&Request::DeviceGetInfo, true);
        let count = 4 * most / 8;
        for _ in 0..count {
            client
                .send_bytes(&bytes, &[writer.as_fd(); 8])
                .expect("sent");
        }
        let id = client.send(&Request::DeviceGetInfo, &[]);
        drop(busy);
        let begun = Instant::now();
        // The server comes so far, and no further.
        while open_ends(&pipe) < most - 16 {
            assert!(begun.elapsed() < SOON, "{} are open", open_ends(&pipe));
        }
        for _ in 0..3 {
            let open = open_ends(&pipe);
            assert!(open <= most + 16, "{open} are open");
        }
        // One after the other is closed, and more are taken in.
        peers.clear();
        client.answer(id).expect("it is still there");
        drop(client);
        while open_ends(&pipe) > 2 {
            assert!(begun.elapsed() < SOON, "{} are open", open_ends(&pipe));
        }
    });
}

#[test]
fn whoever_is_ahead_of_what_is_closed_for_long_is_sent_away() {
    serve(|path, gate, device| {
        let mut client = Client::connect(path);
        client.ask(&VERSION, &[]).expect("let in");
        let busy = keep_busy(&mut client, device);
        let peers = send_lingering(&mut client, 20);
        drop(busy);
        assert!(client.receive().is_err());
        let begun = Instant::now();
        while gate.left.lock().expect("a list").is_empty() {
            assert!(begun.elapsed() < SOON);
        }
        assert_eq!(
            *gate.left.lock().expect("a list"),
            ["the client's descriptors cannot be closed"]
        );
        drop(peers);
        is_served(path);
    });
}

#[test]
fn whoever_is_there_stays_whatever_those_leave_behind_who_wait() {
    serve(|path, _, _| {
        let mut client = Client::connect(path);
        client.ask(&VERSION, &[]).expect("let in");
        // As many as are accepted before nobody is, and some that wait for that.
        let mut peers = Vec::new();
        for _ in 0..72 {
            let (socket, peer) = lingering();
            let other = Client::connect(path);
            other.send_bytes(&[0; 3], &[socket.as_fd()]).expect("sent");
            peers.push(peer);
        }
        // Longer than it takes to be sent away.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            let eventfd = nix::sys::eventfd::EventFd::new().expect("an eventfd");
            connect(&mut client, &[eventfd.as_fd(); 8]);
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(client);
        drop(peers);
        is_served(path);
    });
}

#[test]
fn what_an_earlier_client_left_is_not_in_the_way_of_the_next() {
    let most = ServerOptions::default().session.max_unclosed;
    serve(|path, _, device| {
        let mut first = Client::connect(path);
        first.ask(&VERSION, &[]).expect("let in");
        let busy = keep_busy(&mut first, device);
        let peers = send_lingering(&mut first, 2);
        drop(first);
        drop(busy);
        let mut client = Client::connect(path);
        client.ask(&VERSION, &[]).expect("let in");
        let eventfd = nix::sys::eventfd::EventFd::new().expect("an eventfd");
        for _ in 0..most {
            connect(&mut client, &[eventfd.as_fd(); 8]);
        }
        drop(peers);
    });
}

/// Has the first vectors signal these.
fn connect(client: &mut Client, eventfds: &[BorrowedFd<'_>]) {
    let set = SetIrqs {
        index: MSIX,
        start: 0,
        count: eventfds.len() as u32,
        action: IrqAction::Trigger,
        data: IrqSetData::Eventfd,
    };
    let answer = client.ask(&Request::DeviceSetIrqs(set), eventfds);
    answer.expect("connected");
}
