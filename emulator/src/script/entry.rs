//! One `[[fault]]` table.

use std::ops::RangeInclusive;

use nvme_vfio_queues::Status;

use super::ScriptError;
use crate::fault::{
    CommandFault, ControllerFault, Fault, Matcher, MediaFault, MediaOperation, MediaUntil, OnAbort,
    QueueKind, Until, When,
};
use crate::lines::{Item, Table, Value};

/// Names of opcodes, and the kind of queue that they are of.
const OPCODES: [(&str, QueueKind, u8); 29] = [
    ("flush", QueueKind::Io, 0x00),
    ("write", QueueKind::Io, 0x01),
    ("read", QueueKind::Io, 0x02),
    ("write-uncorrectable", QueueKind::Io, 0x04),
    ("compare", QueueKind::Io, 0x05),
    ("write-zeroes", QueueKind::Io, 0x08),
    ("dataset-management", QueueKind::Io, 0x09),
    ("verify", QueueKind::Io, 0x0c),
    ("copy", QueueKind::Io, 0x19),
    ("delete-sq", QueueKind::Admin, 0x00),
    ("create-sq", QueueKind::Admin, 0x01),
    ("get-log-page", QueueKind::Admin, 0x02),
    ("delete-cq", QueueKind::Admin, 0x04),
    ("create-cq", QueueKind::Admin, 0x05),
    ("identify", QueueKind::Admin, 0x06),
    ("abort", QueueKind::Admin, 0x08),
    ("set-features", QueueKind::Admin, 0x09),
    ("get-features", QueueKind::Admin, 0x0a),
    ("async-event-request", QueueKind::Admin, 0x0c),
    ("namespace-management", QueueKind::Admin, 0x0d),
    ("firmware-commit", QueueKind::Admin, 0x10),
    ("firmware-download", QueueKind::Admin, 0x11),
    ("device-self-test", QueueKind::Admin, 0x14),
    ("namespace-attachment", QueueKind::Admin, 0x15),
    ("doorbell-buffer-config", QueueKind::Admin, 0x7c),
    ("format", QueueKind::Admin, 0x80),
    ("security-send", QueueKind::Admin, 0x81),
    ("security-receive", QueueKind::Admin, 0x82),
    ("sanitize", QueueKind::Admin, 0x84),
];

/// What can be done.
const ACTIONS: [&str; 25] = [
    "hang",
    "delay",
    "lose-completion",
    "late-completion",
    "reorder",
    "duplicate-completion",
    "stale-phase",
    "no-effect",
    "wrong-cid",
    "wrong-sqid",
    "wrong-sq-head",
    "wrong-result",
    "flip-status",
    "status",
    "junk-data",
    "media-error",
    "gone",
    "all-ones",
    "never-ready",
    "never-disabled",
    "shutdown-never-completes",
    "queue-grant",
    "cap",
    "lost-interrupts",
    "fatal",
];

/// The longest wait, in steps or commands.
const LONGEST: u64 = 1 << 40;
/// The longest pattern of junk, in bytes.
const PATTERN_MAX: usize = 4096;

/// A table of which keys are taken out one by one; what is left is unknown.
struct Keys<'a> {
    table: &'a Table,
    asked: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn item(&mut self, key: &'static str) -> Option<&'a Item> {
        self.asked.push(key);
        self.table.entries.iter().find(|item| item.name == key)
    }

    /// A number in this range.
    fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ScriptError> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        number(item.line, key, &item.value, range).map(Some)
    }

    /// A number that has to be there.
    fn needed(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ScriptError> {
        self.number(key, range)?
            .ok_or_else(|| self.wrong(format!("'{key}' is missing")))
    }

    /// One of these names; the first unless given.
    fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ScriptError> {
        let Some(item) = self.item(key) else {
            return Ok(choices.first().map(|(_, usual)| *usual));
        };
        let found = choices
            .iter()
            .find(|(name, _)| item.value.scalar() == Some(name));
        found.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            at(item.line, format!("'{key}' is one of {}", names.join(", ")))
        })
    }

    /// An error about the table as a whole.
    fn wrong(&self, message: String) -> ScriptError {
        at(self.table.line, message)
    }

    /// Refuses the keys that nobody asked for.
    fn end(&self, action: &str) -> Result<(), ScriptError> {
        let unknown = |item: &&Item| !self.asked.contains(&item.name.as_str());
        match self.table.entries.iter().find(unknown) {
            None => Ok(()),
            Some(item) => Err(at(
                item.line,
                format!(
                    "unknown key '{}' of {action}; its keys are {}",
                    item.name,
                    self.asked.join(", ")
                ),
            )),
        }
    }
}

fn at(line: usize, message: String) -> ScriptError {
    ScriptError { line, message }
}

fn number(
    line: usize,
    key: &str,
    value: &Value,
    range: RangeInclusive<u64>,
) -> Result<u64, ScriptError> {
    let number = value.scalar().and_then(|text| text.parse().ok());
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            at(
                line,
                format!(
                    "'{key}' is a number from {} to {}",
                    range.start(),
                    range.end()
                ),
            )
        })
}

/// Reads one fault.
pub(super) fn read(table: &Table) -> Result<(When, Fault), ScriptError> {
    let mut keys = Keys {
        table,
        asked: Vec::new(),
    };
    let names = || format!("'do' is one of {}", ACTIONS.join(", "));
    let action = keys.item("do").ok_or_else(|| at(table.line, names()))?;
    let action = action
        .value
        .scalar()
        .filter(|name| ACTIONS.contains(name))
        .ok_or_else(|| at(action.line, names()))?;
    let when = when(&mut keys)?;
    let fault = match action {
        "media-error" => media(&mut keys)?,
        "fatal" => Fault::of_controller(ControllerFault::Fatal),
        _ => match controller(action, &mut keys)? {
            Some(fault) => fault,
            None => {
                let fault = command(action, &mut keys)?;
                Fault::on(matcher(&mut keys)?, fault)
            }
        },
    };
    keys.end(action)?;
    Ok((when, fault))
}

fn when(keys: &mut Keys<'_>) -> Result<When, ScriptError> {
    let step = keys.number("at_step", 0..=LONGEST)?;
    let commands = keys.number("after_commands", 0..=LONGEST)?;
    match (step, commands) {
        (None, None) => Ok(When::Now),
        (Some(step), None) => Ok(When::Step(step)),
        (None, Some(commands)) => Ok(When::Commands(commands)),
        (Some(_), Some(_)) => Err(keys.wrong("give either 'at_step' or 'after_commands'".into())),
    }
}

/// One block, or the first and the last.
fn lbas(keys: &mut Keys<'_>) -> Result<Option<RangeInclusive<u64>>, ScriptError> {
    const KEY: &str = "lba";
    let Some(item) = keys.item(KEY) else {
        return Ok(None);
    };
    let one = |line, value| number(line, KEY, value, 0..=u64::MAX);
    match &item.value {
        Value::List(list) => {
            let ends = match list.as_slice() {
                [(first_line, first), (last_line, last)] => {
                    one(*first_line, first)?..=one(*last_line, last)?
                }
                _ => return Err(at(item.line, "'lba' is a block or [first, last]".into())),
            };
            if ends.is_empty() {
                return Err(at(item.line, "the last block is before the first".into()));
            }
            Ok(Some(ends))
        }
        value => one(item.line, value).map(|lba| Some(lba..=lba)),
    }
}

fn nsid(keys: &mut Keys<'_>) -> Result<Option<u32>, ScriptError> {
    let nsid = keys.number("nsid", 0..=u64::from(u32::MAX))?;
    Ok(nsid.map(|nsid| nsid as u32))
}

fn matcher(keys: &mut Keys<'_>) -> Result<Matcher, ScriptError> {
    let mut matcher = Matcher::default();
    if let Some(item) = keys.item("queue") {
        match item.value.scalar() {
            Some("admin") => matcher.queue = Some(QueueKind::Admin),
            Some("io") => matcher.queue = Some(QueueKind::Io),
            _ => {
                let sqid = number(item.line, "queue", &item.value, 0..=65_535);
                matcher.sqid = Some(sqid.map_err(|_| {
                    let message = "'queue' is \"admin\", \"io\" or a number from 0 to 65535";
                    at(item.line, message.into())
                })? as u16);
            }
        }
    }
    if let Some(item) = keys.item("opcode") {
        let named = OPCODES
            .iter()
            .find(|(name, ..)| item.value.scalar() == Some(name));
        if let Some((_, kind, opcode)) = named {
            let other = matcher.queue.is_some_and(|queue| queue != *kind)
                || matcher
                    .sqid
                    .is_some_and(|sqid| (sqid == 0) != (*kind == QueueKind::Admin));
            if other {
                let message = "that command is not of that queue";
                return Err(at(item.line, message.into()));
            }
            matcher.queue = Some(*kind);
            matcher.opcode = Some(*opcode);
        } else {
            let opcode = number(item.line, "opcode", &item.value, 0..=255);
            let names = || OPCODES.map(|(name, ..)| name).join(", ");
            matcher.opcode = Some(opcode.map_err(|_| {
                at(
                    item.line,
                    format!("'opcode' is a number from 0 to 255 or one of {}", names()),
                )
            })? as u8);
        }
    }
    matcher.nsid = nsid(keys)?;
    matcher.lbas = lbas(keys)?;
    let dword10 = keys.number("dword10", 0..=u64::from(u32::MAX))?;
    matcher.dword10 = dword10.map(|value| value as u32);
    matcher.skip = keys.number("nth", 1..=LONGEST)?.unwrap_or(1) - 1;
    matcher.count = keys.number("times", 1..=LONGEST)?;
    Ok(matcher)
}

fn command(action: &str, keys: &mut Keys<'_>) -> Result<CommandFault, ScriptError> {
    const WORD: RangeInclusive<u64> = 0..=0xffff;
    Ok(match action {
        "hang" => {
            let choices = [
                ("not-aborted", OnAbort::NotAborted),
                ("aborted", OnAbort::Aborted),
                ("data-later", OnAbort::AbortedDataLater),
            ];
            CommandFault::Hang(keys.choice("on_abort", &choices)?.unwrap_or_default())
        }
        "delay" => CommandFault::Delay(keys.needed("steps", 0..=LONGEST)?),
        "lose-completion" => CommandFault::LostCompletion,
        "late-completion" => CommandFault::LateCompletion(keys.needed("steps", 0..=LONGEST)?),
        "reorder" => CommandFault::Reorder(keys.needed("behind", 1..=65_535)? as u32),
        "duplicate-completion" => CommandFault::DuplicateCompletion,
        "stale-phase" => CommandFault::StalePhase,
        "no-effect" => CommandFault::NoEffect,
        "wrong-cid" => CommandFault::WrongCid(keys.needed("value", WORD)? as u16),
        "wrong-sqid" => CommandFault::WrongSqid(keys.needed("value", WORD)? as u16),
        "wrong-sq-head" => CommandFault::WrongSqHead(keys.needed("value", WORD)? as u16),
        "wrong-result" => {
            CommandFault::WrongResult(keys.needed("value", 0..=u64::from(u32::MAX))? as u32)
        }
        "flip-status" => CommandFault::FlipStatus(keys.needed("bits", 1..=0x7fff)? as u16),
        "status" => {
            let (sct, sc) = (keys.needed("sct", 0..=7)?, keys.needed("sc", 0..=255)?);
            let status = Status::new(sct as u8, sc as u8);
            let dnr = keys.choice("dnr", &[("off", false), ("on", true)])?;
            CommandFault::Status(if dnr == Some(true) {
                status.with_dnr()
            } else {
                status
            })
        }
        _ => junk(keys)?,
    })
}

fn junk(keys: &mut Keys<'_>) -> Result<CommandFault, ScriptError> {
    let Some(item) = keys.item("data") else {
        return Err(keys.wrong("'data' is missing".into()));
    };
    let wrong = || {
        let message = format!(
            "'data' is \"ones\", \"zeroes\", \"random\" or a list of 1 to {PATTERN_MAX} bytes"
        );
        at(item.line, message)
    };
    Ok(match &item.value {
        Value::Scalar(text) => match text.as_str() {
            "ones" => CommandFault::JunkData(vec![0xff]),
            "zeroes" => CommandFault::JunkData(vec![0]),
            "random" => CommandFault::RandomData(keys.number("seed", 0..=u64::MAX)?.unwrap_or(1)),
            _ => return Err(wrong()),
        },
        Value::List(list) if (1..=PATTERN_MAX).contains(&list.len()) => {
            let bytes: Result<Vec<u8>, ScriptError> = list
                .iter()
                .map(|(line, value)| number(*line, "data", value, 0..=255).map(|byte| byte as u8))
                .collect();
            CommandFault::JunkData(bytes?)
        }
        _ => return Err(wrong()),
    })
}

fn media(keys: &mut Keys<'_>) -> Result<Fault, ScriptError> {
    let operation = keys.choice(
        "fails",
        &[
            ("read", MediaOperation::Read),
            ("write", MediaOperation::Write),
            ("verify", MediaOperation::Verify),
        ],
    )?;
    let until = keys.choice(
        "until",
        &[
            ("rewritten", MediaUntil::Rewritten),
            ("cleared", MediaUntil::Cleared),
        ],
    )?;
    let nsid = nsid(keys)?;
    let lbas = lbas(keys)?.ok_or_else(|| keys.wrong("'lba' is missing".into()))?;
    Ok(Fault::Media(MediaFault {
        nsid,
        lbas,
        operation: operation.unwrap_or(MediaOperation::Read),
        until: until.unwrap_or_default(),
    }))
}

fn controller(action: &str, keys: &mut Keys<'_>) -> Result<Option<Fault>, ScriptError> {
    let fault = match action {
        "gone" => ControllerFault::Gone,
        "all-ones" => ControllerFault::AllOnes,
        "never-ready" => ControllerFault::NeverReady,
        "lost-interrupts" => ControllerFault::LostInterrupts,
        "never-disabled" => ControllerFault::NeverDisabled,
        "shutdown-never-completes" => ControllerFault::ShutdownNeverCompletes,
        "queue-grant" => ControllerFault::QueueGrant(keys.needed("pairs", 0..=65_535)? as u16),
        "cap" => ControllerFault::Cap(keys.needed("value", 0..=u64::MAX)?),
        _ => return Ok(None),
    };
    let choices = [
        ("function-reset", Until::FunctionReset),
        ("cleared", Until::Cleared),
    ];
    let until = keys.choice("until", &choices)?.unwrap_or_default();
    Ok(Some(Fault::Controller(fault, until)))
}
