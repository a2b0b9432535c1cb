//! Every row against its cases, and all rows against what holds for every command.

mod bits;
mod opcodes;
mod reference;
mod rows;

use super::cases::{Command, GEOMETRY};
use super::field::WORDS;
use super::request::View;
use super::table::{Row, Table};
use super::{Decoder, admin, io};
use crate::command::{Geometry, QueueKind};

const QUEUES: [QueueKind; 2] = [QueueKind::Admin, QueueKind::Io];
const VIEWS: [View; 2] = [View::Client, View::Owner];

fn table(queue: QueueKind) -> &'static Table {
    match queue {
        QueueKind::Admin => &admin::TABLE,
        QueueKind::Io => &io::TABLE,
    }
}

/// The entry of a case.
fn entry(row: &Row, command: &Command) -> [u32; WORDS] {
    let mut entry = [0; WORDS];
    entry[0] = u32::from(row.opcode);
    if row.layout.names_namespace {
        entry[1] = 1;
    }
    for &(word, value) in command.words {
        // The bits beside the opcode.
        let keep = if word == 0 { entry[0] } else { 0 };
        entry[word] = value | keep;
    }
    entry
}

/// The namespace that an entry names, where only namespace 1 is there.
fn geometry(entry: &[u32; WORDS]) -> Option<&'static Geometry> {
    (entry[1] == 1).then_some(&GEOMETRY)
}

fn decoder(view: View) -> Decoder {
    match view {
        View::Client => Decoder::new(),
        View::Owner => Decoder::for_owner(),
    }
}

/// Rows of both queues, each once.
fn rows() -> Vec<(QueueKind, &'static Row)> {
    let mut rows: Vec<(QueueKind, &'static Row)> = Vec::new();
    for queue in QUEUES {
        let first = rows.len();
        for row in table(queue) {
            if !rows[first..]
                .iter()
                .any(|(_, seen)| std::ptr::eq(*seen, *row))
            {
                rows.push((queue, row));
            }
        }
    }
    rows
}
