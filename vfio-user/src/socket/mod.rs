//! Messages with descriptors over a stream socket: sending and receiving that never block, and waits that end.

mod deadline;
mod reader;
mod receive;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{OobInline, PeerCredentials, SockType};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType as Type, UnixAddr,
    UnixCredentials, connect, getsockname, getsockopt, sendmsg, setsockopt, shutdown, socket,
    socketpair,
};
use thiserror::Error;

pub use deadline::Deadline;
pub use reader::{Message, MessageReader};
pub use receive::Received;

use crate::message::HeaderError;

/// Most descriptors that the kernel passes with one message.
pub const MAX_DESCRIPTORS: usize = 253;

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The peer closed the connection, or is gone.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the connection inside a message.
    #[error("the connection ended inside a message")]
    CutShort,
    /// The deadline passed.
    #[error("the peer did not act in time")]
    TimedOut,
    /// What should be a header is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The message is longer than any that is taken.
    #[error("a message with {length} bytes of payload, and at most {limit} are taken")]
    TooLong {
        /// Bytes of payload.
        length: u32,
        /// The most.
        limit: u32,
    },
    /// The message carries more descriptors than are taken.
    #[error("a message with more than {limit} descriptors")]
    TooManyDescriptors {
        /// The most.
        limit: usize,
    },
    /// Descriptors that came beside a message were lost: the system did not let this process have them.
    #[error(
        "descriptors beside a message were lost: this process has as many open as it may (RLIMIT_NOFILE), or may not have them"
    )]
    DescriptorsLost,
    /// What was given is no stream socket of this machine.
    #[error("the descriptor is not a Unix stream socket")]
    NotASocket,
    /// The kernel refused.
    #[error("{step} failed")]
    Os {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    fn os(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| match errno {
            Errno::ECONNRESET | Errno::EPIPE => Self::Closed,
            errno => Self::Os {
                step,
                source: errno.into(),
            },
        }
    }
}

/// A connected Unix stream socket. None of its calls blocks but those that take a [`Deadline`], however the descriptor is set.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
}

impl Socket {
    /// Connects to the socket at `path`. A listener whose backlog is full is asked again until the deadline.
    ///
    /// # Errors
    /// [`SocketError::TimedOut`], or [`SocketError::Os`] where nobody listens or `path` is too long (108 bytes).
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self, SocketError> {
        const AGAIN: Duration = Duration::from_millis(2);
        let address = UnixAddr::new(path).map_err(SocketError::os("reading the socket's path"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Unix, Type::Stream, flags, None)
            .map_err(SocketError::os("making a socket"))?;
        loop {
            match connect(descriptor.as_raw_fd(), &address) {
                Ok(()) => return Ok(Self { descriptor }),
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    let left = deadline.remaining().ok_or(SocketError::TimedOut)?;
                    std::thread::sleep(left.min(AGAIN));
                }
                Err(errno) => {
                    return Err(SocketError::Os {
                        step: "connecting",
                        source: errno.into(),
                    });
                }
            }
        }
    }

    /// Two sockets that are connected to each other.
    ///
    /// # Errors
    /// [`SocketError::Os`].
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            Type::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(SocketError::os("making a pair of sockets"))?;
        Ok((Self { descriptor: one }, Self { descriptor: other }))
    }

    /// Takes over a connected socket, as accept(2) gave it or another process passed it on.
    ///
    /// # Errors
    /// [`SocketError::NotASocket`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let stream = matches!(getsockopt(&descriptor, SockType), Ok(Type::Stream));
        if !stream || getsockname::<UnixAddr>(descriptor.as_raw_fd()).is_err() {
            return Err(SocketError::NotASocket);
        }
        // A byte that is sent out of band comes like any other, with its descriptors: the kernel would drop them with it, and wait for that.
        setsockopt(&descriptor, OobInline, &true)
            .map_err(SocketError::os("setting up the socket"))?;
        Ok(Self { descriptor })
    }

    /// Who is at the other end, as the kernel knows it from when they connected.
    ///
    /// # Errors
    /// [`SocketError::Os`].
    pub fn peer(&self) -> Result<UnixCredentials, SocketError> {
        getsockopt(&self.descriptor, PeerCredentials)
            .map_err(SocketError::os("asking for the peer"))
    }

    /// Sends what can be sent now, the descriptors beside the first byte. `None` where that is nothing. Where fewer than all bytes went, the rest
    /// is to be sent without descriptors.
    ///
    /// # Errors
    /// [`SocketError::Closed`], [`SocketError::TooManyDescriptors`], [`SocketError::Os`].
    pub fn try_send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Option<usize>, SocketError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(SocketError::TooManyDescriptors {
                limit: MAX_DESCRIPTORS,
            });
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            let sent = sendmsg::<()>(
                self.descriptor.as_raw_fd(),
                &[IoSlice::new(bytes)],
                control,
                flags,
                None,
            );
            match sent {
                Ok(sent) => return Ok(Some(sent)),
                Err(Errno::EINTR) => {}
                // ETOOMANYREFS: too many descriptors of this user are on their way. They can only become fewer.
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS) => return Ok(None),
                Err(errno) => return Err(SocketError::os("sending")(errno)),
            }
        }
    }

    /// Sends all, with the descriptors beside the first byte.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send), and [`SocketError::TimedOut`]. Part of the message may have been sent then: the connection is of no use any more.
    pub fn send_all(
        &self,
        mut bytes: &[u8],
        mut descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), SocketError> {
        while !bytes.is_empty() {
            match self.try_send(bytes, descriptors)? {
                Some(sent) => {
                    bytes = bytes.get(sent..).unwrap_or(&[]);
                    descriptors = &[];
                }
                // The descriptors can be what is too much: then there is room for bytes, and the wait is none.
                None if !descriptors.is_empty() && deadline.has_passed() => {
                    return Err(SocketError::TimedOut);
                }
                None => self.wait_writable(deadline)?,
            }
        }
        Ok(())
    }

    /// Receives what is there, at most `buffer.len()` bytes, and appends the descriptors beside it to `descriptors`, each closed on exec. With a `limit` of 0, bytes that have
    /// descriptors beside them are not received, and the descriptors stay in the socket: to drop one could take time.
    ///
    /// # Errors
    /// [`SocketError::Closed`] where the peer was reset, [`SocketError::TooManyDescriptors`] where more than `limit` would be in `descriptors` (those that came
    /// are in it), [`SocketError::DescriptorsLost`], [`SocketError::Os`].
    pub fn try_receive(
        &self,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        limit: usize,
    ) -> Result<Received, SocketError> {
        receive::receive(&self.descriptor, buffer, descriptors, limit)
    }

    /// Tells the peer that nothing more will be sent. What it has sent can still be received.
    pub fn end(&self) {
        // It can only fail where the connection has ended already.
        let _ = shutdown(self.descriptor.as_raw_fd(), Shutdown::Write);
    }

    /// Ends the connection in both directions, and throws away what was received and not read. False where a descriptor is among that: closing the socket closes it, which can take as long as its
    /// owner likes.
    pub(crate) fn drain(&self) -> bool {
        // From here on nothing more comes.
        if shutdown(self.descriptor.as_raw_fd(), Shutdown::Both).is_err() {
            return false;
        }
        let mut scrap = [0; 4096];
        loop {
            match self.try_receive(&mut scrap, &mut Vec::new(), 0) {
                // The peer has gone without reading all. That is told once, and before the end.
                Ok(Received::Bytes(_)) | Err(SocketError::Closed) => {}
                Ok(Received::End) => return true,
                Ok(Received::Nothing) | Err(_) => return false,
            }
        }
    }

    /// Waits until there is something to receive, or the peer is gone.
    ///
    /// # Errors
    /// [`SocketError::TimedOut`], [`SocketError::Os`].
    pub fn wait_readable(&self, deadline: Deadline) -> Result<(), SocketError> {
        deadline.wait(self.as_fd(), nix::poll::PollFlags::POLLIN)
    }

    /// Waits until something can be sent, or the peer is gone.
    ///
    /// # Errors
    /// [`SocketError::TimedOut`], [`SocketError::Os`].
    pub fn wait_writable(&self, deadline: Deadline) -> Result<(), SocketError> {
        deadline.wait(self.as_fd(), nix::poll::PollFlags::POLLOUT)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        socket.descriptor
    }
}
