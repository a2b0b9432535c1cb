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
