//! A server in a process of its own, from the line that says that it is ready to the summary at its end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest time that a server may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is ready. It is killed when this is dropped.
pub(crate) struct Started {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said then.
    pub(crate) ready: Value,
}

impl Started {
    /// Starts a command that tells with `-o json` when it is ready.
    #[allow(unsafe_code)] // What is done between fork and exec is the caller's to answer for.
    pub(crate) fn new(command: &mut Command) -> Started {
        // Jobs of a script in the background ignore SIGINT, and those of nohup(1) SIGHUP: so would the server, which rightly leaves it at that.
        let heed = || {
            for one in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
                // SAFETY: no handler is installed.
                unsafe { signal(one, SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // SAFETY: signal(2) is async-signal-safe, and nothing else is called.
        unsafe { command.pre_exec(heed) };
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("not ready: {line}")
        });
        Started {
            child,
            stdout,
            ready,
        }
    }

    /// Ends it by signals, one right after the other, which it must do well; its summary.
    pub(crate) fn end(&mut self, signals: &[Signal]) -> Value {
        for signal in signals {
            kill(Pid::from_raw(self.child.id() as i32), *signal).unwrap();
        }
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.code(), Some(0));
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        serde_json::from_str(&rest).unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
