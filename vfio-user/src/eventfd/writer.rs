//! Signalling by a thread that may be made to wait.
#![allow(unsafe_code)] // preadv2(2) with the flag that keeps it from blocking has no wrapper

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::closer::{Closer, Sent};
use crate::device::Errno;

const STACK: usize = 64 << 10;

/// A thread of its own for one eventfd.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    descriptor: Sent,
    /// Signals that have not been written yet.
    pending: AtomicU64,
    ended: AtomicBool,
}

impl Writer {
    /// # Errors
    /// `EAGAIN` when there are too many threads.
    pub(super) fn new(descriptor: Sent, threads: &SignalThreads) -> Result<Self, Errno> {
        let running = threads.one()?;
        let shared = Arc::new(Shared {
            descriptor,
            pending: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("eventfd".into())
            .stack_size(STACK)
            .spawn(move || {
                let _running = running;
                of_thread.run();
            })
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
        })
    }

    pub(super) fn signal(&self) {
        self.shared.pending.fetch_add(1, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.thread.unpark();
        // A thread that waits for room gets it. A counter that is full was not filled by interrupts. A client that fills it again at once keeps its thread until it closes the eventfd
        // or dies, and is counted.
        if is_full(&self.shared.descriptor) {
            empty(&self.shared.descriptor);
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let count = self.pending.swap(0, Ordering::Acquire);
            if count > 0 {
                // It waits while the counter is full. Non-blocking or interrupted: the client has not lost more than its own count.
                let _ = nix::unistd::write(&*self.descriptor, &count.to_ne_bytes());
            } else if self.ended.load(Ordering::Acquire) {
                return;
            } else {
                thread::park();
            }
        }
    }
}

/// Threads that signal the eventfds of one client where the system has no asynchronous I/O, and how many there may be.
///
/// A handle: clones count the same threads. One ends with its eventfd, unless its client keeps it waiting; then it is counted until that ends.
///
/// Eventfds that are taken [outside of a session](super::Eventfd::with_threads) are closed by threads of theirs, too: four at most, which whoever waits behind an eventfd can keep.
#[derive(Debug, Clone)]
pub struct SignalThreads {
    running: Arc<AtomicUsize>,
    most: usize,
    closer: Closer,
}

impl SignalThreads {
    /// At most so many, of which there are none yet.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            running: Arc::default(),
            most,
            closer: Closer::default(),
        }
    }

    /// Who closes eventfds that came over no session.
    pub(crate) const fn closer(&self) -> &Closer {
        &self.closer
    }

    /// One more.
    fn one(&self) -> Result<Running, Errno> {
        let running = Running(Arc::clone(&self.running));
        if self.running.fetch_add(1, Ordering::Relaxed) < self.most {
            Ok(running)
        } else {
            // Dropped, it is counted no more.
            Err(Errno::EAGAIN)
        }
    }
}

/// One of the threads there may be.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_full(eventfd: &OwnedFd) -> bool {
    let mut descriptor = [PollFd::new(eventfd.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut descriptor, PollTimeout::ZERO), Ok(0))
}

/// Sets the counter to 0, or does nothing where that would wait.
fn empty(eventfd: &OwnedFd) {
    let mut count = [0_u8; 8];
    let part = libc::iovec {
        iov_base: count.as_mut_ptr().cast(),
        iov_len: count.len(),
    };
    // SAFETY: one buffer of 8 bytes, which outlives the call; the flag keeps it from waiting, however the client has set the description.
    let read = unsafe {
        libc::preadv2(
            eventfd.as_raw_fd(),
            &raw const part,
            1,
            -1,
            libc::RWF_NOWAIT,
        )
    };
    if read < 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "an eventfd cannot be emptied");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn pair(flags: EfdFlags) -> (EventFd, Writer) {
        let client = EventFd::from_flags(flags).expect("an eventfd");
        let duplicate = client.as_fd().try_clone_to_owned().expect("a duplicate");
        let duplicate = Sent::new(duplicate, Closer::default());
        let threads = SignalThreads::new(1);
        (client, Writer::new(duplicate, &threads).expect("a thread"))
    }

    fn soon(what: &str, mut happened: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !happened() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn adds_one_each_time() {
        let (client, writer) = pair(EfdFlags::EFD_NONBLOCK);
        for _ in 0..10_000 {
            writer.signal();
        }
        let mut sum = 0;
        soon("all signals", || {
            sum += client.read().unwrap_or(0);
            sum >= 10_000
        });
        assert_eq!(sum, 10_000);
    }

    #[test]
    fn what_was_signalled_before_the_end_is_seen() {
        let (client, writer) = pair(EfdFlags::EFD_NONBLOCK);
        writer.signal();
        drop(writer);
        soon("the signal", || client.read() == Ok(1));
    }

    #[test]
    fn a_full_eventfd_makes_nobody_else_wait() {
        let (client, writer) = pair(EfdFlags::empty());
        client.write(u64::MAX - 1).expect("filled");
        for _ in 0..100 {
            writer.signal();
        }
        // Its thread ends, and with it the last of our descriptors: nobody writes any more.
        let shared = Arc::downgrade(&writer.shared);
        drop(writer);
        soon("the thread's end", || shared.strong_count() == 0);
    }

    #[test]
    fn a_client_has_as_many_threads_as_it_may_and_no_more() {
        let threads = SignalThreads::new(2);
        let new = |client: &EventFd| {
            let duplicate = client.as_fd().try_clone_to_owned().expect("a duplicate");
            Writer::new(Sent::new(duplicate, Closer::default()), &threads)
        };
        let client = EventFd::new().expect("an eventfd");
        let (first, _second) = (new(&client).expect("one"), new(&client).expect("two"));
        for _ in 0..3 {
            assert_eq!(new(&client).expect_err("three"), Errno::EAGAIN);
        }
        // Another client's are counted for themselves.
        pair(EfdFlags::empty());
        drop(first);
        soon("the thread's end", || new(&client).is_ok());
    }
}
