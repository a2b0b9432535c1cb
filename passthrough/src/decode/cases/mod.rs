//! What every row of the table must let pass, what that reaches, and what it must refuse. A row names its cases, or does not compile.

mod admin;
mod io;
mod owner;

pub(super) use admin::*;
pub(super) use io::*;
pub(super) use owner::*;

use super::request::View;
use crate::command::{Access, Class, CommandSet, Direction, Geometry, Persistence, Scope};
use crate::reason::Reason;

/// The namespace of all cases: identifier 1.
pub(super) const GEOMETRY: Geometry = Geometry {
    command_set: CommandSet::NVM,
    blocks: 1000,
    block_shift: 12,
    max_transfer: 1 << 20,
    max_blocks: 512,
    copy_ranges: 4,
    copy_range_blocks: 64,
    copy_blocks: 128,
};

pub(super) const BOTH: &[View] = &[View::Client, View::Owner];
pub(super) const CLIENT: &[View] = &[View::Client];
pub(super) const OWNER: &[View] = &[View::Owner];

/// Words of an entry that are not what they are by themselves: the opcode in word 0, namespace 1 where one is named, zero else.
pub(super) type Words = &'static [(usize, u32)];

/// Cases of one row.
#[derive(Debug)]
pub(super) enum Cases {
    /// Nobody may issue it.
    Refused(Reason),
    /// Somebody may.
    Passes {
        /// Commands that people issue.
        legitimate: &'static [Legitimate],
        /// What commands at the edge of their reach reach.
        reach: &'static [Reached],
        /// Commands that must not pass.
        attacks: &'static [Attack],
    },
}

/// A command as it comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) what: &'static str,
    pub(super) views: &'static [View],
    pub(super) words: Words,
    /// The range list, in pieces.
    pub(super) list: &'static [[u8; 16]],
}

/// A command that passes, with its class, direction and length.
#[derive(Debug)]
pub(super) struct Legitimate {
    pub(super) command: Command,
    pub(super) class: Class,
    pub(super) direction: Direction,
    pub(super) length: u64,
}

/// A command that passes, with all that it reaches.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) command: Command,
    pub(super) scope: Scope,
    pub(super) persistence: Persistence,
    /// First block, number of blocks, and how they are touched.
    pub(super) extents: &'static [(u64, u64, Access)],
}

/// A command that does not pass, with the reason.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attack {
    pub(super) command: Command,
    pub(super) reason: Reason,
}

const fn command(what: &'static str, views: &'static [View], words: Words) -> Command {
    Command {
        what,
        views,
        words,
        list: &[],
    }
}

impl Command {
    const fn with(self, list: &'static [[u8; 16]]) -> Command {
        Command { list, ..self }
    }

    /// Without data.
    const fn passes(self, class: Class) -> Legitimate {
        Legitimate {
            command: self,
            class,
            direction: Direction::None,
            length: 0,
        }
    }

    const fn sends(self, class: Class, length: u64) -> Legitimate {
        Legitimate {
            command: self,
            class,
            direction: Direction::ToController,
            length,
        }
    }

    const fn receives(self, class: Class, length: u64) -> Legitimate {
        Legitimate {
            command: self,
            class,
            direction: Direction::FromController,
            length,
        }
    }

    /// Reaches no blocks.
    const fn reaches(self, scope: Scope, persistence: Persistence) -> Reached {
        Reached {
            command: self,
            scope,
            persistence,
            extents: &[],
        }
    }

    /// Reaches blocks alone.
    const fn touches(
        self,
        persistence: Persistence,
        extents: &'static [(u64, u64, Access)],
    ) -> Reached {
        Reached {
            command: self,
            scope: Scope::Extents,
            persistence,
            extents,
        }
    }

    const fn refused(self, reason: Reason) -> Attack {
        Attack {
            command: self,
            reason,
        }
    }
}

/// Of opcodes that nobody defines.
pub(super) static UNKNOWN: Cases = Cases::Refused(Reason::UnknownOpcode);
/// Of commands that never pass.
pub(super) static NEVER: Cases = Cases::Refused(Reason::NeverPasses);
