//! The socket's name in the file system.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_socket, connect, listen,
    socket,
};
use nix::sys::stat::{Mode, fchmod};

use super::ServerError;
use crate::device::Errno;

/// The name of a socket that this process has bound; removed when dropped, if it is still that socket's.
#[derive(Debug)]
pub(super) struct BoundPath {
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
}

impl BoundPath {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let _lock = lock_directory(&self.path);
        match identity(&self.path) {
            Ok(found) if found == self.identity => {
                match std::fs::remove_file(&self.path) {
                    Ok(()) => {}
                    // A server that has given up its privileges since: whoever serves here next removes it.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::debug!(path = %self.path.display(), %error, "the socket stays");
                    }
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "the socket cannot be removed");
                    }
                }
            }
            // Replaced or removed by somebody else: not this server's any more.
            _ => {}
        }
    }
}

/// Makes a listening socket at `path`.
pub(super) fn bind(
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
    backlog: u16,
) -> Result<(OwnedFd, BoundPath), ServerError> {
    let failed = |step: &'static str| {
        move |source: io::Error| ServerError::System {
            step,
            path: path.to_owned(),
            source,
        }
    };
    let refused = |step| move |errno: Errno| failed(step)(errno.into());
    let address = UnixAddr::new(path).map_err(refused("reading the path"))?;
    // No two servers find the same socket left behind.
    let lock = lock_directory(path);
    remove_stale(path, &address)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(refused("making a socket for"))?;
    // The name is made with the socket's own mode, less the umask: at no time may more connect than in the end.
    let mode = mode & 0o777;
    fchmod(listener.as_fd(), Mode::from_bits_truncate(mode))
        .map_err(refused("setting the mode of"))?;
    bind_socket(listener.as_raw_fd(), &address).map_err(|errno| match errno {
        Errno::EADDRINUSE => ServerError::InUse {
            path: path.to_owned(),
        },
        errno => refused("binding")(errno),
    })?;
    let bound = BoundPath {
        path: path.to_owned(),
        identity: identity(path).map_err(failed("looking at"))?,
    };
    if owner.is_some() || group.is_some() {
        lchown(path, owner, group).map_err(failed("giving away"))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(failed("setting the mode of"))?;
    let backlog = Backlog::new(backlog.clamp(1, 4096)).map_err(refused("listening on"))?;
    listen(&listener, backlog).map_err(refused("listening on"))?;
    drop(lock);
    Ok((listener, bound))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ServerError> {
    let system = |step| {
        move |source| ServerError::System {
            step,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("looking at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| system("making a socket for")(errno.into()))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => {
            std::fs::remove_file(path).map_err(system("removing what was left of"))
        }
        Err(Errno::ENOENT) => Ok(()),
        // Connected, or refused for want of room or rights: somebody may be there.
        _ => Err(ServerError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Keeps other servers of this directory from looking for sockets left behind, for as long as the lock is held. A directory that may not be read has no lock.
fn lock_directory(path: &Path) -> Option<Flock<File>> {
    /// Nobody holds it for longer than a bind takes. So many looks, and not a time: what holds this process up may hold up who has the lock, too.
    const LOOKS: u32 = 400;
    const AGAIN: Duration = Duration::from_millis(5);
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(directory)
        .ok()?;
    for _ in 0..LOOKS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EAGAIN | Errno::EINTR)) => file = back,
            Err(_) => return None,
        }
        std::thread::sleep(AGAIN);
    }
    None
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
