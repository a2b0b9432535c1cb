//! The file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Group and others may not write to it.
const FOREIGN_WRITE: u32 = 0o022;

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file could not be opened, created, looked at or read.
    #[error("cannot open the audit's file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is a directory, a device, a pipe or a symbolic link.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others could write into it, so that nobody could trust what it says.
    #[error("{path} can be written by others (owner {owner}, mode {mode:03o})")]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Another process writes to it.
    #[error("another process writes its audit to {path}")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no thread.
    #[error("cannot start the audit's thread")]
    Thread(#[source] io::Error),
    /// The file took no more at the end.
    #[error("{lines} lines of the audit could not be written")]
    Write {
        /// Lines that were made and are not in the file. What still waited in the rings is not among them.
        lines: u64,
        /// What the system answered.
        source: io::Error,
    },
}

/// Opens the audit's file, to be appended to, and takes it for this process alone. A new one is readable and writable by its owner only. A last line that an
/// earlier process did not finish is ended, so that it cannot spoil the next.
///
/// The returned file's `flush` waits until its data is on the media.
///
/// # Errors
/// [`AuditError::Open`], [`NotAFile`](AuditError::NotAFile), [`NotOurs`](AuditError::NotOurs) and [`InUse`](AuditError::InUse).
pub fn open(path: &Path) -> Result<impl Write + Send + std::fmt::Debug + use<>, AuditError> {
    let failed = |source| AuditError::Open {
        path: path.to_owned(),
        source,
    };
    // Not followed: whoever may write to the directory could make the server write elsewhere. Not blocking: opening a pipe would wait for its reader.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut file = match OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(AuditError::NotAFile {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(AuditError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mode = metadata.permissions().mode() & 0o777;
    let owner = metadata.uid();
    let me = nix::unistd::geteuid().as_raw();
    if mode & FOREIGN_WRITE != 0 || (owner != me && owner != 0) {
        return Err(AuditError::NotOurs {
            path: path.to_owned(),
            owner,
            mode,
        });
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(AuditError::InUse {
                path: path.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    end_last_line(&mut file).map_err(failed)?;
    Ok(AuditFile(file))
}

fn end_last_line(file: &mut File) -> io::Result<()> {
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(())
}

#[derive(Debug)]
struct AuditFile(File);

impl Write for AuditFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
