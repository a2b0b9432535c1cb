//! The words of `emulate`.

use std::path::PathBuf;

use clap::Args;

use super::OutputArgs;

const AFTER_HELP: &str = "\
The controller is described by [CONFIG] in the words of the address emulated:CONFIG, for example
  nvme-vfio emulate --socket /run/nvme.sock --size 8G lba=4096,queues=4
Options of their own (--size, --backend) go before it.

Clients:
  nvme-vfio id-ctrl vfio-user:/run/nvme.sock
  qemu-system-x86_64 ... -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/nvme.sock\"}}'

The server ends at SIGINT, SIGTERM or SIGHUP, and removes the socket; a signal that comes more than a second later ends it at once.";

/// `emulate`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct EmulateArgs {
    /// The controller: KEY=VALUE,… as in the address emulated:…
    #[arg(value_name = "CONFIG")]
    pub config: Option<String>,
    /// The Unix socket to serve it on
    #[arg(short = 's', long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Size of each namespace: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// Where the data is: memory, null (nowhere: reads leave the buffer as it is) or file:PATH
    #[arg(long, value_name = "KIND")]
    pub backend: Option<String>,
    /// A TOML file that describes the controller; the options and CONFIG go over it
    #[arg(long = "config", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A TOML file of faults to inject; steps and commands in it are counted from the start
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// Write all that the controller does to a file, one line of JSON each; commands take longer then
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Poll all the time, instead of sleeping up to 1 ms when nothing happens
    #[arg(long)]
    pub poll: bool,
    /// Keep the controller's thread on this processor
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    /// Permissions of the socket in octal: who may connect
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    pub mode: u32,
    /// Accept only memory that its owner can no longer shrink (sealed memfds)
    #[arg(long)]
    pub sealed: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "permissions are octal, 0 to 777".to_owned())
}
