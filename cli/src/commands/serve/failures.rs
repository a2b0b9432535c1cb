//! What stands in the way of serving, and what to type next.

use std::io;

use nvme_vfio_passthrough::audit::AuditError;
use nvme_vfio_passthrough::policy::{Fault, PolicyError};
use nvme_vfio_passthrough::privileges::PrivilegesError;
use nvme_vfio_passthrough::server::{DirectoryError, ServeError};
use nvme_vfio_user::ServerError;

use crate::error::{Error, Kind};

/// A directory in which others make names, as /tmp is.
const STICKY: u32 = 0o1000;
const POLICY_HELP: &str = "Correct the policy; nvme-vfio serve --help shows one";

pub(super) fn policy(error: PolicyError) -> Error {
    if let PolicyError::Foreign { foreign, .. } = &error {
        return Error::new(Kind::Permission, error.to_string()).remedy(format!(
            "Run: {}, or have the policy where only root can write, as in /etc",
            foreign.remedy()
        ));
    }
    let kind = match &error {
        PolicyError::Read { .. } => Kind::File,
        // The policy is well formed, and does not fit this machine or controller.
        _ => Kind::Usage,
    };
    let remedy = match error.fault() {
        None if unfit(&error) => POLICY_HELP,
        None => "Name a policy that is there and that you may read: --policy FILE",
        Some(Fault::Device(_)) => {
            "Correct the policy; nvme-vfio list-ns and id-ns show what the controller has"
        }
        Some(_) => POLICY_HELP,
    };
    Error::new(kind, error.to_string()).remedy(remedy)
}

/// Whether the file was read, and is none of policies.
fn unfit(error: &PolicyError) -> bool {
    let PolicyError::Read { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge
    )
}

pub(super) fn serve(error: ServeError) -> Error {
    let message = error.to_string();
    match error {
        ServeError::Policy(error) => policy(error),
        ServeError::Controller { address, source } => Error::from(source).context(address),
        ServeError::ForeignController { foreign, .. } => {
            let elsewhere = "ave it where only root can write, as in /var/lib";
            Error::new(Kind::Permission, message).remedy(match foreign.mode & STICKY {
                0 => format!("Run: {}, or h{elsewhere}", foreign.remedy()),
                // Others need that directory.
                _ => format!("H{elsewhere}"),
            })
        }
        ServeError::Directory(error) => directory(&error),
        ServeError::Socket { client, source } => {
            socket(&source).context(format_args!("client {client}"))
        }
        ServeError::Audit(error) => audit(&error),
        ServeError::NotLendable { .. } => {
            Error::usage(message, "Let its data be copied: isolation = \"bounce\"")
        }
        ServeError::Front { .. } => Error::usage(message, POLICY_HELP),
        ServeError::Virtual { client, source } => {
            virtual_controller(source).context(format_args!("client {client}"))
        }
        ServeError::StillInUse { .. } | ServeError::StillCarriedOut { .. } => Error::new(
            Kind::Timeout,
            message,
        )
        .remedy(
            "The controllers are reset when this process ends; look at them with: nvme-vfio doctor",
        ),
        _ => Error::new(Kind::Environment, message),
    }
}

fn virtual_controller(error: nvme_vfio_passthrough::BuildError) -> Error {
    match error {
        nvme_vfio_passthrough::BuildError::Controller(error) => error.into(),
        other => Error::usage(other.to_string(), POLICY_HELP),
    }
}

fn directory(error: &DirectoryError) -> Error {
    let kind = match error {
        DirectoryError::System { source, .. } => file_kind(source),
        DirectoryError::NotWritable { .. } | DirectoryError::Foreign { .. } => Kind::Permission,
        _ => Kind::File,
    };
    Error::new(kind, error.to_string()).remedy(error.remedy())
}

fn file_kind(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => Kind::File,
        _ => Kind::Environment,
    }
}

fn socket(error: &ServerError) -> Error {
    match error {
        ServerError::InUse { .. } => Error::new(Kind::Busy, error.to_string())
            .remedy("End that server, or name another directory in the policy: directory = \"…\""),
        ServerError::NotASocket { .. } => Error::new(Kind::File, error.to_string())
            .remedy("Remove it, or give the client another name"),
        ServerError::System { source, .. } => {
            Error::new(file_kind(source), format!("{error}: {source}")).remedy(
                "Name a directory in the policy that this user may write: directory = \"…\"",
            )
        }
        _ => Error::new(Kind::Environment, error.to_string()),
    }
}

fn audit(error: &AuditError) -> Error {
    let source = std::error::Error::source(error);
    let message = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    let (kind, remedy) = match error {
        AuditError::Open { source, .. } => (
            file_kind(source),
            "Name a file in the policy that this user may write: audit = { path = \"…\" }",
        ),
        AuditError::NotAFile { .. } => (
            Kind::File,
            "Name a regular file in the policy: audit = { path = \"…\" }",
        ),
        AuditError::NotOurs { .. } => (
            Kind::Permission,
            "Take the right to write it from others (chmod go-w), or name another file in the policy",
        ),
        AuditError::InUse { .. } => (
            Kind::Busy,
            "End that process, or name another file in the policy: each group has an audit of its own",
        ),
        _ => (
            Kind::Environment,
            "Look at the disk that the audit is on: its last records are lost",
        ),
    };
    Error::new(kind, message).remedy(remedy)
}

pub(super) fn privileges(error: &PrivilegesError) -> Error {
    let source = std::error::Error::source(error);
    let message = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    Error::new(
        Kind::Environment,
        format!("privileges cannot be given up: {message}"),
    )
    .remedy("Start it as a user who needs none: the owner of the group's node in /dev/vfio")
}
