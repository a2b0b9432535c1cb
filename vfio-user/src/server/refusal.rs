//! Telling a client that it is not let in.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::closer::Connection;
use crate::device::Errno;
use crate::message::MAX_VERSION_DATA;
use crate::socket::MessageReader;

/// A connection whose VERSION is answered with an error. Descriptors that come over it are never received, and with them it ends.
pub(super) struct Refusal {
    socket: Connection,
    reader: MessageReader,
    until: Instant,
    answer: Errno,
}

impl Refusal {
    /// How long a client may take to say its version.
    const TIMEOUT: Duration = Duration::from_secs(1);

    pub(super) fn new(socket: Connection, answer: Errno) -> Self {
        Self {
            socket,
            reader: MessageReader::new(MAX_VERSION_DATA as u32 + 8, 0),
            until: Instant::now() + Self::TIMEOUT,
            answer,
        }
    }

    pub(super) const fn deadline(&self) -> Instant {
        self.until
    }

    /// True when the connection is to be closed.
    pub(super) fn poll(&mut self) -> bool {
        match self.reader.receive(&self.socket) {
            Ok(Some(message)) => {
                let error = message.header.error((self.answer as i32).unsigned_abs());
                // The first reply on a connection: there is room for it.
                let _ = self.socket.try_send(&error.encode(), &[]);
                true
            }
            Ok(None) => self.until <= Instant::now(),
            Err(_) => true,
        }
    }
}

impl AsFd for Refusal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
