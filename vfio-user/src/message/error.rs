//! Why a payload was refused.

use nix::errno::Errno;
use thiserror::Error;

use super::Command;

/// Why a payload is not one of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The protocol has no such command.
    #[error("{0} is not a command of protocol 0.1")]
    UnknownCommand(Command),
    /// The payload is shorter or longer than its contents say.
    #[error("a payload of {actual} bytes where {expected} are expected")]
    Length {
        /// Bytes that it should have; at least so many where its contents could not be read.
        expected: u64,
        /// Bytes that it has.
        actual: usize,
    },
    /// `argsz` is too small for what it describes.
    #[error("argsz is {argsz}, and at least {least} is needed")]
    ArgumentSize {
        /// As received.
        argsz: u32,
        /// The least that would do.
        least: u64,
    },
    /// A field that must be zero is not.
    #[error("{field} must be zero, and is {value:#x}")]
    Reserved {
        /// Its name in the protocol.
        field: &'static str,
        /// As received.
        value: u64,
    },
    /// Bits that are not defined, that exclude each other, or of which one must be set.
    #[error("flags {flags:#x} have undefined bits, or none or two where there is to be one")]
    Flags {
        /// As received.
        flags: u32,
    },
    /// A count that cannot be.
    #[error("{field} is {value}")]
    Count {
        /// Its name in the protocol.
        field: &'static str,
        /// As received.
        value: u64,
    },
    /// A range that wraps, or lies outside what it is a part of.
    #[error(
        "the range {start:#x} with {length:#x} bytes is not one, or not inside what it belongs to"
    )]
    Range {
        /// First.
        start: u64,
        /// How many.
        length: u64,
    },
    /// Text that is not ended by its only NUL.
    #[error("the version's text does not end with its only NUL")]
    Text,
    /// A chain of region capabilities that leaves the payload, repeats, or runs backwards.
    #[error("the chain of region capabilities is broken at {offset:#x}")]
    Chain {
        /// Where, from the start of the payload.
        offset: u32,
    },
}

impl DecodeError {
    /// What to answer: ENOTSUP for a command that the protocol does not have, EINVAL for all else.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::UnknownCommand(_) => Errno::ENOTSUP,
            _ => Errno::EINVAL,
        }
    }
}
