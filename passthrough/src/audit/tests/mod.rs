mod end;
mod flood;
mod full;
mod lines;

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::client::{ClientId, Identity};
use crate::command::{
    Access, Class, DecodedCommand, Direction, Extent, Flags, Persistence, QueueKind, Scope,
};
use crate::verdict::Verdict;

pub(super) const WHO: Identity = Identity {
    uid: 1000,
    gid: 100,
    pid: 4242,
    start_time: 987_654,
};

/// Nothing takes as long, whatever else the machine does.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A file in memory that can be held shut.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paper {
    bytes: Arc<Mutex<Vec<u8>>>,
    shut: Arc<Mutex<bool>>,
    /// How often it has taken nothing.
    refused: Arc<AtomicU64>,
    /// Takes at most so many bytes at once, if not 0.
    mouthful: usize,
}

impl Paper {
    pub(crate) fn shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
    }

    /// Waits, while it is shut, until whoever writes has looked once more at what there is to write, from beginning to end.
    pub(crate) fn until_looked(&self) {
        let refused = || self.refused.load(Ordering::Relaxed);
        let (before, until) = (refused(), Instant::now() + PATIENCE);
        // The first may have begun before this.
        while refused() < before + 2 {
            assert!(Instant::now() < until, "nobody tries to write");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }

    /// Every line, which must be one JSON object; their sequence numbers must have no gap.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with('\n'));
        let lines: Vec<Value> = text
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        for (index, line) in lines.iter().enumerate() {
            assert!(line.is_object(), "{line}");
            assert_eq!(line["seq"], index, "{line}");
        }
        lines
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.shut.lock().unwrap() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = match self.mouthful {
            0 => bytes.len(),
            most => bytes.len().min(most),
        };
        self.bytes
            .lock()
            .unwrap()
            .extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn extent(first: u64, blocks: u64, access: Access) -> Extent {
    Extent {
        nsid: 1,
        first,
        blocks,
        access,
    }
}

pub(super) fn block_command<'a>(
    class: Class,
    name: &'static str,
    extents: &'a [Extent],
) -> DecodedCommand<'a> {
    DecodedCommand {
        queue: QueueKind::Io,
        opcode: 2,
        name,
        class,
        direction: Direction::FromController,
        nsid: 1,
        extents,
        scope: Scope::Extents,
        persistence: Persistence::None,
        length: extents.iter().map(|extent| extent.blocks * 512).sum(),
        flags: Flags::empty(),
        selector: 0,
        detail: "",
        operands: [0; 8],
    }
}

pub(super) fn audit(paper: &Paper, options: AuditOptions) -> Auditor {
    Auditor::start(paper.clone(), options).unwrap()
}

/// All of one kind.
pub(super) fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

/// The sum of a field over those of one client.
pub(super) fn sum(lines: &[&Value], client: &str, field: &str) -> u64 {
    let of_client = lines.iter().filter(|line| line["client"] == client);
    of_client
        .map(|line| line[field].as_u64().unwrap_or(0))
        .sum()
}

pub(super) fn client(auditor: &Auditor, id: u16, name: &str) -> ClientAudit {
    let mut audit = auditor.client(ClientId(id), name, 256);
    audit.identify(WHO);
    audit
}

/// Has one record sent after the other until one is in the file: that the file takes lines again does not mean that the ring has room. `send` says which number it has sent. That of the
/// one that is in the file, after which none was sent.
pub(super) fn until_written(mut send: impl FnMut() -> u64, lines: impl Fn() -> Vec<Value>) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let number = send();
        // Longer than whoever writes rests.
        for _ in 0..100 {
            let is_it = |line: &Value| line["ring"] == "commands" && line["number"] == number;
            if lines().iter().any(is_it) {
                return number;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Instant::now() < until, "nothing more is written");
    }
}

pub(super) fn read_once(audit: &mut ClientAudit) -> Option<Started> {
    let extents = [extent(1000, 8, Access::Read)];
    let command = block_command(Class::Read, "Read", &extents);
    audit.begin(&command, &Verdict::Allow, Instant::now())
}
