//! What the kernel says of each thread.

use std::fs;
use std::io;

use super::PrivilegesError;

/// Looks at every thread of the process: all have one user and group that are not root's, no capability, and can get none. How many threads there are, the user, and the group.
pub(super) fn check() -> Result<(usize, u32, u32), PrivilegesError> {
    let failed = |source| PrivilegesError::Step {
        step: "looking at the process's threads",
        source,
    };
    let mut threads = 0;
    let mut first = None;
    for entry in fs::read_dir("/proc/self/task").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let thread = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        let status = match fs::read_to_string(entry.path().join("status")) {
            Ok(status) => status,
            // It ended meanwhile.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(failed(error)),
        };
        let ids = check_status(&status).map_err(|what| PrivilegesError::Kept { thread, what })?;
        if *first.get_or_insert(ids) != ids {
            let what = format!("user {} and group {}", ids.0, ids.1);
            return Err(PrivilegesError::Kept { thread, what });
        }
        threads += 1;
    }
    let (uid, gid) = first.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Ok((threads, uid, gid))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Judges one thread by its `/proc/<pid>/task/<tid>/status`; its user and group, or what it has too much.
fn check_status(status: &str) -> Result<(u32, u32), String> {
    let field = |name: &str| {
        let mut lines = status.lines();
        let text = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        text.map(str::trim)
            .ok_or_else(|| format!("no line {name} in its status"))
    };
    // Real, effective, saved, file system.
    let same = |name: &str| {
        let text = field(name)?;
        let mut ids = text.split_whitespace().map(str::parse::<u32>);
        match (ids.next(), ids.next(), ids.next(), ids.next()) {
            (Some(Ok(id)), Some(Ok(b)), Some(Ok(c)), Some(Ok(d)))
                if [b, c, d] == [id; 3] && id != 0 =>
            {
                Ok(id)
            }
            _ => Err(format!("{name} {text}")),
        }
    };
    let (uid, gid) = (same("Uid")?, same("Gid")?);
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let text = field(name)?;
        if u64::from_str_radix(text, 16) != Ok(0) {
            return Err(format!("{name} {text}"));
        }
    }
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tx\nUid:\t65534\t65534\t65534\t65534\nGid:\t7\t7\t7\t7\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
                        CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";

    #[test]
    fn a_thread_without_rights_passes() {
        assert_eq!(check_status(GOOD), Ok((65534, 7)));
    }

    #[test]
    fn whatever_a_thread_kept_is_found() {
        for (good, bad) in [
            ("Uid:\t65534\t65534\t65534\t65534", "Uid:\t0\t0\t0\t0"),
            (
                "Uid:\t65534\t65534\t65534\t65534",
                "Uid:\t65534\t65534\t0\t65534",
            ),
            ("Gid:\t7\t7\t7\t7", "Gid:\t7\t0\t7\t7"),
            ("Gid:\t7\t7\t7\t7", "Gid:\t7\t7"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000004000"),
            ("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000000001"),
            ("CapAmb:\t0000000000000000", "CapAmb:\tx"),
            ("CapAmb:\t0000000000000000", ""),
        ] {
            let status = GOOD.replace(good, bad);
            assert_ne!(status, GOOD);
            assert!(check_status(&status).is_err(), "{bad}");
        }
    }
}
