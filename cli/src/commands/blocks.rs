//! `dsm`, `write-zeroes`, `write-uncor`, `verify` and `copy`: through the gate, as any command.

use nvme_vfio::AdminData;
use nvme_vfio_passthrough::{QueueKind, RawCommand};
use serde::Serialize;

use crate::{
    args::{
        BlocksArgs, CopyArgs, DsmArgs, EffortArgs, Format, ProtectionArgs, VerifyArgs, WhereArgs,
        WriteUncorArgs, WriteZeroesArgs,
    },
    commands::passthru::{Sender, carry_out},
    error::Error,
    output::print_json,
};

/// The most ranges that one command takes.
const MOST_RANGES: usize = 256;

/// What was done, for `-o json`.
#[derive(Serialize)]
struct Done {
    command: &'static str,
    nsid: u32,
    result: u32,
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    slba: u64,
    blocks: u64,
}

/// Sends an I/O command, and says what was done in nvme-cli's words.
fn send(
    called: &'static str,
    words: &str,
    at: &WhereArgs,
    command: RawCommand,
    list: &[u8],
    ranges: Vec<Range>,
) -> Result<(), Error> {
    let sender = Sender::open(&at.address, at.care.audit.as_deref(), 0)?;
    let nsid = sender.session().nsid(at.namespace_id)?;
    let command = RawCommand { nsid, ..command };
    let data = if list.is_empty() {
        AdminData::None
    } else {
        AdminData::ToController(list)
    };
    let ended = carry_out(sender, QueueKind::Io, &command, data, &at.care)
        .map_err(|error| error.context(called))?;
    if at.output.output_format == Format::Json {
        return print_json(&Done {
            command: called,
            nsid,
            result: ended.result(),
            ranges,
        });
    }
    eprintln!("{words}");
    Ok(())
}

/// A command on one range.
fn on(opcode: u8, blocks: &BlocksArgs) -> RawCommand {
    RawCommand {
        opcode,
        cdw10: blocks.start_block as u32,
        cdw11: (blocks.start_block >> 32) as u32,
        cdw12: u32::from(blocks.block_count),
        ..RawCommand::default()
    }
}

fn range(blocks: &BlocksArgs) -> Vec<Range> {
    vec![Range {
        slba: blocks.start_block,
        blocks: u64::from(blocks.block_count) + 1,
    }]
}

fn effort(command: RawCommand, effort: &EffortArgs) -> RawCommand {
    RawCommand {
        cdw12: command.cdw12
            | u32::from(effort.force_unit_access) << 30
            | u32::from(effort.limited_retry) << 31,
        ..command
    }
}

/// Whatever is set of it is refused for namespaces without protection information.
fn protection(command: RawCommand, args: &ProtectionArgs) -> RawCommand {
    RawCommand {
        cdw2: args.storage_tag,
        cdw12: command.cdw12
            | u32::from(args.storage_tag_check) << 24
            | u32::from(args.prinfo & 0xf) << 26,
        cdw14: args.ref_tag,
        cdw15: u32::from(args.app_tag) | u32::from(args.app_tag_mask) << 16,
        ..command
    }
}

pub(super) fn write_zeroes(args: &WriteZeroesArgs) -> Result<(), Error> {
    let mut command = protection(
        effort(on(0x08, &args.blocks), &args.effort),
        &args.protection,
    );
    command.cdw12 |= u32::from(args.deac) << 25;
    send(
        "write-zeroes",
        "NVME Write Zeroes Success",
        &args.at,
        command,
        &[],
        range(&args.blocks),
    )
}

pub(super) fn write_uncor(args: &WriteUncorArgs) -> Result<(), Error> {
    send(
        "write-uncor",
        "NVME Write Uncorrectable Success",
        &args.at,
        on(0x04, &args.blocks),
        &[],
        range(&args.blocks),
    )
}

pub(super) fn verify(args: &VerifyArgs) -> Result<(), Error> {
    send(
        "verify",
        "NVME Verify Success",
        &args.at,
        protection(
            effort(on(0x0c, &args.blocks), &args.effort),
            &args.protection,
        ),
        &[],
        range(&args.blocks),
    )
}

/// How many ranges are named: each has its first block and its blocks. What else there is of it may be left out, and is 0.
fn count(first: usize, blocks: usize, others: &[usize]) -> Result<usize, Error> {
    let remedy = "Give each range its first block and its blocks: --slbs=0,100 --blocks=8,16";
    if first != blocks {
        return Err(Error::usage(
            format!("{first} first blocks were given, and {blocks} numbers of blocks"),
            remedy,
        ));
    }
    if !(1..=MOST_RANGES).contains(&first) {
        return Err(Error::usage(
            format!("{first} ranges were given, and a command takes 1 to {MOST_RANGES}"),
            remedy,
        ));
    }
    match others.iter().find(|&&values| values > first) {
        Some(values) => Err(Error::usage(
            format!("{values} values were given for {first} ranges"),
            remedy,
        )),
        None => Ok(first),
    }
}

fn nth<T: Copy + Default>(list: &[T], index: usize) -> T {
    list.get(index).copied().unwrap_or_default()
}

pub(super) fn dsm(args: &DsmArgs) -> Result<(), Error> {
    let ranges = count(args.slbs.len(), args.blocks.len(), &[args.ctx_attrs.len()])?;
    let mut list = Vec::new();
    let mut told = Vec::new();
    for index in 0..ranges {
        let (blocks, slba) = (nth(&args.blocks, index), nth(&args.slbs, index));
        list.extend(nth(&args.ctx_attrs, index).to_le_bytes());
        list.extend(blocks.to_le_bytes());
        list.extend(slba.to_le_bytes());
        told.push(Range {
            slba,
            blocks: blocks.into(),
        });
    }
    let attributes = u32::from(args.idr) | u32::from(args.idw) << 1 | u32::from(args.ad) << 2;
    let command = RawCommand {
        opcode: 0x09,
        cdw10: (ranges - 1) as u32,
        cdw11: args.cdw11.unwrap_or(attributes),
        ..RawCommand::default()
    };
    send("dsm", "NVMe DSM: success", &args.at, command, &list, told)
}

pub(super) fn copy(args: &CopyArgs) -> Result<(), Error> {
    let tags = [
        args.expected_ref_tags.len(),
        args.expected_app_tags.len(),
        args.expected_app_tag_masks.len(),
    ];
    let ranges = count(args.slbs.len(), args.blocks.len(), &tags)?;
    let mut list = Vec::new();
    let mut told = Vec::new();
    for index in 0..ranges {
        let (blocks, slba) = (nth(&args.blocks, index), nth(&args.slbs, index));
        let mut source = [0; 32];
        let (_, rest) = source.split_at_mut(8);
        let fields = [
            &slba.to_le_bytes()[..],
            &blocks.to_le_bytes(),
            &[0; 6],
            &nth(&args.expected_ref_tags, index).to_le_bytes(),
            &nth(&args.expected_app_tags, index).to_le_bytes(),
            &nth(&args.expected_app_tag_masks, index).to_le_bytes(),
        ]
        .concat();
        for (to, from) in rest.iter_mut().zip(fields) {
            *to = from;
        }
        list.extend(source);
        told.push(Range {
            slba,
            blocks: u64::from(blocks) + 1,
        });
    }
    let command = RawCommand {
        opcode: 0x19,
        cdw10: args.sdlba as u32,
        cdw11: (args.sdlba >> 32) as u32,
        cdw12: (ranges - 1) as u32
            | u32::from(args.format & 0xf) << 8
            | u32::from(args.prinfor & 0xf) << 12
            | u32::from(args.dir_type & 0xf) << 20
            | u32::from(args.prinfow & 0xf) << 26,
        cdw13: u32::from(args.dir_spec) << 16,
        cdw14: args.ref_tag,
        cdw15: u32::from(args.app_tag) | u32::from(args.app_tag_mask) << 16,
        ..RawCommand::default()
    };
    let command = effort(command, &args.effort);
    send("copy", "NVMe Copy: success", &args.at, command, &list, told)
}
