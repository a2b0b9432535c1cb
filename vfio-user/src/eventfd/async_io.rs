//! Signalling through asynchronous I/O.
//!
//! io_submit(2) signals the eventfd in `aio_resfd` when a request has completed. The request here reads no bytes from `/dev/null`, which completes before the call returns.
#![allow(unsafe_code)] // the calls have no wrappers

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;

use crate::device::Errno;

/// Something that is made once, and asked for again after a while where it could not be made.
struct Retried<T> {
    made: OnceLock<T>,
    /// When it could not be made last, and why.
    failed: Mutex<Option<(Instant, Errno)>>,
}

impl<T> Retried<T> {
    /// How long a failure is taken for the answer.
    const AGAIN: Duration = Duration::from_secs(1);

    const fn new() -> Self {
        Self {
            made: OnceLock::new(),
            failed: Mutex::new(None),
        }
    }

    fn get(
        &self,
        now: impl FnOnce() -> Instant,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<&T, Errno> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let now = now();
        if let Some((when, errno)) = *failed
            && now.saturating_duration_since(when) < Self::AGAIN
        {
            return Err(errno);
        }
        match make() {
            Ok(made) => Ok(self.made.get_or_init(|| made)),
            Err(errno) => {
                *failed = Some((now, errno));
                Err(errno)
            }
        }
    }
}

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

    /// This process's, if the system has it. Where it had none a second ago or earlier it is asked again.
    pub(super) fn get() -> Result<&'static Self, Errno> {
        static ASYNC_IO: Retried<AsyncIo> = Retried::new();
        ASYNC_IO.get(Instant::now, || {
            let made = Self::new();
            if let Err(errno) = &made {
                tracing::warn!(%errno, "no asynchronous I/O (sysctl fs.aio-max-nr may be used up): a thread signals each eventfd that a client connects now");
            }
            made
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_made_is_tried_again_and_what_was_made_stays() {
        let begun = Instant::now();
        let at = |milliseconds| move || begun + Duration::from_millis(milliseconds);
        let retried = Retried::<u32>::new();
        assert_eq!(
            retried.get(at(0), || Err(Errno::EAGAIN)),
            Err(Errno::EAGAIN)
        );
        assert_eq!(retried.get(at(999), || Ok(1)), Err(Errno::EAGAIN));
        assert_eq!(
            retried.get(at(1_000), || Err(Errno::EMFILE)),
            Err(Errno::EMFILE)
        );
        assert_eq!(retried.get(at(1_999), || Ok(2)), Err(Errno::EMFILE));
        assert_eq!(retried.get(at(2_000), || Ok(3)), Ok(&3));
        assert_eq!(retried.get(at(9_000), || Err(Errno::EAGAIN)), Ok(&3));
    }
}
