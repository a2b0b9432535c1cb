//! A controller with four namespaces, parts of which are lent to one who attacks and one who watches; each sector says whose it was, and where.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use nvme_vfio_attacker::learned::{MARK, NOBODY};
use nvme_vfio_attacker::siege::ORDINARY;
use serde_json::json;
use tempfile::TempDir;
use xtask::vm::Machine;

use crate::common::machine;

const SECTOR: usize = 512;
/// Bytes of each namespace.
const SIZE: u64 = 2 << 20;
const NAMESPACES: [u32; 4] = [1, 2, 3, 7];

/// A namespace of a client: pieces as real namespace, first sector and count.
type Lent = (u32, &'static [(u32, u64, u64)], &'static [&'static str]);

/// What the clients have, by their name. Nobody has anything of namespace 7. The second is right beside the first, on both sides.
const CLIENTS: [(&str, &[Lent]); 2] = [
    (
        "attacker-alpha",
        &[
            (1, &[(1, 1000, 1000), (1, 3000, 100)], ORDINARY),
            (2, &[(2, 500, 500)], ORDINARY),
        ],
    ),
    (
        "bystander-zeta",
        &[
            (1, &[(1, 2000, 500), (3, 0, 100)], &["read", "write"]),
            (2, &[(1, 900, 100)], ORDINARY),
        ],
    ),
];

/// Whose a sector is: the client's number, or `NOBODY`.
fn owner(nsid: u32, sector: u64) -> u32 {
    let holds = |lent: &Lent| {
        let mut pieces = lent.1.iter();
        pieces.any(|(of, first, count)| *of == nsid && (*first..first + count).contains(&sector))
    };
    let mut clients = (0..).zip(&CLIENTS);
    clients
        .find(|(_, client)| client.1.iter().any(holds))
        .map_or(NOBODY, |(number, _)| number)
}

fn mark(nsid: u32, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let whose = MARK | owner(nsid, sector);
    for (index, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
        let place = nsid << 28 | (sector as u32) << 6 | index;
        word[..4].copy_from_slice(&whose.to_le_bytes());
        word[4..].copy_from_slice(&place.to_le_bytes());
    }
    bytes
}

/// The serial number of the controller itself, which is part of its NQN too.
pub(crate) const SERIAL: &str = "vm-standard";
/// The names of the clients.
pub(crate) const NAMES: [&str; 2] = [CLIENTS[0].0, CLIENTS[1].0];

/// The drives.
pub(crate) struct Besieged(TempDir);

impl Besieged {
    pub(crate) fn new() -> Besieged {
        let besieged = Besieged(tempfile::tempdir().unwrap());
        for nsid in NAMESPACES {
            let sectors = 0..SIZE / SECTOR as u64;
            let content: Vec<u8> = sectors.flat_map(|sector| mark(nsid, sector)).collect();
            fs::write(besieged.image(nsid), content).unwrap();
        }
        besieged
    }

    fn image(&self, nsid: u32) -> PathBuf {
        self.0.path().join(format!("namespace-{nsid}"))
    }

    /// A machine whose controller has the drives, and the policy that lends them.
    pub(crate) fn machine(&self) -> Machine {
        // The namespace that comes with the standard controller cannot copy (its MSSRL is 0); those that are devices of their own can.
        let controller =
            json!({"driver": "nvme", "id": "vm-nvme", "serial": SERIAL, "addr": "1.0"});
        let mut machine = machine()
            .without_nvme()
            .device(&controller.to_string())
            .file("/etc/policy.toml", policy(), 0o644)
            .timeout(Duration::from_secs(600));
        for nsid in NAMESPACES {
            let path = self.image(nsid);
            let path = path.to_str().unwrap().replace(',', ",,");
            let id = format!("namespace-{nsid}");
            let namespace =
                json!({"driver": "nvme-ns", "bus": "vm-nvme", "nsid": nsid, "drive": id});
            machine = machine
                .qemu_arguments(["-drive", &format!("if=none,id={id},format=raw,file={path}")])
                .device(&namespace.to_string());
        }
        machine
    }

    /// Fails unless every sector that is not the attacker's is as it was, and none of the attacker's holds what was in another.
    #[track_caller]
    pub(crate) fn nothing_else_changed(&self) {
        let mut changed = 0;
        for nsid in NAMESPACES {
            let file = File::open(self.image(nsid)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), SIZE);
            let mut content = vec![0; SIZE as usize];
            file.read_exact_at(&mut content, 0).unwrap();
            for (sector, bytes) in (0..).zip(content.chunks_exact(SECTOR)) {
                if owner(nsid, sector) != 0 {
                    let same = bytes == mark(nsid, sector);
                    assert!(same, "sector {sector} of namespace {nsid} changed");
                    continue;
                }
                changed += u64::from(bytes != mark(nsid, sector));
                for word in bytes.chunks_exact(4) {
                    let word = u32::from_le_bytes(word.try_into().unwrap());
                    let foreign = word & 0xffff_ff00 == MARK && word != MARK;
                    assert!(
                        !foreign,
                        "sector {sector} of namespace {nsid} holds {word:#x}"
                    );
                }
            }
        }
        println!("{changed} sectors of the attacker's were written");
        assert!(changed > 1_000, "only {changed} sectors were written");
    }
}

fn policy() -> String {
    let mut text = r#"
controller = ["0000:00:01.0"]
directory = "/tmp/lent"
audit = { path = "/tmp/audit.jsonl", sample-allowed-io = 1000 }
"#
    .to_owned();
    for (name, namespaces) in CLIENTS {
        write!(text, "[[client]]\nname = \"{name}\"\nuid = [0]\n").unwrap();
        for (nsid, pieces, allow) in namespaces {
            let source: Vec<_> = pieces
                .iter()
                .map(|(nsid, start, blocks)| {
                    format!("{{ nsid = {nsid}, start = {start}, blocks = {blocks} }}")
                })
                .collect();
            writeln!(
                text,
                "[[client.namespace]]\nnsid = {nsid}\nsource = [{}]\nallow = {allow:?}",
                source.join(", ")
            )
            .unwrap();
        }
    }
    text
}
