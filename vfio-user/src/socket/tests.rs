use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use super::*;
use crate::message::{Command, HEADER_LENGTH, Header};

/// For what does not come.
fn short() -> Deadline {
    Deadline::after(Duration::from_millis(30))
}

/// For what comes, however busy the machine is.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// Waits for the end of a connection whose other end was dropped: another test may just be starting a process, which has that end, too, until it runs its program.
fn wait_for_end(socket: &Socket) {
    socket.wait_readable(soon()).unwrap();
}

fn message(payload: &[u8]) -> Vec<u8> {
    let header = Header::request(1, Command::DMA_MAP, payload.len() as u32, false);
    [&header.encode(), payload].concat()
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn is_closed_on_exec(descriptor: &OwnedFd) -> bool {
    let flags = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    flags & libc::FD_CLOEXEC != 0
}

#[test]
fn a_message_comes_whole_with_its_descriptors_only() {
    let (one, other) = Socket::pair().unwrap();
    let files = [null(), null()];
    let both: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    one.send_all(&message(b"first"), &both, soon()).unwrap();
    one.send_all(&message(b""), &[], soon()).unwrap();
    one.send_all(&message(b"third"), &both[..1], soon())
        .unwrap();
    let mut reader = MessageReader::new(100, 2);
    for (payload, descriptors) in [(&b"first"[..], 2), (b"", 0), (b"third", 1)] {
        let message = reader.wait(&other, soon()).unwrap();
        assert_eq!(message.payload, payload);
        assert_eq!(message.header.payload as usize, payload.len());
        assert_eq!(message.descriptors.len(), descriptors);
        assert!(message.descriptors.iter().all(is_closed_on_exec));
    }
    assert!(reader.receive(&other).unwrap().is_none());
    drop(one);
    wait_for_end(&other);
    assert!(matches!(reader.receive(&other), Err(SocketError::Closed)));
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (one, other) = Socket::pair().unwrap();
    let whole = message(&[7; 100_000]);
    let mut reader = MessageReader::new(100_000, 0);
    let (head, rest) = whole.split_at(40);
    for byte in head.chunks(1) {
        assert!(reader.receive(&other).unwrap().is_none());
        assert_eq!(one.try_send(byte, &[]).unwrap(), Some(1));
    }
    assert!(reader.receive(&other).unwrap().is_none());
    assert!(reader.is_inside());
    one.send_all(rest, &[], soon()).unwrap();
    let message = reader.receive(&other).unwrap().unwrap();
    assert_eq!(message.payload, [7; 100_000]);
    assert!(!reader.is_inside());
}

#[test]
fn too_many_descriptors_are_an_error_and_none_stays_open() {
    let (reading, writing) = std::io::pipe().unwrap();
    let many = vec![writing.as_fd(); 60];
    for round in 0..20 {
        let limit = round % 4;
        let (one, other) = Socket::pair().unwrap();
        one.send_all(&message(b"x"), &many[..limit + 1 + round * 2], soon())
            .unwrap();
        let mut reader = MessageReader::new(100, limit);
        let error = reader.receive(&other).unwrap_err();
        assert!(
            matches!(error, SocketError::TooManyDescriptors { limit: told } if told == limit),
            "{error}"
        );
    }
    drop(many);
    drop(writing);
    // The pipe ends only when no copy of its writing end is open.
    let mut waiting = [nix::poll::PollFd::new(
        reading.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    // Not at once, for the same reason as in `wait_for_end`.
    assert_eq!(nix::poll::poll(&mut waiting, 60_000_u16), Ok(1));
    assert_eq!(
        waiting[0].revents(),
        Some(nix::poll::PollFlags::POLLHUP),
        "descriptors were left open"
    );
}

#[test]
fn descriptors_are_counted_over_all_parts_of_a_message() {
    let (one, other) = Socket::pair().unwrap();
    let file = null();
    let mut reader = MessageReader::new(100, 3);
    let whole = message(b"abcdef");
    for part in whole.chunks(4) {
        one.send_all(part, &[file.as_fd()], soon()).unwrap();
    }
    assert!(matches!(
        reader.receive(&other),
        Err(SocketError::TooManyDescriptors { limit: 3 })
    ));
}

#[test]
fn more_descriptors_than_the_kernel_passes_are_refused_before() {
    let (one, _other) = Socket::pair().unwrap();
    let file = null();
    let many = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(
        one.try_send(b"x", &many),
        Err(SocketError::TooManyDescriptors { .. })
    ));
    assert_eq!(one.try_send(b"x", &many[1..]).unwrap(), Some(1));
}

#[test]
fn long_messages_are_refused_by_their_header() {
    let (one, other) = Socket::pair().unwrap();
    let mut reader = MessageReader::new(1000, 0);
    one.send_all(&message(&[0; 1001]), &[], soon()).unwrap();
    assert!(matches!(
        reader.receive(&other),
        Err(SocketError::TooLong {
            length: 1001,
            limit: 1000
        })
    ));
}

#[test]
fn a_connection_that_ends_inside_a_message_is_told_apart() {
    for cut in [1, HEADER_LENGTH - 1, HEADER_LENGTH, HEADER_LENGTH + 2] {
        let (one, other) = Socket::pair().unwrap();
        one.send_all(&message(b"four")[..cut], &[], soon()).unwrap();
        drop(one);
        let mut reader = MessageReader::new(100, 0);
        assert!(
            matches!(reader.wait(&other, soon()), Err(SocketError::CutShort)),
            "{cut}"
        );
    }
}

#[test]
fn waits_end_at_their_deadline_also_with_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(nothing),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    #[allow(unsafe_code)]
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGUSR1, &action) }.unwrap();
    let waiting = nix::sys::pthread::pthread_self();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                nix::sys::pthread::pthread_kill(waiting, nix::sys::signal::Signal::SIGUSR1)
                    .unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (_one, other) = Socket::pair().unwrap();
        let start = Instant::now();
        let mut reader = MessageReader::new(100, 0);
        let result = reader.wait(&other, Deadline::after(Duration::from_millis(100)));
        assert!(matches!(result, Err(SocketError::TimedOut)));
        let elapsed = start.elapsed();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(elapsed >= Duration::from_millis(100), "{elapsed:?}");
        assert!(elapsed < Duration::from_secs(60), "{elapsed:?}");
    });
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody() {
    let (one, _other) = Socket::pair().unwrap();
    let start = Instant::now();
    let result = one.send_all(&vec![0; 64 << 20], &[], short());
    assert!(matches!(result, Err(SocketError::TimedOut)));
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(one.try_send(b"more", &[]).unwrap(), None);
}

#[test]
fn descriptors_that_the_system_does_not_pass_on_block_nobody() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let (one, _other) = Socket::pair().unwrap();
    let thread = std::thread::spawn(move || {
        // As where this user has too many on their way.
        let filter = SeccompFilter::new(
            [(libc::SYS_sendmsg, vec![])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ETOOMANYREFS as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        apply_filter(&program).unwrap();
        one.send_all(b"x", &[null().as_fd()], short())
    });
    let start = Instant::now();
    while !thread.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(60), "it waits on");
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = thread.join().unwrap();
    assert!(matches!(result, Err(SocketError::TimedOut)), "{result:?}");
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    let (one, other) = Socket::pair().unwrap();
    drop(other);
    wait_for_end(&one);
    assert!(matches!(one.try_send(b"x", &[]), Err(SocketError::Closed)));
}

#[test]
fn connecting_waits_for_a_full_backlog_and_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    assert!(matches!(
        Socket::connect(&path, soon()),
        Err(SocketError::Os { .. })
    ));
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(
        Socket::connect(&long, soon()),
        Err(SocketError::Os { .. })
    ));
    let listener = UnixListener::bind(&path).unwrap();
    let mut connected = Vec::new();
    let full = loop {
        match Socket::connect(&path, short()) {
            Ok(socket) => connected.push(socket),
            Err(error) => break error,
        }
        assert!(connected.len() < 10_000);
    };
    assert!(matches!(full, SocketError::TimedOut), "{full}");
    let accepting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        listener.accept().unwrap();
        listener
    });
    Socket::connect(&path, soon()).unwrap();
    drop(accepting.join().unwrap());
}

#[test]
fn only_sockets_of_the_right_kind_are_taken_over() {
    let descriptor = |file: File| OwnedFd::from(file);
    assert!(matches!(
        Socket::from_descriptor(descriptor(null())),
        Err(SocketError::NotASocket)
    ));
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(matches!(
        Socket::from_descriptor(datagram.into()),
        Err(SocketError::NotASocket)
    ));
    let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        Socket::from_descriptor(internet.into()),
        Err(SocketError::NotASocket)
    ));
    let (mut one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let other = Socket::from_descriptor(other.into()).unwrap();
    assert_eq!(other.peer().unwrap().pid(), nix::unistd::getpid().as_raw());
    one.write_all(b"hi").unwrap();
    let mut buffer = [0; 8];
    let received = other.try_receive(&mut buffer, &mut Vec::new(), 0).unwrap();
    assert_eq!(received, Received::Bytes(2));
    other.end();
    assert_eq!(one.read(&mut buffer).unwrap(), 0);
}

/// A socket that its owner left blocking is not waited on.
#[test]
fn blocking_descriptors_do_not_block() {
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    one.set_nonblocking(false).unwrap();
    let one = Socket::from_descriptor(one.into()).unwrap();
    let received = one.try_receive(&mut [0; 8], &mut Vec::new(), 0).unwrap();
    assert_eq!(received, Received::Nothing);
    while one.try_send(&[0; 4096], &[]).unwrap().is_some() {}
    // With data that it never read, the peer's end is a reset.
    drop(other);
    wait_for_end(&one);
    let error = one
        .try_receive(&mut [0; 8], &mut Vec::new(), 0)
        .unwrap_err();
    assert!(matches!(error, SocketError::Closed), "{error}");
}
