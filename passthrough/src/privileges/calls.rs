//! Which system calls a server needs, and which show that it is no longer itself.

use libc::c_long;

/// A call and, for some, what its arguments must be.
pub(super) enum Rule {
    /// As it is.
    Any(c_long),
    /// The bits of `mask` in argument `index` are those of one of `values`.
    Bits {
        call: c_long,
        index: u8,
        mask: u64,
        values: &'static [u64],
    },
}

use Rule::{Any, Bits};

/// All bits of an `int`.
const INT: u64 = 0xffff_ffff;

/// Flags of open(2) that would create, change or empty a file.
const CHANGES: u64 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_TMPFILE) as u64
        & !(libc::O_DIRECTORY as u64);

/// The type of VFIO's and iommufd's requests, in the second byte of an ioctl.
const VFIO: u64 = (b';' as u64) << 8;

/// PR_SET_VMA: an allocator names its memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// What a server needs after its set-up, on every architecture.
pub(super) const NEEDED: &[Rule] = &[
    // Files that are open, and reading others.
    Any(libc::SYS_read),
    Any(libc::SYS_readv),
    Any(libc::SYS_pread64),
    Any(libc::SYS_preadv),
    // An eventfd that its client may have made blocking is looked at so, where there is no asynchronous I/O.
    Any(libc::SYS_preadv2),
    Any(libc::SYS_write),
    Any(libc::SYS_writev),
    Any(libc::SYS_pwrite64),
    Any(libc::SYS_pwritev),
    Any(libc::SYS_lseek),
    Any(libc::SYS_close),
    Any(libc::SYS_fstat),
    Any(libc::SYS_newfstatat),
    Any(libc::SYS_statx),
    Any(libc::SYS_fsync),
    Any(libc::SYS_fdatasync),
    Any(libc::SYS_fallocate),
    Any(libc::SYS_ftruncate),
    Any(libc::SYS_fcntl),
    Any(libc::SYS_flock),
    Any(libc::SYS_dup),
    Any(libc::SYS_dup3),
    Any(libc::SYS_fstatfs),
    Any(libc::SYS_getdents64),
    Any(libc::SYS_readlinkat),
    Bits {
        call: libc::SYS_openat,
        index: 2,
        mask: CHANGES,
        values: &[0],
    },
    // Clients.
    Any(libc::SYS_accept4),
    Any(libc::SYS_recvmsg),
    Any(libc::SYS_recvfrom),
    Any(libc::SYS_sendmsg),
    Any(libc::SYS_sendto),
    Any(libc::SYS_shutdown),
    Any(libc::SYS_getsockopt),
    Any(libc::SYS_setsockopt),
    Any(libc::SYS_getsockname),
    Any(libc::SYS_getpeername),
    Any(libc::SYS_pidfd_open),
    // Waiting.
    Any(libc::SYS_ppoll),
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
    Any(libc::SYS_epoll_pwait),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_futex),
    Any(libc::SYS_nanosleep),
    Any(libc::SYS_clock_nanosleep),
    Any(libc::SYS_clock_gettime),
    Any(libc::SYS_clock_getres),
    Any(libc::SYS_gettimeofday),
    Any(libc::SYS_sched_yield),
    Any(libc::SYS_restart_syscall),
    // Eventfds are signalled by the kernel's asynchronous I/O, which does not wait.
    Any(libc::SYS_io_setup),
    Any(libc::SYS_io_destroy),
    Any(libc::SYS_io_submit),
    Any(libc::SYS_io_getevents),
    // Controllers, and what a terminal is asked.
    Bits {
        call: libc::SYS_ioctl,
        index: 1,
        mask: 0xff00,
        values: &[VFIO],
    },
    Bits {
        call: libc::SYS_ioctl,
        index: 1,
        mask: INT,
        values: &[
            libc::FIONREAD,
            libc::FIONBIO,
            libc::TCGETS,
            libc::TIOCGWINSZ,
        ],
    },
    // Memory; none of it becomes code.
    Any(libc::SYS_brk),
    Any(libc::SYS_munmap),
    Any(libc::SYS_mremap),
    Any(libc::SYS_madvise),
    Any(libc::SYS_mincore),
    Any(libc::SYS_mlock),
    Any(libc::SYS_munlock),
    Any(libc::SYS_membarrier),
    Any(libc::SYS_memfd_create),
    Bits {
        call: libc::SYS_mmap,
        index: 2,
        mask: libc::PROT_EXEC as u64,
        values: &[0],
    },
    Bits {
        call: libc::SYS_mprotect,
        index: 2,
        mask: libc::PROT_EXEC as u64,
        values: &[0],
    },
    // Threads. clone3 hides its flags from filters; the C library then uses clone.
    Bits {
        call: libc::SYS_clone,
        index: 0,
        mask: libc::CLONE_THREAD as u64,
        values: &[libc::CLONE_THREAD as u64],
    },
    Any(libc::SYS_set_robust_list),
    Any(libc::SYS_rseq),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
    Any(libc::SYS_sched_getaffinity),
    Any(libc::SYS_sched_setaffinity),
    Any(libc::SYS_getcpu),
    Any(libc::SYS_gettid),
    Any(libc::SYS_getpid),
    Any(libc::SYS_getppid),
    Any(libc::SYS_getuid),
    Any(libc::SYS_geteuid),
    Any(libc::SYS_getgid),
    Any(libc::SYS_getegid),
    Any(libc::SYS_getrusage),
    Any(libc::SYS_sysinfo),
    Any(libc::SYS_uname),
    Any(libc::SYS_getrandom),
    Bits {
        call: libc::SYS_prctl,
        index: 0,
        mask: INT,
        values: &[
            libc::PR_SET_NAME as u64,
            libc::PR_GET_NAME as u64,
            libc::PR_GET_DUMPABLE as u64,
            PR_SET_VMA,
        ],
    },
    // Limits of this process, which can only be lowered.
    Bits {
        call: libc::SYS_prlimit64,
        index: 0,
        mask: INT,
        values: &[0],
    },
    // Signals: to itself only, which `itself` adds.
    Any(libc::SYS_rt_sigaction),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_rt_sigtimedwait),
    Any(libc::SYS_sigaltstack),
];

/// The same calls under the names that only older architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) const OLDER: &[Rule] = &[
    Any(libc::SYS_poll),
    Any(libc::SYS_epoll_wait),
    Any(libc::SYS_accept),
    Any(libc::SYS_stat),
    Any(libc::SYS_lstat),
    Any(libc::SYS_readlink),
    Any(libc::SYS_time),
    Any(libc::SYS_getrlimit),
    Bits {
        call: libc::SYS_open,
        index: 1,
        mask: CHANGES,
        values: &[0],
    },
];

/// The same calls under the names that only older architectures have.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const OLDER: &[Rule] = &[];

/// Removing files.
pub(super) const REMOVE: &[Rule] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_unlink),
    Any(libc::SYS_unlinkat),
];

/// Calls that only somebody makes who took the process over: they end it.
pub(super) const HOSTILE: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
];
