use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{ClientMemory, MemoryError, page_size};
use crate::device::DmaAccess;

const BOTH: DmaAccess = DmaAccess::READ.union(DmaAccess::WRITE);

fn memfd(pages: u64) -> File {
    let file = File::from(
        memfd_create("lent", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd"),
    );
    file.set_len(pages * page_size()).expect("a length");
    file
}

fn map(
    file: &File,
    offset: u64,
    length: u64,
    access: DmaAccess,
) -> Result<ClientMemory, MemoryError> {
    ClientMemory::map(
        file.try_clone().expect("a duplicate").into(),
        offset,
        length,
        access,
    )
}

fn errno(result: Result<ClientMemory, MemoryError>) -> Errno {
    result.expect_err("refused").errno()
}

#[test]
fn shares_the_bytes_at_the_offset() {
    let page = page_size();
    let file = memfd(3);
    file.write_all_at(&[7], page).expect("written");
    let memory = map(&file, page, 2 * page, BOTH).expect("mapped");
    assert_eq!(memory.len() as u64, 2 * page);
    assert!(memory.is_writable() && !memory.is_sealed() && !memory.is_lost());
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { memory.pointer().read_volatile() }, 7);
    // SAFETY: inside the mapping, which may be written.
    unsafe { memory.pointer().add(page as usize).write_volatile(9) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2 * page).expect("read");
    assert_eq!(byte, [9]);
}

#[test]
fn ends_with_its_last_handle() {
    let file = memfd(5);
    // The file, and not the address: one that is free may be another test's at once.
    let number = file.metadata().expect("its status").ino().to_string();
    let mapped = || {
        std::fs::read_to_string("/proc/self/maps")
            .expect("this process's mappings")
            .lines()
            .filter(|line| line.contains("lent"))
            .any(|line| line.split_ascii_whitespace().nth(4) == Some(&number))
    };
    let memory = map(&file, 0, 5 * page_size(), BOTH).expect("mapped");
    let other = memory.clone();
    drop(memory);
    assert!(mapped());
    drop(other);
    assert!(!mapped());
}

#[test]
fn refuses_ranges_that_the_file_does_not_have() {
    let page = page_size();
    let file = memfd(2);
    for (offset, length) in [
        (0, 0),
        (0, 3 * page),
        (page, 2 * page),
        (2 * page, page),
        (0, page + 1),
        (1, page),
        (page / 2, page),
        (0, u64::MAX),
        (0, 1 << 63),
        (u64::MAX - page + 1, page),
        (1 << 63, page),
        ((1 << 63) - page, page),
        (0, (1 << 63) - page),
    ] {
        assert_eq!(
            errno(map(&file, offset, length, BOTH)),
            Errno::EINVAL,
            "{offset:#x}, {length:#x}"
        );
    }
}

#[test]
fn refuses_what_is_not_a_file() {
    let page = page_size();
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, _peer) = UnixStream::pair().expect("sockets");
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("a device");
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .expect("a device");
    let eventfd = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    for descriptor in [
        OwnedFd::from(File::open(directory.path()).expect("open")),
        socket.into(),
        pipe.into(),
        null.into(),
        zero.into(),
        eventfd.into(),
    ] {
        assert_eq!(
            errno(ClientMemory::map(descriptor, 0, page, DmaAccess::READ)),
            Errno::ENODEV
        );
    }
}

#[test]
fn refuses_what_the_descriptor_was_not_opened_for() {
    let page = page_size();
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(&vec![1; page as usize]).expect("written");
    let read_only = File::open(file.path()).expect("open");
    assert_eq!(errno(map(&read_only, 0, page, BOTH)), Errno::EACCES);
    assert_eq!(
        errno(map(&read_only, 0, page, DmaAccess::WRITE)),
        Errno::EACCES
    );
    let memory = map(&read_only, 0, page, DmaAccess::READ).expect("mapped");
    assert!(!memory.is_writable());
    let write_only = File::options().write(true).open(file.path()).expect("open");
    assert_eq!(errno(map(&write_only, 0, page, BOTH)), Errno::EACCES);
    let path_only = {
        use std::os::unix::fs::OpenOptionsExt;
        File::options()
            .read(true)
            .custom_flags(nix::libc::O_PATH)
            .open(file.path())
            .expect("open")
    };
    assert!(map(&path_only, 0, page, DmaAccess::READ).is_err());
}

#[test]
fn knows_a_seal_against_shrinking() {
    let file = memfd(1);
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("sealed");
    assert!(
        !map(&file, 0, page_size(), BOTH)
            .expect("mapped")
            .is_sealed()
    );
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("sealed");
    assert!(
        map(&file, 0, page_size(), BOTH)
            .expect("mapped")
            .is_sealed()
    );
    // What may no longer be written may be read.
    let file = memfd(1);
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).expect("sealed");
    assert_eq!(errno(map(&file, 0, page_size(), BOTH)), Errno::EPERM);
    assert!(map(&file, 0, page_size(), DmaAccess::READ).is_ok());
}

#[test]
fn refuses_files_that_are_not_in_memory() {
    // Of the process file system: always there, never memory.
    let file = File::open("/proc/self/exe").expect("this program");
    let result = map(&file, 0, page_size(), DmaAccess::READ);
    // (A machine may keep its programs in memory.)
    let on_tmpfs = nix::sys::statfs::fstatfs(&file)
        .expect("its file system")
        .filesystem_type()
        == nix::sys::statfs::TMPFS_MAGIC;
    assert_eq!(result.is_ok(), on_tmpfs);
    let odd = File::open("/proc/self/maps").expect("open");
    assert_eq!(
        errno(map(&odd, 0, page_size(), DmaAccess::READ)),
        Errno::ENODEV
    );
}

#[test]
fn is_not_inherited_and_not_dumped() {
    let memory = map(&memfd(7), 0, 7 * page_size(), BOTH).expect("mapped");
    let start = format!("{:x}-", memory.pointer().as_ptr().addr());
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("this process's mappings");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let flags = lines
        .find(|line| line.starts_with("VmFlags:"))
        .expect("its flags");
    assert!(flags.contains(" dc") && flags.contains(" dd"), "{flags}");
}
