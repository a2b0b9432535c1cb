//! Descriptors whose last close waits: whoever sends one makes nobody wait but a thread that has nothing else to do.

mod common;

use std::io::{ErrorKind, IoSlice, Write};
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
use nvme_vfio_user::{Doorkeeper, Peer, Server, ServerOptions, Stop};

/// How long the close of a lingering socket takes at least.
const LINGER: Duration = Duration::from_secs(60);
/// How long nothing else may take.
const SOON: Duration = Duration::from_secs(10);

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
        test(server.path(), &gate, &device);
        let begun = Instant::now();
        stop.set();
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

#[test]
fn whoever_leaves_too_much_behind_is_kept_out_until_it_is_closed() {
    serve(|path, _, device| {
        // One connection after the other: what they leave behind does not grow with their number.
        let mut peers = Vec::new();
        let mut sessions = 0;
        let begun = Instant::now();
        let open = || {
            std::fs::read_dir("/proc/self/fd")
                .expect("descriptors")
                .count()
        };
        let before = open();
        'attack: while begun.elapsed() < LINGER {
            let mut client = Client::connect(path);
            let id = client.send(&VERSION, &[]);
            client
                .socket
                .wait_readable(nvme_vfio_user::Deadline::after(Duration::from_millis(500)))
                .ok();
            match client.try_receive() {
                Ok(Some(message)) => answer(message, id).expect("let in"),
                _ => break 'attack,
            };
            sessions += 1;
            let busy = keep_busy(&mut client, device);
            for _ in 0..8 {
                let batch: Vec<_> = (0..8).map(|_| lingering()).collect();
                let sockets: Vec<_> = batch.iter().map(|(socket, _)| socket.as_fd()).collect();
                let (bytes, _) = client.encode(&Request::DeviceGetInfo, true);
                let sent = client.send_bytes(&bytes, &sockets);
                peers.extend(batch.into_iter().map(|(_, peer)| peer));
                if sent.is_err() {
                    break;
                }
            }
            // Whether it goes or is sent away.
            drop(client);
            drop(busy);
        }
        assert!(begun.elapsed() < SOON, "let in {sessions} times");
        let left = open() - before - peers.len();
        assert!(left <= 5000, "{left} descriptors were left open");
        let ended = device.state().disconnects;
        assert_eq!(ended, sessions);
        // All that was waited for ends: the door is open again.
        drop(peers);
        is_served(path);
    });
}
