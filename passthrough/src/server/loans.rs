//! Clients' memory, lent on to the real controllers.
#![allow(unsafe_code)] // lends memory that is mapped elsewhere, for as long as its handle is kept

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nvme_vfio::{AddressSpace, DmaError};
use nvme_vfio_dma::{Access, Iova, MapError, Memory, SharedMemory};
use nvme_vfio_emulator::Lender;
use nvme_vfio_user::ClientMemory;

/// The memory of one client in the IOMMU domain of its controllers. Each region of the client's takes one contiguous range of addresses there, which this side chooses, and allows
/// what the client allows.
#[derive(Debug)]
pub(super) struct Loans {
    space: AddressSpace,
    /// By the address that the controllers see.
    live: Mutex<BTreeMap<Iova, SharedMemory>>,
}

/// Only one thread at a time takes memory back, so that each can tell its own failure from another's.
static TAKING_BACK: Mutex<()> = Mutex::new(());

impl Loans {
    /// Nothing is lent yet.
    #[must_use]
    pub(super) fn new(space: AddressSpace) -> Loans {
        Loans {
            space,
            live: Mutex::default(),
        }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<Iova, SharedMemory>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lender for Loans {
    /// Maps memory for the controllers. It can take long: the kernel pins every page. The client is told `ENOMEM` past the limit of locked memory, and `ENOSPC` where
    /// the domain has no more addresses or mappings.
    fn lend(&self, memory: &ClientMemory, access: Access) -> Result<Iova, Errno> {
        #[cfg(test)]
        super::tests::panic_if_marked(memory.len() as u64);
        let page = self.space.page_size();
        // SAFETY: the bytes stay mapped in this process as long as a handle of `memory` lives. The caller keeps one until `take_back`, which drops the last one only when the
        // mapping for the device is gone. They are written only by devices, as far as `access` allows, which is what the client's mapping allows at most; this
        // process never goes through the `SharedMemory` itself.
        let lent = unsafe { Memory::from_raw_parts(memory.pointer(), memory.len(), page) };
        let mapped = self.space.map(lent, access).map_err(|rejected| {
            tracing::debug!(error = %rejected.error, bytes = memory.len(), "a client's memory cannot be lent on");
            errno(&rejected.error)
        })?;
        let iova = mapped.iova();
        self.live().insert(iova, mapped);
        Ok(iova)
    }

    fn take_back(&self, iova: Iova, memory: ClientMemory) {
        let mapped = self.live().remove(&iova);
        let _turn = TAKING_BACK.lock().unwrap_or_else(PoisonError::into_inner);
        let leaked = self.space.leaked_bytes();
        drop(mapped);
        if self.space.leaked_bytes() != leaked {
            // The device may still reach it: it stays mapped here as long as this process lives.
            mem::forget(memory);
        }
    }
}

impl Drop for Loans {
    /// What was never taken back may be in use: it stays mapped, so that no other client's memory gets its addresses, for as long as this process lives.
    fn drop(&mut self) {
        let live = self.live.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (iova, mapped) in mem::take(live) {
            tracing::warn!(%iova, "memory of a client stays mapped for the controllers: it was never taken back");
            mem::forget(mapped);
        }
    }
}

fn errno(error: &DmaError) -> Errno {
    let os = |error: &io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    match error {
        DmaError::OutOfIova { .. } | DmaError::Map(MapError::TooManyMappings) => Errno::ENOSPC,
        DmaError::Map(MapError::MemlockLimit { .. }) => Errno::ENOMEM,
        DmaError::Map(MapError::Os(error)) => os(error),
        DmaError::Map(MapError::NotShareable) => Errno::EOPNOTSUPP,
        DmaError::Memory { source, .. } => os(source),
        _ => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests;
