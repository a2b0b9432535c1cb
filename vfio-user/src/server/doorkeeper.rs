//! Who is let in, and who is told of it.

use std::fmt::Debug;
use std::time::Instant;

use thiserror::Error;

use crate::device::Errno;
use crate::process::{has_exited_by, of_peer};
use crate::session::{RefusedMap, SessionEnd};
use crate::socket::{Deadline, Socket, SocketError};

/// A client's process as the kernel knew it when it connected; never what the client says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; 0 for one of another namespace.
    pub pid: i32,
    /// When the process started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`), which tells it from a later one with the same number. `None` where that could not be learned, because
    /// it has gone already or may not be looked at.
    pub start_time: Option<u64>,
}

impl Peer {
    /// Who is at the other end of a socket.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of(socket: &Socket) -> Result<Self, SocketError> {
        let credentials = socket.peer()?;
        let pid = credentials.pid();
        let start_time = of_peer(socket).and_then(|process| {
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            // It still had its number when the file was read.
            let lives = !has_exited_by(&process, Deadline::at(Instant::now()));
            start_time(&stat).filter(|_| lives)
        });
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid,
            start_time,
        })
    }
}

/// Field 22 of `/proc/<pid>/stat`. The process chooses the second, its name, and may put anything into it.
fn start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Why a client was not let in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refused {
    /// The [`Doorkeeper`] did not admit it.
    #[error("it is not admitted")]
    NotAdmitted(#[source] Errno),
    /// Somebody else is there.
    #[error("somebody else is there")]
    Busy,
}

/// Decides who is let in, and is told of all who come and go. Its methods are called from the thread that runs the server, and must not block: the present client waits meanwhile.
pub trait Doorkeeper: Debug + Send + Sync {
    /// Whether a client may have a session. One that may not is told so in answer to its VERSION; it neither waits for anybody nor keeps anybody out.
    ///
    /// # Errors
    /// What it is told; `EACCES` says it best.
    fn admit(&self, peer: &Peer) -> Result<(), Errno>;

    /// A client's session has begun.
    fn connected(&self, peer: &Peer) {
        let _ = peer;
    }

    /// A client was not let in.
    fn refused(&self, peer: &Peer, why: &Refused) {
        let (_, _) = (peer, why);
    }

    /// Memory that a client offered was not taken.
    fn memory_refused(&self, peer: &Peer, map: &RefusedMap) {
        let (_, _) = (peer, map);
    }

    /// A client's session is over, and the device has let go of its memory.
    fn left(&self, peer: &Peer, why: &SessionEnd) {
        let (_, _) = (peer, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = |name: &str| {
            let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
            format!("1234 ({name}) S {}\n", fields.join(" ")).into_bytes()
        };
        assert_eq!(start_time(&stat("plain")), Some(22));
        assert_eq!(start_time(&stat(") S 1 2 3 4 (")), Some(22));
        let mut odd = stat("x");
        odd[6] = 0xff;
        assert_eq!(start_time(&odd), Some(22));
        assert_eq!(start_time(b"1 (x) S 1 2"), None);
        assert_eq!(start_time(b""), None);
    }

    #[test]
    fn the_peer_is_this_process() {
        let (one, _other) = Socket::pair().expect("sockets");
        let peer = Peer::of(&one).expect("known");
        assert_eq!(peer.pid, std::process::id() as i32);
        let stat = std::fs::read("/proc/self/stat").expect("there");
        assert_eq!(peer.start_time, start_time(&stat));
        assert!(peer.start_time.is_some());
    }
}
