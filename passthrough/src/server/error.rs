//! Why a group cannot be served, or stopped being so.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::directory::DirectoryError;
use crate::audit::AuditError;
use crate::controller::BuildError;
use crate::policy::PolicyError;
use crate::trust::Foreign;

/// Why a group cannot be served, or its service did not end well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The policy, or what the controllers are, does not allow it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A controller cannot be opened or asked.
    #[error("{address}: {source}")]
    Controller {
        /// Its address, or all that were to be opened together.
        address: String,
        /// What the driver says.
        source: nvme_vfio::Error,
    },
    /// The file or the socket of a controller, or something on the way to it, can be changed by somebody else, and this process is root's.
    #[error("the controller at {} is not root's alone: {foreign}", path.display())]
    ForeignController {
        /// The file or socket.
        path: PathBuf,
        /// What may be changed.
        foreign: Foreign,
    },
    /// The directory for the sockets cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A client's socket cannot be had.
    #[error("client {client}: {source}")]
    Socket {
        /// The client's name.
        client: String,
        /// What the server of the protocol says.
        source: nvme_vfio_user::ServerError,
    },
    /// The audit's file cannot be had, or took no more at the end.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A client's virtual controller cannot be made.
    #[error("client {client}: {source}")]
    Virtual {
        /// The client's name.
        client: String,
        /// Why.
        source: BuildError,
    },
    /// The front end of a client's virtual controller refuses its description.
    #[error("client {client}: {source}")]
    Front {
        /// The client's name.
        client: String,
        /// Why.
        source: nvme_vfio_emulator::ConfigError,
    },
    /// Memory of a client cannot be lent to a controller that another process runs: its files cannot be passed on.
    #[error(
        "client {client}: {address} is run by another process, which cannot be lent the client's memory"
    )]
    NotLendable {
        /// The client's name.
        client: String,
        /// The controller.
        address: String,
    },
    /// The system did not give what the server needs.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Clients' commands did not end in time at the end of the service. What they lent is let go of when the process ends, since the kernel then takes the controllers away.
    #[error("commands of {} have not ended within {waited:?}", clients.join(", "))]
    StillInUse {
        /// The clients' names.
        clients: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A controller still carried out operators' commands at the end of the service. What comes of them is not known.
    #[error("{} had not ended after {waited:?}; what comes of it is not known", commands.join(", "))]
    StillCarriedOut {
        /// The commands, and whose they are.
        commands: Vec<String>,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl ServeError {
    pub(super) fn no_thread(source: io::Error) -> ServeError {
        ServeError::System {
            what: "starting a thread",
            source,
        }
    }
}
