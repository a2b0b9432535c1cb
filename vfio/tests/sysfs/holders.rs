//! Who uses a controller.

use nvme_vfio_pci::Holder;

use crate::fake::{Fake, NVME};

fn texts(fake: &Fake) -> Vec<String> {
    let address = "0000:01:00.0".parse().unwrap();
    fake.sysfs()
        .holders(address)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn fake() -> Fake {
    let fake = Fake::new();
    fake.kernel_nvme("0000:01:00.0", "nvme0");
    fake
}

#[test]
fn an_idle_controller_has_none() {
    let fake = fake();
    fake.partition("nvme0n1", "nvme0n1p1", "259:1");
    fake.process(40, "sh", "dev/null");
    assert!(texts(&fake).is_empty());
    let other = fake.function("0000:02:00.0", NVME, Some("vfio-pci"), Some(8));
    assert!(fake.sysfs().holders(other).is_empty());
}

#[test]
fn mounts_by_number_and_by_name() {
    let fake = fake();
    fake.partition("nvme0n1", "nvme0n1p2", "259:2");
    fake.mount("259:2", "/dev/root", "/mnt/a\\040b");
    fake.mount("0:31", "/dev/nvme0n1", "/btrfs");
    fake.mount("0:32", "tmpfs", "/tmp");
    fake.mount("259:22", "/dev/nvme0n12", "/other");
    assert_eq!(
        texts(&fake),
        [
            "nvme0n1p2 is mounted at /mnt/a b",
            "nvme0n1 is mounted at /btrfs"
        ]
    );
}

#[test]
fn swap_through_a_link() {
    let fake = fake();
    fake.partition("nvme0n1", "nvme0n1p3", "259:3");
    fake.link("../nvme0n1p3", "dev/mapper/swap");
    fake.append(
        "proc/swaps",
        "/dev/mapper/swap partition 1 0 -2\n/dev/sda2 partition 1 0 -3\n",
    );
    assert_eq!(texts(&fake), ["nvme0n1p3 is swap space"]);
}

#[test]
fn devices_built_on_devices_are_followed() {
    let fake = fake();
    fake.partition("nvme0n1", "nvme0n1p1", "259:1");
    fake.block("md0", "9:0");
    fake.block("dm-3", "253:3");
    fake.holder("nvme0n1p1", "md0");
    fake.holder("md0", "dm-3");
    // A circle, which the kernel never makes, must end.
    fake.holder("dm-3", "md0");
    fake.mount("253:3", "/dev/mapper/home", "/home");
    let texts = texts(&fake);
    assert!(
        texts.contains(&"md0 is built on nvme0n1p1".into()),
        "{texts:?}"
    );
    assert!(texts.contains(&"dm-3 is built on md0".into()), "{texts:?}");
    assert!(
        texts.contains(&"dm-3 is mounted at /home".into()),
        "{texts:?}"
    );
}

#[test]
fn loop_devices_are_found_by_their_file() {
    let fake = fake();
    fake.block("loop4", "7:4");
    fake.file("sys/class/block/loop4/loop/backing_file", "/dev/nvme0n1\n");
    fake.block("loop5", "7:5");
    fake.file("sys/class/block/loop5/loop/backing_file", "/home/image\n");
    fake.mount("7:4", "/dev/loop4", "/image");
    assert_eq!(
        texts(&fake),
        ["loop4 is built on nvme0n1", "loop4 is mounted at /image"]
    );
}

#[test]
fn processes_with_a_node_open() {
    let fake = fake();
    fake.process(41, "fio", "dev/nvme0n1");
    fake.process(42, "nvme", "dev/nvme0");
    fake.process(43, "xnvme", "dev/ng0n1");
    fake.process(44, "other", "dev/nvme0n12");
    let holders = fake.sysfs().holders("0000:01:00.0".parse().unwrap());
    let pids: Vec<u32> = holders
        .iter()
        .map(|holder| match holder {
            Holder::Open { process, .. } => process.pid,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(pids, [41, 42, 43]);
    assert!(
        holders[0].to_string().starts_with("process 41 (fio) has "),
        "{}",
        holders[0]
    );
}
