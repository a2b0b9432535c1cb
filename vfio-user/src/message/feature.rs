//! DEVICE_FEATURE.

use super::DecodeError;
use super::bytes::{Put, Reader};

bitflags::bitflags! {
    /// What is to be done with a feature.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct FeatureMethods: u32 {
        /// Tell its data.
        const GET = 1 << 16;
        /// Take its data.
        const SET = 1 << 17;
        /// Only tell whether it could be done.
        const PROBE = 1 << 18;
    }
}

/// The payload of DEVICE_FEATURE, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature<'a> {
    /// Largest payload of the reply in a request; length of the payload in a reply.
    pub argsz: u32,
    /// Which feature.
    pub index: u16,
    /// What is to be done.
    pub methods: FeatureMethods,
    /// The feature's own data.
    pub data: &'a [u8],
}

impl<'a> Feature<'a> {
    const LENGTH: usize = 8;
    const INDEX: u32 = 0xffff;

    fn decode(payload: &'a [u8], least: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        let argsz = reader.argsz(least)?;
        let flags = reader.u32()?;
        let methods =
            FeatureMethods::from_bits(flags & !Self::INDEX).ok_or(DecodeError::Flags { flags })?;
        let both = FeatureMethods::GET | FeatureMethods::SET;
        let probe = methods.contains(FeatureMethods::PROBE);
        if methods.is_empty() || methods.contains(both) && !probe {
            return Err(DecodeError::Flags { flags });
        }
        let data = reader.rest();
        if probe && !data.is_empty() {
            return Err(DecodeError::Length {
                expected: Self::LENGTH as u64,
                actual: payload.len(),
            });
        }
        Ok(Self {
            argsz,
            index: (flags & Self::INDEX) as u16,
            methods,
            data,
        })
    }

    pub(super) fn decode_request(payload: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode(payload, Self::LENGTH as u64)
    }

    /// `argsz` may say more than there is: then there was not room for the data.
    pub(super) fn decode_reply(payload: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode(payload, payload.len() as u64)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put32(self.argsz);
        out.put32(u32::from(self.index) | self.methods.bits());
        out.extend_from_slice(self.data);
    }
}
