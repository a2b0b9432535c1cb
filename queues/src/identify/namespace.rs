//! Identify Namespace of the NVM command set, CNS 00h.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// FLBAS bits 3:0: the low bits of the format's index.
const FLBAS_LOW: u8 = 0b0000_1111;
/// FLBAS bit 4: metadata follows each block in the same buffer.
const FLBAS_EXTENDED: u8 = 0b0001_0000;
/// FLBAS bits 6:5: the high bits of the format's index.
const FLBAS_HIGH: u8 = 0b0110_0000;
/// How far FLBAS bits 6:5 move to be bits 5:4 of the index.
const FLBAS_HIGH_SHIFT: u8 = 1;
/// How many formats the low bits can tell apart; the high ones mean nothing up to there.
const LOW_FORMATS: usize = 16;
/// The LBADS values that are taken: 512 bytes (the least allowed) to 64 KiB.
const LBADS: core::ops::RangeInclusive<u8> = 9..=16;
/// NSATTR bit 0.
const NSATTR_WRITE_PROTECTED: u8 = 1;
/// DPS bits 2:0.
const DPS_TYPE: u8 = 0b111;

/// An LBA format (NVM Command Set Specification 1.0, figure "LBA Format Data Structure").
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size: bytes per logical block.
    pub ms: U16,
    /// LBA Data Size, log2 of bytes; 0 for a format that is not available.
    pub lbads: u8,
    /// Relative Performance in bits 1:0: 0 best, 3 degraded.
    pub rp: u8,
}

impl LbaFormat {
    /// Bytes of data per logical block: 512 to 64 KiB; `None` where LBADS is outside 9..=16.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        LBADS.contains(&self.lbads).then(|| 1 << self.lbads)
    }

    /// Relative Performance: 0 best, 1 better, 2 good, 3 degraded.
    #[must_use]
    pub fn relative_performance(&self) -> u8 {
        self.rp & 0b11
    }
}

/// Identify Namespace (NVM Command Set Specification 1.0, 4.1.5.1).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Bytes from 0: Namespace Size in logical blocks: LBAs are 0 to NSZE − 1.
    pub nsze: U64,
    /// Bytes from 8: Namespace Capacity in logical blocks that may be allocated.
    pub ncap: U64,
    /// Bytes from 16: Namespace Utilization in logical blocks.
    pub nuse: U64,
    /// Byte 24: Namespace Features.
    pub nsfeat: u8,
    /// Byte 25: Number of LBA Formats, zero-based; see [`lba_formats`](Self::lba_formats).
    pub nlbaf: u8,
    /// Byte 26: Formatted LBA Size: the format's index in bits 6:5 and 3:0, bit 4 metadata at the end of the data; see [`format_index`](Self::format_index).
    pub flbas: u8,
    /// Byte 27: Metadata Capabilities.
    pub mc: u8,
    /// Byte 28: End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// Byte 29: End-to-end Data Protection Type Settings: type in bits 2:0.
    pub dps: u8,
    /// Byte 30: Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Byte 31: Reservation Capabilities.
    pub rescap: u8,
    /// Byte 32: Format Progress Indicator: supported in bit 7, percent that remains in bits 6:0.
    pub fpi: u8,
    /// Byte 33: Deallocate Logical Block Features.
    pub dlfeat: u8,
    /// Bytes from 34: Namespace Atomic Write Unit Normal, zero-based logical blocks.
    pub nawun: U16,
    /// Bytes from 36: Namespace Atomic Write Unit Power Fail, zero-based logical blocks.
    pub nawupf: U16,
    /// Bytes from 38: Namespace Atomic Compare & Write Unit, zero-based logical blocks.
    pub nacwu: U16,
    /// Bytes from 40: Namespace Atomic Boundary Size Normal, zero-based logical blocks.
    pub nabsn: U16,
    /// Bytes from 42: Namespace Atomic Boundary Offset, logical blocks.
    pub nabo: U16,
    /// Bytes from 44: Namespace Atomic Boundary Size Power Fail, zero-based logical blocks.
    pub nabspf: U16,
    /// Bytes from 46: Namespace Optimal I/O Boundary in logical blocks, 0 for none.
    pub noiob: U16,
    /// Bytes from 48: NVM Capacity, bytes.
    pub nvmcap: U128,
    /// Bytes from 64: Namespace Preferred Write Granularity, zero-based logical blocks.
    pub npwg: U16,
    /// Bytes from 66: Namespace Preferred Write Alignment, zero-based logical blocks.
    pub npwa: U16,
    /// Bytes from 68: Namespace Preferred Deallocate Granularity, zero-based logical blocks.
    pub npdg: U16,
    /// Bytes from 70: Namespace Preferred Deallocate Alignment, zero-based logical blocks.
    pub npda: U16,
    /// Bytes from 72: Namespace Optimal Write Size, zero-based logical blocks.
    pub nows: U16,
    /// Bytes from 74: Maximum Single Source Range Length of Copy, logical blocks.
    pub mssrl: U16,
    /// Bytes from 76: Maximum Copy Length, logical blocks.
    pub mcl: U32,
    /// Byte 80: Maximum Source Range Count of Copy, zero-based.
    pub msrc: u8,
    /// Byte 81: Reserved.
    pub rsvd81: u8,
    /// Byte 82: Number of Unique Capability LBA Formats.
    pub nulbaf: u8,
    /// Bytes from 83: Reserved.
    pub rsvd83: [u8; 9],
    /// Bytes from 92: ANA Group Identifier.
    pub anagrpid: U32,
    /// Bytes from 96: Reserved.
    pub rsvd96: [u8; 3],
    /// Byte 99: Namespace Attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Bytes from 100: NVM Set Identifier.
    pub nvmsetid: U16,
    /// Bytes from 102: Endurance Group Identifier.
    pub endgid: U16,
    /// Bytes from 104: Namespace Globally Unique Identifier, most significant byte first; zero for none.
    pub nguid: [u8; 16],
    /// Bytes from 120: IEEE Extended Unique Identifier, most significant byte first; zero for none.
    pub eui64: [u8; 8],
    /// Bytes from 128: LBA Formats; see [`lba_formats`](Self::lba_formats).
    pub lbaf: [LbaFormat; 64],
    /// Bytes from 384: Vendor Specific.
    pub vs: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == super::IDENTIFY_BYTES);

impl IdentifyNamespace {
    /// Whether the namespace is active: an inactive one answers all zeroes.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.nsze.get() != 0
    }

    /// The LBA formats there are, 1..=64 (NLBAF and NULBAF; more is cut off).
    #[must_use]
    pub fn lba_formats(&self) -> &[LbaFormat] {
        let count = usize::from(self.nlbaf) + 1 + usize::from(self.nulbaf);
        self.lbaf
            .get(..count.min(self.lbaf.len()))
            .unwrap_or_default()
    }

    /// The index of the format in use, 0..=63, whether there is such a format or not. Bits 6:5 of
    /// FLBAS count only where there are more than 16 formats.
    #[must_use]
    pub fn format_index(&self) -> usize {
        let low = self.flbas & FLBAS_LOW;
        let high = if self.lba_formats().len() > LOW_FORMATS {
            self.flbas & FLBAS_HIGH
        } else {
            0
        };
        usize::from(low | high >> FLBAS_HIGH_SHIFT)
    }

    /// The format in use; `None` where FLBAS names one beyond NLBAF.
    #[must_use]
    pub fn format(&self) -> Option<&LbaFormat> {
        self.lba_formats().get(self.format_index())
    }

    /// Bytes of data per logical block in the format in use, 512 to 64 KiB; `None` where there is no
    /// such format or its size is out of range: such a namespace cannot be used.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        self.format()?.block_size()
    }

    /// Bytes of metadata per logical block in the format in use.
    #[must_use]
    pub fn metadata_size(&self) -> Option<u16> {
        Some(self.format()?.ms.get())
    }

    /// Whether metadata follows each block in the data buffer, instead of having a buffer of its own.
    #[must_use]
    pub fn metadata_extends_data(&self) -> bool {
        self.flbas & FLBAS_EXTENDED != 0
    }

    /// NSZE in bytes of data; `None` without a block size, or beyond 2^64.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.nsze.get().checked_mul(u64::from(self.block_size()?))
    }

    /// The type of end-to-end protection in force: 1..=3, 0 for none, others are reserved.
    #[must_use]
    pub fn protection_type(&self) -> u8 {
        self.dps & DPS_TYPE
    }

    /// Whether the namespace is write protected.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.nsattr & NSATTR_WRITE_PROTECTED != 0
    }
}
