//! What is asked.

use super::bytes::{Put, Reader};
use super::{
    Command, DecodeError, DeviceInfo, DmaMap, DmaTransfer, DmaUnmap, Feature, HEADER_LENGTH,
    Header, IrqInfo, MAX_VERSION_DATA, RegionAccess, RegionInfo, RegionIoFds, RegionWrites,
    SetIrqs, Version,
};

/// A request: one for each command of the protocol. `argsz` is the largest payload that the reply may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// VERSION: always the first.
    Version(Version<'a>),
    /// DMA_MAP.
    DmaMap(DmaMap),
    /// DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    DeviceGetInfo,
    /// DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo {
        /// At least 32.
        argsz: u32,
        /// Which region.
        index: u32,
    },
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds {
        /// At least 16.
        argsz: u32,
        /// Which region.
        index: u32,
    },
    /// DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo {
        /// Which kind of interrupt.
        index: u32,
    },
    /// DEVICE_SET_IRQS.
    DeviceSetIrqs(SetIrqs<'a>),
    /// REGION_READ.
    RegionRead(RegionAccess),
    /// REGION_WRITE, with as many bytes as its count says.
    RegionWrite(RegionAccess, &'a [u8]),
    /// DMA_READ, from server to client.
    DmaRead(DmaTransfer),
    /// DMA_WRITE, from server to client, with as many bytes as its count says.
    DmaWrite(DmaTransfer, &'a [u8]),
    /// DEVICE_RESET.
    DeviceReset,
    /// REGION_WRITE_MULTI.
    RegionWriteMulti(RegionWrites<'a>),
    /// DEVICE_FEATURE.
    DeviceFeature(Feature<'a>),
    /// MIG_DATA_READ.
    MigDataRead {
        /// Bytes wanted.
        size: u32,
    },
    /// MIG_DATA_WRITE.
    MigDataWrite(&'a [u8]),
}

impl<'a> Request<'a> {
    /// Reads the payload of a request.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(command: Command, payload: &'a [u8]) -> Result<Self, DecodeError> {
        Ok(match command {
            Command::VERSION => Self::Version(Version::decode(payload)?),
            Command::DMA_MAP => Self::DmaMap(DmaMap::decode(payload)?),
            Command::DMA_UNMAP => Self::DmaUnmap(DmaUnmap::decode(payload)?),
            Command::DEVICE_GET_INFO => {
                let mut reader = Reader::exact(payload, DeviceInfo::LENGTH)?;
                reader.argsz(DeviceInfo::LENGTH as u64)?;
                reader.zero32("flags")?;
                reader.zero32("num_regions")?;
                reader.zero32("num_irqs")?;
                Self::DeviceGetInfo
            }
            Command::DEVICE_GET_REGION_INFO => {
                // SPDK sends its whole buffer, as long as its argsz. What lies past the fixed part means nothing.
                let mut reader = Reader::at_least(payload, RegionInfo::LENGTH)?;
                let argsz = reader.argsz(payload.len() as u64)?;
                reader.zero32("flags")?;
                let index = reader.u32()?;
                reader.zero32("cap_offset")?;
                reader.zero64("size")?;
                reader.zero64("offset")?;
                Self::DeviceGetRegionInfo { argsz, index }
            }
            Command::DEVICE_GET_REGION_IO_FDS => {
                let mut reader = Reader::exact(payload, RegionIoFds::LENGTH)?;
                let argsz = reader.argsz(RegionIoFds::LENGTH as u64)?;
                reader.zero32("flags")?;
                let index = reader.u32()?;
                reader.zero32("count")?;
                Self::DeviceGetRegionIoFds { argsz, index }
            }
            Command::DEVICE_GET_IRQ_INFO => {
                let mut reader = Reader::exact(payload, IrqInfo::LENGTH)?;
                reader.argsz(IrqInfo::LENGTH as u64)?;
                reader.zero32("flags")?;
                let index = reader.u32()?;
                reader.zero32("count")?;
                Self::DeviceGetIrqInfo { index }
            }
            Command::DEVICE_SET_IRQS => Self::DeviceSetIrqs(SetIrqs::decode(payload)?),
            Command::REGION_READ => Self::RegionRead(RegionAccess::decode(payload)?),
            Command::REGION_WRITE => {
                let (access, data) = RegionAccess::decode_with_data(payload)?;
                Self::RegionWrite(access, data)
            }
            Command::DMA_READ => Self::DmaRead(DmaTransfer::decode(payload)?),
            Command::DMA_WRITE => {
                let (transfer, data) = DmaTransfer::decode_with_data(payload)?;
                Self::DmaWrite(transfer, data)
            }
            Command::DEVICE_RESET => {
                Reader::exact(payload, 0)?;
                Self::DeviceReset
            }
            Command::REGION_WRITE_MULTI => Self::RegionWriteMulti(RegionWrites::decode(payload)?),
            Command::DEVICE_FEATURE => Self::DeviceFeature(Feature::decode_request(payload)?),
            Command::MIG_DATA_READ => {
                let mut reader = Reader::exact(payload, MIG_DATA)?;
                let argsz = reader.u32()?;
                let size = reader.u32()?;
                mig_argsz(argsz, size)?;
                Self::MigDataRead { size }
            }
            Command::MIG_DATA_WRITE => Self::MigDataWrite(decode_mig_data(payload)?),
            unknown => return Err(DecodeError::UnknownCommand(unknown)),
        })
    }

    /// Which command it is.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::Version(_) => Command::VERSION,
            Self::DmaMap(_) => Command::DMA_MAP,
            Self::DmaUnmap(_) => Command::DMA_UNMAP,
            Self::DeviceGetInfo => Command::DEVICE_GET_INFO,
            Self::DeviceGetRegionInfo { .. } => Command::DEVICE_GET_REGION_INFO,
            Self::DeviceGetRegionIoFds { .. } => Command::DEVICE_GET_REGION_IO_FDS,
            Self::DeviceGetIrqInfo { .. } => Command::DEVICE_GET_IRQ_INFO,
            Self::DeviceSetIrqs(_) => Command::DEVICE_SET_IRQS,
            Self::RegionRead(_) => Command::REGION_READ,
            Self::RegionWrite(..) => Command::REGION_WRITE,
            Self::DmaRead(_) => Command::DMA_READ,
            Self::DmaWrite(..) => Command::DMA_WRITE,
            Self::DeviceReset => Command::DEVICE_RESET,
            Self::RegionWriteMulti(_) => Command::REGION_WRITE_MULTI,
            Self::DeviceFeature(_) => Command::DEVICE_FEATURE,
            Self::MigDataRead { .. } => Command::MIG_DATA_READ,
            Self::MigDataWrite(_) => Command::MIG_DATA_WRITE,
        }
    }

    /// Appends the whole message, header and payload. Counts are the caller's: data that is longer or shorter than its head says
    /// is refused by whoever receives it.
    pub fn encode(&self, id: u16, no_reply: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LENGTH]);
        self.encode_payload(out);
        let payload = (out.len() - start - HEADER_LENGTH) as u32;
        let header = Header::request(id, self.command(), payload, no_reply).encode();
        if let Some(place) = out.get_mut(start..start + HEADER_LENGTH) {
            place.copy_from_slice(&header);
        }
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Version(version) => version.encode(out),
            Self::DmaMap(map) => map.encode(out),
            Self::DmaUnmap(unmap) => unmap.encode(out),
            Self::DeviceGetInfo => {
                out.put32(DeviceInfo::LENGTH as u32);
                out.extend_from_slice(&[0; DeviceInfo::LENGTH - 4]);
            }
            Self::DeviceGetRegionInfo { argsz, index } => {
                out.put32(*argsz);
                out.put32(0);
                out.put32(*index);
                out.extend_from_slice(&[0; RegionInfo::LENGTH - 12]);
            }
            Self::DeviceGetRegionIoFds { argsz, index } => {
                out.put32(*argsz);
                out.put32(0);
                out.put32(*index);
                out.put32(0);
            }
            Self::DeviceGetIrqInfo { index } => {
                out.put32(IrqInfo::LENGTH as u32);
                out.put32(0);
                out.put32(*index);
                out.put32(0);
            }
            Self::DeviceSetIrqs(set) => set.encode(out),
            Self::RegionRead(access) => access.encode(out),
            Self::RegionWrite(access, data) => {
                access.encode(out);
                out.extend_from_slice(data);
            }
            Self::DmaRead(transfer) => transfer.encode(out),
            Self::DmaWrite(transfer, data) => {
                transfer.encode(out);
                out.extend_from_slice(data);
            }
            Self::DeviceReset => {}
            Self::RegionWriteMulti(writes) => writes.encode(out),
            Self::DeviceFeature(feature) => feature.encode(out),
            Self::MigDataRead { size } => {
                out.put32(size.saturating_add(MIG_DATA as u32));
                out.put32(*size);
            }
            Self::MigDataWrite(data) => encode_mig_data(data, out),
        }
    }
}

/// Bytes before migration data: argsz and size.
const MIG_DATA: usize = 8;

fn mig_argsz(argsz: u32, size: u32) -> Result<(), DecodeError> {
    let least = u64::from(size) + MIG_DATA as u64;
    if u64::from(argsz) < least {
        return Err(DecodeError::ArgumentSize { argsz, least });
    }
    Ok(())
}

pub(super) fn decode_mig_data(payload: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::at_least(payload, MIG_DATA)?;
    let (argsz, size) = (reader.u32()?, reader.u32()?);
    mig_argsz(argsz, size)?;
    reader.data(size.into())
}

pub(super) fn encode_mig_data(data: &[u8], out: &mut Vec<u8>) {
    out.put32((MIG_DATA + data.len()) as u32);
    out.put32(data.len() as u32);
    out.extend_from_slice(data);
}

impl<'a> Version<'a> {
    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::at_least(payload, 4)?;
        let (major, minor) = (reader.u16()?, reader.u16()?);
        let rest = reader.rest();
        if rest.len() > MAX_VERSION_DATA {
            return Err(DecodeError::Length {
                expected: (MAX_VERSION_DATA + 4) as u64,
                actual: payload.len(),
            });
        }
        let data = match rest.split_last() {
            None => rest,
            Some((0, text)) if !text.contains(&0) => text,
            Some(_) => return Err(DecodeError::Text),
        };
        Ok(Self { major, minor, data })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put16(self.major);
        out.put16(self.minor);
        if !self.data.is_empty() {
            out.extend_from_slice(self.data);
            out.push(0);
        }
    }
}
