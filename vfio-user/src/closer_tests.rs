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
fn eventfds_of_no_session_are_closed_by_as_many_threads_as_one_closer_has() {
    let threads = crate::SignalThreads::new(1);
    let theirs = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    let one = || theirs.as_fd().try_clone_to_owned().expect("a duplicate");
    let take = || crate::Eventfd::with_threads(one(), &threads).expect("taken");
    let closer = threads.closer();
    closer.queue().threads = Closer::THREADS;
    drop([take(), take(), take()]);
    assert_eq!(closer.queue().waiting.len(), 3);
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
fn what_waits_is_counted_and_what_is_stuck_is_known() {
    let closer = idle();
    let file = std::fs::File::open("/dev/null").expect("open");
    assert!(!closer.is_stuck());
    for count in 1..=10 {
        closer.close(file.try_clone().expect("a duplicate").into());
        assert_eq!(closer.unclosed(), Closer::THREADS + count);
    }
    let begun = closer.queue().moved.expect("they wait");
    // Later than this runs, however long that is.
    closer.queue().moved = begun.checked_add(Duration::from_secs(3600));
    assert!(!closer.is_stuck());
    let moved = begun.checked_sub(Closer::STUCK);
    closer.queue().moved = Some(moved.expect("the system runs for long"));
    assert!(closer.is_stuck());
}

/// Gives a closer what it has no thread for: none can be made by the thread that this runs in.
fn close_without_threads(closer: &Closer, descriptors: Vec<OwnedFd>) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let theirs = closer.clone();
    let thread = thread::spawn(move || {
        let filter = SeccompFilter::new(
            [(libc::SYS_clone, vec![]), (libc::SYS_clone3, vec![])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EAGAIN as u32),
            std::env::consts::ARCH.try_into().expect("an architecture"),
        );
        let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a program");
        apply_filter(&program).expect("applied");
        for descriptor in descriptors {
            theirs.close(descriptor);
        }
    });
    thread.join().expect("it ran");
}

#[test]
fn what_came_while_there_was_no_thread_is_closed_when_there_is_one() {
    let closer = Closer::default();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let one = || writer.as_fd().try_clone_to_owned().expect("a duplicate");
    close_without_threads(&closer, vec![one(), one()]);
    drop(writer);
    {
        let queue = closer.queue();
        assert_eq!((queue.waiting.len(), queue.threads), (2, 0));
    }
    // Nothing more comes; but it is asked what is left.
    all_is_closed(&closer, &reader);
}

/// Sees all descriptors of the other end of a pipe closed.
fn all_is_closed(closer: &Closer, reader: &std::io::PipeReader) {
    let begun = Instant::now();
    let mut end = [nix::poll::PollFd::new(
        reader.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    while closer.unclosed() > 0 || nix::poll::poll(&mut end, 1_u8) != Ok(1) {
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn everything_is_closed_and_the_threads_end() {
    let closer = Closer::default();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    for _ in 0..1000 {
        closer.close(writer.as_fd().try_clone_to_owned().expect("a duplicate"));
    }
    drop(writer);
    all_is_closed(&closer, &reader);
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
