use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Eventfd;

/// An eventfd, and the server's duplicate of it.
fn pair(flags: EfdFlags) -> (EventFd, Eventfd) {
    let client = EventFd::from_flags(flags).expect("an eventfd");
    let duplicate = client.as_fd().try_clone_to_owned().expect("a duplicate");
    (client, Eventfd::new(duplicate).expect("accepted"))
}

#[test]
fn adds_one_each_time() {
    // Many more than there is room for results.
    let (client, server) = pair(EfdFlags::EFD_NONBLOCK);
    for _ in 0..10_000 {
        server.signal().expect("signalled");
    }
    assert_eq!(client.read(), Ok(10_000));
    assert_eq!(client.read(), Err(Errno::EAGAIN));
}

#[test]
fn adds_one_each_time_from_many_threads() {
    let (client, server) = pair(EfdFlags::EFD_NONBLOCK);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    server.signal().expect("signalled");
                }
            });
        }
    });
    assert_eq!(client.read(), Ok(20_000));
}

#[test]
fn does_not_block_on_one_that_is_full_and_blocking() {
    let (client, server) = pair(EfdFlags::empty());
    client.write(u64::MAX - 1).expect("filled");
    assert!(
        !OFlag::from_bits_truncate(fcntl(&client, FcntlArg::F_GETFL).expect("flags"))
            .contains(OFlag::O_NONBLOCK)
    );
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..1000 {
            server.signal().expect("signalled");
        }
        sender.send(()).expect("the test waits");
    });
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("signal() blocks");
    let mut descriptors = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).expect("polled");
    assert!(
        descriptors[0]
            .revents()
            .expect("flags")
            .contains(PollFlags::POLLIN)
    );
}

#[test]
fn is_an_eventfd_or_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    // A file may be called what it likes.
    let named = directory.path().join("anon_inode:[eventfd]");
    let (socket, _peer) = UnixStream::pair().expect("sockets");
    let (_end, pipe) = std::io::pipe().expect("a pipe");
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)
        .expect("an epoll");
    for descriptor in [
        OwnedFd::from(File::create(named).expect("a file")),
        File::open(directory.path()).expect("open").into(),
        socket.into(),
        pipe.into(),
        epoll.0,
        memfd_create("[eventfd]", MFdFlags::MFD_CLOEXEC).expect("a memfd"),
    ] {
        assert_eq!(
            Eventfd::new(descriptor).expect_err("refused"),
            Errno::EINVAL
        );
    }
}
