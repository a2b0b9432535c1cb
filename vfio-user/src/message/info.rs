//! What the server tells of its device, its regions and its interrupts.

use super::DecodeError;
use super::bytes::{Put, Reader, check_range};

bitflags::bitflags! {
    /// What a device can do. Bits that have no name here are kept, and mean nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct DeviceFlags: u32 {
        /// It can be reset.
        const RESET = 1;
        /// It is a PCI device.
        const PCI = 2;
    }

    /// How a region can be used. Bits that have no name here are kept, and mean nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1;
        /// It can be written.
        const WRITE = 2;
        /// Parts of it, or all, can be mapped through the descriptor beside the message.
        const MMAP = 4;
        /// Capabilities follow. Set and read by [`RegionInfo`] itself.
        const CAPS = 8;
    }

    /// How a kind of interrupt can be used. Bits that have no name here are kept, and mean nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct IrqFlags: u32 {
        /// It can be reported through eventfds.
        const EVENTFD = 1;
        /// It can be masked and unmasked.
        const MASKABLE = 2;
        /// It masks itself when it is raised.
        const AUTOMASKED = 4;
        /// Interrupts are enabled as one set: to add one, disable all first.
        const NORESIZE = 8;
    }
}

/// The reply of DEVICE_GET_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What it can do.
    pub flags: DeviceFlags,
    /// How many regions it has; a PCI device has 9.
    pub regions: u32,
    /// How many kinds of interrupt it has; a PCI device has 5.
    pub irqs: u32,
}

impl DeviceInfo {
    pub(super) const LENGTH: usize = 16;

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::exact(payload, Self::LENGTH)?;
        reader.argsz(Self::LENGTH as u64)?;
        Ok(Self {
            flags: DeviceFlags::from_bits_retain(reader.u32()?),
            regions: reader.u32()?,
            irqs: reader.u32()?,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put32(Self::LENGTH as u32);
        out.put32(self.flags.bits());
        out.put32(self.regions);
        out.put32(self.irqs);
    }
}

/// The reply of DEVICE_GET_IRQ_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// How it can be used.
    pub flags: IrqFlags,
    /// Which kind.
    pub index: u32,
    /// How many interrupts of this kind.
    pub count: u32,
}

impl IrqInfo {
    pub(super) const LENGTH: usize = 16;

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::exact(payload, Self::LENGTH)?;
        reader.argsz(Self::LENGTH as u64)?;
        Ok(Self {
            flags: IrqFlags::from_bits_retain(reader.u32()?),
            index: reader.u32()?,
            count: reader.u32()?,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put32(Self::LENGTH as u32);
        out.put32(self.flags.bits());
        out.put32(self.index);
        out.put32(self.count);
    }
}

/// A part of a region that can be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseArea {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The reply of DEVICE_GET_REGION_INFO, with at most one descriptor beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// How it can be used.
    pub flags: RegionFlags,
    /// Which region.
    pub index: u32,
    /// Its size in bytes; zero where the device does not have it.
    pub size: u64,
    /// Where the region begins in the file of the descriptor, in bytes.
    pub offset: u64,
    /// The parts that can be mapped, where that is not the whole region (then `None`). Each is inside the region.
    pub areas: Option<Vec<SparseArea>>,
}

/// What a reply about a region turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RegionAnswer {
    /// All of it.
    Whole(RegionInfo),
    /// `argsz` of the request was too small: so many bytes are needed.
    Short(u32),
}

impl RegionInfo {
    pub(super) const LENGTH: usize = 32;
    const CAP_HEADER: usize = 8;
    const CAP_SPARSE_MMAP: u16 = 1;
    const CAP_SPARSE_VERSION: u16 = 1;
    const AREA: usize = 16;
    /// Capabilities of one region. VFIO knows a handful.
    const MAX_CAPS: usize = 16;

    /// Bytes of payload that the whole reply takes: what a client's `argsz` must reach.
    #[must_use]
    pub fn needed(&self) -> u32 {
        let areas = self.areas.as_ref().map_or(0, |areas| {
            Self::CAP_HEADER + 8 + areas.len().saturating_mul(Self::AREA)
        });
        u32::try_from(areas)
            .unwrap_or(u32::MAX)
            .saturating_add(Self::LENGTH as u32)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<RegionAnswer, DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        let argsz = reader.argsz(payload.len() as u64)?;
        let flags = RegionFlags::from_bits_retain(reader.u32()?);
        let index = reader.u32()?;
        let cap_offset = reader.u32()?;
        let (size, offset) = (reader.u64()?, reader.u64()?);
        check_range(offset, size)?;
        if argsz as usize > payload.len() {
            return Ok(RegionAnswer::Short(argsz));
        }
        let areas = if flags.contains(RegionFlags::CAPS) {
            Self::walk(payload, cap_offset, size)?
        } else if payload.len() > Self::LENGTH {
            return Err(DecodeError::Length {
                expected: Self::LENGTH as u64,
                actual: payload.len(),
            });
        } else {
            None
        };
        Ok(RegionAnswer::Whole(Self {
            flags: flags - RegionFlags::CAPS,
            index,
            size,
            offset,
            areas,
        }))
    }

    /// Follows the chain of capabilities, which only runs forward, so that it ends.
    fn walk(payload: &[u8], first: u32, size: u64) -> Result<Option<Vec<SparseArea>>, DecodeError> {
        let mut areas = None;
        let (mut at, mut least) = (first, Self::LENGTH);
        for _ in 0..Self::MAX_CAPS {
            let broken = DecodeError::Chain { offset: at };
            let capability = payload
                .get(at as usize..)
                .filter(|_| at as usize >= least)
                .ok_or(broken)?;
            let mut reader = Reader::at_least(capability, Self::CAP_HEADER).map_err(|_| broken)?;
            let (id, version, next) = (reader.u16()?, reader.u16()?, reader.u32()?);
            if id == Self::CAP_SPARSE_MMAP && version == Self::CAP_SPARSE_VERSION {
                if areas.is_some() {
                    return Err(broken);
                }
                areas = Some(Self::areas(reader, size)?);
            }
            if next == 0 {
                return Ok(areas);
            }
            least = at as usize + Self::CAP_HEADER;
            at = next;
        }
        Err(DecodeError::Chain { offset: at })
    }

    fn areas(mut reader: Reader<'_>, size: u64) -> Result<Vec<SparseArea>, DecodeError> {
        let count = reader.u32()?;
        reader.u32()?; // Reserved, and not said to be zero.
        let mut rest = reader.rest();
        let bad = DecodeError::Count {
            field: "nr_areas",
            value: count.into(),
        };
        let length = (count as usize).checked_mul(Self::AREA).ok_or(bad)?;
        rest = rest.get(..length).ok_or(bad)?;
        let mut areas = Vec::with_capacity(count as usize);
        for entry in rest.chunks_exact(Self::AREA) {
            let mut reader = Reader::exact(entry, Self::AREA)?;
            let area = SparseArea {
                offset: reader.u64()?,
                size: reader.u64()?,
            };
            let end = area.offset.checked_add(area.size);
            if end.is_none_or(|end| end > size) {
                return Err(DecodeError::Range {
                    start: area.offset,
                    length: area.size,
                });
            }
            areas.push(area);
        }
        Ok(areas)
    }

    /// Writes the whole reply, or, where that is longer than the request's `argsz`, its fixed part with the length needed.
    pub(super) fn encode(&self, argsz: u32, out: &mut Vec<u8>) {
        let needed = self.needed();
        let areas = self.areas.as_ref().filter(|_| needed <= argsz);
        let mut flags = self.flags - RegionFlags::CAPS;
        // Only with the capabilities themselves: QEMU takes the flag without an offset for an error, and asks first with room for the fixed part.
        flags.set(RegionFlags::CAPS, areas.is_some());
        out.put32(needed);
        out.put32(flags.bits());
        out.put32(self.index);
        out.put32(if areas.is_some() {
            Self::LENGTH as u32
        } else {
            0
        });
        out.put64(self.size);
        out.put64(self.offset);
        if let Some(areas) = areas {
            out.put16(Self::CAP_SPARSE_MMAP);
            out.put16(Self::CAP_SPARSE_VERSION);
            out.put32(0);
            out.put32(areas.len() as u32);
            out.put32(0);
            for area in areas {
                out.put64(area.offset);
                out.put64(area.size);
            }
        }
    }
}

/// One way past the messages: a part of a region whose accesses go through a descriptor of KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoFd {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Bytes; zero for any.
    pub size: u64,
    /// Which of the descriptors beside the message.
    pub fd_index: u32,
    /// 0 ioeventfd, 1 ioregionfd.
    pub kind: u32,
    /// KVM's flags for that kind.
    pub flags: u32,
    /// datamatch or user_data, by kind.
    pub data: u64,
}

/// The reply of DEVICE_GET_REGION_IO_FDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionIoFds {
    /// Which region.
    pub index: u32,
    /// Its parts.
    pub parts: Vec<IoFd>,
}

impl RegionIoFds {
    pub(super) const LENGTH: usize = 16;
    const PART: usize = 40;

    /// Bytes of payload that the whole reply takes.
    #[must_use]
    pub fn needed(&self) -> u32 {
        let parts = self.parts.len().saturating_mul(Self::PART);
        u32::try_from(parts)
            .unwrap_or(u32::MAX)
            .saturating_add(Self::LENGTH as u32)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        reader.argsz(payload.len() as u64)?;
        reader.zero32("flags")?;
        let (index, count) = (reader.u32()?, reader.u32()?);
        let parts = reader.data(u64::from(count) * Self::PART as u64)?;
        let parts = parts.chunks_exact(Self::PART).map(|part| {
            let mut reader = Reader::exact(part, Self::PART)?;
            let (offset, size) = (reader.u64()?, reader.u64()?);
            let (fd_index, kind, flags) = (reader.u32()?, reader.u32()?, reader.u32()?);
            reader.u32()?; // Padding.
            Ok(IoFd {
                offset,
                size,
                fd_index,
                kind,
                flags,
                data: reader.u64()?,
            })
        });
        Ok(Self {
            index,
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put32(self.needed());
        out.put32(0);
        out.put32(self.index);
        out.put32(self.parts.len() as u32);
        for part in &self.parts {
            out.put64(part.offset);
            out.put64(part.size);
            out.put32(part.fd_index);
            out.put32(part.kind);
            out.put32(part.flags);
            out.put32(0);
            out.put64(part.data);
        }
    }
}
