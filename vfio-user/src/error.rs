//! What can go wrong with a server, told apart by what can be done about it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use crate::capabilities::CapabilitiesError;
use crate::message::{Command, DecodeError};
use crate::socket::SocketError;

/// Why a request to a server failed.
///
/// After [`Refused`](Self::Refused) and what is found before a request is sent, the connection is as good as before. After
/// [`Socket`](Self::Socket) and [`Answer`](Self::Answer) it is given up, and every later request ends with [`Lost`](Self::Lost).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody could be reached at that path.
    #[error("no vfio-user server can be reached at {}: {source}", path.display())]
    Connect {
        /// Where it should listen.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SocketError,
    },
    /// The server speaks another version of the protocol.
    #[error(
        "the server speaks version {major}.{minor} of vfio-user, and 0.0 to 0.1 are understood"
    )]
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// The server's capabilities cannot be read.
    #[error("the server's capabilities cannot be read")]
    Capabilities(#[from] CapabilitiesError),
    /// The server answered that it could not, or would not.
    #[error("the server refused {command}: {}", describe(*errno))]
    Refused {
        /// What was asked.
        command: Command,
        /// The errno of its answer; zero where it said none.
        errno: u32,
    },
    /// The connection ended, or the server did not act in time.
    #[error("the connection was lost over {command}: {source}")]
    Socket {
        /// What was asked.
        command: Command,
        /// How it ended.
        #[source]
        source: SocketError,
    },
    /// What the server answered is no answer to what was asked.
    #[error("the server's answer to {command} is none: {reason}")]
    Answer {
        /// What was asked.
        command: Command,
        /// What is wrong with the answer.
        reason: AnswerError,
    },
    /// The connection was given up earlier.
    #[error("the connection to the server was given up")]
    Lost,
    /// The region cannot be used in that way.
    #[error("region {index}: {reason}")]
    Region {
        /// Which region.
        index: u32,
        /// Why not.
        reason: &'static str,
    },
    /// More descriptors than the server takes.
    #[error("the server takes {limit} descriptors with one message")]
    Descriptors {
        /// What it said.
        limit: u32,
    },
    /// A region could not be mapped.
    #[error("region {index} could not be mapped ({step})")]
    Map {
        /// Which region.
        index: u32,
        /// The system call.
        step: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with a server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// Its payload.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It answers another request: it is late, or was never asked for.
    #[error("it answers message {id} ({command}), which was not the one that waited")]
    Foreign {
        /// The message identifier in it.
        id: u16,
        /// The command in it.
        command: Command,
    },
    /// It is about something else than what was asked for.
    #[error("it is about something else than what was asked")]
    Differs,
    /// It came with more descriptors than there can be.
    #[error("it came with {0} descriptors")]
    Descriptors(usize),
    /// The server wants a larger reply than any that makes sense, or than it wanted before.
    #[error("it needs {0} bytes of reply")]
    TooLong(u32),
    /// The server asked so much meanwhile that its answer did not come.
    #[error("the server sent requests of its own instead")]
    Flood,
    /// It offers what was not asked for.
    #[error("it has a capability that was not proposed")]
    NotProposed,
}

impl ClientError {
    /// The errno of a refusal; `None` for other errors, and where the server said none that is known.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => known(*errno),
            _ => None,
        }
    }
}

fn known(errno: u32) -> Option<Errno> {
    let errno = i32::try_from(errno).ok().map(Errno::from_raw);
    errno.filter(|errno| *errno != Errno::UnknownErrno)
}

fn describe(errno: u32) -> String {
    match known(errno) {
        Some(errno) => errno.to_string(),
        None if errno == 0 => "no reason given".to_owned(),
        None => format!("error {errno}"),
    }
}
