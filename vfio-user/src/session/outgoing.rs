//! The one reply that waits to be sent.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::SessionEnd;
use crate::socket::{Socket, SocketError};

/// A reply, and how far it has been sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Goes beside the first byte.
    descriptor: Option<OwnedFd>,
    deadline: Option<Instant>,
}

impl Outgoing {
    /// What stays allocated between replies, in bytes.
    const KEEP: usize = 64 << 10;

    /// Puts a reply there. Only when none is waiting.
    pub(super) fn put(&mut self, timeout: Duration, encode: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(!self.is_waiting(), "one reply at a time");
        encode(&mut self.bytes);
        self.deadline = Some(Instant::now() + timeout);
    }

    /// Lets a descriptor go beside the reply.
    pub(super) fn attach(&mut self, descriptor: OwnedFd) {
        self.descriptor = Some(descriptor);
    }

    /// Whether a reply, or a part of it, is still to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// When the reply must have been sent.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Sends what the client takes. True when nothing is left.
    pub(super) fn send(&mut self, socket: &Socket) -> Result<bool, SessionEnd> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let descriptor = self.descriptor.as_ref().map(AsFd::as_fd);
            match socket.try_send(rest, descriptor.as_slice()) {
                Ok(Some(count)) => {
                    self.sent += count;
                    self.descriptor = None;
                }
                Ok(None) if self.deadline.is_some_and(|until| until <= Instant::now()) => {
                    return Err(SessionEnd::ReplyTimeout);
                }
                Ok(None) => return Ok(false),
                Err(SocketError::Closed) => return Err(SessionEnd::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(Self::KEEP);
        self.sent = 0;
        self.deadline = None;
        Ok(true)
    }
}
