//! `cargo xtask fuzz`: the fuzzers of the package `nvme-vfio-fuzz` under libFuzzer, on the stable compiler.
//!
//! libFuzzer mutates inputs and keeps those that reach new code; the compiler's coverage instrumentation, which is behind stable options, tells it
//! which do. It starts from the inputs in `fuzz/seeds` and from what earlier runs on this machine have found. An input that fails is kept, and can be
//! run again.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::packages;
use crate::vm::workspace;

/// A fuzzer, named as its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fuzzer {
    /// The emulated controller's handling of commands: random entries, PRP lists and data.
    Commands,
    /// A controller that is lent to a client, from the client's entries to what the real controller does.
    Lent,
    /// The emulated controller's registers, doorbells and configuration space.
    Registers,
    /// A served controller, by messages, descriptors and memory that is lent and taken back.
    Served,
    /// A vfio-user server's session with a client that sends anything.
    Session,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was found.
    Clean,
    /// Something was found; how to see it again.
    Found(String),
}

/// What instruments the code for libFuzzer: counters for each edge, a table of their places, and the operands of comparisons.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Most bytes of an input.
const LENGTH_MAX: usize = 2048;
/// What an input begins with that failed once: it stays among the seeds, whatever it reaches.
const FAILED: char = '!';
/// Longest time that one input may take, in seconds: longer than a fuzzer waits for what other threads do, so that it can say what did not come.
const INPUT_TIME: u32 = 120;
/// What a run may take past its time before it is killed: reading the corpus, and the last input.
const OVERTIME: Duration = Duration::from_secs(300);
/// What a [check](Fuzzer::check) may take.
const CHECK_TIME: Duration = Duration::from_secs(600);

impl Fuzzer {
    /// Its name: its program's, and its seeds'.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Looks for something new for `time`, from the seeds and what earlier runs on this machine have found.
    ///
    /// # Errors
    /// When the fuzzer cannot be built or run.
    pub fn search(self, time: Duration) -> Result<Verdict> {
        let corpus = self.directory("corpus")?;
        let time_max = format!("-max_total_time={}", time.as_secs().max(1));
        self.run(
            &[time_max, "-print_final_stats=1".to_owned()],
            &corpus,
            time + OVERTIME,
        )
    }

    /// Runs the seeds and the first `inputs` that the engine makes of them: the same ones on each machine and each time, however fast it is.
    ///
    /// # Errors
    /// When the fuzzer cannot be built or run.
    pub fn check(self, inputs: u32) -> Result<Verdict> {
        let nothing_found = tempfile::tempdir()?;
        let runs = format!("-runs={inputs}");
        self.run(
            &["-seed=1", "-verbosity=0", &runs].map(str::to_owned),
            nothing_found.path(),
            CHECK_TIME,
        )
    }

    fn run(self, options: &[String], corpus: &Path, limit: Duration) -> Result<Verdict> {
        let program = self.build()?;
        let (seeds, failures) = (self.unpack_seeds()?, self.directory("failures")?);
        let before = files(&failures)?;
        let mut command = self.engine(&program);
        command
            .args(options)
            .arg(format!("-max_len={LENGTH_MAX}"))
            .arg("-reload=0")
            .arg(format!("-artifact_prefix={}/", failures.display()))
            .args([corpus, &seeds]);
        let status = run_limited(&mut command, limit)?;
        let found: Vec<PathBuf> = files(&failures)?
            .into_iter()
            .filter(|path| !before.contains(path))
            .collect();
        Ok(match (status.success(), found.first()) {
            (true, _) => Verdict::Clean,
            (false, Some(path)) => Verdict::Found(format!(
                "cargo xtask fuzz {} --input {}",
                self.name(),
                path.display()
            )),
            (false, None) => Verdict::Found(format!("it ended with {status}")),
        })
    }

    /// Runs these inputs, each once.
    ///
    /// # Errors
    /// When the fuzzer cannot be built or run.
    pub fn replay(self, inputs: &[PathBuf]) -> Result<Verdict> {
        let program = self.build()?;
        // libFuzzer takes what does not exist for a new corpus.
        for input in inputs {
            ensure!(input.is_file(), "no file {}", input.display());
        }
        let mut command = self.engine(&program);
        command.env("RUST_BACKTRACE", "1").args(inputs);
        let status = run_limited(&mut command, OVERTIME)?;
        Ok(if status.success() {
            Verdict::Clean
        } else {
            Verdict::Found(format!("it ended with {status}"))
        })
    }

    /// Makes the smallest set of inputs that reaches every edge that the seeds and the inputs found on this machine reach, and writes it down as
    /// the seeds. How many they are.
    ///
    /// # Errors
    /// When the fuzzer cannot be built or run, or the seeds cannot be written.
    pub fn update_seeds(self) -> Result<usize> {
        let program = self.build()?;
        let merged = tempfile::tempdir()?;
        let mut command = self.engine(&program);
        command
            .args([
                "-set_cover_merge=1",
                "-use_counters=0",
                &format!("-max_len={LENGTH_MAX}"),
            ])
            .arg(merged.path())
            .args([self.unpack_seeds()?, self.directory("corpus")?]);
        let status = run_limited(&mut command, 5 * OVERTIME)?;
        ensure!(status.success(), "merging ended with {status}");
        let mut lines = Vec::new();
        for file in files(merged.path())? {
            lines.push(to_hex(&fs::read(file)?));
        }
        lines.sort_by_key(|line| (line.len(), line.clone()));
        let old = fs::read_to_string(self.seeds())?;
        let mut text: String = old
            .lines()
            .filter(|line| line.starts_with(['#', FAILED]))
            .map(|line| format!("{line}\n"))
            .collect();
        for line in &lines {
            text += line;
            text.push('\n');
        }
        fs::write(self.seeds(), text)?;
        Ok(lines.len())
    }

    fn engine(self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg(format!("-timeout={INPUT_TIME}"))
            .arg("-rss_limit_mb=4096")
            .stdin(Stdio::null());
        command
    }

    fn build(self) -> Result<PathBuf> {
        packages::ensure_installed(&packages::FUZZ)?;
        let host = host()?;
        let flags = env::var("RUSTFLAGS").unwrap_or_default();
        let flags = format!("{flags} --cfg fuzzing {}", INSTRUMENTATION.join(" "));
        let target = target();
        // With a target named, build scripts and macros are compiled without the instrumentation.
        let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
            .current_dir(workspace())
            .args(["build", "--profile", "fuzz", "--package", "nvme-vfio-fuzz"])
            .args(["--bin", &self.name(), "--target", &host])
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &target)
            .stdin(Stdio::null())
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "building the fuzzer ended with {status}");
        Ok(target.join(host).join("fuzz").join(self.name()))
    }

    fn seeds(self) -> PathBuf {
        workspace()
            .join("fuzz/seeds")
            .join(format!("{}.hex", self.name()))
    }

    /// A directory for one kind of this fuzzer's files.
    fn directory(self, kind: &str) -> Result<PathBuf> {
        let directory = target().join(kind).join(self.name());
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }

    /// Writes the seeds into files of their own, as libFuzzer wants them.
    fn unpack_seeds(self) -> Result<PathBuf> {
        let directory = self.directory("seeds")?;
        for old in files(&directory)? {
            fs::remove_file(old)?;
        }
        let text = fs::read_to_string(self.seeds())?;
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('#') {
                continue;
            }
            let bytes = from_hex(line.trim_start_matches(FAILED))
                .with_context(|| format!("{}, line {number}", self.seeds().display()))?;
            fs::write(directory.join(format!("{number}")), bytes)?;
        }
        Ok(directory)
    }
}

/// Where fuzzers are built, and keep what they find.
fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join("fuzz")
}

/// The name of the platform that the compiler runs on.
fn host() -> Result<String> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc")))
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc tells no host")
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

/// Runs a command that is killed when it takes too long.
fn run_limited(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = command.spawn().context("cannot run the fuzzer")?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            kill(&mut child);
            bail!("the fuzzer did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn kill(child: &mut Child) {
    // Both fail only when it has already ended.
    let _ = child.kill();
    let _ = child.wait();
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.is_ascii(), "not ASCII");
    let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            ensure!(pair.len() == 2, "an odd number of digits");
            u8::from_str_radix(pair, 16).with_context(|| format!("no hexadecimal byte: {pair}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(from_hex("00ff 1a").unwrap(), [0, 0xff, 0x1a]);
        assert_eq!(to_hex(&[0, 0xff, 0x1a]), "00ff1a");
        assert!(from_hex("0").is_err());
        assert!(from_hex("0g").is_err());
    }

    #[test]
    fn every_fuzzer_has_a_program_and_seeds() {
        let programs = files(&workspace().join("fuzz/src/bin")).unwrap();
        let names: Vec<_> = programs
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let mut known: Vec<_> = Fuzzer::value_variants().iter().map(|f| f.name()).collect();
        known.sort();
        assert_eq!(names, known);
        for fuzzer in Fuzzer::value_variants() {
            let text = fs::read_to_string(fuzzer.seeds()).unwrap();
            let seeds = text.lines().filter(|line| !line.starts_with('#'));
            let seeds = seeds.map(|line| line.trim_start_matches(FAILED));
            let seeds: Vec<_> = seeds.map(|line| from_hex(line).unwrap()).collect();
            assert!(seeds.len() > 10);
        }
    }
}
