//! The words of `serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::OutputArgs;

const AFTER_HELP: &str = "\
One process serves the controllers of one VFIO group, as one policy file says, for example
  controller = [\"0000:01:00.0\"]
  directory = \"/run/nvme-vfio/13\"
  audit = { path = \"audit.jsonl\" }

  [[client]]
  name = \"vm-a\"
  uid = [1000]

  [[client.namespace]]
  nsid = 1
  source = [{ nsid = 1, start = 0, blocks = 1000000 }]
  allow = [\"read\", \"write\", \"flush\"]

Clients:
  nvme-vfio id-ctrl vfio-user:/run/nvme-vfio/13/vm-a.sock
  qemu-system-x86_64 ... -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/nvme-vfio/13/vm-a.sock\"}}'

The server ends at SIGINT, SIGTERM or SIGHUP: clients are sent away, and their commands are ended; a \
signal that comes more than a second later ends it at once. Where root started it, it has become another user by then, who may \
not remove the sockets: they stay, with nobody behind them, until the next start.";

/// `serve`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    /// The policy: which controllers, which clients, and what each of them may do
    #[arg(short = 'p', long, value_name = "FILE")]
    pub policy: PathBuf,
    /// Serve nobody: say what the policy means, and whether it fits the controllers
    #[arg(long)]
    pub check: bool,
    /// Poll all the time while a client is connected, instead of sleeping up to 4 ms when nothing happens
    #[arg(long)]
    pub poll: bool,
    /// Keep the thread that polls on this processor
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    /// How long a command may take on a controller, in seconds, before it is aborted, its queue deleted, or the controller reset
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = parse_seconds)]
    pub io_timeout: Duration,
    /// Who the server becomes, where root starts it, once everything is open: a name or number of a user without rights. 65534 is nobody nearly everywhere
    #[arg(long, value_name = "USER", default_value = "65534")]
    pub user: String,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0.1 to 3600 is expected".to_owned())
}
