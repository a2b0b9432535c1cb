//! DMA_MAP and DMA_UNMAP.

use std::os::fd::OwnedFd;

use crate::common::*;
use nix::sys::eventfd::EventFd;
use nvme_vfio_user::SessionOptions;
use nvme_vfio_user::device::{DmaAccess, Errno};
use nvme_vfio_user::message::{Command, DmaMap, DmaUnmap, Reply, Request};

use super::*;

#[test]
fn memory_is_mapped_and_unmapped() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(0x10_0000, 4 * PAGE), &[&file])
        .expect("mapped");
    // Without a descriptor: it is remembered.
    rig.ask(&map(0x80_0000, PAGE)).expect("mapped");
    {
        let state = rig.device.state();
        assert_eq!(state.maps[&0x10_0000].0, 4 * PAGE);
        assert!(state.maps[&0x10_0000].2.is_some());
        assert!(state.maps[&0x80_0000].2.is_none());
    }
    for (address, length) in [
        (0x10_0000, PAGE),
        (0x10_0000, 5 * PAGE),
        (0x10_0000 + PAGE, 3 * PAGE),
        (0, PAGE),
    ] {
        assert_eq!(rig.errno(&unmap(address, length)), Errno::ENOENT);
    }
    let answer = rig.ask(&unmap(0x10_0000, 4 * PAGE));
    let Reply::DmaUnmap(DmaUnmap::Region { address, length }) = decode(Command::DMA_UNMAP, &answer)
    else {
        panic!("another reply");
    };
    assert_eq!((address, length), (0x10_0000, 4 * PAGE));
    // With the memory's descriptor, as SPDK sends it.
    rig.ask_with(&unmap(0x80_0000, PAGE), &[&file])
        .expect("unmapped");
    assert!(rig.device.state().maps.is_empty());
    assert_eq!(rig.errno(&unmap(0x80_0000, PAGE)), Errno::ENOENT);
    // The top of the address space.
    rig.ask(&map(u64::MAX - PAGE + 1, PAGE)).expect("mapped");
    rig.ask(&map(0, PAGE)).expect("mapped");
    let answer = rig.ask(&Request::DmaUnmap(DmaUnmap::All));
    assert_eq!(
        decode(Command::DMA_UNMAP, &answer),
        Reply::DmaUnmap(DmaUnmap::All)
    );
    assert!(rig.device.state().maps.is_empty());
    rig.ask(&Request::DmaUnmap(DmaUnmap::All))
        .expect("nothing to do");
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(16 * PAGE, 4 * PAGE), &[&file])
        .expect("mapped");
    for (first, pages) in [(16, 4), (16, 1), (19, 1), (15, 2), (19, 4), (0, 100)] {
        assert_eq!(
            rig.ask_with(&map(first * PAGE, pages * PAGE), &[&file])
                .expect_err("refused"),
            Errno::EEXIST
        );
        assert_eq!(rig.errno(&map(first * PAGE, pages * PAGE)), Errno::EEXIST);
    }
    rig.ask(&map(15 * PAGE, PAGE)).expect("before");
    rig.ask(&map(20 * PAGE, PAGE)).expect("behind");
    let with = |access, offset, length| {
        Request::DmaMap(DmaMap {
            access,
            offset,
            address: 0,
            length,
        })
    };
    for request in [
        with(BOTH, 0, 1),
        with(BOTH, 0, PAGE + 1),
        with(BOTH, 1, PAGE),
        with(BOTH, 0, 5 * PAGE),
        with(BOTH, 4 * PAGE, PAGE),
        with(BOTH, u64::MAX - PAGE + 1, PAGE),
        with(BOTH, 1 << 63, PAGE),
        with(DmaAccess::empty(), 0, PAGE),
        map(1, PAGE),
    ] {
        assert_eq!(
            rig.ask_with(&request, &[&file]).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    // An offset without a file; two files; a size of nothing, or past the end of all addresses.
    assert_eq!(rig.errno(&with(BOTH, PAGE, PAGE)), Errno::EINVAL);
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&file, &file])
            .expect_err("refused"),
        Errno::EINVAL
    );
    assert_eq!(rig.errno(&map(0, 0)), Errno::EINVAL);
    assert_eq!(
        rig.errno(&map(u64::MAX - PAGE + 1, 2 * PAGE)),
        Errno::EINVAL
    );
    assert_eq!(rig.device.state().maps.len(), 3);
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let mut rig = Rig::open();
    let folder = tempfile::tempdir().expect("a directory");
    let directory: OwnedFd = std::fs::File::open(folder.path()).expect("open").into();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let eventfd: OwnedFd = EventFd::new().expect("an eventfd").into();
    for descriptor in [&directory, &socket.into(), &eventfd] {
        assert_eq!(
            rig.ask_with(&map(0, PAGE), &[descriptor])
                .expect_err("refused"),
            Errno::ENODEV
        );
    }
    let folder = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let path = folder.path().join("file");
    std::fs::write(&path, vec![0; PAGE as usize]).expect("written");
    let read_only: OwnedFd = std::fs::File::open(&path).expect("open").into();
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&read_only])
            .expect_err("refused"),
        Errno::EACCES
    );
    assert_eq!(
        rig.ask_with(&map(0, 2 * PAGE), &[&read_only])
            .expect_err("refused"),
        Errno::EINVAL
    );
    let only_read = Request::DmaMap(DmaMap {
        access: DmaAccess::READ,
        offset: 0,
        address: 0,
        length: PAGE,
    });
    rig.ask_with(&only_read, &[&read_only])
        .expect("mapped for reading");
    assert_eq!(rig.device.state().maps[&0].1, DmaAccess::READ);
}

#[test]
fn no_more_is_mapped_than_was_offered() {
    let mut options = SessionOptions::default();
    options.capabilities.max_dma_maps = 3;
    options.max_lent = 4 * PAGE;
    let mut rig = Rig::open_with(options);
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(0, 3 * PAGE), &[&file]).expect("mapped");
    assert_eq!(
        rig.ask_with(&map(64 * PAGE, 2 * PAGE), &[&file])
            .expect_err("too much"),
        Errno::ENOSPC
    );
    // What is not lent is not counted so.
    rig.ask(&map(64 * PAGE, 100 * PAGE)).expect("mapped");
    rig.ask_with(&map(32 * PAGE, PAGE), &[&file])
        .expect("mapped");
    assert_eq!(rig.errno(&map(1 << 40, PAGE)), Errno::ENOSPC);
    rig.ask(&unmap(0, 3 * PAGE)).expect("unmapped");
    rig.ask_with(&map(0, 3 * PAGE), &[&file])
        .expect("mapped again");
}

#[test]
fn unsealed_memory_is_refused_where_asked() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let options = SessionOptions {
        sealed_memory: true,
        ..SessionOptions::default()
    };
    let mut rig = Rig::open_with(options);
    let file: OwnedFd = memfd(1).into();
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&file]).expect_err("refused"),
        Errno::EPERM
    );
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("sealed");
    rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
}
