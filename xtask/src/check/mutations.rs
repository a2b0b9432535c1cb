//! Every check between a client's bytes and a lent controller is taken away, one after the other, and the tests must notice.
//!
//! Each mutation is a few words of the source that are put in the place of others, in a copy of the workspace. What stands behind another check (blocks are held against the slice three
//! times) is taken away alone, which the tests of that part must notice, and together with the others, which the confinement tests must notice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::report::{Counts, Outcome};
use super::runner::cargo;
use crate::vm;

/// A file, words in it that occur once, and what is put in their place.
type Edit = (&'static str, &'static str, &'static str);

/// How long tests may take, in seconds.
const LIMIT: &str = "900";

/// A check that is taken away.
struct Mutation {
    what: &'static str,
    edits: &'static [Edit],
    /// Test programs that must notice.
    tests: &'static [&'static str],
}

const DECODER: &[&str] = &["--test", "confinement", "--", "entries"];
const DECODER_TABLE: &[&str] = &["--lib", "--", "decode::"];
const POLICY: &[&str] = &["--lib", "--", "policy::"];
const SLICES: &[&str] = &["--lib", "--", "controller::slices"];
const CONTROLLER: &[&str] = &["--lib", "--", "controller::"];
const SIEGE: &[&str] = &[
    "--test",
    "confinement",
    "--",
    "--exact",
    "nothing_outside_of_the_slice",
];
const STATUSES: &[&str] = &["--test", "confinement", "--", "statuses"];
const RACES: &[&str] = &["--test", "races"];
const SERVER: &[&str] = &["--test", "server_group", "--", "lifecycle"];
const LEARNED: &[&str] = &["--test", "learned"];
const UNMAPPED: &[&str] = &["--test", "unmapped"];
const KILLED: &[&str] = &["--test", "killed"];
/// Each of them.
const ALL: &[&[&str]] = &[
    DECODER,
    DECODER_TABLE,
    POLICY,
    SLICES,
    CONTROLLER,
    SIEGE,
    STATUSES,
    RACES,
    SERVER,
    LEARNED,
    UNMAPPED,
    KILLED,
];

const DECODER_BLOCKS: Edit = (
    "passthrough/src/decode/request.rs",
    "first < geometry.blocks && blocks <= geometry.blocks - first",
    "first < geometry.blocks || blocks <= geometry.blocks || first >= geometry.blocks",
);
const POLICY_BLOCKS: Edit = (
    "passthrough/src/policy/group.rs",
    "Some(end) if end <= grant.blocks => {}",
    "Some(end) if end <= grant.blocks || end > 0 => {}",
);
const MAP_BLOCKS: Edit = (
    "passthrough/src/controller/slices.rs",
    "if first.checked_add(blocks)? > self.blocks {",
    "if first.checked_add(blocks)? > u64::MAX - 1 {",
);
/// The last slice goes on to the end of the namespace.
const MAP_END: Edit = (
    "passthrough/src/controller/slices.rs",
    "(within < slice.blocks).then_some((*slice, within))",
    "(within < slice.blocks || index + 1 == self.slices.len()).then_some((Slice { blocks: u64::MAX >> 1, ..*slice }, within))",
);

const MUTATIONS: &[Mutation] = &[
    Mutation {
        what: "decoder: blocks may lie outside of the namespace",
        edits: &[DECODER_BLOCKS],
        tests: DECODER,
    },
    Mutation {
        what: "policy: blocks may lie outside of the grant",
        edits: &[POLICY_BLOCKS],
        tests: POLICY,
    },
    Mutation {
        what: "slices: blocks past the end are mapped",
        edits: &[MAP_BLOCKS],
        tests: SLICES,
    },
    Mutation {
        what: "decoder, policy and slices: blocks outside, everywhere",
        edits: &[DECODER_BLOCKS, POLICY_BLOCKS, MAP_BLOCKS, MAP_END],
        tests: SIEGE,
    },
    Mutation {
        what: "decoder, policy and slices: the same, in a race",
        edits: &[DECODER_BLOCKS, POLICY_BLOCKS, MAP_BLOCKS, MAP_END],
        tests: RACES,
    },
    Mutation {
        what: "slices: a command runs on over the end of a piece",
        edits: &[(
            "passthrough/src/controller/slices.rs",
            "let blocks = (slice.blocks - within).min(blocks).min(limit);",
            "let blocks = blocks.min(limit);",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "slices: off by one",
        edits: &[(
            "passthrough/src/controller/slices.rs",
            "lba: slice.start + within,",
            "lba: slice.start + within + 1,",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "decoder: bits that nobody knows are let through",
        edits: &[(
            "passthrough/src/decode/field.rs",
            "beyond |= word & !accepted;",
            "beyond |= word & !accepted & 0;",
        )],
        tests: DECODER,
    },
    Mutation {
        what: "decoder: the blocks of a Copy's sources are not looked at",
        edits: &[(
            "passthrough/src/decode/lists.rs",
            "request.touch(&geometry, slba, blocks, Access::Read)?;",
            "let _ = (slba, blocks);",
        )],
        tests: DECODER,
    },
    Mutation {
        what: "decoder: commands that never pass are the virtual controller's",
        edits: &[(
            "passthrough/src/decode/mod.rs",
            "Rule::Never => Err(Reason::NeverPasses),",
            "Rule::Never => Ok(Meaning::virtual_controller()),",
        )],
        tests: DECODER_TABLE,
    },
    Mutation {
        what: "gate: a refusal is let through",
        edits: &[(
            "passthrough/src/gate.rs",
            "Verdict::Deny(refusal) => Err(refusal),",
            "Verdict::Deny(_) => decoded.map(|command| Passed { command, started }),",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "policy: classes are not looked at",
        edits: &[(
            "passthrough/src/policy/group.rs",
            "if grant.classes.contains(needed) {",
            "if grant.classes.contains(needed) || !needed.is_empty() {",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "policy: the right to touch blocks in that way is not looked at",
        edits: &[(
            "passthrough/src/policy/group.rs",
            "needed |= right(extent.access);",
            "let _ = right(extent.access);",
        )],
        tests: POLICY,
    },
    Mutation {
        what: "policy: what is the owner's is anybody's",
        edits: &[(
            "passthrough/src/policy/group.rs",
            "_ => deny(Reason::OwnerOnly),",
            "_ => Verdict::Allow,",
        )],
        tests: POLICY,
    },
    Mutation {
        what: "engine: a Flush is of all namespaces",
        edits: &[(
            "passthrough/src/controller/submit.rs",
            "namespace.flush.get(*index) else {\n                flight.work = Work::Done;\n                return Next::None;\n            };\n            (target, Command::flush(nsid), false)",
            "namespace.flush.get(*index) else {\n                flight.work = Work::Done;\n                return Next::None;\n            };\n            (target, Command::flush(nsid | u32::MAX), false)",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "engine: data may come to memory that may only be read",
        edits: &[(
            "passthrough/src/controller/engine.rs",
            "let access = if to_client {",
            "let access = if to_client && length == 0 {",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "PRPs: the pages of a list may begin anywhere",
        edits: &[(
            "emulator/src/prp.rs",
            "                if prp & (page - 1) != 0 {",
            "                if prp & (page - 1) & 0 != 0 {",
        )],
        tests: STATUSES,
    },
    Mutation {
        what: "PRPs: memory is looked up in the wrong place",
        edits: &[(
            "emulator/src/iommu/access.rs",
            "lent.0.checked_add(segment.offset).map(Iova)",
            "lent.0.checked_add(segment.offset + 0x2_0000).map(Iova)",
        )],
        tests: SIEGE,
    },
    Mutation {
        what: "engine: a controller that is gone is taken to have let go of memory",
        edits: &[
            (
                "passthrough/src/controller/engine.rs",
                "Outcome::Gone if self.has_let_go(target) => Status::INTERNAL_ERROR,",
                "Outcome::Gone if self.has_let_go(target) || target < 99 => Status::INTERNAL_ERROR,",
            ),
            (
                "passthrough/src/controller/watch.rs",
                "if target.in_flight() == 0 || !target.controller.has_let_go() {",
                "if target.in_flight() == 0 {",
            ),
        ],
        tests: CONTROLLER,
    },
    Mutation {
        what: "mender: a queue is taken for deleted without being",
        edits: &[(
            "passthrough/src/server/mender.rs",
            "                self.queue.delete()\n            }",
            "                Ok(())\n            }",
        )],
        tests: SERVER,
    },
    Mutation {
        what: "unmapping: memory goes while commands are at the device",
        edits: &[(
            "emulator/src/serve.rs",
            "if self.look_after(wait) == Progress::Pending {",
            "if self.look_after(wait) == Progress::Pending && length == 0 {",
        )],
        tests: UNMAPPED,
    },
    Mutation {
        what: "the end of a client: memory goes while commands are at the device",
        edits: &[
            (
                "emulator/src/serve.rs",
                "if self.look_after(&mut wait) == Progress::Pending {",
                "if self.look_after(&mut wait) == Progress::Pending && client.memory.is_empty() {",
            ),
            (
                "emulator/src/serve.rs",
                "if !self.emulator.reset_for_next() {",
                "if !self.emulator.reset_for_next() && client.memory.is_empty() {",
            ),
        ],
        tests: KILLED,
    },
    Mutation {
        what: "personality: the real subsystem's name is told",
        edits: &[(
            "passthrough/src/controller/personality.rs",
            "text(page, 4, 20, &self.names.serial);",
            "text(page, 4, 20, \"REALSERIAL42\");",
        )],
        tests: LEARNED,
    },
];

/// How a mutation fared.
enum Fate {
    Noticed(String),
    Missed,
    Broken(String),
}

/// Takes each check away and runs the tests that must notice.
pub(super) fn run() -> Result<Outcome> {
    let tree = vm::workspace().join("target/mutations");
    copy(vm::workspace(), &tree)?;
    // First as it is: tests that fail anyway would notice everything.
    for tests in ALL {
        if !matches!(test(&tree, tests)?, Fate::Missed) {
            bail!("{tests:?} fails without any mutation");
        }
    }
    let mut counts = Counts::default();
    let mut bad = Vec::new();
    for mutation in MUTATIONS {
        let started = Instant::now();
        let fate = with_edits(&tree, mutation.edits, || test(&tree, mutation.tests))?;
        let seconds = started.elapsed().as_secs();
        match fate {
            Fate::Noticed(by) => {
                counts.passed += 1;
                eprintln!("noticed: {} ({seconds} s) by {by}", mutation.what);
            }
            Fate::Missed => {
                counts.failed += 1;
                eprintln!("MISSED: {} ({seconds} s)", mutation.what);
                bad.push(mutation.what);
            }
            Fate::Broken(why) => {
                counts.failed += 1;
                eprintln!("BROKEN: {}: {why}", mutation.what);
                bad.push(mutation.what);
            }
        }
    }
    Ok(if bad.is_empty() {
        Outcome::Passed(counts)
    } else {
        Outcome::Failed {
            counts,
            what: bad.join(", "),
        }
    })
}

/// Copies what differs; what is the same keeps its time, so that little is built anew.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("{}", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else if entry.file_type()?.is_file() {
            let new = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&new) {
                fs::write(&to, new).with_context(|| format!("{}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// A text with an edit made, which must fit in one place.
fn edited(text: &str, (file, from, to): &Edit) -> Result<String> {
    let places = text.matches(from).count();
    if places != 1 {
        bail!("{file} has '{from}' {places} times");
    }
    Ok(text.replacen(from, to, 1))
}

/// Does something with edits made, and takes them back.
fn with_edits<T>(tree: &Path, edits: &[Edit], act: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut before: Vec<(PathBuf, String)> = Vec::new();
    let made = edits.iter().try_for_each(|edit| {
        let path = tree.join(edit.0);
        let text = fs::read_to_string(&path)?;
        let new = edited(&text, edit)?;
        before.push((path.clone(), text));
        fs::write(&path, new)?;
        anyhow::Ok(())
    });
    let result = made.and_then(|()| act());
    for (path, text) in before.iter().rev() {
        fs::write(path, text)?;
    }
    result
}

/// Runs test programs of the passthrough crate.
fn test(tree: &Path, tests: &[&str]) -> Result<Fate> {
    // A check that is missed may leave tests that wait for ever: they and all that they started end then.
    let output = Command::new("timeout")
        .arg(LIMIT)
        .arg(cargo().get_program())
        .args([
            "test",
            "--all-features",
            "--package",
            "nvme-vfio-passthrough",
        ])
        .args(tests)
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", tree.join("target"))
        .stdin(Stdio::null())
        .output()?;
    if output.status.code() == Some(124) {
        return Ok(Fate::Noticed(format!(
            "tests that do not end in {LIMIT} seconds"
        )));
    }
    if output.status.success() {
        return Ok(Fate::Missed);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("could not compile") {
        let why = said.lines().find(|line| line.starts_with("error"));
        return Ok(Fate::Broken(
            why.unwrap_or("it does not compile").to_owned(),
        ));
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<_> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    Ok(Fate::Noticed(failed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mutation whose words are not in the source any more tests nothing.
    #[test]
    fn every_mutation_fits_its_source() {
        for mutation in MUTATIONS {
            for edit in mutation.edits {
                let text = fs::read_to_string(vm::workspace().join(edit.0)).unwrap();
                let new = edited(&text, edit)
                    .unwrap_or_else(|error| panic!("{}: {error}", mutation.what));
                assert_ne!(new, text);
            }
            assert!(!mutation.tests.is_empty());
        }
    }
}
