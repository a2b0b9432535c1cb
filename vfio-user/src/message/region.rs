//! Payloads that read and write the device's regions.

use super::DecodeError;
use super::bytes::{Put, Reader, check_range};

/// The head of REGION_READ and REGION_WRITE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionAccess {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

impl RegionAccess {
    const LENGTH: usize = 16;

    fn head(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let access = Self {
            offset: reader.u64()?,
            region: reader.u32()?,
            count: reader.u32()?,
        };
        check_range(access.offset, access.count.into())?;
        Ok(access)
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        Self::head(&mut Reader::exact(payload, Self::LENGTH)?)
    }

    pub(super) fn decode_with_data(payload: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        let access = Self::head(&mut reader)?;
        Ok((access, reader.data(access.count.into())?))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put64(self.offset);
        out.put32(self.region);
        out.put32(self.count);
    }
}

/// One write of REGION_WRITE_MULTI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmallWrite {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes, 1 to 8.
    count: u8,
    data: [u8; 8],
}

impl SmallWrite {
    const LENGTH: usize = 24;

    /// A write of `data`; `None` where that is not 1 to 8 bytes.
    #[must_use]
    pub fn new(region: u32, offset: u64, data: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        let count = u8::try_from(data.len()).ok().filter(|count| *count > 0)?;
        Some(Self {
            offset,
            region,
            count,
            data: bytes,
        })
    }

    /// What is to be written.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.data.get(..self.count.into()).unwrap_or(&[])
    }

    fn decode(entry: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::exact(entry, Self::LENGTH)?;
        let access = RegionAccess::head(&mut reader)?;
        let data = reader.u64()?.to_ne_bytes();
        let bad = DecodeError::Count {
            field: "count",
            value: access.count.into(),
        };
        let count = u8::try_from(access.count)
            .ok()
            .filter(|count| (1..=8).contains(count))
            .ok_or(bad)?;
        // What lies past the count means nothing, and is not kept.
        let used = data.get(..count.into()).ok_or(bad)?;
        Self::new(access.region, access.offset, used).ok_or(bad)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let head = RegionAccess {
            offset: self.offset,
            region: self.region,
            count: self.count.into(),
        };
        head.encode(out);
        out.extend_from_slice(&self.data);
    }
}

/// REGION_WRITE_MULTI: writes of up to 8 bytes, to be done in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionWrites<'a> {
    entries: &'a [u8],
}

impl<'a> RegionWrites<'a> {
    /// Reads the whole payload of a request.
    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::at_least(payload, 8)?;
        let count = reader.u64()?;
        let too_many = DecodeError::Count {
            field: "wr_cnt",
            value: count,
        };
        let length = count
            .checked_mul(SmallWrite::LENGTH as u64)
            .ok_or(too_many)?;
        let entries = reader.data(length)?;
        for entry in entries.chunks_exact(SmallWrite::LENGTH) {
            SmallWrite::decode(entry)?;
        }
        Ok(Self { entries })
    }

    /// Checks that `entries` are whole writes, one after the other.
    ///
    /// # Errors
    /// As for a payload.
    pub fn new(entries: &'a [u8]) -> Result<Self, DecodeError> {
        let length = entries.len();
        if !length.is_multiple_of(SmallWrite::LENGTH) {
            return Err(DecodeError::Length {
                expected: length.next_multiple_of(SmallWrite::LENGTH) as u64,
                actual: length,
            });
        }
        for entry in entries.chunks_exact(SmallWrite::LENGTH) {
            SmallWrite::decode(entry)?;
        }
        Ok(Self { entries })
    }

    /// The bytes of `writes`, for [`new`](Self::new).
    #[must_use]
    pub fn encode_all(writes: &[SmallWrite]) -> Vec<u8> {
        let mut out = Vec::with_capacity(writes.len() * SmallWrite::LENGTH);
        for write in writes {
            write.encode(&mut out);
        }
        out
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len() / SmallWrite::LENGTH
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The writes, in their order.
    pub fn iter(&self) -> impl Iterator<Item = SmallWrite> + use<'a> {
        self.entries
            .chunks_exact(SmallWrite::LENGTH)
            .filter_map(|entry| SmallWrite::decode(entry).ok())
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put64(self.len() as u64);
        out.extend_from_slice(self.entries);
    }
}
