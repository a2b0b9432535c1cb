//! What is shown of a command before and after it is sent.

use std::fmt::Write as _;
use std::fs;

use nvme_vfio_passthrough::{Ended, Needs, QueueKind, RawCommand};
use serde::Serialize;

use crate::{
    args::{Format, PassthruArgs},
    decode::hex_dump,
    error::Error,
    output::{print_json, print_text, to_stdout},
};

/// The entry under nvme-cli's names.
#[derive(Serialize)]
struct Shown {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    data_len: usize,
    metadata_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
}

impl Shown {
    fn new(command: &RawCommand, data: usize, timeout_ms: u32) -> Shown {
        Shown {
            opcode: command.opcode,
            flags: command.flags,
            rsvd1: 0,
            nsid: command.nsid,
            cdw2: command.cdw2,
            cdw3: command.cdw3,
            data_len: data,
            metadata_len: command.metadata_length,
            cdw10: command.cdw10,
            cdw11: command.cdw11,
            cdw12: command.cdw12,
            cdw13: command.cdw13,
            cdw14: command.cdw14,
            cdw15: command.cdw15,
            timeout_ms,
        }
    }
}

/// Shows a command. It has no addresses: those are the driver's.
pub(super) fn show(
    command: &RawCommand,
    data: usize,
    timeout: u32,
    format: Format,
) -> Result<(), Error> {
    let shown = Shown::new(command, data, timeout);
    if format == Format::Json {
        return print_json(&shown);
    }
    let mut text = format!(
        "opcode       : {:02x}\nflags        : {:02x}\nrsvd1        : {:04x}\n",
        shown.opcode, shown.flags, shown.rsvd1
    );
    for (key, value) in [
        ("nsid", shown.nsid),
        ("cdw2", shown.cdw2),
        ("cdw3", shown.cdw3),
        (
            "data_len",
            u32::try_from(shown.data_len).unwrap_or(u32::MAX),
        ),
        ("metadata_len", shown.metadata_len),
        ("cdw10", shown.cdw10),
        ("cdw11", shown.cdw11),
        ("cdw12", shown.cdw12),
        ("cdw13", shown.cdw13),
        ("cdw14", shown.cdw14),
        ("cdw15", shown.cdw15),
        ("timeout_ms", shown.timeout_ms),
    ] {
        let _ = writeln!(text, "{key:<13}: {value:08x}");
    }
    print_text(&text)
}

/// A command that has succeeded.
pub(super) struct Report<'a> {
    pub(super) called: &'static str,
    pub(super) kind: QueueKind,
    pub(super) command: &'a RawCommand,
    pub(super) needs: &'a Needs,
    pub(super) ended: Ended,
    /// What the controller sent.
    pub(super) data: &'a [u8],
}

#[derive(Serialize)]
struct Told<'a> {
    command: &'static str,
    name: &'static str,
    result: u32,
    latency_us: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a std::path::Path>,
    data_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Report<'_> {
    pub(super) fn print(&self, args: &PassthruArgs) -> Result<(), Error> {
        let queue = match self.kind {
            QueueKind::Admin => "Admin",
            QueueKind::Io => "IO",
        };
        if args.latency {
            eprintln!(
                "{queue} Command {} latency: {} us",
                self.needs.name,
                self.ended.latency.as_micros()
            );
        }
        let file = args.input_file.as_deref().filter(|_| !self.data.is_empty());
        if let Some(path) = file {
            fs::write(path, self.data)
                .map_err(|error| Error::file(format!("cannot write {}", path.display()), &error))?;
        }
        if args.format() == Format::Json {
            let here = file.is_none() && !self.data.is_empty();
            return print_json(&Told {
                command: self.called,
                name: self.needs.name,
                result: self.ended.result(),
                latency_us: self.ended.latency.as_micros(),
                entry: args
                    .show_command
                    .then(|| Shown::new(self.command, self.data.len(), args.timeout)),
                file,
                data_len: self.data.len(),
                data: here.then(|| hex(self.data)),
            });
        }
        eprintln!(
            "{queue} Command {} is Success and result: 0x{:08x}",
            self.needs.name,
            self.ended.result()
        );
        if file.is_some() || self.data.is_empty() {
            Ok(())
        } else if args.raw_binary {
            to_stdout(|out| out.write_all(self.data))
        } else {
            print_text(&hex_dump(self.data))
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
