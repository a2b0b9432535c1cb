//! Lists that Identify returns.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Namespace Identification Descriptor: NIDT, NIDL, two reserved bytes, then the identifier.
const DESCRIPTOR_HEADER: usize = 4;

/// A Namespace List (Base Specification 2.0, 4.3.2): up to 1024 identifiers, ascending, the rest 0.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceList {
    /// The entries.
    pub nsid: [U32; 1024],
}

const _: () = assert!(size_of::<NamespaceList>() == super::IDENTIFY_BYTES);

impl NamespaceList {
    /// How many identifiers one list holds.
    pub const ENTRIES: usize = 1024;

    /// The identifiers greater than `after`, which is what the command asked for.
    ///
    /// Ends at the first 0, and at the first entry that does not ascend or is FFFFFFFFh (the
    /// specification allows neither), so that asking on after the last one always advances.
    pub fn iter_after(&self, after: u32) -> impl Iterator<Item = u32> + '_ {
        let mut last = after;
        self.nsid
            .iter()
            .map(|nsid| nsid.get())
            .take_while(move |nsid| {
                let ascends = *nsid > last && *nsid != u32::MAX;
                last = *nsid;
                ascends
            })
    }

    /// Whether every entry is used, so that there may be more to ask for.
    #[must_use]
    pub fn is_full(&self, after: u32) -> bool {
        self.iter_after(after).count() == Self::ENTRIES
    }
}

/// A Controller List (Base Specification 2.0, 4.3.1).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControllerList {
    /// Number of identifiers.
    pub num: U16,
    /// The identifiers, ascending.
    pub cntlid: [U16; 2047],
}

const _: () = assert!(size_of::<ControllerList>() == super::IDENTIFY_BYTES);

impl ControllerList {
    /// The identifiers, at most 2047 whatever the number says.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.cntlid
            .iter()
            .take(usize::from(self.num.get()))
            .map(|cntlid| cntlid.get())
    }
}

/// What identifies a namespace for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceIdentifier<'a> {
    /// NIDT 1: IEEE Extended Unique Identifier, most significant byte first.
    Eui64([u8; 8]),
    /// NIDT 2: Namespace Globally Unique Identifier, most significant byte first.
    Nguid([u8; 16]),
    /// NIDT 3: UUID, in the byte order of RFC 4122.
    Uuid([u8; 16]),
    /// NIDT 4: Command Set Identifier: 0 NVM, 1 Key Value, 2 Zoned Namespace.
    CommandSet(u8),
    /// Another type, or a known one of a length that it does not have.
    Other {
        /// Namespace Identifier Type.
        nidt: u8,
        /// The identifier.
        nid: &'a [u8],
    },
}

impl<'a> NamespaceIdentifier<'a> {
    fn decode(nidt: u8, nid: &'a [u8]) -> Self {
        let known = match nidt {
            1 => nid.try_into().ok().map(Self::Eui64),
            2 => nid.try_into().ok().map(Self::Nguid),
            3 => nid.try_into().ok().map(Self::Uuid),
            4 => <[u8; 1]>::try_from(nid)
                .ok()
                .map(|[csi]| Self::CommandSet(csi)),
            _ => None,
        };
        known.unwrap_or(Self::Other { nidt, nid })
    }
}

/// Namespace Identification Descriptors, CNS 03h (Base Specification 2.0, 5.17.2.3).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorList {
    /// The descriptors one after another, the rest 0.
    pub bytes: [u8; super::IDENTIFY_BYTES],
}

impl DescriptorList {
    /// The descriptors.
    #[must_use]
    pub fn iter(&self) -> Descriptors<'_> {
        Descriptors { rest: &self.bytes }
    }
}

impl<'a> IntoIterator for &'a DescriptorList {
    type Item = NamespaceIdentifier<'a>;
    type IntoIter = Descriptors<'a>;

    fn into_iter(self) -> Descriptors<'a> {
        self.iter()
    }
}

/// Walks a [`DescriptorList`]: ends at a length of 0, and at a descriptor that runs past the end.
#[derive(Clone, Debug)]
pub struct Descriptors<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Descriptors<'a> {
    type Item = NamespaceIdentifier<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.rest.split_at_checked(DESCRIPTOR_HEADER)?;
        let &[nidt, nidl, _, _] = header else {
            return None;
        };
        if nidl == 0 {
            return None;
        }
        let (nid, rest) = rest.split_at_checked(usize::from(nidl))?;
        self.rest = rest;
        Some(NamespaceIdentifier::decode(nidt, nid))
    }
}
