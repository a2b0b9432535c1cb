//! What happens to a server when a client truncates the file behind its memory. Each case runs in a process of its own.
#![allow(unsafe_code)] // touches the memory that faults

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_user::device::DmaAccess;
use nvme_vfio_user::{ClientMemory, sigbus};

const CASE: &str = "NVME_VFIO_USER_SIGBUS_CASE";
const SURVIVED: i32 = 42;
const PASSED_ON: i32 = 43;
const PAGES: u64 = 4;

/// Runs this very test in a process of its own, as `case`.
fn run(case: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this test's program"))
        .args([
            "--exact",
            "a_truncated_file_costs_its_memory_alone",
            "--nocapture",
        ])
        .env(CASE, case)
        .status()
        .expect("it runs")
}

#[test]
fn a_truncated_file_costs_its_memory_alone() {
    if let Ok(case) = std::env::var(CASE) {
        child(&case);
    }
    assert_eq!(run("guarded").code(), Some(SURVIVED));
    assert_eq!(run("threads").code(), Some(SURVIVED));
    assert_eq!(run("unguarded").signal(), Some(libc::SIGBUS));
    assert_eq!(run("foreign").signal(), Some(libc::SIGBUS));
    assert_eq!(run("after the memory's end").signal(), Some(libc::SIGBUS));
    assert_eq!(run("chained").code(), Some(PASSED_ON));
    assert_eq!(run("sent").signal(), Some(libc::SIGBUS));
}

fn memfd() -> File {
    let file = File::from(memfd_create("lent", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(PAGES * page()).expect("a length");
    file
}

fn page() -> u64 {
    // SAFETY: a question without arguments in memory.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned()
}

fn lend(file: &File) -> ClientMemory {
    let descriptor = file.try_clone().expect("a duplicate").into();
    let memory = ClientMemory::map(
        descriptor,
        0,
        PAGES * page(),
        DmaAccess::READ | DmaAccess::WRITE,
    )
    .expect("mapped");
    for number in 0..PAGES {
        write(&memory, number, 0x5a);
    }
    memory
}

fn read(memory: &ClientMemory, number: u64) -> u8 {
    // SAFETY: inside the mapping, which nobody refers to.
    unsafe {
        memory
            .pointer()
            .add((number * page()) as usize)
            .read_volatile()
    }
}

fn write(memory: &ClientMemory, number: u64, value: u8) {
    // SAFETY: inside the mapping, which nobody refers to.
    unsafe {
        memory
            .pointer()
            .add((number * page()) as usize)
            .write_volatile(value)
    };
}

fn child(case: &str) -> ! {
    // No core files of the cases that are to die.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .expect("a limit");
    match case {
        "guarded" => guarded(),
        "threads" => threads(),
        "unguarded" => {
            let file = memfd();
            let memory = lend(&file);
            file.set_len(0).expect("truncated");
            std::process::exit(read(&memory, 0).into());
        }
        "foreign" => {
            sigbus::install().expect("installed");
            fault_elsewhere();
        }
        "after the memory's end" => {
            sigbus::install().expect("installed");
            // The registry must forget the address: a foreign mapping may take it.
            let file = memfd();
            let memory = lend(&file);
            let address = memory.pointer();
            drop(memory);
            fault_at(address.as_ptr().cast());
        }
        "chained" => {
            extern "C" fn previous(
                _: libc::c_int,
                info: *mut libc::siginfo_t,
                _: *mut libc::c_void,
            ) {
                // SAFETY: given by the kernel; leaving the process at once is allowed in a handler.
                unsafe {
                    libc::_exit(if (*info).si_addr().is_null() {
                        1
                    } else {
                        PASSED_ON
                    })
                }
            }
            let handler = nix::sys::signal::SigAction::new(
                nix::sys::signal::SigHandler::SigAction(previous),
                nix::sys::signal::SaFlags::SA_SIGINFO,
                nix::sys::signal::SigSet::empty(),
            );
            // SAFETY: the handler only leaves.
            unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGBUS, &handler) }
                .expect("set");
            sigbus::install().expect("installed");
            // First one of its own, which must not get there.
            let file = memfd();
            let memory = lend(&file);
            file.set_len(0).expect("truncated");
            assert_eq!(read(&memory, 1), 0);
            fault_elsewhere();
        }
        "sent" => {
            // The standard library's handler takes every SIGBUS for a fault that comes again; the default does not.
            let default = nix::sys::signal::SigAction::new(
                nix::sys::signal::SigHandler::SigDfl,
                nix::sys::signal::SaFlags::empty(),
                nix::sys::signal::SigSet::empty(),
            );
            // SAFETY: the default action is always valid.
            unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGBUS, &default) }
                .expect("set");
            sigbus::install().expect("installed");
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).expect("raised");
            std::process::exit(0);
        }
        other => panic!("no case {other}"),
    }
}

fn guarded() -> ! {
    sigbus::install().expect("installed");
    sigbus::install().expect("a second time does no harm");
    let (file, other) = (memfd(), memfd());
    let memories = [lend(&file), lend(&other)];
    let gone = lend(&memfd());
    drop(gone);
    file.set_len(page()).expect("truncated");
    let lost = memories[0].clone();
    assert!(!lost.is_lost());
    // The page that is left can be read until the fault.
    assert_eq!(read(&lost, 0), 0x5a);
    assert!(!lost.is_lost());
    nix::errno::Errno::ENOTTY.set();
    write(&lost, 2, 1);
    assert_eq!(nix::errno::Errno::last(), nix::errno::Errno::ENOTTY);
    assert!(lost.is_lost() && memories[0].is_lost());
    assert_eq!((read(&lost, 0), read(&lost, 1), read(&lost, 2)), (0, 0, 1));
    assert!(!memories[1].is_lost());
    assert_eq!(read(&memories[1], 3), 0x5a);
    // A memory in the place of one that was lost is not lost.
    drop((lost, memories));
    let fresh = lend(&memfd());
    assert!(!fresh.is_lost() && read(&fresh, 3) == 0x5a);
    std::process::exit(SURVIVED);
}

/// Faults while other memories come and go.
fn threads() -> ! {
    sigbus::install().expect("installed");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let file = memfd();
                    let memory = lend(&file);
                    file.set_len(0).expect("truncated");
                    assert_eq!(read(&memory, 3), 0);
                    assert!(memory.is_lost());
                    let whole = lend(&memfd());
                    assert!(read(&whole, 3) == 0x5a && !whole.is_lost());
                }
            });
        }
    });
    std::process::exit(SURVIVED);
}

/// A truncated file of this process's own, which is nobody's memory.
fn fault_elsewhere() -> ! {
    fault_at(std::ptr::null_mut());
}

fn fault_at(address: *mut libc::c_void) -> ! {
    use std::os::fd::AsRawFd;
    let file = memfd();
    let flags = if address.is_null() {
        libc::MAP_SHARED
    } else {
        libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE
    };
    // SAFETY: a new mapping that takes nobody's place.
    let start = unsafe {
        libc::mmap(
            address,
            page() as usize,
            libc::PROT_READ,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    file.set_len(0).expect("truncated");
    // SAFETY: mapped just now; it faults.
    std::process::exit(unsafe { start.cast::<u8>().read_volatile() }.into());
}
