//! Memory that the controller itself has: Controller Memory Buffer, Persistent Memory
//! Region, boot partitions (Base Specification 2.0, 3.1.3.11 and on).

use core::time::Duration;

use bitfield_struct::bitfield;

/// Controller Memory Buffer Location (3.1.3.11).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cmbloc {
    /// Base Indicator Register: which BAR, 0 or 2..=5.
    #[bits(3)]
    pub bir: u8,
    /// CMB Queue Mixed Memory Support.
    pub cqmms: bool,
    /// CMB Queue Physically Discontiguous Support.
    pub cqpds: bool,
    /// CMB Data Pointer Mixed Locations Support.
    pub cdplms: bool,
    /// CMB Data Pointer and Command Independent Locations Support.
    pub cdpcils: bool,
    /// CMB Data Metadata Mixed Memory Support.
    pub cdmmms: bool,
    /// CMB Queue Dword Alignment.
    pub cqda: bool,
    #[bits(3)]
    __: u8,
    /// Offset into the BAR, in units of CMBSZ.SZU.
    #[bits(20)]
    pub ofst_raw: u32,
}

impl Cmbloc {
    /// Offset into the BAR in bytes; `None` where CMBSZ has a reserved unit.
    #[must_use]
    pub const fn offset(self, cmbsz: Cmbsz) -> Option<u64> {
        match cmbsz.unit() {
            Some(unit) => Some(self.ofst_raw() as u64 * unit),
            None => None,
        }
    }
}

/// Controller Memory Buffer Size (3.1.3.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cmbsz {
    /// Submission Queue Support.
    pub sqs: bool,
    /// Completion Queue Support.
    pub cqs: bool,
    /// PRP SGL List Support.
    pub lists: bool,
    /// Read Data Support.
    pub rds: bool,
    /// Write Data Support.
    pub wds: bool,
    #[bits(3)]
    __: u8,
    /// Size Units: 4 KiB times 16 to that power, 0..=6.
    #[bits(4)]
    pub szu: u8,
    /// Size, in units of SZU.
    #[bits(20)]
    pub sz: u32,
}

impl Cmbsz {
    /// The unit in bytes, 4 KiB to 64 GiB; `None` where SZU is reserved.
    #[must_use]
    pub const fn unit(self) -> Option<u64> {
        if self.szu() > 6 {
            return None;
        }
        Some(4096 << (4 * self.szu()))
    }

    /// The size in bytes; `None` where SZU is reserved.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self.unit() {
            Some(unit) => Some(self.sz() as u64 * unit),
            None => None,
        }
    }
}

/// Controller Memory Buffer Memory Space Control (3.1.3.16).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cmbmsc {
    /// Capabilities Registers Enabled: CMBLOC and CMBSZ tell.
    pub cre: bool,
    /// Controller Memory Space Enable.
    pub cmse: bool,
    #[bits(10)]
    __: u16,
    /// Controller Base Address, in units of 4 KiB.
    #[bits(52)]
    pub cba: u64,
}

/// Controller Memory Buffer Status (3.1.3.17).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cmbsts {
    /// Controller Base Address Invalid.
    pub cbai: bool,
    #[bits(31)]
    __: u32,
}

/// Boot Partition Information (3.1.3.13).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Bpinfo {
    /// Boot Partition Size, in units of 128 KiB.
    #[bits(15)]
    pub bpsz_raw: u16,
    #[bits(9)]
    __: u16,
    /// Boot Read Status: 0 none, 1 in progress, 2 done, 3 failed.
    #[bits(2)]
    pub brs: u8,
    #[bits(5)]
    __: u8,
    /// Active Boot Partition ID.
    pub abpid: bool,
}

impl Bpinfo {
    /// The size of each boot partition in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bpsz_raw() as u64 * (128 << 10)
    }
}

/// Persistent Memory Region Capabilities (3.1.3.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Pmrcap {
    #[bits(3)]
    __: u8,
    /// Read Data Support.
    pub rds: bool,
    /// Write Data Support.
    pub wds: bool,
    /// Base Indicator Register: which BAR, 2..=5.
    #[bits(3)]
    pub bir: u8,
    /// Persistent Memory Region Time Units: 0 for 500 ms, 1 for minutes.
    #[bits(2)]
    pub pmrtu: u8,
    /// Persistent Memory Region Write Barrier Mechanisms.
    #[bits(4)]
    pub pmrwbm: u8,
    #[bits(2)]
    __: u8,
    /// Persistent Memory Region Timeout, in units of PMRTU.
    pub pmrto: u8,
    /// Controller Memory Space Supported.
    pub cmss: bool,
    #[bits(7)]
    __: u8,
}

impl Pmrcap {
    /// The worst time until the region is ready; `None` where PMRTU is reserved.
    #[must_use]
    pub fn timeout(self) -> Option<Duration> {
        let unit = match self.pmrtu() {
            0 => Duration::from_millis(500),
            1 => Duration::from_secs(60),
            _ => return None,
        };
        Some(unit * u32::from(self.pmrto()))
    }
}

/// Persistent Memory Region Control (3.1.3.22).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Pmrctl {
    /// Enable.
    pub en: bool,
    #[bits(31)]
    __: u32,
}

/// Persistent Memory Region Status (3.1.3.23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Pmrsts {
    /// Error: not 0 when earlier writes may have been lost.
    pub err: u8,
    /// Not Ready.
    pub nrdy: bool,
    /// Health Status: 0 normal, 1 restore error, 2 read only, 3 unreliable.
    #[bits(3)]
    pub hsts: u8,
    /// Controller Base Address Invalid.
    pub cbai: bool,
    #[bits(19)]
    __: u32,
}

/// Boot Partition Read Select (3.1.3.14).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Bprsel {
    /// Boot Partition Read Size, in units of 4 KiB.
    #[bits(10)]
    pub bprsz: u16,
    /// Boot Partition Read Offset, in units of 4 KiB.
    #[bits(20)]
    pub bprof: u32,
    #[bits(1)]
    __: u8,
    /// Boot Partition Identifier.
    pub bpid: bool,
}

/// An elasticity buffer's size: CMBEBS (3.1.3.18) and PMREBS (3.1.3.24), which are laid out alike.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ElasticityBuffer {
    /// Size Units: bytes times 1024 to that power, 0..=3.
    #[bits(4)]
    pub szu: u8,
    /// Read Bypass Behavior: reads do not wait for the buffer to drain.
    pub rbb: bool,
    #[bits(3)]
    __: u8,
    /// Write Buffer Size, in units of SZU.
    #[bits(24)]
    pub wbz: u32,
}

impl ElasticityBuffer {
    /// The size in bytes, 0 where the controller does not tell; `None` where SZU is reserved.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        in_units(self.wbz(), self.szu())
    }
}

/// A sustained write throughput: CMBSWTP (3.1.3.19) and PMRSWTP (3.1.3.25), which are laid out alike.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WriteThroughput {
    /// Units: bytes per second times 1024 to that power, 0..=3.
    #[bits(4)]
    pub swtu: u8,
    #[bits(4)]
    __: u8,
    /// Sustained Write Throughput, in units of SWTU.
    #[bits(24)]
    pub swtv: u32,
}

impl WriteThroughput {
    /// In bytes per second, 0 where the controller does not tell; `None` where SWTU is reserved.
    #[must_use]
    pub const fn bytes_per_second(self) -> Option<u64> {
        in_units(self.swtv(), self.swtu())
    }
}

const fn in_units(value: u32, unit: u8) -> Option<u64> {
    if unit > 3 {
        return None;
    }
    Some((value as u64) << (10 * unit))
}
