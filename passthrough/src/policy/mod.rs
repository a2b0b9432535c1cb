//! What each client may do: the policy file, its checks, and the [`Policy`](crate::Policy)s made of it.

mod classes;
mod document;
mod error;
mod facts;
mod group;
mod keys;
mod names;
mod opcodes;
mod owner;
mod plain;
mod quantity;
mod real;
mod resolve;
mod rules;
mod slices;
#[cfg(test)]
mod tests;
mod warnings;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use classes::{grantable, words};
pub use document::Place;
pub use error::{Fault, PolicyError};
pub(crate) use facts::command_set;
pub use facts::{Budget, ControllerFacts, NamespaceFacts};
pub use group::GroupPolicy;
pub use keys::{MAX_CLIENTS, MAX_NSID};
pub use names::{ControllerNames, NamespaceNames, uuid_text};
pub use opcodes::{ClassifiedOpcode, opcodes};
pub use owner::OwnerPolicy;
pub use plain::{
    AuditPolicy, ClientPolicy, Isolation, Limits, Mode, NamespacePolicy, PolicyFile, Source,
};
pub use resolve::{RealExtent, ResolvedClient, ResolvedNamespace, ResolvedPolicy, Warning};

use crate::trust;

/// The socket of a client.
fn socket_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Whether both paths lead to one file that is there.
fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

impl PolicyFile {
    /// Reads a policy from a file.
    ///
    /// # Errors
    /// [`PolicyError::Read`], or what is wrong with it, with the file's name.
    pub fn open(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        let mut foreign = trust::look(path, true).map_err(failed)?;
        File::open(path)
            .and_then(|file| {
                if foreign.is_none() {
                    foreign = trust::look_at(path, &file)?;
                }
                file.take(keys::MAX_FILE + 1).read_to_end(&mut bytes)
            })
            .map_err(failed)?;
        if bytes.len() as u64 > keys::MAX_FILE {
            let error = io::Error::new(io::ErrorKind::FileTooLarge, "a policy has at most 4 MiB");
            return Err(failed(error));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let (good, _) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {line} is not UTF-8, as TOML is"),
            ))
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let policy = Self::parse(&text, base).map_err(|error| error.in_file(path))?;
        if same_file(path, &policy.audit.path) {
            let fault = Fault::Unusable {
                key: "path",
                reason: "this is the policy, and records would be appended to it".to_owned(),
            };
            return Err(PolicyError::at(policy.audit.place, fault).in_file(path));
        }
        // What cannot be looked at will be told of where it is used.
        let foreign_directory = trust::look(&policy.directory, true).unwrap_or_default();
        Ok(Self {
            file: Some(path.to_owned()),
            foreign,
            foreign_directory,
            ..policy
        })
    }

    /// Refuses a policy that somebody else could have changed, where this process is root's: it would do for him what only root may.
    ///
    /// # Errors
    /// [`PolicyError::Foreign`].
    pub fn check_foreign(&self) -> Result<(), PolicyError> {
        match (&self.file, &self.foreign) {
            (Some(file), Some(foreign)) if nix::unistd::geteuid().is_root() => {
                Err(PolicyError::Foreign {
                    path: file.clone(),
                    foreign: foreign.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Reads a policy from a text. Relative paths in it are relative to `base`.
    ///
    /// ```
    /// use std::path::Path;
    /// use nvme_vfio_passthrough::policy::PolicyFile;
    ///
    /// let policy = PolicyFile::parse(r#"
    ///     controller = ["emulated:size=64M"]
    ///     directory = "/run/nvme-vfio/0"
    ///     audit = { path = "audit.jsonl" }
    ///
    ///     [[client]]
    ///     name = "vm-a"
    ///     uid = [1000]
    ///     limits = { bandwidth = "200MiB/s" }
    ///
    ///     [[client.namespace]]
    ///     nsid = 1
    ///     source = [{ nsid = 1, start = 1000, blocks = 1000 }]
    ///     allow = ["read", "write", "flush"]
    /// "#, Path::new("/etc/nvme-vfio"))?;
    /// assert_eq!(policy.audit.path, Path::new("/etc/nvme-vfio/audit.jsonl"));
    /// # Ok::<(), nvme_vfio_passthrough::policy::PolicyError>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with it: the first thing that is found.
    pub fn parse(text: &str, base: &Path) -> Result<Self, PolicyError> {
        let policy = keys::read(text, base)?;
        rules::check(&policy)?;
        Ok(policy)
    }

    /// What tells the group from others: the lowest address of its controllers.
    #[must_use]
    pub fn group_name(&self) -> String {
        rules::group_name(&self.controllers)
    }

    /// Where the socket of a client is made.
    #[must_use]
    pub fn socket(&self, client: &ClientPolicy) -> PathBuf {
        socket_path(&self.directory, &client.name)
    }

    /// What a client's virtual controller is called.
    #[must_use]
    pub fn controller_names(&self, client: &ClientPolicy) -> ControllerNames {
        names::controller(&self.group_name(), &client.name)
    }

    /// What a client's namespace is called.
    #[must_use]
    pub fn namespace_names(&self, client: &ClientPolicy, nsid: u32) -> NamespaceNames {
        names::namespace(&self.group_name(), &client.name, nsid)
    }
}
