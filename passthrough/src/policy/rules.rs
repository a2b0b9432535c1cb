//! What the parts of a policy must not do to each other, as far as the file alone shows it.

use nvme_vfio::Address;

use super::error::{Fault, PolicyError};
use super::plain::PolicyFile;
use super::{classes, slices};
use crate::command::ClassSet;

/// Checks a policy as a whole.
pub(super) fn check(policy: &PolicyFile) -> Result<(), PolicyError> {
    operators(policy)?;
    overlaps(policy, |controller, nsid| {
        // Two controllers may turn out to show one medium; that is found when they have been asked.
        (controller << 32) | nsid as usize
    })
}

/// Classes that reach further than blocks: only for a client that is alone, whose namespaces are whole ones under their own numbers.
fn operators(policy: &PolicyFile) -> Result<(), PolicyError> {
    for client in &policy.clients {
        for namespace in &client.namespaces {
            let operator = namespace.allow.intersection(ClassSet::OPERATOR);
            let Some(class) = classes::words(operator).first().copied() else {
                continue;
            };
            let refuse = |reason: String| {
                Err(PolicyError::at(
                    namespace.place,
                    Fault::Operator { class, reason },
                ))
            };
            if let Some(other) = policy
                .clients
                .iter()
                .find(|other| other.name != client.name)
            {
                return refuse(format!(
                    "it goes only to a client that is alone, and there is \"{}\" too",
                    other.name
                ));
            }
            for part in &client.namespaces {
                let [source] = part.source.as_slice() else {
                    return refuse(format!(
                        "namespace {} at {} is put together from {} slices; its client may have only whole namespaces: source = [{{ nsid = N }}]",
                        part.nsid,
                        part.place,
                        part.source.len()
                    ));
                };
                if !source.is_whole() {
                    return refuse(format!(
                        "namespace {} at {} is a slice; its client may have only whole namespaces: source = [{{ nsid = {} }}], without start and blocks",
                        part.nsid, part.place, source.nsid
                    ));
                }
                if source.nsid != part.nsid || part.controller != namespace.controller {
                    return refuse(format!(
                        "namespace {} at {} shows the real namespace {}; such a client sees namespaces of one controller under their real numbers",
                        part.nsid, part.place, source.nsid
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Refuses slices that share blocks and may not.
pub(super) fn overlaps(
    policy: &PolicyFile,
    medium: impl FnMut(usize, u32) -> usize,
) -> Result<(), PolicyError> {
    let Some((one, other)) = slices::conflict(&slices::of(policy, medium)) else {
        return Ok(());
    };
    let (first, second) = if one.source.place <= other.source.place {
        (one, other)
    } else {
        (other, one)
    };
    let Some((start, end)) = one.common(&other) else {
        return Ok(());
    };
    let name = |client: usize| policy.clients.get(client).map_or("", |client| &client.name);
    let remedy = if one.client == other.client {
        "a client has a block once"
    } else {
        "move one of them, or say shared = true in both namespaces"
    };
    Err(PolicyError::at(
        second.source.place,
        Fault::Overlap {
            nsid: second.source.nsid,
            first: start,
            last: end - 1,
            other: first.source.place,
            owner: name(first.client).to_owned(),
            remedy,
        },
    ))
}

/// What tells one group from another: the lowest of its controllers' addresses.
///
/// A function belongs to one group, so two groups never have the same; and a function that is added behind it changes nothing.
pub(super) fn group_name(controllers: &[Address]) -> String {
    let lowest = controllers.iter().min_by_key(|address| match address {
        Address::Pci { function, .. } => (Some(*function), String::new()),
        other => (None, other.to_string()),
    });
    match lowest {
        // The way in which it is reached is not part of what it is.
        Some(Address::Pci { function, .. }) => function.to_string(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
