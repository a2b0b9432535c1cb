//! `get-log`, `error-log`, `fw-log`, `effects-log` and `ns-descs`: through the gate, as any command.

use std::fmt::Write as _;

use nvme_vfio::AdminData;
use nvme_vfio_passthrough::{QueueKind, RawCommand};
use nvme_vfio_queues::identify::{DescriptorList, NamespaceIdentifier};
use nvme_vfio_queues::log::{EffectsLog, ErrorLogEntry, FirmwareSlotLog};
use nvme_vfio_queues::{AdminOpcode, NvmOpcode};
use serde::Serialize;
use serde_json::{Map, Value, json};
use zerocopy::FromBytes;

use crate::{
    args::{EffectsLogArgs, ErrorLogArgs, Format, FwLogArgs, GetLogArgs, NsDescsArgs, RawFormat},
    commands::passthru::{Sender, hex},
    decode::hex_dump,
    error::Error,
    output::{print_json, print_text, to_stdout},
};

/// The controller's own log, whatever the namespace.
const ALL_NAMESPACES: u32 = u32::MAX;
/// What every controller can transfer at once, in bytes.
const CHUNK: usize = 4096;
/// The most that is read of a log, in bytes.
const MOST: u32 = 1 << 30;

const ERROR_INFORMATION: u8 = 0x01;
const FIRMWARE_SLOT: u8 = 0x03;
const COMMAND_EFFECTS: u8 = 0x05;

/// A log page, or a part of one.
#[derive(Clone, Copy, Debug, Default)]
struct Log {
    lid: u8,
    nsid: u32,
    offset: u64,
    /// The offset counts entries: such a log is read at once.
    by_index: bool,
    lsp: u8,
    lsi: u16,
    retain: bool,
    csi: u8,
    uuid_index: u8,
}

impl Log {
    /// The command for `length` bytes, a multiple of four, from `skip` bytes behind the beginning on.
    fn command(&self, skip: u64, length: usize, retain: bool) -> RawCommand {
        let offset = self.offset.saturating_add(skip);
        let dwords = u32::try_from(length / 4).unwrap_or(1).saturating_sub(1);
        RawCommand {
            opcode: 0x02,
            nsid: self.nsid,
            cdw10: u32::from(self.lid)
                | u32::from(self.lsp & 0x7f) << 8
                | u32::from(retain) << 15
                | dwords << 16,
            cdw11: dwords >> 16 | u32::from(self.lsi) << 16,
            cdw12: offset as u32,
            cdw13: (offset >> 32) as u32,
            cdw14: u32::from(self.uuid_index & 0x7f)
                | u32::from(self.by_index) << 23
                | u32::from(self.csi) << 24,
            ..RawCommand::default()
        }
    }

    /// Reads `length` bytes, in pieces that every controller can transfer. The event is cleared by the last one, if it is to be.
    fn read(&self, sender: &mut Sender, length: usize) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; length];
        let piece = if self.by_index { length.max(4) } else { CHUNK };
        let pieces = length.div_ceil(piece);
        let mut skip = 0;
        for (index, bytes) in data.chunks_mut(piece).enumerate() {
            let retain = self.retain || index + 1 < pieces;
            let command = self.command(skip, bytes.len(), retain);
            skip += bytes.len() as u64;
            sender.send(QueueKind::Admin, &command, AdminData::FromController(bytes))?;
        }
        Ok(data)
    }
}

#[derive(Serialize)]
struct Read {
    log_id: u8,
    nsid: u32,
    data_len: usize,
    data: String,
}

pub(super) fn get_log(args: &GetLogArgs) -> Result<(), Error> {
    // An event names its log page in bits 23:16 of its result (base specification 2.0, 5.2).
    let lid = match (args.aen, args.log_id) {
        (Some(aen), _) => (aen >> 16) as u8,
        (None, Some(lid)) => lid,
        (None, None) => {
            return Err(Error::usage(
                "get-log needs a log page",
                "Say which: --log-id=NUM",
            ));
        }
    };
    let length = args.log_len.unwrap_or(0);
    if length == 0 || !length.is_multiple_of(4) || length > MOST {
        return Err(Error::usage(
            format!("a log page cannot be read for {length} bytes"),
            "Say how many, in multiples of 4: --log-len=512",
        ));
    }
    for (value, option) in [(args.lsp, "lsp"), (args.uuid_index, "uuid-index")] {
        if value > 0x7f {
            return Err(Error::usage(
                format!("--{option}={value} is more than 127"),
                format!("Use: --{option}=0 to 127"),
            ));
        }
    }
    let log = Log {
        lid,
        nsid: args.namespace_id.unwrap_or(ALL_NAMESPACES),
        offset: args.offset(),
        by_index: args.ot,
        lsp: args.lsp,
        lsi: args.lsi,
        retain: args.rae,
        csi: args.csi,
        uuid_index: args.uuid_index,
    };
    let mut sender = Sender::open(&args.address, None, 0)?;
    let data = log
        .read(&mut sender, usize::try_from(length).unwrap_or(0))
        .map_err(|error| error.context("get-log"))?;
    if args.raw_binary {
        return to_stdout(|out| out.write_all(&data));
    }
    match args.format() {
        Format::Json => print_json(&Read {
            log_id: lid,
            nsid: log.nsid,
            data_len: data.len(),
            data: hex(&data),
        }),
        Format::Normal => print_text(&format!(
            "Device:{} log-id:{lid} namespace-id:{:#x}\n{}",
            args.address,
            log.nsid,
            hex_dump(&data)
        )),
    }
}

pub(super) fn error_log(args: &ErrorLogArgs) -> Result<(), Error> {
    if args.log_entries == 0 {
        return Err(Error::usage(
            "no entries are to be shown",
            "Say how many: --log-entries=64",
        ));
    }
    let mut sender = Sender::open(&args.address, None, 0)?;
    // ELPE is counted from 0. What lies behind is not the log any more.
    let kept = u32::from(sender.session().controller.identify().elpe) + 1;
    let entries = usize::try_from(args.log_entries.min(kept)).unwrap_or(1);
    let log = Log {
        lid: ERROR_INFORMATION,
        nsid: ALL_NAMESPACES,
        ..Log::default()
    };
    let data = log
        .read(&mut sender, entries * size_of::<ErrorLogEntry>())
        .map_err(|error| error.context("error-log"))?;
    let errors: Vec<ErrorLogEntry> = data
        .chunks_exact(size_of::<ErrorLogEntry>())
        .filter_map(|bytes| ErrorLogEntry::read_from_bytes(bytes).ok())
        .collect();
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => {
            let errors: Vec<Value> = errors.iter().map(error_json).collect();
            print_json(&json!({ "errors": errors }))
        }
        RawFormat::Normal => {
            let mut text = format!(
                "Error Log Entries for device:{} entries:{entries}\n.................\n",
                args.address
            );
            for (index, error) in errors.iter().enumerate() {
                let _ = write!(
                    text,
                    " Entry[{index:2}]   \n.................\n{}.................\n",
                    error_text(error)
                );
            }
            print_text(&text)
        }
    }
}

fn error_json(error: &ErrorLogEntry) -> Value {
    json!({
        "error_count": error.error_count.get(),
        "sqid": error.sqid.get(),
        "cmdid": error.cmdid.get(),
        "status_field": error.status_field.get() >> 1,
        "phase_tag": error.status_field.get() & 1,
        "parm_error_location": error.parm_error_location.get(),
        "lba": error.lba.get(),
        "nsid": error.nsid.get(),
        "vs": error.vs,
        "trtype": error.trtype,
        "cs": error.cs.get(),
        "trtype_spec_info": error.trtype_spec_info.get(),
    })
}

fn error_text(error: &ErrorLogEntry) -> String {
    let mut text = String::new();
    for (key, value) in [
        ("error_count", error.error_count.get().to_string()),
        ("sqid", error.sqid.get().to_string()),
        ("cmdid", c_hex(u64::from(error.cmdid.get()))),
        (
            "status_field",
            format!("{:#x} ({})", error.status_field.get() >> 1, error.status()),
        ),
        ("phase_tag", c_hex(u64::from(error.status_field.get() & 1))),
        (
            "parm_err_loc",
            c_hex(u64::from(error.parm_error_location.get())),
        ),
        ("lba", c_hex(error.lba.get())),
        ("nsid", c_hex(u64::from(error.nsid.get()))),
        ("vs", error.vs.to_string()),
        ("trtype", error.trtype.to_string()),
        ("cs", c_hex(error.cs.get())),
        (
            "trtype_spec_info",
            c_hex(u64::from(error.trtype_spec_info.get())),
        ),
    ] {
        let _ = writeln!(text, "{key}\t: {value}");
    }
    text
}

pub(super) fn fw_log(args: &FwLogArgs) -> Result<(), Error> {
    let mut sender = Sender::open(&args.address, None, 0)?;
    let log = Log {
        lid: FIRMWARE_SLOT,
        nsid: ALL_NAMESPACES,
        ..Log::default()
    };
    let data = log
        .read(&mut sender, size_of::<FirmwareSlotLog>())
        .map_err(|error| error.context("fw-log"))?;
    let Ok(slots) = FirmwareSlotLog::read_from_bytes(&data) else {
        return Ok(()); // INVARIANT: as many bytes as it has were read
    };
    let revisions = (1_u8..).zip(&slots.frs).filter_map(|(slot, bytes)| {
        let number = u64::from_le_bytes(*bytes);
        slots.revision(slot).map(|_| (slot, number, dotted(bytes)))
    });
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => {
            let mut told = Map::new();
            told.insert("Active Firmware Slot (afi)".to_owned(), slots.afi.into());
            for (slot, number, revision) in revisions {
                told.insert(
                    format!("Firmware Rev Slot {slot}"),
                    format!("{number} ({revision})").into(),
                );
            }
            print_json(&json!({ args.address.as_str(): told }))
        }
        RawFormat::Normal => {
            let mut text = format!(
                "Firmware Log for device:{}\nafi  : {:#x}\n",
                args.address, slots.afi
            );
            for (slot, number, revision) in revisions {
                let _ = writeln!(text, "frs{slot} : {number:#018x} ({revision})");
            }
            print_text(&text)
        }
    }
}

/// The bits of one command, as nvme-cli abbreviates them.
const EFFECTS: [(u32, &str); 6] = [
    (0, "CSUPP"),
    (1, "LBCC"),
    (2, "NCC"),
    (3, "NIC"),
    (4, "CCC"),
    (19, "USS"),
];

fn explained(effects: u32) -> String {
    let mut text = String::new();
    for (bit, name) in EFFECTS {
        let sign = if effects >> bit & 1 != 0 { '+' } else { '-' };
        let _ = write!(text, "  {name}{sign}");
    }
    text.push_str(match effects >> 16 & 7 {
        0 => "  No command restriction",
        1 => "  No other command for same namespace",
        2 => "  No other command for any namespace",
        _ => "  Reserved CSE",
    });
    text
}

pub(super) fn effects_log(args: &EffectsLogArgs) -> Result<(), Error> {
    let mut sender = Sender::open(&args.address, None, 0)?;
    let log = Log {
        lid: COMMAND_EFFECTS,
        nsid: ALL_NAMESPACES,
        csi: args.csi,
        ..Log::default()
    };
    let data = log
        .read(&mut sender, size_of::<EffectsLog>())
        .map_err(|error| error.context("effects-log"))?;
    let Ok(effects) = EffectsLog::read_from_bytes(&data) else {
        return Ok(()); // INVARIANT: as many bytes as it has were read
    };
    let admin = |opcode: u8| AdminOpcode(opcode).name();
    let io = |opcode: u8| NvmOpcode(opcode).name();
    let supported = |table: &[zerocopy::little_endian::U32; 256]| -> Vec<(u8, u32)> {
        (0..=u8::MAX)
            .zip(table)
            .map(|(opcode, effects)| (opcode, effects.get()))
            .filter(|(_, effects)| effects & 1 != 0)
            .collect()
    };
    let (of_admin, of_io) = (supported(&effects.acs), supported(&effects.iocs));
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => {
            let told =
                |prefix: &str, rows: &[(u8, u32)], name: &dyn Fn(u8) -> Option<&'static str>| {
                    rows.iter()
                        .map(|(opcode, effects)| {
                            let name = name(*opcode).unwrap_or("Unknown");
                            (format!("{prefix}_{opcode} ({name})"), (*effects).into())
                        })
                        .collect::<Map<_, _>>()
                };
            print_json(&json!([{
                "command_set_identifier": args.csi,
                "admin_cmd_set": told("ACS", &of_admin, &admin),
                "io_cmd_set": told("IOCS", &of_io, &io),
            }]))
        }
        RawFormat::Normal => {
            let mut text = String::from("Admin Commands\n");
            let mut rows = |title: &str,
                            width: usize,
                            rows: &[(u8, u32)],
                            name: &dyn Fn(u8) -> Option<&'static str>| {
                for (opcode, effects) in rows {
                    let name = name(*opcode).unwrap_or("Unknown");
                    let _ = writeln!(
                        text,
                        "{title}{opcode:<width$}[{name:<32}] {effects:08x}{}",
                        if args.human_readable {
                            explained(*effects)
                        } else {
                            String::new()
                        }
                    );
                }
            };
            rows("ACS", 6, &of_admin, &admin);
            rows("IOCS", 5, &of_io, &io);
            print_text(&text)
        }
    }
}

pub(super) fn ns_descs(args: &NsDescsArgs) -> Result<(), Error> {
    let mut sender = Sender::open(&args.address, None, 0)?;
    let nsid = sender.session().nsid(args.namespace_id)?;
    let command = RawCommand {
        opcode: 0x06,
        nsid,
        cdw10: 0x03,
        ..RawCommand::default()
    };
    let mut data = vec![0; 4096];
    sender
        .send(
            QueueKind::Admin,
            &command,
            AdminData::FromController(&mut data),
        )
        .map_err(|error| error.context("ns-descs"))?;
    let Ok(list) = DescriptorList::read_from_bytes(&data) else {
        return Ok(()); // INVARIANT: as many bytes as it has were read
    };
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => {
            let mut place = 0;
            let mut told = Vec::new();
            for one in &list {
                let (nidt, length, name, value) = descriptor(&one);
                told.push(json!({
                    "loc": place,
                    "nidt": nidt,
                    "nidl": length,
                    "type": name,
                    name: value,
                }));
                place += length + 4;
            }
            print_json(&json!({ "ns-descs": told }))
        }
        RawFormat::Normal => {
            let mut text = format!("NVME Namespace Identification Descriptors NS {nsid}:\n");
            for one in &list {
                let (_, _, name, value) = descriptor(&one);
                let _ = writeln!(text, "{name:<8}: {value}");
            }
            print_text(&text)
        }
    }
}

/// A number in hexadecimal as C's `%#x` has it: 0 is `0`.
fn c_hex(number: u64) -> String {
    match number {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}

/// A text with a point for every byte that is a blank or cannot be printed.
fn dotted(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| match byte {
            b'!'..=b'~' => char::from(*byte),
            _ => '.',
        })
        .collect()
}

/// Type, length, nvme-cli's name and the value in words.
fn descriptor(one: &NamespaceIdentifier<'_>) -> (u8, usize, &'static str, String) {
    match one {
        NamespaceIdentifier::Eui64(bytes) => (1, bytes.len(), "eui64", hex(bytes)),
        NamespaceIdentifier::Nguid(bytes) => (2, bytes.len(), "nguid", hex(bytes)),
        NamespaceIdentifier::Uuid(bytes) => {
            let text = hex(bytes);
            let parts: Vec<&str> = [0..8, 8..12, 12..16, 16..20, 20..32]
                .into_iter()
                .filter_map(|range| text.get(range))
                .collect();
            (3, bytes.len(), "uuid", parts.join("-"))
        }
        NamespaceIdentifier::CommandSet(csi) => (4, 1, "csi", c_hex((*csi).into())),
        NamespaceIdentifier::Other { nidt, nid } => (*nidt, nid.len(), "unknown", hex(nid)),
    }
}
