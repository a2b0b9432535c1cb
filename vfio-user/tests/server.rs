//! The server: its socket's name, and who is let in when.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::message::Request;
use nvme_vfio_user::socket::SocketError;
use nvme_vfio_user::{
    Doorkeeper, Peer, Refused, RefusedMap, Server, ServerError, ServerOptions, SessionEnd,
    SessionOptions, Stop,
};

/// Runs a server while `test` does what it does with it.
fn serve(options: ServerOptions, test: impl FnOnce(&Path, &TestDevice, &Stop)) {
    let folder = tempfile::tempdir().expect("a directory");
    let server = Server::bind(&folder.path().join("socket"), options).expect("bound");
    let device = TestDevice::new();
    let stop = Stop::new().expect("descriptors");
    /// Ends the server when the test fails too.
    struct Ends<'a>(&'a Stop, &'a TestDevice);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.1.state().hold = false;
            self.0.set();
        }
    }
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&device, &stop));
        {
            let _ends = Ends(&stop, &device);
            test(server.path(), &device, &stop);
        }
        running.join().expect("it ran").expect("it stopped");
    });
}

fn open(path: &Path) -> Client {
    let mut client = Client::connect(path);
    client.ask(&VERSION, &[]).expect("agreed");
    client
}

/// What a server gives somebody a second for can be spoiled by a machine that is held up for longer, but not each time.
fn at_times(what: &str, mut happens: impl FnMut() -> bool) {
    assert!((0..10).any(|_| happens()), "{what}");
}

/// Waits for something that happens soon.
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn serves_one_client_after_the_other() {
    serve(ServerOptions::default(), |path, device, _| {
        for number in 1..=50 {
            let mut client = open(path);
            let file: OwnedFd = memfd(1).into();
            client.ask(&map(0, PAGE), &[file.as_fd()]).expect("mapped");
            // Whatever is under way: the next one is let in, and not refused.
            for _ in 0..100 {
                client.send(&Request::DeviceReset, &[]);
            }
            drop(client);
            assert!(device.state().disconnects <= number);
        }
        soon("the last one's end", || device.state().disconnects == 50);
        assert!(device.state().maps.is_empty());
    });
}

#[test]
fn a_second_client_is_told_that_it_is_one() {
    serve(ServerOptions::default(), |path, device, _| {
        let mut first = open(path);
        for _ in 0..3 {
            let mut second = Client::connect(path);
            assert_eq!(
                second.ask(&VERSION, &[]).expect_err("refused"),
                Errno::EBUSY
            );
            assert!(matches!(second.receive(), Err(SocketError::Closed)));
        }
        // Those that say nothing are not waited for.
        let silent: Vec<_> = (0..40).map(|_| Client::connect(path)).collect();
        first
            .ask(&Request::DeviceGetInfo, &[])
            .expect("undisturbed");
        let mut second = Client::connect(path);
        assert_eq!(
            second.ask(&VERSION, &[]).expect_err("refused"),
            Errno::EBUSY
        );
        for mut client in silent {
            assert!(client.receive().is_err());
        }
        assert_eq!(device.state().disconnects, 0);
        drop(first);
        open(path);
    });
}

#[test]
fn a_client_that_comes_a_moment_too_early_is_let_in() {
    serve(ServerOptions::default(), |path, device, _| {
        at_times("let in", || {
            let before = device.state().disconnects;
            let first = open(path);
            let waited = thread::scope(|scope| {
                let second = scope.spawn(|| Client::connect(path).ask(&VERSION, &[]).map(drop));
                thread::sleep(Duration::from_millis(200));
                let waited = !second.is_finished();
                drop(first);
                let answer = second.join().expect("no panic");
                assert!(matches!(answer, Ok(()) | Err(Errno::EBUSY)), "{answer:?}");
                waited && answer.is_ok()
            });
            let all = before + 1 + usize::from(waited);
            soon("all ends", || device.state().disconnects >= all);
            waited
        });
    });
}

#[test]
fn the_next_client_waits_until_the_device_let_go() {
    serve(ServerOptions::default(), |path, device, _| {
        let client = open(path);
        device.state().hold = true;
        drop(client);
        let mut next = Client::connect(path);
        let id = next.send(&VERSION, &[]);
        std::thread::sleep(Duration::from_millis(100));
        assert!(next.try_receive().expect("a connection").is_none());
        device.state().hold = false;
        next.answer(id).expect("let in, not refused");
        assert_eq!(device.state().disconnects, 1);
    });
}

#[test]
fn a_client_that_is_sent_away_keeps_its_place_until_the_device_let_go() {
    serve(ServerOptions::default(), |path, device, _| {
        let client = open(path);
        device.state().hold = true;
        // No message: the session ends, and the connection stays.
        client.send_bytes(&[0xff; 16], &[]).expect("sent");
        std::thread::sleep(Duration::from_millis(100));
        let mut next = Client::connect(path);
        let id = next.send(&VERSION, &[]);
        std::thread::sleep(Duration::from_millis(100));
        assert!(next.try_receive().expect("a connection").is_none());
        device.state().hold = false;
        next.answer(id).expect("let in, not refused");
        assert_eq!(device.state().disconnects, 1);
        drop(client);
    });
}

#[test]
fn what_a_dead_client_left_to_do_does_not_keep_its_successor_out() {
    serve(ServerOptions::default(), |path, device, _| {
        for _ in 0..10 {
            let mut first = open(path);
            let mut next = {
                // The device is busy while more comes than is done at a time.
                let busy = device.state();
                for _ in 0..200 {
                    let (bytes, _) = first.encode(&Request::DeviceReset, true);
                    first.send_bytes(&bytes, &[]).expect("sent");
                }
                drop(first);
                let next = Client::connect(path);
                drop(busy);
                next
            };
            next.ask(&VERSION, &[]).expect("let in, not refused");
        }
        assert_eq!(device.state().resets, 2000);
    });
}

#[test]
fn a_silent_client_keeps_nobody_out_for_long() {
    let options = ServerOptions {
        session: SessionOptions {
            version_timeout: Duration::from_millis(50),
            ..SessionOptions::default()
        },
        ..ServerOptions::default()
    };
    serve(options, |path, _, _| {
        let mut silent = Client::connect(path);
        soon("the silent one's end", || silent.try_receive().is_err());
        // Whoever says something in time is let in.
        soon("the next one", || {
            let mut next = Client::connect(path);
            let (version, _) = next.encode(&VERSION, false);
            next.send_bytes(&version, &[]).is_ok() && next.receive().is_ok()
        });
    });
}

#[test]
fn stops_with_a_client_and_waits_for_the_device() {
    serve(ServerOptions::default(), |path, device, stop| {
        let mut client = open(path);
        let file: OwnedFd = memfd(1).into();
        client.ask(&map(0, PAGE), &[file.as_fd()]).expect("mapped");
        device.state().hold = true;
        stop.set();
        std::thread::sleep(Duration::from_millis(50));
        // The client may believe that its memory is free only when it is.
        assert!(client.try_receive().expect("a connection").is_none());
        device.state().hold = false;
        assert!(matches!(client.receive(), Err(SocketError::Closed)));
        assert_eq!(device.state().disconnects, 1);
    });
}

#[test]
fn a_device_that_breaks_ends_the_server_while_its_client_is_there() {
    for request in [unmap(0, PAGE), Request::DeviceReset] {
        let folder = tempfile::tempdir().expect("a directory");
        let options = ServerOptions::default();
        let server = Server::bind(&folder.path().join("socket"), options).expect("bound");
        let (device, stop) = (TestDevice::new(), Stop::new().expect("descriptors"));
        thread::scope(|scope| {
            let running = scope.spawn(|| server.run(&device, &stop));
            let mut client = open(server.path());
            let file: OwnedFd = memfd(1).into();
            client.ask(&map(0, PAGE), &[file.as_fd()]).expect("mapped");
            // As a device must that is broken, it says of nothing that it is over.
            {
                let mut state = device.state();
                (state.hold, state.slow_resets, state.broken) = (true, true, true);
                // Before the server can see it: then nobody may be there to take the request.
                client.send(&request, &[]);
            }
            let begun = Instant::now();
            while !running.is_finished() && begun.elapsed() < Duration::from_secs(60) {
                thread::sleep(Duration::from_millis(1));
            }
            // So that it ends where it did not.
            stop.set();
            let ended = running.join().expect("it ran");
            assert!(matches!(ended, Err(ServerError::Broken { .. })));
            assert!(
                client.receive().is_err(),
                "it was not told that all is over"
            );
            assert!(begun.elapsed() < Duration::from_secs(60), "by itself");
        });
        assert_eq!(device.state().maps.len(), 1);
    }
}

#[test]
fn an_idle_server_sleeps() {
    let folder = tempfile::tempdir().expect("a directory");
    let server =
        Server::bind(&folder.path().join("socket"), ServerOptions::default()).expect("bound");
    let (device, stop) = (TestDevice::new(), Stop::new().expect("descriptors"));
    // What whoever asks has had of a processor.
    let time = || {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        Duration::from(clock.now().expect("the time"))
    };
    let awake = Duration::from_millis(500);
    let used = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            server.run(&device, &stop).expect("it ran");
            time()
        });
        let mut client = open(server.path());
        // With memory that could be taken away, too.
        let file: OwnedFd = memfd(1).into();
        client.ask(&map(0, PAGE), &[file.as_fd()]).expect("mapped");
        // Beside one that does not sleep: whatever else the machine does, it does to both.
        let before = time();
        while time() - before < awake {
            std::hint::spin_loop();
        }
        stop.set();
        running.join().expect("it ran")
    });
    assert!(
        used < awake / 5,
        "{used:?} of processor time, while {awake:?} were to be had"
    );
}

fn bind(path: &Path) -> Result<Server, ServerError> {
    Server::bind(path, ServerOptions::default())
}

#[test]
fn replaces_what_a_server_left_behind_and_no_live_one() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let server = bind(&path).expect("the old one is replaced");
    assert!(matches!(bind(&path), Err(ServerError::InUse { .. })));
    // It still listens.
    Client::connect(&path);
    // Its backlog may be full.
    let full = folder.path().join("full");
    let options = ServerOptions {
        backlog: 1,
        ..ServerOptions::default()
    };
    let _server = Server::bind(&full, options).expect("bound");
    let _clients = [Client::connect(&full), Client::connect(&full)];
    assert!(matches!(bind(&full), Err(ServerError::InUse { .. })));
    drop(server);
    assert!(!path.exists());
}

#[test]
fn replaces_nothing_but_sockets() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("file");
    std::fs::write(&file, b"precious").expect("written");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("a link");
    for path in [&file, &link, &dangling, &folder.path().to_owned()] {
        assert!(
            matches!(bind(path), Err(ServerError::NotASocket { .. })),
            "{path:?}"
        );
    }
    assert_eq!(std::fs::read(&link).expect("still there"), b"precious");
    assert!(matches!(
        bind(&folder.path().join("no/such")),
        Err(ServerError::System { .. })
    ));
    assert!(matches!(
        bind(&folder.path().join("x".repeat(200))),
        Err(ServerError::System { .. })
    ));
}

#[test]
fn removes_its_socket_only() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("socket");
    let server = bind(&path).expect("bound");
    std::fs::rename(&path, folder.path().join("moved")).expect("renamed");
    let other = bind(&path).expect("the name is free");
    let inode = std::fs::metadata(&path).expect("there").ino();
    drop(server);
    assert_eq!(std::fs::metadata(&path).expect("still there").ino(), inode);
    drop(other);
    assert!(!path.exists());
}

#[test]
fn the_socket_has_the_mode_it_is_given() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("socket");
    for mode in [0o600, 0o660, 0o666, 0o777, 0o200] {
        let options = ServerOptions {
            mode,
            ..ServerOptions::default()
        };
        let _server = Server::bind(&path, options).expect("bound");
        let found = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(found & 0o7777, mode);
    }
}

#[test]
fn of_many_servers_one_gets_the_socket() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("socket");
    let together = std::sync::Barrier::new(8);
    for _ in 0..100 {
        // Left behind.
        drop(UnixListener::bind(&path).expect("a socket"));
        let servers: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                together.wait();
                bind(&path)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("it ran"))
                .collect()
        });
        assert_eq!(servers.iter().filter(|server| server.is_ok()).count(), 1);
        Client::connect(&path);
        drop(servers);
        assert!(!path.exists());
    }
}

/// Admits as it is told, and remembers who came and went.
#[derive(Debug, Default)]
struct Porter {
    closed: AtomicBool,
    /// How many have come.
    asked: AtomicUsize,
    /// Whoever has it keeps the server from going on with who has come.
    hold: Mutex<()>,
    /// How many were let in, or may wait for it.
    admitted: AtomicUsize,
    seen: Mutex<Vec<String>>,
}

impl Porter {
    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }

    fn note(&self, peer: &Peer, what: String) {
        assert_eq!(peer.pid, std::process::id() as i32);
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert!(peer.start_time.is_some());
        self.seen.lock().expect("no panic").push(what);
    }
}

impl Doorkeeper for Porter {
    fn admit(&self, peer: &Peer) -> Result<(), Errno> {
        assert_eq!(peer.gid, nix::unistd::getgid().as_raw());
        self.asked.fetch_add(1, Ordering::Relaxed);
        drop(self.hold.lock());
        if self.closed.load(Ordering::Relaxed) {
            Err(Errno::EACCES)
        } else {
            self.admitted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn connected(&self, peer: &Peer) {
        self.note(peer, "connected".into());
    }

    fn refused(&self, peer: &Peer, why: &Refused) {
        self.note(peer, why.to_string());
    }

    fn memory_refused(&self, peer: &Peer, map: &RefusedMap) {
        self.note(peer, format!("{map:?}"));
    }

    fn left(&self, peer: &Peer, why: &SessionEnd) {
        self.note(peer, why.to_string());
    }
}

/// A doorkeeper, and the options of a server that has it.
fn attended() -> (Arc<Porter>, ServerOptions) {
    let porter = Arc::new(Porter::default());
    let doorkeeper: Arc<dyn Doorkeeper> = Arc::clone(&porter) as _;
    let options = ServerOptions {
        doorkeeper: Some(doorkeeper),
        ..ServerOptions::default()
    };
    (porter, options)
}

#[test]
fn a_doorkeeper_hears_of_memory_that_is_not_taken() {
    let (porter, options) = attended();
    let mut count = 0;
    serve(options, |path, _, _| {
        let mut client = open(path);
        client.ask(&map(1 << 20, 1 << 16), &[]).expect("taken");
        for _ in 0..200 {
            let refused = client.ask(&map(1 << 20, 1 << 17), &[]);
            assert_eq!(refused.expect_err("refused"), Errno::EEXIST);
            count += 1;
        }
        // The last one that it says before it goes is heard as well.
        client.send(&map(1 << 20, 1), &[]);
        drop(client);
        soon("it has left", || porter.seen().len() == count + 3);
    });
    let seen = porter.seen();
    let refused = |length, errno| {
        let address = 1 << 20;
        format!(
            "{:?}",
            RefusedMap {
                address,
                length,
                errno
            }
        )
    };
    assert!(
        seen[1..=count]
            .iter()
            .all(|what| *what == refused(1 << 17, Errno::EEXIST))
    );
    assert_eq!(seen[count + 1], refused(1, Errno::EINVAL));
}

#[test]
fn who_is_not_admitted_costs_the_present_client_nothing() {
    let (porter, options) = attended();
    serve(options, |path, device, _| {
        let mut first = open(path);
        porter.closed.store(true, Ordering::Relaxed);
        let mut fastest = Duration::MAX;
        for _ in 0..100 {
            let mut second = Client::connect(path);
            let begun = Instant::now();
            let refused = second.ask(&VERSION, &[]).expect_err("refused");
            assert_eq!(refused, Errno::EACCES);
            fastest = fastest.min(begun.elapsed());
            assert!(matches!(second.receive(), Err(SocketError::Closed)));
            first
                .ask(&Request::DeviceGetInfo, &[])
                .expect("undisturbed");
        }
        // At once, and not after the time that somebody admitted would wait.
        assert!(fastest < Duration::from_millis(500), "{fastest:?}");
        assert_eq!(device.state().disconnects, 0);
        drop(first);
        soon("it has left", || porter.seen().len() == 102);
    });
    let seen = porter.seen();
    assert_eq!(seen[0], "connected");
    assert!(seen[1..101].iter().all(|what| what == "it is not admitted"));
    assert_eq!(seen[101], SessionEnd::Closed.to_string());
}

#[test]
fn who_is_not_admitted_takes_no_place_of_those_that_wait() {
    at_times("let in", || {
        let (porter, options) = attended();
        let mut answer = Err(Errno::EBUSY);
        serve(options, |path, _, _| {
            let first = open(path);
            let mut next = Client::connect(path);
            let id = next.send(&VERSION, &[]);
            soon("both are admitted", || {
                porter.admitted.load(Ordering::Relaxed) == 2
            });
            porter.closed.store(true, Ordering::Relaxed);
            let silent: Vec<_> = (0..60).map(|_| Client::connect(path)).collect();
            let refused = || {
                let seen = porter.seen();
                seen.iter()
                    .filter(|what| *what == "it is not admitted")
                    .count()
            };
            soon("all are seen", || refused() == 60);
            drop(first);
            answer = next.answer(id).map(drop);
            drop(silent);
        });
        assert!(matches!(answer, Ok(()) | Err(Errno::EBUSY)), "{answer:?}");
        answer.is_ok()
    });
}

#[test]
fn who_waits_for_one_that_has_gone_is_let_in_however_long_that_ones_work_takes() {
    let (porter, options) = attended();
    serve(options, |path, device, _| {
        let mut first = open(path);
        let hold = porter.hold.lock();
        let mut next = Client::connect(path);
        let id = next.send(&VERSION, &[]);
        soon("the next one is seen", || {
            porter.asked.load(Ordering::Relaxed) == 2
        });
        // It comes to wait when the first is gone, with more left to do than is done at a time.
        let busy = device.state();
        for _ in 0..200 {
            let (bytes, _) = first.encode(&Request::DeviceReset, true);
            first.send_bytes(&bytes, &[]).expect("sent");
        }
        drop(first);
        drop(hold);
        // Longer than somebody waits for one that is there.
        thread::sleep(Duration::from_millis(1500));
        drop(busy);
        next.answer(id).expect("let in, not refused");
    });
}

#[test]
fn a_doorkeeper_hears_of_those_that_came_while_somebody_was_there() {
    let (porter, options) = attended();
    serve(options, |path, _, stop| {
        let _first = open(path);
        let mut second = Client::connect(path);
        let refused = second.ask(&VERSION, &[]).expect_err("refused");
        assert_eq!(refused, Errno::EBUSY);
        stop.set();
    });
    let stopped = SessionEnd::Stopped.to_string();
    assert_eq!(
        porter.seen(),
        ["connected", "somebody else is there", &stopped]
    );
}

#[test]
fn the_socket_belongs_to_whom_it_is_given() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("socket");
    let options = |owner| ServerOptions {
        owner: Some(owner),
        group: Some(nix::unistd::getgid().as_raw()),
        ..ServerOptions::default()
    };
    let other = 12345;
    match Server::bind(&path, options(other)) {
        Ok(server) => {
            let found = std::fs::symlink_metadata(server.path()).expect("there");
            assert_eq!((found.uid(), found.mode() & 0o7777), (other, 0o600));
        }
        // Without the privilege nothing is left behind.
        Err(error) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            assert!(!path.exists());
        }
    }
    let own = nix::unistd::getuid().as_raw();
    let server = Server::bind(&path, options(own)).expect("bound");
    assert_eq!(
        std::fs::symlink_metadata(server.path())
            .expect("there")
            .uid(),
        own
    );
}
