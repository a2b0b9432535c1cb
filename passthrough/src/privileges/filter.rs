//! What the kernel is told of the system calls.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::PrivilegesError;
use super::calls::{HOSTILE, NEEDED, OLDER, REMOVE, Rule};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn failed(error: impl std::fmt::Display) -> PrivilegesError {
    PrivilegesError::Filter(error.to_string())
}

/// Installs the filters for all threads; how many calls are left.
///
/// The kernel asks all filters and does what the strictest says.
pub(super) fn install(removes_files: bool) -> Result<usize, PrivilegesError> {
    let hostile = HOSTILE.iter().map(|call| (*call, Vec::new())).collect();
    let hostile = program(hostile, SeccompAction::Allow, SeccompAction::KillProcess)?;
    // clone3 takes its flags by pointer, which a filter cannot follow. As if it were an older kernel: then clone is used, whose flags it sees.
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = program(
        clone3,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    )?;
    let mut needed = allowed(removes_files)?;
    let calls = needed.len();
    // They are let through to the filters that deal with them.
    needed.insert(libc::SYS_clone3, Vec::new());
    for call in HOSTILE {
        needed.insert(*call, Vec::new());
    }
    let needed = program(
        needed,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
    )?;
    // The last one forbids installing another.
    for filter in [hostile, clone3, needed] {
        apply_filter_all_threads(&filter).map_err(failed)?;
    }
    Ok(calls)
}

/// The calls that a server needs.
fn allowed(removes_files: bool) -> Result<Rules, PrivilegesError> {
    let mut rules = Rules::new();
    let remove = if removes_files { REMOVE } else { &[] };
    for rule in NEEDED.iter().chain(OLDER).chain(remove) {
        match rule {
            Rule::Any(call) => {
                rules.insert(*call, Vec::new());
            }
            Rule::Bits {
                call,
                index,
                mask,
                values,
            } => {
                for value in *values {
                    let operator = SeccompCmpOp::MaskedEq(*mask);
                    let rule = rule_of(*index, operator, *value)?;
                    rules.entry(*call).or_default().push(rule);
                }
            }
        }
    }
    // A signal to itself: what abort(3) and a panic do.
    let itself = u64::from(std::process::id());
    let to_itself = rule_of(0, SeccompCmpOp::Eq, itself)?;
    rules.insert(libc::SYS_tgkill, vec![to_itself]);
    Ok(rules)
}

fn rule_of(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, PrivilegesError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    SeccompRule::new(vec![condition.map_err(failed)?]).map_err(failed)
}

fn program(
    rules: Rules,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, PrivilegesError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    let filter = SeccompFilter::new(rules, others, these, architecture).map_err(failed)?;
    BpfProgram::try_from(filter).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_needed_and_hostile() {
        let rules = allowed(true).unwrap();
        for call in HOSTILE {
            assert!(!rules.contains_key(call), "{call}");
        }
    }

    #[test]
    fn removing_is_allowed_only_where_it_was_asked_for() {
        let without = allowed(false).unwrap();
        let with = allowed(true).unwrap();
        assert!(!without.contains_key(&libc::SYS_unlinkat));
        assert!(with.contains_key(&libc::SYS_unlinkat));
    }
}
