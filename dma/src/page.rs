//! Sizes of pages, asked from the system.

use std::sync::OnceLock;

/// Bytes in a page of the system: 4 KiB on x86-64, up to 64 KiB on other machines.
#[must_use]
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let answer = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        // POSIX has every system answer this one; 4 KiB is what every page size of Linux is a multiple of.
        answer
            .ok()
            .flatten()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| size.is_power_of_two())
            .unwrap_or(4096)
    })
}

/// Bytes in the hugepages that this crate uses.
pub const HUGE_PAGE_SIZE: usize = 2 << 20;

/// Bytes of memory that the system can give without swapping, as it estimates; `None` where it does not tell.
pub(crate) fn available_memory() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_with_care() {
        assert_eq!(
            parse_available("MemTotal:  8 kB\nMemAvailable:       7 kB\n"),
            Some(7 * 1024)
        );
        for text in [
            "",
            "MemAvailable:",
            "MemAvailable: x kB",
            "MemAvailable: 7",
            "MemAvailable: 18446744073709551615 kB",
            "MemTotal: 7 kB",
        ] {
            assert_eq!(parse_available(text), None, "{text:?}");
        }
    }

    #[test]
    fn page_size_is_a_power_of_two() {
        assert!(page_size().is_power_of_two() && page_size() >= 4096);
    }
}
