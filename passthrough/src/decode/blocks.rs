//! Commands that name blocks by SLBA and NLB (NVM command set specification 1.0, 3.2).

use super::field::{Field, field};
use crate::command::{Access, Class, Direction, Persistence};
use crate::reason::Reason;

/// What such a command does with its blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub(super) class: Class,
    /// Which way their data goes; commands without data are held to the limit of blocks instead of that of bytes.
    pub(super) direction: Direction,
    pub(super) access: Access,
    pub(super) persistence: Persistence,
}

const SLBA: [Field; 2] = [field("SLBA", 10, 31, 0), field("SLBA", 11, 31, 0)];
const NLB: Field = field("NLB", 12, 15, 0);
const LIMITED_RETRY: Field = field("LR", 12, 31, 31);
const FORCE_UNIT_ACCESS: Field = field("FUA", 12, 30, 30);
const PROTECTION: Field = field("PRINFO", 12, 29, 26).refused(Reason::Protection);
const STORAGE_TAG_CHECK: Field = field("STC", 12, 24, 24).refused(Reason::Protection);
const DIRECTIVE_TYPE: Field = field("DTYPE", 12, 23, 20).refused(Reason::Directive);
const KEY_TYPE: Field = field("CETYPE", 12, 19, 16).refused(Reason::Directive);
const DIRECTIVE: Field = field("DSPEC", 13, 31, 16).refused(Reason::Directive);
const KEY: Field = field("CEV", 13, 15, 0).refused(Reason::Directive);
/// The high byte of CEV where the low one is DSM.
const KEY_HIGH: Field = field("CEV", 13, 15, 8).refused(Reason::Directive);
/// Dataset Management hints: how often and how the blocks will be used. They are a promise about blocks that nobody has to keep, so they are not passed on.
const HINTS: Field = field("DSM", 13, 7, 0).dropped();
const TAGS: [Field; 4] = [
    field("EILBRT", 2, 31, 0).refused(Reason::Protection),
    field("EILBRT", 3, 31, 0).refused(Reason::Protection),
    field("EILBRT", 14, 31, 0).refused(Reason::Protection),
    field("ELBATM, ELBAT", 15, 31, 0).refused(Reason::Protection),
];

/// Of Read.
pub(super) const READ: &[Field] = &[
    SLBA[0],
    SLBA[1],
    NLB,
    LIMITED_RETRY,
    FORCE_UNIT_ACCESS,
    PROTECTION,
    STORAGE_TAG_CHECK,
    KEY_TYPE,
    HINTS,
    KEY_HIGH,
    TAGS[0],
    TAGS[1],
    TAGS[2],
    TAGS[3],
];

/// Of Write.
pub(super) const WRITE: &[Field] = &[
    SLBA[0],
    SLBA[1],
    NLB,
    LIMITED_RETRY,
    FORCE_UNIT_ACCESS,
    PROTECTION,
    STORAGE_TAG_CHECK,
    DIRECTIVE_TYPE,
    KEY_TYPE,
    DIRECTIVE,
    HINTS,
    KEY_HIGH,
    TAGS[0],
    TAGS[1],
    TAGS[2],
    TAGS[3],
];

/// Of Compare and Verify.
pub(super) const PROBE: &[Field] = &[
    SLBA[0],
    SLBA[1],
    NLB,
    LIMITED_RETRY,
    FORCE_UNIT_ACCESS,
    PROTECTION,
    STORAGE_TAG_CHECK,
    KEY_TYPE,
    KEY,
    TAGS[0],
    TAGS[1],
    TAGS[2],
    TAGS[3],
];

/// Of Write Zeroes.
pub(super) const WRITE_ZEROES: &[Field] = &[
    SLBA[0],
    SLBA[1],
    NLB,
    LIMITED_RETRY,
    FORCE_UNIT_ACCESS,
    PROTECTION,
    field("DEAC", 12, 25, 25),
    STORAGE_TAG_CHECK,
    field("NSZ", 12, 23, 23).refused(Reason::WholeNamespace),
    field("DTYPE", 12, 22, 20).refused(Reason::Directive),
    KEY_TYPE,
    DIRECTIVE,
    KEY,
    TAGS[0],
    TAGS[1],
    TAGS[2],
    TAGS[3],
];

/// Of Write Uncorrectable.
pub(super) const POISON: &[Field] = &[SLBA[0], SLBA[1], NLB, DIRECTIVE_TYPE, DIRECTIVE];
