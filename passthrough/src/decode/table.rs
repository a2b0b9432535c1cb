//! The table of all opcodes.

use super::blocks::Blocks;
use super::field::Layout;
use super::request::{Meaning, Request};
use crate::reason::Reason;

/// What is done with an opcode.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// Nobody defines it.
    Unknown,
    /// It never passes.
    Never,
    /// Answered from the virtual controller's own state; the owner, who has none, is refused.
    VirtualOnly,
    /// A vendor's: it passes for the owner alone, unread.
    Vendor,
    /// It names blocks by SLBA and NLB.
    Blocks(Blocks),
    /// It has a decoder of its own.
    Decode(fn(&mut Request<'_>) -> Result<Meaning, Reason>),
}

/// One opcode of one kind of queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// The opcode, or for vendors' and unknown ones the first of several.
    pub(super) opcode: u8,
    /// Its name in the specification.
    pub(super) name: &'static str,
    /// Its fields.
    pub(super) layout: Layout,
    /// What is done with it.
    pub(super) rule: Rule,
    /// What it must let pass, what that reaches, and what it must refuse. Without them no row compiles where tests do.
    #[cfg(test)]
    pub(super) cases: &'static super::cases::Cases,
}

/// Rows of one kind of queue, by opcode.
pub(super) type Table = [&'static Row; 256];

/// A row; the last word names its test cases in `cases`.
macro_rules! row {
    ($opcode:literal, $name:literal, $layout:expr, $rule:expr, $cases:ident) => {
        crate::decode::table::Row {
            opcode: $opcode,
            name: $name,
            layout: $layout,
            rule: $rule,
            #[cfg(test)]
            cases: &crate::decode::cases::$cases,
        }
    };
}
pub(super) use row;

/// What has no row of its own.
static UNKNOWN: Row = row!(0x00, "Unknown", Layout::any(), Rule::Unknown, UNKNOWN);

/// Vendors' opcodes.
static VENDOR: Row = row!(
    0x00,
    "Vendor Specific",
    super::owner::VENDOR_LAYOUT,
    Rule::Vendor,
    VENDOR
);

/// Puts rows where their opcodes say; from `vendor` on they are vendors'. Two rows for one opcode do not compile.
pub(super) const fn table(rows: &'static [Row], vendor: u8) -> Table {
    let mut table: Table = [&UNKNOWN; 256];
    let mut opcode = vendor as usize;
    while opcode < table.len() {
        table[opcode] = &VENDOR;
        opcode += 1;
    }
    let mut index = 0;
    while index < rows.len() {
        let row = &rows[index];
        assert!(row.opcode < vendor, "vendors' opcodes have no rows");
        assert!(
            index == 0 || rows[index - 1].opcode < row.opcode,
            "rows ascend by opcode"
        );
        table[row.opcode as usize] = row;
        index += 1;
    }
    table
}
