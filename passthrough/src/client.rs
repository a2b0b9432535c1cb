//! Who asks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A client's place in its policy: its index among the policy's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u16);

/// Who a client's process is, as the kernel tells it; never what the client says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// User, as it was when the client connected.
    pub uid: u32,
    /// Group, as it was when the client connected.
    pub gid: u32,
    /// Process, as it was when the client connected.
    pub pid: i32,
    /// When the process started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`), which tells it from a later one with the same number. 0 where it could not be learned.
    pub start_time: u64,
}

/// A client, as a [`Policy`](crate::Policy) and the audit know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its place in the policy.
    pub id: ClientId,
    /// Its name in the policy.
    pub name: Arc<str>,
    /// Who holds the connection now.
    pub identity: Identity,
}

/// Who holds a client's connection at present: set by the thread that answers the connection, and looked at by the one that polls. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Holder(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    changes: AtomicU32,
    identity: Mutex<Identity>,
}

impl Holder {
    /// Somebody else holds it from now on.
    pub fn set(&self, identity: Identity) {
        *self
            .0
            .identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = identity;
        // Release: whoever sees the change sees who it is.
        self.0.changes.fetch_add(1, Ordering::Release);
    }

    /// Who holds it.
    #[must_use]
    pub fn get(&self) -> Identity {
        *self
            .0
            .identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Who holds it, where that has changed since `seen` was brought up to date here last; `seen` begins with 0. Costs one load where nothing has.
    #[inline]
    pub fn changed(&self, seen: &mut u32) -> Option<Identity> {
        let changes = self.0.changes.load(Ordering::Acquire);
        if changes == *seen {
            return None;
        }
        *seen = changes;
        Some(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let holder = Holder::default();
        let mut seen = 0;
        assert_eq!(holder.changed(&mut seen), None);
        let identity = Identity {
            uid: 7,
            ..Identity::default()
        };
        holder.clone().set(identity);
        assert_eq!(holder.changed(&mut seen), Some(identity));
        assert_eq!(holder.changed(&mut seen), None);
        assert_eq!(holder.get(), identity);
    }
}
