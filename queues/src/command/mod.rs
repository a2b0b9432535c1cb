//! Constructors of commands.
//!
//! Each is an associated function of [`Command`](crate::Command), leaves the command
//! identifier 0 (the queue sets it), and sets reserved bits to zero. Counts are in
//! ones and bytes here, zero-based on the wire.

mod admin;
mod nvm;

pub use admin::{Cns, GetLogPage, Identify, LogPageId, QueuePriority};
pub use nvm::{BlockCount, DsmAttributes, DsmRange};

/// The length of a queue in entries: 2..=65536 (Base Specification 2.0, 3.3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueSize(u16);

impl QueueSize {
    /// 2, the least a queue can have.
    pub const MIN: Self = Self(1);

    /// `None` unless 2..=65536.
    #[must_use]
    pub const fn new(entries: u32) -> Option<Self> {
        if entries < 2 || entries > 65_536 {
            return None;
        }
        Some(Self((entries - 1) as u16))
    }

    /// In entries, 2..=65536.
    #[must_use]
    pub const fn entries(self) -> u32 {
        self.0 as u32 + 1
    }

    /// As commands and registers have it: one less.
    #[must_use]
    pub const fn zero_based(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_sizes_are_bounded() {
        assert_eq!(QueueSize::new(0), None);
        assert_eq!(QueueSize::new(1), None);
        assert_eq!(QueueSize::new(2), Some(QueueSize::MIN));
        assert_eq!(
            QueueSize::new(65_536).map(QueueSize::zero_based),
            Some(0xffff)
        );
        assert_eq!(QueueSize::new(65_536).map(QueueSize::entries), Some(65_536));
        assert_eq!(QueueSize::new(65_537), None);
    }
}
