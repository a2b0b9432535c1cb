//! The server: sockets, threads, lent memory, and what is done when something goes wrong.
//!
//! | file | holds |
//! |---|---|
//! | `running` | [`Serving`]: the service from its beginning to its end |
//! | `options`, `error` | how a group is served, and why it cannot be |
//! | `group` | the controllers, opened and asked |
//! | `station` | a client's virtual controller, its socket, and the thread that answers it |
//! | `telling` | what the service tells the log and the audit of itself |
//! | `front` | what the front end of a client's virtual controller says of itself |
//! | `door` | who is let in |
//! | `directory` | where the sockets are |
//! | `descriptors` | how many of them each client may have the server keep open |
//! | `loans` | clients' memory, lent on to the real controllers |
//! | `poller` | the thread that gives all virtual controllers their turns |
//! | `backoff`, `rotation` | how it rests, and whose turn it is, as state machines |
//! | `mender` | the thread that deals with commands that do not end |
//! | `escalation` | the steps that it takes, as a state machine |
//! | `events` | what it tells of them |

mod backoff;
mod descriptors;
mod directory;
mod door;
mod error;
mod escalation;
mod events;
mod front;
mod group;
mod loans;
mod mender;
mod options;
mod poller;
mod rotation;
mod running;
mod station;
mod telling;
#[cfg(test)]
mod tests;

pub use directory::DirectoryError;
pub use error::ServeError;
pub use escalation::{Need, Step, Times};
pub use events::{Herald, MenderEvent};
pub use group::OpenedGroup;
pub use mender::{Mended, Mender, MenderThread, Repair};
pub use options::ServeOptions;
pub use running::{Ending, Prepared, Serving, Summary};
