//! Why a command was not carried out, or failed.

use nvme_vfio::CommandError;

use crate::command::Direction;
use crate::reason::Refusal;

/// Why a command was not carried out, or how it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassthroughError {
    /// The gate has refused it; the controller was not asked.
    #[error("refused: {} ({})", refusal.reason.text(), refusal.status)]
    Refused {
        /// What a client would be told, and why.
        refusal: Refusal,
    },
    /// The buffer is shorter than what the command moves.
    #[error("{name} moves {needed} bytes, and the buffer has {given}")]
    BufferTooSmall {
        /// The command's name.
        name: &'static str,
        /// Bytes that it moves.
        needed: u64,
        /// Bytes of the buffer.
        given: u64,
    },
    /// Data was given for the other direction, or where there is none.
    #[error("the data of {name} goes {}", way(*direction))]
    Direction {
        /// The command's name.
        name: &'static str,
        /// Which way its data moves.
        direction: Direction,
    },
    /// Data that this interface does not move.
    #[error("{what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The driver could not carry it out, or the controller answered an admin command with an error.
    #[error(transparent)]
    Driver(#[from] nvme_vfio::Error),
    /// The controller answered an I/O command with an error, or not at all.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<Refusal> for PassthroughError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { refusal }
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::None => "nowhere: it has none",
        Direction::ToController => "to the controller",
        Direction::FromController => "from the controller",
        Direction::Both => "both ways",
    }
}
