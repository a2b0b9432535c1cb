//! Power State Descriptors.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// FLAGS bit 0: MP counts 0.1 mW instead of 10 mW.
const MXPS: u8 = 1;
/// FLAGS bit 1.
const NOPS: u8 = 1 << 1;

/// A Power State Descriptor (Base Specification 2.0, figure "Power State Descriptor Data
/// Structure"), 32 bytes.
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
pub struct PowerState {
    /// Bytes from 0: Maximum Power; see [`max_power_microwatts`](Self::max_power_microwatts).
    pub mp: U16,
    /// Byte 2: Reserved.
    pub rsvd2: u8,
    /// Byte 3: Max Power Scale in bit 0, Non-Operational State in bit 1.
    pub flags: u8,
    /// Bytes from 4: Entry Latency, microseconds.
    pub enlat: U32,
    /// Bytes from 8: Exit Latency, microseconds.
    pub exlat: U32,
    /// Byte 12: Relative Read Throughput, bits 4:0, less is better.
    pub rrt: u8,
    /// Byte 13: Relative Read Latency, bits 4:0, less is better.
    pub rrl: u8,
    /// Byte 14: Relative Write Throughput, bits 4:0, less is better.
    pub rwt: u8,
    /// Byte 15: Relative Write Latency, bits 4:0, less is better.
    pub rwl: u8,
    /// Bytes from 16: Idle Power, in the units of IPS.
    pub idlp: U16,
    /// Byte 18: Idle Power Scale in bits 7:6: 1 for 0.1 mW, 2 for 10 mW, 0 not told.
    pub ips: u8,
    /// Byte 19: Reserved.
    pub rsvd19: u8,
    /// Bytes from 20: Active Power, in the units of APWS.
    pub actp: U16,
    /// Byte 22: Active Power Workload in bits 2:0, Active Power Scale in bits 7:6.
    pub apws: u8,
    /// Bytes from 23: Reserved.
    pub rsvd23: [u8; 9],
}

const _: () = assert!(size_of::<PowerState>() == 32);

impl PowerState {
    /// Maximum Power in microwatts, 0 when not told.
    #[must_use]
    pub fn max_power_microwatts(&self) -> u32 {
        let unit = if self.flags & MXPS != 0 { 100 } else { 10_000 };
        u32::from(self.mp.get()) * unit
    }

    /// Whether I/O commands are not processed in this state.
    #[must_use]
    pub fn is_non_operational(&self) -> bool {
        self.flags & NOPS != 0
    }

    /// Idle Power in microwatts; `None` when not told.
    #[must_use]
    pub fn idle_power_microwatts(&self) -> Option<u32> {
        scaled(self.idlp.get(), self.ips)
    }

    /// Active Power in microwatts; `None` when not told.
    #[must_use]
    pub fn active_power_microwatts(&self) -> Option<u32> {
        scaled(self.actp.get(), self.apws)
    }

    /// The workload that Active Power was measured with (bits 2:0): 0 none, 1 or 2 by number.
    #[must_use]
    pub fn active_power_workload(&self) -> u8 {
        self.apws & 0b111
    }
}

/// `value` in microwatts by the scale in bits 7:6 of `scale`.
fn scaled(value: u16, scale: u8) -> Option<u32> {
    match scale >> 6 {
        1 => Some(u32::from(value) * 100),
        2 => Some(u32::from(value) * 10_000),
        _ => None,
    }
}
