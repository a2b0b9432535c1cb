//! `nvme-vfio serve` in a virtual machine: QEMU's controller, through real VFIO and a real IOMMU, lent to clients inside the machine. The host looks at the drive afterwards.

#[path = "vm_serve/besieged.rs"]
mod besieged;
mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use besieged::{Besieged, NAMES, SERIAL};
use common::{Step, machine, run};
use serde_json::Value;
use xtask::vm::{Drive, Machine};

const SECTOR: usize = 512;
/// Sectors of the drive.
const SECTORS: u64 = (1 << 30) / SECTOR as u64;
/// What every sector outside of the slices begins with; its number follows.
const OUTSIDE: &[u8; 8] = b"OUTSIDE!";

/// The slices, as first sector and count: the first client's namespace is put together from two.
const A: [(u64, u64); 2] = [(1000, 2000), (100_000, 50_001)];
const B: (u64, u64) = (400_000, 200_000);

/// The policy inside the machine.
const POLICY: &str = r#"
controller = ["0000:00:01.0"]
directory = "/tmp/lent"
audit = { path = "/tmp/audit.jsonl", sample-allowed-io = 1000 }

[[client]]
name = "a"
uid = [0, 1000]

[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 1000, blocks = 2000 }, { nsid = 1, start = 100000, blocks = 50001 }]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]

[[client]]
name = "b"
uid = [0]

[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 400000, blocks = 200000 }]
allow = ["read", "write", "flush"]
"#;

/// Takes the controller from the kernel and serves it to two clients, whose addresses are `$a` and `$b`; ends with the script.
fn serve(first: &str, second: &str) -> String {
    format!("first={first} second={second}\n{SERVE}")
}

const SERVE: &str = r#"
nvme-vfio bind $A >&2 || exit 1
mkdir -p /tmp/lent
nvme-vfio serve --policy /etc/policy.toml >/tmp/serve.out 2>/tmp/serve.err &
server=$!
tries=0
until [ -S /tmp/lent/$first.sock ] && [ -S /tmp/lent/$second.sock ]; do
    tries=$((tries + 1))
    if [ $tries -gt 3000 ] || ! kill -0 $server; then cat /tmp/serve.out /tmp/serve.err >&2; exit 1; fi
    usleep 20000
done
a=vfio-user:/tmp/lent/$first.sock b=vfio-user:/tmp/lent/$second.sock
lives() { kill -0 $server || { echo the server ended >&2; cat /tmp/serve.out /tmp/serve.err >&2; exit 1; }; }
"#;

/// Ends the server; what it had to say.
const STOP: &str = r#"
lives
kill -TERM $server
wait $server
step served sh -c "exit $?"
step said cat /tmp/serve.out /tmp/serve.err
step dmesg dmesg
"#;

fn is_lent(sector: u64) -> bool {
    A.iter()
        .chain([&B])
        .any(|(first, count)| (*first..first + count).contains(&sector))
}

fn mark(sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (index, word) in bytes.chunks_exact_mut(16).enumerate() {
        word[..8].copy_from_slice(OUTSIDE);
        word[8..].copy_from_slice(&(sector << 6 | index as u64).to_le_bytes());
    }
    bytes
}

/// A drive on which every sector outside of the slices says where it is.
fn marked_drive() -> tempfile::NamedTempFile {
    let drive = tempfile::NamedTempFile::new().unwrap();
    let file = drive.as_file();
    file.set_len(SECTORS * SECTOR as u64).unwrap();
    let mut chunk = Vec::new();
    for first in (0..SECTORS).step_by(2048) {
        chunk.clear();
        for sector in first..first + 2048 {
            if is_lent(sector) {
                chunk.extend_from_slice(&[0; SECTOR]);
            } else {
                chunk.extend_from_slice(&mark(sector));
            }
        }
        file.write_all_at(&chunk, first * SECTOR as u64).unwrap();
    }
    drive
}

/// Fails unless every sector outside of the slices is as it was, and none inside holds what was outside.
#[track_caller]
fn nothing_outside_changed(drive: &Path) {
    let file = File::open(drive).unwrap();
    let mut chunk = vec![0; 2048 * SECTOR];
    for first in (0..SECTORS).step_by(2048) {
        file.read_exact_at(&mut chunk, first * SECTOR as u64)
            .unwrap();
        for (sector, bytes) in (first..).zip(chunk.chunks_exact(SECTOR)) {
            if is_lent(sector) {
                let learned = bytes.chunks_exact(8).any(|word| word == OUTSIDE);
                assert!(!learned, "sector {sector} holds what was outside");
            } else {
                assert!(bytes == mark(sector), "sector {sector} changed");
            }
        }
    }
}

fn serving(drive: &Path) -> Machine {
    machine()
        .drive(Drive::Image(drive.to_owned()))
        .file("/etc/policy.toml", POLICY, 0o644)
        .timeout(Duration::from_secs(600))
}

/// Every command in the audit is attributed to a process that was connected then.
#[track_caller]
fn all_attributed(audit: &Step) {
    let mut holders: HashMap<String, u64> = HashMap::new();
    let mut commands = 0;
    for line in audit.text().lines() {
        let record: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let client = record["client"].as_str().unwrap_or_default().to_owned();
        if record["event"] == "connected" {
            holders.insert(client, record["pid"].as_u64().unwrap());
        } else if record["kind"] == "command" {
            commands += 1;
            let pid = record["pid"].as_u64().unwrap();
            // Records of one client's ring can come before the event that tells of its end.
            assert!(pid > 0 && record["start_time"].as_u64() > Some(0), "{line}");
        }
    }
    assert!(commands > 0 && !holders.is_empty(), "{audit}");
}

/// Two clients use their slices with the command, one of them as an ordinary user; each finds its own data, and both sizes are theirs.
fn two_clients_share_one_controller() {
    let drive = marked_drive();
    let serve = serve("a", "b");
    let steps = run(
        &serving(drive.path()),
        &format!(
            "{serve}
            step id-a nvme-vfio id-ns $a -n 1 -o json
            step id-b nvme-vfio id-ns $b -n 1 -o json
            step ctrl-a nvme-vfio id-ctrl $a -o json
            step ctrl-b nvme-vfio id-ctrl $b -o json
            dd if=/dev/urandom of=/tmp/a bs=1k count=4096 2>/dev/null; dd if=/dev/urandom of=/tmp/b bs=1k count=4096 2>/dev/null
            # Over the seam of the two extents, and to the very end.
            for lba in 0 1990 43809; do
                step write-a-$lba nvme-vfio write $a -s $lba -c 8191 -d /tmp/a
                step read-a-$lba nvme-vfio read $a -s $lba -c 8191 -d /tmp/back-a
                step same-a-$lba cmp /tmp/a /tmp/back-a
            done
            step write-b nvme-vfio write $b -s 0 -c 8191 -d /tmp/b
            step read-b nvme-vfio read $b -s 0 -c 8191 -d /tmp/back-b
            step same-b cmp /tmp/b /tmp/back-b
            step still-a nvme-vfio read $a -s 1990 -c 8191 -d /tmp/back-a
            step still-same-a cmp /tmp/a /tmp/back-a
            step past-the-end nvme-vfio read $a -s 52001 -o json
            step other-namespace nvme-vfio read $a -n 2 -s 0 -o json
            chmod 666 /tmp/lent/a.sock 2>/dev/null
            as_user user-a 'nvme-vfio read vfio-user:/tmp/lent/a.sock -s 0 -c 8191 -d /tmp/user-a'
            as_user user-b 'nvme-vfio read vfio-user:/tmp/lent/b.sock -s 0'
            nvme-vfio bench $a --runtime 3 --iodepth 32 --rw randread >/tmp/bench-a 2>&1 &
            step bench-b nvme-vfio bench $b --runtime 3 --iodepth 32 --rw randread -o json
            wait $!
            step bench-a cat /tmp/bench-a
            {STOP}
            step audit cat /tmp/audit.jsonl"
        ),
    );
    assert_eq!(steps["id-a"].json()["nsze"], 52_001);
    assert_eq!(steps["id-b"].json()["nsze"], 200_000);
    assert_ne!(steps["ctrl-a"].json()["sn"], steps["ctrl-b"].json()["sn"]);
    for name in [
        "write-a-0",
        "read-a-0",
        "same-a-0",
        "write-a-1990",
        "read-a-1990",
        "same-a-1990",
        "write-a-43809",
        "read-a-43809",
        "same-a-43809",
        "write-b",
        "read-b",
        "same-b",
        "still-a",
        "still-same-a",
        "user-a",
        "bench-b",
        "served",
    ] {
        steps[name].done();
    }
    assert_eq!(steps["past-the-end"].status, 1, "{}", steps["past-the-end"]);
    assert_ne!(
        steps["other-namespace"].status, 0,
        "{}",
        steps["other-namespace"]
    );
    assert_eq!(steps["user-b"].status, 3, "{}", steps["user-b"]);
    assert!(
        !steps["dmesg"].text().contains("DMAR: [DMA"),
        "{}",
        steps["dmesg"]
    );
    all_attributed(&steps["audit"]);
    nothing_outside_changed(drive.path());
}

/// Commands of every opcode with any body from one client, while another watches; clients are killed at full depth. 100 bodies for each opcode and queue, 10,000 with
/// `NVME_VFIO_SOAK=1`, or as many as `NVME_VFIO_BODIES` says.
fn no_command_reaches_outside_of_its_slice() {
    let whole = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let times = std::env::var("NVME_VFIO_BODIES").ok();
    let times = times.and_then(|times| times.parse().ok());
    let times: u64 = times.unwrap_or(if whole { 10_000 } else { 100 });
    let siege = Besieged::new();
    let serve = serve(NAMES[0], NAMES[1]);
    let machine = siege
        .machine()
        .timeout(Duration::from_secs(600 + times * 3));
    let steps = run(
        &machine,
        &format!(
            "{serve}
            # A thousand refusals a second are written down: more than the machine has room for.
            (while sleep 20; do : >/tmp/audit.jsonl; done) &
            shorten=$!
            step attack nvme-vfio-guest attack ${{a#*:}} ${{b#*:}} --seed 2026 --times {times} --secret {SERIAL} --secret {}
            kill $shorten
            lives
            (while [ ! -e /tmp/enough ]; do nvme-vfio bench $b -n 1 --runtime 5 --iodepth 16 --rw randread; done) >/tmp/bench-b 2>&1 &
            other=$!
            for n in 1 2 3 4 5; do
                nvme-vfio bench $a -n 1 --runtime 60 --iodepth 128 --rw randread >/dev/null 2>&1 &
                victim=$!
                sleep 1
                kill -9 $victim
                wait $victim 2>/dev/null
                step again-$n nvme-vfio read $a -n 1 -s 0
            done
            touch /tmp/enough
            wait $other
            step bench-b cat /tmp/bench-b
            step read-b nvme-vfio read $b -n 1 -s 0
            {STOP}",
            NAMES[1]
        ),
    );
    println!("{}", steps["attack"].text());
    for name in ["attack", "again-1", "again-5", "read-b", "served"] {
        steps[name].done();
    }
    assert!(
        !steps["bench-b"].text().contains("error"),
        "{}",
        steps["bench-b"]
    );
    assert!(
        !steps["dmesg"].text().contains("DMAR: [DMA"),
        "{}",
        steps["dmesg"]
    );
    siege.nothing_else_changed();
}

xtask::vm_tests!(
    two_clients_share_one_controller,
    no_command_reaches_outside_of_its_slice,
);
