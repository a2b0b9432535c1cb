//! `emulate`: a software controller on a vfio-user socket.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nvme_vfio_emulator::{
    BackendKind, Config, ConfigError, Emulator, FaultScript, Patience, ServedController,
    ThreadOptions, TraceWriter, served_domain,
};
use nvme_vfio_user::{Server, ServerError, ServerOptions, sigbus};
use serde::Serialize;

use super::{cpu, interrupts, signals};
use crate::{
    args::{EmulateArgs, Format},
    error::{Error, Kind},
    output::to_stdout,
    size,
};

/// Records of a trace that may wait to be written.
const TRACE_RECORDS: usize = 1 << 18;

const FAULTS_REMEDY: &str = "See the chapter 'Fault scripts' of docs/emulator.md";

/// What is written when clients can connect.
#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    socket: &'a Path,
    pid: u32,
    config: String,
}

/// What is written at the end.
#[derive(Serialize)]
struct Summary {
    event: &'static str,
    seconds: f64,
    commands: u64,
    completions: u64,
    unsupported_commands: u64,
    invalid_doorbells: u64,
    refused_accesses: u64,
}

/// Serves until a signal comes.
///
/// # Errors
/// A wrong description of the controller, or a socket that cannot be had.
pub(super) fn run(args: &EmulateArgs) -> Result<(), Error> {
    let config = config(args)?;
    if let Some(cpu) = args.cpu {
        cpu::check(cpu)?;
    }
    let faults = faults(args)?;
    let stop = signals::stop()
        .map_err(|errno| Error::new(Kind::Environment, format!("cannot watch signals: {errno}")))?;
    // Memory that its owner may shrink is accepted, so whoever does that must not end this process.
    sigbus::install().map_err(|errno| {
        Error::new(
            Kind::Environment,
            format!("cannot guard against clients that take their memory back: {errno}"),
        )
    })?;
    interrupts::prepare();
    let emulator = Emulator::in_domain(config.clone(), served_domain(config.mappings))
        .map_err(|error| config_error(&error))?;
    let served = ServedController::new(emulator, Patience::default()).map_err(environment)?;
    let mut options = ServerOptions {
        mode: args.mode,
        ..ServerOptions::default()
    };
    options.session.sealed_memory = args.sealed;
    // No more than the controller's IOMMU takes: a client is told, and keeps to it.
    let offered = &mut options.session.capabilities.max_dma_maps;
    *offered = (*offered).min(config.mappings);
    let trace = trace(args, served.emulator())?;
    if let Some(faults) = &faults {
        served.emulator().play(faults);
    }
    let server = Server::bind(&args.socket, options).map_err(server_error)?;
    let thread = served
        .emulator()
        .spawn_with(ThreadOptions {
            busy: args.poll,
            cpu: args.cpu,
        })
        .map_err(environment)?;
    let began = Instant::now();
    ready(args, &config)?;
    let ended = server.run(&served, stop).map_err(server_error);
    drop(thread);
    drop(server);
    if let (Some(trace), Some(path)) = (trace, &args.trace) {
        trace
            .end()
            .map_err(|error| Error::file(format_args!("writing {}", path.display()), &error))?;
    }
    let summary = summary(&served, began.elapsed());
    ended?;
    tell(args, &summary)
}

/// The faults to inject.
fn faults(args: &EmulateArgs) -> Result<Option<FaultScript>, Error> {
    let Some(path) = &args.faults else {
        return Ok(None);
    };
    let toml = std::fs::read_to_string(path)
        .map_err(|error| Error::file(format_args!("reading {}", path.display()), &error))?;
    let script = FaultScript::parse(&toml)
        .map_err(|error| Error::usage(error.to_string(), FAULTS_REMEDY).context(path.display()))?;
    Ok(Some(script))
}

/// Begins to write down what the controller does.
fn trace(args: &EmulateArgs, emulator: &Emulator) -> Result<Option<TraceWriter>, Error> {
    let Some(path) = &args.trace else {
        return Ok(None);
    };
    let failed = |error| Error::file(format_args!("writing {}", path.display()), &error);
    let file = File::create(path).map_err(failed)?;
    let trace = emulator.trace(TRACE_RECORDS);
    let writer = trace.map(|trace| trace.write_to(BufWriter::new(file)));
    writer.transpose().map_err(failed)
}

/// The description, put together from the options and checked.
fn config(args: &EmulateArgs) -> Result<Config, Error> {
    let mut text = String::new();
    for (key, value) in [("size", &args.size), ("backend", &args.backend)] {
        if let Some(value) = value {
            // A comma would begin another key.
            if value.contains(',') {
                return Err(Error::usage(
                    format!("--{key} {value}: there is a ',' in it"),
                    "Run: nvme-vfio emulate --help",
                ));
            }
            let _ = write!(text, "{key}={value},");
        }
    }
    if let Some(config) = &args.config {
        text.push_str(config);
    }
    let file = match &args.file {
        None => Config::default(),
        Some(path) => {
            let toml = std::fs::read_to_string(path)
                .map_err(|error| Error::file(format_args!("reading {}", path.display()), &error))?;
            Config::from_toml(&toml)
                .map_err(|error| config_error(&error).context(path.display()))?
        }
    };
    let config = file
        .with(text.trim_end_matches(','))
        .map_err(|error| config_error(&error))?;
    if config.stepped {
        return Err(Error::usage(
            "a served controller has a thread of its own: it cannot be stepped",
            "Leave out: stepped=on",
        ));
    }
    Ok(config)
}

fn ready(args: &EmulateArgs, config: &Config) -> Result<(), Error> {
    match args.output.output_format {
        Format::Json => line(&Ready {
            event: "ready",
            socket: &args.socket,
            pid: std::process::id(),
            config: config.to_string(),
        }),
        Format::Normal => {
            let backend = match &config.backend {
                BackendKind::Memory => "in memory".to_owned(),
                BackendKind::Null => "nowhere (null)".to_owned(),
                BackendKind::File(path) => format!("in {}", path.display()),
            };
            let sizes: Vec<_> = config
                .namespaces
                .iter()
                .map(|namespace| size::binary(namespace.size))
                .collect();
            eprintln!(
                "Serving a controller on {} (namespaces: {}; data: {backend}). Ctrl-C ends it.",
                args.socket.display(),
                if sizes.is_empty() {
                    "none".to_owned()
                } else {
                    sizes.join(", ")
                }
            );
            Ok(())
        }
    }
}

/// One line of JSON, at once.
fn line(value: &impl Serialize) -> Result<(), Error> {
    to_stdout(|out| {
        serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)
    })
}

fn summary(served: &ServedController, elapsed: Duration) -> Summary {
    let statistics = served.emulator().statistics();
    Summary {
        event: "ended",
        seconds: elapsed.as_secs_f64(),
        commands: statistics.commands,
        completions: statistics.completions,
        unsupported_commands: statistics.unsupported_commands,
        invalid_doorbells: statistics.invalid_doorbells,
        refused_accesses: served.emulator().iommu().fault_count(),
    }
}

fn tell(args: &EmulateArgs, summary: &Summary) -> Result<(), Error> {
    match args.output.output_format {
        Format::Json => line(summary),
        Format::Normal => {
            let mut text = format!(
                "Ended after {:.1} s: {} commands",
                summary.seconds, summary.commands
            );
            for (count, what) in [
                (summary.unsupported_commands, "not implemented"),
                (summary.invalid_doorbells, "invalid doorbell writes"),
                (
                    summary.refused_accesses,
                    "accesses outside the client's memory",
                ),
            ] {
                if count > 0 {
                    let _ = write!(text, ", {count} {what}");
                }
            }
            // The reader of standard error may be gone; that is no failure of the service.
            let _ = writeln!(io::stderr(), "{text}.");
            Ok(())
        }
    }
}

fn environment(error: io::Error) -> Error {
    Error::new(
        Kind::Environment,
        format!("cannot start the controller: {error}"),
    )
}

fn config_error(error: &ConfigError) -> Error {
    match error {
        ConfigError::Medium { source, .. } => {
            let kind = crate::convert::medium(source);
            let remedy = match kind {
                Kind::Environment => "Make it smaller: --size, or fewer namespaces",
                _ => {
                    "Name a file that you may write and that nothing else uses: --backend file:PATH"
                }
            };
            Error::new(kind, format!("{error}: {source}")).remedy(remedy)
        }
        ConfigError::Memory { source, .. } => {
            Error::new(Kind::Environment, format!("{error}: {source}"))
                .remedy("Use fewer queues: queues=N")
        }
        _ => Error::usage(error.to_string(), "Run: nvme-vfio emulate --help"),
    }
}

fn server_error(error: ServerError) -> Error {
    match &error {
        ServerError::InUse { path } => Error::new(Kind::Busy, error.to_string()).remedy(format!(
            "End that server, or serve on another socket: --socket {}.2",
            path.display()
        )),
        ServerError::NotASocket { .. } => Error::new(Kind::File, error.to_string())
            .remedy("Name a path that does not exist yet: --socket PATH"),
        ServerError::System { source, .. } if source.kind() == io::ErrorKind::InvalidFilename => {
            Error::new(Kind::File, format!("{error}: {source}"))
                .remedy("Name a shorter path, of at most 107 bytes: --socket PATH")
        }
        ServerError::System { path, source, .. } => {
            let kind = match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Permission,
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => Kind::File,
                _ => Kind::Environment,
            };
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            Error::new(kind, format!("{error}: {source}")).remedy(format!(
                "Name a socket in a folder that exists and that you may write: --socket PATH (it was {})",
                folder.display()
            ))
        }
        _ => Error::new(Kind::Environment, error.to_string()),
    }
}
