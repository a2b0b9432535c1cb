//! The text form of a configuration: `key=value,...`.

use std::fmt;
use std::str::FromStr;

use super::namespaces::{Named, read_nsids};
use super::{
    BACKEND, BackendKind, Config, ConfigError, IOVA_BITS, KEYS, LBA, LIMIT, MAPPINGS, MDTS, MQES,
    NAMESPACES, NN, NSID_MAX, NamespaceConfig, QUEUES, SIZE, SWITCH, TO, UP_TO_15,
};

fn number<T: FromStr>(
    key: &'static str,
    value: &str,
    allowed: &'static str,
) -> Result<T, ConfigError> {
    value.parse().map_err(|_| ConfigError::Value {
        key,
        value: value.into(),
        allowed,
    })
}

fn switch(key: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "on" | "" => Ok(true),
        "off" => Ok(false),
        _ => Err(ConfigError::Value {
            key,
            value: value.into(),
            allowed: SWITCH,
        }),
    }
}

fn size_of(key: &'static str, value: &str) -> Result<u64, ConfigError> {
    let wrong = || ConfigError::Value {
        key,
        value: value.into(),
        allowed: SIZE,
    };
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match value.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

impl FromStr for Config {
    type Err = ConfigError;

    /// Reads `key=value,...`; what is not named keeps its default. `vwc` and `stepped` alone mean `on`.
    fn from_str(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let NamespaceConfig {
            mut size, mut lba, ..
        } = NamespaceConfig::default();
        let plain = |nsid| Named {
            nsid,
            size: None,
            lba: None,
        };
        let mut named = vec![plain(1)];
        let mut seen: Vec<&'static str> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let unknown = || ConfigError::UnknownKey { key: name.into() };
            let key = KEYS
                .into_iter()
                .find(|key| *key == name)
                .ok_or_else(unknown)?;
            if seen.contains(&key) {
                return Err(ConfigError::Twice { key });
            }
            seen.push(key);
            match key {
                "size" => size = size_of(key, value)?,
                "lba" => lba = number(key, value, LBA)?,
                "namespaces" => {
                    let count: u32 = number(key, value, NAMESPACES)?;
                    if count > NSID_MAX {
                        return Err(ConfigError::Value {
                            key,
                            value: value.into(),
                            allowed: NAMESPACES,
                        });
                    }
                    named = (1..=count).map(plain).collect();
                }
                "nsids" => named = read_nsids(value, |text| size_of("nsids", text))?,
                "nn" => config.nn = number(key, value, NN)?,
                "capacity" => config.capacity = size_of(key, value)?,
                "vsl" => config.limits.vsl = number(key, value, LIMIT)?,
                "wzsl" => config.limits.wzsl = number(key, value, LIMIT)?,
                "wusl" => config.limits.wusl = number(key, value, LIMIT)?,
                "dmrl" => config.limits.dmrl = number(key, value, LIMIT)?,
                "dmrsl" => config.limits.dmrsl = number(key, value, LIMIT)?,
                "dmsl" => config.limits.dmsl = number(key, value, LIMIT)?,
                "mssrl" => config.limits.mssrl = number(key, value, LIMIT)?,
                "mcl" => config.limits.mcl = number(key, value, LIMIT)?,
                "msrc" => config.limits.msrc = number(key, value, LIMIT)?,
                "mdts" => config.mdts = number(key, value, MDTS)?,
                "mqes" => config.mqes = number(key, value, MQES)?,
                "queues" => config.queues = number(key, value, QUEUES)?,
                "dstrd" => config.dstrd = number(key, value, UP_TO_15)?,
                "mpsmin" => config.mpsmin = number(key, value, UP_TO_15)?,
                "mpsmax" => config.mpsmax = number(key, value, UP_TO_15)?,
                "to" => config.to = number(key, value, TO)?,
                "vwc" => config.vwc = switch(key, value)?,
                "backend" => {
                    config.backend = match value {
                        "memory" => BackendKind::Memory,
                        "null" => BackendKind::Null,
                        _ => {
                            return Err(ConfigError::Value {
                                key,
                                value: value.into(),
                                allowed: BACKEND,
                            });
                        }
                    };
                }
                "serial" => config.serial = value.into(),
                "model" => config.model = value.into(),
                "iova_bits" => config.iova_bits = number(key, value, IOVA_BITS)?,
                "mappings" => config.mappings = number(key, value, MAPPINGS)?,
                "stepped" => config.stepped = switch(key, value)?,
                _ => return Err(unknown()),
            }
        }
        if seen.contains(&"namespaces") && seen.contains(&"nsids") {
            return Err(ConfigError::Together(
                "give either 'namespaces' or 'nsids'".into(),
            ));
        }
        let complete = |named: Named| NamespaceConfig {
            nsid: named.nsid,
            size: named.size.unwrap_or(size),
            lba: named.lba.unwrap_or(lba),
        };
        config.namespaces = named.into_iter().map(complete).collect();
        // The largest page follows the smallest where it was left out.
        if !seen.contains(&"mpsmax") {
            config.mpsmax = config.mpsmax.max(config.mpsmin);
        }
        config.check()?;
        Ok(config)
    }
}

impl fmt::Display for Config {
    /// The text that [`FromStr`] reads back to an equal value: what differs from the default, nothing for the default itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Config::default();
        let mut parts = Vec::new();
        let mut part = |differs: bool, key: &str, value: &dyn fmt::Display| {
            if differs {
                parts.push(format!("{key}={value}"));
            }
        };
        let switch = |on| if on { "on" } else { "off" };
        if let Some((size, lba)) = self.alike() {
            let plain = NamespaceConfig::default();
            part(size != plain.size, "size", &size);
            part(lba != plain.lba, "lba", &lba);
        }
        let nsids: Vec<u32> = self.namespaces.iter().map(|one| one.nsid).collect();
        let counted = self.alike().is_some() && nsids.iter().copied().eq(1..=nsids.len() as u32);
        let differs = self.namespaces != default.namespaces;
        part(
            differs && counted && nsids != [1],
            "namespaces",
            &nsids.len(),
        );
        part(differs && !counted, "nsids", &self.nsids_text());
        part(self.nn != default.nn, "nn", &self.nn);
        part(
            self.capacity != default.capacity,
            "capacity",
            &self.capacity,
        );
        let (limits, usual) = (&self.limits, &default.limits);
        part(limits.vsl != usual.vsl, "vsl", &limits.vsl);
        part(limits.wzsl != usual.wzsl, "wzsl", &limits.wzsl);
        part(limits.wusl != usual.wusl, "wusl", &limits.wusl);
        part(limits.dmrl != usual.dmrl, "dmrl", &limits.dmrl);
        part(limits.dmrsl != usual.dmrsl, "dmrsl", &limits.dmrsl);
        part(limits.dmsl != usual.dmsl, "dmsl", &limits.dmsl);
        part(limits.mssrl != usual.mssrl, "mssrl", &limits.mssrl);
        part(limits.mcl != usual.mcl, "mcl", &limits.mcl);
        part(limits.msrc != usual.msrc, "msrc", &limits.msrc);
        part(self.mdts != default.mdts, "mdts", &self.mdts);
        part(self.mqes != default.mqes, "mqes", &self.mqes);
        part(self.queues != default.queues, "queues", &self.queues);
        part(self.dstrd != default.dstrd, "dstrd", &self.dstrd);
        part(self.mpsmin != default.mpsmin, "mpsmin", &self.mpsmin);
        part(self.mpsmax != default.mpsmax, "mpsmax", &self.mpsmax);
        part(self.to != default.to, "to", &self.to);
        part(self.vwc != default.vwc, "vwc", &switch(self.vwc));
        let backend = match self.backend {
            BackendKind::Memory => "memory",
            BackendKind::Null => "null",
        };
        part(self.backend != default.backend, "backend", &backend);
        part(self.serial != default.serial, "serial", &self.serial);
        part(self.model != default.model, "model", &self.model);
        part(
            self.iova_bits != default.iova_bits,
            "iova_bits",
            &self.iova_bits,
        );
        part(
            self.mappings != default.mappings,
            "mappings",
            &self.mappings,
        );
        part(
            self.stepped != default.stepped,
            "stepped",
            &switch(self.stepped),
        );
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests;
