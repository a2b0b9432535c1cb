//! Signalling a client's eventfd without ever waiting for the client.
//!
//! A write to an eventfd blocks when its counter is full and its description is not set to non-blocking, and both are in the client's hands: it shares the description, so what is
//! set here it can set back at any time. The kernel's own way to signal an eventfd has no such wait, the counter just stays at its maximum; and asynchronous I/O makes it available:
//! io_submit(2) signals the eventfd in `aio_resfd` when a request has completed. The request here reads no bytes from `/dev/null`, which completes before the call returns.
#![allow(unsafe_code)] // the asynchronous I/O calls have no wrappers

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;

/// An eventfd of a client, signalled when the device has an interrupt.
#[derive(Debug)]
pub struct Eventfd {
    descriptor: OwnedFd,
    signals: &'static Signals,
}

impl Eventfd {
    /// Takes a descriptor that a client sent.
    ///
    /// # Errors
    /// `EINVAL` when it is no eventfd; `ENOTSUP` when this system can signal none without the risk of waiting for the client (no asynchronous I/O: not in the kernel, forbidden by a
    /// system call filter, or `fs.aio-max-nr` is used up); or what the system says when it cannot be examined.
    pub fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let link =
            nix::fcntl::readlink(format!("/proc/self/fd/{}", descriptor.as_raw_fd()).as_str())?;
        // The names of what has no path come from the kernel alone; a path begins with a slash.
        if link != "anon_inode:[eventfd]" {
            return Err(Errno::EINVAL);
        }
        let signals = Signals::get()?;
        Ok(Self {
            descriptor,
            signals,
        })
    }

    /// Adds 1 to the eventfd's counter, or leaves it at its maximum. Does not block, whatever the client does. One system call (two in about a hundred calls).
    ///
    /// # Errors
    /// What io_submit(2) says: nothing that a client could bring about.
    pub fn signal(&self) -> Result<(), Errno> {
        self.signals.send(&self.descriptor)
    }
}

/// What signals eventfds, for all of this process.
#[derive(Debug)]
struct Signals {
    context: libc::c_ulong,
    /// What the requests read nothing from.
    source: File,
}

impl Signals {
    /// Requests whose results nobody has fetched yet; the kernel rounds it up.
    const DEPTH: libc::c_long = 128;

    fn get() -> Result<&'static Self, Errno> {
        static SIGNALS: OnceLock<Result<Signals, Errno>> = OnceLock::new();
        match SIGNALS.get_or_init(Self::new) {
            Ok(signals) => Ok(signals),
            Err(errno) => {
                tracing::warn!(%errno, "no asynchronous I/O: a client's eventfds cannot be signalled without waiting for the client, and are refused");
                Err(Errno::ENOTSUP)
            }
        }
    }

    fn new() -> Result<Self, Errno> {
        let source = File::open("/dev/null")
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENODEV)))?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call writes the context's number to the place it is given.
        Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, Self::DEPTH, &raw mut context) })?;
        Ok(Self { context, source })
    }

    fn send(&self, eventfd: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: zeroes are a valid value of this plain structure: opcode 0 is a read (IOCB_CMD_PREAD), here of no bytes to no address.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_fildes = self.source.as_raw_fd().cast_unsigned();
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = eventfd.as_raw_fd().cast_unsigned();
        let mut requests = [&raw mut request];
        // A second round is needed where the results of earlier requests take all the room, a third where another thread was faster.
        for _ in 0..100 {
            // SAFETY: one pointer to one request, which the call has read (and marked with its key) when it returns.
            let submitted = Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_io_submit,
                    self.context,
                    1_i64,
                    requests.as_mut_ptr(),
                )
            });
            match submitted {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => self.discard_results()?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Makes room for further requests. Does not wait.
    fn discard_results(&self) -> Result<(), Errno> {
        /// `struct io_event` of linux/aio_abi.h.
        type Event = [u64; 4];
        let mut events: [Event; 64] = [[0; 4]; 64];
        let no_time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: room for 64 results; at least none are waited for.
        let fetched = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0_i64,
                64_i64,
                events.as_mut_ptr(),
                &raw const no_time,
            )
        });
        match fetched {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// `aio_resfd` is meant (linux/aio_abi.h).
const IOCB_FLAG_RESFD: u32 = 1;

#[cfg(test)]
#[path = "eventfd_tests.rs"]
mod tests;
