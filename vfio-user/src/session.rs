//! One client's connection, on the server's side.

mod end;
mod maps;
mod outgoing;
mod requests;
mod settling;
mod unmap;
mod version;

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::UnixCredentials;

pub use end::SessionEnd;

use crate::capabilities::Capabilities;
use crate::closer::{Closer, Connection, Sent};
use crate::device::{Device, Errno, Progress};
use crate::eventfd::SignalThreads;
use crate::memory::page_size;
use crate::message::MAX_VERSION_DATA;
use crate::sigbus;
use crate::socket::{Message, MessageReader, Socket, SocketError};
use maps::Maps;
use outgoing::Outgoing;
use settling::Settling;
use unmap::Unmap;

/// What a session offers its client, and how long it waits for it.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// What the client is told in VERSION, and held to.
    pub capabilities: Capabilities,
    /// Bytes that the client's mappings with descriptors may have together: each takes as many of this process's addresses. 1 TiB by default.
    pub max_lent: u64,
    /// Whether memory must be sealed against shrinking. Without it (the default) a program should call [`sigbus::install`](crate::sigbus::install).
    pub sealed_memory: bool,
    /// The threads that signal eventfds where the system has no asynchronous I/O: of all sessions that are made with these options or a copy of them, so that a client that comes again has no
    /// others. 256 by default.
    pub signal_threads: SignalThreads,
    /// So many descriptors that the client sent, or made the device let go of, may wait to be closed; with as many or more, nothing more of the client's is taken in until there are fewer, and where that lasts for
    /// long it is sent away. A [`Server`](crate::Server) lets nobody in while earlier sessions have left so many. At least 1, 128 by default; see [`ServerOptions::descriptors`](crate::ServerOptions::descriptors).
    pub max_unclosed: usize,
    /// How long a client may take from its connection to its VERSION. 5 s by default.
    pub version_timeout: Duration,
    /// How long a message may take from its first byte to its last. 5 s by default.
    pub message_timeout: Duration,
    /// How long a reply may wait for the client to read it. 5 s by default.
    pub reply_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            capabilities: Capabilities {
                max_msg_fds: 8,
                max_dma_maps: 4096,
                pgsizes: page_size(),
                write_multiple: true,
                ..Capabilities::default()
            },
            max_lent: 1 << 40,
            sealed_memory: false,
            signal_threads: SignalThreads::new(256),
            max_unclosed: 128,
            version_timeout: Duration::from_secs(5),
            message_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(5),
        }
    }
}

/// Memory that a client offered and that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedMap {
    /// Where the client wanted it.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What the client was told.
    pub errno: Errno,
}

/// How a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The client is there.
    Open,
    /// The client is gone or was sent away, and the device has not let go of its memory yet.
    Ending,
    /// All is over: the client's memory has been unmapped, and its descriptors are closed. The connection ends when the session is dropped.
    Ended,
}

/// The connection of one client to a device: a state machine that never blocks, so that one thread can serve many.
///
/// The owner waits for [`interest`](Self::interest) on the session's descriptor, at most until [`deadline`](Self::deadline), and calls [`poll`](Self::poll) then. What a client can make
/// a session keep is bounded: one message, one reply, its mappings as far as they were offered, and [`SessionOptions::max_unclosed`]. While a reply waits for the client, or a `DMA_UNMAP` for the device, no further
/// message is taken in.
///
/// The descriptor stays open until the session is dropped: a client that is sent away learns of it only when the device has let go of its memory.
///
/// What the client sends is closed by other threads where that could take time, four for a session at most. They go on when the session has been dropped; who serves clients that come again and again is better off with a
/// [`Server`](crate::Server), which lets nobody in while they lag behind.
#[derive(Debug)]
pub struct Session {
    socket: Connection,
    peer: UnixCredentials,
    options: SessionOptions,
    reader: MessageReader,
    phase: Phase,
    /// Whether REGION_WRITE_MULTI was agreed on.
    write_multiple: bool,
    /// Whether the client takes descriptors.
    takes_descriptors: bool,
    maps: Maps,
    outgoing: Outgoing,
    /// When the message that has begun must have ended.
    message_deadline: Option<Instant>,
    /// How many memories had been lost in this process when this session last looked for its own.
    losses: usize,
    /// Where region accesses read to.
    scratch: Vec<u8>,
    /// Memory that was refused since it was last asked for.
    refused_maps: Vec<RefusedMap>,
    /// Nothing is taken in because too much of what the client sent is still to be closed.
    held: bool,
}

#[derive(Debug)]
enum Phase {
    /// VERSION is to come.
    Connected {
        until: Instant,
    },
    Open,
    /// A DMA_UNMAP whose reply is held.
    Unmapping(Unmap),
    /// A reset that is under way: the reply to what began it is held.
    Settling(Settling),
    Ending(SessionEnd),
    Ended(SessionEnd),
}

impl Session {
    /// Messages handled in one poll, so that no client keeps the others waiting.
    const MESSAGES: usize = 64;
    /// How often a device is asked whether it has let go.
    const ASK_AGAIN: Duration = Duration::from_millis(1);
    /// How often memory that can be lost is looked at.
    const LOOK_AGAIN: Duration = Duration::from_millis(200);
    /// Bytes of the longest request apart from its data: a head of 16, or of 20 for SET_IRQS, and the 4,064 that SPDK sends to ask for a region.
    const HEAD: u32 = 8192;

    /// A session for a client that has just connected.
    ///
    /// # Errors
    /// When the system does not tell who the client is.
    pub fn new(socket: Socket, options: SessionOptions) -> Result<Self, SocketError> {
        Self::over(Connection::new(socket, Closer::default()), options)
    }

    /// The same. Whoever would have closed the connection does no more: the session has a closer of its own.
    pub(crate) fn over(
        mut socket: Connection,
        options: SessionOptions,
    ) -> Result<Self, SocketError> {
        let peer = socket.peer()?;
        socket.give_to(Closer::default());
        let descriptors = options.capabilities.max_msg_fds as usize;
        Ok(Self {
            socket,
            peer,
            reader: MessageReader::new(MAX_VERSION_DATA as u32 + 8, descriptors),
            phase: Phase::Connected {
                until: Instant::now() + options.version_timeout,
            },
            options,
            write_multiple: false,
            takes_descriptors: true,
            maps: Maps::default(),
            outgoing: Outgoing::default(),
            message_deadline: None,
            losses: sigbus::losses(),
            scratch: Vec::new(),
            refused_maps: Vec::new(),
            held: false,
        })
    }

    /// Who the client is: process, user and group as the kernel knew them when it connected.
    #[must_use]
    pub const fn peer(&self) -> &UnixCredentials {
        &self.peer
    }

    /// How the session is.
    #[must_use]
    pub const fn state(&self) -> SessionState {
        match self.phase {
            Phase::Connected { .. } | Phase::Open | Phase::Unmapping(_) | Phase::Settling(_) => {
                SessionState::Open
            }
            Phase::Ending(_) => SessionState::Ending,
            Phase::Ended(_) => SessionState::Ended,
        }
    }

    /// Why the session ends or has ended.
    #[must_use]
    pub const fn end_reason(&self) -> Option<&SessionEnd> {
        match &self.phase {
            Phase::Ending(end) | Phase::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// Memory that the client offered and that was refused since the last call. Asked for after each poll, none is missing.
    pub fn take_refused_maps(&mut self) -> Vec<RefusedMap> {
        std::mem::take(&mut self.refused_maps)
    }

    /// What to wait for on the descriptor: `Some` of no flags for errors and the client's end only (which poll(2) always tells), `None` when the descriptor is not to be waited for, because
    /// only time can bring the session on.
    #[must_use]
    pub fn interest(&self) -> Option<PollFlags> {
        match self.phase {
            Phase::Ending(_) | Phase::Ended(_) => None,
            _ if self.outgoing.is_waiting() => Some(PollFlags::POLLOUT),
            _ if self.held => Some(PollFlags::empty()),
            Phase::Unmapping(_) | Phase::Settling(_) => Some(PollFlags::empty()),
            Phase::Connected { .. } | Phase::Open => Some(PollFlags::POLLIN),
        }
    }

    /// When to poll at the latest, whatever happens on the descriptor.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let phase = match &self.phase {
            Phase::Connected { until } => Some(*until),
            Phase::Unmapping(_) | Phase::Settling(_) | Phase::Ending(_) => {
                Some(now + Self::ASK_AGAIN)
            }
            Phase::Open if self.held => Some(now + Self::ASK_AGAIN),
            Phase::Open | Phase::Ended(_) => None,
        };
        let look = self.maps.can_be_lost().then(|| now + Self::LOOK_AGAIN);
        [phase, look, self.message_deadline, self.outgoing.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the client has closed its end. What it sent before may still be there.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        // Without flags, poll(2) tells only of errors and the end.
        let mut descriptor = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        loop {
            match poll(&mut descriptor, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                answer => return answer != Ok(0),
            }
        }
    }

    /// Sends the client away. The session goes on ending at each [`poll`](Self::poll).
    pub fn end(&mut self, reason: SessionEnd) {
        if self.state() == SessionState::Open {
            // An error reply that says why may be waiting.
            let _ = self.outgoing.send(&self.socket);
            tracing::debug!(pid = self.peer.pid(), %reason, "a session ends");
            self.phase = Phase::Ending(reason);
        }
    }

    /// Does what can be done now, without waiting for anything. Where the device panics over a message, the session ends as if the client had gone ([`SessionEnd::Panicked`]).
    pub fn poll(&mut self, device: &dyn Device) -> SessionState {
        if self.state() == SessionState::Open {
            // A fault that one client has found is not to end the server for the others. Whatever this session was in the middle of, nothing of it is used any more but its maps,
            // which only keep memory mapped, and what the device did is for the device to undo.
            let advanced = catch_unwind(AssertUnwindSafe(|| self.advance(device)));
            if let Err(reason) = advanced.unwrap_or(Err(SessionEnd::Panicked)) {
                self.end(reason);
            }
        }
        if let Phase::Ending(reason) = &mut self.phase
            && device.disconnected() == Progress::Done
        {
            let reason = std::mem::replace(reason, SessionEnd::Closed);
            self.maps.clear();
            self.outgoing = Outgoing::default();
            self.close_unread();
            self.reader = MessageReader::new(0, 0);
            self.phase = Phase::Ended(reason);
        }
        self.state()
    }

    fn advance(&mut self, device: &dyn Device) -> Result<(), SessionEnd> {
        self.look_for_losses()?;
        for _ in 0..Self::MESSAGES {
            if !self.outgoing.send(&self.socket)? {
                return Ok(());
            }
            if let Phase::Unmapping(unmap) = &mut self.phase {
                let Some(result) = unmap.ask(device, &mut self.maps) else {
                    return self.still_there();
                };
                let (header, request) = unmap.request();
                self.phase = Phase::Open;
                self.answer_unmap(&header, request, result);
                continue;
            }
            if let Phase::Settling(settling) = self.phase {
                if device.settling() == Progress::Pending {
                    return self.still_there();
                }
                self.phase = Phase::Open;
                self.reply(&settling.header, &settling.reply());
                continue;
            }
            if self.held {
                if self.is_behind() {
                    if self.closer().is_stuck() {
                        return Err(SessionEnd::Unclosed);
                    }
                    return self.still_there();
                }
                self.held = false;
            }
            let Some(mut message) = self.receive()? else {
                return Ok(());
            };
            let closer = self.closer();
            let descriptors: Vec<_> = std::mem::take(&mut message.descriptors)
                .into_iter()
                .map(|descriptor| Sent::new(descriptor, closer.clone()))
                .collect();
            let brought = !descriptors.is_empty();
            self.handle(&message, descriptors, device)?;
            self.held = brought && self.is_behind();
        }
        self.outgoing.send(&self.socket)?;
        Ok(())
    }

    /// Whether as much as may be of what the client sent is still to be closed.
    fn is_behind(&self) -> bool {
        self.closer().unclosed() >= self.options.max_unclosed.max(1)
    }

    /// Who closes what the client sends.
    pub(crate) const fn closer(&self) -> &Closer {
        self.socket.closer()
    }

    /// Closes the descriptors of a message that never became whole.
    fn close_unread(&mut self) {
        for descriptor in self.reader.take_descriptors() {
            self.closer().close(descriptor);
        }
    }

    /// Ends the session if the client has gone while its reply was held.
    fn still_there(&self) -> Result<(), SessionEnd> {
        if self.is_hung_up() {
            Err(SessionEnd::Closed)
        } else {
            Ok(())
        }
    }

    /// The next whole message, if it is there.
    fn receive(&mut self) -> Result<Option<Message>, SessionEnd> {
        match self.reader.receive(&self.socket) {
            Ok(Some(message)) => {
                self.message_deadline = None;
                Ok(Some(message))
            }
            Ok(None) => {
                let now = Instant::now();
                if self.reader.is_inside() {
                    let until = now + self.options.message_timeout;
                    if *self.message_deadline.get_or_insert(until) <= now {
                        return Err(SessionEnd::MessageTimeout);
                    }
                }
                if let Phase::Connected { until } = self.phase
                    && until <= now
                {
                    return Err(SessionEnd::VersionTimeout);
                }
                Ok(None)
            }
            Err(SocketError::Closed) => Err(SessionEnd::Closed),
            Err(error) => Err(SessionEnd::Socket(error)),
        }
    }

    /// Has memory of this client been taken away?
    fn look_for_losses(&mut self) -> Result<(), SessionEnd> {
        let losses = sigbus::losses();
        if losses != self.losses {
            self.losses = losses;
            if let Some(address) = self.maps.lost() {
                return Err(SessionEnd::MemoryLost { address });
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close_unread();
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
