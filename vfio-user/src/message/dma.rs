//! Payloads about the client's memory.

use super::DecodeError;
use super::bytes::{Put, Reader, check_range};

bitflags::bitflags! {
    /// What the server may do with memory of the client.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct DmaAccess: u32 {
        /// It may read.
        const READ = 1;
        /// It may write.
        const WRITE = 2;
    }
}

/// DMA_MAP: a region of memory that the server may reach from now on, with at most one descriptor beside the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaMap {
    /// What the server may do with it.
    pub access: DmaAccess,
    /// Where the region begins in the file of the descriptor, in bytes; zero where there is none.
    pub offset: u64,
    /// Where the device sees it.
    pub address: u64,
    /// Bytes, not zero.
    pub length: u64,
}

impl DmaMap {
    const LENGTH: usize = 32;

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::exact(payload, Self::LENGTH)?;
        reader.argsz(Self::LENGTH as u64)?;
        let flags = reader.u32()?;
        let map = Self {
            access: DmaAccess::from_bits(flags).ok_or(DecodeError::Flags { flags })?,
            offset: reader.u64()?,
            address: reader.u64()?,
            length: reader.u64()?,
        };
        nonzero(map.length)?;
        check_range(map.address, map.length)?;
        check_range(map.offset, map.length)?;
        Ok(map)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put32(Self::LENGTH as u32);
        out.put32(self.access.bits());
        out.put64(self.offset);
        out.put64(self.address);
        out.put64(self.length);
    }
}

/// DMA_UNMAP, in both directions: a region that the server must have let go of before it replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One region, exactly as it was mapped.
    Region {
        /// Where the device saw it.
        address: u64,
        /// Bytes, not zero.
        length: u64,
    },
    /// Everything (VFIO's flag for it; not in the protocol's text, but clients send it).
    All,
}

impl DmaUnmap {
    const LENGTH: usize = 24;
    const ALL: u32 = 1 << 1;

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::exact(payload, Self::LENGTH)?;
        reader.argsz(Self::LENGTH as u64)?;
        match reader.u32()? {
            0 => {
                let (address, length) = (reader.u64()?, reader.u64()?);
                nonzero(length)?;
                check_range(address, length)?;
                Ok(Self::Region { address, length })
            }
            Self::ALL => {
                reader.zero64("address")?;
                reader.zero64("size")?;
                Ok(Self::All)
            }
            flags => Err(DecodeError::Flags { flags }),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (flags, address, length) = match *self {
            Self::Region { address, length } => (0, address, length),
            Self::All => (Self::ALL, 0, 0),
        };
        out.put32(Self::LENGTH as u32);
        out.put32(flags);
        out.put64(address);
        out.put64(length);
    }
}

/// The head of DMA_READ and DMA_WRITE: memory that the server reaches by message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaTransfer {
    /// Where the device sees it.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

impl DmaTransfer {
    const LENGTH: usize = 16;

    fn head(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let transfer = Self {
            address: reader.u64()?,
            count: reader.u64()?,
        };
        check_range(transfer.address, transfer.count)?;
        Ok(transfer)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        Self::head(&mut Reader::exact(payload, Self::LENGTH)?)
    }

    pub(super) fn decode_with_data(payload: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        let transfer = Self::head(&mut reader)?;
        Ok((transfer, reader.data(transfer.count)?))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put64(self.address);
        out.put64(self.count);
    }
}

fn nonzero(length: u64) -> Result<(), DecodeError> {
    if length == 0 {
        return Err(DecodeError::Count {
            field: "size",
            value: 0,
        });
    }
    Ok(())
}
