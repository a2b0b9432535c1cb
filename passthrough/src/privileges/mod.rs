//! What a server gives up once it is set up, for good and for all of its threads.
//!
//! Whoever finds a hole in the server after that holds a process of a user without rights, that cannot become another user, start a program, look into another process, make a
//! socket to the network, or create, change or remove a file; it has the descriptors that are open: the controllers, the clients' memory and sockets, and the audit's file.
//!
//! | module | holds |
//! |---|---|
//! | `account` | [`Account`]: the user that a server becomes |
//! | `calls` | which system calls a server needs, and which show that it is no longer itself |
//! | `filter` | what the kernel is told of them |
//! | `threads` | what the kernel says of each thread afterwards |
//!
//! # A forbidden call
//! A call that no way of the server leads to, and that somebody who took it over wants first (running a program, tracing a process, becoming another user, loading a
//! module), ends the process at once: there is nothing left to protect by going on, and the kernel then stops the controllers by closing their descriptors. Every other call
//! that is not on the list fails with EPERM. One of those may be wanted by a library on a way that nobody tried, and ending all clients for it would be a worse fault than refusing it.

mod account;
mod calls;
mod filter;
#[cfg(test)]
mod tests;
mod threads;

use std::fmt;
use std::io;

use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{geteuid, setgroups, setresgid, setresuid};

pub use account::Account;

/// What a server keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    /// The user that it becomes, where it runs as root. Somebody else stays who he is.
    pub account: Account,
    /// Bytes of memory that it will map for devices. The limit of locked memory is raised to it first, where it may be: after that the user has no right to.
    /// `None` for no limit.
    pub locked_memory: Option<u64>,
    /// It can still remove files, as far as its user may: its sockets, at the end.
    pub removes_files: bool,
}

/// What is left, as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// The user of every thread.
    pub uid: u32,
    /// The group of every thread.
    pub gid: u32,
    /// Threads that were looked at.
    pub threads: usize,
    /// System calls that can still be made.
    pub calls: usize,
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "user {}, group {}, no capabilities, no new privileges, not dumpable, {} system calls, {} threads",
            self.uid, self.gid, self.calls, self.threads
        )
    }
}

/// Why privileges could not be given up. The process should end: it may have kept some of them, and cannot get back the others.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegesError {
    /// There is no such user.
    #[error("there is no user {name}")]
    NoSuchUser {
        /// The name.
        name: String,
    },
    /// Giving up privileges to root gives up nothing.
    #[error("user {uid} has the rights of root")]
    Root {
        /// The user.
        uid: u32,
    },
    /// The system refused a step.
    #[error("{step} failed")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The filter of system calls could not be made or installed.
    #[error("the filter of system calls cannot be installed: {0}")]
    Filter(String),
    /// A thread still has what all should have given up.
    #[error("thread {thread} still has {what}")]
    Kept {
        /// The thread.
        thread: u32,
        /// What it has.
        what: String,
    },
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> PrivilegesError {
    move |errno| PrivilegesError::Step {
        step,
        source: errno.into(),
    }
}

/// Gives up whatever is not needed any more, for the whole process and for good. Call it when everything is open: controllers, sockets, the audit's file.
///
/// It ends only with what was asked for: the state of each thread is read back from the kernel.
///
/// # Errors
/// [`PrivilegesError`]. The process should end then.
pub fn give_up(keep: &Privileges) -> Result<GivenUp, PrivilegesError> {
    allow_locked_memory(keep.locked_memory)?;
    become_user(keep.account)?;
    let (threads, uid, gid) = threads::check()?;
    let calls = filter::install(keep.removes_files)?;
    Ok(GivenUp {
        uid,
        gid,
        threads,
        calls,
    })
}

/// Raises the limit of locked memory. Without the right to, what there is has to do: mapping fails where it does not.
fn allow_locked_memory(bytes: Option<u64>) -> Result<(), PrivilegesError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(step("reading limits"))?;
    let wanted = bytes.unwrap_or(RLIM_INFINITY);
    if soft >= wanted {
        return Ok(());
    }
    match setrlimit(Resource::RLIMIT_MEMLOCK, wanted, wanted.max(hard)) {
        Err(Errno::EPERM) => setrlimit(Resource::RLIMIT_MEMLOCK, wanted.min(hard), hard),
        result => result,
    }
    .map_err(step("raising the limit of locked memory"))
}

/// Becomes that user where the process is root's, and gives up capabilities, new privileges and being looked into.
fn become_user(account: Account) -> Result<(), PrivilegesError> {
    if geteuid().is_root() {
        let (uid, gid) = account.ids()?;
        // Each of these is done for all threads by the C library. The user comes last: only root may do the others.
        setgroups(&[]).map_err(step("leaving supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(step("changing the group"))?;
        setresuid(uid, uid, uid).map_err(step("changing the user"))?;
    }
    // Leaving root took them from every thread. Somebody else may have been given some, which are this thread's; what others have is found out later.
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(|error| PrivilegesError::Step {
            step: "giving up capabilities",
            source: io::Error::other(error.to_string()),
        })?;
    }
    prctl::set_no_new_privs().map_err(step("giving up new privileges"))?;
    // After the change of user, which sets it as the system is configured.
    prctl::set_dumpable(false).map_err(step("becoming not dumpable"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("forbidding core dumps"))
}
