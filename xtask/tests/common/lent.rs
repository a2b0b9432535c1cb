//! A controller that `nvme-vfio serve` lends to clients, in a process of its own on the host.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::server::{Server, directory};

/// `nvme-vfio serve`, which ends with this value.
pub(crate) struct Lent(Server);

/// The policy's text for a client whose one namespace is `blocks` blocks from `start` on of namespace 1.
pub(crate) fn slice(name: &str, start: u64, blocks: u64) -> String {
    format!(
        r#"
[[client]]
name = "{name}"
uid = [0]
limits = {{ memory = "2GiB" }}

[[client.namespace]]
nsid = 1
source = [{{ nsid = 1, start = {start}, blocks = {blocks} }}]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]
"#
    )
}

/// The policy's text before the clients: the controller at `address`, and the audit beside it.
pub(crate) fn head(address: &str) -> String {
    format!(
        r#"controller = ["{address}"]
directory = "run"
audit = {{ path = "audit.jsonl", sample-allowed-io = 100000 }}
"#
    )
}

impl Lent {
    /// Starts a server with a policy, and waits for the sockets of `clients`.
    pub(crate) fn start(policy: &str, clients: &[&str]) -> Lent {
        let directory = directory();
        let run = directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let file = directory.path().join("policy.toml");
        fs::write(&file, policy).unwrap();
        let sockets: Vec<PathBuf> = clients
            .iter()
            .map(|client| run.join(format!("{client}.sock")))
            .collect();
        let arguments = ["serve", "--policy", file.to_str().unwrap()];
        Lent(Server::start(directory, &arguments, &sockets))
    }

    pub(crate) fn socket(&self, client: &str) -> PathBuf {
        self.0.path().join("run").join(format!("{client}.sock"))
    }

    /// Whether the server still runs; what it said when it does not.
    #[track_caller]
    pub(crate) fn lives(&mut self) {
        self.0.lives();
    }

    /// Ends the server as a person would; its audit.
    #[track_caller]
    pub(crate) fn stop(self) -> Vec<Value> {
        let audit = self.0.stop("audit.jsonl");
        let record = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        audit.lines().map(record).collect()
    }
}
