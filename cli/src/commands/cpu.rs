//! Processors that a thread can be kept on.

use crate::error::Error;

/// Refuses a processor that this process may not run on.
///
/// # Errors
/// With the list of those that it may.
pub(super) fn check(cpu: usize) -> Result<(), Error> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if allowed.iter().any(|core| core.id == cpu) {
        return Ok(());
    }
    let list: Vec<_> = allowed.iter().map(|core| core.id.to_string()).collect();
    Err(Error::usage(
        format!("--cpu={cpu}: this process may not run there"),
        format!("Use one of: {}", list.join(", ")),
    ))
}
