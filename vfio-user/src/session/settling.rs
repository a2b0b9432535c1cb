//! A reset under way: the reply to what began it waits until it is complete.

use crate::message::{Header, RegionAccess, Reply};

/// What began a reset.
#[derive(Debug, Clone, Copy)]
pub(super) enum Began {
    Reset,
    RegionWrite(RegionAccess),
    /// Several writes, of which so many were done.
    RegionWrites(u64),
}

/// A reply that is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settling {
    pub(super) header: Header,
    pub(super) began: Began,
}

impl Settling {
    /// What is replied in the end.
    pub(super) const fn reply(&self) -> Reply<'static> {
        match self.began {
            Began::Reset => Reply::DeviceReset,
            Began::RegionWrite(access) => Reply::RegionWrite(access),
            Began::RegionWrites(count) => Reply::RegionWriteMulti { count },
        }
    }
}
