//! What may be chosen when a controller is opened or a queue is made.

use std::time::Duration;

/// The highest step that recovery may take when a command does not end in time. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RecoveryLimit {
    /// Only ask the controller to abort the command. A command that does not end stays in its slot, and its memory in quarantine.
    Abort,
    /// Also disable and enable the controller, which ends every command of every queue.
    Controller,
    /// Also reset the PCI function, where disabling the controller does not succeed.
    Function,
}

impl std::fmt::Display for RecoveryLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Abort => "commands may be aborted, the controller not reset",
            Self::Controller => "the controller may be reset, its function not",
            Self::Function => "nothing is left after a reset of the function",
        })
    }
}

/// How a controller is opened and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long an admin command may take. Default 30 s.
    pub admin_timeout: Duration,
    /// How long an I/O command may take before recovery begins. Default 30 s.
    pub io_timeout: Duration,
    /// How long a command that was to be aborted has to end after the Abort command was answered. Default 1 s.
    pub abort_grace: Duration,
    /// How long the controller may take to become ready or to stop. `None`, the default: what `CAP.TO` says, plus a second, and at least 2 s.
    pub ready_timeout: Option<Duration>,
    /// How long an orderly shutdown may take. Default 10 s.
    pub shutdown_timeout: Duration,
    /// The highest step of recovery. Default [`RecoveryLimit::Function`].
    pub recovery: RecoveryLimit,
    /// How many pairs of I/O queues to ask the controller for. Default 64; the controller may grant fewer.
    pub io_queues: u16,
    /// Whether memory may come from 2 MiB pages where there are any. Default yes.
    pub hugepages: bool,
    /// How much memory the pool may map, in bytes. `None`, the default: as much as the kernel allows.
    pub memory: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            admin_timeout: Duration::from_secs(30),
            io_timeout: Duration::from_secs(30),
            abort_grace: Duration::from_secs(1),
            ready_timeout: None,
            shutdown_timeout: Duration::from_secs(10),
            recovery: RecoveryLimit::Function,
            io_queues: 64,
            hugepages: true,
            memory: None,
        }
    }
}

/// How an I/O queue pair is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// How many commands may be in flight: 1 to 4095, brought down to what the controller offers. Default 128.
    pub depth: u32,
    /// How many submissions are gathered before their doorbell is rung without being asked to. It is rung anyway when
    /// [`poll`](crate::IoQueue::poll) finds nothing. Default 64, which `docs/performance.md` explains.
    pub doorbell_batch: u32,
    /// The largest transfer of one command in bytes, where the controller allows more. Larger I/O is split. Default, and
    /// the most, 512 memory pages of the controller (2 MiB).
    pub max_transfer: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            doorbell_batch: 64,
            max_transfer: u32::MAX,
        }
    }
}

impl QueueOptions {
    /// The default with another depth.
    #[must_use]
    pub fn with_depth(depth: u32) -> Self {
        Self {
            depth,
            ..Self::default()
        }
    }
}
