//! Whether the server's process still lives.
#![allow(unsafe_code)] // two system calls that give descriptors of processes, which nix does not have

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::socket::{Deadline, Socket};

/// The process that listened when the connection was made.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where the kernel told which it is, and it was alive then.
    process: Option<OwnedFd>,
    /// Whether its end was waited for once already.
    waited: AtomicBool,
}

/// `SO_PEERPIDFD`, Linux 6.5 and later.
const SO_PEERPIDFD: libc::c_int = 77;

impl Peer {
    pub(super) fn of(socket: &Socket) -> Self {
        let process = match peer_pidfd(socket) {
            // A number may have gone to another process since: it is only asked for where the kernel is too old to tell better.
            Err(Errno::ENOPROTOOPT) => socket
                .peer()
                .ok()
                .and_then(|peer| pidfd_open(peer.pid()).ok()),
            process => process.ok(),
        };
        // A parent that has gone away and left its socket to a child tells nothing of the child.
        let now = Deadline::at(Instant::now());
        Self {
            process: process.filter(|process| !has_exited_by(process, now)),
            waited: AtomicBool::new(false),
        }
    }

    /// Whether it has exited since, and the other end of `socket` is closed: some process that it left behind would keep it open.
    pub(super) fn has_ended(&self, socket: &Socket, deadline: Deadline) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        // POLLHUP is told without being asked for.
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let closed = matches!(poll(&mut waiting, PollTimeout::ZERO), Ok(1))
            && waiting
                .iter()
                .filter_map(PollFd::revents)
                .any(|events| events.contains(PollFlags::POLLHUP));
        if !closed {
            return false;
        }
        // One that lives on after it closed the connection is waited for once, and not by everyone who asks.
        let deadline = if self.waited.swap(true, Ordering::Relaxed) {
            Deadline::at(Instant::now())
        } else {
            deadline
        };
        has_exited_by(process, deadline)
    }
}

/// A pidfd becomes readable when the last thread of its process has exited, by when its memory has been given back.
pub(super) fn has_exited_by(process: &OwnedFd, deadline: Deadline) -> bool {
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

pub(super) fn pidfd_open(process: libc::pid_t) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}
