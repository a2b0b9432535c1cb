//! [`Memlock`]: how much memory this process may have pinned.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::Sysfs;
use crate::sysfs::read_text;

/// The limit on locked memory, which memory mapped for a device counts against, and what counts already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// `RLIMIT_MEMLOCK` in bytes, the soft limit; `None` when it is unlimited.
    pub soft: Option<u64>,
    /// The hard limit in bytes, up to which the process may raise its soft limit.
    pub hard: Option<u64>,
    /// Bytes locked or mapped for devices now (`VmLck` of `/proc/self/status`).
    pub locked: u64,
    /// Whether the process has `CAP_IPC_LOCK`, which exempts it from the limit.
    pub exempt: bool,
}

/// `CAP_IPC_LOCK` in the capability bitmaps.
const CAP_IPC_LOCK: u32 = 14;

impl Memlock {
    /// Reads it for this process. What cannot be read counts as no limit, nothing locked, not exempt.
    #[must_use]
    pub fn of_this_process() -> Self {
        let (soft, hard) =
            getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((RLIM_INFINITY, RLIM_INFINITY));
        let bounded = |limit| (limit != RLIM_INFINITY).then_some(limit);
        let status = read_text(&Sysfs::system().path("proc/self/status")).unwrap_or_default();
        let (locked, exempt) = parse_status(&status);
        Self {
            soft: bounded(soft),
            hard: bounded(hard),
            locked,
            exempt,
        }
    }

    /// Whether mapping `length` more bytes goes past the limit: (bytes needed in all, limit).
    #[must_use]
    pub fn exceeded_by(&self, length: u64) -> Option<(u64, u64)> {
        let needed = self.locked.saturating_add(length);
        let limit = self.soft?;
        (needed > limit).then_some((needed, limit))
    }
}

/// `VmLck` in bytes and whether `CapEff` has `CAP_IPC_LOCK`.
fn parse_status(status: &str) -> (u64, bool) {
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().next()
    };
    let locked = value("VmLck:").and_then(|text| text.parse::<u64>().ok());
    let capabilities = value("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    (
        locked.unwrap_or(0).saturating_mul(1024),
        capabilities.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status() {
        let status =
            "Name:\tx\nVmLck:\t      64 kB\nCapInh:\t0000000000000000\nCapEff:\t0000000000004000\n";
        assert_eq!(parse_status(status), (65536, true));
        assert_eq!(parse_status("CapEff:\t0000000000003fff"), (0, false));
        assert_eq!(parse_status("VmLck: x\nCapEff: -"), (0, false));
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        let mut memlock = Memlock {
            soft: Some(100),
            hard: None,
            locked: 40,
            exempt: false,
        };
        assert_eq!(memlock.exceeded_by(60), None);
        assert_eq!(memlock.exceeded_by(61), Some((101, 100)));
        assert_eq!(memlock.exceeded_by(u64::MAX), Some((u64::MAX, 100)));
        memlock.soft = None;
        assert_eq!(memlock.exceeded_by(u64::MAX), None);
    }
}
