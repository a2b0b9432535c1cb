//! What is, and is not, a message.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::common::*;
use nvme_vfio_user::device::{Errno, IrqAction};
use nvme_vfio_user::message::{Command, Header, IrqSetData, Reply, Request};
use nvme_vfio_user::{SessionOptions, SessionState, Socket};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_vfio_user::SessionEnd;

use super::*;

#[test]
fn messages_come_in_pieces() {
    let mut rig = Rig::with(SessionOptions::default());
    let mut bytes = rig.client.encode(&VERSION, false).0;
    bytes.extend(rig.client.encode(&write(BAR, 32, &[9; 5]), false).0);
    let (last, id) = rig.client.encode(&read(BAR, 32, 5), false);
    bytes.extend(last);
    for byte in &bytes {
        rig.client.send_bytes(&[*byte], &[]).expect("sent");
        assert_eq!(rig.poll(), SessionState::Open);
    }
    for _ in 0..2 {
        rig.client
            .try_receive()
            .expect("a connection")
            .expect("a reply");
    }
    let answer = rig.answer(id);
    assert!(matches!(
        decode(Command::REGION_READ, &answer),
        Reply::RegionRead(_, [9, 9, 9, 9, 9])
    ));
}

#[test]
fn waits_have_an_end() {
    let short = Duration::from_millis(30);
    let options = SessionOptions {
        version_timeout: short,
        message_timeout: short,
        reply_timeout: short,
        ..SessionOptions::default()
    };
    let wait = |rig: &mut Rig| {
        let begun = Instant::now();
        while rig.poll() == SessionState::Open {
            assert!(begun.elapsed() < Duration::from_secs(60));
            let until = rig.session.deadline().expect("a deadline");
            assert!(until < Instant::now() + 2 * short);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        rig.ended()
    };
    let mut rig = Rig::with(options.clone());
    assert!(wait(&mut rig).contains("version in time"));

    let mut rig = Rig::open_with(options.clone());
    assert_eq!(
        (rig.poll(), rig.session.deadline()),
        (SessionState::Open, None)
    );
    rig.client.send_bytes(&[0; 3], &[]).expect("sent");
    rig.poll();
    assert!(wait(&mut rig).contains("end its message"));

    // Progress is not enough: the whole message counts.
    let mut rig = Rig::open_with(options.clone());
    let header = Header::request(1, Command::REGION_WRITE, 1000, false).encode();
    rig.client.send_bytes(&header, &[]).expect("sent");
    let begun = Instant::now();
    while rig.poll() == SessionState::Open {
        assert!(begun.elapsed() < Duration::from_secs(60));
        let _ = rig.client.send_bytes(&[0], &[]);
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(rig.ended().contains("end its message"));

    // A client that asks and does not read.
    let mut rig = Rig::open_with(options);
    let (request, _) = rig.client.encode(&read(BAR, 0, 2 * PAGE as u32), false);
    let mut sent = 0;
    // Until the reply waits; on a machine that was held up just then, until that was too long.
    while rig.session.interest() == Some(PollFlags::POLLIN) {
        rig.client.send_bytes(&request, &[]).expect("sent");
        rig.poll();
        sent += 1;
        assert!(sent < 100);
    }
    assert!(wait(&mut rig).contains("read its reply"));
}

#[test]
fn a_client_that_does_not_read_costs_one_reply() {
    let mut rig = Rig::open();
    let (request, id) = rig.client.encode(&read(BAR, 0, 2 * PAGE as u32), false);
    // More than the sockets hold, in requests that they do hold.
    let mut sent = 0_u64;
    while sent < 100 {
        if rig
            .client
            .socket
            .try_send(&request, &[])
            .expect("a connection")
            .is_none()
        {
            break;
        }
        sent += 1;
        rig.poll();
    }
    assert_eq!(rig.session.interest(), Some(PollFlags::POLLOUT));
    for _ in 0..sent {
        let message = loop {
            match rig.client.try_receive().expect("a connection") {
                Some(message) => break message,
                None => assert_eq!(rig.poll(), SessionState::Open),
            };
        };
        assert_eq!(
            answer(message, id).expect("read").0.len() as u64,
            16 + 2 * PAGE
        );
    }
}

#[test]
fn what_is_no_message_ends_the_session() {
    let command = |length: u32, flags: u32, errno: u32| {
        let mut bytes = vec![1, 0, 4, 0];
        for word in [length, flags, errno] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    };
    for bytes in [
        vec![0xff; 64],
        vec![0; 64],
        command(15, 0, 0),
        command(0, 0, 0),
        command(32, 2, 0),
        command(32, 0x40, 0),
        command(32, 0x20, 0),
        command(32, 0, 1),
        command(u32::MAX, 0, 0),
        command(2 << 20, 0, 0),
        // Replies to nothing.
        command(16, 1, 0),
        command(16, 0x21, 5),
    ] {
        let mut rig = Rig::open();
        rig.client.send_bytes(&bytes, &[]).expect("sent");
        rig.ended();
        // The client sees the end once the session is dropped.
        let Rig {
            session,
            mut client,
            ..
        } = rig;
        drop(session);
        assert!(client.try_receive().is_err(), "{bytes:?}");
    }
    let mut rig = Rig::open();
    rig.client
        .send_bytes(&command(32, 0, 0)[..7], &[])
        .expect("sent");
    rig.poll();
    let (_, other) = Socket::pair().expect("sockets");
    drop(std::mem::replace(&mut rig.client, Client::new(other)));
    assert!(rig.ended().contains("inside a message"));
}

#[test]
fn payloads_that_are_none_are_refused_one_by_one() {
    let mut rig = Rig::open();
    for command in 0..30 {
        for length in [0, 1, 7, 15, 17, 31, 33, 100] {
            let payload = vec![0xa5; length];
            // DEVICE_RESET alone has none.
            if Command(command) == Command::DEVICE_RESET && length == 0 {
                continue;
            }
            let errno = rig
                .ask_bytes(Command(command), &payload)
                .expect_err("refused");
            assert!(
                [Errno::EINVAL, Errno::ENOTSUP].contains(&errno),
                "{command}, {length}: {errno}"
            );
        }
    }
    // What a server asks its client, and what is not offered.
    for (command, payload) in [
        (Command::DMA_READ, &[0; 16][..]),
        (Command::DMA_WRITE, &[0; 16]),
        (Command::DEVICE_FEATURE, &[8, 0, 0, 0, 1, 0, 4, 0]),
        (Command::MIG_DATA_READ, &[16, 0, 0, 0, 8, 0, 0, 0]),
        (Command::MIG_DATA_WRITE, &[8, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(
            rig.ask_bytes(command, payload).expect_err("refused"),
            Errno::ENOTSUP
        );
    }
    assert_eq!(rig.poll(), SessionState::Open);
}

#[test]
fn descriptors_where_none_belong_are_refused_and_closed() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let writer = OwnedFd::from(writer);
    let mut rig = Rig::open();
    for request in [
        Request::DeviceGetInfo,
        read(BAR, 0, 4),
        Request::DeviceReset,
        map(0, PAGE),
        unmap(0, PAGE),
    ] {
        let two = [&writer, &writer];
        assert_eq!(
            rig.ask_with(&request, &two).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    // More than were offered end the session.
    let nine: Vec<_> = (0..9).map(|_| writer.as_fd()).collect();
    rig.client.send(
        &irqs(MSIX, 0, 9, IrqAction::Trigger, IrqSetData::Eventfd),
        &nine,
    );
    assert!(rig.ended().contains("descriptors"));
    drop(writer);
    is_closed_soon(&reader);
}

#[test]
fn descriptors_of_half_a_message_are_closed_at_the_end() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut rig = Rig::open();
    let (bytes, _) = rig.client.encode(&map(0, PAGE), false);
    rig.client
        .send_bytes(&bytes[..20], &[writer.as_fd()])
        .expect("sent");
    rig.poll();
    drop(writer);
    assert!(!is_closed(&reader));
    rig.session.end(SessionEnd::Stopped);
    rig.ended();
    is_closed_soon(&reader);
}

/// What is neither memory nor an eventfd is closed by another thread.
fn is_closed_soon(reader: &std::io::PipeReader) {
    let begun = Instant::now();
    while !is_closed(reader) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it stays open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether nobody holds the other end of a pipe.
fn is_closed(reader: &std::io::PipeReader) -> bool {
    let mut end = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    poll(&mut end, PollTimeout::ZERO).expect("polled");
    end[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
