//! Who this process is.

use nix::unistd::{getgid, getpid, getuid};

use crate::client::{Client, ClientId, Identity};

/// When this process started, in clock ticks since boot: field 22 of proc_pid_stat(5), whose second field is a name in parentheses that may hold anything.
fn start_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    // The rest begins with field 3.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Who holds the group: this process.
#[must_use]
pub fn owner() -> Client {
    Client {
        id: ClientId(0),
        name: "owner".into(),
        identity: Identity {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            pid: getpid().as_raw(),
            start_time: start_time().unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_this_process_and_began_before_now() {
        let identity = owner().identity;
        assert_eq!(identity.pid as u32, std::process::id());
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime
            .split_ascii_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        // A hundred ticks per second on every Linux.
        let ticks = (seconds * 100.0) as u64;
        assert!(identity.start_time > 0 && identity.start_time <= ticks + 100);
    }
}
