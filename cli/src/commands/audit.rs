//! `audit`: what clients did.

mod record;
mod tail;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nvme_vfio_passthrough::{audit::write_json, policy::PolicyFile};
use serde_json::{Value, json};

use crate::{
    args::{AuditArgs, Format},
    error::{Error, Kind},
    output::to_stdout,
};
use record::{HEADER, row};
use tail::{Piece, Tail};

/// How often a file that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(100);

/// Shows the audit.
///
/// # Errors
/// A file that cannot be read, or a policy that is wrong.
pub(super) fn run(args: &AuditArgs) -> Result<(), Error> {
    let path = path(args)?;
    let failed = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => Kind::Permission,
            _ => Kind::File,
        };
        Error::new(kind, format!("reading {}: {error}", path.display()))
    };
    let mut tail = Tail::open(&path).map_err(|error| failed(&error))?;
    let mut viewer = Viewer::new(args);
    let mut unreadable = None;
    let mut missed = args.client.as_deref();
    to_stdout(|out| {
        viewer.begin(out)?;
        loop {
            match tail.next() {
                Ok(Some(piece)) => viewer.piece(out, piece)?,
                Ok(None) if args.follow => {
                    out.flush()?;
                    if viewer.shown == 0
                        && let Some(client) = missed.take()
                    {
                        say_missed(&path, client);
                    }
                    match tail.look_again() {
                        Ok(true) => {}
                        Ok(false) => thread::sleep(PERIOD),
                        Err(error) => {
                            unreadable = Some(error);
                            return Ok(());
                        }
                    }
                }
                Ok(None) => {
                    if let Some(rest) = tail.rest() {
                        viewer.piece(out, rest)?;
                    }
                    return Ok(());
                }
                Err(error) => {
                    unreadable = Some(error);
                    return Ok(());
                }
            }
        }
    })?;
    if let Some(error) = unreadable {
        return Err(failed(&error));
    }
    if viewer.shown == 0
        && let Some(client) = missed
    {
        say_missed(&path, client);
    }
    Ok(())
}

/// It may be a name that was never in the policy; or one that has asked for nothing yet.
fn say_missed(path: &Path, client: &str) {
    let client = text::printable(client);
    eprintln!("{} has no line of a client {client} yet", path.display());
}

/// The file: named itself, or by a policy.
fn path(args: &AuditArgs) -> Result<PathBuf, Error> {
    match (&args.file, &args.policy) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(policy)) => {
            let policy = PolicyFile::open(policy)
                .map_err(|error| Error::usage(error.to_string(), "See docs/passthrough.md"))?;
            Ok(policy.audit.path)
        }
        (None, None) => Err(Error::usage(
            "no file is named",
            "Run: nvme-vfio audit --help",
        )),
    }
}

/// Makes of pieces of the file what is shown.
struct Viewer<'a> {
    json: bool,
    client: Option<&'a str>,
    /// The number that the next line should have.
    expected: Option<u64>,
    /// How many records were shown.
    shown: u64,
}

impl<'a> Viewer<'a> {
    fn new(args: &'a AuditArgs) -> Viewer<'a> {
        Viewer {
            json: args.output.output_format == Format::Json,
            client: args.client.as_deref(),
            expected: None,
            shown: 0,
        }
    }

    fn begin(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(out, "{HEADER}")
    }

    fn piece(&mut self, out: &mut dyn Write, piece: Piece) -> io::Result<()> {
        match piece {
            Piece::Line(line) => match serde_json::from_slice::<Value>(&line) {
                Ok(value) if value.is_object() => self.record(out, &value),
                _ => self.note(out, "not-a-record", "a line that is no record", Some(&line)),
            },
            Piece::Unfinished(line) => match serde_json::from_slice::<Value>(&line) {
                // Only its line feed is missing.
                Ok(value) if value.is_object() => self.record(out, &value),
                _ => self.note(out, "unfinished", "a line that has no end", Some(&line)),
            },
            Piece::TooLong => self.note(out, "not-a-record", "a line that is too long", None),
            Piece::Replaced => {
                self.expected = None;
                self.note(out, "replaced", "another file has its name now", None)
            }
            Piece::Truncated => {
                self.expected = None;
                self.note(out, "truncated", "the file became shorter", None)
            }
        }
    }

    fn record(&mut self, out: &mut dyn Write, value: &Value) -> io::Result<()> {
        if let Some(sequence) = value["seq"].as_u64() {
            if let Some(expected) = self.expected {
                // A server that starts begins to count anew.
                if sequence != expected && sequence != 0 {
                    let text = format!("line {sequence} follows, line {expected} should");
                    self.note(out, "missing", &text, None)?;
                }
            }
            self.expected = sequence.checked_add(1);
        }
        if self.client.is_some_and(|client| value["client"] != client) {
            return Ok(());
        }
        self.shown += 1;
        if self.json {
            return Viewer::json(out, value);
        }
        writeln!(out, "{}", row(value))
    }

    /// Something that is to be said of the file itself.
    fn note(
        &self,
        out: &mut dyn Write,
        note: &str,
        text: &str,
        line: Option<&[u8]>,
    ) -> io::Result<()> {
        let line = line.map(text::shortened);
        if self.json {
            let note = json!({"kind": "note", "note": note, "text": text, "line": line});
            return Viewer::json(out, &note);
        }
        match line {
            Some(line) => writeln!(out, "-- {text}: {}", text::printable(&line)),
            None => writeln!(out, "-- {text}"),
        }
    }

    fn json(out: &mut dyn Write, value: &Value) -> io::Result<()> {
        let mut line = Vec::new();
        write_json(&mut line, value)?;
        out.write_all(&line)
    }
}
