//! A report for people.

use std::fmt::Write as _;

use super::super::warnings::merged;
use super::{Ceilings, Client, Controller, Namespace, Opcode, Report};
use crate::output::table;
use crate::size;

/// Columns of running text.
const WIDTH: usize = 100;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    head(report, &mut text);
    section(&mut text, "Clients", &clients(report));
    section(&mut text, "What they see", &namespaces(report));
    section(&mut text, "What it is called", &names(report));
    section(&mut text, "Commands behind each class", &classes(report));
    let own = format!(
        "A client's own controller answers, and the real one never sees: {}.",
        commands(&report.own_controller)
    );
    text += &wrapped(&own, "", "");
    text.push_str(
        "\nEvery other command is refused. So are, whatever the class: bits that are reserved or unknown, directives and\nplacement handles, fused commands, all namespaces at once, and blocks outside of the slices.\n",
    );
    section(&mut text, "Isolation", &paragraphs(&report.isolation, ""));
    if report.warnings.is_empty() {
        text.push_str("\nNo warnings.\n");
    } else {
        section(&mut text, "Warnings", &warnings(report));
    }
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    let _ = write!(text, "\n{title}\n{body}");
}

fn head(report: &Report, text: &mut String) {
    if let Some(policy) = &report.policy {
        let _ = writeln!(text, "{policy} is a policy for");
    }
    for controller in &report.controllers {
        let _ = writeln!(text, "  {}", described(controller));
    }
    if let Some(reason) = &report.not_asked {
        let _ = write!(
            text,
            "{}",
            wrapped(
                &format!(
                    "The controllers were not asked, so that it is not known whether the policy fits them: {reason}"
                ),
                "  ",
                "  "
            )
        );
    }
    let audit = &report.audit;
    let _ = writeln!(text, "Sockets: {}", report.directory);
    let sampled = match audit.sample_allowed_io {
        0 => "allowed reads and writes are only counted".to_owned(),
        1 => "allowed reads and writes are recorded, each of them".to_owned(),
        one_in => format!("one in {one_in} allowed reads and writes is recorded, the rest counted"),
    };
    let _ = writeln!(
        text,
        "Audit: {}; {sampled}; {} of memory for each client",
        audit.path,
        size::binary(audit.ring)
    );
}

fn described(controller: &Controller) -> String {
    let Some(asked) = &controller.asked else {
        return controller.address.clone();
    };
    let namespaces: Vec<String> = asked
        .namespaces
        .iter()
        .map(|one| {
            format!(
                "{} with {} blocks of {}",
                one.nsid, one.blocks, one.block_size
            )
        })
        .collect();
    format!(
        "{}: {}, serial number {}, firmware {}; namespaces: {}",
        controller.address,
        asked.model,
        asked.serial,
        asked.firmware,
        namespaces.join(", ")
    )
}

fn clients(report: &Report) -> String {
    table(
        [
            "NAME",
            "USERS",
            "MODE",
            "MEMORY",
            "QUEUES",
            "AT ONCE",
            "PER SECOND",
        ],
        report.clients.iter().map(|client| {
            let limits = &client.limits;
            let users: Vec<String> = client.uid.iter().map(ToString::to_string).collect();
            [
                client.name.clone(),
                users.join(", "),
                client.mode.to_owned(),
                memory(client),
                format!("{} of {}", limits.queues, limits.depth),
                format!("{} commands", limits.outstanding),
                ceilings(limits),
            ]
        }),
    )
}

fn memory(client: &Client) -> String {
    let limits = &client.limits;
    let sealed = if client.unsealed_memory {
        ", also unsealed"
    } else {
        ""
    };
    format!(
        "{}, {} in {} regions{sealed}",
        client.isolation,
        size::binary(limits.memory),
        limits.mappings
    )
}

fn ceilings(limits: &Ceilings) -> String {
    let iops = limits.iops.map(|iops| format!("{iops} commands"));
    let bandwidth = limits.bandwidth.map(size::binary);
    let both: Vec<String> = iops.into_iter().chain(bandwidth).collect();
    if both.is_empty() {
        "no ceiling".to_owned()
    } else {
        both.join(", ")
    }
}

/// Every namespace of every client.
fn all(report: &Report) -> impl Iterator<Item = (&Client, &Namespace)> {
    report
        .clients
        .iter()
        .flat_map(|client| client.namespaces.iter().map(move |one| (client, one)))
}

fn namespaces(report: &Report) -> String {
    table(
        [
            "CLIENT",
            "NSID",
            "SIZE",
            "BLOCKS OF THE REAL NAMESPACES",
            "MAY",
        ],
        all(report).map(|(client, namespace)| {
            let shared = if namespace.shared { " (shared)" } else { "" };
            [
                client.name.clone(),
                namespace.nsid.to_string(),
                sized(namespace),
                format!("{}{shared}", sources(report, namespace)),
                namespace.allow.join(", "),
            ]
        }),
    )
}

fn sized(namespace: &Namespace) -> String {
    match (namespace.blocks, namespace.block_size) {
        (Some(blocks), Some(bytes)) => {
            let whole = blocks.saturating_mul(u64::from(bytes));
            format!("{} ({blocks} blocks of {bytes})", size::binary(whole))
        }
        (Some(blocks), None) => format!("{blocks} blocks"),
        _ => "to be asked".to_owned(),
    }
}

fn sources(report: &Report, namespace: &Namespace) -> String {
    let parts: Vec<String> = namespace
        .source
        .iter()
        .map(|part| match part.blocks {
            Some(blocks) => {
                let last = part.start.saturating_add(blocks).saturating_sub(1);
                format!("{}: {} to {last}", part.nsid, part.start)
            }
            None => format!("{}: {} to the end", part.nsid, part.start),
        })
        .collect();
    let parts = parts.join(", ");
    if report.controllers.len() > 1 {
        format!("{} {parts}", namespace.controller)
    } else {
        parts
    }
}

fn names(report: &Report) -> String {
    let controllers = table(
        ["CLIENT", "SERIAL NUMBER", "SUBSYSTEM NQN"],
        report.clients.iter().map(|client| {
            [
                client.name.clone(),
                client.serial.clone(),
                client.subnqn.clone(),
            ]
        }),
    );
    let namespaces = table(
        ["CLIENT", "NSID", "NGUID", "UUID"],
        all(report).map(|(client, namespace)| {
            [
                client.name.clone(),
                namespace.nsid.to_string(),
                namespace.nguid.clone(),
                namespace.uuid.clone(),
            ]
        }),
    );
    format!("{controllers}{namespaces}")
}

/// Commands with their opcodes.
fn commands(list: &[Opcode]) -> String {
    let words: Vec<String> = list
        .iter()
        .map(|one| {
            let queue = if one.queue == "admin" { "admin " } else { "" };
            format!("{} ({queue}{:02x}h)", one.name, one.opcode)
        })
        .collect();
    words.join(", ")
}

fn classes(report: &Report) -> String {
    table(
        ["CLASS", "GRANTED TO", "COMMANDS (OPCODE)"],
        report.classes.iter().map(|class| {
            let granted = if class.clients.is_empty() {
                "nobody".to_owned()
            } else {
                class.clients.join(", ")
            };
            [class.class.to_owned(), granted, commands(&class.commands)]
        }),
    )
}

fn warnings(report: &Report) -> String {
    let texts: Vec<String> = report
        .warnings
        .iter()
        .map(|warning| format!("{} [{}]", warning.text, warning.kind))
        .collect();
    let parts = report.warnings.iter().zip(&texts);
    let parts = parts.map(|(one, text)| (one.client.as_deref(), one.nsid, text.as_str()));
    merged(parts)
        .into_iter()
        .map(|(about, what)| wrapped(&format!("{about}{what}"), "- ", "  "))
        .collect()
}

fn paragraphs(list: &[String], indent: &str) -> String {
    let paragraph = |text: &String| wrapped(text, &format!("{indent}- "), &format!("{indent}  "));
    list.iter().map(paragraph).collect()
}

/// A text in lines of at most [`WIDTH`] columns, unless a word is longer.
fn wrapped(text: &str, first: &str, rest: &str) -> String {
    let mut lines = String::from(first);
    let mut column = first.chars().count();
    let mut empty = true;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if !empty && column + 1 + length > WIDTH {
            lines.push('\n');
            lines.push_str(rest);
            column = rest.chars().count();
            empty = true;
        }
        if !empty {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
        empty = false;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        let long = "a word ".repeat(40);
        let text = wrapped(&long, "- ", "  ");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.starts_with("  a") || line.starts_with("  w"))
        );
        assert_eq!(
            text.split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" "),
            long.trim()
        );
        let word = "x".repeat(WIDTH * 2);
        assert_eq!(wrapped(&word, "- ", "  "), format!("- {word}\n"));
    }
}
