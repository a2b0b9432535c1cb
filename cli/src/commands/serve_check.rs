//! `serve --check`: what a policy means, before anybody is served.

mod isolation;
mod text;

use std::path::Path;

use nvme_vfio_passthrough::policy::{
    self, ClassifiedOpcode, ClientPolicy, ControllerFacts, Isolation, Limits, Mode,
    NamespacePolicy, PolicyError, PolicyFile, ResolvedClient, ResolvedPolicy, Warning, grantable,
    uuid_text, words,
};
use nvme_vfio_passthrough::server::{OpenedGroup, ServeError};
use nvme_vfio_passthrough::{Class, QueueKind};
use nvme_vfio_pci::Sysfs;
use serde::Serialize;

use crate::args::Format;
use crate::error::Error;
use crate::output::{print_json, print_text};

/// Everything that a policy means.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    policy: Option<String>,
    controllers: Vec<Controller>,
    /// Why the controllers were not asked: then sizes and what fits are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_asked: Option<String>,
    directory: String,
    audit: Audit,
    clients: Vec<Client>,
    classes: Vec<ClassWords>,
    /// Commands that a client's own controller answers; the real one never sees them.
    own_controller: Vec<Opcode>,
    isolation: Vec<String>,
    warnings: Vec<Remark>,
}

#[derive(Debug, Serialize)]
struct Controller {
    address: String,
    #[serde(flatten)]
    asked: Option<Asked>,
}

/// What a controller said of itself.
#[derive(Debug, Serialize)]
struct Asked {
    model: String,
    serial: String,
    firmware: String,
    namespaces: Vec<Real>,
}

#[derive(Debug, Serialize)]
struct Real {
    nsid: u32,
    blocks: u64,
    block_size: u32,
}

#[derive(Debug, Serialize)]
struct Audit {
    path: String,
    ring: u64,
    sample_allowed_io: u32,
}

#[derive(Debug, Serialize)]
struct Client {
    name: String,
    socket: String,
    uid: Vec<u32>,
    mode: &'static str,
    isolation: &'static str,
    unsealed_memory: bool,
    limits: Ceilings,
    serial: String,
    subnqn: String,
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Serialize)]
struct Ceilings {
    queues: u16,
    depth: u16,
    outstanding: u16,
    memory: u64,
    mappings: u32,
    iops: Option<u32>,
    bandwidth: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    nsid: u32,
    controller: String,
    /// Not known where the controller was not asked and a slice goes to the end of its namespace.
    blocks: Option<u64>,
    block_size: Option<u32>,
    nguid: String,
    uuid: String,
    source: Vec<Source>,
    allow: Vec<&'static str>,
    shared: bool,
}

#[derive(Debug, Serialize)]
struct Source {
    nsid: u32,
    start: u64,
    /// `None`: up to the end.
    blocks: Option<u64>,
}

/// A class, and the commands that it is about.
#[derive(Debug, Serialize)]
struct ClassWords {
    class: &'static str,
    /// Who has it.
    clients: Vec<String>,
    commands: Vec<Opcode>,
}

#[derive(Debug, Serialize)]
struct Opcode {
    queue: &'static str,
    opcode: u8,
    name: &'static str,
}

#[derive(Debug, Serialize)]
struct Remark {
    kind: &'static str,
    client: Option<String>,
    nsid: Option<u32>,
    text: String,
}

impl Report {
    /// Explains a policy; `opened` are its controllers, or why they could not be had.
    ///
    /// # Errors
    /// The policy does not fit the controllers.
    pub(super) fn new(
        policy: &PolicyFile,
        opened: &Result<OpenedGroup, ServeError>,
    ) -> Result<Self, PolicyError> {
        let (facts, not_asked) = match opened {
            Ok(opened) => (Some(opened), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let resolved = facts
            .map(|opened| policy.resolve(opened.facts(), &opened.budget()))
            .transpose()?;
        let facts = facts.map_or(&[][..], OpenedGroup::facts);
        Ok(Self::of(policy, resolved.as_ref(), facts, not_asked))
    }

    fn of(
        policy: &PolicyFile,
        resolved: Option<&ResolvedPolicy>,
        facts: &[ControllerFacts],
        not_asked: Option<String>,
    ) -> Self {
        let warnings = match resolved {
            Some(resolved) => resolved.warnings.clone(),
            None => policy.warnings(),
        };
        let clients = policy.clients.iter().enumerate().map(|(index, client)| {
            let resolved = resolved.and_then(|resolved| resolved.clients.get(index));
            Client::of(policy, client, resolved)
        });
        let controllers = policy.controllers.iter().enumerate();
        let opcodes = policy::opcodes();
        Self {
            policy: policy.file.as_deref().map(shown),
            controllers: controllers
                .map(|(index, address)| Controller {
                    address: address.to_string(),
                    asked: facts.get(index).map(Asked::of),
                })
                .collect(),
            not_asked,
            directory: shown(&policy.directory),
            audit: Audit {
                path: shown(&policy.audit.path),
                ring: policy.audit.ring,
                sample_allowed_io: policy.audit.sample_allowed_io,
            },
            clients: clients.collect(),
            classes: classes(policy, &opcodes),
            own_controller: behind(&opcodes, Class::Virtual),
            isolation: isolation::words(policy, &Sysfs::system()),
            warnings: warnings.into_iter().map(Remark::of).collect(),
        }
    }

    /// Writes it to standard output.
    ///
    /// # Errors
    /// Standard output takes no more.
    pub(super) fn tell(&self, format: Format) -> Result<(), Error> {
        match format {
            Format::Json => print_json(self),
            Format::Normal => print_text(&text::render(self)),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Asked {
    fn of(facts: &ControllerFacts) -> Self {
        let namespaces = facts.namespaces.iter().map(|one| Real {
            nsid: one.nsid,
            blocks: one.blocks,
            block_size: one.block_size,
        });
        Self {
            model: facts.model.clone(),
            serial: facts.serial.clone(),
            firmware: facts.firmware.clone(),
            namespaces: namespaces.collect(),
        }
    }
}

impl Client {
    fn of(policy: &PolicyFile, client: &ClientPolicy, resolved: Option<&ResolvedClient>) -> Self {
        let names = policy.controller_names(client);
        let limits = resolved.map_or(client.limits, |resolved| resolved.limits);
        let namespaces = client.namespaces.iter();
        Self {
            name: client.name.clone(),
            socket: shown(&policy.socket(client)),
            uid: client.uid.clone(),
            mode: match client.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            },
            isolation: match client.isolation {
                Isolation::Shared => "shared",
                Isolation::Bounce => "bounce",
            },
            unsealed_memory: client.unsealed_memory,
            limits: Ceilings::of(&limits),
            serial: names.serial,
            subnqn: names.subnqn,
            namespaces: namespaces
                .map(|namespace| Namespace::of(policy, client, namespace, resolved))
                .collect(),
        }
    }
}

impl Ceilings {
    fn of(limits: &Limits) -> Self {
        Self {
            queues: limits.queues,
            depth: limits.depth,
            outstanding: limits.outstanding,
            memory: limits.memory,
            mappings: limits.mappings,
            iops: limits.iops,
            bandwidth: limits.bandwidth,
        }
    }
}

impl Namespace {
    fn of(
        policy: &PolicyFile,
        client: &ClientPolicy,
        namespace: &NamespacePolicy,
        resolved: Option<&ResolvedClient>,
    ) -> Self {
        let names = policy.namespace_names(client, namespace.nsid);
        let mut known = resolved.into_iter().flat_map(|client| &client.namespaces);
        let known = known.find(|known| known.nsid == namespace.nsid);
        let told = || {
            let mut parts = namespace.source.iter();
            parts.try_fold(0u64, |sum, part| sum.checked_add(part.blocks?))
        };
        let source = namespace.source.iter().enumerate();
        Self {
            nsid: namespace.nsid,
            controller: policy
                .controllers
                .get(namespace.controller)
                .map_or_else(String::new, ToString::to_string),
            blocks: known.map_or_else(told, |known| Some(known.blocks)),
            block_size: known.map(|known| 1 << known.block_shift),
            nguid: hexadecimal(&names.nguid),
            uuid: uuid_text(names.uuid),
            source: source
                .map(|(index, part)| Source {
                    nsid: part.nsid,
                    start: part.start,
                    blocks: known
                        .and_then(|known| known.extents.get(index))
                        .map_or(part.blocks, |extent| Some(extent.blocks)),
                })
                .collect(),
            allow: words(namespace.allow),
            shared: namespace.shared,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The commands of a class.
fn behind(opcodes: &[ClassifiedOpcode], class: Class) -> Vec<Opcode> {
    let those = opcodes.iter().filter(|one| one.class == class);
    those
        .map(|one| Opcode {
            queue: match one.queue {
                QueueKind::Admin => "admin",
                QueueKind::Io => "io",
            },
            opcode: one.opcode,
            name: one.name,
        })
        .collect()
}

/// What each class is about and who has it.
fn classes(policy: &PolicyFile, opcodes: &[ClassifiedOpcode]) -> Vec<ClassWords> {
    grantable()
        .map(|(word, class)| {
            let granted = |client: &&ClientPolicy| client.classes().has(class);
            let clients = policy.clients.iter().filter(granted);
            let mut commands = behind(opcodes, class);
            if class == Class::Read {
                // What is known of blocks is told to those who may read them.
                commands.extend(behind(opcodes, Class::BlockStatus));
            }
            ClassWords {
                class: word,
                clients: clients.map(|client| client.name.clone()).collect(),
                commands,
            }
        })
        .collect()
}

impl Remark {
    fn of(warning: Warning) -> Self {
        Self {
            kind: warning.kind,
            client: warning.client,
            nsid: warning.nsid,
            text: warning.text,
        }
    }
}

#[cfg(test)]
mod tests;
