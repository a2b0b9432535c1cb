//! Controller properties in BAR 0 (Base Specification 2.0, 3.1.3) and the doorbells
//! (NVMe over PCIe Transport Specification 1.0, 3.1.2).
//!
//! [`offset`] tells where they are; each type is the value of one register. Raw
//! fields have the specification's names, where needed with `_raw`; methods give bytes,
//! entries and times. `with_` functions build a value.

mod memory;

use core::time::Duration;

use bitfield_struct::bitfield;

pub use memory::{
    Bpinfo, Bprsel, Cmbloc, Cmbmsc, Cmbsts, Cmbsz, ElasticityBuffer, Pmrcap, Pmrctl, Pmrsts,
    WriteThroughput,
};

use crate::command::QueueSize;
use crate::prp::PageSize;

/// Byte offsets into BAR 0.
pub mod offset {
    /// Controller Capabilities, 8 bytes, read only.
    pub const CAP: usize = 0x00;
    /// Version, 4 bytes, read only.
    pub const VS: usize = 0x08;
    /// Interrupt Mask Set, 4 bytes; not to be touched when MSI-X is in use.
    pub const INTMS: usize = 0x0c;
    /// Interrupt Mask Clear, 4 bytes; not to be touched when MSI-X is in use.
    pub const INTMC: usize = 0x10;
    /// Controller Configuration, 4 bytes.
    pub const CC: usize = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: usize = 0x1c;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: usize = 0x20;
    /// Admin Queue Attributes, 4 bytes.
    pub const AQA: usize = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: usize = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: usize = 0x30;
    /// Controller Memory Buffer Location, 4 bytes, read only.
    pub const CMBLOC: usize = 0x38;
    /// Controller Memory Buffer Size, 4 bytes, read only.
    pub const CMBSZ: usize = 0x3c;
    /// Boot Partition Information, 4 bytes, read only.
    pub const BPINFO: usize = 0x40;
    /// Boot Partition Read Select, 4 bytes.
    pub const BPRSEL: usize = 0x44;
    /// Boot Partition Memory Buffer Location, 8 bytes.
    pub const BPMBL: usize = 0x48;
    /// Controller Memory Buffer Memory Space Control, 8 bytes.
    pub const CMBMSC: usize = 0x50;
    /// Controller Memory Buffer Status, 4 bytes, read only.
    pub const CMBSTS: usize = 0x58;
    /// Controller Memory Buffer Elasticity Buffer Size, 4 bytes, read only.
    pub const CMBEBS: usize = 0x5c;
    /// Controller Memory Buffer Sustained Write Throughput, 4 bytes, read only.
    pub const CMBSWTP: usize = 0x60;
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: usize = 0x64;
    /// Controller Ready Timeouts, 4 bytes, read only.
    pub const CRTO: usize = 0x68;
    /// Persistent Memory Region Capabilities, 4 bytes, read only.
    pub const PMRCAP: usize = 0xe00;
    /// Persistent Memory Region Control, 4 bytes.
    pub const PMRCTL: usize = 0xe04;
    /// Persistent Memory Region Status, 4 bytes, read only.
    pub const PMRSTS: usize = 0xe08;
    /// Persistent Memory Region Elasticity Buffer Size, 4 bytes, read only.
    pub const PMREBS: usize = 0xe0c;
    /// Persistent Memory Region Sustained Write Throughput, 4 bytes, read only.
    pub const PMRSWTP: usize = 0xe10;
    /// Persistent Memory Region Controller Memory Space Control Lower, 4 bytes.
    pub const PMRMSCL: usize = 0xe14;
    /// Persistent Memory Region Controller Memory Space Control Upper, 4 bytes.
    pub const PMRMSCU: usize = 0xe18;
    /// The first doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// What is written to NSSR and NSSD to act: "NVMe" in ASCII.
pub const NVM_SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

/// What a read of a device that is gone returns.
const ALL_ONES: u32 = u32::MAX;

/// The unit of CAP.TO, CRTO.CRWMT and CRTO.CRIMT.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);

/// Controller Capabilities (3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Maximum Queue Entries Supported, zero-based.
    pub mqes_raw: u16,
    /// Contiguous Queues Required.
    pub cqr: bool,
    /// Arbitration Mechanism Supported: bit 0 weighted round robin, bit 1 vendor specific.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout, in units of 500 ms.
    pub to_raw: u8,
    /// Doorbell Stride: 2 ^ (2 + DSTRD) bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported.
    pub nssrs: bool,
    /// Command Sets Supported: bit 0 NVM, bit 6 one or more by CSI, bit 7 none.
    pub css: u8,
    /// Boot Partition Support.
    pub bps: bool,
    /// Controller Power Scope.
    #[bits(2)]
    pub cps: u8,
    /// Memory Page Size Minimum: 2 ^ (12 + MPSMIN) bytes.
    #[bits(4)]
    pub mpsmin_raw: u8,
    /// Memory Page Size Maximum: 2 ^ (12 + MPSMAX) bytes.
    #[bits(4)]
    pub mpsmax_raw: u8,
    /// Persistent Memory Region Supported.
    pub pmrs: bool,
    /// Controller Memory Buffer Supported.
    pub cmbs: bool,
    /// NVM Subsystem Shutdown Supported.
    pub nsss: bool,
    /// Controller Ready Modes Supported: bit 0 with media, bit 1 independent of media.
    #[bits(2)]
    pub crms: u8,
    #[bits(3)]
    __: u8,
}

impl Cap {
    /// The longest I/O queue in entries, 1..=65536. (1 breaks the specification: a queue has at least 2.)
    #[must_use]
    pub const fn mqes(self) -> u32 {
        self.mqes_raw() as u32 + 1
    }

    /// The worst time from CC.EN changing to CSTS.RDY following, 0 to 127.5 s.
    #[must_use]
    pub fn timeout(self) -> Duration {
        TIMEOUT_UNIT * u32::from(self.to_raw())
    }

    /// Bytes from one doorbell to the next, 4 to 128 Ki.
    #[must_use]
    pub const fn doorbell_stride(self) -> usize {
        4 << self.dstrd()
    }

    /// The offset in BAR 0 of submission queue `qid`'s tail doorbell.
    #[must_use]
    pub const fn sq_tail_doorbell(self, qid: u16) -> usize {
        offset::DOORBELLS + 2 * qid as usize * self.doorbell_stride()
    }

    /// The offset in BAR 0 of completion queue `qid`'s head doorbell.
    #[must_use]
    pub const fn cq_head_doorbell(self, qid: u16) -> usize {
        offset::DOORBELLS + (2 * qid as usize + 1) * self.doorbell_stride()
    }

    /// The smallest memory page size, also the unit of MDTS.
    #[must_use]
    pub const fn mpsmin(self) -> PageSize {
        PageSize::from_mps_field(self.mpsmin_raw())
    }

    /// The largest memory page size. Below [`mpsmin`](Self::mpsmin) from a controller that breaks the specification.
    #[must_use]
    pub const fn mpsmax(self) -> PageSize {
        PageSize::from_mps_field(self.mpsmax_raw())
    }

    /// Whether the NVM command set can be selected (CC.CSS = 000b).
    #[must_use]
    pub const fn supports_nvm_command_set(self) -> bool {
        self.css() & 1 != 0
    }

    /// Whether command sets can be selected by their identifier (CC.CSS = 110b).
    #[must_use]
    pub const fn supports_command_set_identifiers(self) -> bool {
        self.css() & 1 << 6 != 0
    }

    /// Whether there is an admin queue only (CC.CSS = 111b).
    #[must_use]
    pub const fn is_admin_only(self) -> bool {
        self.css() & 1 << 7 != 0
    }

    /// Whether the register read as all ones: the device is gone.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        self.into_bits() == u64::MAX
    }
}

/// Version (3.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Tertiary version number.
    pub tertiary: u8,
    /// Minor version number.
    pub minor: u8,
    /// Major version number.
    pub major: u16,
}

impl core::fmt::Display for Version {
    /// `1.4`, or `1.2.1` where there is a tertiary number.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())?;
        if self.tertiary() != 0 {
            write!(f, ".{}", self.tertiary())?;
        }
        Ok(())
    }
}

/// Controller Configuration (3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cc {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected: 000b NVM, 110b all supported by CSI, 111b none.
    #[bits(3)]
    pub css: u8,
    /// Memory Page Size: 2 ^ (12 + MPS) bytes.
    #[bits(4)]
    pub mps_raw: u8,
    /// Arbitration Mechanism Selected: 0 round robin.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown Notification: 00b none, 01b normal, 10b abrupt.
    #[bits(2)]
    pub shn: u8,
    /// I/O Submission Queue Entry Size, log2 of bytes: 6.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size, log2 of bytes: 4.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

impl Cc {
    /// CSS: the NVM command set.
    pub const CSS_NVM: u8 = 0b000;
    /// CSS: every supported command set, chosen per namespace and command.
    pub const CSS_ALL: u8 = 0b110;
    /// CSS: no I/O command set.
    pub const CSS_ADMIN_ONLY: u8 = 0b111;
    /// SHN: no notification.
    pub const SHN_NONE: u8 = 0b00;
    /// SHN: normal shutdown.
    pub const SHN_NORMAL: u8 = 0b01;
    /// SHN: abrupt shutdown, when power is about to fail.
    pub const SHN_ABRUPT: u8 = 0b10;

    /// The memory page size in force.
    #[must_use]
    pub const fn page_size(self) -> PageSize {
        PageSize::from_mps_field(self.mps_raw())
    }

    /// Sets the memory page size.
    #[must_use]
    pub const fn with_page_size(self, page: PageSize) -> Self {
        self.with_mps_raw(page.mps())
    }

    /// Whether the register read as all ones: the device is gone.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        self.into_bits() == ALL_ONES
    }
}

/// Controller Status (3.1.3.6).
///
/// A device that is gone reads as all ones, which has RDY set: ask [`is_gone`](Self::is_gone) first.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Csts {
    /// Ready.
    pub rdy: bool,
    /// Controller Fatal Status.
    pub cfs: bool,
    /// Shutdown Status: 00b normal operation, 01b in progress, 10b complete.
    #[bits(2)]
    pub shst: u8,
    /// NVM Subsystem Reset Occurred.
    pub nssro: bool,
    /// Processing Paused.
    pub pp: bool,
    /// Shutdown Type: the shutdown reported is of the NVM subsystem.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

impl Csts {
    /// SHST: normal operation, no shutdown requested.
    pub const SHST_NORMAL: u8 = 0b00;
    /// SHST: shutdown in progress.
    pub const SHST_OCCURRING: u8 = 0b01;
    /// SHST: shutdown complete.
    pub const SHST_COMPLETE: u8 = 0b10;

    /// Whether the register read as all ones: the device is gone.
    #[inline]
    #[must_use]
    pub const fn is_gone(self) -> bool {
        self.into_bits() == ALL_ONES
    }

    /// RDY of a device that is there.
    #[inline]
    #[must_use]
    pub const fn is_ready(self) -> bool {
        self.rdy() && !self.is_gone()
    }

    /// RDY = 0: after CC.EN = 0 this proves that the controller has let go of all memory.
    #[inline]
    #[must_use]
    pub const fn is_disabled(self) -> bool {
        !self.rdy()
    }

    /// CFS of a device that is there.
    #[inline]
    #[must_use]
    pub const fn is_fatal(self) -> bool {
        self.cfs() && !self.is_gone()
    }

    /// Shutdown complete. (A device that is gone has SHST = 11b.)
    #[inline]
    #[must_use]
    pub const fn is_shut_down(self) -> bool {
        self.shst() == Self::SHST_COMPLETE
    }
}

/// Admin Queue Attributes (3.1.3.8). To be rewritten at every enable.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aqa {
    /// Admin Submission Queue Size, zero-based.
    #[bits(12)]
    pub asqs_raw: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size, zero-based.
    #[bits(12)]
    pub acqs_raw: u16,
    #[bits(4)]
    __: u8,
}

impl Aqa {
    /// The longest admin queue, in entries.
    pub const MAX_ENTRIES: u32 = 4096;

    /// Of those sizes; `None` where one exceeds [`MAX_ENTRIES`](Self::MAX_ENTRIES).
    #[must_use]
    pub const fn of(submission: QueueSize, completion: QueueSize) -> Option<Self> {
        if submission.entries() > Self::MAX_ENTRIES || completion.entries() > Self::MAX_ENTRIES {
            return None;
        }
        Some(
            Self::new()
                .with_asqs_raw(submission.zero_based())
                .with_acqs_raw(completion.zero_based()),
        )
    }

    /// The admin submission queue in entries, 1..=4096.
    #[must_use]
    pub const fn asqs(self) -> u32 {
        self.asqs_raw() as u32 + 1
    }

    /// The admin completion queue in entries, 1..=4096.
    #[must_use]
    pub const fn acqs(self) -> u32 {
        self.acqs_raw() as u32 + 1
    }
}

/// Controller Ready Timeouts (3.1.3.20), valid when CAP.CRMS is not 0.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Crto {
    /// Controller Ready With Media Timeout, in units of 500 ms.
    pub crwmt_raw: u16,
    /// Controller Ready Independent of Media Timeout, in units of 500 ms.
    pub crimt_raw: u16,
}

impl Crto {
    /// The worst time to ready with media, 0 to about 9 hours.
    #[must_use]
    pub fn crwmt(self) -> Duration {
        TIMEOUT_UNIT * u32::from(self.crwmt_raw())
    }

    /// The worst time to ready independent of media.
    #[must_use]
    pub fn crimt(self) -> Duration {
        TIMEOUT_UNIT * u32::from(self.crimt_raw())
    }
}

#[cfg(test)]
mod tests;
