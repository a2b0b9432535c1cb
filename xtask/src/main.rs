//! `cargo xtask`: see the library's documentation.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xtask::check::soak::{self, Soak};
use xtask::check::{self, Step};
use xtask::fuzz::{Fuzzer, Verdict};
use xtask::instructions;
use xtask::vm::{End, Kernel, Machine};
use xtask::vm_bench;

/// What a maintainer runs: all tests, and virtual machines with a real IOMMU.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs every check and test that this machine can run, and says what it could not run and why.
    ///
    /// On Debian as root it installs what is missing; elsewhere it prints the command.
    Test {
        /// Only these steps.
        #[arg(value_enum, value_name = "STEP")]
        steps: Vec<Step>,
    },
    /// Counts the instructions of an I/O's way through the driver, and fails where they have grown.
    BenchInstructions {
        /// Writes the counts down as the ones to compare with from now on.
        #[arg(long)]
        update: bool,
    },
    /// Runs whole counts of what `test` runs a hundredth of, each fuzzer for ten minutes, and the tests without each of the checks that they test: about two and a half hours on two processors.
    Soak {
        /// Only these parts.
        #[arg(value_enum, value_name = "PART")]
        parts: Vec<Soak>,
    },
    /// Runs a fuzzer: mutated inputs, those kept that reach new code, until the time is over or something is found.
    Fuzz {
        /// Which.
        #[arg(value_enum, value_name = "NAME")]
        fuzzer: Fuzzer,
        /// For how long, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        time: u64,
        /// Runs only this input, once, and says where it fails.
        #[arg(long = "input", value_name = "FILE", conflicts_with_all = ["time", "update_seeds"])]
        inputs: Vec<PathBuf>,
        /// Writes down what was found that reaches more code, as seeds for everybody.
        #[arg(long)]
        update_seeds: bool,
    },
    /// Virtual machines with a real IOMMU and QEMU's NVMe controller.
    #[command(subcommand)]
    Vm(VmTask),
}

#[derive(Subcommand)]
enum VmTask {
    /// Boots the standard machine and runs a command in it as root.
    ///
    /// The command's standard output and standard error come out apart and byte for byte; its standard input is empty. The exit
    /// status is the command's own, 124 at the time limit, and 125 when the machine itself failed.
    Run {
        #[command(flatten)]
        machine: MachineArguments,
        /// The time limit in seconds, from the machine's start to its end.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
        timeout: u64,
        /// The command and its arguments, not read by a shell (for that: sh -c '…').
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Boots the standard machine with a shell on this terminal. `exit` ends it; so does Ctrl-A x.
    Shell {
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Runs the virtual machine tests.
    Test {
        /// Only those whose name contains this.
        filter: Option<String>,
    },
    /// Compares nvme-vfio with the kernel's driver and fio, interleaved in one machine on a drive that moves no data.
    Bench {
        /// How often each is run.
        #[arg(long, value_name = "N", default_value_t = 5)]
        rounds: u32,
    },
    /// Installs and builds what machines need: QEMU, busybox, the kernels, and in the cache a QEMU that is a vfio-user client.
    Prepare,
}

#[derive(Args)]
struct MachineArguments {
    /// Adds a device, in the text of QEMU's -device. An nvme without drive= gets a drive of its own (1 GiB, null).
    #[arg(long = "qemu-device", value_name = "SPEC")]
    devices: Vec<String>,
    /// Adds the device that a vfio-user server has on this socket, with a QEMU that can; the machine has no IOMMU then.
    #[arg(long = "vfio-user", value_name = "SOCKET")]
    served: Vec<PathBuf>,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value_t)]
    kernel: Kernel,
    /// The guest's memory, in QEMU's notation.
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: String,
    /// The number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Copies a file into the guest: an executable one to /usr/local/bin with its shared libraries, any other to /root.
    #[arg(long = "copy", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// More words on the guest kernel's command line.
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
}

impl MachineArguments {
    fn machine(self) -> Machine {
        let mut machine = Machine::standard()
            .kernel(self.kernel)
            .memory(&self.memory)
            .cpus(self.cpus);
        for device in &self.devices {
            machine = machine.device(device);
        }
        for socket in self.served {
            machine = machine.vfio_user(socket);
        }
        for file in self.files {
            machine = machine.copy(file);
        }
        if let Some(words) = &self.append {
            machine = machine.kernel_arguments(words);
        }
        machine
    }
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    // 125 is what callers of `vm run` know as "not the command's doing".
    let failure = if matches!(task, Task::Vm(VmTask::Run { .. })) {
        125
    } else {
        1
    };
    run(task).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(failure)
    })
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Test { steps } => Ok(passed(check::run(&steps)?)),
        Task::BenchInstructions { update } => Ok(passed(instructions::run(update)?.failed == 0)),
        Task::Soak { parts } => Ok(passed(soak::run(&parts)?)),
        Task::Fuzz {
            fuzzer,
            time,
            inputs,
            update_seeds,
        } => {
            let verdict = if inputs.is_empty() {
                fuzzer.search(Duration::from_secs(time))?
            } else {
                fuzzer.replay(&inputs)?
            };
            if let Verdict::Found(what) = &verdict {
                eprintln!("xtask: the fuzzer found something: {what}");
            } else if update_seeds {
                eprintln!("{} seeds", fuzzer.update_seeds()?);
            }
            Ok(passed(verdict == Verdict::Clean))
        }
        Task::Vm(VmTask::Run {
            machine,
            timeout,
            command,
        }) => {
            let output = machine
                .machine()
                .timeout(Duration::from_secs(timeout))
                .run_inherited(command)?;
            match &output.end {
                End::Exited(_) => {}
                End::TimedOut => eprintln!("xtask: the time limit of {timeout} s was reached"),
                End::Failed(what) => eprintln!("xtask: the machine failed: {what}"),
            }
            Ok(ExitCode::from(output.end.code()))
        }
        Task::Vm(VmTask::Shell { machine }) => {
            let status = machine.machine().shell()?;
            Ok(passed(status.success()))
        }
        Task::Vm(VmTask::Test { filter }) => Ok(passed(check::run_vm_tests(filter.as_deref())?)),
        Task::Vm(VmTask::Bench { rounds }) => Ok(passed(vm_bench::run(rounds)?)),
        Task::Vm(VmTask::Prepare) => {
            check::prepare_vm_tests()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn passed(passed: bool) -> ExitCode {
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
