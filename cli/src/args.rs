//! The words of the command line: nvme-cli's where nvme-cli has the command, fio's for `bench`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::{parse_duration, parse_positive_size, parse_size, parse_u32};

const AFTER_HELP: &str = "\
Addresses:
  0000:01:00.0, 01:00.0          that PCI function, by VFIO
  vfio:0000:01:00.0              the same, forced to its VFIO group
  emulated[:size=1G,lba=4096,…]  a software controller inside this process

Exit status:
  0  done
  1  the controller's answer was an error status, or would have been
  2  wrong usage or file
  3  the environment forbids it (not viable, not bound, no permission, memlock, device gone, doctor found a fault)
  4  timeout or reset";

/// A user-space NVMe driver through VFIO.
#[derive(Debug, Parser)]
#[command(name = "nvme-vfio", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the NVMe controllers of this machine, whoever drives them
    List(ListArgs),
    /// Show IOMMU groups: their members, their drivers, and whether they are viable
    Group(GroupArgs),
    /// Take a controller from the kernel: bind it to vfio-pci
    Bind(BindArgs),
    /// Give a controller back to its kernel driver
    Unbind(UnbindArgs),
    /// Check what this machine and this user need to drive a controller, and say how to get it
    Doctor(DoctorArgs),
    /// Show the controller registers
    ShowRegs(ShowRegsArgs),
    /// Send Identify Controller and show the answer
    IdCtrl(IdCtrlArgs),
    /// Send Identify Namespace and show the answer
    IdNs(IdNsArgs),
    /// List the namespaces of a controller
    ListNs(ListNsArgs),
    /// Show the SMART / Health Information log page
    SmartLog(SmartLogArgs),
    /// Read logical blocks to a file or standard output
    Read(ReadArgs),
    /// Write logical blocks from a file or standard input
    Write(WriteArgs),
    /// Commit data and metadata to non-volatile media
    Flush(FlushArgs),
    /// Measure reads or writes (without an address: on the emulated controller)
    Bench(BenchArgs),
}

/// How data is written to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Normal,
    /// For programs.
    Json,
}

/// [`Format`] of the commands that can also write what the controller sent, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RawFormat {
    /// For people.
    #[default]
    Normal,
    /// For programs.
    Json,
    /// As the controller sent it.
    Binary,
}

/// The output format.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Output format
    #[arg(short = 'o', long, value_enum, default_value_t, value_name = "FMT")]
    pub output_format: Format,
}

/// The output format where binary is possible.
#[derive(Clone, Copy, Debug, Args)]
pub struct RawOutputArgs {
    /// Output format
    #[arg(short = 'o', long, value_enum, default_value_t, value_name = "FMT")]
    pub output_format: RawFormat,
    /// Write the data structure byte for byte
    #[arg(short = 'b', long)]
    pub raw_binary: bool,
    /// Explain the bits of each field
    #[arg(short = 'H', long)]
    pub human_readable: bool,
}

impl RawOutputArgs {
    /// The format, `--raw-binary` considered.
    #[must_use]
    pub const fn format(&self) -> RawFormat {
        if self.raw_binary {
            RawFormat::Binary
        } else {
            self.output_format
        }
    }
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `group`
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// A PCI address, or the number of a group; without it, every group that holds an NVMe controller
    pub group: Option<String>,
    /// Show every group of this machine
    #[arg(short = 'a', long, conflicts_with = "group")]
    pub all: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `bind`
#[derive(Debug, Args)]
pub struct BindArgs {
    /// The PCI functions
    #[arg(required = true, value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// Give this user every node it will need
    #[arg(short = 'u', long, value_name = "NAME")]
    pub user: Option<String>,
    /// Take the device even if something holds it: its file systems and whatever uses them will fail
    #[arg(long)]
    pub force: bool,
    /// Show what would be done, and do nothing
    #[arg(short = 'w', long)]
    pub dry_run: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `unbind`
#[derive(Debug, Args)]
pub struct UnbindArgs {
    /// The PCI functions
    #[arg(required = true, value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(short = 'w', long)]
    pub dry_run: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check this PCI function only; without it, every NVMe controller
    pub address: Option<String>,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `show-regs`
#[derive(Debug, Args)]
pub struct ShowRegsArgs {
    /// The controller
    pub address: String,
    /// Output format
    #[arg(short = 'o', long, value_enum, default_value_t, value_name = "FMT")]
    pub output_format: Format,
    /// Explain the bits of each register
    #[arg(short = 'H', long)]
    pub human_readable: bool,
}

/// `id-ctrl`
#[derive(Debug, Args)]
pub struct IdCtrlArgs {
    /// The controller
    pub address: String,
    /// The output format.
    #[command(flatten)]
    pub output: RawOutputArgs,
    /// Dump the vendor specific bytes as well
    #[arg(short = 'v', long)]
    pub vendor_specific: bool,
}

/// `id-ns`
#[derive(Debug, Args)]
pub struct IdNsArgs {
    /// The controller
    pub address: String,
    /// The namespace; may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// Show this namespace even if it is not attached to the controller
    #[arg(long)]
    pub force: bool,
    /// The output format.
    #[command(flatten)]
    pub output: RawOutputArgs,
    /// Dump the vendor specific bytes as well
    #[arg(short = 'v', long)]
    pub vendor_specific: bool,
}

/// `list-ns`
#[derive(Debug, Args)]
pub struct ListNsArgs {
    /// The controller
    pub address: String,
    /// The first namespace identifier of the list
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// Every namespace of the subsystem, attached or not
    #[arg(short = 'a', long)]
    pub all: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `smart-log`
#[derive(Debug, Args)]
pub struct SmartLogArgs {
    /// The controller
    pub address: String,
    /// The log of that namespace, where the controller keeps one for each
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The output format.
    #[command(flatten)]
    pub output: RawOutputArgs,
}

/// What `read` and `write` share.
#[derive(Debug, Args)]
pub struct RangeArgs {
    /// The controller
    pub address: String,
    /// The namespace; may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The first logical block
    #[arg(short = 's', long, value_parser = parse_size, default_value = "0", value_name = "LBA")]
    pub start_block: u64,
    /// Number of logical blocks, counted from 0: 7 means eight blocks; left out, as many as --data-size holds, else one
    #[arg(short = 'c', long, value_parser = parse_size, value_name = "NUM")]
    pub block_count: Option<u64>,
    /// Size of the data in bytes; left out, what --block-count makes
    #[arg(short = 'z', long, value_parser = parse_positive_size, value_name = "BYTES")]
    pub data_size: Option<u64>,
    /// Show the command, and do not send it
    #[arg(short = 'w', long)]
    pub dry_run: bool,
    /// Show how long it took, on standard error
    #[arg(short = 't', long)]
    pub latency: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `read`
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Which blocks.
    #[command(flatten)]
    pub range: RangeArgs,
    /// The file that takes the data; left out, standard output
    #[arg(short = 'd', long, value_name = "FILE")]
    pub data: Option<PathBuf>,
}

/// `write`
#[derive(Debug, Args)]
pub struct WriteArgs {
    /// Which blocks.
    #[command(flatten)]
    pub range: RangeArgs,
    /// The file that holds the data; left out, standard input
    #[arg(short = 'd', long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Write over a file system or partition table without asking
    #[arg(long)]
    pub force: bool,
}

/// `flush`
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// The controller
    pub address: String,
    /// The namespace (0xffffffff: all of them); may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

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
    #[arg(long)]
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

impl Command {
    /// Whether errors are to be written as JSON.
    #[must_use]
    pub const fn wants_json(&self) -> bool {
        let format = match self {
            Self::List(args) => args.output.output_format,
            Self::Group(args) => args.output.output_format,
            Self::Bind(args) => args.output.output_format,
            Self::Unbind(args) => args.output.output_format,
            Self::Doctor(args) => args.output.output_format,
            Self::ShowRegs(args) => args.output_format,
            Self::IdCtrl(args) => return matches!(args.output.output_format, RawFormat::Json),
            Self::IdNs(args) => return matches!(args.output.output_format, RawFormat::Json),
            Self::ListNs(args) => args.output.output_format,
            Self::SmartLog(args) => return matches!(args.output.output_format, RawFormat::Json),
            Self::Read(args) => args.range.output.output_format,
            Self::Write(args) => args.range.output.output_format,
            Self::Flush(args) => args.output.output_format,
            Self::Bench(args) => args.output.output_format,
        };
        matches!(format, Format::Json)
    }
}

/// Whether the arguments ask for JSON, found without parsing them: for the errors of parsing.
#[must_use]
pub fn mentions_json(arguments: &[std::ffi::OsString]) -> bool {
    let texts: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let joined = texts.iter().any(|text| {
        ["-ojson", "-o=json", "--output-format=json"]
            .iter()
            .any(|form| text == form)
    });
    let apart = texts.windows(2).any(|pair| matches!(pair, [option, value] if (option == "-o" || option == "--output-format") && value == "json"));
    joined || apart
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(text: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once("nvme-vfio").chain(text.split_whitespace()))
            .map(|cli| cli.command)
    }

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bench_defaults_are_the_documented_ones() {
        let Ok(Command::Bench(args)) = parse("bench") else {
            panic!("bench does not parse")
        };
        assert_eq!(
            (args.address.as_str(), args.rw, args.bs),
            ("emulated", Rw::RandRead, 4096)
        );
        assert_eq!(
            (args.iodepth, args.numjobs, args.runtime, args.size),
            (32, 1, None, None)
        );
    }

    #[test]
    fn bench_takes_both_spellings_of_fio() {
        for text in [
            "bench 01:00.0 --rw=randwrite --bs=128k --iodepth=7 --numjobs=2 --runtime=1m --size=1G --output-format=json",
            "bench 01:00.0 --rw randwrite --bs 128k --iodepth 7 --numjobs 2 --runtime 60 --size 1024M --output-format json",
            "bench --readwrite=randwrite --blocksize=0x20000 --iodepth=7 --numjobs=2 --runtime=60s --time_based --size=1g -o json 01:00.0",
        ] {
            let Ok(Command::Bench(args)) = parse(text) else {
                panic!("{text} does not parse")
            };
            assert_eq!(
                (args.address.as_str(), args.rw, args.bs, args.iodepth),
                ("01:00.0", Rw::RandWrite, 128 << 10, 7)
            );
            assert_eq!(
                (args.numjobs, args.runtime, args.size),
                (2, Some(Duration::from_secs(60)), Some(1 << 30))
            );
            assert_eq!(args.output.output_format, Format::Json);
        }
    }

    #[test]
    fn read_takes_the_letters_of_nvme_cli() {
        let Ok(Command::Read(args)) =
            parse("read 01:00.0 -n 1 -s 0x10 -c 7 -z 4k -d out.bin -t -w")
        else {
            panic!("read does not parse")
        };
        assert_eq!(
            (
                args.range.namespace_id,
                args.range.start_block,
                args.range.block_count
            ),
            (Some(1), 16, Some(7))
        );
        assert_eq!(
            (args.range.data_size, args.data),
            (Some(4096), Some(PathBuf::from("out.bin")))
        );
        assert!(args.range.latency && args.range.dry_run);
    }

    #[test]
    fn identify_takes_the_letters_of_nvme_cli() {
        let Ok(Command::IdNs(args)) = parse("id-ns emulated -n 0xffffffff -H -v --force -b") else {
            panic!("id-ns does not parse")
        };
        assert_eq!(args.namespace_id, Some(u32::MAX));
        assert_eq!(args.output.format(), RawFormat::Binary);
        assert!(args.force && args.vendor_specific && args.output.human_readable);
        assert!(
            matches!(parse("id-ctrl emulated -o binary"), Ok(Command::IdCtrl(args)) if args.output.format() == RawFormat::Binary)
        );
    }

    #[test]
    fn every_command_takes_o_json() {
        for text in [
            "list",
            "group",
            "bind 01:00.0",
            "unbind 01:00.0",
            "doctor",
            "show-regs emulated",
            "id-ctrl emulated",
            "id-ns emulated",
            "list-ns emulated",
            "smart-log emulated",
            "read emulated",
            "write emulated",
            "flush emulated",
            "bench",
        ] {
            assert!(!parse(text).unwrap().wants_json(), "{text}");
            for form in [
                "-o json",
                "-ojson",
                "--output-format=json",
                "--output-format json",
            ] {
                let text = format!("{text} {form}");
                assert!(parse(&text).unwrap().wants_json(), "{text}");
                let words: Vec<_> = text.split_whitespace().map(Into::into).collect();
                assert!(mentions_json(&words), "{text}");
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for text in [
            "",
            "frobnicate",
            "list --frobnicate",
            "bind",
            "read",
            "read emulated -s x",
            "bench --rw=trim",
            "bench --bs=0",
            "bench --iodepth=0",
            "bench --iodepth=65536",
            "bench --numjobs=0",
            "bench --runtime=0",
            "bench --time_based",
            "group 3 --all",
            "id-ns emulated -n 0x100000000",
        ] {
            let error = parse(text).expect_err(text);
            let error = crate::error::Error::from(error);
            assert_eq!(error.exit_status(), 2, "{text}");
            assert!(!error.to_string().is_empty());
        }
    }
}
