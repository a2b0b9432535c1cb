//! Every message of protocol 0.1, decoded and encoded. Nothing here does any input or output.
//!
//! A message is a [`Header`] and a payload. [`Request::decode`] and [`Reply::decode`] take the payload of one whole message: what they return obeys
//! every rule that can be checked without knowing the device, which are lengths, counts, `argsz`, reserved bits, and that no range
//! wraps. What the device or the session must judge is left to them: indexes, bounds of regions, and the negotiated largest transfer.
//!
//! All numbers are in the byte order of the machine, as the protocol has it.

mod bytes;
mod dma;
mod error;
mod feature;
mod header;
mod info;
mod irq;
mod region;
mod reply;
mod request;

pub use dma::{DmaAccess, DmaMap, DmaTransfer, DmaUnmap};
pub use error::DecodeError;
pub use feature::{Feature, FeatureMethods};
pub use header::{Command, HEADER_LENGTH, Header, HeaderError, Kind};
pub use info::{
    DeviceFlags, DeviceInfo, IoFd, IrqFlags, IrqInfo, RegionFlags, RegionInfo, RegionIoFds,
    SparseArea,
};
pub use irq::{IrqAction, IrqSetData, SetIrqs};
pub use region::{RegionAccess, RegionWrites, SmallWrite};
pub use reply::Reply;
pub use request::Request;

/// The protocol's major version, which both sides must share.
pub const VERSION_MAJOR: u16 = 0;
/// The protocol's minor version: the newest that is spoken here. A peer may answer with an older one.
pub const VERSION_MINOR: u16 = 1;

/// The longest JSON text that VERSION may carry here, in bytes. The protocol sets no limit; what is known of it takes a twentieth.
pub const MAX_VERSION_DATA: usize = 16 << 10;

/// What VERSION carries in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version<'a> {
    /// Major version of the protocol.
    pub major: u16,
    /// Minor version of the protocol.
    pub minor: u16,
    /// Capabilities as JSON, without the NUL that ends it on the wire; empty where there are none. See [`Capabilities::parse`](crate::Capabilities::parse).
    pub data: &'a [u8],
}

#[cfg(test)]
mod tests;
