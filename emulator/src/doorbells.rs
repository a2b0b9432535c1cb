//! The doorbell registers: memory that a client of a served controller can map.
#![allow(unsafe_code)] // A mapping of a file becomes a slice of atomics, in one place.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of the file before the first doorbell: the controller registers are there in BAR 0, and are not memory.
const BEFORE: u64 = 0x1000;

/// The doorbell registers of a controller, a `u32` for each 4 bytes of BAR 0 from 0x1000 on: the tail of submission queue `q` is at
/// index `2 * q << DSTRD`, the head of completion queue `q` at `(2 * q + 1) << DSTRD`. Doorbells that were never written are 0.
///
/// They are memory of a file, laid out as BAR 0 is (its first page stays empty), that nobody can shrink, grow or seal further, so that another process may map it, and neither side can
/// make the other fault. Who has mapped it can write it for as long as it likes: [`Emulator::renew_doorbells`](crate::Emulator::renew_doorbells)
/// gives the controller other ones. Where there is no memory for those, it has [some that nobody can map](Doorbells::file).
#[derive(Debug)]
pub struct Doorbells {
    file: Option<File>,
    map: MmapRaw,
}

impl Doorbells {
    /// `bytes` of doorbells, whole pages, all 0.
    ///
    /// # Errors
    /// What the system says when it does not give the memory.
    pub(crate) fn new(bytes: u64) -> io::Result<Doorbells> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"nvme-vfio-doorbells", flags)?);
        file.set_len(BEFORE + bytes)?;
        let length =
            i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // Without its pages set aside, a lack of memory would be a SIGBUS at the first touch.
        while let Err(errno) = fallocate(&file, FallocateFlags::empty(), BEFORE as i64, length) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let map = MmapOptions::new().offset(BEFORE).map_raw(&file)?;
        let file = Some(file);
        Ok(Doorbells { file, map })
    }

    /// `bytes` of doorbells, whole pages, all 0, that no other process can map.
    ///
    /// # Errors
    /// What the system says when it does not give the memory.
    pub(crate) fn unshared(bytes: u64) -> io::Result<Doorbells> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(bytes).map_anon()?.into();
        Ok(Doorbells { file: None, map })
    }

    /// The file, in which the first doorbell is at 0x1000; `None` for doorbells that nobody else can map.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Sets all to 0.
    pub(crate) fn clear(&self) {
        for doorbell in self.iter() {
            doorbell.store(0, Ordering::Relaxed);
        }
    }
}

impl Deref for Doorbells {
    type Target = [AtomicU32];

    #[inline]
    #[allow(clippy::cast_ptr_alignment)] // a mapping begins with a page
    fn deref(&self) -> &[AtomicU32] {
        let count = self.map.len() / size_of::<AtomicU32>();
        // SAFETY: the mapping is page-aligned, readable, writable, `count` dwords long, and lives as long as the borrow; a file behind it is sealed,
        // so no page of it goes away. Whoever else writes the memory races with atomic accesses only.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU32>(), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::cast_ptr_alignment)] // a mapping begins with a page
    fn another_mapping_rings_and_nobody_can_cut_it() {
        let doorbells = Doorbells::new(8192).unwrap();
        assert_eq!(doorbells.len(), 2048);
        let file = File::from(doorbells.file().unwrap().try_clone_to_owned().unwrap());
        let theirs = MmapOptions::new().offset(BEFORE).map_raw(&file).unwrap();
        // SAFETY: inside the mapping, and nobody else writes it meanwhile.
        unsafe { theirs.as_mut_ptr().cast::<u32>().add(2047).write(7) };
        assert_eq!(doorbells[2047].load(Ordering::Relaxed), 7);
        doorbells.clear();
        assert_eq!(doorbells[2047].load(Ordering::Relaxed), 0);
        for length in [0, 8192, 16384] {
            assert!(file.set_len(length).is_err(), "cut to {length}");
        }
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
    }

    #[test]
    fn those_without_a_file_are_as_many() {
        let doorbells = Doorbells::unshared(8192).unwrap();
        assert!(doorbells.file().is_none());
        assert_eq!(doorbells.len(), 2048);
        doorbells[2047].store(7, Ordering::Relaxed);
        assert_eq!(doorbells[2047].load(Ordering::Relaxed), 7);
        doorbells.clear();
        assert!(doorbells.iter().all(|one| one.load(Ordering::Relaxed) == 0));
    }
}
