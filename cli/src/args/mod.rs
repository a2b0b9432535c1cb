//! The words of the command line: nvme-cli's where nvme-cli has the command, fio's for `bench`.

mod audit;
mod bench;
mod blocks;
mod emulate;
mod look;
mod passthru;
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use audit::AuditArgs;
pub use bench::{BenchArgs, Rw};
pub use blocks::{
    BlocksArgs, CopyArgs, DsmArgs, EffortArgs, FormatArgs, ProtectionArgs, ResetArgs, VerifyArgs,
    WhereArgs, WriteUncorArgs, WriteZeroesArgs,
};
pub use emulate::EmulateArgs;
pub use look::{
    BytesOutputArgs, EffectsLogArgs, ErrorLogArgs, FwLogArgs, GetFeatureArgs, GetLogArgs,
    NsDescsArgs, SetFeatureArgs,
};
pub use passthru::{CareArgs, NumberOrFormat, PassthruArgs};
pub use serve::ServeArgs;

use crate::size::{parse_positive_size, parse_size, parse_u8, parse_u32};

const AFTER_HELP: &str = "\
Addresses:
  0000:01:00.0, 01:00.0          that PCI function, by VFIO
  vfio:0000:01:00.0              the same, forced to its VFIO group
  emulated[:size=1G,lba=4096,…]  a software controller inside this process
  vfio-user:PATH                 one that another process serves on this socket (emulate, serve)

Exit status:
  0  done
  1  the controller's answer was an error status, or would have been
  2  wrong usage or file, or something that this version does not do
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
    /// Show the descriptors that identify a namespace
    NsDescs(NsDescsArgs),
    /// Read a log page
    GetLog(GetLogArgs),
    /// Show the Error Information log page
    ErrorLog(ErrorLogArgs),
    /// Show the Firmware Slot Information log page
    FwLog(FwLogArgs),
    /// Show the Commands Supported and Effects log page
    EffectsLog(EffectsLogArgs),
    /// Read a feature, or all of them
    GetFeature(GetFeatureArgs),
    /// Set a feature
    SetFeature(SetFeatureArgs),
    /// Let go of ranges of blocks, or tell how they will be used
    Dsm(DsmArgs),
    /// Make blocks zeroes
    WriteZeroes(WriteZeroesArgs),
    /// Make blocks unreadable until they are written again
    WriteUncor(WriteUncorArgs),
    /// Have the controller check that blocks can be read
    Verify(VerifyArgs),
    /// Have the controller copy ranges of blocks
    Copy(CopyArgs),
    /// Format a namespace: all that is in it is lost
    Format(FormatArgs),
    /// Disable the controller and enable it again
    Reset(ResetArgs),
    /// Send an admin command, given by its fields
    AdminPassthru(PassthruArgs),
    /// Send an I/O command, given by its fields
    IoPassthru(PassthruArgs),
    /// Measure reads or writes (without an address: on the emulated controller)
    Bench(BenchArgs),
    /// Serve a software controller on a vfio-user socket
    Emulate(EmulateArgs),
    /// Show what clients did: the audit that a server writes
    Audit(AuditArgs),
    /// Lend the controllers of a group to clients, each confined to what a policy grants it
    Serve(ServeArgs),
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
    /// Only namespaces of this command set
    #[arg(short = 'y', long, value_parser = parse_u8, value_name = "NUM")]
    pub csi: Option<u8>,
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
    /// The file that holds the data; left out, standard input (at most 256 MiB where no size is given)
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

impl Command {
    /// Whether errors are to be written as JSON.
    #[must_use]
    pub fn wants_json(&self) -> bool {
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
            Self::NsDescs(args) => return matches!(args.output.format(), RawFormat::Json),
            Self::ErrorLog(args) => return matches!(args.output.format(), RawFormat::Json),
            Self::FwLog(args) => return matches!(args.output.format(), RawFormat::Json),
            Self::EffectsLog(args) => return matches!(args.output.format(), RawFormat::Json),
            Self::GetLog(args) => args.format(),
            Self::GetFeature(args) => args.output.output_format,
            Self::SetFeature(args) => args.output.output_format,
            Self::Dsm(args) => args.at.output.output_format,
            Self::WriteZeroes(args) => args.at.output.output_format,
            Self::WriteUncor(args) => args.at.output.output_format,
            Self::Verify(args) => args.at.output.output_format,
            Self::Copy(args) => args.at.output.output_format,
            Self::Format(args) => args.output.output_format,
            Self::Reset(args) => args.output.output_format,
            Self::AdminPassthru(args) | Self::IoPassthru(args) => args.format(),
            Self::Bench(args) => args.output.output_format,
            Self::Emulate(args) => args.output.output_format,
            Self::Audit(args) => args.output.output_format,
            Self::Serve(args) => args.output.output_format,
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
mod tests;
