//! What a client can send beside a message.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe;
use nvme_vfio_user::Eventfd;

/// Memory of so many pages, sealed against changes of its size or not.
pub(super) fn memfd(pages: u64, sealed: bool) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("lent", flags).expect("a memfd"));
    file.set_len(pages * 4096).expect("a length");
    if sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
    }
    file.into()
}

/// How many kinds there are.
pub(super) const KINDS: u8 = 8;

/// How many pages the memory of a kind has.
pub(super) fn pages(kind: u8) -> u64 {
    match kind {
        0 | 1 => 16,
        2 => 1,
        _ => 0,
    }
}

/// One of each kind, made once: what a session gets are duplicates.
pub(super) fn of_kind(kind: u8) -> BorrowedFd<'static> {
    static ALL: OnceLock<Vec<OwnedFd>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let (reader, writer) = pipe().expect("a pipe");
        // Nobody reads it: a write that waited for that would wait for ever.
        let blocking = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).expect("an eventfd");
        let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).expect("an eventfd");
        full.write(u64::MAX - 1).expect("room for it");
        // What signals eventfds stays open. Where the system has none, threads do it.
        let _ = Eventfd::prepare();
        vec![
            memfd(pages(0), false),
            memfd(pages(1), true),
            memfd(pages(2), false),
            blocking.into(),
            full.into(),
            reader,
            writer,
            File::open("/").expect("a directory").into(),
        ]
    });
    all[usize::from(kind % KINDS)].as_fd()
}
