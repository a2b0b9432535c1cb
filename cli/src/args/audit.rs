//! The words of `audit`.

use std::path::PathBuf;

use clap::Args;

use super::OutputArgs;

const AFTER_HELP: &str = "\
Every line of the file is one JSON object; docs/audit.md describes them. With -o json they are written as they are, one a line; what is wrong with \
the file itself (lines that are missing, or are no records) stands between them as {\"kind\": \"note\", …}.

  nvme-vfio audit --follow --client vm-a --policy /etc/nvme-vfio/13.toml
  nvme-vfio audit -o json /var/log/nvme-vfio.jsonl | jq 'select(.verdict == \"refused\")'";

/// `audit`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct AuditArgs {
    /// The audit's file
    #[arg(
        value_name = "FILE",
        required_unless_present = "policy",
        conflicts_with = "policy"
    )]
    pub file: Option<PathBuf>,
    /// A policy, whose audit is shown
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Go on showing what is added, also after the file is replaced or emptied
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only what is about this client
    #[arg(short = 'c', long, value_name = "NAME")]
    pub client: Option<String>,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
