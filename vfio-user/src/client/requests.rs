//! What a client can ask.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Client, MAX_DATA, MappedRegion};
use crate::error::{AnswerError, ClientError};
use crate::message::{
    DeviceInfo, DmaAccess, DmaMap, DmaUnmap, IrqAction, IrqInfo, IrqSetData, RegionAccess,
    RegionInfo, Reply, Request, SetIrqs,
};

/// What a client asks with when it wants to know of a region: enough for a hundred areas.
const REGION_ARGSZ: u32 = 2048;
/// The most that it asks with.
const REGION_ARGSZ_MAX: u32 = 64 << 10;
/// Regions and kinds of interrupt that a device may claim to have.
const MAX_INDEXES: u32 = 256;

/// No reply but one about a region may come with descriptors.
fn none<R>(descriptors: &[OwnedFd], result: R) -> Result<R, AnswerError> {
    match descriptors.len() {
        0 => Ok(result),
        count => Err(AnswerError::Descriptors(count)),
    }
}

impl Client {
    /// What the device is (DEVICE_GET_INFO).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn device_info(&self) -> Result<DeviceInfo, ClientError> {
        self.call(&Request::DeviceGetInfo, &[], |reply, fds| match reply {
            Reply::DeviceGetInfo(info)
                if info.regions <= MAX_INDEXES && info.irqs <= MAX_INDEXES =>
            {
                none(&fds, info)
            }
            _ => Err(AnswerError::Differs),
        })
    }

    /// What a region is (DEVICE_GET_REGION_INFO), and the descriptor through which it can be mapped.
    pub(super) fn region(&self, index: u32) -> Result<(RegionInfo, Option<OwnedFd>), ClientError> {
        let mut argsz = REGION_ARGSZ;
        loop {
            let request = Request::DeviceGetRegionInfo { argsz, index };
            let answer = self.call(&request, &[], |reply, mut fds| match reply {
                Reply::DeviceGetRegionInfo(info) if info.index == index => match fds.len() {
                    0 | 1 => Ok(Ok((info, fds.pop()))),
                    count => Err(AnswerError::Descriptors(count)),
                },
                Reply::DeviceGetRegionInfoShort { needed } if needed > argsz => {
                    // Asked once more, and not again and again by a server that never has enough.
                    if needed > REGION_ARGSZ_MAX || argsz > REGION_ARGSZ {
                        return Err(AnswerError::TooLong(needed));
                    }
                    // With a descriptor or without: it comes again with the whole answer.
                    Ok(Err(needed))
                }
                _ => Err(AnswerError::Differs),
            })?;
            match answer {
                Ok(region) => return Ok(region),
                Err(needed) => argsz = needed,
            }
        }
    }

    /// What a region is (DEVICE_GET_REGION_INFO).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_info(&self, index: u32) -> Result<RegionInfo, ClientError> {
        self.region(index).map(|(info, _)| info)
    }

    /// Maps what can be mapped of a region.
    ///
    /// # Errors
    /// [`ClientError::Region`] where nothing can be, or where what the server describes cannot be mapped safely; [`ClientError::Map`].
    pub fn map_region(&self, index: u32) -> Result<MappedRegion, ClientError> {
        let (info, descriptor) = self.region(index)?;
        MappedRegion::new(&info, descriptor.as_ref())
    }

    /// What a kind of interrupt is (DEVICE_GET_IRQ_INFO).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, ClientError> {
        self.call(
            &Request::DeviceGetIrqInfo { index },
            &[],
            |reply, fds| match reply {
                Reply::DeviceGetIrqInfo(info) if info.index == index => none(&fds, info),
                _ => Err(AnswerError::Differs),
            },
        )
    }

    /// Most bytes that one message may read or write.
    fn transfer(&self) -> usize {
        self.capabilities().max_data_xfer_size.min(MAX_DATA) as usize
    }

    /// Reads `data.len()` bytes of a region from `offset` on (REGION_READ), as one access where the server takes so many.
    ///
    /// # Errors
    /// See [`ClientError`]. `data` may have been changed in part.
    pub fn region_read(
        &self,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), ClientError> {
        let mut at = offset;
        for chunk in data.chunks_mut(self.transfer()) {
            let access = RegionAccess {
                offset: at,
                region,
                count: chunk.len() as u32,
            };
            at = end_of(&access)?;
            self.call(
                &Request::RegionRead(access),
                &[],
                |reply, fds| match reply {
                    Reply::RegionRead(done, bytes)
                        if done == access && bytes.len() == chunk.len() =>
                    {
                        chunk.copy_from_slice(bytes);
                        none(&fds, ())
                    }
                    _ => Err(AnswerError::Differs),
                },
            )?;
        }
        Ok(())
    }

    /// Writes `data` into a region from `offset` on (REGION_WRITE), as one access where the server takes so much, and waits until that is done.
    ///
    /// # Errors
    /// See [`ClientError`]. Part of it may have been written.
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let mut at = offset;
        for chunk in data.chunks(self.transfer()) {
            let access = RegionAccess {
                offset: at,
                region,
                count: chunk.len() as u32,
            };
            at = end_of(&access)?;
            let request = Request::RegionWrite(access, chunk);
            self.call(&request, &[], |reply, fds| match reply {
                Reply::RegionWrite(done) if done == access => none(&fds, ()),
                _ => Err(AnswerError::Differs),
            })?;
        }
        Ok(())
    }

    /// Writes `data` into a region and does not wait (REGION_WRITE that asks for no reply). What is asked later is done later. Whether the server
    /// did it is not told. Waits only while the socket takes no more.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::Region`] for more data than one message takes.
    pub fn region_write_posted(
        &self,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        if data.len() > self.transfer() {
            return Err(ClientError::Region {
                index: region,
                reason: "more data than one message takes",
            });
        }
        let access = RegionAccess {
            offset,
            region,
            count: data.len() as u32,
        };
        end_of(&access)?;
        self.post(&Request::RegionWrite(access, data))
    }

    /// Lends memory to the device (DMA_MAP): `length` bytes of a file from an offset on, or memory that only messages could reach, which few servers
    /// take.
    ///
    /// # Errors
    /// See [`ClientError`]; EEXIST where something is mapped there already.
    pub fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), ClientError> {
        let map = DmaMap {
            access,
            offset: file.map_or(0, |(_, offset)| offset),
            address: iova,
            length,
        };
        let descriptors = file.map(|(descriptor, _)| descriptor);
        self.call(
            &Request::DmaMap(map),
            descriptors.as_slice(),
            |reply, fds| match reply {
                Reply::DmaMap => none(&fds, ()),
                _ => Err(AnswerError::Differs),
            },
        )
    }

    /// Takes memory back (DMA_UNMAP), exactly as it was mapped. When this succeeds the server says that the device has let go of it.
    ///
    /// # Errors
    /// See [`ClientError`]. The memory must be taken for still mapped.
    pub fn dma_unmap(&self, iova: u64, length: u64) -> Result<(), ClientError> {
        let unmap = DmaUnmap::Region {
            address: iova,
            length,
        };
        self.call(&Request::DmaUnmap(unmap), &[], |reply, fds| match reply {
            Reply::DmaUnmap(done) if done == unmap => none(&fds, ()),
            _ => Err(AnswerError::Differs),
        })
    }

    /// Acts on interrupts without descriptors (DEVICE_SET_IRQS).
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::Descriptors`] for [`IrqSetData::Eventfd`], for which [`set_irq_eventfds`](Self::set_irq_eventfds) is.
    pub fn set_irqs(&self, set: &SetIrqs<'_>) -> Result<(), ClientError> {
        if set.data == IrqSetData::Eventfd {
            return Err(ClientError::Descriptors { limit: 0 });
        }
        self.send_irqs(set, &[])
    }

    /// Has eventfds signalled when interrupts from `start` on are raised, one for each; `None` takes one away. In as many messages as the server's
    /// `max_msg_fds` needs.
    ///
    /// # Errors
    /// See [`ClientError`]. Some may have been set.
    pub fn set_irq_eventfds(
        &self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), ClientError> {
        let limit = self.capabilities().max_msg_fds;
        if limit == 0 && eventfds.iter().any(Option::is_some) {
            return Err(ClientError::Descriptors { limit });
        }
        let most = (limit as usize).clamp(1, crate::socket::MAX_DESCRIPTORS);
        let mut start = start;
        // A message has a descriptor for each interrupt of its range, or none at all.
        for run in eventfds.chunk_by(|one, next| one.is_some() == next.is_some()) {
            for part in run.chunks(most) {
                let descriptors: Vec<BorrowedFd<'_>> = part.iter().copied().flatten().collect();
                let set = SetIrqs {
                    index,
                    start,
                    count: part.len() as u32,
                    action: IrqAction::Trigger,
                    data: IrqSetData::Eventfd,
                };
                self.send_irqs(&set, &descriptors)?;
                start = start.saturating_add(set.count);
            }
        }
        Ok(())
    }

    fn send_irqs(
        &self,
        set: &SetIrqs<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.call(
            &Request::DeviceSetIrqs(*set),
            descriptors,
            |reply, fds| match reply {
                Reply::DeviceSetIrqs => none(&fds, ()),
                _ => Err(AnswerError::Differs),
            },
        )
    }

    /// Resets the device (DEVICE_RESET).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reset(&self) -> Result<(), ClientError> {
        self.call(&Request::DeviceReset, &[], |reply, fds| match reply {
            Reply::DeviceReset => none(&fds, ()),
            _ => Err(AnswerError::Differs),
        })
    }
}

/// Where an access ends, which must be an offset.
fn end_of(access: &RegionAccess) -> Result<u64, ClientError> {
    access
        .offset
        .checked_add(access.count.into())
        .ok_or(ClientError::Region {
            index: access.region,
            reason: "the access runs past the last offset",
        })
}
