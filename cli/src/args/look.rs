//! The words of the commands that read logs, features and descriptors: those of nvme-cli 2.3.

use std::path::PathBuf;

use clap::Args;

use super::{CareArgs, Format, NumberOrFormat, OutputArgs, RawFormat};
use crate::size::{parse_size, parse_u8, parse_u16, parse_u32};

/// Where output goes for commands that can write it byte for byte.
#[derive(Debug, Args)]
pub struct BytesOutputArgs {
    /// Output format
    #[arg(short = 'o', long, value_enum, default_value_t, value_name = "FMT")]
    pub output_format: RawFormat,
    /// Write the data byte for byte
    #[arg(short = 'b', long)]
    pub raw_binary: bool,
}

impl BytesOutputArgs {
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

/// `get-log`
#[derive(Debug, Args)]
pub struct GetLogArgs {
    /// The controller
    pub address: String,
    /// The namespace; left out, the controller's own log
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The log page
    #[arg(short = 'i', long, value_parser = parse_u8, value_name = "NUM")]
    pub log_id: Option<u8>,
    /// Bytes to read, a multiple of 4
    #[arg(short = 'l', long, value_parser = parse_u32, value_name = "BYTES")]
    pub log_len: Option<u32>,
    /// Dword 0 of an asynchronous event, whose log page is read
    #[arg(short = 'a', long, value_parser = parse_u32, value_name = "NUM")]
    pub aen: Option<u32>,
    /// Where in the log page to begin, in bytes
    #[arg(long, value_parser = parse_size, value_name = "BYTES")]
    pub lpo: Option<u64>,
    /// Where in the log page to begin, or the output format
    #[arg(short = 'o', value_name = "BYTES|FMT")]
    pub short: Vec<NumberOrFormat>,
    /// Output format
    #[arg(long, value_enum, value_name = "FMT")]
    pub output_format: Option<Format>,
    /// Log specific field
    #[arg(short = 's', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub lsp: u8,
    /// Log specific identifier
    #[arg(short = 'S', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub lsi: u16,
    /// Retain the asynchronous event
    #[arg(short = 'r', long)]
    pub rae: bool,
    /// UUID index
    #[arg(short = 'U', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub uuid_index: u8,
    /// Write the data byte for byte
    #[arg(short = 'b', long)]
    pub raw_binary: bool,
    /// Command set identifier
    #[arg(short = 'y', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub csi: u8,
    /// The offset is the index of an entry
    #[arg(short = 'O', long)]
    pub ot: bool,
}

impl GetLogArgs {
    /// The output format, wherever it was said.
    #[must_use]
    pub fn format(&self) -> Format {
        self.output_format
            .or(NumberOrFormat::format(&self.short))
            .unwrap_or_default()
    }

    /// The offset, wherever it was said.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.lpo
            .or(NumberOrFormat::numbers(&self.short).last())
            .unwrap_or(0)
    }
}

/// `error-log`
#[derive(Debug, Args)]
pub struct ErrorLogArgs {
    /// The controller
    pub address: String,
    /// How many entries to show; no more than the controller keeps are read
    #[arg(short = 'e', long, value_parser = parse_u32, default_value = "64", value_name = "NUM")]
    pub log_entries: u32,
    /// The output format.
    #[command(flatten)]
    pub output: BytesOutputArgs,
}

/// `fw-log`
#[derive(Debug, Args)]
pub struct FwLogArgs {
    /// The controller
    pub address: String,
    /// The output format.
    #[command(flatten)]
    pub output: BytesOutputArgs,
}

/// `effects-log`
#[derive(Debug, Args)]
pub struct EffectsLogArgs {
    /// The controller
    pub address: String,
    /// Explain the bits of each command
    #[arg(short = 'H', long)]
    pub human_readable: bool,
    /// Command set identifier
    #[arg(short = 'c', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub csi: u8,
    /// The output format.
    #[command(flatten)]
    pub output: BytesOutputArgs,
}

/// `ns-descs`
#[derive(Debug, Args)]
pub struct NsDescsArgs {
    /// The controller
    pub address: String,
    /// The namespace; may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// The output format.
    #[command(flatten)]
    pub output: BytesOutputArgs,
}

/// `get-feature`
#[derive(Debug, Args)]
pub struct GetFeatureArgs {
    /// The controller
    pub address: String,
    /// The feature; left out, all that the controller has
    #[arg(short = 'f', long, value_parser = parse_u8, value_name = "NUM")]
    pub feature_id: Option<u8>,
    /// The namespace, for features of one
    #[arg(short = 'n', long, value_parser = parse_u32, default_value = "0", value_name = "NSID")]
    pub namespace_id: u32,
    /// Which value: 0 current, 1 default, 2 saved, 3 supported capabilities
    #[arg(short = 's', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub sel: u8,
    /// Bytes of data; left out, what the feature has
    #[arg(short = 'l', long, value_parser = parse_u32, value_name = "BYTES")]
    pub data_len: Option<u32>,
    /// Write the data byte for byte
    #[arg(short = 'b', long)]
    pub raw_binary: bool,
    /// Command dword 11
    #[arg(short = 'c', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw11: u32,
    /// UUID index
    #[arg(short = 'U', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub uuid_index: u8,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `set-feature`
#[derive(Debug, Args)]
pub struct SetFeatureArgs {
    /// The controller
    pub address: String,
    /// The namespace, for features of one
    #[arg(short = 'n', long, value_parser = parse_u32, default_value = "0", value_name = "NSID")]
    pub namespace_id: u32,
    /// The feature
    #[arg(short = 'f', long, value_parser = parse_u8, value_name = "NUM")]
    pub feature_id: u8,
    /// Its value: command dword 11
    #[arg(short = 'v', long, value_parser = parse_size, value_name = "NUM")]
    pub value: Option<u64>,
    /// Command dword 12
    #[arg(short = 'c', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw12: u32,
    /// UUID index
    #[arg(short = 'U', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub uuid_index: u8,
    /// Bytes of data; left out, what the feature has
    #[arg(short = 'l', long, value_parser = parse_u32, value_name = "BYTES")]
    pub data_len: Option<u32>,
    /// The file that holds the data; left out, standard input
    #[arg(short = 'd', long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Keep the value over resets and power cycles
    #[arg(short = 's', long)]
    pub save: bool,
    /// The output format.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What gives and takes away.
    #[command(flatten)]
    pub care: CareArgs,
}
