//! Identify Controller, CNS 01h.

use core::time::Duration;

use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::power::PowerState;
use super::text::Ascii;
use crate::prp::PageSize;
use crate::registers::Version;
use crate::status::Status;

/// OACS bit 8: Doorbell Buffer Config.
const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
/// VWC bit 0: there is a volatile write cache.
const VWC_PRESENT: u8 = 1;

/// Identify Controller (Base Specification 2.0, 5.17.2.1).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// Bytes from 0: PCI Vendor ID.
    pub vid: U16,
    /// Bytes from 2: PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Bytes from 4: Serial Number, ASCII; see [`serial_number`](Self::serial_number).
    pub sn: [u8; 20],
    /// Bytes from 24: Model Number, ASCII; see [`model_number`](Self::model_number).
    pub mn: [u8; 40],
    /// Bytes from 64: Firmware Revision, ASCII; see [`firmware_revision`](Self::firmware_revision).
    pub fr: [u8; 8],
    /// Byte 72: Recommended Arbitration Burst, log2 of commands.
    pub rab: u8,
    /// Bytes from 73: IEEE OUI Identifier, least significant byte first; see [`ieee_oui`](Self::ieee_oui).
    pub ieee: [u8; 3],
    /// Byte 76: Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Byte 77: Maximum Data Transfer Size, log2 of CAP.MPSMIN pages, 0 for no limit; see [`max_data_transfer`](Self::max_data_transfer).
    pub mdts: u8,
    /// Bytes from 78: Controller ID.
    pub cntlid: U16,
    /// Bytes from 80: Version; see [`version`](Self::version).
    pub ver: U32,
    /// Bytes from 84: RTD3 Resume Latency, microseconds.
    pub rtd3r: U32,
    /// Bytes from 88: RTD3 Entry Latency, microseconds; a controller may take that long to shut down.
    pub rtd3e: U32,
    /// Bytes from 92: Optional Asynchronous Events Supported.
    pub oaes: U32,
    /// Bytes from 96: Controller Attributes.
    pub ctratt: U32,
    /// Bytes from 100: Read Recovery Levels Supported.
    pub rrls: U16,
    /// Bytes from 102: Reserved.
    pub rsvd102: [u8; 9],
    /// Byte 111: Controller Type: 1 I/O, 2 discovery, 3 administrative, 0 not reported.
    pub cntrltype: u8,
    /// Bytes from 112: FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Bytes from 128: Command Retry Delay Time 1, units of 100 ms; see [`retry_delay`](Self::retry_delay).
    pub crdt1: U16,
    /// Bytes from 130: Command Retry Delay Time 2, units of 100 ms.
    pub crdt2: U16,
    /// Bytes from 132: Command Retry Delay Time 3, units of 100 ms.
    pub crdt3: U16,
    /// Bytes from 134: Reserved.
    pub rsvd134: [u8; 119],
    /// Byte 253: NVM Subsystem Report.
    pub nvmsr: u8,
    /// Byte 254: VPD Write Cycle Information.
    pub vwci: u8,
    /// Byte 255: Management Endpoint Capabilities.
    pub mec: u8,
    /// Bytes from 256: Optional Admin Command Support.
    pub oacs: U16,
    /// Byte 258: Abort Command Limit, zero-based.
    pub acl: u8,
    /// Byte 259: Asynchronous Event Request Limit, zero-based.
    pub aerl: u8,
    /// Byte 260: Firmware Updates: slot 1 read only in bit 0, number of slots in bits 3:1, activation without reset in bit 4.
    pub frmw: u8,
    /// Byte 261: Log Page Attributes.
    pub lpa: u8,
    /// Byte 262: Error Log Page Entries, zero-based.
    pub elpe: u8,
    /// Byte 263: Number of Power States Support, zero-based; see [`power_states`](Self::power_states).
    pub npss: u8,
    /// Byte 264: Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Byte 265: Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Bytes from 266: Warning Composite Temperature Threshold, kelvins.
    pub wctemp: U16,
    /// Bytes from 268: Critical Composite Temperature Threshold, kelvins.
    pub cctemp: U16,
    /// Bytes from 270: Maximum Time for Firmware Activation, units of 100 ms.
    pub mtfa: U16,
    /// Bytes from 272: Host Memory Buffer Preferred Size, units of 4 KiB.
    pub hmpre: U32,
    /// Bytes from 276: Host Memory Buffer Minimum Size, units of 4 KiB.
    pub hmmin: U32,
    /// Bytes from 280: Total NVM Capacity, bytes.
    pub tnvmcap: U128,
    /// Bytes from 296: Unallocated NVM Capacity, bytes.
    pub unvmcap: U128,
    /// Bytes from 312: Replay Protected Memory Block Support.
    pub rpmbs: U32,
    /// Bytes from 316: Extended Device Self-test Time, minutes.
    pub edstt: U16,
    /// Byte 318: Device Self-test Options.
    pub dsto: u8,
    /// Byte 319: Firmware Update Granularity, units of 4 KiB; 0 not told, FFh no restriction.
    pub fwug: u8,
    /// Bytes from 320: Keep Alive Support, units of 100 ms; 0 when Keep Alive is not supported.
    pub kas: U16,
    /// Bytes from 322: Host Controlled Thermal Management Attributes.
    pub hctma: U16,
    /// Bytes from 324: Minimum Thermal Management Temperature, kelvins.
    pub mntmt: U16,
    /// Bytes from 326: Maximum Thermal Management Temperature, kelvins.
    pub mxtmt: U16,
    /// Bytes from 328: Sanitize Capabilities.
    pub sanicap: U32,
    /// Bytes from 332: Host Memory Buffer Minimum Descriptor Entry Size, units of 4 KiB.
    pub hmminds: U32,
    /// Bytes from 336: Host Memory Maximum Descriptors Entries.
    pub hmmaxd: U16,
    /// Bytes from 338: NVM Set Identifier Maximum.
    pub nsetidmax: U16,
    /// Bytes from 340: Endurance Group Identifier Maximum.
    pub endgidmax: U16,
    /// Byte 342: ANA Transition Time, seconds.
    pub anatt: u8,
    /// Byte 343: Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// Bytes from 344: ANA Group Identifier Maximum.
    pub anagrpmax: U32,
    /// Bytes from 348: Number of ANA Group Identifiers.
    pub nanagrpid: U32,
    /// Bytes from 352: Persistent Event Log Size, units of 64 KiB.
    pub pels: U32,
    /// Bytes from 356: Domain Identifier.
    pub domainid: U16,
    /// Bytes from 358: Reserved.
    pub rsvd358: [u8; 10],
    /// Bytes from 368: Max Endurance Group Capacity, bytes.
    pub megcap: U128,
    /// Bytes from 384: Reserved.
    pub rsvd384: [u8; 128],
    /// Byte 512: Submission Queue Entry Size: required log2 of bytes in bits 3:0, maximum in bits 7:4.
    pub sqes: u8,
    /// Byte 513: Completion Queue Entry Size: required log2 of bytes in bits 3:0, maximum in bits 7:4.
    pub cqes: u8,
    /// Bytes from 514: Maximum Outstanding Commands, 0 when not told.
    pub maxcmd: U16,
    /// Bytes from 516: Number of Namespaces: the highest namespace identifier.
    pub nn: U32,
    /// Bytes from 520: Optional NVM Command Support.
    pub oncs: U16,
    /// Bytes from 522: Fused Operation Support.
    pub fuses: U16,
    /// Byte 524: Format NVM Attributes.
    pub fna: u8,
    /// Byte 525: Volatile Write Cache: bit 0 present, bits 2:1 how Flush takes FFFFFFFFh.
    pub vwc: u8,
    /// Bytes from 526: Atomic Write Unit Normal, zero-based logical blocks.
    pub awun: U16,
    /// Bytes from 528: Atomic Write Unit Power Fail, zero-based logical blocks.
    pub awupf: U16,
    /// Byte 530: I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Byte 531: Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Bytes from 532: Atomic Compare & Write Unit, zero-based logical blocks.
    pub acwu: U16,
    /// Bytes from 534: Optional Copy Formats Supported.
    pub ocfs: U16,
    /// Bytes from 536: SGL Support.
    pub sgls: U32,
    /// Bytes from 540: Maximum Number of Allowed Namespaces, 0 for NN.
    pub mnan: U32,
    /// Bytes from 544: Maximum Domain Namespace Attachments.
    pub maxdna: U128,
    /// Bytes from 560: Maximum I/O Controller Namespace Attachments.
    pub maxcna: U32,
    /// Bytes from 564: Optimal Aggregated Queue Depth.
    pub oaqd: U32,
    /// Bytes from 568: Reserved.
    pub rsvd568: [u8; 200],
    /// Bytes from 768: NVM Subsystem NVMe Qualified Name, ends at a zero; see [`subsystem_nqn`](Self::subsystem_nqn).
    pub subnqn: [u8; 256],
    /// Bytes from 1024: Reserved.
    pub rsvd1024: [u8; 768],
    /// Bytes from 1792: I/O Queue Command Capsule Supported Size (Fabrics), units of 16 bytes.
    pub ioccsz: U32,
    /// Bytes from 1796: I/O Queue Response Capsule Supported Size (Fabrics), units of 16 bytes.
    pub iorcsz: U32,
    /// Bytes from 1800: In Capsule Data Offset (Fabrics), units of 16 bytes.
    pub icdoff: U16,
    /// Byte 1802: Fabrics Controller Attributes.
    pub fcatt: u8,
    /// Byte 1803: Maximum SGL Data Block Descriptors (Fabrics).
    pub msdbd: u8,
    /// Bytes from 1804: Optional Fabric Commands Support.
    pub ofcs: U16,
    /// Byte 1806: Discovery Controller Type.
    pub dctype: u8,
    /// Bytes from 1807: Reserved.
    pub rsvd1807: [u8; 241],
    /// Bytes from 2048: Power State Descriptors; see [`power_states`](Self::power_states).
    pub psd: [PowerState; 32],
    /// Bytes from 3072: Vendor Specific.
    pub vs: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == super::IDENTIFY_BYTES);

impl IdentifyController {
    /// SN, without padding.
    #[must_use]
    pub fn serial_number(&self) -> Ascii<'_> {
        Ascii::new(&self.sn)
    }

    /// MN, without padding.
    #[must_use]
    pub fn model_number(&self) -> Ascii<'_> {
        Ascii::new(&self.mn)
    }

    /// FR, without padding.
    #[must_use]
    pub fn firmware_revision(&self) -> Ascii<'_> {
        Ascii::new(&self.fr)
    }

    /// SUBNQN up to its zero.
    #[must_use]
    pub fn subsystem_nqn(&self) -> Ascii<'_> {
        Ascii::zero_terminated(&self.subnqn)
    }

    /// The OUI as a 24-bit number, as it is written: `00a075`.
    #[must_use]
    pub fn ieee_oui(&self) -> u32 {
        let [low, middle, high] = self.ieee;
        u32::from_le_bytes([low, middle, high, 0])
    }

    /// The most data that one command may transfer, in bytes; `None` for no limit, also where MDTS
    /// exceeds what an address can express. MDTS counts pages of CAP.MPSMIN, not of CC.MPS.
    #[must_use]
    pub fn max_data_transfer(&self, mpsmin: PageSize) -> Option<usize> {
        if self.mdts == 0 {
            return None;
        }
        let pages = 1usize.checked_shl(u32::from(self.mdts))?;
        pages.checked_mul(mpsmin.bytes())
    }

    /// VER.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_bits(self.ver.get())
    }

    /// How long to wait before the retry of a command with that status: CRDT1..=CRDT3 by its CRD field.
    #[must_use]
    pub fn retry_delay(&self, status: Status) -> Duration {
        let units = match status.crd() {
            0 => 0,
            1 => self.crdt1.get(),
            2 => self.crdt2.get(),
            _ => self.crdt3.get(),
        };
        Duration::from_millis(100) * u32::from(units)
    }

    /// The power states there are, 1..=32 (NPSS says up to 31, more is cut off).
    #[must_use]
    pub fn power_states(&self) -> &[PowerState] {
        let count = (usize::from(self.npss) + 1).min(self.psd.len());
        self.psd.get(..count).unwrap_or_default()
    }

    /// How many Abort commands may be outstanding, 1..=256.
    #[must_use]
    pub fn abort_limit(&self) -> u16 {
        u16::from(self.acl) + 1
    }

    /// How many Asynchronous Event Requests may be outstanding, 1..=256.
    #[must_use]
    pub fn async_event_limit(&self) -> u16 {
        u16::from(self.aerl) + 1
    }

    /// How many entries the Error Information log has, 1..=256.
    #[must_use]
    pub fn error_log_entries(&self) -> u16 {
        u16::from(self.elpe) + 1
    }

    /// Whether submission entries of 64 bytes and completion entries of 16 bytes can be selected.
    #[must_use]
    pub fn supports_standard_entry_sizes(&self) -> bool {
        entry_size_in_range(self.sqes, 6) && entry_size_in_range(self.cqes, 4)
    }

    /// Whether written data is volatile until flushed.
    #[must_use]
    pub fn has_volatile_write_cache(&self) -> bool {
        self.vwc & VWC_PRESENT != 0
    }

    /// Whether Doorbell Buffer Config is supported.
    #[must_use]
    pub fn supports_doorbell_buffer(&self) -> bool {
        self.oacs.get() & OACS_DOORBELL_BUFFER != 0
    }
}

/// Whether `log2` lies between the required (bits 3:0) and the maximum (bits 7:4) size.
fn entry_size_in_range(field: u8, log2: u8) -> bool {
    (field & 0xf..=field >> 4).contains(&log2)
}
