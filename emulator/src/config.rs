//! What controller to build.

mod file;
mod formats;
mod keys;
mod namespaces;
mod personality;
mod text;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::backend::file_of;
use crate::interrupts::VECTORS_MAX;
use crate::latency::{DURATION, LATENCY, Latencies};

pub use formats::LbaFormats;
use keys::{
    FIRMWARE, IOVA_BITS, LBA, MAPPINGS, MDTS, MODEL, MQES, NN, QUEUES, SERIAL, SIZE, TO, UP_TO_15,
    VECTORS,
};
pub use namespaces::{CommandLimits, NamespaceConfig};
pub(crate) use namespaces::{NSID_MAX, SIZE_MAX};
pub use personality::{Names, NamespaceNames, Offers};

/// Largest space that the doorbells may take in BAR 0, in bytes.
const DOORBELL_BYTES_MAX: u64 = 16 << 20;
/// Most I/O queue pairs that a configuration may grant.
const QUEUES_MAX: u16 = 4096;
/// Smallest memory page of NVMe, in bytes.
const PAGE_MIN: u64 = 4096;

/// What executes the commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// Keeps the data in memory, which is taken as it is written.
    #[default]
    Memory,
    /// Moves no data: every read and write succeeds at once and a read leaves the buffer as it is.
    Null,
    /// Keeps the data in a file (namespace 1; that of namespace `n` has `.n` after its name), which is made if it is not there.
    File(PathBuf),
}

impl FromStr for BackendKind {
    type Err = ();

    fn from_str(text: &str) -> Result<BackendKind, ()> {
        match text {
            "memory" => Ok(BackendKind::Memory),
            "null" => Ok(BackendKind::Null),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(BackendKind::File(path.into())),
                _ => Err(()),
            },
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendKind::Memory => f.write_str("memory"),
            BackendKind::Null => f.write_str("null"),
            BackendKind::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// The controller to build. All fields are checked by [`Config::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The namespaces that exist and are attached from the beginning, ascending by identifier. Keys `size` and `lba` for what they
    /// have in common, and `namespaces` for how many, or `nsids` for a list such as `1:5:200`, where `5/2G/4096` gives one a size and
    /// an LBA size of its own.
    pub namespaces: Vec<NamespaceConfig>,
    /// The LBA formats that are offered, that of each namespace among them; key `lba_formats`, such as `512:4096`.
    pub lba_formats: LbaFormats,
    /// NN: the highest identifier that Namespace Management may give, at most 1024; 0 for the highest in `namespaces`. Key `nn`.
    pub nn: u32,
    /// TNVMCAP: bytes that Namespace Management may give to namespaces, all together; 0 for what `namespaces` take. Key `capacity`.
    pub capacity: u64,
    /// The most that one command may ask for, apart from `mdts`; keys `vsl`, `wzsl`, `wusl`, `dmrl`, `dmrsl`, `dmsl`, `mssrl`, `mcl`
    /// and `msrc`.
    pub limits: CommandLimits,
    /// MDTS: largest transfer as a power of two of the smallest page, 0 for no limit, at most 16; key `mdts`.
    pub mdts: u8,
    /// Most entries of an I/O queue, 2 to 65,536 (CAP.MQES + 1); key `mqes`.
    pub mqes: u32,
    /// I/O queue pairs that are granted, 1 to 4096; key `queues`.
    pub queues: u16,
    /// Interrupt vectors (MSI-X), 1 to 2048, or 0 for one of the admin queue and one of each I/O queue pair; key `vectors`.
    pub vectors: u16,
    /// CAP.DSTRD: doorbell stride of `4 << dstrd` bytes, 0 to 15; key `dstrd`.
    pub dstrd: u8,
    /// CAP.MPSMIN: smallest memory page of `4096 << mpsmin` bytes, 0 to 15; key `mpsmin`.
    pub mpsmin: u8,
    /// CAP.MPSMAX, not below `mpsmin`, 0 to 15; key `mpsmax`.
    pub mpsmax: u8,
    /// CAP.TO: longest wait for CSTS.RDY in units of 500 ms, 1 to 255; key `to`.
    pub to: u8,
    /// Whether reading deallocated or unwritten blocks can be made an error (NSFEAT.DAE): it keeps account of every block that is written.
    /// Key `dulbe`.
    pub dulbe: bool,
    /// Whether there is a volatile write cache; key `vwc`.
    pub vwc: bool,
    /// What executes the commands; key `backend`.
    pub backend: BackendKind,
    /// Serial number, at most 20 printable ASCII characters; key `serial`.
    pub serial: String,
    /// Model number, at most 40 printable ASCII characters; key `model`.
    pub model: String,
    /// Firmware revision, at most 8 printable ASCII characters; key `firmware`.
    pub firmware: String,
    /// What the controller and its namespaces are called beside that.
    pub names: Names,
    /// The optional commands that are offered.
    pub offers: Offers,
    /// How long commands take; keys `latency.read`, `latency.write`, `latency.flush`, `latency.other`, `latency.admin`, `latency.seed` and
    /// `latency.step`.
    pub latency: Latencies,
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
            namespaces: vec![NamespaceConfig::default()],
            lba_formats: LbaFormats::default(),
            nn: 0,
            capacity: 0,
            limits: CommandLimits::default(),
            mdts: 5,
            mqes: 1024,
            queues: 16,
            vectors: 0,
            dstrd: 0,
            mpsmin: 0,
            mpsmax: 4,
            to: 10,
            dulbe: false,
            vwc: true,
            backend: BackendKind::Memory,
            serial: "EMULATED0001".into(),
            model: "nvme-vfio emulated controller".into(),
            firmware: "1.0".into(),
            names: Names::default(),
            offers: Offers::default(),
            latency: Latencies::default(),
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
    #[error("unknown key '{key}'; the keys are {}", keys::names())]
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
    /// There is no such key in a `[[namespace]]` table.
    #[error("unknown key '{key}' of a namespace; the keys are nsid, size, lba")]
    UnknownNamespaceKey {
        /// The key.
        key: String,
    },
    /// What is wrong in a line of a file.
    #[error("line {line}: {source}")]
    Line {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        source: Box<ConfigError>,
    },
    /// The file is not TOML, or something in it has the wrong shape.
    #[error("line {line}: {message}")]
    Toml {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
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
    /// The memory or file of a namespace could not be had.
    #[error("no medium of {bytes} bytes for namespace {namespace}")]
    Medium {
        /// Its identifier.
        namespace: u32,
        /// Bytes.
        bytes: u64,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The memory for the doorbells could not be reserved.
    #[error("cannot reserve {bytes} bytes of memory")]
    Memory {
        /// Bytes.
        bytes: u64,
        /// What the system answered.
        source: std::io::Error,
    },
}

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
            text(&self.firmware, 8),
            "firmware",
            &self.firmware,
            FIRMWARE,
        )?;
        range(
            self.vectors <= VECTORS_MAX,
            "vectors",
            &self.vectors,
            VECTORS,
        )?;
        let latency = &self.latency;
        range(latency.read.check(), "latency.read", &latency.read, LATENCY)?;
        range(
            latency.write.check(),
            "latency.write",
            &latency.write,
            LATENCY,
        )?;
        range(
            latency.flush.check(),
            "latency.flush",
            &latency.flush,
            LATENCY,
        )?;
        range(
            latency.other.check(),
            "latency.other",
            &latency.other,
            LATENCY,
        )?;
        range(
            latency.admin.check(),
            "latency.admin",
            &latency.admin,
            LATENCY,
        )?;
        range(
            !latency.step.is_zero() && latency.step.as_secs() <= 60,
            "latency.step",
            &latency.step.as_nanos(),
            DURATION,
        )?;
        range(
            (33..=64).contains(&self.iova_bits),
            "iova_bits",
            &self.iova_bits,
            IOVA_BITS,
        )?;
        range(self.mappings >= 1, "mappings", &self.mappings, MAPPINGS)?;
        if self.mpsmax < self.mpsmin {
            return Err(ConfigError::Together(format!(
                "mpsmax={} is below mpsmin={}",
                self.mpsmax, self.mpsmin
            )));
        }
        self.check_namespaces()?;
        self.check_names()?;
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

    /// The files that its namespaces are kept in, where its back end keeps them in files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let BackendKind::File(path) = &self.backend else {
            return Vec::new();
        };
        let namespaces = self.namespaces.iter();
        namespaces.map(|one| file_of(path, one.nsid)).collect()
    }

    /// Bytes of BAR 0 from 0x1000 on that hold doorbells, in whole pages of 4 KiB.
    #[must_use]
    pub fn doorbell_bytes(&self) -> u64 {
        ((2 * (u64::from(self.queues) + 1) * 4) << self.dstrd).next_multiple_of(PAGE_MIN)
    }

    /// Most bytes that one command may move; `u64::MAX` for no limit.
    pub(crate) fn transfer_max(&self) -> u64 {
        if self.mdts == 0 {
            u64::MAX
        } else {
            PAGE_MIN << self.mpsmin << self.mdts
        }
    }
}
