//! The server: sockets, threads, lent memory, and what is done when something goes wrong.
//!
//! | file | holds |
//! |---|---|
//! | `escalation` | the steps against commands that do not end, as a state machine |
//! | `mender` | the thread that takes them, away from the thread that polls |
//! | `events` | what it tells of its work |
//! | `backoff`, `rotation` | how the thread that polls rests, and whose turn it is, as state machines |
//! | `directory` | where the sockets are |
//! | `identity` | who a process is |
//! | `loans` | clients' memory, lent on to the real controllers |
//! | `poller` | the thread that polls |

mod backoff;
mod directory;
mod escalation;
mod events;
mod identity;
mod loans;
mod mender;
mod poller;
mod rotation;

pub use directory::DirectoryError;
pub use escalation::{Need, Step, Times};
pub use events::{Herald, MenderEvent};
pub use mender::{Mended, Mender, MenderThread, Repair};
