//! A controller of this project, served over vfio-user by a process of its own.

use std::path::PathBuf;

use serde_json::Value;

use super::server::{Server, directory};

/// `nvme-vfio emulate`, which ends with this value.
pub(crate) struct Served(Server);

impl Served {
    /// Starts a server, for example with `["--size", "1G", "mdts=1"]`.
    pub(crate) fn start(arguments: &[&str]) -> Served {
        let directory = directory();
        let socket = directory.path().join("socket");
        let place = socket.to_str().unwrap();
        let own = ["emulate", "-o", "json", "--socket", place];
        let all: Vec<&str> = own.iter().chain(arguments).copied().collect();
        Served(Server::start(
            directory,
            &all,
            std::slice::from_ref(&socket),
        ))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("socket")
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Whether the server still runs; what it said when it does not.
    #[track_caller]
    pub(crate) fn lives(&mut self) {
        self.0.lives();
    }

    /// Ends the server as a person would; what it counted.
    #[track_caller]
    pub(crate) fn stop(self) -> Value {
        let said = self.0.stop("stdout");
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}\n{said}"))
    }
}
