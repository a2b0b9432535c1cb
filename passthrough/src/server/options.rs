//! How a group is served.

use std::time::Duration;

use super::escalation::Times;

/// How a group is served, beside what the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// The thread that polls never sleeps while a client is connected.
    pub busy: bool,
    /// The processor that it stays on.
    pub cpu: Option<usize>,
    /// How long a command may take on a controller before it is aborted. 8 s by default: well before the drivers of usual systems, which wait for 30 s, reset their controller.
    pub io_timeout: Duration,
    /// How long an administrative command of the server's own may take: Abort, the making and deleting of queues. 5 s by default.
    pub admin_timeout: Duration,
    /// The same where a client may format or otherwise manage its controllers, which can take long: 5 minutes by default.
    pub operator_timeout: Duration,
    /// How long commands may hold memory that their client wants back, before they are aborted. 2 s by default.
    pub unmap_patience: Duration,
    /// How long each step against commands that do not end has.
    pub times: Times,
    /// How long the end of the service waits for clients' commands. 30 s by default.
    pub end_patience: Duration,
}

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        ServeOptions {
            busy: false,
            cpu: None,
            io_timeout: Duration::from_secs(8),
            admin_timeout: Duration::from_secs(5),
            operator_timeout: Duration::from_secs(300),
            unmap_patience: Duration::from_secs(2),
            times: Times::default(),
            end_patience: Duration::from_secs(30),
        }
    }
}
