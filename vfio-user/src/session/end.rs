//! Why a session ends.

use thiserror::Error;

use crate::message::{Command, DecodeError};
use crate::socket::SocketError;

/// Why a session ended, or is about to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The client closed the connection.
    #[error("the client closed the connection")]
    Closed,
    /// Whoever serves the device stopped, or sent the client away.
    #[error("the server sent the client away")]
    Stopped,
    /// This side panicked over a message of the client's, as no message should have it do. The client ends as any other does: with the device letting go of its memory.
    #[error("the server failed over a message of the client's")]
    Panicked,
    /// The client connected and did not say VERSION in time.
    #[error("the client did not say its version in time")]
    VersionTimeout,
    /// The client began a message and did not end it in time.
    #[error("the client did not end its message in time")]
    MessageTimeout,
    /// The client did not read its reply in time.
    #[error("the client did not read its reply in time")]
    ReplyTimeout,
    /// The first message was not VERSION.
    #[error("the client's first message was {0}")]
    NotVersion(Command),
    /// The VERSION message was not one.
    #[error("the client's version is not understood")]
    BadVersion(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client speaks another protocol.
    #[error("the client speaks version {major} of the protocol")]
    OtherMajor {
        /// The major version that it proposed.
        major: u16,
    },
    /// A reply came, and nothing had been asked.
    #[error("the client replied to {0}, and nothing had been asked")]
    Reply(Command),
    /// The client truncated the file of memory that it had lent.
    #[error("the client took memory away that it had lent at {address:#x}")]
    MemoryLost {
        /// Where the device saw the mapping.
        address: u64,
    },
    /// The client sent descriptors that block whoever closes them, one after the other.
    #[error("the client's descriptors cannot be closed")]
    Unclosed,
    /// The stream of messages broke, or the system failed.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl From<DecodeError> for SessionEnd {
    fn from(error: DecodeError) -> Self {
        Self::BadVersion(Box::new(error))
    }
}
