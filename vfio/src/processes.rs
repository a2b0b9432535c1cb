//! Which processes have a file open, as `/proc` tells.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::Sysfs;
use crate::sysfs::{names_in, read_text};

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its identifier.
    pub pid: u32,
    /// Its command, as `ps` shows it without arguments; empty when it cannot be read.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if self.pid == std::process::id() {
            f.write_str(" (this one)")?;
        } else if !self.command.is_empty() {
            write!(f, " ({})", self.command)?;
        }
        Ok(())
    }
}

/// Processes as a phrase: `process 7 (qemu), process 9 (fio)`.
pub(crate) fn phrase(processes: &[Process]) -> String {
    let phrases: Vec<String> = processes.iter().map(ToString::to_string).collect();
    phrases.join(", ")
}

impl Sysfs {
    /// The processes that have one of `paths` open. Those whose descriptors this user may not see are left out.
    #[must_use]
    pub fn processes_with_open(&self, paths: &[impl AsRef<Path>]) -> Vec<Process> {
        let names = names_in(&self.path("proc")).unwrap_or_default();
        let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        pids.retain(|&pid| self.has_open(pid, paths));
        pids.into_iter()
            .map(|pid| Process {
                pid,
                command: read_text(&self.path(format!("proc/{pid}/comm"))).unwrap_or_default(),
            })
            .collect()
    }

    fn has_open(&self, pid: u32, paths: &[impl AsRef<Path>]) -> bool {
        let Ok(descriptors) = fs::read_dir(self.path(format!("proc/{pid}/fd"))) else {
            return false;
        };
        descriptors
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| paths.iter().any(|path| path.as_ref() == target))
    }
}
