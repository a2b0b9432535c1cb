//! `serve`: controllers lent to clients, each confined to what a policy grants it.

mod failures;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use nvme_vfio_passthrough::audit::Event;
use nvme_vfio_passthrough::policy::{Isolation, Mode, PolicyFile, Warning};
use nvme_vfio_passthrough::privileges::{self, Account, Privileges};
use nvme_vfio_passthrough::server::{
    Ending, OpenedGroup, Prepared, ServeOptions, Serving, Summary,
};
use nvme_vfio_user::sigbus;
use serde::Serialize;

use super::{cpu, interrupts, serve_check::Report, signals, warnings::merged};
use crate::{
    args::{Format, ServeArgs},
    error::{Error, Kind},
    output::to_stdout,
};

/// What is written when clients can connect.
#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    pid: u32,
    controllers: Vec<String>,
    directory: &'a Path,
    audit: &'a Path,
    clients: Vec<ReadyClient<'a>>,
    warnings: Vec<ReadyWarning<'a>>,
}

#[derive(Serialize)]
struct ReadyClient<'a> {
    name: &'a str,
    socket: &'a Path,
    uid: &'a [u32],
    mode: &'static str,
    isolation: &'static str,
    namespaces: Vec<u32>,
}

#[derive(Serialize)]
struct ReadyWarning<'a> {
    kind: &'static str,
    client: Option<&'a str>,
    nsid: Option<u32>,
    text: &'a str,
}

/// What is written at the end.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    cause: String,
    seconds: f64,
    commands: u64,
    completions: u64,
    sleeps: u64,
    controller_resets: u64,
    audit_lines: u64,
}

/// Serves until a signal comes.
///
/// # Errors
/// Whatever stands in the way, and what can be done about it.
pub(super) fn run(args: &ServeArgs) -> Result<(), Error> {
    let policy = PolicyFile::open(&args.policy).map_err(failures::policy)?;
    if args.check {
        let opened = OpenedGroup::open(&policy, &ServeOptions::default());
        let report = Report::new(&policy, &opened).map_err(failures::policy)?;
        return report.tell(args.output.output_format);
    }
    if let Some(cpu) = args.cpu {
        cpu::check(cpu)?;
    }
    let stop = signals::stop()
        .map_err(|errno| Error::new(Kind::Environment, format!("cannot watch signals: {errno}")))?;
    // A client may be allowed to keep memory that it can shrink; whoever does that must not end this process.
    sigbus::install().map_err(|errno| {
        Error::new(
            Kind::Environment,
            format!("cannot guard against clients that take their memory back: {errno}"),
        )
    })?;
    let options = ServeOptions {
        busy: args.poll,
        cpu: args.cpu,
        io_timeout: args.io_timeout,
        ..ServeOptions::default()
    };
    let account = account(&args.user)?;
    raise_limits();
    interrupts::prepare();
    let group = OpenedGroup::open(&policy, &options).map_err(failures::serve)?;
    let prepared = Prepared::new(&policy, group, &options).map_err(failures::serve)?;
    give_up_privileges(&prepared, account)?;
    let mut serving = prepared.begin().map_err(failures::serve)?;
    ready(args.output.output_format, &policy, &serving)?;
    let ending = serving.wait(stop);
    if let Ending::WantedBack(_) = &ending {
        let _ = writeln!(io::stderr(), "The service ends: {ending}.");
    }
    let summary = serving.finish().map_err(failures::serve)?;
    tell(args.output.output_format, &ending, &summary)?;
    match ending {
        Ending::NoSockets | Ending::ThreadLost => Err(Error::new(
            Kind::Environment,
            format!("the service has ended: {ending}"),
        )),
        _ => Ok(()),
    }
}

/// Who the server becomes, where it is root's.
fn account(user: &str) -> Result<Account, Error> {
    Account::named(user).map_err(|error| {
        Error::usage(
            format!("--user {user}: {error}"),
            "Name a user without rights: --user 65534",
        )
    })
}

/// Everything is open, and nobody was let in yet: whatever else this process could do it gives up.
fn give_up_privileges(prepared: &Prepared, account: Account) -> Result<(), Error> {
    let given_up = privileges::give_up(&Privileges {
        account,
        locked_memory: None,
        // Where the user changes, the sockets' directory is not the new one's.
        removes_files: !geteuid().is_root(),
    })
    .map_err(|error| failures::privileges(&error))?;
    prepared.audit().record(Event::PrivilegesDropped {
        summary: given_up.to_string().into(),
    });
    Ok(())
}

fn ready(format: Format, policy: &PolicyFile, serving: &Serving) -> Result<(), Error> {
    match format {
        Format::Json => line(&Ready {
            event: "ready",
            pid: std::process::id(),
            controllers: policy.controllers.iter().map(ToString::to_string).collect(),
            directory: &policy.directory,
            audit: &policy.audit.path,
            clients: clients(policy, serving),
            warnings: serving.warnings().iter().map(ReadyWarning::of).collect(),
        }),
        Format::Normal => {
            let mut text = String::new();
            let warnings = serving.warnings().iter();
            let parts = warnings.map(|one| (one.client.as_deref(), one.nsid, one.text.as_ref()));
            for (about, what) in merged(parts) {
                let _ = writeln!(text, "warning: {about}{what}");
            }
            let controllers: Vec<_> = policy.controllers.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "Serving {}. Ctrl-C ends it.", controllers.join(", "));
            for (name, socket) in serving.clients() {
                let _ = writeln!(text, "  {name}: vfio-user:{}", socket.display());
            }
            // The reader of standard error may be gone; that is no failure of the service.
            let _ = io::stderr().write_all(text.as_bytes());
            Ok(())
        }
    }
}

fn clients<'a>(policy: &'a PolicyFile, serving: &'a Serving) -> Vec<ReadyClient<'a>> {
    let pairs = policy.clients.iter().zip(serving.clients());
    pairs
        .map(|(client, (name, socket))| ReadyClient {
            name,
            socket,
            uid: &client.uid,
            mode: match client.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            },
            isolation: match client.isolation {
                Isolation::Shared => "shared",
                Isolation::Bounce => "bounce",
            },
            namespaces: client.namespaces.iter().map(|one| one.nsid).collect(),
        })
        .collect()
}

impl<'a> ReadyWarning<'a> {
    fn of(warning: &'a Warning) -> ReadyWarning<'a> {
        ReadyWarning {
            kind: warning.kind,
            client: warning.client.as_deref(),
            nsid: warning.nsid,
            text: &warning.text,
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

fn tell(format: Format, ending: &Ending, summary: &Summary) -> Result<(), Error> {
    let seconds = summary.time.as_secs_f64();
    match format {
        Format::Json => line(&Ended {
            event: "ended",
            cause: ending.to_string(),
            seconds,
            commands: summary.commands,
            completions: summary.completions,
            sleeps: summary.sleeps,
            controller_resets: summary.resets,
            audit_lines: summary.audit_lines,
        }),
        Format::Normal => {
            let mut text = format!("Ended after {seconds:.1} s: {} commands", summary.commands);
            if summary.resets > 0 {
                let _ = write!(text, ", {} resets of a controller", summary.resets);
            }
            let _ = writeln!(
                io::stderr(),
                "{text}, {} lines of audit.",
                summary.audit_lines
            );
            Ok(())
        }
    }
}

/// Descriptors (each client has sockets, memory and an eventfd for each vector) and memory that is locked for devices: as much as this process may have.
fn raise_limits() {
    for (resource, what) in [
        (Resource::RLIMIT_NOFILE, "open files"),
        (Resource::RLIMIT_MEMLOCK, "locked memory"),
    ] {
        let raised = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, hard, hard));
        if let Err(errno) = raised {
            let _ = writeln!(
                io::stderr(),
                "warning: the limit of {what} cannot be raised: {errno}"
            );
        }
    }
}
