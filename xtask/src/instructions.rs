//! `cargo xtask bench-instructions`: what the way of an I/O costs in instructions, which repeat exactly where times do not.
//!
//! callgrind counts the thread that drives an emulated controller which moves no data. The controller's own work is not counted,
//! and each loop is run with two lengths, so that what is not per I/O cancels out. The counts are compared with those that were
//! committed last.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::packages;
use crate::vm;

/// Lengths of the two runs, in I/Os or polls.
const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;

/// Growth beyond the committed count that is let pass, as a part of it.
const GROWTH: f64 = 0.03;

/// What is counted.
struct Loop {
    title: &'static str,
    /// Arguments of the program `instructions`.
    name: &'static str,
    depth: u32,
    /// What it must never cost more than.
    limit: f64,
}

const LOOPS: [Loop; 11] = [
    line("smallest loop, depth 32", "smallest", 32, 100.0),
    line("smallest loop, depth 128", "smallest", 128, 100.0),
    line("loop of `nvme-vfio bench`, depth 32", "bench", 32, 200.0),
    line("loop of `nvme-vfio bench`, depth 128", "bench", 128, 200.0),
    line("empty poll", "empty-poll", 32, 20.0),
    line("the emulated controller, depth 32", "controller", 32, 240.0),
    line("its step with nothing to do", "empty-step", 32, 100.0),
    line("a client's read decoded, judged, counted", "gate", 1, 250.0),
    line("of these, its decoding", "decode", 1, 120.0),
    line("of these, its count in the audit", "audit", 1, 30.0),
    line(
        "a client's read, all that a server does",
        "broker",
        32,
        2200.0,
    ),
];

const fn line(title: &'static str, name: &'static str, depth: u32, limit: f64) -> Loop {
    Loop {
        title,
        name,
        depth,
        limit,
    }
}

/// How the counts compare with the committed ones.
#[derive(Debug)]
pub struct Verdict {
    /// How many loops cost no more than they may.
    pub passed: u64,
    /// How many cost more.
    pub failed: u64,
}

/// Counts, prints the table, and with `update` writes the counts down as the new baseline.
///
/// # Errors
/// Where valgrind is missing or does not run.
pub fn run(update: bool) -> Result<Verdict> {
    packages::ensure_installed(&packages::VALGRIND)?;
    let program = build()?;
    let baseline = Baseline::read()?;
    let compiler = compiler()?;
    let comparable = baseline.compiler == compiler;

    let mut table = Table::new();
    table
        .load_style(presets::ASCII_BORDERS_ONLY_CONDENSED)
        .set_header([
            "instructions per I/O",
            "now",
            "committed",
            "change",
            "at most",
        ]);
    let mut counts = BTreeMap::new();
    let mut verdict = Verdict {
        passed: 0,
        failed: 0,
    };
    for entry in &LOOPS {
        let now = slope(&program, entry)?;
        let before = baseline.counts.get(entry.title).copied();
        let grown = comparable && before.is_some_and(|before| now > before * (1.0 + GROWTH));
        let too_many = now > entry.limit;
        if grown || too_many {
            verdict.failed += 1;
        } else {
            verdict.passed += 1;
        }
        let number =
            |value: f64| Cell::new(format!("{value:.1}")).set_alignment(CellAlignment::Right);
        let change = before.map_or_else(String::new, |before| {
            format!("{:+.1} %", (now / before - 1.0) * 100.0)
        });
        table.add_row([
            Cell::new(entry.title),
            number(now),
            before.map_or_else(|| Cell::new("none"), number),
            Cell::new(if grown {
                format!("{change} too much")
            } else {
                change
            }),
            number(entry.limit),
        ]);
        counts.insert(entry.title, (now * 10.0).round() / 10.0);
    }
    println!("{table}");
    println!(
        "SPDK's loop needs 784 at depth 32, a bare loop without slots, deadlines or statistics about 58."
    );
    if !comparable && !update {
        println!(
            "The committed counts are of {}, so only the last column was held against these.",
            baseline.compiler
        );
    }
    if update {
        let text =
            serde_json::to_string_pretty(&json!({ "compiler": compiler, "counts": counts }))?;
        fs::write(Baseline::path(), text + "\n").context("the baseline cannot be written")?;
    }
    Ok(verdict)
}

/// The counts that were committed last.
struct Baseline {
    compiler: String,
    counts: BTreeMap<String, f64>,
}

impl Baseline {
    fn path() -> PathBuf {
        vm::workspace().join("benches/instructions.json")
    }

    fn read() -> Result<Self> {
        let Ok(text) = fs::read_to_string(Self::path()) else {
            return Ok(Self {
                compiler: String::new(),
                counts: BTreeMap::new(),
            });
        };
        let value: Value =
            serde_json::from_str(&text).context("benches/instructions.json is not JSON")?;
        let counts = value["counts"]
            .as_object()
            .context("benches/instructions.json has no counts")?;
        Ok(Self {
            compiler: value["compiler"].as_str().unwrap_or_default().to_owned(),
            counts: counts
                .iter()
                .filter_map(|(title, count)| Some((title.clone(), count.as_f64()?)))
                .collect(),
        })
    }
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc")
        .arg("--version")
        .output()
        .context("rustc does not run")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Builds the program `instructions` and tells where it is.
fn build() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--package",
            "nvme-vfio-benches",
            "--bin",
            "instructions",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        // Incremental code is cut into units, and costs more.
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(vm::workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo does not run")?;
    ensure!(
        output.status.success(),
        "the loops to be counted do not build"
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "instructions")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not say where the program is")
}

/// Instructions per I/O of one loop.
fn slope(program: &Path, entry: &Loop) -> Result<f64> {
    let (short, long) = (count(program, entry, SHORT)?, count(program, entry, LONG)?);
    ensure!(
        long > short,
        "{} did not cost more when it was longer",
        entry.title
    );
    Ok((long - short) as f64 / (LONG - SHORT) as f64)
}

/// Instructions of one run.
fn count(program: &Path, entry: &Loop, length: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args([
            "--toggle-collect=*counted_*",
            "--toggle-collect=*controllers_own_work*",
        ])
        .arg(program)
        .args([entry.name, &entry.depth.to_string(), &length.to_string()])
        .output()
        .context("valgrind does not run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} did not run under valgrind:\n{said}", entry.title);
    }
    said.lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
        .with_context(|| format!("valgrind does not tell a count:\n{said}"))
}
