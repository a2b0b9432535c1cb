//! `admin-passthru` and `io-passthru`.

mod ask;
mod errors;
mod input;
mod sender;
mod show;

use nvme_vfio::AdminData;
use nvme_vfio_passthrough::{Direction, Ended, Needs, QueueKind, RawCommand};

use crate::{
    args::{CareArgs, Format, PassthruArgs},
    error::{Error, Kind},
};
use show::{Report, show};

use ask::ask;
pub(super) use input::Input;
pub(super) use sender::Sender;
pub(super) use show::hex;

/// The most data that is taken for one command, in bytes. No controller takes so much at once.
const MOST_DATA: u64 = 1 << 30;

pub(super) fn admin(args: &PassthruArgs) -> Result<(), Error> {
    run(QueueKind::Admin, "admin-passthru", args)
}

pub(super) fn io(args: &PassthruArgs) -> Result<(), Error> {
    run(QueueKind::Io, "io-passthru", args)
}

fn run(kind: QueueKind, called: &'static str, args: &PassthruArgs) -> Result<(), Error> {
    let mut command = command(called, args)?;
    // What is only shown is not recorded.
    let audit = args.care.audit.as_deref().filter(|_| !args.dry_run);
    let mut sender = Sender::open(&args.address, audit, args.timeout)?;
    command.nsid = match (args.namespace_id, kind) {
        (Some(nsid), _) => nsid,
        (None, QueueKind::Admin) => 0,
        (None, QueueKind::Io) => sender.session().nsid(None)?,
    };

    // A range list has to be there before the command can be understood.
    let list_bytes = sender.list_bytes(kind, &command);
    let mut data = Vec::new();
    if list_bytes > 0 {
        check_direction(args, Direction::ToController)?;
        data = read_input(args, bytes(args, list_bytes as u64)?)?;
    }
    let list = data.get(..list_bytes).unwrap_or_default();
    let needs = sender.needs(kind, &command, list)?;
    check_direction(args, needs.direction)?;
    let length = match needs.length {
        Some(0) if args.data_len.unwrap_or(0) == 0 => 0,
        Some(0) => {
            return Err(Error::usage(
                format!("{} moves no data", needs.name),
                "Leave --data-len out",
            ));
        }
        Some(length) => bytes(args, length)?,
        None => bytes(args, 0)?,
    };
    if needs.direction == Direction::ToController && list_bytes == 0 {
        data = read_input(args, length)?;
    } else if list_bytes == 0 {
        data = vec![args.prefill.unwrap_or(0); to_length(length)];
    }

    let format = args.format();
    if args.dry_run || args.show_command && format == Format::Normal {
        show(&command, data.len(), args.timeout, format)?;
    }
    if args.dry_run {
        return Ok(());
    }
    let moved = match needs.direction {
        Direction::FromController => AdminData::FromController(&mut data),
        Direction::ToController => AdminData::ToController(&data),
        Direction::None | Direction::Both => AdminData::None,
    };
    let ended = send(sender, kind, &command, &needs, moved, args.care.force)
        .map_err(|error| error.context(called))?;
    Report {
        called,
        kind,
        command: &command,
        needs: &needs,
        ended,
        data: match needs.direction {
            Direction::FromController => &data,
            _ => &[],
        },
    }
    .print(args)
}

/// Asks, where that is needed, sends a command, and waits until the audit has it.
fn send(
    mut sender: Sender,
    kind: QueueKind,
    command: &RawCommand,
    needs: &Needs,
    data: AdminData<'_>,
    force: bool,
) -> Result<Ended, Error> {
    if !force {
        ask(sender.session(), command.nsid, needs)?;
    }
    let ended = sender.send(kind, command, data);
    // Also of a command that failed.
    sender.finish()?;
    ended
}

/// Carries out a command that another command of this program is made of.
pub(super) fn carry_out(
    mut sender: Sender,
    kind: QueueKind,
    command: &RawCommand,
    data: AdminData<'_>,
    care: &CareArgs,
) -> Result<Ended, Error> {
    let list = match &data {
        AdminData::ToController(bytes) => bytes
            .get(..sender.list_bytes(kind, command))
            .unwrap_or_default(),
        _ => &[],
    };
    let needs = sender.needs(kind, command, list)?;
    send(sender, kind, command, &needs, data, care.force)
}

/// The entry, as far as the arguments tell it.
fn command(called: &str, args: &PassthruArgs) -> Result<RawCommand, Error> {
    let opcode = match args.opcodes().as_slice() {
        [opcode] => u8::try_from(*opcode).map_err(|_| {
            Error::usage(
                format!("{opcode:#x} is no opcode: eight bits hold one"),
                "Say one: --opcode=NUM",
            )
        })?,
        [] => {
            return Err(Error::usage(
                format!("{called} needs an opcode"),
                "Say which: --opcode=NUM",
            ));
        }
        several => {
            return Err(Error::usage(
                format!("{} opcodes were given", several.len()),
                "Say one: --opcode=NUM",
            ));
        }
    };
    if args.rsvd != 0 {
        return Err(Error::usage(
            "the reserved field of a command is its identifier, which the driver chooses",
            "Leave --rsvd out",
        ));
    }
    if let (Some(file), 0) = (&args.metadata, args.metadata_len) {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "metadata is not transferred by this version, so {} is not used",
                file.display()
            ),
        )
        .remedy("Leave --metadata out"));
    }
    Ok(RawCommand {
        opcode,
        flags: args.flags,
        nsid: 0,
        cdw2: args.cdw2,
        cdw3: args.cdw3,
        metadata_length: args.metadata_len,
        cdw10: args.cdw10,
        cdw11: args.cdw11,
        cdw12: args.cdw12,
        cdw13: args.cdw13,
        cdw14: args.cdw14,
        cdw15: args.cdw15,
    })
}

/// `--read` and `--write` may say what the command says, and nothing else.
fn check_direction(args: &PassthruArgs, direction: Direction) -> Result<(), Error> {
    let (option, right) = match (args.read, args.write) {
        (true, _) => ("--read", direction == Direction::FromController),
        (_, true) => ("--write", direction == Direction::ToController),
        _ => return Ok(()),
    };
    // nvme-cli's users give a direction also where there is no data.
    if right || direction == Direction::None && args.data_len.unwrap_or(0) == 0 {
        return Ok(());
    }
    Err(Error::usage(
        format!("the data of this command does not go the way that {option} says"),
        format!("Leave {option} out: the direction follows from the command"),
    ))
}

/// The length of the buffer for a command that moves `needed` bytes.
fn bytes(args: &PassthruArgs, needed: u64) -> Result<u64, Error> {
    let given = args.data_len.map_or(needed, u64::from);
    if given < needed {
        return Err(Error::new(
            Kind::BufferTooSmall,
            format!("--data-len={given} is too small: the command moves {needed} bytes"),
        )
        .remedy(format!("Use: --data-len={needed}")));
    }
    if given > MOST_DATA {
        return Err(Error::usage(
            format!("{given} bytes are more than one command moves"),
            "Use a smaller --data-len, or a command that moves less",
        ));
    }
    Ok(given)
}

fn read_input(args: &PassthruArgs, length: u64) -> Result<Vec<u8>, Error> {
    Input {
        file: args.input_file.as_deref(),
        prefill: args.prefill,
    }
    .read(to_length(length))
}

fn to_length(bytes: u64) -> usize {
    // INVARIANT: `bytes` has bounded it.
    usize::try_from(bytes).unwrap_or(0)
}
