//! What is wrong with a policy, and where.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::document::Place;
use crate::trust::Foreign;

/// Why a policy is refused.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The file could not be read.
    #[error("cannot read the policy {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else may change it, and this process is root's.
    #[error("the policy {} is not root's alone: {foreign}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What may be changed: the file, or something on the way to it.
        foreign: Foreign,
    },
    /// Something in it is wrong.
    #[error("{}{place}: {fault}", path.as_ref().map(|path| format!("{}:", path.display())).unwrap_or_default())]
    Fault {
        /// The file, where the text came from one.
        path: Option<PathBuf>,
        /// Where in it.
        place: Place,
        /// What is wrong.
        fault: Box<Fault>,
    },
}

impl PolicyError {
    pub(super) fn at(place: Place, fault: Fault) -> Self {
        Self::Fault {
            path: None,
            place,
            fault: Box::new(fault),
        }
    }

    pub(super) fn in_file(self, file: &std::path::Path) -> Self {
        match self {
            Self::Fault { place, fault, .. } => Self::Fault {
                path: Some(file.to_owned()),
                place,
                fault,
            },
            other => other,
        }
    }

    /// Where it is; the beginning of the file where it is not about what stands in it.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Fault { place, .. } => *place,
            _ => Place { line: 1, column: 1 },
        }
    }

    /// What is wrong; `None` where it is not about what stands in the file.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault { fault, .. } => Some(fault),
            _ => None,
        }
    }
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is no TOML.
    #[error("this is not TOML: {0}")]
    Toml(String),
    /// A key that has no meaning there.
    #[error("unknown key {key:?} in {table}; the keys are {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table that it stands in.
        table: String,
        /// The keys that there are.
        known: String,
    },
    /// A key that is needed.
    #[error("{table} has no \"{key}\", which is required")]
    Missing {
        /// The key.
        key: &'static str,
        /// The table that lacks it.
        table: String,
    },
    /// A value of another kind.
    #[error("\"{key}\" takes {wanted}, not {found}")]
    Kind {
        /// The key.
        key: String,
        /// What it takes.
        wanted: &'static str,
        /// What it was given.
        found: &'static str,
    },
    /// A number that is too small or too large.
    #[error("\"{key}\" is {value}; it may be {least} to {most}")]
    Range {
        /// The key.
        key: String,
        /// What it was given.
        value: String,
        /// The smallest value.
        least: String,
        /// The largest value.
        most: String,
    },
    /// An amount that cannot be read.
    #[error("\"{key}\": {reason}")]
    Quantity {
        /// The key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// A list that is empty or too long.
    #[error("\"{key}\" has {count} entries; it may have 1 to {most}")]
    Count {
        /// The key.
        key: String,
        /// How many it has.
        count: usize,
        /// How many it may have.
        most: usize,
    },
    /// A word that has no meaning there.
    #[error("\"{value}\" is nothing that \"{key}\" knows; it takes {known}")]
    Word {
        /// The key.
        key: &'static str,
        /// The word.
        value: String,
        /// The words that there are.
        known: String,
    },
    /// Something is there twice that may be there once.
    #[error("{what} is there twice; first at {first}")]
    Twice {
        /// What.
        what: String,
        /// Where it was first.
        first: Place,
    },
    /// A name, path or address that cannot be used.
    #[error("\"{key}\": {reason}")]
    Unusable {
        /// The key.
        key: &'static str,
        /// Why not.
        reason: String,
    },
    /// Two slices share blocks and may not.
    #[error(
        "blocks {first} to {last} of namespace {nsid} are also in the slice at {other} of client \"{owner}\"; {remedy}"
    )]
    Overlap {
        /// The real namespace.
        nsid: u32,
        /// First block that both have.
        first: u64,
        /// Last block that both have.
        last: u64,
        /// The place of the other slice.
        other: Place,
        /// Whose it is.
        owner: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// A class that goes only to a client that is alone, with whole namespaces.
    #[error("\"{class}\" reaches further than blocks: {reason}")]
    Operator {
        /// The class.
        class: &'static str,
        /// What it needs.
        reason: String,
    },
    /// What the real controller is does not fit the policy.
    #[error("{0}")]
    Device(String),
}
