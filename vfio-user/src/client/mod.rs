//! [`Client`]: a device that another process serves.

mod mapping;
mod peer;
mod requests;
#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

pub use mapping::MappedRegion;

use crate::capabilities::Capabilities;
use crate::error::{AnswerError, ClientError};
use crate::message::{
    Command, Header, Kind, MAX_VERSION_DATA, Reply, Request, VERSION_MAJOR, VERSION_MINOR, Version,
};
use crate::socket::{Deadline, Message, MessageReader, Socket, SocketError};
use peer::Peer;

/// How a connection is made and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long connecting and every request may take. Default 10 s. A server that ends commands before it answers DMA_UNMAP or
    /// DEVICE_RESET needs some of it. After it the connection is given up.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
        }
    }
}

/// Most bytes of data that one message carries here, whatever the server offers.
const MAX_DATA: u32 = 1 << 20;
/// The longest payload of an answer: data, and what stands before it.
const MAX_PAYLOAD: u32 = MAX_DATA + 64;
/// Descriptors that are taken with one message.
const MAX_DESCRIPTORS: u32 = 8;
/// Requests of the server that are answered while one of ours waits.
const MAX_REQUESTS: u32 = 256;

/// A connection to a vfio-user server, and the device behind it.
///
/// One request is under way at a time; threads wait for each other. Every wait has a deadline. Whatever makes it uncertain where the next
/// message begins, or which question it answers, ends the connection: then [`is_lost`](Self::is_lost), and every request fails at once.
///
/// Requests of the server (DMA_READ and DMA_WRITE, for memory that was lent without a descriptor) are not offered, and answered with ENOTSUP
/// whenever a request of ours waits, or [`attend`](Self::attend) is called.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    peer: Peer,
    capabilities: Capabilities,
    timeout: Duration,
    lost: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    reader: MessageReader,
    next: u16,
    /// Where messages are put together, kept for its memory.
    out: Vec<u8>,
}

impl Client {
    /// Connects to the server that listens at `path`, and agrees with it on version and capabilities.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Version`], [`ClientError::Capabilities`], [`ClientError::Refused`] where the server takes no more clients (EBUSY), and what can go wrong with any
    /// request.
    pub fn connect(path: &Path, options: &ClientOptions) -> Result<Self, ClientError> {
        let deadline = Deadline::after(options.timeout);
        let socket = Socket::connect(path, deadline).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::over(socket, options)
    }

    /// Agrees on version and capabilities over a socket that is connected to a server.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn over(socket: Socket, options: &ClientOptions) -> Result<Self, ClientError> {
        let mut client = Self {
            peer: Peer::of(&socket),
            socket,
            capabilities: Capabilities::default(),
            timeout: options.timeout,
            lost: AtomicBool::new(false),
            state: Mutex::new(State {
                reader: MessageReader::new(MAX_VERSION_DATA as u32 + 64, MAX_DESCRIPTORS as usize),
                next: 0,
                out: Vec::new(),
            }),
        };
        client.capabilities = client.negotiate()?;
        let state = client.state.get_mut();
        state
            .unwrap_or_else(PoisonError::into_inner)
            .reader
            .set_max_payload(MAX_PAYLOAD);
        Ok(client)
    }

    fn negotiate(&self) -> Result<Capabilities, ClientError> {
        let ours = Capabilities {
            max_msg_fds: MAX_DESCRIPTORS,
            max_data_xfer_size: MAX_DATA,
            ..Capabilities::default()
        };
        let text = ours.to_json();
        let request = Request::Version(Version {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            data: text.as_bytes(),
        });
        let theirs = self.call(&request, &[], |reply, _| match reply {
            Reply::Version(version) => Ok(
                if version.major == VERSION_MAJOR && version.minor <= VERSION_MINOR {
                    Capabilities::parse(version.data).map_err(ClientError::from)
                } else {
                    Err(ClientError::Version {
                        major: version.major,
                        minor: version.minor,
                    })
                },
            ),
            _ => Err(AnswerError::Differs),
        })??;
        if theirs.twin_socket {
            return Err(ClientError::Answer {
                command: Command::VERSION,
                reason: AnswerError::NotProposed,
            });
        }
        Ok(theirs)
    }

    /// What the server can take.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether the connection was given up.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        // Relaxed: nothing else is read on the strength of it.
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the connection from this side. Every request fails with [`ClientError::Lost`] from now on; a request under way may still be answered.
    pub fn close(&self) {
        self.give_up();
    }

    /// Whether the server's process has ended, so that nothing that was lent to it is touched any more.
    ///
    /// A process closes its sockets before it has quite ended: where the other end of this one is closed, and only then, `patience` is how long
    /// to wait for the rest.
    ///
    /// True only where that is certain as far as it can be: the kernel has told which process listened, it was alive when the connection was made,
    /// has exited since, and the other end of the socket is closed. A server that merely does not answer, that closed the connection
    /// while it goes on living, or whose process has handed its work to another, is never said to have ended. (A process to which the server in turn has
    /// handed the memory is not seen: a server that does so vouches for it.)
    #[must_use]
    pub fn server_has_ended(&self, patience: Duration) -> bool {
        self.peer.has_ended(&self.socket, Deadline::after(patience))
    }

    /// Answers what the server has asked of its own meanwhile, without waiting for anything. Does nothing while another thread has a request under way.
    pub fn attend(&self) {
        let Ok(mut state) = self.state.try_lock() else {
            return;
        };
        if self.is_lost() {
            return;
        }
        for _ in 0..MAX_REQUESTS {
            let deadline = Deadline::after(self.timeout);
            let failed = match state.reader.receive(&self.socket) {
                Ok(None) => return,
                Ok(Some(message)) => self.answer(&message, deadline).is_err(),
                Err(_) => true,
            };
            if failed {
                return self.give_up();
            }
        }
    }

    /// Sends a request and has `finish` make what is wanted of its reply and the descriptors beside it.
    fn call<R>(
        &self,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
        finish: impl FnOnce(Reply<'_>, Vec<OwnedFd>) -> Result<R, AnswerError>,
    ) -> Result<R, ClientError> {
        let command = request.command();
        let mut state = self.lock();
        // From now on: how long other threads' requests took is not this one's, nor the server's for it.
        let deadline = Deadline::after(self.timeout);
        let result = self.exchange(&mut state, request, descriptors, deadline);
        let result = result.and_then(|message| match message.header.kind {
            Kind::Error { errno } => Err(ClientError::Refused { command, errno }),
            _ => Reply::decode(command, &message.payload)
                .map_err(AnswerError::from)
                .and_then(|reply| finish(reply, message.descriptors))
                .map_err(|reason| ClientError::Answer { command, reason }),
        });
        // Given up before the lock is, so that no other thread takes what is left of this answer for its own.
        if let Err(ClientError::Socket { .. } | ClientError::Answer { .. }) = &result {
            self.give_up();
        }
        drop(state);
        result
    }

    /// Sends a request that asks for no reply.
    fn post(&self, request: &Request<'_>) -> Result<(), ClientError> {
        let mut state = self.lock();
        let sent = self.send(
            &mut state,
            request,
            true,
            &[],
            Deadline::after(self.timeout),
        );
        if sent.is_err() {
            self.give_up();
        }
        drop(state);
        sent.map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        state: &mut State,
        request: &Request<'_>,
        no_reply: bool,
        descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<u16, ClientError> {
        if self.is_lost() {
            return Err(ClientError::Lost);
        }
        let id = state.next;
        state.next = id.wrapping_add(1);
        state.out.clear();
        request.encode(id, no_reply, &mut state.out);
        self.socket
            .send_all(&state.out, descriptors, deadline)
            .map_err(|source| ClientError::Socket {
                command: request.command(),
                source,
            })?;
        Ok(id)
    }

    /// Sends a request and waits for what answers it.
    fn exchange(
        &self,
        state: &mut State,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<Message, ClientError> {
        let command = request.command();
        let id = self.send(state, request, false, descriptors, deadline)?;
        let lost = |source| ClientError::Socket { command, source };
        for _ in 0..MAX_REQUESTS {
            if deadline.has_passed() {
                return Err(lost(SocketError::TimedOut));
            }
            let message = state.reader.wait(&self.socket, deadline).map_err(lost)?;
            let header = &message.header;
            match header.kind {
                Kind::Command { .. } => self.answer(&message, deadline).map_err(lost)?,
                _ if header.id == id && header.command == command => return Ok(message),
                _ => {
                    return Err(ClientError::Answer {
                        command,
                        reason: AnswerError::Foreign {
                            id: header.id,
                            command: header.command,
                        },
                    });
                }
            }
        }
        Err(ClientError::Answer {
            command,
            reason: AnswerError::Flood,
        })
    }

    /// Answers a message that is not the reply to a request of ours: a request of the server's, which is refused, or nonsense.
    fn answer(&self, message: &Message, deadline: Deadline) -> Result<(), SocketError> {
        let header: &Header = &message.header;
        tracing::debug!(command = %header.command, "the server asks for what is not offered");
        match header.kind {
            Kind::Command { no_reply: true } => Ok(()),
            Kind::Command { no_reply: false } => {
                let refusal = header.error(Errno::ENOTSUP as u32).encode();
                self.socket.send_all(&refusal, &[], deadline)
            }
            Kind::Reply | Kind::Error { .. } => Err(SocketError::Closed),
        }
    }

    /// Ends the connection for good. The server sees it closed from this side.
    fn give_up(&self) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::warn!("the connection to a vfio-user server is given up");
            self.socket.end();
        }
    }
}
