//! A configuration from a TOML file.

use super::keys::Draft;
use super::{Config, ConfigError};
use crate::lines::{self, Item, Table, Value};

/// What a key of a file may be.
const SHAPE: &str = "a string, a whole number, true or false";

fn at(line: usize, error: ConfigError) -> ConfigError {
    ConfigError::Line {
        line,
        source: Box::new(error),
    }
}

fn odd(line: usize, key: &str, allowed: &'static str) -> ConfigError {
    ConfigError::Toml {
        line,
        message: format!("'{key}' takes {allowed}"),
    }
}

/// Where each key was, so that what is found at the end can say so too.
struct Reader {
    draft: Draft,
    places: Vec<(String, usize)>,
}

impl Reader {
    fn set(&mut self, line: usize, key: &str, text: &str) -> Result<(), ConfigError> {
        self.places.push((key.into(), line));
        self.draft.set(key, text).map_err(|error| at(line, error))
    }

    fn item(&mut self, item: &Item) -> Result<(), ConfigError> {
        let (line, name) = (item.line, item.name.as_str());
        match (name, &item.value) {
            (_, Value::Scalar(text)) => self.set(line, name, text),
            ("nsids" | "lba_formats", Value::List(list)) => {
                let texts: Option<Vec<&str>> =
                    list.iter().map(|(_, value)| value.scalar()).collect();
                let texts = texts.ok_or_else(|| odd(line, name, "numbers or strings"))?;
                self.set(line, name, &texts.join(":"))
            }
            ("latency", Value::Table(table)) => {
                table.entries.iter().try_for_each(|item| self.latency(item))
            }
            ("namespace", Value::List(list)) => list.iter().try_for_each(|(line, value)| {
                let Value::Table(table) = value else {
                    return Err(odd(*line, name, "tables"));
                };
                self.namespace(table)
            }),
            _ => Err(odd(line, name, SHAPE)),
        }
    }

    /// A latency as text, or as `{ min, max }` or `{ mean }`.
    fn latency(&mut self, item: &Item) -> Result<(), ConfigError> {
        const PARTS: &str = "a string, { min = ..., max = ... } or { mean = ... }";
        let key = format!("latency.{}", item.name);
        let text = match &item.value {
            Value::Scalar(text) => text.clone(),
            Value::Table(table) => {
                let parts: Vec<(&str, Option<&str>)> = table
                    .entries
                    .iter()
                    .map(|part| (part.name.as_str(), part.value.scalar()))
                    .collect();
                match parts.as_slice() {
                    [("min", Some(min)), ("max", Some(max))]
                    | [("max", Some(max)), ("min", Some(min))] => format!("{min}..{max}"),
                    [("mean", Some(mean))] => format!("exp:{mean}"),
                    _ => return Err(odd(item.line, &key, PARTS)),
                }
            }
            _ => return Err(odd(item.line, &key, PARTS)),
        };
        self.set(item.line, &key, &text)
    }

    fn namespace(&mut self, table: &Table) -> Result<(), ConfigError> {
        let mut keys = Vec::new();
        for item in &table.entries {
            let text = item.value.scalar();
            let text = text.ok_or_else(|| odd(item.line, &item.name, SHAPE))?;
            keys.push((item.name.clone(), text.to_string()));
        }
        let first = |key: &str| {
            let found = table.entries.iter().find(|item| item.name == key);
            found.map_or(table.line, |item| item.line)
        };
        let added = self.draft.add_namespace(keys.into_iter());
        for key in ["nsid", "size", "lba"] {
            self.places.push((key.into(), first(key)));
        }
        added.map_err(|error| {
            let line = key_of(&error).map_or(table.line, first);
            at(line, error)
        })
    }

    /// The line of the key that an error at the end is about.
    fn finish(self) -> Result<Config, ConfigError> {
        let Reader { draft, places } = self;
        draft.finish().map_err(|error| {
            let text = error.to_string();
            let named = |(key, _): &&(String, usize)| match key_of(&error) {
                Some(wanted) => *key == wanted,
                None => text.contains(&format!("{key}=")),
            };
            match places.iter().rev().find(named) {
                Some((_, line)) => at(*line, error),
                None => error,
            }
        })
    }
}

/// The key that an error is about, if it is about one.
fn key_of(error: &ConfigError) -> Option<&str> {
    match error {
        ConfigError::Value { key, .. } => Some(key),
        ConfigError::UnknownNamespaceKey { key } => Some(key),
        _ => None,
    }
}

impl Config {
    /// Reads a configuration from TOML. The keys are those of the text form; latencies are a table `[latency]`, and namespaces that are
    /// not alike are tables `[[namespace]]` with `nsid`, `size` and `lba`. What is not named keeps its default.
    ///
    /// ```
    /// use nvme_vfio_emulator::Config;
    ///
    /// let config = Config::from_toml(r#"
    ///     mdts = 7
    ///     model = "a slow one"
    ///
    ///     [latency]
    ///     read = "80us"
    ///     write = { min = "20us", max = "2ms" }
    ///     flush = { mean = "1ms" }
    ///
    ///     [[namespace]]
    ///     size = "4G"
    ///     lba = 4096
    /// "#)?;
    /// assert_eq!((config.mdts, config.namespaces[0].lba), (7, 4096));
    /// // What a command line says goes over it.
    /// assert_eq!(config.with("mdts=5")?.mdts, 5);
    /// # Ok::<(), nvme_vfio_emulator::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// As for the text form, with the line: [`ConfigError::Line`] or [`ConfigError::Toml`].
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        let table = lines::read(text).map_err(|error| ConfigError::Toml {
            line: error.line,
            message: error.message,
        })?;
        let mut reader = Reader {
            draft: Draft::over(Config::default()),
            places: Vec::new(),
        };
        table
            .entries
            .iter()
            .try_for_each(|item| reader.item(item))?;
        reader.finish()
    }
}

#[cfg(test)]
mod tests;
