//! The words of `admin-passthru` and `io-passthru`: those of nvme-cli 2.3.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::Format;
use crate::size::{parse_size, parse_u8, parse_u16, parse_u32};

const AFTER_HELP: &str = "\
The direction of the data follows from the command, and its length where the command tells it: -r, -w and -l need not be given.
-o takes the opcode, as in nvme-cli 2.3, or json, as in all other commands here.

  nvme-vfio admin-passthru 01:00.0 --opcode=0x06 --cdw10=1 -b > id-ctrl.bin
  nvme-vfio io-passthru 01:00.0 -o 0x02 -n 1 --cdw10=8 --cdw12=7 -i blocks.bin";

/// What `-o` takes where nvme-cli 2.3 has a number there, and all other commands the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberOrFormat {
    /// A number.
    Number(u64),
    /// A word.
    Format(Format),
}

impl FromStr for NumberOrFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Format::from_str(text, false) {
            Ok(format) => Ok(Self::Format(format)),
            Err(_) => parse_size(text).map(Self::Number),
        }
    }
}

impl NumberOrFormat {
    /// The format among several, the last one said.
    #[must_use]
    pub fn format(several: &[Self]) -> Option<Format> {
        several.iter().rev().find_map(|one| match one {
            Self::Format(format) => Some(*format),
            Self::Number(_) => None,
        })
    }

    /// The numbers among several.
    pub fn numbers(several: &[Self]) -> impl Iterator<Item = u64> + '_ {
        several.iter().filter_map(|one| match one {
            Self::Number(number) => Some(*number),
            Self::Format(_) => None,
        })
    }
}

/// `admin-passthru` and `io-passthru`
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct PassthruArgs {
    /// The controller
    pub address: String,
    /// The opcode (required)
    #[arg(short = 'O', long, value_parser = parse_u8, value_name = "NUM")]
    pub opcode: Option<u8>,
    /// The opcode, or the output format
    #[arg(short = 'o', value_name = "NUM|FMT")]
    pub short: Vec<NumberOrFormat>,
    /// Output format
    #[arg(long, value_enum, value_name = "FMT")]
    pub output_format: Option<Format>,
    /// Command flags: bits 15:8 of dword 0
    #[arg(short = 'f', long, value_parser = parse_u8, default_value = "0", value_name = "NUM")]
    pub flags: u8,
    /// Fill the buffers with this byte before they are used
    #[arg(short = 'p', long, value_parser = parse_u8, value_name = "NUM")]
    pub prefill: Option<u8>,
    /// The reserved field; only 0 can be sent
    #[arg(short = 'R', long, value_parser = parse_u16, default_value = "0", value_name = "NUM")]
    pub rsvd: u16,
    /// The namespace; for io-passthru it may be left out where exactly one is active
    #[arg(short = 'n', long, value_parser = parse_u32, value_name = "NSID")]
    pub namespace_id: Option<u32>,
    /// Bytes of data; left out, what the command moves
    #[arg(short = 'l', long, value_parser = parse_u32, value_name = "BYTES")]
    pub data_len: Option<u32>,
    /// Bytes of metadata; only 0 can be sent
    #[arg(short = 'm', long, value_parser = parse_u32, default_value = "0", value_name = "BYTES")]
    pub metadata_len: u32,
    /// How long the command may take, in milliseconds; 0 for the default
    #[arg(short = 't', long, value_parser = parse_u32, default_value = "0", value_name = "MS")]
    pub timeout: u32,
    /// Command dword 2
    #[arg(short = '2', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw2: u32,
    /// Command dword 3
    #[arg(short = '3', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw3: u32,
    /// Command dword 10
    #[arg(short = '4', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw10: u32,
    /// Command dword 11
    #[arg(short = '5', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw11: u32,
    /// Command dword 12
    #[arg(short = '6', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw12: u32,
    /// Command dword 13
    #[arg(short = '7', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw13: u32,
    /// Command dword 14
    #[arg(short = '8', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw14: u32,
    /// Command dword 15
    #[arg(short = '9', long, value_parser = parse_u32, default_value = "0", value_name = "NUM")]
    pub cdw15: u32,
    /// The file that holds the data, or takes it; left out, standard input and output
    #[arg(short = 'i', long, value_name = "FILE")]
    pub input_file: Option<PathBuf>,
    /// The file of the metadata, which is not transferred by this version
    #[arg(short = 'M', long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Write the data byte for byte
    #[arg(short = 'b', long)]
    pub raw_binary: bool,
    /// Show the command before it is sent
    #[arg(short = 's', long)]
    pub show_command: bool,
    /// Show the command, and do not send it
    #[arg(short = 'd', long)]
    pub dry_run: bool,
    /// The data comes from the controller, which must be so
    #[arg(short = 'r', long, conflicts_with = "write")]
    pub read: bool,
    /// The data goes to the controller, which must be so
    #[arg(short = 'w', long)]
    pub write: bool,
    /// Show how long it took, on standard error
    #[arg(short = 'T', long)]
    pub latency: bool,
    /// What gives and takes away.
    #[command(flatten)]
    pub care: CareArgs,
}

/// What commands that may destroy something share.
#[derive(Debug, Args)]
pub struct CareArgs {
    /// Do what destroys data without asking
    #[arg(long)]
    pub force: bool,
    /// Record the command in this file, as a server records those of its clients
    #[arg(long, value_name = "FILE")]
    pub audit: Option<PathBuf>,
}

impl PassthruArgs {
    /// The output format, wherever it was said.
    #[must_use]
    pub fn format(&self) -> Format {
        self.output_format
            .or(NumberOrFormat::format(&self.short))
            .unwrap_or_default()
    }

    /// The opcodes that were given, which should be one, and one that eight bits hold.
    #[must_use]
    pub fn opcodes(&self) -> Vec<u64> {
        let long = self.opcode.into_iter().map(u64::from);
        long.chain(NumberOrFormat::numbers(&self.short)).collect()
    }
}
