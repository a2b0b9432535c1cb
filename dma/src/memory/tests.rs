//! What the kernel says of the memory: seals, pages, and what a forked child sees.
#![cfg(not(miri))] // all of it is the kernel's doing

use std::fs;

use nix::sys::stat::fstat;

use super::*;

/// The paragraph of /proc/self/smaps about the mapping that begins at `pointer`.
fn smaps(pointer: NonNull<u8>) -> String {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", pointer.addr());
    let begin = text
        .lines()
        .position(|line| line.starts_with(&start))
        .expect("no such mapping");
    let lines: Vec<_> = text.lines().skip(begin).collect();
    let end = lines
        .iter()
        .position(|line| line.starts_with("VmFlags:"))
        .unwrap();
    lines[..=end].join("\n")
}

fn kilobytes(smaps: &str, key: &str) -> usize {
    let line = smaps
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// As many hugepages as there can be: those that there are, free or not, and those that the system may add.
fn all_huge_pages() -> usize {
    let count = |file| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}");
        let text = fs::read_to_string(path).ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    count("nr_hugepages") + count("nr_overcommit_hugepages")
}

fn touch_all(memory: &Memory) {
    for offset in (0..memory.len()).step_by(4096) {
        // SAFETY: inside the memory, which this test alone uses.
        unsafe {
            assert_eq!(memory.pointer().add(offset).read(), 0);
            memory.pointer().add(offset).write(1);
        }
    }
}

#[test]
fn whole_zeroed_pages_present_from_the_start() {
    for length in [
        1,
        page_size() - 1,
        page_size(),
        page_size() + 1,
        37 * page_size(),
        HUGE_PAGE_SIZE,
        3 * HUGE_PAGE_SIZE + 1,
    ] {
        let memory = Memory::new(length, Pages::Small).unwrap();
        assert_eq!(memory.len(), length.next_multiple_of(page_size()));
        assert_eq!(memory.page_size(), page_size());
        let smaps = smaps(memory.pointer());
        assert_eq!(kilobytes(&smaps, "Size:") * 1024, memory.len(), "{smaps}");
        // A system that is short of memory may have swapped some of them out since.
        let present = kilobytes(&smaps, "Rss:") + kilobytes(&smaps, "Swap:");
        assert_eq!(present * 1024, memory.len(), "{smaps}");
        let alignment = (1 << memory.len().ilog2()).min(HUGE_PAGE_SIZE);
        assert!(
            memory.pointer().addr().get().is_multiple_of(alignment),
            "{memory:?}"
        );
        touch_all(&memory);
    }
}

#[test]
fn nobody_can_change_the_files_size_or_its_seals() {
    for pages in [Pages::Small, Pages::PreferHuge] {
        let memory = Memory::new(HUGE_PAGE_SIZE, pages).unwrap();
        let descriptor = memory.descriptor().unwrap();
        let length = memory.len() as libc::off_t;
        assert_eq!(
            ftruncate(descriptor, length - memory.page_size() as libc::off_t),
            Err(Errno::EPERM)
        );
        assert_eq!(
            ftruncate(descriptor, length + memory.page_size() as libc::off_t),
            Err(Errno::EPERM)
        );
        assert_eq!(
            fcntl(descriptor, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)),
            Err(Errno::EPERM)
        );
        assert_eq!(ftruncate(descriptor, length), Ok(()));
        let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

#[test]
fn a_forked_child_does_not_have_it() {
    let memory = Memory::new(1, Pages::Small).unwrap();
    let smaps = smaps(memory.pointer());
    let flags = smaps
        .lines()
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .unwrap();
    assert!(
        flags.split_whitespace().any(|flag| flag == "dc"),
        "no `dc` in {flags}"
    );
    // SAFETY: the child makes two calls that are safe in a child of a process with threads: one fault, or one exit.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            memory.pointer().read_volatile();
            libc::_exit(0);
        }
        assert!(child > 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV,
        "child ended with {status:#x}"
    );
}

#[test]
fn hugepages_when_there_are_any_and_else_small_ones() {
    // Other tests take hugepages too, so what came is compared with what it says, and scarcity is made by asking for more than there are.
    let some = Memory::new(HUGE_PAGE_SIZE + 1, Pages::PreferHuge).unwrap();
    assert_eq!(
        kilobytes(&smaps(some.pointer()), "KernelPageSize:") * 1024,
        some.page_size()
    );
    assert_eq!(
        some.len(),
        (HUGE_PAGE_SIZE + 1).next_multiple_of(some.page_size())
    );
    touch_all(&some);
    drop(some);

    // More than there can be, and not only than are free: others may give theirs back meanwhile.
    let too_many = (all_huge_pages() + 1) * HUGE_PAGE_SIZE;
    // Twice, since others take memory, too.
    if available_memory().is_some_and(|available| available / 2 > too_many as u64) {
        let scarce = Memory::new(too_many, Pages::PreferHuge).unwrap();
        assert_eq!(scarce.page_size(), page_size());
        touch_all(&scarce);
    }
    let little = Memory::new(page_size(), Pages::PreferHuge).unwrap();
    assert_eq!(
        (little.len(), little.page_size()),
        (page_size(), page_size())
    );
}

#[test]
fn too_much_is_an_error_and_kills_nobody() {
    assert!(matches!(
        Memory::new(0, Pages::Small),
        Err(DmaError::ZeroLength)
    ));
    for pages in [Pages::Small, Pages::PreferHuge] {
        assert!(matches!(
            Memory::new(usize::MAX, pages),
            Err(DmaError::TooLong { .. })
        ));
        assert!(matches!(
            Memory::new(isize::MAX as usize + 1, pages),
            Err(DmaError::TooLong { .. })
        ));
        match Memory::new(1 << 46, pages) {
            Err(DmaError::Memory { length, source, .. }) => {
                assert_eq!(length, 1 << 46);
                assert_eq!(source.raw_os_error(), Some(libc::ENOMEM));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn addresses_go_back_when_it_is_dropped() {
    let memory = Memory::new(5 * HUGE_PAGE_SIZE, Pages::Small).unwrap();
    let file = fstat(memory.descriptor().unwrap())
        .unwrap()
        .st_ino
        .to_string();
    // By its file: the memory of another test may be where this was.
    let mappings = || {
        let text = fs::read_to_string("/proc/self/maps").unwrap();
        text.lines()
            .filter(|line| {
                line.contains("nvme-vfio-dma") && line.split_whitespace().nth(4) == Some(&file)
            })
            .count()
    };
    assert_eq!(mappings(), 1);
    drop(memory);
    assert_eq!(mappings(), 0);
}
