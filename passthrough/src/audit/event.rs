//! What happens to the server and its clients.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::auditor::Inner;
use super::shared::Snapshot;
use super::text::Text;
use crate::client::{ClientId, Identity};

/// Something that happened to the server or a client's connection.
///
/// The server alone makes them; what a client had a say in (a cause) is a [`Text`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// The server began.
    ServerStarted {
        /// Its version.
        version: Text,
        /// Its process.
        pid: u32,
        /// Addresses of the controllers that it lends.
        controllers: Vec<Text>,
    },
    /// A policy is in force from now on.
    PolicyLoaded {
        /// Where it was read from.
        path: Text,
        /// SHA-256 of the file as it was read, in hexadecimal.
        sha256: Text,
    },
    /// The server gave up its privileges.
    PrivilegesDropped {
        /// What is left.
        summary: Text,
    },
    /// A slice was granted whose blocks may hold what an earlier tenant left.
    NotScrubbed {
        /// To whom.
        #[serde(skip)]
        client: ClientId,
        /// The namespace, as that client names it.
        nsid: u32,
    },
    /// A client connected.
    Connected {
        /// Which.
        #[serde(skip)]
        client: ClientId,
        /// Who, as the kernel says it.
        #[serde(flatten, serialize_with = "super::line::identity")]
        identity: Identity,
    },
    /// Somebody connected to a client's socket and was turned away.
    ConnectionRefused {
        /// Whose socket.
        #[serde(skip)]
        client: ClientId,
        /// Who, as the kernel says it.
        #[serde(flatten, serialize_with = "super::line::identity")]
        identity: Identity,
        /// Why.
        cause: Text,
    },
    /// A connection ended.
    Disconnected {
        /// Whose.
        #[serde(skip)]
        client: ClientId,
        /// Who, as the kernel said it.
        #[serde(flatten, serialize_with = "super::line::identity")]
        identity: Identity,
        /// Why.
        cause: Text,
    },
    /// Memory that a client offered was not taken.
    MemoryRefused {
        /// Whose.
        #[serde(skip)]
        client: ClientId,
        /// Who, as the kernel said it.
        #[serde(flatten, serialize_with = "super::line::identity")]
        identity: Identity,
        /// Where the client wanted it.
        address: u64,
        /// Bytes.
        bytes: u64,
        /// Why not.
        cause: Text,
    },
    /// A queue of a client was deleted on the controller, because a command did not end.
    QueueDeleted {
        /// Whose.
        #[serde(skip)]
        client: ClientId,
        /// The controller.
        controller: Text,
        /// Why.
        cause: Text,
    },
    /// A controller was reset, or will be at once. Commands of all its clients end with it.
    ControllerReset {
        /// The controller.
        controller: Text,
        /// Why.
        cause: Text,
    },
    /// A controller is usable again after a reset, or is not.
    ControllerRecovered {
        /// The controller.
        controller: Text,
        /// Whether it is usable.
        usable: bool,
        /// What was found.
        cause: Text,
    },
    /// The server ends.
    ServerStopping {
        /// Why.
        cause: Text,
    },
}

impl Event {
    /// The client whose socket or queue it is about.
    #[must_use]
    pub fn client(&self) -> Option<ClientId> {
        match self {
            Event::NotScrubbed { client, .. }
            | Event::Connected { client, .. }
            | Event::ConnectionRefused { client, .. }
            | Event::Disconnected { client, .. }
            | Event::MemoryRefused { client, .. }
            | Event::QueueDeleted { client, .. } => Some(*client),
            Event::ServerStarted { .. }
            | Event::PolicyLoaded { .. }
            | Event::PrivilegesDropped { .. }
            | Event::ControllerReset { .. }
            | Event::ControllerRecovered { .. }
            | Event::ServerStopping { .. } => None,
        }
    }
}

/// An event and its time.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) at: Instant,
    pub(super) event: Event,
    /// What was counted of the client until then, where it matters.
    pub(super) counted: Option<Box<Snapshot>>,
}

impl Happened {
    pub(super) fn now(event: Event) -> Happened {
        Happened {
            at: Instant::now(),
            event,
            counted: None,
        }
    }
}

/// Where the server's threads tell what happens. Not for the thread that polls: it takes a lock and may allocate.
#[derive(Debug, Clone)]
pub struct ServerAudit {
    pub(super) inner: Arc<Inner>,
}

impl ServerAudit {
    /// Records an event. What a client can cause goes to that client's ring, where it can displace only its own.
    pub fn record(&self, event: Event) {
        let shared = event.client().and_then(|client| self.inner.client(client));
        match shared {
            Some(shared) => shared.connection(event),
            None => self.inner.server_event(event),
        }
    }
}
