//! Takes records out of one client's rings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::event::{Event, Happened};
use super::line;
use super::record::Record;
use super::ring::{Ring, Taken};
use super::scribe::Scribe;
use super::shared::{Shared, Snapshot};
use super::words;
use crate::command::Class;
use crate::reason::Reason;

/// Records that are taken out of a ring before it is the next one's turn.
const BATCH: usize = 256;

/// The reading end of one client's rings.
#[derive(Debug)]
pub(super) struct Reader {
    shared: Arc<Shared>,
    commands: u64,
    refusals: u64,
    operators: u64,
    connections: u64,
    /// The end of a connection whose commands are still in the rings.
    ended: Option<(u64, Happened)>,
    told: Snapshot,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Reader {
        Reader {
            shared,
            commands: 0,
            refusals: 0,
            operators: 0,
            connections: 0,
            ended: None,
            told: Snapshot::default(),
        }
    }

    /// Gives the client another second's worth of records.
    pub(super) fn fill_budgets(&self) {
        self.shared.fill_budgets();
    }

    /// Writes some of what waits in each ring. Whether all of them were seen empty.
    pub(super) fn turn(&mut self, scribe: &mut Scribe) -> bool {
        let quiet = self.ended.is_some() || self.connections(scribe);
        let commands = drain(
            "commands",
            &self.shared,
            &self.shared.commands,
            &mut self.commands,
            scribe,
        );
        let refusals = drain(
            "refusals",
            &self.shared,
            &self.shared.refusals,
            &mut self.refusals,
            scribe,
        );
        let operators = drain(
            "operators",
            &self.shared,
            &self.shared.operators,
            &mut self.operators,
            scribe,
        );
        if !(commands && refusals && operators) {
            return false;
        }
        match self.ended.take() {
            // Everything of that connection is written; so is, before it ends, what was only counted.
            Some((number, end)) => {
                if let Some(counted) = &end.counted {
                    self.tell(scribe, counted);
                }
                self.event(scribe, number, &end);
                false
            }
            None => quiet,
        }
    }

    /// Writes what happened to connections, up to the end of one. Whether nothing is left.
    fn connections(&mut self, scribe: &mut Scribe) -> bool {
        for _ in 0..BATCH {
            if scribe.is_full() {
                return false;
            }
            match self.shared.connections.take(&mut self.connections) {
                Taken::Empty => return true,
                Taken::Record(number, happened) => self.happened(scribe, number, happened),
                Taken::Missing(from, to, next) => {
                    missing(scribe, Some(&self.shared), "connections", from, to);
                    if let Some((number, happened)) = next {
                        self.happened(scribe, number, happened);
                    }
                }
            }
            if self.ended.is_some() {
                return false;
            }
        }
        false
    }

    fn happened(&mut self, scribe: &mut Scribe, number: u64, happened: Happened) {
        if matches!(happened.event, Event::Disconnected { .. }) {
            self.ended = Some((number, happened));
            return;
        }
        self.event(scribe, number, &happened);
    }

    fn event(&self, scribe: &mut Scribe, number: u64, happened: &Happened) {
        let body = line::event(Some(&self.shared.name), "connections", number, happened);
        scribe.line(happened.at, &body);
    }

    /// Writes what was only counted since the last time, if anything was. The end of a connection may still be in its ring then, with older counts: it has nothing new to tell.
    pub(super) fn tell_counts(&mut self, scribe: &mut Scribe) {
        if self.ended.is_none() {
            self.tell(scribe, &self.shared.snapshot());
        }
    }

    fn tell(&mut self, scribe: &mut Scribe, snapshot: &Snapshot) {
        let counts = &snapshot.counts;
        let told = &self.told.counts;
        let reasons = || Reason::ALL.iter().map(|reason| reason.key());
        let classes = Class::ALL.iter().map(|class| words::class(*class));
        let body = line::Counted {
            kind: "counted",
            client: &self.shared.name,
            identity: snapshot.sessions.only_one_since(&self.told.sessions),
            reads: counts.reads.saturating_sub(told.reads),
            read_bytes: counts.read_bytes.saturating_sub(told.read_bytes),
            writes: counts.writes.saturating_sub(told.writes),
            write_bytes: counts.write_bytes.saturating_sub(told.write_bytes),
            failed: counts.failed.saturating_sub(told.failed),
            answered: counts.answered.saturating_sub(told.answered),
            connections: counts.connections.saturating_sub(told.connections),
            others: since(classes, &snapshot.others, &self.told.others),
            observed: since(reasons(), &snapshot.observed, &self.told.observed),
            refused: since(reasons(), &snapshot.refused, &self.told.refused),
        };
        if !body.is_nothing() {
            scribe.line(Instant::now(), &body);
        }
        self.told.advance(snapshot);
    }
}

/// What was counted more now than before, under its name.
fn since(
    names: impl Iterator<Item = &'static str>,
    now: &[u64],
    before: &[u64],
) -> BTreeMap<&'static str, u64> {
    let counts = now.iter().zip(before);
    let new = counts.map(|(now, before)| now.saturating_sub(*before));
    names.zip(new).filter(|(_, new)| *new > 0).collect()
}

/// Writes some of what waits in a ring of commands. Whether nothing is left.
fn drain(
    name: &'static str,
    shared: &Shared,
    ring: &Ring<Record>,
    next: &mut u64,
    scribe: &mut Scribe,
) -> bool {
    for _ in 0..BATCH {
        if scribe.is_full() {
            return false;
        }
        let record = match ring.take(next) {
            Taken::Empty => return true,
            Taken::Record(number, record) => Some((number, record)),
            Taken::Missing(from, to, record) => {
                missing(scribe, Some(shared), name, from, to);
                record
            }
        };
        if let Some((number, record)) = record {
            let body = line::command(&shared.name, name, number, &record);
            scribe.line(record.at, &body);
        }
    }
    false
}

/// Writes that the records with these numbers, the last excluded, were dropped.
pub(super) fn missing(
    scribe: &mut Scribe,
    shared: Option<&Shared>,
    ring: &'static str,
    from: u64,
    to: u64,
) {
    let body = line::Dropped {
        kind: "dropped",
        client: shared.map(|shared| &*shared.name),
        ring,
        first: from,
        records: to - from,
    };
    scribe.line(Instant::now(), &body);
}
