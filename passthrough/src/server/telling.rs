//! What the service tells the log and the audit of itself.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::events::{Herald, MenderEvent};
use crate::audit::{Event, ServerAudit, Text};
use crate::policy::{PolicyFile, ResolvedPolicy};

/// The first records.
pub(super) fn tell_beginning(policy: &PolicyFile, audit: &ServerAudit, resolved: &ResolvedPolicy) {
    audit.record(Event::ServerStarted {
        version: Text::from(env!("CARGO_PKG_VERSION")),
        pid: std::process::id(),
        controllers: policy
            .controllers
            .iter()
            .map(|address| Text::from(address.to_string()))
            .collect(),
    });
    let file = policy.file.as_deref().map(Path::as_os_str);
    let mut sha256 = String::new();
    for byte in policy.sha256 {
        // A string takes everything.
        let _ = write!(sha256, "{byte:02x}");
    }
    audit.record(Event::PolicyLoaded {
        path: Text::from(file.unwrap_or_default().as_bytes()),
        sha256: Text::from(sha256),
    });
    for client in &resolved.clients {
        let earlier = resolved.warnings.iter().filter(|warning| {
            warning.kind == "earlier-data"
                && warning.client.as_deref() == Some(client.policy.name.as_str())
        });
        for nsid in earlier.filter_map(|warning| warning.nsid) {
            audit.record(Event::NotScrubbed {
                client: client.id,
                nsid,
            });
        }
    }
}

/// What the mender does goes to the log and the audit.
pub(super) fn herald(policy: &PolicyFile, audit: &ServerAudit) -> Herald {
    let names: Vec<String> = policy.controllers.iter().map(ToString::to_string).collect();
    let clients: Vec<String> = policy
        .clients
        .iter()
        .map(|client| client.name.clone())
        .collect();
    let audit = audit.clone();
    Herald::new(move |event| {
        let name = |index: usize| names.get(index).map_or("", String::as_str);
        let client =
            |id: crate::ClientId| clients.get(usize::from(id.0)).map_or("", String::as_str);
        match event {
            MenderEvent::Aborting {
                client: id,
                controller,
                commands,
            } => {
                tracing::warn!(
                    client = client(id),
                    controller = name(controller),
                    commands,
                    "commands have not ended in time and are aborted"
                );
            }
            MenderEvent::DeletingQueue {
                client: id,
                controller,
                commands,
            } => {
                tracing::warn!(
                    client = client(id),
                    controller = name(controller),
                    commands,
                    "the queue of a client is deleted, since its commands have not ended"
                );
                audit.record(Event::QueueDeleted {
                    client: id,
                    controller: Text::from(name(controller)),
                    cause: Text::from(format!("{commands} commands have not ended")),
                });
            }
            MenderEvent::Resetting {
                client: id,
                controller,
            } => {
                let cause = match id {
                    Some(id) => format!("commands of client {} have not ended", client(id)),
                    None => "it has failed".to_owned(),
                };
                tracing::error!(
                    controller = name(controller),
                    cause,
                    "the controller is reset: the commands of all clients end"
                );
                audit.record(Event::ControllerReset {
                    controller: Text::from(name(controller)),
                    cause: Text::from(cause),
                });
            }
            MenderEvent::Reset { controller } => {
                tracing::warn!(
                    controller = name(controller),
                    "the controller is usable again after a reset"
                );
                audit.record(Event::ControllerRecovered {
                    controller: Text::from(name(controller)),
                    usable: true,
                    cause: Text::from("it was reset"),
                });
            }
            MenderEvent::Gone { controller } => {
                tracing::error!(controller = name(controller), "the controller is gone");
                audit.record(Event::ControllerRecovered {
                    controller: Text::from(name(controller)),
                    usable: false,
                    cause: Text::from("it does not answer any more"),
                });
            }
        }
    })
}
