//! `DMA_UNMAP`: the reply waits until the device has let go.

use super::maps::Maps;
use crate::device::{Device, Errno, Progress};
use crate::message::{DmaUnmap, Header};

/// A `DMA_UNMAP` under way.
#[derive(Debug)]
pub(super) struct Unmap {
    header: Header,
    request: DmaUnmap,
    /// What the device has not let go of yet, as address and length.
    pending: Vec<(u64, u64)>,
    /// The first thing that went wrong.
    error: Option<Errno>,
}

impl Unmap {
    /// Tells the device to let go.
    ///
    /// # Errors
    /// `ENOENT` where nothing is mapped exactly so.
    pub(super) fn begin(
        header: Header,
        request: DmaUnmap,
        device: &dyn Device,
        maps: &mut Maps,
    ) -> Result<Self, Errno> {
        let ranges = match request {
            DmaUnmap::Region { address, length } if maps.contains(address, length) => {
                vec![(address, length)]
            }
            DmaUnmap::Region { .. } => return Err(Errno::ENOENT),
            DmaUnmap::All => maps.ranges(),
        };
        let mut unmap = Self {
            header,
            request,
            pending: ranges,
            error: None,
        };
        unmap.step(maps, |address, length| device.dma_unmap(address, length));
        Ok(unmap)
    }

    /// Asks the device how far it is. `None`: not done yet; else what to reply.
    pub(super) fn ask(
        &mut self,
        device: &dyn Device,
        maps: &mut Maps,
    ) -> Option<Result<(), Errno>> {
        self.step(maps, |address, length| device.unmapping(address, length));
        self.result()
    }

    /// What to reply, once everything has been let go of.
    pub(super) fn result(&self) -> Option<Result<(), Errno>> {
        self.pending
            .is_empty()
            .then(|| self.error.map_or(Ok(()), Err))
    }

    pub(super) const fn request(&self) -> (Header, DmaUnmap) {
        (self.header, self.request)
    }

    fn step(&mut self, maps: &mut Maps, mut ask: impl FnMut(u64, u64) -> Result<Progress, Errno>) {
        let error = &mut self.error;
        self.pending
            .retain(|&(address, length)| match ask(address, length) {
                Ok(Progress::Pending) => true,
                Ok(Progress::Done) => {
                    maps.remove(address);
                    false
                }
                Err(errno) => {
                    error.get_or_insert(errno);
                    false
                }
            });
    }
}
