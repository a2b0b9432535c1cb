//! Who is let in at a client's socket, and what is told of it.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use nvme_vfio_user::device::Errno;
use nvme_vfio_user::{Doorkeeper, Peer, Refused, RefusedMap, SessionEnd};

use super::poller::Seat;
use crate::audit::{Event, ServerAudit, Text};
use crate::client::{ClientId, Holder, Identity};

/// Lets in the users that the policy names, by what the kernel says of them.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) client: ClientId,
    pub(super) users: Vec<u32>,
    pub(super) holder: Holder,
    pub(super) seat: Arc<Seat>,
    pub(super) audit: ServerAudit,
    /// The thread that polls, which may be asleep.
    pub(super) poller: Arc<OnceLock<Thread>>,
}

impl From<&Peer> for Identity {
    fn from(peer: &Peer) -> Identity {
        Identity {
            uid: peer.uid,
            gid: peer.gid,
            pid: peer.pid,
            start_time: peer.start_time.unwrap_or(0),
        }
    }
}

impl Doorkeeper for Door {
    fn admit(&self, peer: &Peer) -> Result<(), Errno> {
        if self.users.contains(&peer.uid) {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    fn connected(&self, peer: &Peer) {
        let identity = peer.into();
        self.holder.set(identity);
        self.seat.take(true);
        if let Some(poller) = self.poller.get() {
            poller.unpark();
        }
        self.audit.record(Event::Connected {
            client: self.client,
            identity,
        });
    }

    fn refused(&self, peer: &Peer, why: &Refused) {
        let cause = match why {
            Refused::NotAdmitted(_) => {
                format!("user {} is not among those of the policy", peer.uid)
            }
            other => other.to_string(),
        };
        // No more than that: whoever may not come in may not fill the log either. The audit bounds what it tells.
        tracing::debug!(
            uid = peer.uid,
            pid = peer.pid,
            cause,
            "a client was turned away"
        );
        self.audit.record(Event::ConnectionRefused {
            client: self.client,
            identity: peer.into(),
            cause: Text::from(cause.as_str()),
        });
    }

    fn memory_refused(&self, peer: &Peer, map: &RefusedMap) {
        #[cfg(test)]
        super::tests::panic_if_marked(map.length);
        self.audit.record(Event::MemoryRefused {
            client: self.client,
            identity: peer.into(),
            address: map.address,
            bytes: map.length,
            cause: Text::from(map.errno.to_string().as_str()),
        });
    }

    fn left(&self, peer: &Peer, why: &SessionEnd) {
        // Nothing is in flight any more: the session ends only then.
        self.seat.take(false);
        self.audit.record(Event::Disconnected {
            client: self.client,
            identity: peer.into(),
            cause: Text::from(why.to_string().as_str()),
        });
    }
}
