//! Whether the server's process still lives.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process::{self, has_exited_by};
use crate::socket::{Deadline, Socket};

/// The process that listened when the connection was made.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where the kernel told which it is, and it was alive then.
    process: Option<OwnedFd>,
    /// Whether its end was waited for once already.
    waited: AtomicBool,
}

impl Peer {
    pub(super) fn of(socket: &Socket) -> Self {
        let process = process::of_peer(socket);
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
