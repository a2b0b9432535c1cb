//! What a machine left behind.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status; 128 plus the signal's number when a signal killed it.
    Exited(u8),
    /// The time limit was reached, and the machine was killed.
    TimedOut,
    /// The machine ended before the command did: QEMU died, the kernel panicked, or the guest powered off. The text says what is known.
    Failed(String),
}

impl End {
    /// The exit status that `cargo xtask vm run` gives: the command's own, 124 at the time limit, 125 when the machine failed.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(status) => *status,
            Self::TimedOut => 124,
            Self::Failed(_) => 125,
        }
    }
}

/// What a machine left behind. The drive's image lives as long as this value.
#[derive(Debug)]
pub struct Output {
    /// How the run ended.
    pub end: End,
    /// The command's standard output.
    pub stdout: Vec<u8>,
    /// The command's standard error.
    pub stderr: Vec<u8>,
    /// The serial console: the kernel's warnings and errors, and what the init script says.
    pub console: String,
    /// From QEMU's start until the command started.
    pub boot_time: Duration,
    pub(super) directory: Rc<TempDir>,
    pub(super) image: PathBuf,
}

impl Output {
    /// The standard controller's drive image, as the run left it.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The command's standard output as text.
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// The command's standard error as text.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// The output of a command that ended with status 0.
    ///
    /// # Panics
    /// When it ended in any other way, with all that the machine said.
    #[track_caller]
    pub fn success(self) -> Self {
        self.exited(0)
    }

    /// The output of a command that ended with `status`.
    ///
    /// # Panics
    /// When it ended in any other way, with all that the machine said.
    #[track_caller]
    pub fn exited(self, status: u8) -> Self {
        assert!(
            self.end == End::Exited(status),
            "expected exit status {status}\n{self}"
        );
        self
    }

    /// The directory with the machine's files, gone with this value.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (self.stdout_text(), self.stderr_text());
        write!(
            f,
            "{:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- console\n{}",
            self.end, self.console
        )
    }
}
