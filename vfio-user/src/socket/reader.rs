//! Whole messages out of a stream.

use std::os::fd::OwnedFd;

use super::{Deadline, Received, Socket, SocketError};
use crate::message::{HEADER_LENGTH, Header};

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: Vec<u8>,
    /// The descriptors that came beside it, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Puts messages together from what a stream gives, one at a time and never a byte beyond it.
///
/// What a peer can make it keep is one message of the longest payload and the most descriptors.
#[derive(Debug)]
pub struct MessageReader {
    max_payload: u32,
    max_descriptors: usize,
    head: [u8; HEADER_LENGTH],
    received: usize,
    header: Option<Header>,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl MessageReader {
    /// Memory for a payload is taken in such steps, as it comes: a header alone costs nobody a megabyte.
    const STEP: usize = 64 << 10;

    /// Takes messages of at most `max_payload` bytes after the header, with at most `max_descriptors`.
    #[must_use]
    pub fn new(max_payload: u32, max_descriptors: usize) -> Self {
        Self {
            max_payload,
            max_descriptors,
            head: [0; HEADER_LENGTH],
            received: 0,
            header: None,
            payload: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Whether part of a message has come, and the rest has not.
    #[must_use]
    pub const fn is_inside(&self) -> bool {
        self.received > 0
    }

    /// Changes the longest payload taken, from the next message on.
    pub fn set_max_payload(&mut self, max_payload: u32) {
        self.max_payload = max_payload;
    }

    /// Takes in what is there. `None` where that does not end a message.
    ///
    /// # Errors
    /// See [`SocketError`]; the connection is of no use any more then, since nobody knows where the next message begins.
    pub fn receive(&mut self, socket: &Socket) -> Result<Option<Message>, SocketError> {
        loop {
            let room = match &self.header {
                None => self.head.get_mut(self.received..).unwrap_or_default(),
                Some(header) => {
                    let done = self.received - HEADER_LENGTH;
                    let left = header.payload as usize - done;
                    if left == 0 {
                        return Ok(self.take());
                    }
                    self.payload.resize(done + left.min(Self::STEP), 0);
                    self.payload.get_mut(done..).unwrap_or_default()
                }
            };
            match socket.try_receive(room, &mut self.descriptors, self.max_descriptors)? {
                Received::Bytes(count) => self.received += count,
                Received::Nothing => return Ok(None),
                Received::End if self.received == 0 => return Err(SocketError::Closed),
                Received::End => return Err(SocketError::CutShort),
            }
            if self.header.is_none() && self.received == HEADER_LENGTH {
                let header = Header::decode(&self.head)?;
                if header.payload > self.max_payload {
                    return Err(SocketError::TooLong {
                        length: header.payload,
                        limit: self.max_payload,
                    });
                }
                self.header = Some(header);
            }
        }
    }

    /// Waits for a whole message.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), and [`SocketError::TimedOut`], after which the wait may be taken up again.
    pub fn wait(&mut self, socket: &Socket, deadline: Deadline) -> Result<Message, SocketError> {
        loop {
            if let Some(message) = self.receive(socket)? {
                return Ok(message);
            }
            socket.wait_readable(deadline)?;
        }
    }

    /// The descriptors of a message that did not become whole.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    fn take(&mut self) -> Option<Message> {
        let header = self.header.take()?;
        self.received = 0;
        Some(Message {
            header,
            payload: std::mem::take(&mut self.payload),
            descriptors: std::mem::take(&mut self.descriptors),
        })
    }
}
