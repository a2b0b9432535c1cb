//! Faults from a TOML file.

mod entry;

use std::str::FromStr;

use thiserror::Error;

use crate::fault::{Fault, When};
use crate::lines::{self, Value};

/// Most faults of one script.
const FAULTS_MAX: usize = 1024;
/// Longest script, in bytes.
const BYTES_MAX: usize = 1 << 20;

/// Faults as a TOML file lists them: one `[[fault]]` table each.
///
/// A table says what is done (`do`), to which commands, and when:
///
/// ```
/// use nvme_vfio_emulator::{Emulator, FaultScript};
///
/// let script = FaultScript::parse(r#"
///     ## The third read of blocks 100 to 199 hangs, and an Abort of it is refused.
///     [[fault]]
///     do = "hang"
///     opcode = "read"
///     lba = [100, 199]
///     nth = 3
///     times = 1
///
///     ## After a thousand commands the controller is fatally ill.
///     [[fault]]
///     do = "fatal"
///     after_commands = 1000
/// "#)?;
/// let emulator = Emulator::new("size=64M".parse()?)?;
/// emulator.play(&script);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// | key | means |
/// |---|---|
/// | `do` | what is done, see below |
/// | `queue` | only commands of `"admin"`, of `"io"`, or of the submission queue with that identifier |
/// | `opcode` | only commands with that opcode: a number, or a name such as `"read"` or `"identify"`, which chooses the kind of queue too |
/// | `nsid` | only commands of that namespace |
/// | `lba` | only I/O commands that touch that block, or one of `[first, last]` |
/// | `dword10` | only commands with that dword 10 |
/// | `nth` | the first that is befallen is the n-th that fits; 1 unless given |
/// | `times` | how many are befallen; all unless given |
/// | `at_step`, `after_commands` | when it is armed, counted from when the script is played; at once unless given |
///
/// | `do` | and its keys |
/// |---|---|
/// | `hang` | `on_abort`: `"not-aborted"` (unless given), `"aborted"`, `"data-later"` |
/// | `delay` | `steps` |
/// | `lose-completion`, `duplicate-completion`, `stale-phase`, `no-effect` | |
/// | `late-completion` | `steps` |
/// | `reorder` | `behind`: how many other completions go first |
/// | `wrong-cid`, `wrong-sqid`, `wrong-sq-head`, `wrong-result` | `value` |
/// | `flip-status` | `bits` of the 15-bit status field |
/// | `status` | `sct`, `sc`, `dnr` |
/// | `junk-data` | `data`: `"ones"`, `"zeroes"`, `"random"` with `seed`, or a list of bytes that is repeated |
/// | `media-error` | `fails`: `"read"` (unless given), `"write"`, `"verify"`; `until`: `"rewritten"` (unless given), `"cleared"`; of the keys above only `nsid` and `lba` |
/// | `gone`, `all-ones`, `never-ready`, `never-disabled`, `shutdown-never-completes`, `lost-interrupts` | `until`: `"function-reset"` (unless given), `"cleared"` |
/// | `queue-grant` | `pairs`, `until` |
/// | `cap` | `value`, `until` |
/// | `fatal` | |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultScript {
    faults: Vec<(When, Fault)>,
}

/// What is wrong with a script.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {message}")]
pub struct ScriptError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl FaultScript {
    /// Reads a script.
    ///
    /// # Errors
    /// The first thing in it that is wrong: what is not TOML, an unknown key or name, a value out of range, a key that does not go with
    /// what is done; more than 1024 faults or 1 MiB.
    pub fn parse(text: &str) -> Result<FaultScript, ScriptError> {
        if text.len() > BYTES_MAX {
            return Err(ScriptError {
                line: 1,
                message: format!("a script has at most {BYTES_MAX} bytes"),
            });
        }
        let table = lines::read(text).map_err(|error| ScriptError {
            line: error.line,
            message: error.message,
        })?;
        let mut faults = Vec::new();
        for item in &table.entries {
            let wrong = |line, message: &str| ScriptError {
                line,
                message: message.into(),
            };
            if item.name != "fault" {
                let message = format!(
                    "unknown key '{}'; a script has only [[fault]] tables",
                    item.name
                );
                return Err(wrong(item.line, &message));
            }
            let Value::List(list) = &item.value else {
                return Err(wrong(item.line, "a fault is written [[fault]]"));
            };
            for (line, value) in list {
                let Value::Table(table) = value else {
                    return Err(wrong(*line, "a fault is written [[fault]]"));
                };
                if faults.len() == FAULTS_MAX {
                    let message = format!("a script has at most {FAULTS_MAX} faults");
                    return Err(wrong(table.line, &message));
                }
                faults.push(entry::read(table)?);
            }
        }
        Ok(FaultScript { faults })
    }

    /// The faults, with the steps and commands after which they are armed, counted from when the script is played.
    #[must_use]
    pub fn faults(&self) -> &[(When, Fault)] {
        &self.faults
    }
}

impl FromStr for FaultScript {
    type Err = ScriptError;

    fn from_str(text: &str) -> Result<FaultScript, ScriptError> {
        FaultScript::parse(text)
    }
}

#[cfg(test)]
mod tests;
