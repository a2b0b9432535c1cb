//! What each request does.

use super::settling::{Began, Settling};
use super::unmap::Unmap;
use super::{Phase, RefusedMap, Session, SessionEnd};
use crate::closer::Sent;
use crate::device::{
    Device, DeviceFlags, Errno, IrqAction, IrqData, IrqFlags, Progress, Region, RegionFlags,
};
use crate::eventfd::{Eventfd, SignalThreads};
use crate::memory::{ClientMemory, page_size};
use crate::message::{
    Command, DmaMap, DmaUnmap, Header, IrqInfo, IrqSetData, Kind, RegionAccess, RegionInfo,
    RegionIoFds, RegionWrites, Reply, Request, SetIrqs,
};
use crate::socket::Message;

impl Session {
    /// Does what a message asks for, and puts the reply there. Its descriptors are apart.
    pub(super) fn handle(
        &mut self,
        message: &Message,
        descriptors: Vec<Sent>,
        device: &dyn Device,
    ) -> Result<(), SessionEnd> {
        if let Phase::Connected { .. } = self.phase {
            return self.negotiate(message, descriptors.len());
        }
        let Message {
            header, payload, ..
        } = message;
        if !matches!(header.kind, Kind::Command { .. }) {
            return Err(SessionEnd::Reply(header.command));
        }
        if let Err(errno) = self.dispatch(header, payload, descriptors, device) {
            tracing::debug!(pid = self.peer.pid(), command = %header.command, %errno, "a request is refused");
            self.reply_error(header, errno);
        }
        Ok(())
    }

    fn dispatch(
        &mut self,
        header: &Header,
        payload: &[u8],
        descriptors: Vec<Sent>,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        // SPDK sends the descriptor of the memory with its unmap too.
        let most = match header.command {
            Command::DMA_MAP | Command::DMA_UNMAP => 1,
            Command::DEVICE_SET_IRQS => usize::MAX,
            _ => 0,
        };
        if descriptors.len() > most {
            return Err(Errno::EINVAL);
        }
        let request = Request::decode(header.command, payload).map_err(|error| error.errno())?;
        match request {
            Request::DeviceGetInfo => {
                let info = device.info();
                self.reply(header, &Reply::DeviceGetInfo(info));
            }
            Request::DeviceGetRegionInfo { argsz, index } => {
                return self.region_info(header, argsz, index, device);
            }
            Request::DeviceGetRegionIoFds { index, .. } => {
                region(device, index)?;
                let none = RegionIoFds {
                    index,
                    parts: Vec::new(),
                };
                self.reply(header, &Reply::DeviceGetRegionIoFds(none));
            }
            Request::DeviceGetIrqInfo { index } => {
                if index >= device.info().irqs {
                    return Err(Errno::EINVAL);
                }
                let irq = device.irq(index);
                let info = IrqInfo {
                    flags: irq.map_or(IrqFlags::empty(), |irq| irq.flags),
                    index,
                    count: irq.map_or(0, |irq| irq.count),
                };
                self.reply(header, &Reply::DeviceGetIrqInfo(info));
            }
            Request::DeviceSetIrqs(set) => {
                set_irqs(&set, descriptors, &self.options.signal_threads, device)?;
                self.reply(header, &Reply::DeviceSetIrqs);
            }
            Request::RegionRead(access) => return self.region_read(header, access, device),
            Request::RegionWrite(access, data) => {
                self.check_access(access, RegionFlags::WRITE, device)?;
                device.region_write(access.region, access.offset, data)?;
                self.settle(header, Began::RegionWrite(access), device);
            }
            Request::RegionWriteMulti(writes) => {
                let count = self.write_multi(&writes, device)?;
                self.settle(header, Began::RegionWrites(count), device);
            }
            Request::DmaMap(map) => {
                let mapped = self.dma_map(&map, descriptors.first(), device);
                if let Err(errno) = mapped
                    && self.refused_maps.len() < Self::MESSAGES
                {
                    self.refused_maps.push(RefusedMap {
                        address: map.address,
                        length: map.length,
                        errno,
                    });
                }
                mapped?;
                self.reply(header, &Reply::DmaMap);
            }
            Request::DmaUnmap(unmap) => {
                let unmap = Unmap::begin(*header, unmap, device, &mut self.maps)?;
                match unmap.result() {
                    Some(result) => self.answer_unmap(header, unmap.request().1, result),
                    None => self.phase = Phase::Unmapping(unmap),
                }
            }
            Request::DeviceReset => {
                if !device.info().flags.contains(DeviceFlags::RESET) {
                    return Err(Errno::ENOTSUP);
                }
                device.reset()?;
                self.settle(header, Began::Reset, device);
            }
            // Said once, or not for a client to say, or not offered.
            Request::Version(_) => return Err(Errno::EINVAL),
            Request::DmaRead(_)
            | Request::DmaWrite(..)
            | Request::DeviceFeature(_)
            | Request::MigDataRead { .. }
            | Request::MigDataWrite(_) => return Err(Errno::ENOTSUP),
        }
        Ok(())
    }

    /// Replies to what may have begun a reset, when that is complete.
    fn settle(&mut self, header: &Header, began: Began, device: &dyn Device) {
        let settling = Settling {
            header: *header,
            began,
        };
        if device.settling() == Progress::Pending {
            self.phase = Phase::Settling(settling);
        } else {
            self.reply(header, &settling.reply());
        }
    }

    /// Puts a reply there, if the client wants one.
    pub(super) fn reply(&mut self, header: &Header, reply: &Reply<'_>) {
        if header.wants_reply() {
            self.outgoing
                .put(self.options.reply_timeout, |out| reply.encode(header, out));
        }
    }

    /// Puts an error reply there, if the client wants a reply.
    pub(super) fn reply_error(&mut self, header: &Header, errno: Errno) {
        if header.wants_reply() {
            let error = header.error((errno as i32).unsigned_abs()).encode();
            self.outgoing.put(self.options.reply_timeout, |out| {
                out.extend_from_slice(&error)
            });
        }
    }

    pub(super) fn answer_unmap(
        &mut self,
        header: &Header,
        request: DmaUnmap,
        result: Result<(), Errno>,
    ) {
        match result {
            Ok(()) => self.reply(header, &Reply::DmaUnmap(request)),
            Err(errno) => self.reply_error(header, errno),
        }
    }

    fn region_info(
        &mut self,
        header: &Header,
        argsz: u32,
        index: u32,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        let region = region(device, index)?;
        let mapping = region
            .and_then(|region| region.mapping)
            .filter(|_| self.takes_descriptors);
        let mut flags = region.map_or(RegionFlags::empty(), |region| region.flags);
        flags.set(RegionFlags::MMAP, mapping.is_some());
        let info = RegionInfo {
            flags,
            index,
            size: region.map_or(0, |region| region.size),
            offset: mapping.map_or(0, |mapping| mapping.offset),
            areas: mapping
                .filter(|mapping| !mapping.areas.is_empty())
                .map(|mapping| mapping.areas.to_vec()),
        };
        if !header.wants_reply() {
            return Ok(());
        }
        // One descriptor, as all clients take it, and only beside the whole answer.
        let descriptor = mapping
            .filter(|_| info.needed() <= argsz)
            .map(|mapping| mapping.descriptor.try_clone_to_owned())
            .transpose()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        let reply = Reply::DeviceGetRegionInfo(info);
        self.outgoing.put(self.options.reply_timeout, |out| {
            reply.encode_for(header, argsz, out)
        });
        if let Some(descriptor) = descriptor {
            self.outgoing.attach(descriptor);
        }
        Ok(())
    }

    fn region_read(
        &mut self,
        header: &Header,
        access: RegionAccess,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        self.check_access(access, RegionFlags::READ, device)?;
        if !header.wants_reply() {
            // Nobody would see what was read.
            return Ok(());
        }
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        data.resize(access.count as usize, 0);
        let result = device.region_read(access.region, access.offset, &mut data);
        if result.is_ok() {
            self.reply(header, &Reply::RegionRead(access, &data));
        }
        if data.capacity() <= 4096 {
            self.scratch = data;
        }
        result
    }

    fn write_multi(&self, writes: &RegionWrites<'_>, device: &dyn Device) -> Result<u64, Errno> {
        if !self.write_multiple {
            return Err(Errno::ENOTSUP);
        }
        let mut count = 0;
        for write in writes.iter() {
            let access = RegionAccess {
                offset: write.offset,
                region: write.region,
                count: write.data().len() as u32,
            };
            let done = self
                .check_access(access, RegionFlags::WRITE, device)
                .and_then(|()| device.region_write(write.region, write.offset, write.data()));
            match done {
                Ok(()) => count += 1,
                // The reply can say how many were done, or what went wrong.
                Err(errno) if count == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(count)
    }

    /// Whether a region can be accessed so.
    fn check_access(
        &self,
        access: RegionAccess,
        needed: RegionFlags,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        let region = region(device, access.region)?.ok_or(Errno::EINVAL)?;
        if access.count == 0 || access.count > self.options.capabilities.max_data_xfer_size {
            return Err(Errno::EINVAL);
        }
        let end = access.offset.checked_add(access.count.into());
        if end.is_none_or(|end| end > region.size) {
            return Err(Errno::EINVAL);
        }
        if !region.flags.contains(needed) {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        map: &DmaMap,
        descriptor: Option<&Sent>,
        device: &dyn Device,
    ) -> Result<(), Errno> {
        let &DmaMap {
            access,
            offset,
            address,
            length,
        } = map;
        let in_page = page_size() - 1;
        // An offset belongs to a file.
        let stray = descriptor.is_none() && offset != 0;
        if access.is_empty() || stray || length == 0 || (address | length) & in_page != 0 {
            return Err(Errno::EINVAL);
        }
        if self.maps.overlaps(address, length) {
            return Err(Errno::EEXIST);
        }
        if self.maps.len() >= self.options.capabilities.max_dma_maps as usize {
            return Err(Errno::ENOSPC);
        }
        let memory = match descriptor {
            None => None,
            Some(_) if self.maps.lent().saturating_add(length) > self.options.max_lent => {
                return Err(Errno::ENOSPC);
            }
            Some(descriptor) => {
                let memory = descriptor
                    .memory()
                    .and_then(|descriptor| ClientMemory::map(descriptor, offset, length, access))
                    .map_err(|error| {
                        tracing::debug!(pid = self.peer.pid(), %error, "memory is refused");
                        error.errno()
                    })?;
                if self.options.sealed_memory && !memory.is_sealed() {
                    return Err(Errno::EPERM);
                }
                Some(memory)
            }
        };
        device.dma_map(address, length, access, memory.clone())?;
        self.maps.insert(address, length, memory)
    }
}

/// A region by its number; `None` for one that the device could have and has not.
fn region(device: &dyn Device, index: u32) -> Result<Option<Region<'_>>, Errno> {
    if index < device.info().regions {
        Ok(device.region(index))
    } else {
        Err(Errno::EINVAL)
    }
}

fn set_irqs(
    set: &SetIrqs<'_>,
    descriptors: Vec<Sent>,
    threads: &SignalThreads,
    device: &dyn Device,
) -> Result<(), Errno> {
    if set.index >= device.info().irqs {
        return Err(Errno::EINVAL);
    }
    let irq = device.irq(set.index).ok_or(Errno::EINVAL)?;
    let range = set.start..set.start.checked_add(set.count).ok_or(Errno::EINVAL)?;
    if range.end > irq.count {
        return Err(Errno::EINVAL);
    }
    if set.action != IrqAction::Trigger && !irq.flags.contains(IrqFlags::MASKABLE) {
        return Err(Errno::EINVAL);
    }
    if !descriptors.is_empty() && set.data != IrqSetData::Eventfd {
        return Err(Errno::EINVAL);
    }
    let data = match set.data {
        IrqSetData::None => IrqData::None,
        IrqSetData::Bool(bytes) => IrqData::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
        IrqSetData::Eventfd if !irq.flags.contains(IrqFlags::EVENTFD) => return Err(Errno::EINVAL),
        IrqSetData::Eventfd if descriptors.is_empty() => {
            IrqData::Eventfds(range.clone().map(|_| None).collect())
        }
        IrqSetData::Eventfd if descriptors.len() == range.len() => IrqData::Eventfds(
            descriptors
                .into_iter()
                .map(|descriptor| Eventfd::sent(descriptor, threads).map(Some))
                .collect::<Result<_, _>>()?,
        ),
        IrqSetData::Eventfd => return Err(Errno::EINVAL),
    };
    device.set_irqs(set.index, range, set.action, data)
}
