//! The namespaces that a controller is built with, and what bounds the commands on them.

use super::{Config, ConfigError, LBA, NN, PAGE_MIN, SIZE};

/// Highest namespace identifier that a configuration may have.
pub(crate) const NSID_MAX: u32 = 1024;
/// Largest namespace, in bytes.
pub(crate) const SIZE_MAX: u64 = 64 << 40;

/// A namespace that exists, and is attached, from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Namespace identifier, 1 to 1024.
    pub nsid: u32,
    /// Bytes, a multiple of `lba`, from one block to 64 TiB.
    pub size: u64,
    /// Logical block size in bytes, a power of two from 512 to 65,536.
    pub lba: u32,
}

impl Default for NamespaceConfig {
    /// Namespace 1 of 1 GiB in blocks of 512 bytes.
    fn default() -> NamespaceConfig {
        NamespaceConfig {
            nsid: 1,
            size: 1 << 30,
            lba: 512,
        }
    }
}

/// The most that one command may ask for, as Identify tells it: CNS 06h for the NVM command set, and Identify Namespace for Copy.
/// What is 0 has no limit unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// VSL: most that Verify takes, as a power of two of the smallest page, at most 16.
    pub vsl: u8,
    /// WZSL: most that Write Zeroes takes, as a power of two of the smallest page, at most 16.
    pub wzsl: u8,
    /// WUSL: most that Write Uncorrectable takes, as a power of two of the smallest page, at most 16.
    pub wusl: u8,
    /// DMRL: most ranges of a Dataset Management command.
    pub dmrl: u8,
    /// DMRSL: most logical blocks in one range of a Dataset Management command.
    pub dmrsl: u32,
    /// DMSL: most logical blocks in all ranges of a Dataset Management command.
    pub dmsl: u64,
    /// MSSRL: most logical blocks in one source range of a Copy, not 0.
    pub mssrl: u16,
    /// MCL: most logical blocks in all source ranges of a Copy, not 0.
    pub mcl: u32,
    /// MSRC: most source ranges of a Copy, less one.
    pub msrc: u8,
}

impl Default for CommandLimits {
    fn default() -> CommandLimits {
        CommandLimits {
            vsl: 0,
            wzsl: 0,
            wusl: 0,
            dmrl: 0,
            dmrsl: 0,
            dmsl: 0,
            mssrl: 4096,
            mcl: 65_536,
            msrc: 127,
        }
    }
}

const NSIDS: &str = "ascending numbers from 1 to 1024 with ':' between them, each with its size and LBA size after '/' where they differ";
const CAPACITY: &str = "bytes, or a number with K, M, G or T, not below what the namespaces take";
const POWER: &str = "a number from 0 to 16";
const NOT_ZERO: &str = "a number from 1 on";

fn value(
    fine: bool,
    key: &'static str,
    value: &dyn std::fmt::Display,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if fine {
        Ok(())
    } else {
        Err(ConfigError::Value {
            key,
            value: value.to_string(),
            allowed,
        })
    }
}

impl Config {
    /// The part of [`Config::check`] that is about namespaces.
    pub(super) fn check_namespaces(&self) -> Result<(), ConfigError> {
        for namespace in &self.namespaces {
            let NamespaceConfig { size, lba, .. } = *namespace;
            let possible = lba.is_power_of_two() && (512..=65_536).contains(&lba);
            value(possible, "lba", &lba, LBA)?;
            if self.lba_formats.index_of(lba).is_none() {
                return Err(ConfigError::Together(format!(
                    "lba={lba} is not among lba_formats={}",
                    self.lba_formats
                )));
            }
            let fits = size >= u64::from(lba) && size <= SIZE_MAX;
            value(fits, "size", &size, SIZE)?;
            if !size.is_multiple_of(u64::from(lba)) {
                return Err(ConfigError::Together(format!(
                    "size={size} is not a multiple of lba={lba}"
                )));
            }
            if self.mdts != 0 && PAGE_MIN << self.mpsmin << self.mdts < u64::from(lba) {
                return Err(ConfigError::Together(format!(
                    "mdts={} allows less than one block of lba={lba}",
                    self.mdts
                )));
            }
        }
        let ascending = self.namespaces.is_sorted_by(|a, b| a.nsid < b.nsid);
        let mut identifiers = self.namespaces.iter();
        let in_range = identifiers.all(|namespace| (1..=NSID_MAX).contains(&namespace.nsid));
        value(ascending && in_range, "nsids", &self.nsids_text(), NSIDS)?;
        let nn_fits = self.nn == 0 || self.nn >= self.highest() && self.nn <= NSID_MAX;
        value(nn_fits, "nn", &self.nn, NN)?;
        let capacity_fits = self.capacity == 0 || self.capacity >= self.configured();
        value(capacity_fits, "capacity", &self.capacity, CAPACITY)?;
        let limits = &self.limits;
        value(limits.vsl <= 16, "vsl", &limits.vsl, POWER)?;
        value(limits.wzsl <= 16, "wzsl", &limits.wzsl, POWER)?;
        value(limits.wusl <= 16, "wusl", &limits.wusl, POWER)?;
        value(limits.mssrl != 0, "mssrl", &limits.mssrl, NOT_ZERO)?;
        value(limits.mcl != 0, "mcl", &limits.mcl, NOT_ZERO)
    }

    fn highest(&self) -> u32 {
        self.namespaces.last().map_or(0, |last| last.nsid)
    }

    fn configured(&self) -> u64 {
        let sizes = self.namespaces.iter().map(|namespace| namespace.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// NN: the highest identifier that a namespace can have.
    #[must_use]
    pub fn nn(&self) -> u32 {
        if self.nn == 0 {
            self.highest()
        } else {
            self.nn
        }
    }

    /// TNVMCAP: bytes that all namespaces together can have.
    #[must_use]
    pub fn total_capacity(&self) -> u64 {
        self.capacity.max(self.configured())
    }

    /// `1:5:200`, with `/SIZE/LBA` where the namespaces are not alike.
    pub(super) fn nsids_text(&self) -> String {
        let alike = self.alike().is_some();
        let one = |namespace: &NamespaceConfig| {
            let NamespaceConfig { nsid, size, lba } = *namespace;
            if alike {
                nsid.to_string()
            } else {
                format!("{nsid}/{size}/{lba}")
            }
        };
        let texts: Vec<String> = self.namespaces.iter().map(one).collect();
        texts.join(":")
    }

    /// The size and LBA size that all namespaces have, if they are alike; the default's where there is none.
    pub(super) fn alike(&self) -> Option<(u64, u32)> {
        let first = self.namespaces.first().copied().unwrap_or_default();
        let mut namespaces = self.namespaces.iter();
        namespaces
            .all(|other| (other.size, other.lba) == (first.size, first.lba))
            .then_some((first.size, first.lba))
    }
}

/// One entry of `nsids=`, with what it leaves out still open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) nsid: u32,
    pub(super) size: Option<u64>,
    pub(super) lba: Option<u32>,
}

/// Reads `1:5/2G:200/1G/4096`.
pub(super) fn read_nsids(
    text: &str,
    size: impl Fn(&str) -> Result<u64, ConfigError>,
) -> Result<Vec<Named>, ConfigError> {
    let one = |entry: &str| {
        let wrong = || ConfigError::Value {
            key: "nsids",
            value: text.into(),
            allowed: NSIDS,
        };
        let mut parts = entry.split('/');
        let nsid = parts.next().and_then(|nsid| nsid.parse().ok());
        let named = Named {
            nsid: nsid.ok_or_else(wrong)?,
            size: parts.next().map(&size).transpose()?,
            lba: parts
                .next()
                .map(|lba| lba.parse().map_err(|_| wrong()))
                .transpose()?,
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(named)
    };
    text.split(':').map(one).collect()
}
