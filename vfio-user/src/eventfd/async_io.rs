//! Signalling through asynchronous I/O.
//!
//! io_submit(2) signals the eventfd in `aio_resfd` when a request has completed. The request here reads no bytes from `/dev/null`, which completes before the call returns.
#![allow(unsafe_code)] // the calls have no wrappers

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::libc;

use crate::device::Errno;

/// What signals eventfds, for all of this process.
#[derive(Debug)]
pub(super) struct AsyncIo {
    context: libc::c_ulong,
    /// What the requests read nothing from.
    source: File,
}

impl AsyncIo {
    /// Requests whose results nobody has fetched yet; the kernel rounds it up.
    const DEPTH: libc::c_long = 128;

    /// This process's, if the system has it.
    pub(super) fn get() -> Result<&'static Self, Errno> {
        static ASYNC_IO: OnceLock<Result<AsyncIo, Errno>> = OnceLock::new();
        let made = ASYNC_IO.get_or_init(|| {
            let made = Self::new();
            if let Err(errno) = &made {
                tracing::info!(%errno, "no asynchronous I/O: a thread signals each eventfd of a client");
            }
            made
        });
        made.as_ref().map_err(|errno| *errno)
    }

    fn new() -> Result<Self, Errno> {
        let source = File::open("/dev/null")
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENODEV)))?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call writes the context's number to the place it is given.
        Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, Self::DEPTH, &raw mut context) })?;
        Ok(Self { context, source })
    }

    /// Signals an eventfd.
    pub(super) fn signal(&self, eventfd: &OwnedFd) -> Result<(), Errno> {
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
                    1 as libc::c_long,
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
                0 as libc::c_long,
                64 as libc::c_long,
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
