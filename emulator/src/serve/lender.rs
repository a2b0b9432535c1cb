//! Memory of clients that is lent on to a real device.

use std::fmt::Debug;

use nvme_vfio_dma::{Access, IommuDomain, Iova};
use nvme_vfio_user::ClientMemory;
use nvme_vfio_user::device::Errno;

use super::{ServedController, bytes};

/// Lends clients' memory on to a real device.
///
/// Its methods are called from the thread that polls the session, with no lock held that commands need; what they take, their client waits for.
pub trait Lender: Send + Sync + Debug {
    /// Maps memory that a client has lent for the real device, which may access it as `access` says; the address at which it sees the memory, all of it in one piece.
    ///
    /// # Errors
    /// What the client is told. Nothing is mapped then.
    fn lend(&self, memory: &ClientMemory, access: Access) -> Result<Iova, Errno>;

    /// Takes memory back that was lent at `iova`: no command that names it is in flight, and none can come. The memory is this process's until its handle is dropped, which must not happen
    /// where it could not be unmapped.
    fn take_back(&self, iova: Iova, memory: ClientMemory);
}

/// A mapping of the client.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) length: u64,
    /// The memory, and where the real device sees it.
    pub(super) memory: Option<(ClientMemory, Option<Iova>)>,
}

impl ServedController {
    pub(super) fn take_back(&self, lent: Iova, memory: ClientMemory) {
        if let Some(lender) = &self.lender {
            lender.take_back(lent, memory);
        }
    }
}

impl Drop for ServedController {
    /// The controller may live on, and its handler with commands in flight: what those name is not let go of.
    fn drop(&mut self) {
        self.emulator.pause(true);
        let busy = self.emulator.is_broken() || self.emulator.any_in_flight(u64::MAX);
        let mappings = std::mem::take(&mut self.client().memory);
        for (iova, mapping) in mappings {
            let Some((memory, lent)) = mapping.memory else {
                continue;
            };
            let unmapped = bytes(mapping.length)
                .is_ok_and(|length| !busy && self.iommu.unmap(Iova(iova), length).is_ok());
            match lent {
                _ if !unmapped => {
                    tracing::warn!(iova, "memory of a client is kept: it is in use");
                    std::mem::forget(memory);
                }
                Some(lent) => self.take_back(lent, memory),
                None => {}
            }
        }
        self.emulator.pause(false);
    }
}
