//! A group served to clients of its own protocol, from its beginning to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvme_vfio::{Address, Controller, QueueOptions};
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{ServeOptions, Serving};

/// A folder with a policy: `clients` is what follows the head.
struct Place {
    folder: tempfile::TempDir,
    policy: PolicyFile,
}

/// This test's user, whom the policies let in.
fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

impl Place {
    fn new(controller: &str, clients: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "controller = [\"{controller}\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{clients}"
        );
        let text = text.replace("UID", &me().to_string());
        let policy = PolicyFile::parse(&text, folder.path()).unwrap();
        Place { folder, policy }
    }

    fn two_halves() -> Place {
        Place::new(
            "emulated:size=64M",
            r#"
[[client]]
name = "vm-a"
uid = [UID]
[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 0, blocks = 1000 }, { nsid = 1, start = 50000, blocks = 1000 }]
allow = ["read", "write", "flush"]

[[client]]
name = "vm-b"
uid = [UID]
isolation = "bounce"
[[client.namespace]]
nsid = 7
source = [{ nsid = 1, start = 1000, blocks = 3000 }]
allow = ["read", "write", "flush"]
"#,
        )
    }

    fn serve(&self) -> Serving {
        Serving::start(&self.policy, &ServeOptions::default()).unwrap()
    }

    fn socket(&self, client: &str) -> PathBuf {
        self.folder
            .path()
            .join("sockets")
            .join(format!("{client}.sock"))
    }

    fn open(&self, client: &str) -> Controller {
        Controller::open(&Address::VfioUser(self.socket(client))).unwrap()
    }
}

/// Writes all blocks of the only namespace with a pattern of `seed`, and reads them back.
fn fill(controller: &Controller, seed: u64) {
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::default()).unwrap();
    for at in (0..namespace.blocks()).step_by(8) {
        let blocks = (namespace.blocks() - at).min(8) as usize;
        let mut buffer = controller.allocate(blocks * 512).unwrap();
        for (block, bytes) in buffer.chunks_mut(512).enumerate() {
            bytes.fill((seed + at + block as u64) as u8);
        }
        queue.write_blocking(&namespace, at, buffer).unwrap();
    }
    queue.flush_blocking(&namespace).unwrap();
}

fn check(controller: &Controller, seed: u64) {
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::default()).unwrap();
    for at in (0..namespace.blocks()).step_by(8) {
        let blocks = (namespace.blocks() - at).min(8) as usize;
        let buffer = controller.allocate(blocks * 512).unwrap();
        let buffer = queue.read_blocking(&namespace, at, buffer).unwrap();
        for (block, bytes) in buffer.chunks(512).enumerate() {
            let expected = (seed + at + block as u64) as u8;
            assert!(
                bytes.iter().all(|byte| *byte == expected),
                "block {}",
                at + block as u64
            );
        }
    }
}

#[test]
fn two_clients_have_each_its_own_blocks_and_nothing_else() {
    let place = Place::two_halves();
    let serving = place.serve();
    let (a, b) = (place.open("vm-a"), place.open("vm-b"));
    assert_eq!(a.namespaces().unwrap(), [1]);
    assert_eq!(b.namespaces().unwrap(), [7]);
    assert_eq!(a.namespace(1).unwrap().blocks(), 2000);
    assert_eq!(b.namespace(7).unwrap().blocks(), 3000);
    assert_ne!(
        a.identify().serial_number().to_string(),
        b.identify().serial_number().to_string()
    );
    fill(&a, 1);
    fill(&b, 100);
    check(&a, 1);
    check(&b, 100);
    drop((a, b));
    let summary = serving.finish().unwrap();
    assert!(summary.commands > 1000, "{summary:?}");
    assert_eq!(summary.commands, summary.completions);
    assert!(!Path::new(&place.socket("vm-a")).exists());
    assert!(summary.time < Duration::from_secs(60));
}

#[test]
fn what_a_client_leaves_it_finds_again() {
    let place = Place::two_halves();
    let serving = place.serve();
    let a = place.open("vm-a");
    fill(&a, 5);
    drop(a);
    let a = place.open("vm-a");
    check(&a, 5);
    drop(a);
    serving.finish().unwrap();
}
