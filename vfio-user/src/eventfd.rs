//! Signalling a client's eventfd without ever waiting for the client.
//!
//! A write to an eventfd blocks when its counter is full and its description is not set to non-blocking, and both are in the client's hands: it shares the description, so what is
//! set here it can set back at any time. The kernel's own way to signal an eventfd has no such wait, the counter just stays at its maximum; asynchronous I/O makes it available.
//! Where there is none, each eventfd has a thread, which may wait. The system's room for asynchronous I/O is for all of its users, any of whom can use it up, so a server
//! makes its own before anybody can connect ([`Eventfd::prepare`]).

mod async_io;
mod writer;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use crate::closer::Sent;
use crate::device::Errno;
use async_io::AsyncIo;
pub use writer::SignalThreads;
use writer::Writer;

/// An eventfd of a client, signalled when the device has an interrupt. To drop it takes no time: it is closed by a thread that nobody waits for.
#[derive(Debug)]
pub struct Eventfd {
    way: Way,
}

#[derive(Debug)]
enum Way {
    AsyncIo(&'static AsyncIo, Sent),
    Writer(Writer),
}

impl Eventfd {
    /// Threads for those that were taken by [`new`](Self::new).
    const THREADS: usize = 1024;

    /// Makes what signals all eventfds of this process, ahead of the first: a few pages and one descriptor. Without it the first that is taken does so, and then a stranger may have used up the system's
    /// room.
    ///
    /// # Errors
    /// What open(2) of `/dev/null` or io_setup(2) says: `EAGAIN` where `fs.aio-max-nr` is used up. Eventfds are signalled by threads then, and it is tried again when one is taken, once a second.
    pub fn prepare() -> Result<(), Errno> {
        AsyncIo::get().map(|_| ())
    }

    /// Takes a descriptor that a client sent, with threads that all clients of this process share. See [`with_threads`](Self::with_threads).
    ///
    /// # Errors
    /// As [`with_threads`](Self::with_threads).
    pub fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        static THREADS: OnceLock<SignalThreads> = OnceLock::new();
        let threads = THREADS.get_or_init(|| SignalThreads::new(Self::THREADS));
        Self::with_threads(descriptor, threads)
    }

    /// Takes a descriptor that a client sent, with that client's threads: those that signal it, and those that close it.
    ///
    /// # Errors
    /// `EINVAL` when it is no eventfd; `EAGAIN` where there is no asynchronous I/O and the client has as many threads as it may; or what the system says when it cannot be examined
    /// (which takes `/proc`).
    pub fn with_threads(descriptor: OwnedFd, threads: &SignalThreads) -> Result<Self, Errno> {
        Self::sent(Sent::new(descriptor, threads.closer().clone()), threads)
    }

    /// The same, with who closes it.
    pub(crate) fn sent(descriptor: Sent, threads: &SignalThreads) -> Result<Self, Errno> {
        let link =
            nix::fcntl::readlink(format!("/proc/self/fd/{}", descriptor.as_raw_fd()).as_str())?;
        // The names of what has no path come from the kernel alone; a path begins with a slash.
        if link != "anon_inode:[eventfd]" {
            return Err(Errno::EINVAL);
        }
        let way = match AsyncIo::get() {
            Ok(async_io) => Way::AsyncIo(async_io, descriptor),
            Err(_) => Way::Writer(Writer::new(descriptor, threads)?),
        };
        Ok(Self { way })
    }

    /// Adds 1 to the eventfd's counter, or leaves it at its maximum. Does not block, whatever the client does. One system call (two in about a hundred calls).
    ///
    /// # Errors
    /// What io_submit(2) says: nothing that a client could bring about.
    pub fn signal(&self) -> Result<(), Errno> {
        match &self.way {
            Way::AsyncIo(async_io, descriptor) => async_io.signal(descriptor),
            Way::Writer(writer) => {
                writer.signal();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
