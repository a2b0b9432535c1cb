//! Every key of a configuration: how it is read, what it takes, how it is told.

use std::fmt::{Display, Write as _};
use std::str::FromStr;
use std::time::Duration;

use super::formats::FORMATS;
use super::namespaces::{Named, read_nsids};
use super::{Config, ConfigError, NSID_MAX, NamespaceConfig};
use crate::latency::{DURATION, LATENCY, duration, duration_text};

pub(super) const SIZE: &str = "bytes, or a number with K, M, G or T, from one block to 64T";
pub(super) const LBA: &str = "a power of two from 512 to 65536";
pub(super) const NN: &str = "a number from 0 to 1024, not below the highest identifier";
pub(super) const MDTS: &str = "a number from 0 to 16";
pub(super) const MQES: &str = "a number from 2 to 65536";
pub(super) const QUEUES: &str = "a number from 1 to 4096";
pub(super) const VECTORS: &str = "a number from 1 to 2048, or 0 for one per queue pair";
pub(super) const UP_TO_15: &str = "a number from 0 to 15";
pub(super) const TO: &str = "a number from 1 to 255 (units of 500 ms)";
pub(super) const SERIAL: &str = "1 to 20 printable ASCII characters without ','";
pub(super) const MODEL: &str = "1 to 40 printable ASCII characters without ','";
pub(super) const FIRMWARE: &str = "1 to 8 printable ASCII characters without ','";
pub(super) const IOVA_BITS: &str = "a number from 33 to 64";
pub(super) const MAPPINGS: &str = "a number from 1 to 4294967295";
const NAMESPACES: &str = "a number from 0 to 1024";
const LIMIT: &str = "a number that its field can hold";
const SWITCH: &str = "on or off";
const BACKEND: &str = "memory, null or file:PATH";
const SEED: &str = "a number";

/// What is wrong with a value.
pub(super) enum Wrong {
    /// It is not what the key takes.
    Value,
    /// Something that has its own words.
    Said(ConfigError),
}

/// A configuration in the making: one source of keys, laid over what was there before.
#[derive(Debug)]
pub(super) struct Draft {
    config: Config,
    size: Option<u64>,
    lba: Option<u32>,
    named: Option<Vec<Named>>,
    seen: Vec<&'static str>,
}

/// One key.
pub(super) struct Key {
    pub(super) name: &'static str,
    allowed: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), Wrong>,
    /// The value as text, where it differs from the default.
    pub(super) tell: fn(&Config, &Config) -> Option<String>,
}

fn parse<T: FromStr>(text: &str) -> Result<T, Wrong> {
    text.parse().map_err(|_| Wrong::Value)
}

fn switch(text: &str) -> Result<bool, Wrong> {
    match text {
        "on" | "" => Ok(true),
        "off" => Ok(false),
        _ => Err(Wrong::Value),
    }
}

fn switch_text(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn size(text: &str) -> Result<u64, Wrong> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(Wrong::Value),
    };
    let number: u64 = parse(digits)?;
    number.checked_mul(1 << shift).ok_or(Wrong::Value)
}

fn plain(nsid: u32) -> Named {
    Named {
        nsid,
        size: None,
        lba: None,
    }
}

fn differs<T: PartialEq + Display>(value: &T, usual: &T) -> Option<String> {
    (value != usual).then(|| value.to_string())
}

/// A key whose field is read and told by the field's own type.
macro_rules! field {
    ($name:literal, $allowed:expr, $($field:ident).+) => {
        Key {
            name: $name,
            allowed: $allowed,
            set: |draft, text| {
                draft.config.$($field).+ = parse(text)?;
                Ok(())
            },
            tell: |config, usual| differs(&config.$($field).+, &usual.$($field).+),
        }
    };
}

/// A key whose field is on or off.
macro_rules! on_or_off {
    ($name:literal, $($field:ident).+) => {
        Key {
            name: $name,
            allowed: SWITCH,
            set: |draft, text| {
                draft.config.$($field).+ = switch(text)?;
                Ok(())
            },
            tell: |config, usual| {
                differs(&switch_text(config.$($field).+), &switch_text(usual.$($field).+))
            },
        }
    };
}

/// All keys, in the order in which a configuration is told.
pub(super) static KEYS: &[Key] = &[
    Key {
        name: "size",
        allowed: SIZE,
        set: |draft, text| {
            draft.size = Some(size(text)?);
            Ok(())
        },
        tell: |config, _| {
            let (size, _) = config.alike()?;
            differs(&size, &NamespaceConfig::default().size)
        },
    },
    Key {
        name: "lba",
        allowed: LBA,
        set: |draft, text| {
            draft.lba = Some(parse(text)?);
            Ok(())
        },
        tell: |config, _| {
            let (_, lba) = config.alike()?;
            differs(&lba, &NamespaceConfig::default().lba)
        },
    },
    Key {
        name: "namespaces",
        allowed: NAMESPACES,
        set: |draft, text| {
            let count: u32 = parse(text)?;
            if count > NSID_MAX {
                return Err(Wrong::Value);
            }
            draft.named = Some((1..=count).map(plain).collect());
            Ok(())
        },
        tell: |config, _| {
            let count = config.counted()?;
            (count != 1).then(|| count.to_string())
        },
    },
    Key {
        name: "nsids",
        allowed: "",
        set: |draft, text| {
            let size_of = |text: &str| {
                size(text).map_err(|_| ConfigError::Value {
                    key: "nsids",
                    value: text.into(),
                    allowed: SIZE,
                })
            };
            draft.named = Some(read_nsids(text, size_of).map_err(Wrong::Said)?);
            Ok(())
        },
        tell: |config, _| config.counted().is_none().then(|| config.nsids_text()),
    },
    field!("lba_formats", FORMATS, lba_formats),
    field!("nn", NN, nn),
    Key {
        name: "capacity",
        allowed: SIZE,
        set: |draft, text| {
            draft.config.capacity = size(text)?;
            Ok(())
        },
        tell: |config, usual| differs(&config.capacity, &usual.capacity),
    },
    field!("vsl", LIMIT, limits.vsl),
    field!("wzsl", LIMIT, limits.wzsl),
    field!("wusl", LIMIT, limits.wusl),
    field!("dmrl", LIMIT, limits.dmrl),
    field!("dmrsl", LIMIT, limits.dmrsl),
    field!("dmsl", LIMIT, limits.dmsl),
    field!("mssrl", LIMIT, limits.mssrl),
    field!("mcl", LIMIT, limits.mcl),
    field!("msrc", LIMIT, limits.msrc),
    field!("mdts", MDTS, mdts),
    field!("mqes", MQES, mqes),
    field!("queues", QUEUES, queues),
    field!("vectors", VECTORS, vectors),
    field!("dstrd", UP_TO_15, dstrd),
    field!("mpsmin", UP_TO_15, mpsmin),
    field!("mpsmax", UP_TO_15, mpsmax),
    field!("to", TO, to),
    on_or_off!("dulbe", dulbe),
    on_or_off!("vwc", vwc),
    field!("backend", BACKEND, backend),
    field!("serial", SERIAL, serial),
    field!("model", MODEL, model),
    field!("firmware", FIRMWARE, firmware),
    field!("latency.read", LATENCY, latency.read),
    field!("latency.write", LATENCY, latency.write),
    field!("latency.flush", LATENCY, latency.flush),
    field!("latency.other", LATENCY, latency.other),
    field!("latency.admin", LATENCY, latency.admin),
    field!("latency.seed", SEED, latency.seed),
    Key {
        name: "latency.step",
        allowed: DURATION,
        set: |draft, text| {
            draft.config.latency.step = duration(text)
                .filter(|step| *step > Duration::ZERO)
                .ok_or(Wrong::Value)?;
            Ok(())
        },
        tell: |config, usual| {
            differs(
                &duration_text(config.latency.step),
                &duration_text(usual.latency.step),
            )
        },
    },
    field!("iova_bits", IOVA_BITS, iova_bits),
    field!("mappings", MAPPINGS, mappings),
    on_or_off!("stepped", stepped),
];

/// The names of all keys, for whoever gave none of them.
pub(super) fn names() -> String {
    let mut names = String::new();
    for key in KEYS {
        let comma = if names.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(names, "{comma}{}", key.name);
    }
    names
}

impl Config {
    /// How many namespaces there are, where they are alike and numbered from 1 on without a gap.
    fn counted(&self) -> Option<usize> {
        let mut nsids = self.namespaces.iter().map(|one| one.nsid);
        let counted = self.alike().is_some() && nsids.by_ref().eq(1..=self.namespaces.len() as u32);
        counted.then_some(self.namespaces.len())
    }
}

impl Draft {
    /// Over this configuration.
    pub(super) fn over(config: Config) -> Draft {
        Draft {
            config,
            size: None,
            lba: None,
            named: None,
            seen: Vec::new(),
        }
    }

    /// Reads one key.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let key = KEYS
            .iter()
            .find(|key| key.name == name)
            .ok_or_else(|| ConfigError::UnknownKey { key: name.into() })?;
        self.see(key.name)?;
        (key.set)(self, text).map_err(|wrong| match wrong {
            Wrong::Said(error) => error,
            Wrong::Value => ConfigError::Value {
                key: key.name,
                value: text.into(),
                allowed: key.allowed,
            },
        })
    }

    fn see(&mut self, key: &'static str) -> Result<(), ConfigError> {
        if self.seen.contains(&key) {
            return Err(ConfigError::Twice { key });
        }
        self.seen.push(key);
        Ok(())
    }

    /// Adds one namespace of its own table: with `nsid`, or the next after the one before.
    pub(super) fn add_namespace(
        &mut self,
        keys: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        let named = self.named.get_or_insert_default();
        let next = named.last().map_or(1, |last| last.nsid.saturating_add(1));
        let mut one = plain(next);
        for (name, text) in keys {
            let wrong = |key, allowed| {
                let value = text.clone();
                move |_| ConfigError::Value {
                    key,
                    value,
                    allowed,
                }
            };
            match name.as_str() {
                "nsid" => {
                    one.nsid = parse(&text).map_err(wrong("nsid", "a number from 1 to 1024"))?
                }
                "size" => one.size = Some(size(&text).map_err(wrong("size", SIZE))?),
                "lba" => one.lba = Some(parse(&text).map_err(wrong("lba", LBA))?),
                _ => {
                    return Err(ConfigError::UnknownNamespaceKey { key: name });
                }
            }
        }
        named.push(one);
        if !self.seen.contains(&"namespace") {
            self.seen.push("namespace");
        }
        Ok(())
    }

    /// Puts everything together, and checks it.
    pub(super) fn finish(self) -> Result<Config, ConfigError> {
        let Draft {
            mut config,
            size,
            lba,
            named,
            seen,
        } = self;
        let ways = ["namespaces", "nsids", "namespace"];
        if ways.iter().filter(|way| seen.contains(way)).count() > 1 {
            return Err(ConfigError::Together(
                "give only one of 'namespaces=', 'nsids=' and [[namespace]]".into(),
            ));
        }
        config.namespaces = match named {
            Some(named) => {
                let usual = NamespaceConfig::default();
                let common = config.alike().unwrap_or((usual.size, usual.lba));
                let complete = |named: Named| NamespaceConfig {
                    nsid: named.nsid,
                    size: named.size.or(size).unwrap_or(common.0),
                    lba: named.lba.or(lba).unwrap_or(common.1),
                };
                named.into_iter().map(complete).collect()
            }
            None => {
                let changed = |one: NamespaceConfig| NamespaceConfig {
                    size: size.unwrap_or(one.size),
                    lba: lba.unwrap_or(one.lba),
                    ..one
                };
                config.namespaces.into_iter().map(changed).collect()
            }
        };
        // The largest page follows the smallest where it was left out.
        if !seen.contains(&"mpsmax") {
            config.mpsmax = config.mpsmax.max(config.mpsmin);
        }
        config.check()?;
        Ok(config)
    }
}
