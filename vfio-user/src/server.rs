//! A device on a socket, one client after the other.

mod doorkeeper;
mod path;
mod refusal;
mod stop;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::time::TimeSpec;
use thiserror::Error;

pub use doorkeeper::{Doorkeeper, Peer, Refused};
pub use stop::Stop;

use crate::closer::{Closer, Connection};
use crate::device::{Device, Errno};
use crate::session::{Session, SessionEnd, SessionOptions, SessionState};
use crate::socket::{MAX_DESCRIPTORS, Socket};
use path::BoundPath;
use refusal::Refusal;

/// How a server's socket is made, and what its sessions offer.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Who may connect, as the permissions of the socket (connecting takes the right to write): `0o600` by default, the owner alone. The umask has no part in it.
    pub mode: u32,
    /// The socket's user, where it is not this process's: only a privileged process can give it away.
    pub owner: Option<u32>,
    /// The socket's group, where it is not this process's.
    pub group: Option<u32>,
    /// Who decides who is let in; without one, everybody is that the socket's permissions let connect.
    pub doorkeeper: Option<Arc<dyn Doorkeeper>>,
    /// How many connections may wait to be accepted, 1 to 4096. 16 by default.
    pub backlog: u16,
    /// What each session offers its client.
    pub session: SessionOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            mode: 0o600,
            owner: None,
            group: None,
            doorkeeper: None,
            backlog: 16,
            session: SessionOptions::default(),
        }
    }
}

impl ServerOptions {
    /// How many descriptors those who can connect to a server with these options may make this process have open at once, whatever they do, where its device has so many interrupt vectors. What the device keeps of
    /// its own comes on top.
    #[must_use]
    pub const fn descriptors(&self, vectors: usize) -> usize {
        // The listener; the client; whoever waits, is being refused or has left descriptors in his connection, and the one that was let in although these were as many as may be.
        let connections = 2 + 2 * Server::REFUSALS + Server::STRANGERS + 1;
        // A message, as many as the kernel passes beside the piece of it that has too many, a copy of one of them, and the one beside a reply.
        let message = self.session.capabilities.max_msg_fds as usize + MAX_DESCRIPTORS + 2;
        // Where each eventfd has a thread, that of a session before may not have let go of its own.
        let eventfds = 2 * vectors;
        connections
            .saturating_add(message)
            .saturating_add(eventfds)
            // What sessions have left, and what the one that is there brings.
            .saturating_add(self.session.max_unclosed.saturating_mul(2))
    }
}

/// Why a device cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another server listens on the socket.
    #[error("{path} is served by another process", path = .path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else is there under that name.
    #[error("{path} exists and is not a socket", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The device [cannot tell](Device::is_broken) what it does with its client's memory.
    #[error("what is served on {path} has failed and cannot be trusted any more", path = .path.display())]
    Broken {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{step} {path} failed", path = .path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Serves a device on a Unix socket. The socket is removed when the server is dropped, if it is still this server's.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: BoundPath,
    options: ServerOptions,
    /// Who closes what those leave behind that have no session, admitted or not.
    strangers: Closer,
}

impl Server {
    /// How long nobody is accepted after the system had no descriptor for one.
    const NO_DESCRIPTOR: Duration = Duration::from_millis(100);
    /// How long nobody is accepted while there is too much to be closed, before it is looked again; and after how many such looks that is worth a word.
    const UNCLOSED: Duration = Duration::from_millis(50);
    const LOOKS: u32 = 20;
    /// With so many descriptors still to be closed that came over connections without a session, nobody is accepted.
    const STRANGERS: usize = 64;
    /// And with so many sessions that are over and have left something to be closed: each has threads of its own for it.
    const LEFT: usize = 16;
    /// Clients that are being told that somebody else is there, and those that wait for it, at most so many each.
    const REFUSALS: usize = 16;
    /// How long a client waits for the one that is there before it is refused. A process that was killed can leave its connection open for a moment longer than it lives
    /// (the kernel ends its io_uring requests later), and whoever starts it anew is not to be told that somebody is there.
    const GRACE: Duration = Duration::from_secs(1);

    /// Listens on a socket. One that a server left behind is replaced; one that a server listens on is not.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(path: &Path, options: ServerOptions) -> Result<Self, ServerError> {
        let (listener, path) = path::bind(
            path,
            options.mode,
            options.owner,
            options.group,
            options.backlog,
        )?;
        Ok(Self {
            listener: listener.into(),
            path,
            options,
            strangers: Closer::default(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.path()
    }

    /// Serves one client after the other, until `stop` is set. A client that comes while another is there is told `EBUSY` unless that one goes within a second; one that comes while the device still lets go of its
    /// predecessor's memory waits for that.
    ///
    /// Returns when the device has let go of the last client's memory.
    ///
    /// # Errors
    /// [`ServerError::System`] when the listening socket fails, with no client there any more. Nothing that a client does leads to it. [`ServerError::Broken`] as soon as it is seen that the device is, whether its client
    /// is still there or not, and whether the device has let go of that one's memory or not.
    pub fn run(&self, device: &dyn Device, stop: &Stop) -> Result<(), ServerError> {
        let mut serving = Serving {
            server: self,
            session: None,
            newcomers: VecDeque::new(),
            refusals: Vec::new(),
            left: Vec::new(),
            shut: 0,
            accept_again: None,
            failed: None,
        };
        let mut incoming = true;
        loop {
            let leaving = stop.is_set() || serving.failed.is_some();
            if leaving {
                serving.newcomers.clear();
                serving.refusals.clear();
                match &mut serving.session {
                    None => return serving.failed.map_or(Ok(()), Err),
                    Some((session, _)) => session.end(SessionEnd::Stopped),
                }
            }
            serving.poll_session(device);
            if device.is_broken() {
                let path = self.path().to_owned();
                return Err(ServerError::Broken { path });
            }
            if !leaving {
                serving.attend_newcomers(device);
                if incoming {
                    serving.accept(device);
                }
                serving.refusals.retain_mut(|refusal| !refusal.poll());
            }
            incoming = serving.wait(stop, leaving);
        }
    }
}

/// Whoever waits to be accepted is sent away, with whatever he has sent already.
impl Drop for Server {
    fn drop(&mut self) {
        // From here on nobody else comes. The listener does not block, so this ends.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(socket) = Socket::from_descriptor(stream.into()) {
                drop(Connection::new(socket, self.strangers.clone()));
            }
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// What [`Server::run`] keeps between two waits.
struct Serving<'a> {
    server: &'a Server,
    session: Option<(Session, Peer)>,
    /// Who came while somebody was there, and until when they wait; the first to come first.
    newcomers: VecDeque<(Connection, Peer, Instant)>,
    refusals: Vec<Refusal>,
    /// Who closes what earlier sessions brought, where something is left of it.
    left: Vec<Closer>,
    /// How often in a row too much of that was left.
    shut: u32,
    /// When to let somebody in again, after descriptors had run out or too many were to be closed.
    accept_again: Option<Instant>,
    failed: Option<ServerError>,
}

impl Serving<'_> {
    fn poll_session(&mut self, device: &dyn Device) {
        let Some((session, peer)) = &mut self.session else {
            return;
        };
        let state = session.poll(device);
        let refused = session.take_refused_maps();
        if let Some(doorkeeper) = &self.server.options.doorkeeper {
            for map in &refused {
                doorkeeper.memory_refused(peer, map);
            }
        }
        if state == SessionState::Ended {
            if let Some(reason) = session.end_reason() {
                tracing::info!(pid = peer.pid, %reason, "a client has left");
                if let Some(doorkeeper) = &self.server.options.doorkeeper {
                    doorkeeper.left(peer, reason);
                }
            }
            self.left.push(session.closer().clone());
            self.session = None;
        }
    }

    /// Whether a client's end is being dealt with.
    fn is_ending(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|(session, _)| session.state() != SessionState::Open)
    }

    /// Whether connections are looked at: not while a client's end is being dealt with, so that its successor is let in and not refused.
    fn listens(&self) -> bool {
        !self.is_ending() && self.rests_until().is_none()
    }

    /// Until when nobody is let in, where that is so.
    fn rests_until(&self) -> Option<Instant> {
        self.accept_again.filter(|again| *again > Instant::now())
    }

    /// Whether what was left to be closed is so little that somebody may be let in. If not, it is looked again later.
    fn is_open(&mut self) -> bool {
        let mut left = 0;
        self.left.retain(|closer| {
            let unclosed = closer.unclosed();
            left += unclosed;
            unclosed > 0
        });
        let open = left < self.server.options.session.max_unclosed.max(1)
            && self.left.len() < Server::LEFT
            && self.server.strangers.unclosed() < Server::STRANGERS;
        if open {
            self.shut = 0;
        } else {
            self.shut = self.shut.saturating_add(1);
            self.accept_again = Some(Instant::now() + Server::UNCLOSED);
            if self.shut == Server::LOOKS {
                tracing::warn!(
                    "no client is accepted while what earlier ones have sent cannot be closed"
                );
            }
        }
        open
    }

    /// Whether a connection is taken now. What a client that is gone has left to do comes first, too.
    fn accepts(&self) -> bool {
        self.listens()
            && !self
                .session
                .as_ref()
                .is_some_and(|(session, _)| session.is_hung_up())
    }

    fn accept(&mut self, device: &dyn Device) {
        // No more than could wait, so that the session has its turn.
        for _ in 0..=self.server.options.backlog {
            if !self.accepts() {
                return;
            }
            self.accept_again = None;
            // Who waits to be accepted has no descriptor of this process, and nothing that it would have to close.
            if !self.is_open() {
                return;
            }
            // Nothing here waits: the listener does not, and neither does a `Socket`.
            let error = match self.server.listener.accept() {
                Ok((stream, _)) => {
                    self.welcome(stream.into(), device);
                    continue;
                }
                Err(error) => error,
            };
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EINTR | Errno::ECONNABORTED => {}
                Errno::EAGAIN => return,
                Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                    tracing::warn!(%error, "no client can be accepted for now");
                    self.accept_again = Some(Instant::now() + Server::NO_DESCRIPTOR);
                    return;
                }
                _ => {
                    self.failed = Some(ServerError::System {
                        step: "accepting a client on",
                        path: self.server.path().to_owned(),
                        source: error,
                    });
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, descriptor: OwnedFd, device: &dyn Device) {
        let socket = match Socket::from_descriptor(descriptor) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "a connection is of no use");
                return;
            }
        };
        let peer = Peer::of(&socket);
        let admitted = match (&peer, &self.server.options.doorkeeper) {
            (Ok(peer), Some(doorkeeper)) => doorkeeper.admit(peer),
            (Ok(_), None) => Ok(()),
            (Err(_), _) => Err(Errno::EACCES),
        };
        // Also of one that is admitted: it may never have a session.
        let socket = Connection::new(socket, self.server.strangers.clone());
        let peer = match peer {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a client that the system does not know");
                return;
            }
        };
        if let Err(errno) = admitted {
            return self.refuse(socket, &peer, &Refused::NotAdmitted(errno));
        }
        if self.session.is_none() {
            return self.begin(socket, peer, device);
        }
        if self.newcomers.len() >= Server::REFUSALS
            && let Some((oldest, peer, _)) = self.newcomers.pop_front()
        {
            self.refuse(oldest, &peer, &Refused::Busy);
        }
        let until = Instant::now() + Server::GRACE;
        self.newcomers.push_back((socket, peer, until));
    }

    fn refuse(&mut self, socket: Connection, peer: &Peer, why: &Refused) {
        if let Some(doorkeeper) = &self.server.options.doorkeeper {
            doorkeeper.refused(peer, why);
        }
        if self.refusals.len() >= Server::REFUSALS {
            // The oldest has had the most time.
            self.refusals.remove(0);
        }
        let answer = match why {
            Refused::NotAdmitted(errno) => *errno,
            Refused::Busy => Errno::EBUSY,
        };
        self.refusals.push(Refusal::new(socket, answer));
    }

    /// Lets in who came first, if nobody is there any more, and refuses those whose time is over.
    fn attend_newcomers(&mut self, device: &dyn Device) {
        while self.session.is_none()
            && self.rests_until().is_none()
            && !self.newcomers.is_empty()
            && self.is_open()
            && let Some((socket, peer, _)) = self.newcomers.pop_front()
        {
            self.begin(socket, peer, device);
        }
        let now = Instant::now();
        while let Some((_, _, until)) = self.newcomers.front()
            && *until <= now
            && self.is_taken()
            && let Some((socket, peer, _)) = self.newcomers.pop_front()
        {
            self.refuse(socket, &peer, &Refused::Busy);
        }
    }

    /// Whether a client is there, and not just being let go. One that is gone is not there, however much it has left to do.
    fn is_taken(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| {
            session.state() == SessionState::Open && !session.is_hung_up()
        })
    }

    fn begin(&mut self, socket: Connection, peer: Peer, device: &dyn Device) {
        match Session::over(socket, self.server.options.session.clone()) {
            Ok(session) => {
                let Peer { pid, uid, gid, .. } = peer;
                tracing::info!(pid, uid, gid, "a client has connected");
                if let Some(doorkeeper) = &self.server.options.doorkeeper {
                    doorkeeper.connected(&peer);
                }
                self.session = Some((session, peer));
                // It has often said its version already.
                self.poll_session(device);
            }
            Err(error) => tracing::warn!(%error, "a client that the system does not know"),
        }
    }

    /// Sleeps until something can be done. True when connections should be looked at.
    fn wait(&self, stop: &Stop, leaving: bool) -> bool {
        // Asked once: whoever rests is woken when that is over, and whoever does not is woken by the listener, whatever time passes here.
        let rests_until = self.rests_until();
        if self.session.is_none() && !self.newcomers.is_empty() && rests_until.is_none() {
            return false;
        }
        let mut waiting = Vec::with_capacity(3 + self.refusals.len());
        let mut until = None;
        if let Some((session, _)) = &self.session {
            until = session.deadline();
            if let Some(interest) = session.interest() {
                waiting.push(PollFd::new(session.as_fd(), interest));
            }
        } else if leaving {
            return false;
        }
        let listening = !leaving && !self.is_ending() && rests_until.is_none();
        if !leaving {
            waiting.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
            let refusals = self.refusals.iter();
            waiting.extend(refusals.map(|refusal| PollFd::new(refusal.as_fd(), PollFlags::POLLIN)));
            let newcomers = self.newcomers.iter().map(|(_, _, until)| *until);
            let taken = !self.newcomers.is_empty() && self.is_taken();
            let newcomers = newcomers.filter(|_| taken);
            let deadlines = self.refusals.iter().map(Refusal::deadline).chain(newcomers);
            until = deadlines.chain(until).chain(rests_until).min();
        }
        if listening {
            // The last, where its answer is looked for.
            waiting.push(PollFd::new(self.server.listener.as_fd(), PollFlags::POLLIN));
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Whatever it answers: everything else is looked at again.
        let answer = ppoll(&mut waiting, left.map(TimeSpec::from_duration), None);
        let again = self
            .accept_again
            .is_some_and(|again| again <= Instant::now());
        let answered = waiting.last().and_then(PollFd::any).unwrap_or(true);
        again || listening && answer.is_ok() && answered
    }
}
