//! Memory that is lent to a vfio-user server.
#![allow(unsafe_code)] // the contract of mapping is the server's to keep, and unmapping says when it has

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nvme_vfio_dma::{
    DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, UnmapError, check_region,
};
use nvme_vfio_user::message::DmaAccess;
use nvme_vfio_user::{Client, ClientError};

/// The addresses that are given out: above what firmware and interrupts use on a PC, and below what the smallest IOMMU in use would take.
const FIRST: u64 = 1 << 20;
const LAST: u64 = (1 << 47) - 1;

/// The address space that the client of a vfio-user server makes for its device.
///
/// Memory goes there with its descriptor, so the server maps the file, not this process's memory: whatever the server does, it reaches
/// no page that was not lent to it, and pages stay the file's until the server has let go of them too.
///
/// Everything is lent for reading and writing, whatever the device needs. The descriptor lets the server map it so anyway, hence nothing
/// is won by saying less, and SPDK's target clears the memory of submission queues, which ends it where that is read-only.
#[derive(Debug)]
pub(super) struct ServedDomain {
    id: DomainId,
    client: Arc<Client>,
    /// Mappings that there are.
    mappings: AtomicU32,
}

impl ServedDomain {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self {
            id: DomainId::new(),
            client,
            mappings: AtomicU32::new(0),
        }
    }
}

fn os(error: ClientError) -> io::Error {
    match error.errno() {
        Some(errno) => io::Error::from(errno),
        None => io::Error::other(error),
    }
}

impl IommuDomain for ServedDomain {
    fn id(&self) -> DomainId {
        self.id
    }

    fn limits(&self) -> DomainLimits {
        let capabilities = self.client.capabilities();
        let mappings = self.mappings.load(Ordering::Relaxed);
        DomainLimits {
            iova_ranges: vec![FIRST..=LAST],
            page_sizes: capabilities.pgsizes,
            mappings: Some(capabilities.max_dma_maps.saturating_sub(mappings)),
        }
    }

    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        check_region(&self.limits(), region, iova)?;
        // Memory without one could be reached by DMA_READ and DMA_WRITE only, which neither this driver nor most servers offer.
        let file = region.descriptor.ok_or(MapError::NotShareable)?;
        let length = region.length;
        self.client
            .dma_map(iova.0, length as u64, DmaAccess::all(), Some(file))
            .map_err(|error| match error.errno() {
                Some(Errno::EEXIST) => MapError::Overlap { iova, length },
                Some(Errno::ENOSPC) => MapError::TooManyMappings,
                _ => MapError::Os(os(error)),
            })?;
        self.mappings.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        match self.client.dma_unmap(iova.0, length as u64) {
            Ok(()) => {}
            // Nothing more can be asked, and the memory can go all the same: this process's part of the file ends here, and its pages are given to
            // nobody else while the server has the file. What a command still in flight would write is in quarantine, and does not come here.
            Err(_) if self.client.is_lost() => {}
            Err(error) => {
                return Err(match error.errno() {
                    Some(Errno::ENOENT) => UnmapError::NotMapped { iova, length },
                    _ => UnmapError::Os(os(error)),
                });
            }
        }
        self.mappings.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}
