//! `cargo xtask soak`: the counts that `cargo xtask test` runs a hundredth of, whole, the fuzzers for their ten minutes, and checks that are taken away.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use super::report::{Outcome, Report};
use super::runner::{cargo, tests};
use super::{fuzz, mutations, prepare_what_can_be, vm_needs};
use crate::packages;
use crate::vm;

/// Set to 1, it makes tests run their whole counts.
const SOAK: &str = "NVME_VFIO_SOAK";
/// How long each fuzzer runs.
const FUZZ_TIME: Duration = Duration::from_secs(600);

/// A part of `cargo xtask soak`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Soak {
    /// 10,000 connections to a vfio-user server with random messages, descriptors and ends.
    Connections,
    /// 1,000 clients of a served controller that are killed at full depth.
    Clients,
    /// 50 virtual machines on a served controller that are killed in the middle of writes.
    Machines,
    /// 10,000 command bodies for each opcode of each kind of queue, of a client that was lent a part of a controller.
    Confinement,
    /// The same on QEMU's controller in a virtual machine, the drives' images compared.
    ConfinementVm,
    /// 10,000,000 commands whose entries and lists another thread of their client changes while they are read.
    Races,
    /// 16 clients of a lent controller, with 100,000 commands each that have the same identifiers.
    Crowd,
    /// 10,000 clients of a lent controller that are killed at full depth.
    KilledClients,
    /// 20,000 regions of memory that a client takes back while its commands are at the device.
    Unmapped,
    /// What a flood of refused commands costs the neighbour of who sends it, for a quiet machine.
    Flood,
    /// Each check between a client's bytes and a lent controller, taken away: the tests must notice.
    Mutations,
    /// Each fuzzer for ten minutes.
    Fuzz,
}

/// Runs the parts (all when none is named), prints the table and the summary, and says whether nothing failed.
///
/// # Errors
/// When the report cannot be written. A part's failure is in the report.
pub fn run(parts: &[Soak]) -> Result<bool> {
    let mut report = Report::default();
    for part in Soak::value_variants()
        .iter()
        .filter(|part| parts.is_empty() || parts.contains(part))
    {
        let name = part
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        eprintln!("\n=== {name}");
        let started = Instant::now();
        let outcome = part.run().unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Outcome::failed(error.to_string())
        });
        report.add(name, outcome, started.elapsed());
    }
    report.print()
}

impl Soak {
    fn run(self) -> Result<Outcome> {
        let Some((package, test)) = self.test() else {
            return match self {
                Self::Mutations => mutations::run(),
                _ => fuzz(|fuzzer| fuzzer.search(FUZZ_TIME)),
            };
        };
        let mut command = cargo();
        command.args(["test", "--release", "--all-features"]);
        command.args(["--package", package, "--test", test]);
        if let Some(filter) = self.in_machines() {
            if let Err(error) = packages::ensure_installed(&vm_needs()) {
                return Ok(Outcome::NotRun(error.to_string()));
            }
            prepare_what_can_be()?;
            command.args(["--", filter]).env(vm::REQUIRED, "1");
        } else {
            command.args(["--", "--nocapture"]);
        }
        tests(command.env(SOAK, "1"))
    }

    /// What the names of its tests contain, where they need virtual machines.
    fn in_machines(self) -> Option<&'static str> {
        match self {
            Self::Machines => Some("killed"),
            Self::ConfinementVm => Some("outside"),
            _ => None,
        }
    }

    /// The package and the test program that has the count.
    fn test(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Connections => Some(("nvme-vfio-user", "hostile")),
            Self::Clients => Some(("nvme-vfio", "killed_clients")),
            Self::Machines => Some(("xtask", "vm_vfio_user")),
            Self::Confinement => Some(("nvme-vfio-passthrough", "confinement")),
            Self::ConfinementVm => Some(("xtask", "vm_serve")),
            Self::Races => Some(("nvme-vfio-passthrough", "races")),
            Self::Crowd => Some(("nvme-vfio-passthrough", "crowd")),
            Self::KilledClients => Some(("nvme-vfio-passthrough", "killed")),
            Self::Unmapped => Some(("nvme-vfio-passthrough", "unmapped")),
            Self::Flood => Some(("nvme-vfio-passthrough", "flood")),
            Self::Mutations | Self::Fuzz => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A test whose count nobody asks for whole would never be run whole.
    #[test]
    fn every_test_with_a_whole_count_is_run() {
        let root = vm::workspace();
        let mut found = Vec::new();
        for member in fs::read_dir(root).unwrap() {
            let Ok(files) = fs::read_dir(member.unwrap().path().join("tests")) else {
                continue;
            };
            let paths = files.map(|file| file.unwrap().path());
            let rust = paths.filter(|path| path.extension().is_some_and(|e| e == "rs"));
            found.extend(
                rust.filter(|path: &PathBuf| fs::read_to_string(path).unwrap().contains(SOAK)),
            );
        }
        let mut found: Vec<_> = found
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap())
            .collect();
        found.sort_unstable();
        let mut known: Vec<_> = Soak::value_variants()
            .iter()
            .filter_map(|part| Some(part.test()?.1))
            .collect();
        known.sort_unstable();
        assert_eq!(found, known);
    }
}
