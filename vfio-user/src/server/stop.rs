//! Ending a server from outside.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::device::Errno;

/// Makes [`Server::run`](crate::Server::run) return. Shared with whoever decides on that, for example a signal handler.
#[derive(Debug)]
pub struct Stop {
    set: AtomicBool,
    wake: EventFd,
}

impl Stop {
    /// Not set yet.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            set: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Stops whoever watches, for good. Async-signal-safe.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        // A counter that is full wakes as well.
        let _ = self.wake.write(1);
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }
}

/// Readable once it was set.
impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
