//! What a decoder of one opcode is given, and what it says.

use super::field::WORDS;
use crate::command::{
    Access, Class, Direction, Extent, Flags, Geometry, Persistence, QueueKind, Scope,
};
use crate::reason::Reason;

/// The namespace identifier that means all namespaces.
pub(super) const BROADCAST: u32 = u32::MAX;

/// Extents of one command at most: a Copy's destination and its 256 sources.
pub(super) const EXTENTS: usize = 257;

/// Who the commands come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// A client with a virtual controller.
    Client,
    /// The process that holds the group.
    Owner,
}

/// One command, its forbidden bits known to be zero.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) view: View,
    pub(super) queue: QueueKind,
    /// Format NVM Attributes of the controller.
    pub(super) format_attributes: u8,
    pub(super) geometry: Option<&'a Geometry>,
    pub(super) entry: &'a [u32; WORDS],
    /// The range list, copied.
    pub(super) list: &'a [u8],
    /// Where the extents go.
    pub(super) extents: &'a mut [Extent; EXTENTS],
    /// How many there are.
    pub(super) count: usize,
}

/// What a command means, beside its extents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meaning {
    pub(super) class: Class,
    pub(super) direction: Direction,
    pub(super) scope: Scope,
    pub(super) persistence: Persistence,
    pub(super) length: u64,
    pub(super) flags: Flags,
    pub(super) selector: u8,
    pub(super) detail: &'static str,
}

impl Meaning {
    /// No data, no effect.
    pub(super) const fn new(class: Class, scope: Scope) -> Meaning {
        Meaning {
            class,
            direction: Direction::None,
            scope,
            persistence: Persistence::None,
            length: 0,
            flags: Flags::empty(),
            selector: 0,
            detail: "",
        }
    }

    /// Answered by the virtual controller.
    pub(super) const fn virtual_controller() -> Meaning {
        Meaning::new(Class::Virtual, Scope::VirtualController)
    }

    /// With data for the controller; none where the length is 0.
    pub(super) const fn sends(self, length: u64) -> Meaning {
        let direction = if length == 0 {
            Direction::None
        } else {
            Direction::ToController
        };
        Meaning {
            direction,
            length,
            ..self
        }
    }

    /// With data for the host; none where the length is 0.
    pub(super) const fn receives(self, length: u64) -> Meaning {
        let direction = if length == 0 {
            Direction::None
        } else {
            Direction::FromController
        };
        Meaning {
            direction,
            length,
            ..self
        }
    }

    /// With an effect that lasts.
    pub(super) const fn lasts(self, persistence: Persistence) -> Meaning {
        Meaning {
            persistence,
            ..self
        }
    }

    /// Choosing one of several things.
    pub(super) const fn selects(self, selector: u8, detail: &'static str) -> Meaning {
        Meaning {
            selector,
            detail,
            ..self
        }
    }
}

impl Request<'_> {
    /// A word of the entry.
    #[inline]
    pub(super) fn word<const N: usize>(&self) -> u32 {
        const { assert!(N < WORDS) };
        self.entry[N] // INVARIANT: less than the length, checked when compiled
    }

    /// Bits `high..=low` of a word.
    #[inline]
    pub(super) fn bits<const N: usize>(&self, high: u32, low: u32) -> u32 {
        (self.word::<N>() & (u32::MAX >> (31 - high))) >> low
    }

    /// Two words that make one number, the low one first.
    #[inline]
    pub(super) fn long<const LOW: usize, const HIGH: usize>(&self) -> u64 {
        u64::from(self.word::<LOW>()) | u64::from(self.word::<HIGH>()) << 32
    }

    pub(super) fn nsid(&self) -> u32 {
        self.word::<1>()
    }

    /// The namespace that the command is about, which has to be one, and one that the client has.
    pub(super) fn namespace(&self) -> Result<&Geometry, Reason> {
        match self.nsid() {
            BROADCAST => Err(Reason::AllNamespaces),
            0 | 0xffff_fffe => Err(Reason::NamespaceNotGranted),
            _ => self.geometry.ok_or(Reason::NamespaceNotGranted),
        }
    }

    /// The scope of a command that may be about one namespace, or for the owner about all.
    pub(super) fn namespaces(&self) -> Result<Scope, Reason> {
        match self.nsid() {
            BROADCAST if self.view == View::Owner => Ok(Scope::AllNamespaces),
            _ => self.namespace().map(|_| Scope::Namespace),
        }
    }

    /// The same, where 0 means the controller.
    pub(super) fn namespaces_or_controller(&self) -> Result<Scope, Reason> {
        match self.nsid() {
            0 => Ok(Scope::Controller),
            _ => self.namespaces(),
        }
    }

    /// Adds blocks that the command touches, which have to be inside the namespace.
    pub(super) fn touch(
        &mut self,
        geometry: &Geometry,
        first: u64,
        blocks: u64,
        access: Access,
    ) -> Result<(), Reason> {
        if !holds(geometry, first, blocks) {
            return Err(Reason::OutOfRange);
        }
        let extent = Extent {
            nsid: self.nsid(),
            first,
            blocks,
            access,
        };
        *self.extents.get_mut(self.count).ok_or(Reason::RangeList)? = extent;
        self.count += 1;
        Ok(())
    }
}

/// Whether the blocks are inside the namespace. No blocks are inside where their first one would be.
#[inline]
pub(super) fn holds(geometry: &Geometry, first: u64, blocks: u64) -> bool {
    first < geometry.blocks && blocks <= geometry.blocks - first
}
