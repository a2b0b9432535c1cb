//! I/O commands of the NVM command set.

use super::blocks::{self, Blocks};
use super::field::Layout;
use super::table::{Row, Rule, Table, row, table};
use super::{lists, owner};
use crate::command::{Access, Class, Direction, Persistence};

/// Where vendors' opcodes begin.
const VENDOR: u8 = 0x80;

/// All opcodes of I/O queues.
pub(super) static TABLE: Table = table(ROWS, VENDOR);

const fn touching(
    class: Class,
    direction: Direction,
    access: Access,
    persistence: Persistence,
) -> Rule {
    Rule::Blocks(Blocks {
        class,
        direction,
        access,
        persistence,
    })
}

use Direction::{FromController, None, ToController};

/// Write, as it is in the table.
pub(super) const WRITE: Row = row!(
    0x01,
    "Write",
    Layout::of_namespace(true, blocks::WRITE),
    touching(
        Class::Write,
        ToController,
        Access::Write,
        Persistence::Media
    ),
    WRITE
);

/// Read, as it is in the table.
pub(super) const READ: Row = row!(
    0x02,
    "Read",
    Layout::of_namespace(true, blocks::READ),
    touching(Class::Read, FromController, Access::Read, Persistence::None),
    READ
);

pub(super) static ROWS: &[Row] = &[
    row!(
        0x00,
        "Flush",
        Layout::of_namespace(false, &[]),
        Rule::Decode(lists::flush),
        FLUSH
    ),
    WRITE,
    READ,
    row!(
        0x04,
        "Write Uncorrectable",
        Layout::of_namespace(false, blocks::POISON),
        touching(Class::Poison, None, Access::Poison, Persistence::Media),
        WRITE_UNCORRECTABLE
    ),
    row!(
        0x05,
        "Compare",
        Layout::of_namespace(true, blocks::PROBE),
        touching(
            Class::Compare,
            ToController,
            Access::Probe,
            Persistence::None
        ),
        COMPARE
    ),
    row!(
        0x08,
        "Write Zeroes",
        Layout::of_namespace(false, blocks::WRITE_ZEROES),
        touching(Class::WriteZeroes, None, Access::Zero, Persistence::Media),
        WRITE_ZEROES
    ),
    row!(
        0x09,
        "Dataset Management",
        Layout::of_namespace(true, lists::DATASET_MANAGEMENT_FIELDS),
        Rule::Decode(lists::dataset_management),
        DATASET_MANAGEMENT
    ),
    row!(
        0x0c,
        "Verify",
        Layout::of_namespace(false, blocks::PROBE),
        touching(Class::Verify, None, Access::Probe, Persistence::None),
        VERIFY
    ),
    row!(
        0x0d,
        "Reservation Register",
        Layout::of_namespace(true, owner::RESERVATION_REGISTER),
        Rule::Decode(owner::reservation_register),
        RESERVATION_REGISTER
    ),
    row!(
        0x0e,
        "Reservation Report",
        Layout::of_namespace(true, owner::RESERVATION_REPORT),
        Rule::Decode(owner::reservation_report),
        RESERVATION_REPORT
    ),
    row!(
        0x11,
        "Reservation Acquire",
        Layout::of_namespace(true, owner::RESERVATION_ACQUIRE),
        Rule::Decode(owner::reservation_acquire),
        RESERVATION_ACQUIRE
    ),
    row!(
        0x12,
        "I/O Management Receive",
        Layout::of_namespace(true, owner::IO_MANAGEMENT_RECEIVE),
        Rule::Decode(owner::io_management_receive),
        IO_MANAGEMENT_RECEIVE
    ),
    row!(
        0x15,
        "Reservation Release",
        Layout::of_namespace(true, owner::RESERVATION_RELEASE),
        Rule::Decode(owner::reservation_release),
        RESERVATION_RELEASE
    ),
    row!(0x18, "Cancel", Layout::any(), Rule::Never, NEVER),
    row!(
        0x19,
        "Copy",
        Layout::of_namespace(true, lists::COPY_FIELDS),
        Rule::Decode(lists::copy),
        COPY
    ),
    row!(
        0x1d,
        "I/O Management Send",
        Layout::of_namespace(true, owner::IO_MANAGEMENT_SEND),
        Rule::Decode(owner::io_management_send),
        IO_MANAGEMENT_SEND
    ),
    row!(0x7f, "Fabrics Commands", Layout::any(), Rule::Never, NEVER),
];
