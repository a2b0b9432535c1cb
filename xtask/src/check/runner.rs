//! Runs cargo, shows what it prints, and counts the tests in it.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::report::{Counts, Outcome};
use crate::vm;

/// cargo in the workspace's root directory.
pub(super) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(vm::workspace()).stdin(Stdio::null());
    command
}

/// The command that installs a part of the toolchain, when `cargo <subcommand>` is not there.
pub(super) fn missing_component(subcommand: &str, component: &str) -> Option<String> {
    let found = cargo()
        .args([subcommand, "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if found {
        None
    } else {
        Some(format!(
            "{component} is not installed. Run: rustup component add {component}"
        ))
    }
}

/// A step that passes when the command does.
pub(super) fn check(command: &mut Command) -> Result<Outcome> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    Ok(if status.success() {
        Outcome::passed()
    } else {
        Outcome::failed(status.to_string())
    })
}

/// A step that runs test programs: their output goes to standard output as it comes, and their tests are counted.
pub(super) fn tests(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let mut counter = Counter::default();
    let mut reader = BufReader::new(child.stdout.take().context("no pipe")?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        counter.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    Ok(counter.outcome(status.success(), &status.to_string()))
}

/// Reads what test programs print: `test NAME ... ok` and `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
#[derive(Default)]
struct Counter {
    counts: Counts,
    failed: Vec<String>,
}

impl Counter {
    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let parts = result.split(['.', ';']);
                let count = parts
                    .filter_map(|part| part.trim().strip_suffix(word))
                    .find_map(|n| n.trim().parse().ok());
                count.unwrap_or(0)
            };
            self.counts = self.counts
                + Counts {
                    passed: number("passed"),
                    failed: number("failed"),
                    skipped: number("ignored"),
                };
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix("FAILED"))
        {
            self.failed
                .push(name.trim_end_matches([' ', '.']).to_owned());
        }
    }

    fn outcome(mut self, success: bool, status: &str) -> Outcome {
        if success && self.counts.failed == 0 {
            return Outcome::Passed(self.counts);
        }
        // A test program that does not compile, or dies, prints no result.
        let what = if self.counts.failed == 0 {
            self.counts.failed = 1;
            format!("cargo test ended with {status} before every test program had its result")
        } else {
            self.failed.join(", ")
        };
        Outcome::Failed {
            counts: self.counts,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.10s\n";
    const BAD: &str = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";

    fn count(lines: &[&str], success: bool) -> Outcome {
        let mut counter = Counter::default();
        lines.iter().for_each(|line| counter.line(line));
        counter.outcome(success, "exit status: 101")
    }

    #[test]
    fn results_add_up() {
        let outcome = count(&["running 15 tests\n", RESULT, RESULT], true);
        assert_eq!(
            outcome,
            Outcome::Passed(Counts {
                passed: 24,
                failed: 0,
                skipped: 6
            })
        );
    }

    #[test]
    fn failures_are_named() {
        let outcome = count(&["test rings::wrap ... FAILED\n", RESULT, BAD], false);
        let counts = Counts {
            passed: 14,
            failed: 1,
            skipped: 3,
        };
        assert_eq!(
            outcome,
            Outcome::Failed {
                counts,
                what: "rings::wrap".to_owned()
            }
        );
    }

    #[test]
    fn a_program_without_a_result_is_a_failure() {
        match count(&[RESULT], false) {
            Outcome::Failed { counts, .. } => assert_eq!(counts.failed, 1),
            other => panic!("{other:?}"),
        }
    }
}
