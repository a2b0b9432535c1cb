//! `cargo xtask test`: every check that this machine can run, a table of them, and one line that sums them up.
//!
//! A step is passed, failed, or not run with a reason; a step that is not run does not fail the whole, but is always shown. The
//! last line adds up the tests of all test programs, and counts each step that is no test program as one test.

mod licences;
mod mutations;
mod report;
mod runner;
pub mod soak;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::fuzz::{Fuzzer, Verdict};
use crate::instructions;
use crate::packages;
use crate::vm::{self, Kernel};
use report::{Counts, Outcome, Report};
use runner::{cargo, check, tests};

/// A step of `cargo xtask test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// The sources are formatted by rustfmt.
    Format,
    /// No warning from clippy in any target of any crate.
    Clippy,
    /// Every dependency has a licence that the project accepts.
    Licences,
    /// The documentation builds without a warning.
    Docs,
    /// Unit, property and documentation tests of all crates.
    Unit,
    /// Every order of the queues' memory accesses that loom finds.
    Loom,
    /// What an I/O costs in instructions, held against the committed counts.
    Instructions,
    /// Each fuzzer for a few seconds.
    Fuzz,
    /// Virtual machine tests.
    Vm,
}

/// Runs the steps (all when none is named), prints the table and the summary, and says whether nothing failed.
///
/// # Errors
/// When the report cannot be written. A step's failure is in the report.
pub fn run(steps: &[Step]) -> Result<bool> {
    let mut report = Report::default();
    for step in Step::value_variants()
        .iter()
        .filter(|step| steps.is_empty() || steps.contains(step))
    {
        if *step == Step::Loom && !has_loom_tests() {
            continue;
        }
        let name = step
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        eprintln!("\n=== {name}");
        let started = Instant::now();
        let outcome = step.run().unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Outcome::failed(error.to_string())
        });
        report.add(name, outcome, started.elapsed());
    }
    report.print()
}

/// Runs the virtual machine tests whose name contains `filter`, and says whether none failed.
///
/// # Errors
/// When machines cannot be booted here, or the report cannot be written.
pub fn run_vm_tests(filter: Option<&str>) -> Result<bool> {
    let started = Instant::now();
    packages::ensure_installed(&vm_needs())?;
    prepare_what_can_be()?;
    let outcome = vm_tests(filter)?;
    let mut report = Report::default();
    report.add("vm".to_owned(), outcome, started.elapsed());
    report.print()
}

impl Step {
    fn run(self) -> Result<Outcome> {
        match self {
            Self::Format => {
                if let Some(missing) = runner::missing_component("fmt", "rustfmt") {
                    return Ok(Outcome::NotRun(missing));
                }
                check(cargo().args(["fmt", "--all", "--check"]))
            }
            Self::Clippy => {
                if let Some(missing) = runner::missing_component("clippy", "clippy") {
                    return Ok(Outcome::NotRun(missing));
                }
                let arguments = [
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--all-features",
                    "--",
                    "-D",
                    "warnings",
                ];
                check(cargo().args(arguments))
            }
            Self::Licences => licences::check(),
            Self::Docs => {
                // Libraries only: the command and the driver have the same name, and would be written to the same place.
                let arguments = ["doc", "--workspace", "--lib", "--all-features", "--no-deps"];
                check(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
            }
            Self::Unit => {
                // The test programs of xtask boot machines: their own step runs them.
                let others = [
                    "test",
                    "--workspace",
                    "--exclude",
                    "xtask",
                    "--all-features",
                    "--no-fail-fast",
                ];
                let own = ["test", "--package", "xtask", "--lib", "--bins"];
                Ok(tests(cargo().args(others))?.and(tests(cargo().args(own))?))
            }
            Self::Loom => loom_tests(),
            Self::Instructions => {
                if let Err(error) = packages::ensure_installed(&packages::VALGRIND) {
                    return Ok(Outcome::NotRun(error.to_string()));
                }
                let verdict = instructions::run(false)?;
                let counts = Counts {
                    passed: verdict.passed,
                    failed: verdict.failed,
                    skipped: 0,
                };
                Ok(if verdict.failed == 0 {
                    Outcome::Passed(counts)
                } else {
                    let what =
                        "an I/O costs more instructions than it did, or than it may".to_owned();
                    Outcome::Failed { counts, what }
                })
            }
            Self::Fuzz => fuzz(|fuzzer| fuzzer.check(FUZZ_INPUTS)),
            Self::Vm => {
                // What cannot be installed here is a reason not to run; a kernel that does not build is a failure.
                if let Err(error) = packages::ensure_installed(&vm_needs()) {
                    return Ok(Outcome::NotRun(error.to_string()));
                }
                prepare_what_can_be()?;
                vm_tests(None)
            }
        }
    }
}

/// Inputs of each fuzzer that everybody runs before a change lands: always the same, since only long runs look for something new.
const FUZZ_INPUTS: u32 = 20_000;

fn fuzz(run: impl Fn(Fuzzer) -> Result<Verdict>) -> Result<Outcome> {
    if let Err(error) = packages::ensure_installed(&packages::FUZZ) {
        return Ok(Outcome::NotRun(error.to_string()));
    }
    let mut counts = Counts::default();
    let mut found = Vec::new();
    for &fuzzer in Fuzzer::value_variants() {
        match run(fuzzer)? {
            Verdict::Clean => counts.passed += 1,
            Verdict::Found(what) => {
                counts.failed += 1;
                found.push(what);
            }
        }
    }
    Ok(if found.is_empty() {
        Outcome::Passed(counts)
    } else {
        let what = found.join(", ");
        Outcome::Failed { counts, what }
    })
}

/// Builds the kernels, and fetches a QEMU that is a vfio-user client where that is possible: without it, the tests that need it say so.
fn prepare_what_can_be() -> Result<()> {
    vm::prepare(&Kernel::ALL)?;
    if let Err(error) = vm::prepare_vfio_user() {
        eprintln!("{error:#}");
    }
    Ok(())
}

/// Installs and builds what the virtual machine tests need.
///
/// # Errors
/// When something cannot be installed or built: with the command to type.
pub fn prepare_vm_tests() -> Result<()> {
    packages::ensure_installed(&vm_needs())?;
    vm::prepare(&Kernel::ALL)?;
    vm::prepare_vfio_user()
}

fn vm_needs() -> Vec<packages::Need> {
    let mut needs = vm::needs(&Kernel::ALL);
    needs.extend(packages::PEERS);
    needs
}

fn vm_tests(filter: Option<&str>) -> Result<Outcome> {
    let mut command = cargo();
    command
        .args([
            "test",
            "--package",
            "xtask",
            "--test",
            "vm_*",
            "--no-fail-fast",
            "--",
        ])
        .args(filter);
    tests(command.env(vm::REQUIRED, "1"))
}

fn has_loom_tests() -> bool {
    fs::read_dir(vm::workspace().join("queues/tests")).is_ok_and(|mut entries| {
        entries
            .any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("loom")))
    })
}

/// Loom's tests are compiled with another atomic type, so they have a target directory of their own, or everything else would be
/// built again after them.
fn loom_tests() -> Result<Outcome> {
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| vm::workspace().join("target"), PathBuf::from);
    let arguments = [
        "test",
        "--release",
        "--package",
        "nvme-vfio-queues",
        "--test",
        "loom*",
        "--no-fail-fast",
    ];
    let mut command = cargo();
    command
        .args(arguments)
        .env("RUSTFLAGS", format!("{flags} --cfg loom"))
        .env("CARGO_TARGET_DIR", target.join("loom"));
    tests(&mut command)
}
