//! `format` and `reset`.

use nvme_vfio::AdminData;
use nvme_vfio_passthrough::{QueueKind, RawCommand};
use nvme_vfio_queues::IdentifyNamespace;
use serde::Serialize;

use crate::{
    args::{Format, FormatArgs, ResetArgs},
    commands::passthru::{Sender, carry_out},
    error::{Error, Kind},
    output::print_json,
    session::Session,
};

const ALL_NAMESPACES: u32 = u32::MAX;

/// What was done, for `-o json`.
#[derive(Serialize)]
struct Formatted {
    command: &'static str,
    nsid: u32,
    lbaf: u8,
}

pub(super) fn format(args: &FormatArgs) -> Result<(), Error> {
    for (value, most, option) in [
        (args.ses, 2, "ses"),
        (args.pi, 3, "pi"),
        (args.pil, 1, "pil"),
        (args.ms, 1, "ms"),
        (args.lbaf.unwrap_or(0), 63, "lbaf"),
    ] {
        if value > most {
            return Err(Error::usage(
                format!("--{option}={value} is more than {most}"),
                format!("Use: --{option}=0 to {most}"),
            ));
        }
    }
    let sender = Sender::open(&args.address, args.care.audit.as_deref(), args.timeout)?;
    let session = sender.session();
    let controller = session.controller.clone();
    let nsid = match args.namespace_id {
        Some(nsid) => nsid,
        None => session.nsid(None)?,
    };
    let lbaf = match (args.lbaf, args.block_size) {
        (Some(lbaf), _) => lbaf,
        (None, block_size) => choose(&looked(session, nsid)?, block_size)?,
    };
    let command = RawCommand {
        opcode: 0x80,
        nsid,
        cdw10: u32::from(lbaf & 0xf)
            | u32::from(args.ms) << 4
            | u32::from(args.pi) << 5
            | u32::from(args.pil) << 8
            | u32::from(args.ses) << 9
            | u32::from(lbaf >> 4) << 12,
        ..RawCommand::default()
    };
    carry_out(
        sender,
        QueueKind::Admin,
        &command,
        AdminData::None,
        &args.care,
    )
    .map_err(|error| error.context("format"))?;
    if args.reset {
        controller.recover()?;
    }
    if args.output.output_format == Format::Json {
        return print_json(&Formatted {
            command: "format",
            nsid,
            lbaf,
        });
    }
    eprintln!("Success formatting namespace:{nsid:x}");
    Ok(())
}

/// The namespace whose formats are chosen from: any, where all are formatted.
fn looked(session: &Session, nsid: u32) -> Result<IdentifyNamespace, Error> {
    let nsid = match nsid {
        ALL_NAMESPACES => *session.controller.namespaces()?.first().ok_or_else(|| {
            Error::new(
                Kind::NoNamespace,
                format!("{} has no active namespace", session.address),
            )
        })?,
        nsid => nsid,
    };
    // A controller answers for a namespace that is not active with zeros, and for one that cannot be with an error.
    match session.controller.identify_namespace(nsid) {
        Ok(identify) if identify.nsze.get() > 0 => Ok(identify),
        Ok(_) | Err(nvme_vfio::Error::Status { .. }) => Err(Error::new(
            Kind::NoNamespace,
            format!("{}: namespace {nsid} is not active", session.address),
        )
        .remedy(format!("Run: nvme-vfio list-ns {}", session.address))),
        Err(error) => Err(error.into()),
    }
}

/// The format with blocks of `block_size` bytes and without metadata, or the present one.
fn choose(identify: &IdentifyNamespace, block_size: Option<u64>) -> Result<u8, Error> {
    let Some(bytes) = block_size else {
        return Ok(u8::try_from(identify.format_index()).unwrap_or(0));
    };
    let sizes: Vec<_> = identify
        .lba_formats()
        .iter()
        .map(|format| (format.block_size().map(u64::from), format.ms.get()))
        .collect();
    match sizes.iter().position(|format| *format == (Some(bytes), 0)) {
        Some(index) => Ok(u8::try_from(index).unwrap_or(0)),
        None => {
            let list: Vec<_> = sizes
                .iter()
                .filter_map(|(size, metadata)| size.filter(|_| *metadata == 0))
                .map(|size| size.to_string())
                .collect();
            Err(Error::usage(
                format!("the namespace has no format with blocks of {bytes} bytes and no metadata"),
                format!("Use one of: {}", list.join(", ")),
            ))
        }
    }
}

#[derive(Serialize)]
struct Done {
    command: &'static str,
}

pub(super) fn reset(args: &ResetArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    session.controller.recover()?;
    if args.output.output_format == Format::Json {
        return print_json(&Done { command: "reset" });
    }
    eprintln!("reset: Success");
    Ok(())
}
