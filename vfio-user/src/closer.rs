//! Closing descriptors that may take their time.
//!
//! The last close of a file does what its kind does then, and that can be a wait for as long as whoever sent it likes: a TCP socket that lingers over a peer that reads nothing, a file of a
//! file system that another process serves. A client that passes such a descriptor on and closes its own has the last close done by whoever received it; by whoever closes the connection, if nobody did.
//! An eventfd can, too: where it is registered with epoll, the kernel waits for whoever waits there, and he for a page of his memory. So whatever is not known to close at once, and connections with
//! descriptors in their queue, are closed by threads that nobody waits for.
//!
//! Each session has threads of its own for what it brought: what others leave behind is not in its way.
#![allow(unsafe_code)] // what is to be closed moves out of a value that is being dropped

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Errno;
use crate::memory::{MemoryError, is_in_memory};
use crate::socket::Socket;

/// Threads that close what one session brought, or one set of connections. They live while there is something to close. A handle: clones give to the same threads.
///
/// Nothing that it is given is ever closed by the caller instead. So whoever has clients asks how much is [still open](Self::unclosed), and takes in no more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closer {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
    /// When a thread last came to one, or the first was put there.
    moved: Option<Instant>,
    /// The system had no thread for what waits. It is said once.
    lacking: bool,
}

impl Closer {
    /// At most so many threads wait.
    const THREADS: usize = 4;
    /// Nothing goes on where no thread has come to a further one for so long.
    const STUCK: Duration = Duration::from_secs(5);
    const STACK: usize = 64 << 10;

    /// How many descriptors are still open: those that wait, and those that threads are closing. Where the system had no thread for them, it is asked again.
    pub(crate) fn unclosed(&self) -> usize {
        let mut queue = self.queue();
        if queue.threads == 0 && !queue.waiting.is_empty() {
            self.spawn(&mut queue);
        }
        queue.waiting.len() + queue.threads
    }

    /// Whether what is still open has been there for long without one more being closed.
    pub(crate) fn is_stuck(&self) -> bool {
        let moved = self.queue().moved;
        moved.is_some_and(|moved| moved.elapsed() >= Self::STUCK)
    }

    /// Closes a descriptor, soon, and elsewhere unless that takes no time.
    pub(crate) fn close(&self, descriptor: OwnedFd) {
        if !is_in_memory(&descriptor) {
            self.close_elsewhere(descriptor);
        }
    }

    fn close_elsewhere(&self, descriptor: OwnedFd) {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.moved = Some(Instant::now());
        }
        queue.waiting.push_back(descriptor);
        if queue.threads < Self::THREADS {
            self.spawn(&mut queue);
        }
    }

    /// Adds a thread.
    fn spawn(&self, queue: &mut Queue) {
        let theirs = Self::clone(self);
        let spawned = thread::Builder::new()
            .name("closer".into())
            .stack_size(Self::STACK)
            .spawn(move || theirs.run());
        match spawned {
            Ok(_) => {
                queue.threads += 1;
                queue.lacking = false;
            }
            // It waits for the next one that is to be closed, or for somebody to ask. A client can have this happen often.
            Err(error) => {
                if !std::mem::replace(&mut queue.lacking, true) {
                    tracing::warn!(%error, "no thread to close what a client sent");
                }
            }
        }
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let Some(descriptor) = queue.waiting.pop_front() else {
                queue.threads -= 1;
                return;
            };
            queue.moved = Some(Instant::now());
            drop(queue);
            drop(descriptor);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that no thread could be had for stay open: whoever drops the queue is not to wait for them.
impl Drop for Queue {
    fn drop(&mut self) {
        for descriptor in self.waiting.drain(..) {
            let _ = descriptor.into_raw_fd();
        }
    }
}

/// A descriptor that a client sent, which nobody waits for when it is dropped.
#[derive(Debug)]
pub(crate) struct Sent {
    descriptor: ManuallyDrop<OwnedFd>,
    closer: Closer,
}

impl Sent {
    pub(crate) const fn new(descriptor: OwnedFd, closer: Closer) -> Self {
        Self {
            descriptor: ManuallyDrop::new(descriptor),
            closer,
        }
    }

    /// A duplicate, if it is a file that is kept in memory, whose descriptors close at once. Whether it is one takes no time to find out: no file system is asked.
    pub(crate) fn memory(&self) -> Result<OwnedFd, MemoryError> {
        if !is_in_memory(&self.descriptor) {
            return Err(MemoryError::NotInMemory);
        }
        let copied = self.descriptor.try_clone();
        copied.map_err(|error| {
            MemoryError::System(Errno::from_raw(
                error.raw_os_error().unwrap_or(libc::EMFILE),
            ))
        })
    }
}

impl Deref for Sent {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.descriptor
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and the value is not used any more.
        let descriptor = unsafe { ManuallyDrop::take(&mut self.descriptor) };
        self.closer.close(descriptor);
    }
}

/// A client's connection, which is closed without waiting for what the client has left in it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: ManuallyDrop<Socket>,
    closer: Closer,
}

impl Connection {
    pub(crate) const fn new(socket: Socket, closer: Closer) -> Self {
        Self {
            socket: ManuallyDrop::new(socket),
            closer,
        }
    }

    /// Who closes it, and what came over it.
    pub(crate) const fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Has somebody else close it, and what comes over it.
    pub(crate) fn give_to(&mut self, closer: Closer) {
        self.closer = closer;
    }
}

impl Deref for Connection {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and the value is not used any more.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        if !socket.drain() {
            self.closer.close_elsewhere(socket.into());
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "closer_tests.rs"]
mod tests;
