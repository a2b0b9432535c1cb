//! The hook that every command passes.

use std::fmt::Debug;

use crate::client::Client;
use crate::command::DecodedCommand;
use crate::reason::Refusal;

/// What a policy says of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It would have been refused, and passes because the client is only observed. Only a missing access class is ever let through so.
    Observe(Refusal),
    /// It is refused.
    Deny(Refusal),
}

/// Says which commands a client may issue.
///
/// A policy sees what a command means, never its raw words: all that it can reach is in the [`DecodedCommand`]. Commands that no decoder knows, that have a bit set which
/// the decoder does not know, or that carry addresses other than their data's never come here: they are refused before, for everybody.
///
/// It is called for every command of a client, on the thread that polls, and must neither block nor allocate.
pub trait Policy: Send + Sync + Debug {
    /// Judges one command of one client.
    fn authorize(&self, command: &DecodedCommand<'_>, client: &Client) -> Verdict;
}
