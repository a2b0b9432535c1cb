//! One namespace's file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes that are copied, compared or zeroed at once.
const CHUNK: usize = 256 << 10;

/// A regular file that nobody else uses as a medium at the same time.
#[derive(Debug)]
pub(super) struct Medium {
    file: File,
    bytes: u64,
}

/// Why a read of the medium did not do.
pub(super) enum Compared {
    Same,
    Different,
}

impl Medium {
    /// Opens a file, or makes it, and makes it at least as long as asked.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Medium> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if !metadata.is_file() {
            return Err(named(io::Error::other("it is not a regular file")));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => named(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process uses it",
            )),
            TryLockError::Error(error) => named(error),
        })?;
        if metadata.len() < bytes {
            file.set_len(bytes).map_err(named)?;
            // Some files of the system take any length, and have none.
            if file.metadata().map_err(named)?.len() != bytes {
                return Err(named(io::Error::other("it cannot be made longer")));
            }
        }
        Ok(Medium { file, bytes })
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        self.settle(durable)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn settle(&self, durable: bool) -> io::Result<()> {
        if durable { self.flush() } else { Ok(()) }
    }

    pub(super) fn compare(&self, offset: u64, data: &[u8]) -> io::Result<Compared> {
        let mut buffer = vec![0; data.len().min(CHUNK)];
        for (index, expected) in data.chunks(CHUNK).enumerate() {
            let actual = buffer.get_mut(..expected.len()).unwrap_or_default();
            self.read(offset + (index * CHUNK) as u64, actual)?;
            if actual != expected {
                return Ok(Compared::Different);
            }
        }
        Ok(Compared::Same)
    }

    pub(super) fn verify(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut buffer = vec![0; length.min(CHUNK as u64) as usize];
        for (at, count) in chunks(offset, length) {
            self.read(at, buffer.get_mut(..count).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Makes a range read as zeroes, its room given back to the file system where that is wanted and it can.
    pub(super) fn zero(
        &self,
        offset: u64,
        length: u64,
        deallocate: bool,
        durable: bool,
    ) -> io::Result<()> {
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(Errno::EFBIG.into());
        };
        if count == 0 {
            return Ok(());
        }
        let how = if deallocate {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        match fallocate(
            &self.file,
            how | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            start,
            count,
        ) {
            Ok(()) => {}
            // Not every file system can.
            Err(Errno::EOPNOTSUPP | Errno::EINTR) => {
                let zeroes = vec![0; length.min(CHUNK as u64) as usize];
                for (at, count) in chunks(offset, length) {
                    let zeroes = zeroes.get(..count).unwrap_or_default();
                    self.file.write_all_at(zeroes, at)?;
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        self.settle(durable)
    }

    /// Makes all of it read as zeroes.
    pub(super) fn erase(&self) -> io::Result<()> {
        self.zero(0, self.bytes, true, false)
    }

    /// Copies from another medium or within this one, as if all had been read before the first was written.
    pub(super) fn copy(
        &self,
        source: &Medium,
        from: u64,
        to: u64,
        length: u64,
        durable: bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; length.min(CHUNK as u64) as usize];
        let mut pieces: Vec<_> = chunks(0, length).collect();
        if std::ptr::eq(self, source) && from < to {
            pieces.reverse();
        }
        for (at, count) in pieces {
            let buffer = buffer.get_mut(..count).unwrap_or_default();
            source.read(from + at, buffer)?;
            self.file.write_all_at(buffer, to + at)?;
        }
        self.settle(durable)
    }
}

/// A range in pieces of a chunk.
fn chunks(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length.div_ceil(CHUNK as u64)).map(move |index| {
        let done = index * CHUNK as u64;
        (offset + done, (length - done).min(CHUNK as u64) as usize)
    })
}
