//! The audit: a record of every command, or a count of it where the policy samples.
//!
//! | module | holds |
//! |---|---|
//! | `client` | [`ClientAudit`]: what the thread that polls calls for each command; no lock, no allocation, no clock |
//! | `shared` | what a client's two ends share: rings, counts, budgets |
//! | `ring` | a bounded queue whose records are numbered before they are put in, so that what was dropped is known exactly |
//! | `record` | a command as it waits in a ring |
//! | `event` | [`Event`]: what happens to the server and its clients, told by the server |
//! | `text` | [`Text`]: bytes that somebody else chose, made safe to keep |
//! | `auditor` | [`Auditor`]: the file, the thread that writes it, and the clients' rings |
//! | `reader` | takes records out of one client's rings, in turn with all others |
//! | `open` | [`open`]: the file, this process's alone |
//! | `scribe` | lines on their way into the file |
//! | `line` | the JSON of a line |
//! | `words` | a command in words |
//!
//! The format of the file is described in `docs/audit.md`.

mod auditor;
mod client;
mod event;
mod line;
mod open;
mod reader;
mod record;
mod ring;
mod scribe;
mod shared;
mod text;
mod words;

#[cfg(test)]
pub(crate) mod tests;

pub use auditor::{Auditor, Totals};
pub use client::{ClientAudit, Started, Unended};
pub use event::{Event, ServerAudit};
pub use line::write_json;
pub use open::{AuditError, open};
pub use shared::{AuditOptions, Counts};
pub use text::Text;
