//! Descriptors of processes.
#![allow(unsafe_code)] // two system calls that give descriptors of processes, which nix does not have

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::PollFlags;

use crate::socket::{Deadline, Socket};

/// `SO_PEERPIDFD`, Linux 6.5 and later.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process at the other end of a socket as it was when the connection was made, where the kernel tells.
pub(crate) fn of_peer(socket: &Socket) -> Option<OwnedFd> {
    match peer_pidfd(socket) {
        // A number may have gone to another process since: it is only asked for where the kernel is too old to tell better.
        Err(Errno::ENOPROTOOPT) => {
            let peer = socket.peer().ok()?;
            pidfd_open(peer.pid()).ok()
        }
        process => process.ok(),
    }
}

/// A pidfd becomes readable when the last thread of its process has exited, by when its memory has been given back.
pub(crate) fn has_exited_by(process: &OwnedFd, deadline: Deadline) -> bool {
    deadline.wait(process.as_fd(), PollFlags::POLLIN).is_ok()
}

fn owned(descriptor: libc::c_long) -> Result<OwnedFd, Errno> {
    let descriptor = Errno::result(descriptor)?;
    let descriptor = RawFd::try_from(descriptor).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn peer_pidfd(socket: &Socket) -> Result<OwnedFd, Errno> {
    let mut descriptor: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length are this function's, and as long as said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut descriptor).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    if descriptor < 0 {
        return Err(Errno::EBADF);
    }
    owned(descriptor.into())
}

pub(crate) fn pidfd_open(process: libc::pid_t) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}
