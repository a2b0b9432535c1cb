//! What the steps came to: the table and the last line.

use std::io::Write;
use std::ops::Add;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};

/// How many tests passed, failed, and were not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed(Counts),
    Failed { counts: Counts, what: String },
    NotRun(String),
}

impl Outcome {
    /// A step that is no test program, and passed.
    pub(super) fn passed() -> Self {
        Self::Passed(Counts {
            passed: 1,
            ..Counts::default()
        })
    }

    /// A step that failed as a whole.
    pub(super) fn failed(what: impl Into<String>) -> Self {
        Self::Failed {
            counts: Counts {
                failed: 1,
                ..Counts::default()
            },
            what: what.into(),
        }
    }

    /// Two halves of one step.
    pub(super) fn and(self, other: Self) -> Self {
        let counts = self.counts() + other.counts();
        match (self, other) {
            (Self::Failed { what, .. }, _) | (_, Self::Failed { what, .. }) => {
                Self::Failed { counts, what }
            }
            (Self::NotRun(reason), _) | (_, Self::NotRun(reason)) => Self::NotRun(reason),
            (Self::Passed(_), Self::Passed(_)) => Self::Passed(counts),
        }
    }

    fn counts(&self) -> Counts {
        match self {
            Self::Passed(counts) | Self::Failed { counts, .. } => *counts,
            Self::NotRun(_) => Counts {
                skipped: 1,
                ..Counts::default()
            },
        }
    }
}

/// All steps so far.
#[derive(Default)]
pub(super) struct Report {
    steps: Vec<(String, Outcome, Duration)>,
}

impl Report {
    pub(super) fn add(&mut self, name: String, outcome: Outcome, time: Duration) {
        self.steps.push((name, outcome, time));
    }

    /// Prints the table and, last and alone on its line, the sum. Says whether nothing failed.
    pub(super) fn print(&self) -> Result<bool> {
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_BORDERS_ONLY_CONDENSED)
            .set_header(["step", "result", "time", "tests", "remarks"]);
        for (name, outcome, time) in &self.steps {
            let counts = outcome.counts();
            let (result, remark) = match outcome {
                Outcome::Passed(_) if counts.skipped > 0 => {
                    ("passed", format!("{} not run, see above", counts.skipped))
                }
                Outcome::Passed(_) => ("passed", String::new()),
                Outcome::Failed { what, .. } => ("FAILED", what.clone()),
                Outcome::NotRun(reason) => ("not run", reason.clone()),
            };
            let time = format!("{:.1} s", time.as_secs_f64());
            table.add_row([
                name.as_str(),
                result,
                &time,
                &counts.passed.to_string(),
                &remark,
            ]);
        }
        let total = self.total();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{table}\n{}", summary(total))?;
        out.flush()?;
        Ok(total.failed == 0)
    }

    fn total(&self) -> Counts {
        self.steps
            .iter()
            .fold(Counts::default(), |sum, (_, outcome, _)| {
                sum + outcome.counts()
            })
    }
}

fn summary(total: Counts) -> String {
    format!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_every_step() {
        let mut report = Report::default();
        report.add(
            "a".to_owned(),
            Outcome::Passed(Counts {
                passed: 10,
                failed: 0,
                skipped: 2,
            }),
            Duration::ZERO,
        );
        report.add(
            "b".to_owned(),
            Outcome::NotRun("no reason".to_owned()),
            Duration::ZERO,
        );
        report.add("c".to_owned(), Outcome::passed(), Duration::ZERO);
        assert_eq!(summary(report.total()), "11 passed, 0 failed, 3 skipped");
        report.add("d".to_owned(), Outcome::failed("broken"), Duration::ZERO);
        assert_eq!(summary(report.total()), "11 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn a_failed_half_fails_the_whole() {
        let good = Outcome::Passed(Counts {
            passed: 5,
            failed: 0,
            skipped: 0,
        });
        let bad = Outcome::Failed {
            counts: Counts {
                passed: 1,
                failed: 2,
                skipped: 0,
            },
            what: "x".to_owned(),
        };
        let whole = good.and(bad);
        assert_eq!(
            whole.counts(),
            Counts {
                passed: 6,
                failed: 2,
                skipped: 0
            }
        );
        assert!(matches!(whole, Outcome::Failed { .. }));
    }
}
