//! The words of `bench`: fio's.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::OutputArgs;
use crate::size::{parse_duration, parse_positive_size, parse_size, parse_u32};

/// fio's `--rw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    #[default]
    RandRead,
    /// Random writes.
    RandWrite,
}

impl Rw {
    /// Whether it writes.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite)
    }

    /// Whether its offsets are random.
    #[must_use]
    pub const fn random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }

    /// fio's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
        }
    }
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The controller
    #[arg(default_value = "emulated")]
    pub address: String,
    /// The namespace; may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// Direction and pattern
    #[arg(
        long,
        alias = "readwrite",
        value_enum,
        default_value_t,
        value_name = "PATTERN"
    )]
    pub rw: Rw,
    /// Size of one I/O
    #[arg(long, alias = "blocksize", value_parser = parse_positive_size, default_value = "4k", value_name = "SIZE")]
    pub bs: u64,
    /// I/Os in flight per job
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = 32, value_name = "NUM")]
    pub iodepth: u16,
    /// Number of jobs, each with a thread and a queue of its own
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value_t = 1, value_name = "NUM")]
    pub numjobs: u16,
    /// How long each job runs, in seconds or with a unit [default: 5 without --size]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Option<Duration>,
    /// The part of the namespace that each job uses; without --runtime, also how much it moves [default: all of it]
    #[arg(long, value_parser = parse_positive_size, value_name = "SIZE")]
    pub size: Option<u64>,
    /// Where that part begins
    #[arg(long, value_parser = parse_size, default_value = "0", value_name = "SIZE")]
    pub offset: u64,
    /// Name of the job in the report
    #[arg(long, default_value = "bench", value_name = "NAME")]
    pub name: String,
    /// Seed of the random offsets
    #[arg(long, value_parser = parse_size, default_value = "0x6e766d65", value_name = "NUM")]
    pub randseed: u64,
    /// Report all jobs as one
    #[arg(long = "group_reporting", alias = "group-reporting")]
    pub group_reporting: bool,
    /// Run until --runtime is over, which it does anyway
    #[arg(
        long = "time_based",
        alias = "time-based",
        requires = "runtime",
        hide = true
    )]
    pub time_based: bool,
    /// Write over a file system or partition table
    #[arg(long)]
    pub force: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
