//! What a real namespace must be to be lent.

use super::document::Place;
use super::error::{Fault, PolicyError};
use super::facts::{ControllerFacts, NamespaceFacts};
use super::plain::Source;
use crate::command::CommandSet;

/// What the controllers are does not fit the policy.
pub(super) fn device(place: Place, text: String) -> PolicyError {
    PolicyError::at(place, Fault::Device(text))
}

/// The real namespace behind a source, if it can be lent.
pub(super) fn usable<'a>(
    facts: &'a ControllerFacts,
    source: &Source,
    address: &str,
) -> Result<&'a NamespaceFacts, PolicyError> {
    let nsid = source.nsid;
    let refuse = |reason: String| {
        Err(device(
            source.place,
            format!("namespace {nsid} of {address} {reason}"),
        ))
    };
    let Some(real) = facts.namespace(nsid) else {
        let there: Vec<String> = facts
            .namespaces
            .iter()
            .map(|one| one.nsid.to_string())
            .collect();
        return refuse(match there.as_slice() {
            [] => "does not exist; the controller has no active namespace".to_owned(),
            _ => format!("does not exist; active are {}", there.join(", ")),
        });
    };
    if real.command_set != CommandSet::NVM {
        return refuse(format!(
            "has command set {}; only the NVM command set (0) can be lent",
            real.command_set.0
        ));
    }
    if !real.block_size.is_power_of_two() || !(512..=65_536).contains(&real.block_size) {
        return refuse("has an LBA format that cannot be used".to_owned());
    }
    if real.metadata != 0 || real.protection != 0 {
        return refuse(format!(
            "has {} bytes of metadata per block (protection type {}); only formats without metadata can be lent",
            real.metadata, real.protection
        ));
    }
    Ok(real)
}

/// How many blocks a source has, if they are there.
pub(super) fn inside(real: &NamespaceFacts, source: &Source) -> Result<u64, PolicyError> {
    let rest = real
        .blocks
        .checked_sub(source.start)
        .filter(|rest| *rest > 0);
    let fits = match (rest, source.blocks) {
        (Some(rest), None) => Some(rest),
        (Some(rest), Some(blocks)) if blocks <= rest => Some(blocks),
        _ => None,
    };
    fits.ok_or_else(|| {
        let end = match source.blocks {
            Some(blocks) => format!("{}", source.start.saturating_add(blocks).saturating_sub(1)),
            None => "the end".to_owned(),
        };
        device(
            source.place,
            format!(
                "the slice is blocks {} to {end} of namespace {}, which has {} blocks (0 to {})",
                source.start,
                source.nsid,
                real.blocks,
                real.blocks.saturating_sub(1)
            ),
        )
    })
}
