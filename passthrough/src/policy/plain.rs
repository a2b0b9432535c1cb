//! A policy as plain data.

use std::path::PathBuf;

use nvme_vfio::Address;

use super::document::Place;
use crate::command::ClassSet;
use crate::trust::Foreign;

/// Where the audit goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPolicy {
    /// The file, absolute or relative to the working directory of the process.
    pub path: PathBuf,
    /// Where the policy names it.
    pub place: Place,
    /// Bytes of memory for each client's records that are not yet written; a quarter as much again is for its refusals.
    pub ring: u64,
    /// Of allowed reads and writes one in so many is recorded, the rest counted; 1 for each of them, 0 for none.
    pub sample_allowed_io: u32,
}

/// What a missing class does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The command is refused.
    #[default]
    Enforce,
    /// A command that lacks nothing but its class, on blocks of the slice, passes and is recorded.
    Observe,
}

/// How data gets from the client's memory to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// The device reads and writes the client's memory itself.
    #[default]
    Shared,
    /// The device sees only the server's memory; the server copies.
    Bounce,
}

/// What a client may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// I/O queue pairs that the client can create.
    pub queues: u16,
    /// Entries of each of its I/O queues.
    pub depth: u16,
    /// Commands that it may have in flight altogether.
    pub outstanding: u16,
    /// Bytes of its memory that it may lend to the device.
    pub memory: u64,
    /// Regions that this memory may be in.
    pub mappings: u32,
    /// Commands per second; `None` for no ceiling.
    pub iops: Option<u32>,
    /// Bytes per second; `None` for no ceiling.
    pub bandwidth: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queues: 4,
            depth: 256,
            outstanding: 256,
            memory: 2 << 30,
            mappings: 64,
            iops: None,
            bandwidth: None,
        }
    }
}

/// Blocks of a real namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The real namespace.
    pub nsid: u32,
    /// First block.
    pub start: u64,
    /// How many blocks, at least 1; `None`: up to the end of the namespace.
    pub blocks: Option<u64>,
    /// Where it stands in the file.
    pub place: Place,
}

impl Source {
    /// Whether it is the namespace from its first block to its end, however long that is.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.start == 0 && self.blocks.is_none()
    }
}

/// A namespace that a client sees.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamespacePolicy {
    /// Its identifier, as the client sees it: 1 to [`MAX_NSID`](super::MAX_NSID).
    pub nsid: u32,
    /// Index of its controller in [`PolicyFile::controllers`](super::PolicyFile::controllers).
    pub controller: usize,
    /// Its blocks, joined in this order.
    pub source: Vec<Source>,
    /// What the client may do to it.
    pub allow: ClassSet,
    /// Whether its blocks may be in other clients' namespaces that say so too.
    pub shared: bool,
    /// Where it stands in the file.
    pub place: Place,
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientPolicy {
    /// Its name.
    pub name: String,
    /// The users who may connect.
    pub uid: Vec<u32>,
    /// What a missing class does.
    pub mode: Mode,
    /// How its data gets to the device.
    pub isolation: Isolation,
    /// Whether memory is taken that the client could truncate.
    pub unsealed_memory: bool,
    /// What it may use at most.
    pub limits: Limits,
    /// What it sees, in the order of the file.
    pub namespaces: Vec<NamespacePolicy>,
    /// Where it stands in the file.
    pub place: Place,
}

impl ClientPolicy {
    /// All classes that it was granted, on any namespace.
    #[must_use]
    pub fn classes(&self) -> ClassSet {
        self.namespaces
            .iter()
            .fold(ClassSet::empty(), |all, namespace| all | namespace.allow)
    }
}

/// A policy: one process, one group, its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyFile {
    /// The file, where the policy came from one.
    pub file: Option<PathBuf>,
    /// What others than root and this process's user may change: the file, or something on the way to it, as it was when the file was read.
    pub foreign: Option<Foreign>,
    /// The same of the directory of the sockets.
    pub foreign_directory: Option<Foreign>,
    /// SHA-256 of its text as it was read.
    pub sha256: [u8; 32],
    /// The controllers of the group, in the order of the file.
    pub controllers: Vec<Address>,
    /// Where the sockets are made.
    pub directory: PathBuf,
    /// Where the audit goes.
    pub audit: AuditPolicy,
    /// The clients; their index is their [`ClientId`](crate::ClientId).
    pub clients: Vec<ClientPolicy>,
}
