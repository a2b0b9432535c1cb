//! The gate that a client's commands go through, without anything behind it.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nvme_vfio_passthrough::audit::ClientAudit;
use nvme_vfio_passthrough::policy::{
    Budget, ControllerFacts, GroupPolicy, NamespaceFacts, PolicyFile,
};
use nvme_vfio_passthrough::{
    Client, ClientId, CommandSet, Decoder, Gate, Geometry, Identity, QueueKind, Verdict,
};
use nvme_vfio_queues::Status;

/// Blocks of the slice.
const BLOCKS: u64 = 1 << 20;

/// A policy as it may be in earnest.
const POLICY: &str = r#"
controller = ["emulated"]
directory = "/run/nvme-vfio"
audit = { path = "audit.jsonl" }

[[client]]
name = "vm-a"
uid = [1000]

[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 0, blocks = 1048576 }]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]
"#;

/// A gate, and reads that pass it.
#[derive(Debug)]
pub struct GateRig {
    gate: Gate,
    geometry: Geometry,
    now: Instant,
}

impl GateRig {
    /// Makes it.
    ///
    /// # Errors
    /// Where the policy is wrong.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let facts = ControllerFacts {
            io_queues: 1,
            queue_entries: 1024,
            namespaces: vec![NamespaceFacts {
                nsid: 1,
                blocks: BLOCKS,
                block_size: 4096,
                ..NamespaceFacts::default()
            }],
            ..ControllerFacts::default()
        };
        let policy = PolicyFile::parse(POLICY, Path::new("/"))?;
        let policy = GroupPolicy::new(&policy.resolve(&[facts], &Budget::default())?);
        let client = Client {
            id: ClientId(0),
            name: "vm-a".into(),
            identity: Identity::default(),
        };
        let audit = ClientAudit::detached("vm-a");
        Ok(Self {
            gate: Gate::new(Arc::new(policy), client, Decoder::new(), audit),
            geometry: Geometry {
                command_set: CommandSet::NVM,
                blocks: BLOCKS,
                block_shift: 12,
                max_transfer: 1 << 20,
                max_blocks: 65_536,
                copy_ranges: 128,
                copy_range_blocks: 128,
                copy_blocks: 512,
            },
            now: Instant::now(),
        })
    }

    /// The entry of a read of one block.
    #[inline]
    fn read(number: u64) -> [u32; 16] {
        let mut entry = [0; 16];
        entry[0] = 0x02 | (number as u32) << 16;
        entry[1] = 1;
        entry[10] = (number % BLOCKS) as u32;
        entry
    }

    /// Reads that are decoded, judged and counted.
    ///
    /// # Errors
    /// Where one is refused.
    #[inline]
    pub fn check(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        for number in 0..count {
            let entry = black_box(Self::read(number));
            let geometry = Some(&self.geometry);
            let passed = self
                .gate
                .check(QueueKind::Io, geometry, &entry, &[], self.now);
            match black_box(&passed) {
                Ok(_) => {}
                Err(refusal) => return Err(refusal.reason.text().into()),
            }
        }
        Ok(())
    }

    /// The same reads, only decoded.
    ///
    /// # Errors
    /// Where one is refused.
    #[inline]
    pub fn decode(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        let mut decoder = Decoder::new();
        for number in 0..count {
            let entry = black_box(Self::read(number));
            let decoded = decoder.decode(QueueKind::Io, Some(&self.geometry), &entry, &[]);
            match black_box(&decoded) {
                Ok(_) => {}
                Err(refusal) => return Err(refusal.reason.text().into()),
            }
        }
        Ok(())
    }

    /// The same reads, only counted by the audit.
    ///
    /// # Errors
    /// Where one is refused.
    #[inline]
    pub fn audit(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        let mut audit = ClientAudit::detached("vm-a");
        let mut decoder = Decoder::new();
        let entry = Self::read(0);
        let command = decoder
            .decode(QueueKind::Io, Some(&self.geometry), &entry, &[])
            .map_err(|refusal| refusal.reason.text())?;
        for _ in 0..count {
            let started = audit.begin(black_box(&command), black_box(&Verdict::Allow), self.now);
            if let Some(started) = black_box(started) {
                audit.end(started, Status::SUCCESS, self.now);
            }
        }
        Ok(())
    }
}
