//! Whether the server's process still lives.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process::{self, has_exited_by};
use crate::socket::{Deadline, Socket};

/// The process that listened when the connection was made.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where the kernel told which it is, and it was alive then.
    process: Option<OwnedFd>,
    /// Until when its end is waited for, since it was first asked for.
    until: OnceLock<Deadline>,
}

impl Peer {
    pub(super) fn of(socket: &Socket) -> Self {
        let process = process::of_peer(socket);
        // A parent that has gone away and left its socket to a child tells nothing of the child.
        let now = Deadline::at(Instant::now());
        Self {
            process: process.filter(|process| !has_exited_by(process, now)),
            until: OnceLock::new(),
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
        // One that lives on after it closed the connection is waited for once, by all who ask meanwhile together, and not by everyone who asks later.
        has_exited_by(process, *self.until.get_or_init(|| deadline))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Longer than anything takes, whatever else the machine does.
    const FAR: Duration = Duration::from_secs(3600);

    /// A process that ends when its standard input does, and a connection that it has closed already.
    fn closed() -> (Child, Peer, Socket) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (socket, _) = Socket::pair().unwrap();
        let peer = Peer {
            process: Some(process::pidfd_open(child.id() as libc::pid_t).unwrap()),
            until: OnceLock::new(),
        };
        (child, peer, socket)
    }

    #[test]
    fn all_who_ask_at_once_wait_for_the_end() {
        let (mut child, peer, socket) = closed();
        let (asks, asked) = std::sync::mpsc::channel();
        let answers = thread::scope(|scope| {
            let ask = |_| {
                let asks = asks.clone();
                let (peer, socket) = (&peer, &socket);
                scope.spawn(move || {
                    asks.send(()).unwrap();
                    peer.has_ended(socket, Deadline::after(FAR))
                })
            };
            let threads: Vec<_> = (0..3).map(ask).collect();
            threads.iter().for_each(|_| asked.recv().unwrap());
            // Not needed: one that asks only after the end is told so, too.
            thread::sleep(Duration::from_millis(50));
            drop(child.stdin.take());
            let join = |thread: thread::ScopedJoinHandle<'_, bool>| thread.join().unwrap();
            threads.into_iter().map(join).collect::<Vec<_>>()
        });
        child.wait().unwrap();
        assert_eq!(answers, [true; 3]);
    }

    #[test]
    fn one_that_lives_on_is_waited_for_once() {
        let (mut child, peer, socket) = closed();
        assert!(!peer.has_ended(&socket, Deadline::after(Duration::from_millis(1))));
        assert!(!peer.has_ended(&socket, Deadline::after(FAR)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(peer.has_ended(&socket, Deadline::after(FAR)));
    }
}
