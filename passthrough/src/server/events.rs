//! What the thread that mends queues tells of its work.

use std::fmt;
use std::sync::Arc;

use crate::client::ClientId;

/// A step that was taken, or a controller that was reset by whomever. Controllers are named by their place in the server's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MenderEvent {
    /// Commands of a client that did not end are aborted.
    Aborting {
        /// Whose they are.
        client: ClientId,
        /// Where.
        controller: usize,
        /// How many.
        commands: usize,
    },
    /// A client's queue is deleted, since its commands did not end.
    DeletingQueue {
        /// Whose it is.
        client: ClientId,
        /// Where.
        controller: usize,
        /// Commands that end with it.
        commands: usize,
    },
    /// A controller is about to be reset, since nothing less has helped.
    Resetting {
        /// Whose commands have not ended; `None` where it has failed by itself.
        client: Option<ClientId>,
        /// Which.
        controller: usize,
    },
    /// A controller was reset, and is usable again: all commands that were in flight have ended.
    Reset {
        /// Which.
        controller: usize,
    },
    /// A controller does not answer any more and could not be brought back.
    Gone {
        /// Which.
        controller: usize,
    },
}

/// Whoever is told.
#[derive(Clone)]
pub struct Herald(Arc<dyn Fn(MenderEvent) + Send + Sync>);

impl Herald {
    /// Tells it to a function, which is called on the thread that mends.
    #[must_use]
    pub fn new(tell: impl Fn(MenderEvent) + Send + Sync + 'static) -> Herald {
        Herald(Arc::new(tell))
    }

    pub(crate) fn tell(&self, event: MenderEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for Herald {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Herald").finish_non_exhaustive()
    }
}
