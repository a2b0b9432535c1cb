//! Each promise is put to the test in a child process, which gives up its privileges and then tries.
#![allow(unsafe_code)] // What is tried has no safe form.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio, exit};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid, geteuid};

use super::*;

/// What a child is to do.
const SCENARIO: &str = "NVME_VFIO_TEST_PRIVILEGES";
/// A folder that everybody may write to, for what needs one.
const FOLDER: &str = "NVME_VFIO_TEST_FOLDER";
/// Nobody's number, on every system.
const NOBODY: u32 = 65_534;

fn keep(removes_files: bool) -> Privileges {
    Privileges {
        account: Account::new(NOBODY, NOBODY).unwrap(),
        locked_memory: Some(1 << 20),
        removes_files,
    }
}

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).unwrap())
}

/// Runs this test again in a child process, which does `scenario`.
fn command(scenario: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "privileges::tests::promises_are_kept",
            "--exact",
            "--nocapture",
        ])
        .env(SCENARIO, scenario)
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn run(scenario: &str, folder: &Path) -> ExitStatus {
    let child = command(scenario, folder).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    // Shown where the test fails.
    eprintln!("{scenario}: {}", String::from_utf8_lossy(&output.stderr));
    output.status
}

/// A child that waits until it is ended, with something said first.
fn waiting(scenario: &str, folder: &Path) -> Child {
    let mut child = command(scenario, folder).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.as_mut().unwrap());
    assert!(
        stdout
            .lines()
            .any(|line| line.unwrap().ends_with("waiting")),
        "{scenario} failed"
    );
    child
}

/// What a child does. It ends by itself, with 0 where everything was as promised.
fn play(scenario: &str) -> ! {
    match scenario {
        "state" => state(),
        "files" => files(),
        "remove" => remove(),
        "work" => work(),
        "programs" => programs(),
        "calls" => calls(),
        "wait" => {
            give_up(&keep(false)).unwrap();
            wait()
        }
        "wait-open" => {
            become_nobody();
            prctl::set_dumpable(true).unwrap();
            // There are kernels on which nobody but a parent may trace, unless he is let (Yama). Others do not know the call.
            // SAFETY: no memory is touched.
            unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
            wait()
        }
        _ => match scenario.split_once(':') {
            Some(("attach", pid)) => attach(pid.parse().unwrap()),
            Some(("hostile", call)) => hostile(call.parse().unwrap()),
            Some(("unfiltered", "root")) => unfiltered(),
            _ => panic!("{scenario}"),
        },
    }
    exit(0)
}

fn wait() -> ! {
    println!("waiting");
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// Only the user, without anything else.
fn become_nobody() {
    if geteuid().is_root() {
        setgroups(&[]).unwrap();
        let (uid, gid) = keep(false).account.ids().unwrap();
        setresgid(gid, gid, gid).unwrap();
        setresuid(uid, uid, uid).unwrap();
    }
}

/// Every thread is somebody without rights, those made before as well as those made after.
fn state() {
    let root = geteuid().is_root();
    if root {
        let some = [7, 8].map(nix::unistd::Gid::from_raw);
        setgroups(&some).unwrap();
    }
    let waiting = || {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        (stop, thread::spawn(move || stopped.recv()))
    };
    let (stop_before, before) = waiting();
    let given_up = give_up(&keep(false)).unwrap();
    let (stop_after, after) = waiting();
    if root {
        assert_eq!((given_up.uid, given_up.gid), (NOBODY, NOBODY));
    }
    assert_ne!(given_up.uid, 0);
    let mut threads = 0;
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let status = fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        for line in [
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
        ] {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        assert!(!status.contains("\nUid:\t0"));
        if root {
            let groups = status.lines().find(|line| line.starts_with("Groups:"));
            assert_eq!(groups.unwrap().trim_end(), "Groups:");
        }
        threads += 1;
    }
    // The main thread, the one of this test, and two more.
    assert!(threads >= 4, "{threads}");
    assert!(given_up.threads >= 3);
    assert!(!prctl::get_dumpable().unwrap());
    let core = getrlimit(Resource::RLIMIT_CORE).unwrap();
    assert_eq!(core, (0, 0));
    assert!(getrlimit(Resource::RLIMIT_MEMLOCK).unwrap().0 >= 1 << 16);
    drop((stop_before, stop_after));
    for thread in [before, after] {
        let _ = thread.join().unwrap();
    }
}

/// The system's answer to a call that must fail.
fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Nothing can be created, changed or removed, not even where everybody may.
fn files() {
    let folder = folder();
    let there = folder.join("there");
    let mut open = File::options().append(true).open(&there).unwrap();
    let root = geteuid().is_root();
    give_up(&keep(false)).unwrap();
    let new = folder.join("new");
    for mut options in [
        File::options().write(true).clone(),
        File::options().append(true).clone(),
        File::options().read(true).write(true).clone(),
        File::options().write(true).truncate(true).clone(),
        File::options()
            .read(true)
            .custom_flags(libc::O_TRUNC)
            .clone(),
    ] {
        assert_eq!(errno(options.open(&there)), libc::EPERM, "{options:?}");
        options.create(true);
    }
    let tmpfile = libc::O_TMPFILE;
    let unnamed = OpenOptions::new()
        .write(true)
        .custom_flags(tmpfile)
        .open(&folder);
    assert_eq!(errno(unnamed), libc::EPERM);
    assert_eq!(errno(File::create(&new)), libc::EPERM);
    assert_eq!(errno(fs::create_dir(&new)), libc::EPERM);
    assert_eq!(errno(fs::hard_link(&there, &new)), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink(&there, &new)), libc::EPERM);
    assert_eq!(errno(fs::rename(&there, &new)), libc::EPERM);
    assert_eq!(errno(fs::remove_file(&there)), libc::EPERM);
    assert_eq!(
        errno(fs::set_permissions(
            &there,
            fs::Permissions::from_mode(0o777)
        )),
        libc::EPERM
    );
    assert_eq!(errno(std::env::set_current_dir("/")), libc::EPERM);
    if root {
        assert_eq!(errno(File::open(folder.join("secret"))), libc::EACCES);
    }
    // What was open is still written to.
    open.write_all(b"more").unwrap();
}

fn remove() {
    give_up(&keep(true)).unwrap();
    fs::remove_file(folder().join("removable")).unwrap();
    assert_eq!(errno(File::create(folder().join("new"))), libc::EPERM);
}

/// What a server does goes on.
fn work() {
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    give_up(&keep(false)).unwrap();
    let name = c"memory";
    let memory = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING);
    let memory = File::from(memory.unwrap());
    memory.set_len(1 << 20).unwrap();
    nix::fcntl::fcntl(
        &memory,
        nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_SHRINK),
    )
    .unwrap();
    let length = std::num::NonZeroUsize::new(1 << 20).unwrap();
    let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    let shared = nix::sys::mman::MapFlags::MAP_SHARED;
    // SAFETY: a new mapping, at an address of the kernel's choice, which nobody uses.
    let mapped = unsafe { nix::sys::mman::mmap(None, length, protection, shared, &memory, 0) };
    // SAFETY: the mapping that was just made.
    unsafe { nix::sys::mman::munmap(mapped.unwrap(), 1 << 20) }.unwrap();
    let worker = thread::Builder::new().name("worker".to_owned());
    let worker = worker.spawn(move || {
        let mut there = there;
        there.write_all(b"hello\n")
    });
    let mut line = String::new();
    BufReader::new(here).read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
    worker.unwrap().join().unwrap().unwrap();
    assert!(fs::read("/proc/self/stat").unwrap().len() > 10);
    let many: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
    assert_eq!(many.len(), 64);
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    event.write(1).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    // What a client's descriptor is, the server reads there, although its files are root's now.
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&event);
    let kind = fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap();
    assert_eq!(kind.to_str(), Some("anon_inode:[eventfd]"));
    // A panic is still a panic.
    assert!(thread::spawn(|| panic!("on purpose")).join().is_err());
}

/// No program, no other process, no network.
fn programs() {
    give_up(&keep(false)).unwrap();
    assert!(Command::new("/bin/true").spawn().is_err());
    assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
    assert!(std::os::unix::net::UnixStream::pair().is_err());
    let parent = nix::unistd::getppid();
    let signalled = nix::sys::signal::kill(parent, None);
    assert_eq!(signalled, Err(Errno::EPERM));
    // SAFETY: no memory is touched: the child, if there ever were one, ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        exit(0);
    }
    assert_eq!((child, Errno::last()), (-1, Errno::EPERM));
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    let code = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_EXEC;
    // SAFETY: a new mapping, at an address of the kernel's choice, which nobody uses.
    let mapped = unsafe {
        nix::sys::mman::mmap_anonymous(None, length, code, nix::sys::mman::MapFlags::MAP_PRIVATE)
    };
    assert_eq!(mapped.map(drop), Err(Errno::EPERM));
}

/// All calls that there are, with arguments that do nothing: those that are not needed answer EPERM.
fn calls() {
    give_up(&keep(false)).unwrap();
    let mut left = 0;
    for call in 0..1000 {
        let harmful = [
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_rt_sigreturn,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_restart_syscall,
            libc::SYS_clone3,
        ];
        // The kernel's own probes, which are faults of the program that makes them.
        let probes = [335, 336];
        if harmful.contains(&call)
            || probes.contains(&call)
            || super::calls::HOSTILE.contains(&call)
        {
            continue;
        }
        // SAFETY: the arguments name no memory, no open descriptor, and nothing that is there.
        let answer = unsafe { libc::syscall(call, -1, -1, -1, -1, -1, -1) };
        if !(answer == -1 && Errno::last() == Errno::EPERM) {
            left += 1;
        }
    }
    assert!((50..120).contains(&left), "{left}");
}

fn hostile(call: i64) {
    give_up(&keep(false)).unwrap();
    // SAFETY: the kernel ends the process before it looks at the arguments; if it does not, they name nothing.
    unsafe { libc::syscall(call, -1, -1, -1, -1, -1, -1) };
    println!("survived {call}");
}

/// Without the filter, too, there is no way back to root.
fn unfiltered() {
    become_user(keep(false).account).unwrap();
    let root = Uid::from_raw(0);
    assert_eq!(setresuid(root, root, root), Err(Errno::EPERM));
    assert_eq!(
        setgroups(&[nix::unistd::Gid::from_raw(0)]),
        Err(Errno::EPERM)
    );
    assert!(caps::raise(None, CapSet::Effective, caps::Capability::CAP_SETUID).is_err());
    // A program that is root's to whoever runs it is not to this one: that is what "no new privileges" means. `id` need not be such a program for the flag to be read back.
    assert!(prctl::get_no_new_privs().unwrap());
}

/// Tries to trace a process of the same user.
fn attach(pid: i32) {
    become_nobody();
    let request = libc::PTRACE_ATTACH;
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: attaching touches no memory of this process.
    let answer = unsafe { libc::ptrace(request, pid, nothing, nothing) };
    match Errno::result(answer) {
        // The kernel lets it go on when this process ends.
        Ok(_) => {
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
            exit(10)
        }
        Err(Errno::EPERM) => exit(11),
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn promises_are_kept() {
    if let Ok(scenario) = std::env::var(SCENARIO) {
        play(&scenario);
    }
    let temporary = crate::scratch::folder();
    let folder = temporary.path();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    for (name, mode) in [("there", 0o666), ("removable", 0o666), ("secret", 0o600)] {
        fs::write(folder.join(name), name).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for scenario in ["state", "files", "remove", "work", "programs", "calls"] {
        let status = run(scenario, folder);
        assert!(status.success(), "{scenario}: {status}");
    }
    assert_eq!(fs::read(folder.join("there")).unwrap(), b"theremore");
    assert!(!folder.join("removable").exists());
    for call in super::calls::HOSTILE {
        let status = run(&format!("hostile:{call}"), folder);
        assert_eq!(
            status.signal(),
            Some(Signal::SIGSYS as i32),
            "call {call}: {status}"
        );
    }
    let status = run("unfiltered:root", folder);
    assert!(status.success(), "{status}");
    // A process of the same user may trace one that lets itself be traced, and not a server.
    for (scenario, expected) in [("wait-open", 10), ("wait", 11)] {
        let mut victim = waiting(scenario, folder);
        let status = run(&format!("attach:{}", victim.id()), folder);
        let _ = victim.kill();
        let _ = victim.wait();
        assert_eq!(status.code(), Some(expected), "{scenario}: {status}");
    }
}

#[test]
fn root_is_no_account() {
    assert!(matches!(
        Account::new(0, 5),
        Err(PrivilegesError::Root { .. })
    ));
    assert!(matches!(
        Account::new(5, 0),
        Err(PrivilegesError::Root { .. })
    ));
    assert!(matches!(
        Account::named("root"),
        Err(PrivilegesError::Root { .. })
    ));
    assert!(matches!(
        Account::named("0"),
        Err(PrivilegesError::Root { .. })
    ));
    assert!(matches!(
        Account::named("no such user, surely"),
        Err(PrivilegesError::NoSuchUser { .. })
    ));
    // No machine has so many users: the number stands for itself.
    let number = Account::new(3_999_999_999, 3_999_999_999).unwrap();
    assert_eq!(Account::named("3999999999").unwrap(), number);
    let unset = Account::new(u32::MAX, 5).unwrap();
    assert!(unset.ids().is_err());
}
