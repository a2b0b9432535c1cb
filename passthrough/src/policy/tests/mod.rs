//! A policy that is right, and what each test makes of it.

mod authorize;
mod bad_values;
mod file;
mod resolve;

use std::path::Path;

use super::*;

/// Every key there is. The numbers of the lines are those that the tests of bad values expect.
pub(super) const WHOLE: &str = r#"controller = ["0000:01:00.0", "0000:01:00.1"]
directory = "/run/nvme-vfio/13"
audit = { path = "audit.jsonl", ring = "2MiB", sample-allowed-io = 7 }

[[client]]
name = "vm-a"
uid = [1000, 1001]
mode = "enforce"
isolation = "bounce"
unsealed-memory = true

[client.limits]
queues = 3
depth = 128
outstanding = 100
memory = "1GiB"
mappings = 32
iops = 50000
bandwidth = "200MiB/s"

[[client.namespace]]
nsid = 1
controller = "0000:01:00.0"
source = [{ nsid = 1, start = 1000, blocks = 1000 }, { nsid = 1, start = 8000, blocks = 500 }]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy", "poison"]
shared = false

[[client]]
name = "vm-b"
uid = [1002]

[[client.namespace]]
nsid = 2
controller = "01:00.1"
source = [{ nsid = 1 }]
allow = ["read"]
"#;

pub(super) fn parse(text: &str) -> Result<PolicyFile, PolicyError> {
    PolicyFile::parse(text, Path::new("/etc/nvme-vfio"))
}

/// A policy for the emulated controller, with these clients.
pub(super) fn emulated(clients: &str) -> PolicyFile {
    let head = "controller = ['emulated']\ndirectory = '/run/x'\naudit = { path = 'a' }\n";
    parse(&format!("{head}{clients}")).unwrap()
}
