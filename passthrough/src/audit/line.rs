//! The JSON of a line: one object, in ASCII whatever its strings hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};

use super::event::{Event, Happened};
use super::record::{Record, What};
use super::words;
use crate::client::Identity;
use crate::command::{Extent, QueueKind};
use crate::verdict::Verdict;

/// What every line begins with.
#[derive(Serialize)]
struct Line<'a, T> {
    seq: u64,
    time: String,
    #[serde(flatten)]
    body: &'a T,
}

/// Adds a line to `out`.
pub(super) fn write(
    out: &mut Vec<u8>,
    seq: u64,
    time: SystemTime,
    body: &impl Serialize,
) -> io::Result<()> {
    let line = Line {
        seq,
        time: timestamp(time),
        body,
    };
    write_json(out, &line)
}

/// Adds `value` to `out` as one line of JSON, in printable ASCII whatever its strings hold: it ends where it seems to end, and does nothing to a terminal.
///
/// # Errors
/// A value that JSON has no form for, as a map whose keys are not strings. `out` then holds a part of it.
pub fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, Ascii(CompactFormatter));
    value.serialize(&mut serializer)?;
    out.push(b'\n');
    Ok(())
}

/// In UTC, as RFC 3339 has it, to the microsecond. A clock that is set beyond the year 9999 has no such form.
fn timestamp(time: SystemTime) -> String {
    let mut text = String::new();
    if write!(text, "{}", humantime::format_rfc3339_micros(time)).is_err() {
        text.clear();
    }
    text
}

/// Writes every character outside of printable ASCII as an escape. A line then moves no cursor and turns no text round in whatever shows it.
struct Ascii(CompactFormatter);

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !matches!(c, ' '..='~')) {
            let (plain, other) = rest.split_at(at);
            self.0.write_string_fragment(writer, plain)?;
            let mut characters = other.chars();
            if let Some(character) = characters.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = characters.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

/// Who.
#[derive(Serialize)]
struct Who {
    uid: u32,
    gid: u32,
    pid: i32,
    start_time: u64,
}

impl From<&Identity> for Who {
    fn from(identity: &Identity) -> Who {
        Who {
            uid: identity.uid,
            gid: identity.gid,
            pid: identity.pid,
            start_time: identity.start_time,
        }
    }
}

/// An identity's own fields.
pub(super) fn identity<S: Serializer>(
    identity: &Identity,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    Who::from(identity).serialize(serializer)
}

/// The same, or no fields.
fn known_identity<S: Serializer>(
    identity: &Option<Identity>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    identity.as_ref().map(Who::from).serialize(serializer)
}

#[derive(Serialize)]
struct WrittenStatus {
    sct: u8,
    sc: u8,
    dnr: bool,
    name: String,
}

#[derive(Serialize)]
struct WrittenExtent {
    nsid: u32,
    first: u64,
    blocks: u64,
    access: &'static str,
}

impl From<&Extent> for WrittenExtent {
    fn from(extent: &Extent) -> Self {
        WrittenExtent {
            nsid: extent.nsid,
            first: extent.first,
            blocks: extent.blocks,
            access: words::access(extent.access),
        }
    }
}

/// A command.
#[derive(Serialize)]
pub(super) struct Command<'a> {
    kind: &'static str,
    client: &'a str,
    ring: &'static str,
    number: u64,
    #[serde(flatten, serialize_with = "identity")]
    identity: Identity,
    queue: &'static str,
    opcode: u8,
    command: &'a str,
    words: String,
    nsid: u32,
    extents: Vec<WrittenExtent>,
    #[serde(flatten)]
    detail: Detail,
    verdict: &'static str,
    reason: Option<&'static str>,
    reason_text: Option<&'static str>,
    status: Option<WrittenStatus>,
    latency_ns: Option<u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Detail {
    Decoded {
        class: &'static str,
        direction: &'static str,
        scope: &'static str,
        persistence: &'static str,
        ranges: u32,
        blocks: u64,
        bytes: u64,
        flags: Vec<&'static str>,
        selector: u8,
        detail: &'static str,
        operands: Option<String>,
    },
    Raw {
        entry: String,
    },
}

pub(super) fn command<'a>(
    client: &'a str,
    ring: &'static str,
    number: u64,
    record: &'a Record,
) -> Command<'a> {
    let (verdict, refusal) = match record.verdict {
        Verdict::Allow => ("allowed", None),
        Verdict::Observe(refusal) => ("observed", Some(refusal)),
        Verdict::Deny(refusal) => ("refused", Some(refusal)),
    };
    let status = record.status.map(|status| WrittenStatus {
        sct: status.sct(),
        sc: status.sc(),
        dnr: status.dnr(),
        name: status.name().unwrap_or("unnamed").to_owned(),
    });
    let (queue, opcode, name, nsid, extents, detail) = match &record.what {
        What::Decoded(decoded) => (
            decoded.queue,
            decoded.opcode,
            decoded.name,
            decoded.nsid,
            decoded.extents().iter().map(WrittenExtent::from).collect(),
            Detail::Decoded {
                class: words::class(decoded.class),
                direction: words::direction(decoded.direction),
                scope: words::scope(decoded.scope),
                persistence: words::persistence(decoded.persistence),
                ranges: decoded.ranges,
                blocks: decoded.blocks,
                bytes: decoded.bytes,
                flags: words::flags(decoded.flags),
                selector: decoded.selector,
                detail: decoded.detail,
                operands: (decoded.operands != [0; 8]).then(|| words::dwords(&decoded.operands)),
            },
        ),
        What::Raw { queue, entry } => {
            let raw = words::Raw::new(*queue, entry);
            (
                *queue,
                raw.opcode,
                raw.name,
                raw.nsid,
                raw.extent.iter().map(WrittenExtent::from).collect(),
                Detail::Raw {
                    entry: words::dwords(entry),
                },
            )
        }
    };
    Command {
        kind: "command",
        client,
        ring,
        number,
        identity: record.identity,
        queue: match queue {
            QueueKind::Admin => "admin",
            QueueKind::Io => "io",
        },
        opcode,
        command: name,
        words: words::sentence(&record.what),
        nsid,
        extents,
        detail,
        verdict,
        reason: refusal.map(|refusal| refusal.reason.key()),
        reason_text: refusal.map(|refusal| refusal.reason.text()),
        status,
        latency_ns: record.latency,
    }
}

/// An event.
#[derive(Serialize)]
pub(super) struct WrittenEvent<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    ring: &'static str,
    number: u64,
    #[serde(flatten)]
    event: &'a Event,
}

pub(super) fn event<'a>(
    client: Option<&'a str>,
    ring: &'static str,
    number: u64,
    happened: &'a Happened,
) -> WrittenEvent<'a> {
    WrittenEvent {
        kind: "event",
        client,
        ring,
        number,
        event: &happened.event,
    }
}

/// Records that found no room.
#[derive(Serialize)]
pub(super) struct Dropped<'a> {
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<&'a str>,
    pub(super) ring: &'static str,
    pub(super) first: u64,
    pub(super) records: u64,
}

/// What was only counted since the last such line.
#[derive(Serialize)]
pub(super) struct Counted<'a> {
    pub(super) kind: &'static str,
    pub(super) client: &'a str,
    /// Who did it, where that is one alone.
    #[serde(flatten, serialize_with = "known_identity")]
    pub(super) identity: Option<Identity>,
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) write_bytes: u64,
    pub(super) others: BTreeMap<&'static str, u64>,
    pub(super) observed: BTreeMap<&'static str, u64>,
    pub(super) failed: u64,
    pub(super) answered: u64,
    pub(super) connections: u64,
    pub(super) refused: BTreeMap<&'static str, u64>,
}

impl Counted<'_> {
    pub(super) fn is_nothing(&self) -> bool {
        self.reads == 0
            && self.writes == 0
            && self.others.is_empty()
            && self.observed.is_empty()
            && self.failed == 0
            && self.answered == 0
            && self.connections == 0
            && self.refused.is_empty()
    }
}
