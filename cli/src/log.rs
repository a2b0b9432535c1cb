//! What the libraries have to say, on standard error.

use tracing_subscriber::filter::LevelFilter;

use crate::error::Error;

/// The environment variable that says how much is told.
const VARIABLE: &str = "NVME_VFIO_LOG";

/// Tells what is as grave as `default`, or as `NVME_VFIO_LOG` says.
///
/// # Errors
/// A value of `NVME_VFIO_LOG` that is no level.
pub(crate) fn start(default: LevelFilter) -> Result<(), Error> {
    let level = match std::env::var_os(VARIABLE) {
        None => default,
        Some(text) => level(&text.to_string_lossy())?,
    };
    // A second call, which only tests make, leaves the first in place.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .try_init();
    Ok(())
}

fn level(text: &str) -> Result<LevelFilter, Error> {
    // Numbers would be accepted as well, and mean nothing to anybody.
    let words = ["off", "error", "warn", "info", "debug", "trace"];
    words
        .contains(&text)
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| {
            Error::usage(
                format!("{VARIABLE}={text} is no level"),
                format!("Use one of: {}", words.join(", ")),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words() {
        assert_eq!(level("debug").unwrap(), LevelFilter::DEBUG);
        assert_eq!(level("off").unwrap(), LevelFilter::OFF);
        for text in ["", "3", "WARN", "loud"] {
            assert!(level(text).is_err(), "{text:?}");
        }
    }
}
