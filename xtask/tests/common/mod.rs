//! What several virtual machine tests share: machines with the guest's program, and scripts whose steps are looked at one by one.
#![allow(dead_code)] // each test program uses its part of it

pub(crate) mod lent;
pub(crate) mod served;
pub(crate) mod server;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;

use serde_json::Value;
use tempfile::TempDir;
use xtask::vm::{End, Machine, Output};

/// The standard controller.
pub(crate) const STANDARD: &str = "0000:00:01.0";

/// A machine with `nvme-vfio` and the guest's program.
pub(crate) fn machine() -> Machine {
    Machine::standard().binary("nvme-vfio-guest", "nvme-vfio-guest")
}

/// Drives of 1 GiB that keep their data, for further controllers; gone with this value.
pub(crate) struct Drives {
    directory: TempDir,
    count: u32,
}

impl Drives {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            count: 0,
        }
    }

    /// Adds a controller with a drive. `properties` begin at its place, for example `addr=5.0,mdts=1`; its serial number is `data-`
    /// and its number, counted from 1.
    pub(crate) fn add(&mut self, machine: Machine, properties: &str) -> Machine {
        self.count += 1;
        let id = format!("data-{}", self.count);
        let path = self.directory.path().join(&id);
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let path = path.to_str().unwrap().replace(',', ",,");
        machine
            .qemu_arguments(["-drive", &format!("if=none,id={id},format=raw,file={path}")])
            .device(&format!("nvme,drive={id},serial={id},{properties}"))
    }
}

/// What a step of a script did.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) status: u8,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Step {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard output of a step that succeeded, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{self}");
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }

    /// The error that a step with `-o json` ended with, after its exit status and the one in the JSON have been compared.
    #[track_caller]
    pub(crate) fn error(&self, status: u8, kind: &str) -> Value {
        assert_eq!(self.status, status, "{self}");
        // A progress line or a warning may stand before it.
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}\n{self}"));
        let error = value["error"].clone();
        assert_eq!(
            (&error["status"], &error["kind"]),
            (&status.into(), &kind.into()),
            "{self}"
        );
        error
    }

    /// Fails unless the step succeeded.
    #[track_caller]
    pub(crate) fn done(&self) -> &Self {
        assert_eq!(self.status, 0, "{self}");
        self
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "status {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.text(),
            self.stderr
        )
    }
}

/// What a shell script begins with: `step NAME COMMAND…` runs a command and hands over its status, standard output and standard error;
/// `as_user NAME 'COMMAND'` does so as the user `user`. `$A` is the standard controller.
const PROLOGUE: &str = r#"
A=0000:00:01.0
step() {
    name=$1; shift
    "$@" >/tmp/step.out 2>/tmp/step.err
    status=$?
    printf '\n#step %s %d %d %d\n' "$name" $status $(stat -c %s /tmp/step.out) $(stat -c %s /tmp/step.err)
    cat /tmp/step.out /tmp/step.err
}
as_user() { step "$1" su user -c "$2"; }
# Waits until a controller is with the kernel's driver again, and says which block device it has.
disk() {
    tries=0
    while [ $tries -lt 3000 ]; do
        for found in /sys/bus/pci/devices/$1/nvme/nvme*/nvme*n1; do
            [ -b "/dev/${found##*/}" ] && echo "/dev/${found##*/}" && return
        done
        usleep 20000
        tries=$((tries + 1))
    done
    return 1
}
"#;

/// The steps of a script by name, with everything else that the machine said.
pub(crate) struct Steps {
    steps: HashMap<String, Step>,
    pub(crate) output: Output,
}

/// Runs a script of steps, which must end with status 0.
#[track_caller]
pub(crate) fn run(machine: &Machine, script: &str) -> Steps {
    Steps::of(start(machine, script).success())
}

/// Like [`run`], for scripts that reset QEMU's controller under load: once in a hundred times or so that makes QEMU 7.2 itself
/// crash, and then the machine is started anew.
#[track_caller]
pub(crate) fn run_resets(machine: &Machine, script: &str) -> Steps {
    for _ in 0..3 {
        let output = start(machine, script);
        match &output.end {
            End::Failed(what) if what.contains("QEMU: signal: 11") => println!("{output}"),
            _ => return Steps::of(output.success()),
        }
    }
    panic!("QEMU crashes every time");
}

fn start(machine: &Machine, script: &str) -> Output {
    let script = format!("{PROLOGUE}{script}");
    machine.run(["sh", "-c", &script]).unwrap()
}

impl Steps {
    fn of(output: Output) -> Self {
        let mut steps = HashMap::new();
        let mut rest = &output.stdout[..];
        const MARK: &[u8] = b"\n#step ";
        while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
            rest = &rest[at + MARK.len()..];
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let head = String::from_utf8(rest[..end].to_vec()).unwrap();
            rest = &rest[end + 1..];
            let words: Vec<&str> = head.split(' ').collect();
            let mut take = |length: &str| {
                let (front, behind) = rest.split_at(length.parse().unwrap());
                rest = behind;
                front.to_vec()
            };
            let step = Step {
                status: words[1].parse().unwrap(),
                stdout: take(words[2]),
                stderr: String::from_utf8_lossy(&take(words[3])).into_owned(),
            };
            let before = steps.insert(words[0].to_owned(), step);
            assert!(before.is_none(), "two steps are called {}", words[0]);
        }
        Self { steps, output }
    }
}

impl std::ops::Index<&str> for Steps {
    type Output = Step;

    #[track_caller]
    fn index(&self, name: &str) -> &Step {
        self.steps
            .get(name)
            .unwrap_or_else(|| panic!("no step {name}\n{}", self.output))
    }
}
