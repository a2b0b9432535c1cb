//! The operator's command that is under way, for those who wait for its end beside the client.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nvme_vfio_queues::Status;

use crate::audit::Unended;

/// An operator's command that is under way, if one is. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnderWay(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    one: Mutex<Option<One>>,
    lost: AtomicBool,
}

/// Told of by the thread that carries operators' commands out when it ends.
#[derive(Debug)]
pub(super) struct Watched(pub(super) UnderWay);

impl Drop for Watched {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody learns any more what came of the command.
            self.0.end(None);
            self.0.0.lost.store(true, Ordering::Release);
        }
    }
}

#[derive(Debug)]
struct One {
    name: &'static str,
    /// What the audit waits for; `None` where that is not for this command, or was given up.
    record: Option<Unended>,
}

impl UnderWay {
    /// A command begins.
    pub(super) fn begin(&self, name: &'static str, record: Option<Unended>) {
        *self.lock() = Some(One { name, record });
    }

    /// The command is over, with that status, or without one where the controller never said what it did.
    pub(super) fn end(&self, status: Option<Status>) {
        let record = self.lock().take().and_then(|one| one.record);
        if let (Some(record), Some(status)) = (record, status) {
            record.end(status);
        }
    }

    /// The name of the command in the specification.
    pub(crate) fn name(&self) -> Option<&'static str> {
        self.lock().as_ref().map(|one| one.name)
    }

    /// Whether the thread that carries operators' commands out has panicked: nothing of this client goes on then.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// Its end is waited for no longer: the record says that it is not known.
    pub(crate) fn give_up(&self) {
        let record = self.lock().as_mut().and_then(|one| one.record.take());
        drop(record);
    }

    fn lock(&self) -> MutexGuard<'_, Option<One>> {
        self.0.one.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
