//! What controller to build.

mod text;

use std::fmt;

use thiserror::Error;

/// Largest space that the doorbells may take in BAR 0, in bytes.
const DOORBELL_BYTES_MAX: u64 = 16 << 20;
/// Most I/O queue pairs that a configuration may grant.
const QUEUES_MAX: u16 = 4096;
/// Most namespaces that a configuration may have.
const NAMESPACES_MAX: u32 = 1024;
/// Smallest memory page of NVMe, in bytes.
const PAGE_MIN: u64 = 4096;

/// What executes the commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// Keeps the data in memory, which is taken as it is written.
    #[default]
    Memory,
    /// Moves no data: every read and write succeeds at once and a read leaves the buffer as it is.
    Null,
}

/// The controller to build. All fields are checked by [`Config::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of each namespace in bytes, a multiple of `lba`; key `size`, with K, M, G or T for powers of 1024.
    pub size: u64,
    /// Logical block size in bytes, a power of two from 512 to 65,536; key `lba`.
    pub lba: u32,
    /// Identifiers of the active namespaces, ascending, 1 to 1024; key `namespaces` for how many, or `nsids` for a list
    /// such as `1:5:200`.
    pub namespaces: Vec<u32>,
    /// MDTS: largest transfer as a power of two of the smallest page, 0 for no limit, at most 16; key `mdts`.
    pub mdts: u8,
    /// Most entries of an I/O queue, 2 to 65,536 (CAP.MQES + 1); key `mqes`.
    pub mqes: u32,
    /// I/O queue pairs that are granted, 1 to 4096; key `queues`.
    pub queues: u16,
    /// CAP.DSTRD: doorbell stride of `4 << dstrd` bytes, 0 to 15; key `dstrd`.
    pub dstrd: u8,
    /// CAP.MPSMIN: smallest memory page of `4096 << mpsmin` bytes, 0 to 15; key `mpsmin`.
    pub mpsmin: u8,
    /// CAP.MPSMAX, not below `mpsmin`, 0 to 15; key `mpsmax`.
    pub mpsmax: u8,
    /// CAP.TO: longest wait for CSTS.RDY in units of 500 ms, 1 to 255; key `to`.
    pub to: u8,
    /// Whether there is a volatile write cache; key `vwc`.
    pub vwc: bool,
    /// What executes the commands; key `backend`.
    pub backend: BackendKind,
    /// Serial number, at most 20 printable ASCII characters; key `serial`.
    pub serial: String,
    /// Model number, at most 40 printable ASCII characters; key `model`.
    pub model: String,
    /// Address width of the software IOMMU in bits, 33 to 64; key `iova_bits`.
    pub iova_bits: u8,
    /// How many mappings the software IOMMU accepts; key `mappings`.
    pub mappings: u32,
    /// Whether the owner steps the controller itself, so that everything it does is repeatable, rather than give it a
    /// thread. Nothing here depends on it: whoever opens the controller decides by it. Key `stepped`.
    pub stepped: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            size: 1 << 30,
            lba: 512,
            namespaces: vec![1],
            mdts: 5,
            mqes: 1024,
            queues: 16,
            dstrd: 0,
            mpsmin: 0,
            mpsmax: 4,
            to: 10,
            vwc: true,
            backend: BackendKind::Memory,
            serial: "EMULATED0001".into(),
            model: "nvme-vfio emulated controller".into(),
            iova_bits: 39,
            mappings: 65_535,
            stepped: false,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no such key.
    #[error("unknown key '{key}'; the keys are {}", KEYS.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// The value is missing, malformed or out of range.
    #[error("{key}={value}: {key} takes {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as it was given.
        value: String,
        /// What would have been right.
        allowed: &'static str,
    },
    /// A key came twice.
    #[error("'{key}' is given twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// Two values do not go together.
    #[error("{0}")]
    Together(String),
    /// The memory for a namespace or for the doorbells could not be reserved.
    #[error("cannot reserve {bytes} bytes of memory")]
    Memory {
        /// Bytes.
        bytes: u64,
        /// What the system answered.
        source: std::io::Error,
    },
}

const KEYS: [&str; 18] = [
    "size",
    "lba",
    "namespaces",
    "nsids",
    "mdts",
    "mqes",
    "queues",
    "dstrd",
    "mpsmin",
    "mpsmax",
    "to",
    "vwc",
    "backend",
    "serial",
    "model",
    "iova_bits",
    "mappings",
    "stepped",
];

const SIZE: &str = "bytes, or a number with K, M, G or T, from one block to 64T";
const LBA: &str = "a power of two from 512 to 65536";
const NAMESPACES: &str = "a number from 0 to 1024";
const NSIDS: &str = "ascending numbers from 1 to 1024 with ':' between them";
const MDTS: &str = "a number from 0 to 16";
const MQES: &str = "a number from 2 to 65536";
const QUEUES: &str = "a number from 1 to 4096";
const UP_TO_15: &str = "a number from 0 to 15";
const TO: &str = "a number from 1 to 255 (units of 500 ms)";
const SWITCH: &str = "on or off";
const BACKEND: &str = "memory or null";
const SERIAL: &str = "1 to 20 printable ASCII characters without ','";
const MODEL: &str = "1 to 40 printable ASCII characters without ','";
const IOVA_BITS: &str = "a number from 33 to 64";
const MAPPINGS: &str = "a number from 1 to 4294967295";

impl Config {
    /// Looks for values out of range, and for values that do not go together.
    ///
    /// # Errors
    /// The first one found.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |fine: bool, key, value: &dyn fmt::Display, allowed| {
            if fine {
                Ok(())
            } else {
                Err(ConfigError::Value {
                    key,
                    value: value.to_string(),
                    allowed,
                })
            }
        };
        let text = |text: &str, most: usize| {
            let printable = text
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte) && byte != b',');
            !text.is_empty() && text.len() <= most && printable
        };
        range(
            self.lba.is_power_of_two() && (512..=65_536).contains(&self.lba),
            "lba",
            &self.lba,
            LBA,
        )?;
        range(
            self.size >= u64::from(self.lba) && self.size <= 64 << 40,
            "size",
            &self.size,
            SIZE,
        )?;
        let ascending = self.namespaces.is_sorted_by(|a, b| a < b);
        let in_range = self
            .namespaces
            .iter()
            .all(|nsid| (1..=NAMESPACES_MAX).contains(nsid));
        range(
            ascending && in_range,
            "nsids",
            &nsids_text(&self.namespaces),
            NSIDS,
        )?;
        range(self.mdts <= 16, "mdts", &self.mdts, MDTS)?;
        range((2..=65_536).contains(&self.mqes), "mqes", &self.mqes, MQES)?;
        range(
            (1..=QUEUES_MAX).contains(&self.queues),
            "queues",
            &self.queues,
            QUEUES,
        )?;
        range(self.dstrd <= 15, "dstrd", &self.dstrd, UP_TO_15)?;
        range(self.mpsmin <= 15, "mpsmin", &self.mpsmin, UP_TO_15)?;
        range(self.mpsmax <= 15, "mpsmax", &self.mpsmax, UP_TO_15)?;
        range(self.to >= 1, "to", &self.to, TO)?;
        range(text(&self.serial, 20), "serial", &self.serial, SERIAL)?;
        range(text(&self.model, 40), "model", &self.model, MODEL)?;
        range(
            (33..=64).contains(&self.iova_bits),
            "iova_bits",
            &self.iova_bits,
            IOVA_BITS,
        )?;
        range(self.mappings >= 1, "mappings", &self.mappings, MAPPINGS)?;
        if !self.size.is_multiple_of(u64::from(self.lba)) {
            return Err(ConfigError::Together(format!(
                "size={} is not a multiple of lba={}",
                self.size, self.lba
            )));
        }
        if self.mpsmax < self.mpsmin {
            return Err(ConfigError::Together(format!(
                "mpsmax={} is below mpsmin={}",
                self.mpsmax, self.mpsmin
            )));
        }
        if self.mdts != 0 && PAGE_MIN << self.mpsmin << self.mdts < u64::from(self.lba) {
            return Err(ConfigError::Together(format!(
                "mdts={} allows less than one block of lba={}",
                self.mdts, self.lba
            )));
        }
        if self.doorbell_bytes() > DOORBELL_BYTES_MAX {
            return Err(ConfigError::Together(format!(
                "queues={} with dstrd={} need {} bytes of doorbells, more than {DOORBELL_BYTES_MAX}",
                self.queues,
                self.dstrd,
                self.doorbell_bytes()
            )));
        }
        Ok(())
    }

    /// Bytes of BAR 0 from 0x1000 on that hold doorbells, in whole pages of 4 KiB.
    #[must_use]
    pub fn doorbell_bytes(&self) -> u64 {
        ((2 * (u64::from(self.queues) + 1) * 4) << self.dstrd).next_multiple_of(PAGE_MIN)
    }

    /// Logical blocks of each namespace.
    pub(crate) fn blocks(&self) -> u64 {
        self.size / u64::from(self.lba.max(1))
    }

    /// Most bytes that one command may move; `u64::MAX` for no limit.
    pub(crate) fn transfer_max(&self) -> u64 {
        if self.mdts == 0 {
            u64::MAX
        } else {
            PAGE_MIN << self.mpsmin << self.mdts
        }
    }

    /// The highest namespace identifier.
    pub(crate) fn nn(&self) -> u32 {
        self.namespaces.last().copied().unwrap_or(0)
    }
}

fn nsids_text(nsids: &[u32]) -> String {
    nsids
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(":")
}
