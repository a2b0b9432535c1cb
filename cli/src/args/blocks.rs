//! The words of the commands on ranges of blocks, and of `format` and `reset`: those of nvme-cli 2.3.

use clap::Args;

use super::{CareArgs, OutputArgs};
use crate::size::{parse_size, parse_u8, parse_u16, parse_u32};

/// Which namespace, for commands of one.
#[derive(Debug, Args)]
pub struct WhereArgs {
    /// The controller
    pub address: String,
    /// The namespace; may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What gives and takes away.
    #[command(flatten)]
    pub care: CareArgs,
}

/// Which blocks, for a command on one range.
#[derive(Debug, Args)]
pub struct BlocksArgs {
    /// The first logical block
    #[arg(short = 's', long, value_parser = parse_size, default_value = "0", value_name = "LBA")]
    pub start_block: u64,
    /// Number of logical blocks, counted from 0: 7 means eight blocks
    #[arg(short = 'c', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub block_count: u16,
}

/// Protection information, which namespaces without it take only as 0.
#[derive(Debug, Args)]
pub struct ProtectionArgs {
    /// Protection information and check field
    #[arg(short = 'p', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub prinfo: u8,
    /// Reference tag
    #[arg(short = 'r', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub ref_tag: u32,
    /// Application tag mask
    #[arg(short = 'm', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub app_tag_mask: u16,
    /// Application tag
    #[arg(short = 'a', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub app_tag: u16,
    /// Storage tag
    #[arg(short = 'S', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub storage_tag: u32,
    /// Check the storage tag
    #[arg(short = 'C', long)]
    pub storage_tag_check: bool,
}

/// How hard the controller tries, and where the data goes.
#[derive(Debug, Args)]
pub struct EffortArgs {
    /// Limited retry
    #[arg(short = 'l', long)]
    pub limited_retry: bool,
    /// Force unit access
    #[arg(short = 'f', long)]
    pub force_unit_access: bool,
}

/// `write-zeroes`
#[derive(Debug, Args)]
pub struct WriteZeroesArgs {
    /// Where.
    #[command(flatten)]
    pub at: WhereArgs,
    /// Which blocks.
    #[command(flatten)]
    pub blocks: BlocksArgs,
    /// Ask the controller to deallocate the blocks
    #[arg(short = 'd', long)]
    pub deac: bool,
    /// How.
    #[command(flatten)]
    pub effort: EffortArgs,
    /// Protection information.
    #[command(flatten)]
    pub protection: ProtectionArgs,
}

/// `write-uncor`
#[derive(Debug, Args)]
pub struct WriteUncorArgs {
    /// Where.
    #[command(flatten)]
    pub at: WhereArgs,
    /// Which blocks.
    #[command(flatten)]
    pub blocks: BlocksArgs,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Where.
    #[command(flatten)]
    pub at: WhereArgs,
    /// Which blocks.
    #[command(flatten)]
    pub blocks: BlocksArgs,
    /// How.
    #[command(flatten)]
    pub effort: EffortArgs,
    /// Protection information.
    #[command(flatten)]
    pub protection: ProtectionArgs,
}

/// `dsm`
#[derive(Debug, Args)]
pub struct DsmArgs {
    /// Where.
    #[command(flatten)]
    pub at: WhereArgs,
    /// Context attributes of each range, separated by commas; they are hints, and are not passed on
    #[arg(short = 'a', long, value_delimiter = ',', value_parser = parse_u32, value_name = "LIST")]
    pub ctx_attrs: Vec<u32>,
    /// Number of blocks of each range, separated by commas
    #[arg(short = 'b', long, value_delimiter = ',', value_parser = parse_u32, value_name = "LIST")]
    pub blocks: Vec<u32>,
    /// First block of each range, separated by commas
    #[arg(short = 's', long, value_delimiter = ',', value_parser = parse_size, value_name = "LIST")]
    pub slbs: Vec<u64>,
    /// Deallocate
    #[arg(short = 'd', long)]
    pub ad: bool,
    /// The ranges will be written as a whole
    #[arg(short = 'w', long)]
    pub idw: bool,
    /// The ranges will be read as a whole
    #[arg(short = 'r', long)]
    pub idr: bool,
    /// Command dword 11, instead of --ad, --idw and --idr
    #[arg(short = 'c', long, value_parser = parse_u32, value_name = "NUM", conflicts_with_all = ["ad", "idw", "idr"])]
    pub cdw11: Option<u32>,
}

/// `copy`
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Where.
    #[command(flatten)]
    pub at: WhereArgs,
    /// The first block of the destination
    #[arg(short = 'd', long, value_parser = parse_size, default_value = "0", value_name = "LBA")]
    pub sdlba: u64,
    /// First block of each source range, separated by commas
    #[arg(short = 's', long, value_delimiter = ',', value_parser = parse_size, value_name = "LIST")]
    pub slbs: Vec<u64>,
    /// Number of blocks of each source range, counted from 0, separated by commas
    #[arg(short = 'b', long, value_delimiter = ',', value_parser = parse_u16, value_name = "LIST")]
    pub blocks: Vec<u16>,
    /// How.
    #[command(flatten)]
    pub effort: EffortArgs,
    /// Protection information and check field of what is written
    #[arg(short = 'p', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub prinfow: u8,
    /// Protection information and check field of what is read
    #[arg(short = 'P', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub prinfor: u8,
    /// Reference tag of what is written
    #[arg(short = 'r', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub ref_tag: u32,
    /// Reference tags of what is read, separated by commas
    #[arg(short = 'R', long, value_delimiter = ',', value_parser = parse_u32, value_name = "LIST")]
    pub expected_ref_tags: Vec<u32>,
    /// Application tag of what is written
    #[arg(short = 'a', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub app_tag: u16,
    /// Application tags of what is read, separated by commas
    #[arg(short = 'A', long, value_delimiter = ',', value_parser = parse_u16, value_name = "LIST")]
    pub expected_app_tags: Vec<u16>,
    /// Application tag mask of what is written
    #[arg(short = 'm', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub app_tag_mask: u16,
    /// Application tag masks of what is read, separated by commas
    #[arg(short = 'M', long, value_delimiter = ',', value_parser = parse_u16, value_name = "LIST")]
    pub expected_app_tag_masks: Vec<u16>,
    /// Directive type of what is written
    #[arg(short = 'T', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub dir_type: u8,
    /// Directive specific value of what is written
    #[arg(short = 'S', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub dir_spec: u16,
    /// Format of the source ranges; only 0 can be sent
    #[arg(short = 'F', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub format: u8,
}

/// `format`
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// The controller
    pub address: String,
    /// The namespace (0xffffffff: all of them); may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// How long it may take, in milliseconds
    #[arg(short = 't', long, value_parser = parse_u32, default_value = "600000", value_name = "MS")]
    pub timeout: u32,
    /// The LBA format; left out, the one that the namespace has
    #[arg(short = 'l', long, value_parser = parse_u8, value_name = "NUM", conflicts_with = "block_size")]
    pub lbaf: Option<u8>,
    /// Secure erase: 0 none, 1 of user data, 2 of the encryption key
    #[arg(short = 's', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub ses: u8,
    /// Protection information: 0 none, 1 to 3 its type
    #[arg(short = 'i', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub pi: u8,
    /// Protection information: 0 in the last, 1 in the first eight bytes of metadata
    #[arg(short = 'p', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub pil: u8,
    /// Metadata: 0 in a buffer of its own, 1 behind each block
    #[arg(short = 'm', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub ms: u8,
    /// Reset the controller afterwards
    #[arg(short = 'r', long)]
    pub reset: bool,
    /// The block size in bytes, instead of --lbaf
    #[arg(short = 'b', long, value_parser = parse_size, value_name = "BYTES")]
    pub block_size: Option<u64>,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What gives and takes away.
    #[command(flatten)]
    pub care: CareArgs,
}

/// `reset`
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The controller
    pub address: String,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}
