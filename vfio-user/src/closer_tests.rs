use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::*;

/// A closer without a thread to spare: what it is given waits.
fn idle() -> Closer {
    let closer = Closer::default();
    closer.queue().threads = Closer::THREADS;
    closer
}

#[test]
fn what_closes_at_once_is_told_apart() {
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    let (socket, _peer) = Socket::pair().expect("sockets");
    let memory = nix::sys::memfd::memfd_create("m", nix::sys::memfd::MFdFlags::empty());
    let eventfd = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    let shared = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let other = std::fs::File::open("/proc/self/maps").expect("open");
    let directory = std::fs::File::open("/dev/shm").expect("open");
    let cases: [(OwnedFd, bool); 7] = [
        (memory.expect("a memfd"), true),
        (eventfd.into(), false),
        (shared.into(), true),
        (pipe.into(), false),
        (socket.into(), false),
        (other.into(), false),
        (directory.into(), false),
    ];
    for (index, (descriptor, at_once)) in cases.into_iter().enumerate() {
        let closer = idle();
        let sent = Sent::new(descriptor, closer.clone());
        assert_eq!(sent.memory().is_ok(), at_once, "{index}");
        drop(sent);
        assert_eq!(closer.queue().waiting.is_empty(), at_once, "{index}");
    }
}

#[test]
fn an_eventfd_is_not_closed_by_who_drops_it() {
    let closer = idle();
    let theirs = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    let ours = theirs.as_fd().try_clone_to_owned().expect("a duplicate");
    let eventfd = {
        let threads = crate::SignalThreads::new(1);
        crate::Eventfd::sent(Sent::new(ours, closer.clone()), &threads).expect("taken")
    };
    eventfd.signal().expect("signalled");
    assert!(closer.queue().waiting.is_empty());
    drop(eventfd);
    assert_eq!(closer.queue().waiting.len(), 1);
}

#[test]
fn many_are_no_trouble_while_they_go() {
    let closer = idle();
    let file = std::fs::File::open("/dev/null").expect("open");
    let one = || file.try_clone().expect("a duplicate").into();
    for _ in 0..Closer::MANY {
        closer.close(one());
    }
    assert!(!closer.is_full());
    let moved = Instant::now()
        .checked_sub(Closer::STUCK)
        .expect("it runs for long");
    closer.queue().moved = Some(moved);
    assert!(closer.is_full());
    closer.queue().waiting.pop_back();
    assert!(!closer.is_full());
    closer.queue().moved = Some(Instant::now());
    assert!(!closer.is_full());
}

#[test]
fn everything_is_closed_and_the_threads_end() {
    let closer = Closer::default();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    for _ in 0..1000 {
        closer.close(writer.as_fd().try_clone_to_owned().expect("a duplicate"));
    }
    drop(writer);
    let begun = Instant::now();
    let mut end = [nix::poll::PollFd::new(
        reader.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    while nix::poll::poll(&mut end, 1_u8) != Ok(1) || closer.queue().threads > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert!(!closer.is_full());
}

#[test]
fn a_connection_without_descriptors_is_closed_at_once() {
    let (client, server) = Socket::pair().expect("sockets");
    let closer = Closer::default();
    client
        .send_all(
            &[0; 10_000],
            &[],
            crate::Deadline::after(Duration::from_secs(9)),
        )
        .expect("sent");
    drop(Connection::new(server, closer.clone()));
    assert_eq!(closer.queue().threads, 0);
    assert!(client.try_send(&[0], &[]).is_err());
}

#[test]
fn a_connection_with_descriptors_in_it_is_closed_elsewhere() {
    let (client, server) = Socket::pair().expect("sockets");
    let file = std::fs::File::open("/dev/null").expect("open");
    client
        .send_all(
            &[0; 100],
            &[file.as_fd()],
            crate::Deadline::after(Duration::from_secs(9)),
        )
        .expect("sent");
    let closer = idle();
    drop(Connection::new(server, closer.clone()));
    assert_eq!(closer.queue().waiting.len(), 1);
}
