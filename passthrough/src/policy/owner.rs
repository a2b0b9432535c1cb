//! The policy of a process that holds the group for itself.

use crate::client::Client;
use crate::command::{Class, DecodedCommand};
use crate::reason::Reason;
use crate::verdict::{Policy, Verdict};

/// Allows everything that has a decoder: for the process that holds the group itself and lends it to nobody.
///
/// What carries addresses of queues, doorbells or a host memory buffer has been refused before it comes here, for the owner too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerPolicy;

impl Policy for OwnerPolicy {
    #[inline]
    fn authorize(&self, command: &DecodedCommand<'_>, _client: &Client) -> Verdict {
        match command.class {
            // There is no virtual controller that could answer it.
            Class::Virtual => Verdict::Deny(Reason::NeverPasses.refusal()),
            _ => Verdict::Allow,
        }
    }
}
