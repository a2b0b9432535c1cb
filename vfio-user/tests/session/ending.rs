//! What waits for the device: unmapping, and the end of a client.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::common::*;
use nix::poll::PollFlags;
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::message::{DmaUnmap, RegionAccess, Request};
use nvme_vfio_user::{SessionEnd, SessionState, Socket};

use super::*;

#[test]
fn the_reply_of_an_unmap_waits_for_the_device() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(1).into();
    rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
    rig.device.state().hold = true;
    let unmapped = rig.client.send(&unmap(0, PAGE), &[]);
    let next = rig.client.send(&Request::DeviceReset, &[]);
    for _ in 0..3 {
        rig.poll();
        assert!(rig.client.try_receive().expect("a connection").is_none());
        // What comes later waits, and the session wants to be polled again soon.
        assert_eq!(rig.device.state().resets, 0);
        let deadline = rig.session.deadline();
        // Later than the deadline was asked for, by however much.
        let soon = Instant::now() + Duration::from_millis(100);
        assert!(deadline.is_some_and(|deadline| deadline < soon));
        assert!(
            rig.session
                .interest()
                .is_some_and(|interest| interest.is_empty())
        );
    }
    rig.device.state().hold = false;
    rig.answer(unmapped).expect("unmapped");
    assert_eq!(rig.device.state().resets, 1);
    rig.answer(next).expect("reset");
    rig.ask_with(&map(0, PAGE), &[&file]).expect("free again");
}

#[test]
fn the_reply_of_a_reset_waits_for_the_device() {
    let by_write = write(CONFIG, RESET, &[1, 0, 0, 0]);
    for request in [Request::DeviceReset, by_write] {
        let mut rig = Rig::open();
        rig.device.state().slow_resets = true;
        let id = rig.client.send(&request, &[]);
        let next = rig.client.send(&write(BAR, 0x20, &[5]), &[]);
        for _ in 0..10 {
            assert_eq!(rig.poll(), SessionState::Open);
            assert!(rig.client.try_receive().expect("a connection").is_none());
        }
        assert_eq!(rig.session.interest(), Some(PollFlags::empty()));
        assert!(rig.session.deadline().is_some(), "only time brings it on");
        let written = |rig: &Rig| rig.device.state().bar[0x20];
        assert_eq!(written(&rig), 0, "what comes after it waits");
        rig.device.state().slow_resets = false;
        rig.answer(id).expect("reset");
        rig.answer(next).expect("written");
        assert_eq!(written(&rig), 5);
        // A client that goes meanwhile is noticed.
        rig.device.state().slow_resets = true;
        rig.client.send(&request, &[]);
        rig.poll();
        let Rig {
            device,
            mut session,
            client,
        } = rig;
        drop(client);
        assert_eq!(session.poll(&device), SessionState::Ended);
    }
}

#[test]
fn an_unmap_that_fails_leaves_the_mapping() {
    let mut rig = Rig::open();
    for address in [0, PAGE, 2 * PAGE] {
        rig.ask(&map(address, PAGE)).expect("mapped");
    }
    rig.device.state().fail = Some(Errno::EIO);
    assert_eq!(rig.errno(&unmap(PAGE, PAGE)), Errno::EIO);
    assert_eq!(rig.errno(&map(PAGE, PAGE)), Errno::EEXIST);
    // All of them: the first fails, later ones are let go of, some after a while.
    {
        let mut state = rig.device.state();
        state.hold = true;
        state.fail = Some(Errno::EIO);
    }
    let id = rig.client.send(&Request::DmaUnmap(DmaUnmap::All), &[]);
    rig.poll();
    assert!(rig.client.try_receive().expect("a connection").is_none());
    rig.device.state().hold = false;
    assert_eq!(rig.answer(id).expect_err("one failed"), Errno::EIO);
    assert_eq!(rig.device.state().maps.len(), 1);
    rig.ask(&unmap(0, PAGE)).expect("the one that failed");
}

#[test]
fn a_client_that_dies_is_waited_for_until_the_device_let_go() {
    for holding in [false, true] {
        let mut rig = Rig::open();
        let file: OwnedFd = memfd(1).into();
        rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
        rig.device.state().hold = true;
        if holding {
            rig.client.send(&unmap(0, PAGE), &[]);
            rig.poll();
        }
        let memory = rig.device.state().maps[&0].2.clone().expect("memory");
        let (_, other) = Socket::pair().expect("sockets");
        drop(std::mem::replace(&mut rig.client, Client::new(other)));
        for _ in 0..3 {
            assert_eq!(rig.poll(), SessionState::Ending);
            assert!(matches!(rig.session.end_reason(), Some(SessionEnd::Closed)));
            assert!(rig.session.interest().is_none());
            assert!(rig.session.deadline().is_some());
            // Still mapped.
            assert!(is_mapped(&file));
        }
        rig.device.state().hold = false;
        rig.ended();
        assert!(is_mapped(&file));
        drop(memory);
        assert!(!is_mapped(&file));
        assert_eq!(rig.session.deadline(), None);
    }
}

/// Whether a file is mapped, wherever: an address that is free may be another test's at once.
fn is_mapped(file: &OwnedFd) -> bool {
    let number = nix::sys::stat::fstat(file).expect("its status").st_ino;
    std::fs::read_to_string("/proc/self/maps")
        .expect("this process's mappings")
        .lines()
        .filter(|line| line.contains("lent"))
        .any(|line| line.split_ascii_whitespace().nth(4) == Some(&number.to_string()))
}

#[test]
fn a_client_that_takes_memory_away_is_sent_away() {
    nvme_vfio_user::sigbus::install().expect("installed");
    let mut rig = Rig::open();
    let file = memfd(2);
    let descriptor: OwnedFd = file.try_clone().expect("a duplicate").into();
    rig.ask_with(&map(0, 2 * PAGE), &[&descriptor])
        .expect("mapped");
    // It can happen at any time, so the session looks now and then.
    assert!(rig.session.deadline().is_some());
    file.set_len(PAGE).expect("truncated");
    assert_eq!(rig.poll(), SessionState::Open);
    let memory = rig.device.state().maps[&0].2.clone().expect("memory");
    fault(&memory, PAGE as usize);
    assert!(memory.is_lost());
    assert!(rig.ended().contains("took memory away"));
    // Others go on.
    let mut other = Rig::open();
    other.ask(&Request::DeviceGetInfo).expect("answered");
}

#[expect(unsafe_code, reason = "touches the memory")]
fn fault(memory: &nvme_vfio_user::ClientMemory, offset: usize) {
    // SAFETY: inside the mapping, which nobody refers to.
    unsafe { memory.pointer().add(offset).write_volatile(1) };
}

#[test]
fn a_device_that_panics_ends_the_session_as_if_the_client_had_gone() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(1).into();
    rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
    {
        let mut state = rig.device.state();
        (state.panics, state.hold) = (true, true);
    }
    let access = RegionAccess {
        offset: 0,
        region: CONFIG,
        count: 4,
    };
    rig.client.send(&Request::RegionWrite(access, &[0; 4]), &[]);
    for _ in 0..3 {
        assert_eq!(rig.poll(), SessionState::Ending);
        assert!(is_mapped(&file), "the device has not let go");
        // The connection is there as long as that.
        assert!(rig.client.try_receive().expect("a connection").is_none());
    }
    rig.device.state().hold = false;
    assert!(rig.ended().contains("failed over a message"));
    assert_eq!(rig.device.state().disconnects, 1);
    assert!(rig.device.state().maps.is_empty());
}

#[test]
fn the_server_can_send_a_client_away() {
    let mut rig = Rig::open();
    rig.session.end(SessionEnd::Stopped);
    assert!(rig.ended().contains("sent the client away"));
    assert_eq!(rig.poll(), SessionState::Ended);
    assert_eq!(rig.device.state().disconnects, 1);
}
