//! The kernel's own NVMe driver on a controller of this project, which a process of its own serves over vfio-user.

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use common::served::Served;
use common::{Step, Steps, run};
use xtask::vm::{Kernel, Machine};

/// Where the served controller is, and its first namespace.
const PLACE: &str = "0000:00:10.0";
const DISK: &str = "/dev/nvme0n1";

/// A machine with the distribution's kernel and tools, and the served controller as its only one.
fn machine(served: &Served) -> Machine {
    ["fio", "nvme", "mkfs.ext4", "e2fsck"]
        .iter()
        .fold(Machine::bare(), |machine, name| machine.host_program(name))
        .without_nvme()
        .vfio_user(served.socket())
        .kernel(Kernel::Debian)
        .memory("1G")
        .timeout(Duration::from_secs(600))
}

/// What every script here can use: two partitions, and fio with a checksum in each block that it writes.
const TOOLS: &str = r#"
D=/dev/nvme0n1
partition() { printf 'n\np\n1\n\n+384M\nn\np\n2\n\n\nw\n' | fdisk $D; partprobe $D; [ -b ${D}p2 ]; }
verified() { fio --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --randseed=2026 "$@"; }
"#;

/// Runs a script, and sees to it that neither the kernel nor the server had anything to complain about.
#[track_caller]
fn run_clean(served: &mut Served, script: &str) -> Steps {
    let machine = machine(served);
    let steps = run(&machine, &format!("{TOOLS}{script}\nstep dmesg dmesg -r"));
    let complaints = complaints(&steps["dmesg"]);
    assert!(complaints.is_empty(), "{complaints:#?}\n{}", steps.output);
    served.lives();
    steps
}

/// The kernel's warnings and errors about NVMe, blocks, the file system and the device.
fn complaints(dmesg: &Step) -> Vec<String> {
    let about = [
        "nvme", "I/O", "blk_", "EXT4", "JBD2", PLACE, "DMAR", "swiotlb",
    ];
    let text = dmesg.text();
    let lines = text.lines().filter(|line| {
        let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let level = level.and_then(|(level, _)| level.parse::<u32>().ok());
        // What somebody asked for is told as a warning, too.
        level.is_some_and(|level| level & 7 <= 4)
            && about.iter().any(|word| line.contains(word))
            && !line.ends_with("resetting controller")
    });
    lines.map(str::to_owned).collect()
}

/// Every block of every fio job read back with the checksum it was written with.
const VERIFY_ALL: &str = r#"
step partition partition
step mkfs mkfs.ext4 -q -F ${D}p1
step mount mount -t ext4 ${D}p1 /mnt
step fio-files verified --name=files --directory=/mnt --nrfiles=8 --size=32M --rw=randwrite --bs=4k --iodepth=32
step fio-buffered fio --name=buffered --directory=/mnt --size=16M --rw=randrw --bs=8k --fsync=64 --verify=crc32c --verify_fatal=1 --randseed=2026
step umount umount /mnt
step e2fsck e2fsck -f -n ${D}p1
step fio-raw verified --name=raw --filename=${D}p2 --size=64M --rw=randwrite --bsrange=512-512k --blockalign=512 --iodepth=64
step fio-jobs verified --name=jobs --filename=${D}p2 --size=8M --offset_increment=8M --numjobs=4 --rw=randrw --bs=4k --iodepth=16 --thread
"#;

#[track_caller]
fn all_done(steps: &Steps, names: &[&str]) {
    for name in names {
        steps[name].done();
    }
}

const VERIFY_STEPS: [&str; 9] = [
    "partition",
    "mkfs",
    "mount",
    "fio-files",
    "fio-buffered",
    "umount",
    "e2fsck",
    "fio-raw",
    "fio-jobs",
];

/// Partitions, a file system, and fio with verification on files and on the raw disk.
fn the_kernel_partitions_formats_and_verifies() {
    let mut served = Served::start(&["--size", "1G"]);
    let steps = run_clean(&mut served, VERIFY_ALL);
    all_done(&steps, &VERIFY_STEPS);
    let summary = served.stop();
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
    assert_eq!(summary["invalid_doorbells"], 0, "{summary}");
    assert!(summary["commands"].as_u64() > Some(5_000), "{summary}");
}

/// What nvme-cli reads is what was configured; a format erases; after a reset all goes on.
fn nvme_cli_looks_formats_and_resets() {
    let mut served = Served::start(&["--size", "256M", "serial=SERVED7,model=A model of its own"]);
    let steps = run_clean(
        &mut served,
        "
        step id-ctrl nvme id-ctrl /dev/nvme0 -o json
        step id-ns nvme id-ns $D -o json
        step list-ns nvme list-ns /dev/nvme0
        step smart-log nvme smart-log /dev/nvme0 -o json
        step error-log nvme error-log /dev/nvme0
        step fw-log nvme fw-log /dev/nvme0
        step get-feature nvme get-feature /dev/nvme0 -f 7
        step write sh -c \"yes written | dd of=$D bs=64k count=64 iflag=fullblock oflag=direct\"
        step before sh -c \"dd if=$D bs=64k count=1 iflag=direct | head -c 8\"
        step smart-log-after nvme smart-log /dev/nvme0 -o json
        step format nvme format $D --lbaf=0 --ses=1 --force
        step erased sh -c \"dd if=$D bs=64k count=64 iflag=direct | tr -d '\\\\000' | wc -c\"
        step write-again sh -c \"yes written | dd of=$D bs=64k count=64 iflag=fullblock oflag=direct\"
        for n in 1 2 3; do
            step reset-$n nvme reset /dev/nvme0
            step state-$n cat /sys/class/nvme/nvme0/state
            step after-$n sh -c \"dd if=$D bs=64k count=1 iflag=direct | head -c 8\"
        done
        step under-load sh -c '
            fio --name=load --filename=/dev/nvme0n1 --rw=randread --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --time_based --runtime=4 &
            sleep 1; nvme reset /dev/nvme0; sleep 1; nvme reset /dev/nvme0; wait $!'
        ",
    );
    let id = steps["id-ctrl"].json();
    assert_eq!(id["sn"].as_str().map(str::trim), Some("SERVED7"), "{id}");
    assert_eq!(
        id["mn"].as_str().map(str::trim),
        Some("A model of its own"),
        "{id}"
    );
    assert_eq!(steps["id-ns"].json()["nsze"], (256 << 20) / 512);
    assert!(
        steps["list-ns"].done().text().contains("0x1"),
        "{}",
        steps["list-ns"]
    );
    // Thousands of 512 bytes, as a text: the number has 128 bits.
    let written = |name: &str| -> Option<u64> {
        steps[name].json()["data_units_written"]
            .as_str()?
            .parse()
            .ok()
    };
    assert_eq!(written("smart-log"), Some(0));
    assert_eq!(written("smart-log-after"), Some((4 << 20) / 512 / 1000 + 1));
    for name in [
        "error-log",
        "fw-log",
        "get-feature",
        "write",
        "format",
        "write-again",
        "under-load",
    ] {
        steps[name].done();
    }
    assert_eq!(steps["before"].done().text(), "written\n");
    assert_eq!(steps["erased"].done().text().trim(), "0");
    for n in 1..=3 {
        steps[&*format!("reset-{n}")].done();
        assert_eq!(steps[&*format!("state-{n}")].text().trim(), "live");
        assert_eq!(steps[&*format!("after-{n}")].done().text(), "written\n");
    }
    let summary = served.stop();
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
}

/// The kernel's driver lets go and takes the controller again, idle and in the middle of I/O.
fn unbound_and_bound_again() {
    let mut served = Served::start(&["--size", "256M"]);
    let script = format!(
        "
        U=/sys/bus/pci/drivers/nvme
        step fill verified --name=fill --filename=$D --rw=write --bs=128k --size=16M
        for n in 1 2 3; do
            echo {PLACE} >$U/unbind || exit 1
            [ -e /sys/bus/pci/devices/{PLACE}/driver ] && exit 1
            echo {PLACE} >$U/bind || exit 1
            D=$(disk {PLACE}) || exit 1
            step verify-$n verified --name=fill --filename=$D --rw=write --bs=128k --size=16M --verify_only
        done"
    );
    let steps = run_clean(&mut served, &script);
    steps["fill"].done();
    for n in 1..=3 {
        steps[&*format!("verify-{n}")].done();
    }
    // Reads fail when their disk is taken away: the kernel's complaints about those are right.
    let script = format!(
        "{TOOLS}
        U=/sys/bus/pci/drivers/nvme
        for n in 1 2 3; do
            fio --name=load --filename=$D --rw=randread --bs=4k --iodepth=64 --ioengine=libaio --direct=1 --time_based --runtime=20 >/dev/null 2>&1 &
            sleep 1
            echo {PLACE} >$U/unbind || exit 1
            wait $!
            echo {PLACE} >$U/bind || exit 1
            D=$(disk {PLACE}) || exit 1
            step verify-$n verified --name=fill --filename=$D --rw=write --bs=128k --size=16M --verify_only
        done"
    );
    let steps = run(&machine(&served), &script);
    for n in 1..=3 {
        steps[&*format!("verify-{n}")].done();
    }
    served.lives();
    let summary = served.stop();
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
}

/// `kill -9` of the machine in the middle of writes; the next one finds what had been synchronised. Four times, 50 times with
/// `NVME_VFIO_SOAK=1`.
fn a_killed_machine_starts_again() {
    let whole = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let kills = if whole { 50 } else { 4 };
    let mut served = Served::start(&["--size", "1G"]);
    let steps = run_clean(
        &mut served,
        "
        step partition partition
        step mkfs mkfs.ext4 -q -F ${D}p1
        step mount mount -t ext4 ${D}p1 /mnt
        step kept verified --name=kept --directory=/mnt --size=16M --rw=randwrite --bs=4k --iodepth=32
        step sync sync
        step umount umount /mnt",
    );
    all_done(
        &steps,
        &["partition", "mkfs", "mount", "kept", "sync", "umount"],
    );
    for kill in 0..kills {
        let script = "
            mount -t ext4 ${D}p1 /mnt || exit 1
            (while :; do dd if=/dev/urandom of=/mnt/churn bs=64k count=200 conv=fsync; rm /mnt/churn; done) 2>/dev/null &
            fio --name=load --filename=${D}p2 --rw=randrw --bsrange=4k-128k --iodepth=64 --numjobs=2 --ioengine=libaio --direct=1 --time_based --runtime=120 --size=512M >/dev/null &
            sleep 1
            echo running
            wait";
        let script = format!("{TOOLS}{script}");
        let mut running = machine(&served).start(["sh", "-c", &script]).unwrap();
        running
            .line_with("running", Duration::from_secs(300))
            .unwrap();
        thread::sleep(Duration::from_millis(250 * (kill % 5)));
        // Dropping it kills QEMU's process.
        drop(running);
        served.lives();
        let steps = run_clean(
            &mut served,
            "
            step e2fsck e2fsck -p ${D}p1
            step mount mount -t ext4 ${D}p1 /mnt
            step kept verified --name=kept --directory=/mnt --size=16M --rw=randwrite --bs=4k --iodepth=32 --verify_only
            step umount umount /mnt
            step again e2fsck -f -n ${D}p1",
        );
        // 1: errors were corrected, which replaying the journal can count as.
        assert!(steps["e2fsck"].status <= 1, "{}", steps["e2fsck"]);
        all_done(&steps, &["mount", "kept", "umount", "again"]);
    }
    let summary = served.stop();
    assert_eq!(summary["refused_accesses"], 0, "{summary}");
}

/// A file behind the controller: what the guest wrote is in it, and the next server has it.
fn a_file_keeps_the_data() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let backend = format!("file:{}", image.display());
    let arguments = ["--size", "1G", "--backend", &backend];
    let mut served = Served::start(&arguments);
    let steps = run_clean(&mut served, VERIFY_ALL);
    all_done(&steps, &VERIFY_STEPS);
    let steps = run_clean(
        &mut served,
        "step mount mount -t ext4 ${D}p1 /mnt
        step write sh -c 'echo a line that can be found >/mnt/note; sync'
        step umount umount /mnt",
    );
    all_done(&steps, &["mount", "write", "umount"]);
    served.stop();
    let content = fs::read(&image).unwrap();
    assert_eq!(
        content[510..512],
        [0x55, 0xaa],
        "the partition table's mark"
    );
    let note = b"a line that can be found\n";
    assert!(content.windows(note.len()).any(|window| window == note));
    let mut served = Served::start(&arguments);
    let steps = run_clean(
        &mut served,
        "step mount mount -t ext4 -o ro ${D}p1 /mnt
        step note cat /mnt/note
        step umount umount /mnt",
    );
    assert_eq!(steps["note"].done().text().as_bytes(), note);
    served.stop();
}

/// Controllers of other shapes: blocks of 4096 bytes, one queue, small transfers, few entries, wide doorbells, two namespaces.
fn controllers_of_other_shapes() {
    for shape in [
        "lba=4096",
        "queues=1,mqes=4,mdts=1",
        "dstrd=3,mdts=0",
        "namespaces=2,vwc=off",
    ] {
        let mut served = Served::start(&["--size", "256M", shape]);
        let namespaces = if shape.contains("=2") { 2 } else { 1 };
        let steps = run_clean(
            &mut served,
            &format!(
                "
            # The machine waits for the first only.
            tries=0
            until [ -b /dev/nvme0n{namespaces} ] || [ $tries -gt 3000 ]; do tries=$((tries + 1)); usleep 20000; done
            step disks sh -c 'ls /dev/nvme0n?'
            for disk in /dev/nvme0n?; do
                step ${{disk##*/}} verified --name=raw --filename=$disk --size=32M --rw=randwrite --bsrange=4k-512k --iodepth=32
            done"
            ),
        );
        let disks = steps["disks"].done().text();
        assert!(disks.starts_with(DISK), "{shape}: {disks}");
        assert_eq!(disks.lines().count(), namespaces);
        for disk in disks.lines() {
            steps[disk.trim_start_matches("/dev/")].done();
        }
        let summary = served.stop();
        assert_eq!(summary["refused_accesses"], 0, "{shape}: {summary}");
    }
}

xtask::vm_tests!(
    vfio_user: the_kernel_partitions_formats_and_verifies,
    nvme_cli_looks_formats_and_resets,
    unbound_and_bound_again,
    a_killed_machine_starts_again,
    a_file_keeps_the_data,
    controllers_of_other_shapes,
);
