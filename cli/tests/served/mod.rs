//! A controller that another process serves, so that it stays what it is from one command to the next.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A served controller, and a folder.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn start(config: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
            .args(["emulate", "-o", "json", config, "--socket"])
            .arg(folder.path().join("nvme.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("ready"), "{line}");
        Server { folder, child }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `command ADDRESS arguments` with `input` at standard input. `{}` in the arguments is the folder.
    pub(crate) fn run_with(&self, command: &str, arguments: &str, input: &[u8]) -> Output {
        let folder = self.folder.path().display().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
            .arg(command)
            .arg(format!("vfio-user:{folder}/nvme.sock"))
            .args(
                arguments
                    .split_whitespace()
                    .map(|word| word.replace("{}", &folder)),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that reads nothing may have ended.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    pub(crate) fn good(&self, command: &str, arguments: &str) -> Vec<u8> {
        let output = self.run_with(command, arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {output:?}");
        output.stdout
    }

    #[track_caller]
    pub(crate) fn json(&self, command: &str, arguments: &str) -> Value {
        serde_json::from_slice(&self.good(command, &format!("{arguments} -o json"))).unwrap()
    }

    /// A command that must fail, with this exit status and kind, and nothing on standard output.
    #[track_caller]
    pub(crate) fn bad(&self, command: &str, arguments: &str, status: i32, kind: &str) -> Value {
        let output = self.run_with(command, &format!("{arguments} -o json"), &[]);
        let error: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|_| panic!("{arguments}: {output:?}"));
        assert_eq!(
            (output.status.code(), error["error"]["kind"].as_str()),
            (Some(status), Some(kind)),
            "{arguments}: {error}"
        );
        assert!(output.stdout.is_empty(), "{arguments}: {output:?}");
        error["error"].clone()
    }
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
