//! `get-feature` and `set-feature`: through the gate, as any command.

use std::fmt::Write as _;

use nvme_vfio::AdminData;
use nvme_vfio_passthrough::{Direction, QueueKind, RawCommand};
use nvme_vfio_queues::FeatureId;
use serde::Serialize;

use crate::{
    args::{Format, GetFeatureArgs, SetFeatureArgs},
    commands::passthru::{Input, Sender, carry_out, hex},
    decode::hex_dump,
    error::{Error, Kind},
    output::{print_json, print_text, to_stdout},
};

/// The most data that is taken for one feature, in bytes.
const MOST_DATA: u32 = 1 << 20;
const TIMESTAMP: u8 = 0x0e;

/// A feature's value.
#[derive(Serialize)]
struct Got {
    feature: u8,
    name: &'static str,
    sel: u8,
    value: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

fn name(feature: u8) -> &'static str {
    FeatureId(feature).name().unwrap_or("Unknown")
}

fn selected(sel: u8) -> &'static str {
    match sel {
        0 => "Current",
        1 => "Default",
        2 => "Saved",
        3 => "Supported capabilities",
        _ => "Reserved",
    }
}

fn check_data(length: Option<u32>) -> Result<(), Error> {
    match length {
        Some(length) if length > MOST_DATA => Err(Error::usage(
            format!("{length} bytes are more than a feature has"),
            "Leave --data-len out",
        )),
        _ => Ok(()),
    }
}

fn too_small(given: u64, needed: u64) -> Error {
    Error::new(
        Kind::BufferTooSmall,
        format!("--data-len={given} is too small: the feature has {needed} bytes"),
    )
    .remedy(format!("Use: --data-len={needed}"))
}

/// Reads one feature: its value, and its data.
fn read(sender: &mut Sender, args: &GetFeatureArgs, feature: u8) -> Result<(u32, Vec<u8>), Error> {
    let command = RawCommand {
        opcode: 0x0a,
        nsid: args.namespace_id,
        cdw10: u32::from(feature) | u32::from(args.sel) << 8,
        cdw11: args.cdw11,
        cdw14: u32::from(args.uuid_index & 0x7f),
        ..RawCommand::default()
    };
    let needs = sender.needs(QueueKind::Admin, &command, &[])?;
    let needed = needs.length.unwrap_or(0);
    let given = args.data_len.map_or(needed, u64::from);
    let mut data = vec![0; usize::try_from(given.max(needed)).unwrap_or(0)];
    if given < needed {
        return Err(too_small(given, needed));
    }
    let moved = match needs.direction {
        Direction::FromController => AdminData::FromController(&mut data),
        _ => AdminData::None,
    };
    let ended = sender.send(QueueKind::Admin, &command, moved)?;
    if needs.direction != Direction::FromController {
        data.clear();
    }
    Ok((ended.result(), data))
}

pub(super) fn get(args: &GetFeatureArgs) -> Result<(), Error> {
    check_data(args.data_len)?;
    if args.sel > 3 || args.uuid_index > 0x7f {
        return Err(Error::usage(
            "--sel is 0 to 3, and --uuid-index 0 to 127",
            "Use: --sel=0",
        ));
    }
    let mut sender = Sender::open(&args.address, None, 0)?;
    let mut got = Vec::new();
    match args.feature_id {
        Some(feature) => {
            let (value, data) =
                read(&mut sender, args, feature).map_err(|error| error.context("get-feature"))?;
            got.push((feature, value, data));
        }
        // Those that the controller has not, or the gate does not let by, are left out.
        None => {
            for feature in FeatureId::NAMED {
                match read(&mut sender, args, feature.0) {
                    Ok((value, data)) => got.push((feature.0, value, data)),
                    Err(error) if error.exit_status() == 1 => {}
                    Err(error) => return Err(error.context("get-feature")),
                }
            }
        }
    }
    if args.raw_binary {
        return to_stdout(|out| {
            got.iter().try_for_each(|(_, value, data)| {
                if data.is_empty() {
                    out.write_all(&value.to_le_bytes())
                } else {
                    out.write_all(data)
                }
            })
        });
    }
    if args.output.output_format == Format::Json {
        let told: Vec<Got> = got
            .iter()
            .map(|(feature, value, data)| Got {
                feature: *feature,
                name: name(*feature),
                sel: args.sel,
                value: *value,
                data: (!data.is_empty()).then(|| hex(data)),
            })
            .collect();
        return match told.as_slice() {
            [one] if args.feature_id.is_some() => print_json(one),
            several => print_json(&several),
        };
    }
    let mut text = String::new();
    for (feature, value, data) in &got {
        let _ = writeln!(
            text,
            "get-feature:{feature:#04x} ({}), {} value:{value:#010x}",
            name(*feature),
            selected(args.sel)
        );
        text.push_str(&hex_dump(data));
    }
    print_text(&text)
}

/// What was set.
#[derive(Serialize)]
struct Set {
    command: &'static str,
    feature: u8,
    name: &'static str,
    value: u64,
    cdw12: u32,
    save: bool,
    result: u32,
}

pub(super) fn set(args: &SetFeatureArgs) -> Result<(), Error> {
    check_data(args.data_len)?;
    let value = args.value.unwrap_or(0);
    // The timestamp alone is longer, and has its value in its data.
    let timestamp = args.feature_id == TIMESTAMP;
    let Some(dword11) = (if timestamp {
        Some(0)
    } else {
        u32::try_from(value).ok()
    }) else {
        return Err(Error::usage(
            format!("--value={value:#x} is more than 32 bits hold"),
            "Give the rest as --cdw12",
        ));
    };
    if args.value.is_none() && args.data.is_none() {
        return Err(Error::usage(
            "set-feature needs a value",
            "Say which: --value=NUM",
        ));
    }
    let mut sender = Sender::open(&args.address, args.care.audit.as_deref(), 0)?;
    let command = RawCommand {
        opcode: 0x09,
        nsid: args.namespace_id,
        cdw10: u32::from(args.feature_id) | u32::from(args.save) << 31,
        cdw11: dword11,
        cdw12: args.cdw12,
        cdw14: u32::from(args.uuid_index & 0x7f),
        ..RawCommand::default()
    };
    let needs = sender.needs(QueueKind::Admin, &command, &[])?;
    let needed = needs.length.unwrap_or(0);
    let length = args.data_len.map_or(needed, u64::from);
    if length < needed {
        return Err(too_small(length, needed));
    }
    let data = match (needs.direction, timestamp && args.data.is_none()) {
        (Direction::ToController, true) => value.to_le_bytes().to_vec(),
        (Direction::ToController, false) => Input {
            file: args.data.as_deref(),
            prefill: None,
        }
        .read(usize::try_from(length).unwrap_or(0))?,
        _ => Vec::new(),
    };
    let moved = if data.is_empty() {
        AdminData::None
    } else {
        AdminData::ToController(&data)
    };
    let ended = carry_out(sender, QueueKind::Admin, &command, moved, &args.care)
        .map_err(|error| error.context("set-feature"))?;
    if args.output.output_format == Format::Json {
        return print_json(&Set {
            command: "set-feature",
            feature: args.feature_id,
            name: name(args.feature_id),
            value,
            cdw12: args.cdw12,
            save: args.save,
            result: ended.result(),
        });
    }
    print_text(&format!(
        "set-feature:{:#04x} ({}), value:{value:#010x}, cdw12:{:#010x}, save:{:#x}\n{}",
        args.feature_id,
        name(args.feature_id),
        args.cdw12,
        u8::from(args.save),
        hex_dump(&data)
    ))
}
