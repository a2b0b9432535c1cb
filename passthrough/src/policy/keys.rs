//! The keys of a policy file, each with what it may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nvme_vfio::Address;
use sha2::{Digest as _, Sha256};

use super::classes;
use super::document::{self, Node, Place, Table};
use super::error::{Fault, PolicyError};
use super::plain::{
    AuditPolicy, ClientPolicy, Isolation, Limits, Mode, NamespacePolicy, PolicyFile, Source,
};
use crate::command::ClassSet;

/// The highest namespace identifier that a client can see.
pub const MAX_NSID: u32 = 1024;
/// Clients of one policy.
pub const MAX_CLIENTS: usize = 256;
/// Bytes of a policy file.
pub(super) const MAX_FILE: u64 = 4 << 20;

const MAX_CONTROLLERS: usize = 64;
const MAX_USERS: usize = 256;
const MAX_SOURCES: usize = 1024;
const MAX_NAME: usize = 48;
/// Bytes of `sun_path`, with the zero at its end (unix(7)).
const SUN_PATH: usize = 108;
/// (uid_t) -1 means "nobody in particular" to the kernel's calls and is no user.
const MAX_UID: u64 = u32::MAX as u64 - 1;

/// Reads a policy. Relative paths are relative to `base`.
pub(super) fn read(text: &str, base: &Path) -> Result<PolicyFile, PolicyError> {
    let mut root = document::read(text)?.only(&["controller", "directory", "audit", "client"])?;
    let controllers = controllers(root.need("controller")?, base)?;
    let directory = path(&root.need("directory")?, "directory", base)?;
    let audit = audit(root.need("audit")?, base)?;
    let context = Context {
        base,
        directory: &directory,
        controllers: &controllers,
    };
    let mut clients: Vec<ClientPolicy> = Vec::new();
    for node in root.need("client")?.list(MAX_CLIENTS)? {
        let client = client(node.table()?, &context)?;
        if let Some(first) = clients.iter().find(|other| other.name == client.name) {
            return Err(PolicyError::at(
                client.place,
                Fault::Twice {
                    what: format!("a client named \"{}\"", client.name),
                    first: first.place,
                },
            ));
        }
        clients.push(client);
    }
    Ok(PolicyFile {
        file: None,
        foreign: None,
        foreign_directory: None,
        sha256: Sha256::digest(text).into(),
        controllers: controllers
            .into_iter()
            .map(|(_, address)| address)
            .collect(),
        directory,
        audit,
        clients,
    })
}

fn unusable(node: &Node, key: &'static str, reason: impl Into<String>) -> PolicyError {
    node.fault(Fault::Unusable {
        key,
        reason: reason.into(),
    })
}

/// A path that is given as a string.
fn path(node: &Node, key: &'static str, base: &Path) -> Result<PathBuf, PolicyError> {
    match node.text()? {
        "" => Err(unusable(node, key, "the path is empty")),
        text if text.contains('\0') => Err(unusable(node, key, "the path has a zero in it")),
        text => Ok(base.join(text)),
    }
}

fn controllers(node: Node, base: &Path) -> Result<Vec<(Place, Address)>, PolicyError> {
    const KEY: &str = "controller";
    let mut controllers: Vec<(Place, Address)> = Vec::new();
    for node in node.list(MAX_CONTROLLERS)? {
        let address = address(&node, base)?;
        if let Some((first, _)) = controllers.iter().find(|(_, other)| same(other, &address)) {
            return Err(node.fault(Fault::Twice {
                what: format!("the controller {address}"),
                first: *first,
            }));
        }
        let alone = |address: &Address| !matches!(address, Address::Pci { .. });
        if !controllers.is_empty() && (alone(&address) || alone(&controllers[0].1)) {
            // INVARIANT: not empty
            return Err(unusable(
                &node,
                KEY,
                "an emulated or vfio-user controller is a group of its own and stands alone",
            ));
        }
        controllers.push((node.place, address));
    }
    Ok(controllers)
}

/// An address; a socket's path is relative to the file.
fn address(node: &Node, base: &Path) -> Result<Address, PolicyError> {
    let address: Address = node
        .text()?
        .parse()
        .map_err(|error: nvme_vfio::AddressError| {
            unusable(node, "controller", error.to_string())
        })?;
    Ok(match address {
        Address::VfioUser(path) => Address::VfioUser(base.join(path)),
        Address::Emulated(config) => match config.parse::<nvme_vfio_emulator::Config>() {
            Ok(_) => Address::Emulated(config),
            Err(error) => return Err(unusable(node, "controller", error.to_string())),
        },
        other => other,
    })
}

/// Whether two addresses are one controller, whichever way it is reached.
fn same(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (
            Address::Pci { function, .. },
            Address::Pci {
                function: other, ..
            },
        ) => function == other,
        _ => one == other,
    }
}

fn audit(node: Node, base: &Path) -> Result<AuditPolicy, PolicyError> {
    let mut table = node.table()?.only(&["path", "ring", "sample-allowed-io"])?;
    let node = table.need("path")?;
    let file = path(&node, "path", base)?;
    if file.is_dir() {
        return Err(unusable(&node, "path", "this is a directory"));
    }
    let ring = table.take("ring");
    let ring = ring.map_or(Ok(1 << 20), |node| node.amount(64 << 10, 1 << 30, "B"))?;
    let sample = table.take("sample-allowed-io");
    let sample = sample.map_or(Ok(1000), |node| small(&node, 0, 1_000_000_000))?;
    Ok(AuditPolicy {
        path: file,
        place: node.place,
        ring,
        sample_allowed_io: sample,
    })
}

/// A number that fits 32 bits.
fn small(node: &Node, least: u32, most: u32) -> Result<u32, PolicyError> {
    let number = node.number(least.into(), most.into())?;
    Ok(u32::try_from(number).unwrap_or(most))
}

/// A number that fits 16 bits.
fn tiny(node: &Node, least: u16, most: u16) -> Result<u16, PolicyError> {
    let number = node.number(least.into(), most.into())?;
    Ok(u16::try_from(number).unwrap_or(most))
}

/// One of a few words.
fn word<T: Copy>(
    node: &Node,
    key: &'static str,
    words: &[(&'static str, T)],
) -> Result<T, PolicyError> {
    let text = node.text()?;
    let found = words.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<String> = words
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        node.fault(Fault::Word {
            key,
            value: text.to_owned(),
            known: known.join(" or "),
        })
    })
}

/// What the keys of a client refer to.
struct Context<'a> {
    base: &'a Path,
    directory: &'a Path,
    controllers: &'a [(Place, Address)],
}

impl Context<'_> {
    /// The index of the controller that a namespace names.
    fn controller(&self, node: &Node) -> Result<usize, PolicyError> {
        let named = address(node, self.base)?;
        let mut list = self.controllers.iter();
        list.position(|(_, other)| same(other, &named))
            .ok_or_else(|| {
                let reason = format!("{named} is not in the policy's list of controllers");
                unusable(node, "controller", reason)
            })
    }

    /// The name of a client: it becomes a file's name, so it can be no path, no hidden file, and not too long.
    fn name(&self, node: &Node) -> Result<String, PolicyError> {
        let text = node.text()?;
        let refuse = |reason: String| Err(unusable(node, "name", reason));
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || text.len() > MAX_NAME {
            return refuse(format!(
                "a name has 1 to {MAX_NAME} characters, this has {}",
                text.chars().count()
            ));
        }
        if !text.chars().all(fits) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse(format!(
                "\"{}\" is no name: letters, digits, '-', '_' and '.', the first a letter or a digit",
                text.escape_debug()
            ));
        }
        let bytes = super::socket_path(self.directory, text).as_os_str().len();
        if bytes >= SUN_PATH {
            return refuse(format!(
                "the socket's path {} would have {bytes} bytes; a socket's path has at most {}",
                super::socket_path(self.directory, text).display(),
                SUN_PATH - 1
            ));
        }
        Ok(text.to_owned())
    }
}

fn client(table: Table, context: &Context<'_>) -> Result<ClientPolicy, PolicyError> {
    let mut table = table.only(&[
        "name",
        "uid",
        "mode",
        "isolation",
        "unsealed-memory",
        "limits",
        "namespace",
    ])?;
    let name = table.need("name")?;
    let place = name.place;
    let name = context.name(&name)?;
    let uid = users(table.need("uid")?)?;
    let mode = table.take("mode").map_or(Ok(Mode::default()), |node| {
        word(
            &node,
            "mode",
            &[("enforce", Mode::Enforce), ("observe", Mode::Observe)],
        )
    })?;
    let isolation = table
        .take("isolation")
        .map_or(Ok(Isolation::default()), |node| {
            word(
                &node,
                "isolation",
                &[("shared", Isolation::Shared), ("bounce", Isolation::Bounce)],
            )
        })?;
    let unsealed = table.take("unsealed-memory");
    let unsealed_memory = unsealed.map_or(Ok(false), |node| node.switch())?;
    let limits = table.take("limits").map_or(Ok(Limits::default()), limits)?;
    let mut namespaces: Vec<NamespacePolicy> = Vec::new();
    for node in table.need("namespace")?.list(MAX_NSID as usize)? {
        let namespace = namespace(node.table()?, context)?;
        let same = |other: &&NamespacePolicy| other.nsid == namespace.nsid;
        if let Some(first) = namespaces.iter().find(same) {
            return Err(PolicyError::at(
                namespace.place,
                Fault::Twice {
                    what: format!("namespace {} of client \"{name}\"", namespace.nsid),
                    first: first.place,
                },
            ));
        }
        namespaces.push(namespace);
    }
    Ok(ClientPolicy {
        name,
        uid,
        mode,
        isolation,
        unsealed_memory,
        limits,
        namespaces,
        place,
    })
}

fn users(node: Node) -> Result<Vec<u32>, PolicyError> {
    let mut seen = BTreeMap::new();
    let mut users = Vec::new();
    for node in node.list(MAX_USERS)? {
        let uid = u32::try_from(node.number(0, MAX_UID)?).unwrap_or(0);
        if let Some(first) = seen.insert(uid, node.place) {
            return Err(node.fault(Fault::Twice {
                what: format!("user {uid}"),
                first,
            }));
        }
        users.push(uid);
    }
    Ok(users)
}

fn limits(node: Node) -> Result<Limits, PolicyError> {
    let mut table = node.table()?.only(&[
        "queues",
        "depth",
        "outstanding",
        "memory",
        "mappings",
        "iops",
        "bandwidth",
    ])?;
    let mut limits = Limits::default();
    if let Some(node) = table.take("queues") {
        limits.queues = tiny(&node, 1, 64)?;
    }
    if let Some(node) = table.take("depth") {
        limits.depth = tiny(&node, 2, 4096)?;
    }
    if let Some(node) = table.take("outstanding") {
        limits.outstanding = tiny(&node, 1, 4095)?;
    }
    if let Some(node) = table.take("memory") {
        limits.memory = node.amount(64 << 10, 64 << 40, "B")?;
    }
    if let Some(node) = table.take("mappings") {
        limits.mappings = small(&node, 1, 65_535)?;
    }
    if let Some(node) = table.take("iops") {
        limits.iops = Some(small(&node, 1, 100_000_000)?);
    }
    if let Some(node) = table.take("bandwidth") {
        limits.bandwidth = Some(node.amount(64 << 10, 1 << 40, "/s")?);
    }
    Ok(limits)
}

fn namespace(table: Table, context: &Context<'_>) -> Result<NamespacePolicy, PolicyError> {
    let mut table = table.only(&["nsid", "controller", "source", "allow", "shared"])?;
    let nsid = table.need("nsid")?;
    let place = nsid.place;
    let nsid = small(&nsid, 1, MAX_NSID)?;
    let controller = match table.take("controller") {
        Some(node) => context.controller(&node)?,
        None if context.controllers.len() == 1 => 0,
        None => table
            .need("controller")
            .and_then(|node| context.controller(&node))?,
    };
    let source = sources(table.need("source")?)?;
    let allow = allow(table.need("allow")?)?;
    let shared = table
        .take("shared")
        .map_or(Ok(false), |node| node.switch())?;
    Ok(NamespacePolicy {
        nsid,
        controller,
        source,
        allow,
        shared,
        place,
    })
}

fn sources(node: Node) -> Result<Vec<Source>, PolicyError> {
    let mut sources = Vec::new();
    for node in node.list(MAX_SOURCES)? {
        let mut table = node.table()?.only(&["nsid", "start", "blocks"])?;
        let place = table.place;
        // FFFFFFFFh is all namespaces, FFFFFFFEh reserved.
        let nsid = small(&table.need("nsid")?, 1, u32::MAX - 2)?;
        let start = table.take("start");
        let start = start.map_or(Ok(0), |node| node.number(0, u64::MAX - 1))?;
        let blocks = match table.take("blocks") {
            Some(node) => Some(node.number(1, u64::MAX - start)?),
            None => None,
        };
        sources.push(Source {
            nsid,
            start,
            blocks,
            place,
        });
    }
    Ok(sources)
}

fn allow(node: Node) -> Result<ClassSet, PolicyError> {
    let mut allow = ClassSet::empty();
    let mut places: Vec<(String, Place)> = Vec::new();
    for node in node.list(ClassSet::all().bits().count_ones() as usize)? {
        let text = node.text()?;
        let Some(set) = classes::set_of(text) else {
            return Err(node.fault(Fault::Word {
                key: "allow",
                value: text.to_owned(),
                known: classes::known(),
            }));
        };
        if let Some((_, first)) = places.iter().find(|(word, _)| word == text) {
            return Err(node.fault(Fault::Twice {
                what: format!("\"{text}\""),
                first: *first,
            }));
        }
        places.push((text.to_owned(), node.place));
        allow |= set;
    }
    Ok(allow)
}
