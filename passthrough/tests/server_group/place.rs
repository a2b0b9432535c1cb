//! A folder with a policy, and the service that it leads to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, Controller, Options, QueueOptions};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{OpenedGroup, ServeOptions, Serving, Times};
use nvme_vfio_user::sigbus;
use serde_json::Value;

/// Nothing takes as long, whatever else the machine does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a policy.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) policy: PolicyFile,
}

/// A service, and the real controller behind it.
pub(crate) struct Service {
    pub(crate) place: Place,
    pub(crate) device: Arc<Emulator>,
    pub(crate) controller: Controller,
    pub(crate) serving: Option<Serving>,
}

/// Two clients on one device: `vm-a` with memory lent, and `vm-b` with whatever isolation is asked for.
pub(crate) const TWO: &str = r#"
[[client]]
name = "vm-a"
uid = [UID]
unsealed-memory = true
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
"#;

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Place {
    pub(crate) fn new(controller: &str, clients: &str) -> Place {
        let folder = crate::scratch::folder();
        let text = format!(
            "controller = [\"{controller}\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{clients}"
        );
        // This test's user is let in.
        let me = nix::unistd::geteuid().to_string();
        let policy = PolicyFile::parse(&text.replace("UID", &me), folder.path()).unwrap();
        Place { folder, policy }
    }

    pub(crate) fn two_halves() -> Place {
        Place::new("emulated:size=64M", TWO)
    }

    pub(crate) fn serve(&self) -> Serving {
        Serving::start(&self.policy, &ServeOptions::default()).unwrap()
    }

    pub(crate) fn socket(&self, client: &str) -> PathBuf {
        let sockets = self.folder.path().join("sockets");
        sockets.join(format!("{client}.sock"))
    }

    pub(crate) fn open(&self, client: &str) -> Controller {
        Controller::open(&Address::VfioUser(self.socket(client))).unwrap()
    }

    /// The audit's records so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        // The last line may not be whole yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until the audit tells an event with these values.
    #[track_caller]
    pub(crate) fn until_told(&self, event: &str, values: &[(&str, Value)]) {
        until(event, || {
            self.audit().iter().any(|record| {
                record["event"] == event && values.iter().all(|(key, value)| record[*key] == *value)
            })
        });
    }
}

impl Service {
    /// Serves a device that this test can make fail, with little patience.
    pub(crate) fn start(clients: &str) -> Service {
        Service::start_with(clients, PATIENCE, PATIENCE)
    }

    /// As [`start`](Self::start), with so much patience at the end, and with admin commands.
    pub(crate) fn start_with(
        clients: &str,
        end_patience: Duration,
        admin_timeout: Duration,
    ) -> Service {
        sigbus::install().unwrap();
        let place = Place::new("emulated:size=64M", clients);
        let options = ServeOptions {
            // What hangs is waited for as long; what does not takes less, also where the machine stands still for a second or two.
            io_timeout: Duration::from_secs(5),
            admin_timeout,
            unmap_patience: Duration::from_millis(100),
            end_patience,
            times: Times {
                abort_grace: Duration::from_millis(100),
                rebuild_again: Duration::from_millis(10),
            },
            ..ServeOptions::default()
        };
        let transport = EmulatedTransport::open("size=64M").unwrap();
        let device = Arc::clone(transport.emulator());
        let driver = Options {
            admin_timeout: options.admin_timeout,
            ..Options::default()
        };
        let controller = Controller::with_transport(Arc::new(transport), driver).unwrap();
        let group = OpenedGroup::of(&place.policy, vec![controller.clone()]).unwrap();
        let serving = Serving::with_group(&place.policy, group, &options).unwrap();
        Service {
            place,
            device,
            controller,
            serving: Some(serving),
        }
    }

    pub(crate) fn end(mut self) {
        let serving = self.serving.take().unwrap();
        serving.finish().unwrap();
        assert_eq!(
            self.device.iommu().fault_count(),
            0,
            "DMA without a mapping"
        );
    }
}

/// Writes all blocks of the only namespace with a pattern of `seed`, and reads them back.
pub(crate) fn fill(controller: &Controller, seed: u64) {
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

pub(crate) fn check(controller: &Controller, seed: u64) {
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
