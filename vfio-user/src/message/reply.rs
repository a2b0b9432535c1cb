//! What is answered.

use super::bytes::{Put, Reader};
use super::info::RegionAnswer;
use super::request::{decode_mig_data, encode_mig_data};
use super::{
    Command, DecodeError, DeviceInfo, DmaTransfer, DmaUnmap, Feature, HEADER_LENGTH, Header,
    IrqInfo, RegionAccess, RegionInfo, RegionIoFds, Version,
};

/// The answer to a request that was carried out. The header alone answers one that failed: [`Header::error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// VERSION.
    Version(Version<'a>),
    /// DMA_MAP.
    DmaMap,
    /// DMA_UNMAP: what was unmapped.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    DeviceGetInfo(DeviceInfo),
    /// DEVICE_GET_REGION_INFO. Encoded with [`Reply::encode_for`] where the request's `argsz` may be too small.
    DeviceGetRegionInfo(RegionInfo),
    /// DEVICE_GET_REGION_INFO that was asked with too small an `argsz`: so many bytes are needed. Only received.
    DeviceGetRegionInfoShort {
        /// The `argsz` to ask with.
        needed: u32,
    },
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds(RegionIoFds),
    /// DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo(IrqInfo),
    /// DEVICE_SET_IRQS.
    DeviceSetIrqs,
    /// REGION_READ, with as many bytes as its count says.
    RegionRead(RegionAccess, &'a [u8]),
    /// REGION_WRITE.
    RegionWrite(RegionAccess),
    /// DMA_READ, from client to server, with as many bytes as its count says.
    DmaRead(DmaTransfer, &'a [u8]),
    /// DMA_WRITE, from client to server. (The protocol's text has a count of 4 bytes here; all implementations use 8, as in the request.)
    DmaWrite(DmaTransfer),
    /// DEVICE_RESET.
    DeviceReset,
    /// REGION_WRITE_MULTI.
    RegionWriteMulti {
        /// How many writes were done.
        count: u64,
    },
    /// DEVICE_FEATURE.
    DeviceFeature(Feature<'a>),
    /// MIG_DATA_READ.
    MigDataRead(&'a [u8]),
    /// MIG_DATA_WRITE.
    MigDataWrite,
}

impl<'a> Reply<'a> {
    /// Reads the payload of a reply to `command`.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(command: Command, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let empty = |reply| Reader::exact(payload, 0).map(|_| reply);
        Ok(match command {
            Command::VERSION => Self::Version(Version::decode(payload)?),
            Command::DMA_MAP => empty(Self::DmaMap)?,
            Command::DMA_UNMAP => Self::DmaUnmap(DmaUnmap::decode(payload)?),
            Command::DEVICE_GET_INFO => Self::DeviceGetInfo(DeviceInfo::decode(payload)?),
            Command::DEVICE_GET_REGION_INFO => match RegionInfo::decode(payload)? {
                RegionAnswer::Whole(info) => Self::DeviceGetRegionInfo(info),
                RegionAnswer::Short(needed) => Self::DeviceGetRegionInfoShort { needed },
            },
            Command::DEVICE_GET_REGION_IO_FDS => {
                Self::DeviceGetRegionIoFds(RegionIoFds::decode(payload)?)
            }
            Command::DEVICE_GET_IRQ_INFO => Self::DeviceGetIrqInfo(IrqInfo::decode(payload)?),
            Command::DEVICE_SET_IRQS => empty(Self::DeviceSetIrqs)?,
            Command::REGION_READ => {
                let (access, data) = RegionAccess::decode_with_data(payload)?;
                Self::RegionRead(access, data)
            }
            Command::REGION_WRITE => Self::RegionWrite(RegionAccess::decode(payload)?),
            Command::DMA_READ => {
                let (transfer, data) = DmaTransfer::decode_with_data(payload)?;
                Self::DmaRead(transfer, data)
            }
            Command::DMA_WRITE => Self::DmaWrite(DmaTransfer::decode(payload)?),
            Command::DEVICE_RESET => empty(Self::DeviceReset)?,
            Command::REGION_WRITE_MULTI => Self::RegionWriteMulti {
                count: Reader::exact(payload, 8)?.u64()?,
            },
            Command::DEVICE_FEATURE => Self::DeviceFeature(Feature::decode_reply(payload)?),
            Command::MIG_DATA_READ => Self::MigDataRead(decode_mig_data(payload)?),
            Command::MIG_DATA_WRITE => empty(Self::MigDataWrite)?,
            unknown => return Err(DecodeError::UnknownCommand(unknown)),
        })
    }

    /// Appends the whole message that answers `request`.
    pub fn encode(&self, request: &Header, out: &mut Vec<u8>) {
        self.encode_for(request, u32::MAX, out);
    }

    /// As [`encode`](Self::encode), for a client that takes at most `argsz` bytes of payload. Only information about a region can be shortened: then
    /// its fixed part goes, with the length that is needed, and no descriptor must go beside it.
    pub fn encode_for(&self, request: &Header, argsz: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LENGTH]);
        match self {
            Self::Version(version) => version.encode(out),
            Self::DmaUnmap(unmap) => unmap.encode(out),
            Self::DeviceGetInfo(info) => info.encode(out),
            Self::DeviceGetRegionInfo(info) => info.encode(argsz, out),
            Self::DeviceGetRegionIoFds(fds) => fds.encode(out),
            Self::DeviceGetIrqInfo(info) => info.encode(out),
            Self::RegionRead(access, data) => {
                access.encode(out);
                out.extend_from_slice(data);
            }
            Self::RegionWrite(access) => access.encode(out),
            Self::DmaRead(transfer, data) => {
                transfer.encode(out);
                out.extend_from_slice(data);
            }
            Self::DmaWrite(transfer) => transfer.encode(out),
            Self::RegionWriteMulti { count } => out.put64(*count),
            Self::DeviceFeature(feature) => feature.encode(out),
            Self::MigDataRead(data) => encode_mig_data(data, out),
            Self::DmaMap
            | Self::DeviceGetRegionInfoShort { .. }
            | Self::DeviceSetIrqs
            | Self::DeviceReset
            | Self::MigDataWrite => {}
        }
        let payload = (out.len() - start - HEADER_LENGTH) as u32;
        let header = request.reply(payload).encode();
        if let Some(place) = out.get_mut(start..start + HEADER_LENGTH) {
            place.copy_from_slice(&header);
        }
    }
}
