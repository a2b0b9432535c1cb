//! The text form of a configuration: `key=value,...`.

use std::fmt;
use std::str::FromStr;

use super::keys::{Draft, KEYS};
use super::{Config, ConfigError};

impl Config {
    /// This configuration with what `text` (`key=value,...`) says otherwise: how a command line is laid over a file. `size` and `lba` are
    /// those of all namespaces then.
    ///
    /// # Errors
    /// A key that does not exist or comes twice, a value that its key does not take, or what [`Config::check`] finds.
    pub fn with(self, text: &str) -> Result<Config, ConfigError> {
        let mut draft = Draft::over(self);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            draft.set(name, value)?;
        }
        draft.finish()
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    /// Reads `key=value,...`; what is not named keeps its default. `vwc` and `stepped` alone mean `on`.
    fn from_str(text: &str) -> Result<Config, ConfigError> {
        Config::default().with(text)
    }
}

impl fmt::Display for Config {
    /// The text that [`FromStr`] reads back to an equal value: what differs from the default, nothing for the default itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Config::default();
        let mut comma = "";
        for key in KEYS {
            if let Some(value) = (key.tell)(self, &usual) {
                write!(f, "{comma}{}={value}", key.name)?;
                comma = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
