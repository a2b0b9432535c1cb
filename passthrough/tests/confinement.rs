//! What a client cannot do, whatever it sends: every opcode on the admin queue and on an I/O queue, with many bodies each.
//!
//! The clients are lent parts of an emulated controller, whose trace and medium are judged by code of these tests alone (`common/judge.rs`). What an honest client does must
//! succeed all along.

mod common;
#[path = "confinement/entries.rs"]
mod entries;
#[path = "confinement/siege.rs"]
mod siege;
#[path = "confinement/statuses.rs"]
mod statuses;
#[path = "confinement/storm.rs"]
mod storm;

use common::whole;
use siege::{Held, Siege};

/// Bodies for each opcode of each kind of queue; a hundredth of them in an ordinary run.
fn bodies_each() -> u64 {
    whole("NVME_VFIO_SOAK", 10_000)
}

#[test]
fn nothing_outside_of_the_slice() {
    Siege::new(Held::Shared, "confinement").run(bodies_each());
}

/// The same where the device does not reach the clients' memory. Less of it, since only the way of the data differs.
#[test]
fn nothing_outside_of_the_slice_by_copies() {
    Siege::new(Held::Bounce, "confinement by copies").run(bodies_each().div_ceil(5));
}

/// To be observed instead of held back means to be let through inside of the slice, and nowhere else.
#[test]
fn nothing_outside_of_the_slice_while_only_observed() {
    Siege::new(Held::Observed, "confinement while observed").run(bodies_each().div_ceil(5));
}

/// Resets, registers without sense and configuration space in the middle of everything.
#[test]
fn nothing_outside_of_the_slice_in_a_storm_of_resets() {
    storm::storm(whole("NVME_VFIO_SOAK", 1_000_000));
}

/// Whatever is asked of a namespace that others have, the answer is the one for a namespace that nobody has.
#[test]
fn what_is_not_granted_cannot_be_told_from_what_is_not() {
    Siege::new(Held::Shared, "ungranted").hides([7, 77], bodies_each().div_ceil(10));
}
