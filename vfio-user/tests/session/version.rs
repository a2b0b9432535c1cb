//! VERSION, and what it settles.

use crate::common::*;
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::message::{Command, Reply, Request};
use nvme_vfio_user::{Capabilities, SessionOptions};

use super::*;

#[test]
fn version_is_agreed_on() {
    for (minor, answered) in [(0, 0), (1, 1), (9, 1)] {
        let mut rig = Rig::with(SessionOptions::default());
        let answer = rig.ask(&version(0, minor, b""));
        let Reply::Version(version) = decode(Command::VERSION, &answer) else {
            panic!("another reply");
        };
        // A client that proposes nothing is told nothing.
        assert_eq!(
            (version.major, version.minor, version.data),
            (0, answered, &b""[..])
        );
    }
    let mut rig = Rig::with(SessionOptions::default());
    let answer = rig.ask(&version(
        0,
        1,
        br#"{"capabilities":{"max_msg_fds":1,"max_dma_maps":9}}"#,
    ));
    let Reply::Version(version) = decode(Command::VERSION, &answer) else {
        panic!("another reply");
    };
    let text = std::str::from_utf8(version.data).expect("text");
    assert!(
        text.contains("max_msg_fds") && text.contains("4096") && !text.contains("write_multiple"),
        "{text}"
    );
}

#[test]
fn version_comes_first_and_once() {
    let mut rig = Rig::with(SessionOptions::default());
    assert_eq!(rig.errno(&Request::DeviceGetInfo), Errno::EINVAL);
    assert!(rig.ended().contains("first message was DEVICE_GET_INFO"));
    // Second: refused, and the session goes on.
    let mut rig = Rig::open();
    assert_eq!(rig.errno(&VERSION), Errno::EINVAL);
    rig.ask(&Request::DeviceGetInfo).expect("still there");
}

#[test]
fn versions_that_cannot_be_agreed_on_end_the_session() {
    let mut rig = Rig::with(SessionOptions::default());
    assert_eq!(rig.errno(&version(1, 0, b"")), Errno::EPROTONOSUPPORT);
    assert!(rig.ended().contains("version 1"));
    for payload in [
        &b""[..],
        b"\0\0\x01",
        b"\0\0\x01\0{",
        b"\0\0\x01\0[]\0",
        b"\0\0\x01\0{\"capabilities\":7}\0",
        b"\0\0\x01\0{}\0{}\0",
    ] {
        let mut rig = Rig::with(SessionOptions::default());
        assert_eq!(
            rig.ask_bytes(Command::VERSION, payload)
                .expect_err("refused"),
            Errno::EINVAL,
            "{payload:?}"
        );
        rig.ended();
    }
    // With a descriptor, or without wanting a reply.
    let mut rig = Rig::with(SessionOptions::default());
    let descriptor = memfd(1).into();
    assert_eq!(
        rig.ask_with(&VERSION, &[&descriptor]).expect_err("refused"),
        Errno::EINVAL
    );
    rig.ended();
    let mut rig = Rig::with(SessionOptions::default());
    let (bytes, _) = rig.client.encode(&VERSION, true);
    rig.client.send_bytes(&bytes, &[]).expect("sent");
    rig.ended();
}

#[test]
fn tells_who_the_client_is() {
    let rig = Rig::open();
    assert_eq!(rig.session.peer().pid() as u32, std::process::id());
    assert_eq!(rig.session.peer().uid(), nix::unistd::getuid().as_raw());
}

#[test]
fn the_offer_by_default_is_what_clients_take() {
    let offer = SessionOptions::default().capabilities;
    // QEMU takes at most 16 descriptors, 65535 mappings, and page sizes of at least 4 KiB.
    assert!((1..=16).contains(&offer.max_msg_fds) && offer.max_dma_maps <= 65535);
    assert_eq!(
        offer.max_data_xfer_size,
        Capabilities::default().max_data_xfer_size
    );
    assert!(offer.pgsizes.is_power_of_two() && offer.pgsizes >= 4096);
}
