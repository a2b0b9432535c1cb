//! The fields of a submission queue entry that a decoder knows.

use crate::reason::{Reason, Refusal};

/// Words of a submission queue entry.
pub(super) const WORDS: usize = 16;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is decoded: each of its bits changes what the command means, or has it refused.
    Decoded,
    /// It says nothing of what the command can reach, and is not passed on.
    Dropped,
    /// The specification defines it, and no command that sets it passes.
    Refused(Reason),
}

/// Consecutive bits of one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Its abbreviation in the specification.
    pub(super) name: &'static str,
    /// Which word of the entry.
    pub(super) word: usize,
    /// Its bits.
    pub(super) mask: u32,
    /// What becomes of it.
    pub(super) fate: Fate,
}

/// A field of bits `high..=low` that is decoded.
pub(super) const fn field(name: &'static str, word: usize, high: u32, low: u32) -> Field {
    Field {
        name,
        word,
        mask: (u32::MAX >> (31 - high)) & (u32::MAX << low),
        fate: Fate::Decoded,
    }
}

impl Field {
    /// The field, known but without influence.
    pub(super) const fn dropped(self) -> Field {
        Field {
            fate: Fate::Dropped,
            ..self
        }
    }

    /// The field, refused where it is not 0.
    pub(super) const fn refused(self, reason: Reason) -> Field {
        Field {
            fate: Fate::Refused(reason),
            ..self
        }
    }
}

/// Command identifier: the server gives its own.
pub(super) const COMMAND_IDENTIFIER: Field = field("CID", 0, 31, 16).dropped();
/// The opcode, which chose the row.
pub(super) const OPCODE: Field = field("OPC", 0, 7, 0);
/// Fused operation.
pub(super) const FUSE: Field = field("FUSE", 0, 9, 8).refused(Reason::Fused);
/// PRP or SGL for data transfer.
pub(super) const PSDT: Field = field("PSDT", 0, 15, 14).refused(Reason::ScatterGatherList);
/// Namespace identifier.
pub(super) const NSID: Field = field("NSID", 1, 31, 0);

/// The metadata pointer, of namespaces that have no metadata.
pub(super) const METADATA_POINTER: [Field; 2] = [
    field("MPTR", 4, 31, 0).refused(Reason::Metadata),
    field("MPTR", 5, 31, 0).refused(Reason::Metadata),
];

/// The data pointer. Where it leads is for whoever holds the client's memory to check: the command's length says how far it may be followed.
pub(super) const DATA_POINTER: [Field; 4] = [
    field("PRP1", 6, 31, 0).dropped(),
    field("PRP1", 7, 31, 0).dropped(),
    field("PRP2", 8, 31, 0).dropped(),
    field("PRP2", 9, 31, 0).dropped(),
];

/// Fields that every entry has.
const COMMON: [Field; 4] = [OPCODE, COMMAND_IDENTIFIER, FUSE, PSDT];

/// A set of fields, and the bits of an entry that they let pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Those of its own.
    pub(super) fields: &'static [Field],
    /// Whether the command names a namespace.
    pub(super) names_namespace: bool,
    /// Whether it has a data pointer.
    pub(super) has_data: bool,
    /// Bits that may be set.
    pub(super) accepted: [u32; WORDS],
}

impl Layout {
    /// Of a command that names a namespace.
    pub(super) const fn of_namespace(has_data: bool, fields: &'static [Field]) -> Layout {
        Layout::new(true, has_data, fields)
    }

    /// Of a command that names none.
    pub(super) const fn of_controller(has_data: bool, fields: &'static [Field]) -> Layout {
        Layout::new(false, has_data, fields)
    }

    /// Of a command that is refused whatever it says.
    pub(super) const fn any() -> Layout {
        Layout {
            fields: &[],
            names_namespace: true,
            has_data: true,
            accepted: [u32::MAX; WORDS],
        }
    }

    const fn new(names_namespace: bool, has_data: bool, fields: &'static [Field]) -> Layout {
        let mut accepted = [0; WORDS];
        accept(&mut accepted, &COMMON);
        if names_namespace {
            accept(&mut accepted, &[NSID]);
        }
        if has_data {
            accept(&mut accepted, &DATA_POINTER);
        }
        accept(&mut accepted, fields);
        Layout {
            fields,
            names_namespace,
            has_data,
            accepted,
        }
    }

    /// Whether the entry has a bit set that may not be.
    #[inline]
    pub(super) fn forbids(&self, entry: &[u32; WORDS]) -> bool {
        let mut beyond = 0;
        for (word, accepted) in entry.iter().zip(&self.accepted) {
            beyond |= word & !accepted;
        }
        beyond != 0
    }

    /// All fields, those that every such entry has first.
    pub(super) fn all(&self) -> impl Iterator<Item = Field> {
        let data: &[Field] = if self.has_data { &DATA_POINTER } else { &[] };
        let namespace: &[Field] = if self.names_namespace { &[NSID] } else { &[] };
        let lists: [&[Field]; 5] = [&COMMON, namespace, self.fields, &METADATA_POINTER, data];
        lists.into_iter().flatten().copied()
    }

    /// Why an entry that [`forbids`](Self::forbids) says yes to is refused.
    #[cold]
    #[inline(never)]
    pub(super) fn objection(&self, entry: &[u32; WORDS]) -> Refusal {
        self.all()
            .find_map(|field| match field.fate {
                Fate::Refused(reason)
                    if entry
                        .get(field.word)
                        .is_some_and(|word| word & field.mask != 0) =>
                {
                    Some(reason)
                }
                _ => None,
            })
            .unwrap_or(Reason::ReservedBit)
            .refusal()
    }
}

/// Lets the bits of these fields pass. Two fields that share bits do not compile.
const fn accept(accepted: &mut [u32; WORDS], fields: &[Field]) {
    let mut index = 0;
    while index < fields.len() {
        let field = fields[index];
        if !matches!(field.fate, Fate::Refused(_)) {
            assert!(
                accepted[field.word] & field.mask == 0,
                "two fields share a bit"
            );
            accepted[field.word] |= field.mask;
        }
        index += 1;
    }
}
