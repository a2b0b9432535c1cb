//! Two virtual machines, each with half of one controller that `nvme-vfio serve` lends on the host: the kernel's own driver is the client.

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use common::lent::{Lent, head, slice};
use common::run;
use xtask::vm::{Kernel, Machine};

/// Half of the controller.
const HALF: u64 = (1 << 30) / 512 / 2;

/// A machine with the distribution's kernel and tools, and the client's controller as its only one.
fn machine(lent: &Lent, client: &str) -> Machine {
    ["fio", "nvme", "mkfs.ext4", "e2fsck", "blkdiscard"]
        .iter()
        .fold(Machine::bare(), |machine, name| machine.host_program(name))
        .without_nvme()
        .vfio_user(lent.socket(client))
        .kernel(Kernel::Debian)
        .memory("1G")
        .timeout(Duration::from_secs(600))
}

const TOOLS: &str = r#"
D=/dev/nvme0n1
verified() { fio --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --randseed=2026 "$@"; }
"#;

/// What the kernel complains of, but for what is asked for.
fn complaints(dmesg: &str) -> Vec<&str> {
    let about = ["nvme", "I/O", "blk_", "EXT4", "JBD2", "DMAR"];
    let lines = dmesg.lines().filter(|line| {
        let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let level = level.and_then(|(level, _)| level.parse::<u32>().ok());
        level.is_some_and(|level| level & 7 <= 4)
            && about.iter().any(|word| line.contains(word))
            && !line.ends_with("resetting controller")
    });
    lines.collect()
}

fn policy(controller: &str) -> String {
    [
        head(controller),
        slice("vm-a", 0, HALF),
        slice("vm-b", HALF, HALF),
    ]
    .concat()
}

/// File system, fio with verification, discard and nvme-cli, all in one machine with an ordinary policy; what it was not granted is refused in the same run.
fn a_guest_works_on_its_slice() {
    let mut lent = Lent::start(&policy("emulated:size=1G"), &["vm-a", "vm-b"]);
    let steps = run(
        &machine(&lent, "vm-a"),
        &format!(
            "{TOOLS}
            step mkfs mkfs.ext4 -q -F $D
            step mount mount -t ext4 -o discard $D /mnt
            step fio-files verified --name=files --directory=/mnt --nrfiles=4 --size=32M --rw=randwrite --bs=4k --iodepth=32
            step remove sh -c 'rm -r /mnt/files*; sync'
            step umount umount /mnt
            step e2fsck e2fsck -f -n $D
            step blkdiscard blkdiscard -f $D
            step fio-raw verified --name=raw --filename=$D --size=64M --rw=randwrite --bsrange=512-256k --blockalign=512 --iodepth=64
            step id-ctrl nvme id-ctrl /dev/nvme0 -o json
            step id-ns nvme id-ns $D -o json
            step list-ns nvme list-ns /dev/nvme0
            step smart-log nvme smart-log /dev/nvme0 -o json
            step error-log nvme error-log /dev/nvme0
            step fw-log nvme fw-log /dev/nvme0
            step get-feature nvme get-feature /dev/nvme0 -f 7
            step flush nvme flush $D
            step write-zeroes nvme write-zeroes $D -s 0 -c 7
            step dsm nvme dsm $D -s 0 -b 8 -d
            step verify nvme verify $D -s 0 -c 7
            step reset nvme reset /dev/nvme0
            step format nvme format $D --lbaf=0 --force
            step sanitize nvme sanitize /dev/nvme0 -a 2
            step fw-commit nvme fw-commit /dev/nvme0 -s 1 -a 1
            step delete-ns nvme delete-ns /dev/nvme0 -n 1
            step all-zeroes nvme io-passthru $D -o 8 -n 1 --cdw12=0x800007
            step past-the-end nvme io-passthru $D -o 2 -n 1 -l 512 -r --cdw10={HALF}
            step other nvme io-passthru $D -o 2 -n 2 -l 512 -r
            step hmb nvme admin-passthru /dev/nvme0 -o 9 --cdw10=13 --cdw11=1
            step vendor nvme admin-passthru /dev/nvme0 -o 0xc1
            step again verified --name=raw --filename=$D --size=8M --rw=randwrite --bs=4k --iodepth=32
            step dmesg dmesg -r"
        ),
    );
    for name in [
        "mkfs",
        "mount",
        "fio-files",
        "remove",
        "umount",
        "e2fsck",
        "blkdiscard",
        "fio-raw",
        "id-ctrl",
        "id-ns",
        "list-ns",
        "smart-log",
        "error-log",
        "fw-log",
        "get-feature",
        "flush",
        "write-zeroes",
        "dsm",
        "verify",
        "reset",
        "again",
    ] {
        steps[name].done();
    }
    assert_eq!(steps["id-ns"].json()["nsze"], HALF);
    for name in [
        "format",
        "sanitize",
        "fw-commit",
        "delete-ns",
        "all-zeroes",
        "past-the-end",
        "other",
        "hmb",
        "vendor",
    ] {
        assert_ne!(steps[name].status, 0, "{}", steps[name]);
    }
    lent.lives();
    let audit = lent.stop();
    assert!(!audit.is_empty());
}

/// Both write at full load; each one's data is verified and neither sees the other's; one is killed in the middle, and the other does not notice.
fn two_guests_share_one_controller() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let controller = format!("emulated:size=1G,backend=file:{}", image.display());
    let mut lent = Lent::start(&policy(&controller), &["vm-a", "vm-b"]);
    let load = |name: &str| {
        format!(
            "{TOOLS}
            echo running
            while :; do
                verified --name={name} --filename=$D --size=96M --rw=randwrite --bsrange=4k-128k --iodepth=64 >/tmp/fio 2>&1 || {{ cat /tmp/fio; echo failed; exit 1; }}
                echo verified
            done"
        )
    };
    // The first goes on while the second is killed and comes back.
    let mut a = machine(&lent, "vm-a")
        .timeout(Duration::from_secs(1800))
        .start(["sh", "-c", &load("a")])
        .unwrap();
    let mut b = machine(&lent, "vm-b")
        .start(["sh", "-c", &load("b")])
        .unwrap();
    let limit = Duration::from_secs(300);
    for running in [&mut a, &mut b] {
        running.line_with("running", limit).unwrap();
    }
    for running in [&mut a, &mut b] {
        running.line_with("verified", limit).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    // Dropping it kills QEMU's process in the middle of its writes.
    drop(b);
    lent.lives();
    for _ in 0..2 {
        a.line_with("verified", limit).unwrap();
    }
    // The killed one comes back and finds the last whole round of its data or writes it anew; the other goes on.
    let steps = run(
        &machine(&lent, "vm-b"),
        &format!(
            "{TOOLS}
            step id-ns nvme id-ns $D -o json
            step verified verified --name=b --filename=$D --size=64M --rw=randwrite --bsrange=4k-128k --iodepth=64
            step mark sh -c 'yes this is of b | dd of=/dev/nvme0n1 bs=64k count=512 iflag=fullblock oflag=direct'
            step dmesg dmesg -r"
        ),
    );
    steps["verified"].done();
    steps["mark"].done();
    assert_eq!(steps["id-ns"].json()["nsze"], HALF);
    assert!(
        complaints(&steps["dmesg"].text()).is_empty(),
        "{}",
        steps["dmesg"]
    );
    a.line_with("verified", limit).unwrap();
    drop(a);
    lent.lives();
    // What the first wrote last is whole in its half, and nothing of the second's is there.
    let steps = run(
        &machine(&lent, "vm-a"),
        &format!(
            "{TOOLS}
            step fill verified --name=a --filename=$D --size=16M --rw=write --bs=128k
            step mark sh -c 'yes this is of a | dd of=/dev/nvme0n1 bs=64k count=512 iflag=fullblock oflag=direct'
            step dmesg dmesg -r"
        ),
    );
    steps["fill"].done();
    steps["mark"].done();
    assert!(
        complaints(&steps["dmesg"].text()).is_empty(),
        "{}",
        steps["dmesg"]
    );
    lent.stop();
    let content = fs::read(&image).unwrap();
    let (half_a, half_b) = content.split_at((HALF * 512) as usize);
    for (half, own, other) in [
        (half_a, b"this is of a\n", b"this is of b\n"),
        (half_b, b"this is of b\n", b"this is of a\n"),
    ] {
        assert!(half.starts_with(own));
        // 64 bytes hold the line whole somewhere, and so does every sector that was written with it.
        let foreign = half
            .chunks_exact(64)
            .any(|bytes| bytes.windows(other.len()).any(|line| line == other));
        assert!(!foreign, "blocks of the other guest");
    }
}

xtask::vm_tests!(
    vfio_user: a_guest_works_on_its_slice,
    two_guests_share_one_controller,
);
