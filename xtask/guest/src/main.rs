//! The part of the virtual machine tests that runs inside the machine. Each subcommand drives controllers through the driver and
//! ends with status 0 only where everything was as it must be; the test on the host looks at the rest (the kernel's log,
//! QEMU's monitor) and at what is printed here.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nvme_vfio_pci::PciAddress;

mod attack;
mod data;
mod disturb;
mod groups;
mod hung;
mod kill;
mod pattern;
mod stray;
mod unplug;

#[derive(Parser)]
#[command(max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes a pattern in pieces of many sizes
    Write {
        /// A controller's address, or a block device
        target: PathBuf,
        /// Chooses the content
        #[arg(long)]
        seed: u64,
    },
    /// Reads what `write` wrote and compares it, and the blocks between the pieces
    Check {
        /// A controller's address, or a block device
        target: PathBuf,
        /// As it was written
        #[arg(long)]
        seed: u64,
    },
    /// Writes at depth 128 until it is killed
    Hammer {
        /// The controller
        address: PciAddress,
    },
    /// Starts `hammer`, kills it in the middle, and opens the controller at once; again and again
    Kill {
        /// The controller
        address: PciAddress,
        /// How often it was killed before
        #[arg(long, default_value_t = 0)]
        from: u32,
        /// How often it is to be killed in all
        #[arg(long)]
        to: u32,
    },
    /// Drives two controllers in two groups
    TwoGroups {
        /// One of them
        first: PciAddress,
        /// The other
        second: PciAddress,
    },
    /// Drives two functions of one group
    OneGroup {
        /// One of them
        first: PciAddress,
        /// The other
        second: PciAddress,
    },
    /// Sends commands whose PRPs name no memory of this process
    Stray {
        /// The controller that gets them
        address: PciAddress,
        /// One that must not notice
        other: PciAddress,
    },
    /// Reads until a read does not end, and waits for its late end
    Hung {
        /// The controller
        address: PciAddress,
    },
    /// Reads on two queues while the controller is disturbed, until everything works again
    Disturb {
        /// The controller
        address: PciAddress,
        /// What is done to it
        #[arg(long, value_enum)]
        how: disturb::How,
        /// How often
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
    /// Sends commands of every opcode with any body as one client of a lent controller, and watches as another what comes of it
    Attack {
        /// The socket of the client that attacks: 1,100 blocks as namespace 1, in pieces of 1,000 and 100, and 500 as namespace 2
        attacker: PathBuf,
        /// The socket of the other: 600 blocks as namespace 1, and 100 as namespace 2
        bystander: PathBuf,
        /// Texts that the attacker must not learn, beside the other's names
        #[arg(long = "secret")]
        secrets: Vec<String>,
        /// Chooses the bodies
        #[arg(long)]
        seed: u64,
        /// Bodies per opcode and queue
        #[arg(long)]
        times: u64,
    },
    /// Reads from a controller that is pulled out of its slot
    Unplug {
        /// The controller
        address: PciAddress,
        /// The port that it is behind
        port: PciAddress,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Write { target, seed } => data::write(&target, seed),
        Task::Check { target, seed } => data::check(&target, seed),
        Task::Hammer { address } => kill::hammer(address),
        Task::Kill { address, from, to } => kill::kill(address, from..to),
        Task::TwoGroups { first, second } => groups::two(first, second),
        Task::OneGroup { first, second } => groups::one(first, second),
        Task::Stray { address, other } => stray::stray(address, other),
        Task::Hung { address } => hung::hung(address),
        Task::Disturb {
            address,
            how,
            times,
        } => disturb::disturb(address, how, times),
        Task::Attack {
            attacker,
            bystander,
            secrets,
            seed,
            times,
        } => attack::attack(&attacker, &bystander, secrets, seed, times),
        Task::Unplug { address, port } => unplug::unplug(address, port),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
