//! Who asks.

use std::sync::Arc;

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
