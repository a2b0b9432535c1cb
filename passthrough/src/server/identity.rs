//! Who a process is.

use crate::client::Identity;

/// When a process started, in clock ticks since boot: what tells it from a later one with the same number. `None` where it is not to be learned: it has
/// ended, or is hidden.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

/// Field 22 of proc_pid_stat(5). The second field is the command's name in parentheses, which may hold anything, parentheses too.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The rest begins with field 3.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// The identity behind a connection's credentials, as the kernel has told them.
pub(crate) fn of(uid: u32, gid: u32, pid: i32) -> Identity {
    Identity {
        uid,
        gid,
        pid,
        start_time: start_time(pid).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_that_stays() {
        let pid = std::process::id() as i32;
        let first = of(1, 2, pid);
        assert!(first.start_time > 0);
        assert_eq!(first, of(1, 2, pid));
    }

    #[test]
    fn a_name_cannot_feign_a_start() {
        let fields = |from: u32| {
            let fields: Vec<_> = (from..=52).map(|field| field.to_string()).collect();
            fields.join(" ")
        };
        let stat = format!(
            "7 (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 99 99) {}",
            fields(3)
        );
        assert_eq!(parse_start_time(&stat), Some(22));
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert_eq!(of(0, 0, i32::MAX).start_time, 0);
        for junk in [
            "",
            "1 (x",
            "1 (x) S 2",
            "1 (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 y",
        ] {
            assert_eq!(parse_start_time(junk), None, "{junk}");
        }
    }
}
