//! What a controller's owner and its queues' owners share without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Raised to this value, the epoch says that the controller will not come back.
pub(crate) const GONE: u32 = u32::MAX;

/// How often something out of the ordinary has happened on a controller since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) timeouts: AtomicU64,
    pub(crate) aborts: AtomicU64,
    pub(crate) not_aborted: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) resets: AtomicU64,
}

/// How often something out of the ordinary has happened on a controller since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// Commands that did not end in time.
    pub timeouts: u64,
    /// Abort commands that were sent.
    pub aborts: u64,
    /// Abort commands that the controller answered with "not aborted", which is no error.
    pub not_aborted: u64,
    /// Commands that ended after they had been reported as timed out.
    pub late: u64,
    /// Completion entries whose identifier names no slot.
    pub unknown: u64,
    /// Completion entries whose command had ended before.
    pub stale: u64,
    /// Times that the controller was disabled and enabled again.
    pub resets: u64,
}

impl Counters {
    pub(crate) fn read(&self) -> Events {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Events {
            timeouts: read(&self.timeouts),
            aborts: read(&self.aborts),
            not_aborted: read(&self.not_aborted),
            late: read(&self.late),
            unknown: read(&self.unknown),
            stale: read(&self.stale),
            resets: read(&self.resets),
        }
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The epoch tells queues' owners that the controller was disabled since their queue was made. Only recovery and shutdown write
/// it, and only after the controller has let go of all memory (or, for [`GONE`], when it will not come back).
#[derive(Debug, Default)]
pub(crate) struct Shared {
    epoch: AtomicU32,
    pub(crate) counters: Counters,
}

impl Shared {
    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        // Acquire: pairs with the release in `raise`, so that whoever sees a new epoch also sees all that
        // the device wrote before it was disabled.
        self.epoch.load(Ordering::Acquire)
    }

    /// The next epoch: the controller was disabled and has let go of all memory.
    pub(crate) fn raise(&self) {
        // Whoever writes holds the admin lock, so there is one writer at a time. `GONE` is for good.
        let next = match self.epoch.load(Ordering::Relaxed) {
            GONE => GONE,
            epoch if epoch >= GONE - 2 => 0,
            epoch => epoch + 1,
        };
        self.epoch.store(next, Ordering::Release);
    }

    /// The last epoch: the controller will not come back.
    pub(crate) fn give_up(&self) {
        self.epoch.store(GONE, Ordering::Release);
    }
}
