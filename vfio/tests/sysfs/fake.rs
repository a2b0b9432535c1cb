//! A tree that looks like the kernel's, in a temporary directory, and a thread that binds and unbinds in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nvme_vfio_pci::{PciAddress, Sysfs};
use tempfile::TempDir;

pub(crate) struct Fake {
    directory: TempDir,
}

pub(crate) const NVME: &str = "0x010802";
pub(crate) const BRIDGE: &str = "0x060400";
pub(crate) const NETWORK: &str = "0x020000";

impl Fake {
    /// A machine with an IOMMU, the drivers nvme and vfio-pci, and no device.
    pub(crate) fn new() -> Self {
        let fake = Self {
            directory: TempDir::new().unwrap(),
        };
        for directory in [
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers/nvme",
            "sys/bus/pci/drivers/vfio-pci",
            "sys/class/block",
            "sys/kernel/iommu_groups",
            "sys/module/vfio_iommu_type1",
            "dev/vfio",
            "proc/self",
        ] {
            fake.directory(directory);
        }
        fake.file("sys/bus/pci/drivers_probe", "");
        for driver in ["nvme", "vfio-pci"] {
            fake.file(format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        }
        fake.file("dev/vfio/vfio", "");
        fake.file(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
        );
        fake.file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        fake
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.directory.path())
    }

    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn directory(&self, below: impl AsRef<Path>) {
        fs::create_dir_all(self.path(below)).unwrap();
    }

    pub(crate) fn file(&self, below: impl AsRef<Path>, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn append(&self, below: impl AsRef<Path>, text: &str) {
        let path = self.path(below);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, before + text).unwrap();
    }

    pub(crate) fn read(&self, below: impl AsRef<Path>) -> String {
        fs::read_to_string(self.path(below)).unwrap()
    }

    pub(crate) fn link(&self, target: impl AsRef<Path>, below: impl AsRef<Path>) {
        let link = self.path(below);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    }

    /// Adds a function.
    pub(crate) fn function(
        &self,
        address: &str,
        class: &str,
        driver: Option<&str>,
        group: Option<u32>,
    ) -> PciAddress {
        let directory = format!("sys/bus/pci/devices/{address}");
        for (file, text) in [
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("class", class),
            ("numa_node", "-1\n"),
            ("driver_override", "(null)\n"),
        ] {
            self.file(format!("{directory}/{file}"), text);
        }
        if let Some(driver) = driver {
            self.link(
                format!("../../drivers/{driver}"),
                format!("{directory}/driver"),
            );
        }
        if let Some(group) = group {
            self.link(
                format!("../../../kernel/iommu_groups/{group}"),
                format!("{directory}/iommu_group"),
            );
            self.link(
                format!("../../../../bus/pci/devices/{address}"),
                format!("sys/kernel/iommu_groups/{group}/devices/{address}"),
            );
            self.file(
                format!("sys/kernel/iommu_groups/{group}/reserved_regions"),
                "0x00000000fee00000 0x00000000feefffff msi\n",
            );
        }
        address.parse().unwrap()
    }

    /// Gives a function the kernel's NVMe driver and a controller with namespace 1.
    pub(crate) fn kernel_nvme(&self, address: &str, name: &str) -> PciAddress {
        let made = self.function(address, NVME, Some("nvme"), Some(7));
        let controller = format!("sys/bus/pci/devices/{address}/nvme/{name}");
        self.file(format!("{controller}/model"), "Example Disk            \n");
        self.file(format!("{controller}/serial"), "  S123\n");
        self.file(format!("{controller}/firmware_rev"), "1.0     \n");
        self.directory(format!("{controller}/{name}n1"));
        self.block(&format!("{name}n1"), "259:0");
        made
    }

    /// Adds a block device with its node.
    pub(crate) fn block(&self, name: &str, number: &str) {
        self.file(
            format!("sys/class/block/{name}/dev"),
            &format!("{number}\n"),
        );
        self.file(format!("sys/class/block/{name}/size"), "2097152\n");
        self.file(format!("sys/class/block/{name}/nsid"), "1\n");
        self.file(
            format!("sys/class/block/{name}/queue/logical_block_size"),
            "4096\n",
        );
        self.directory(format!("sys/class/block/{name}/holders"));
        self.file(format!("dev/{name}"), "");
    }

    pub(crate) fn partition(&self, disk: &str, name: &str, number: &str) {
        self.block(name, number);
        self.file(format!("sys/class/block/{disk}/{name}/partition"), "1\n");
    }

    /// `above` is built on `below`.
    pub(crate) fn holder(&self, below: &str, above: &str) {
        self.link(
            format!("../../{above}"),
            format!("sys/class/block/{below}/holders/{above}"),
        );
    }

    pub(crate) fn mount(&self, number: &str, source: &str, at: &str) {
        let line = format!("40 22 {number} / {at} rw shared:1 - ext4 {source} rw\n");
        self.append("proc/self/mountinfo", &line);
    }

    /// A process with a file open.
    pub(crate) fn process(&self, pid: u32, command: &str, open: impl AsRef<Path>) {
        self.file(format!("proc/{pid}/comm"), &format!("{command}\n"));
        self.link(self.path(open), format!("proc/{pid}/fd/3"));
    }

    pub(crate) fn driver_of(&self, address: PciAddress) -> Option<String> {
        self.sysfs().function(address).unwrap().driver
    }

    /// Starts the thread that binds and unbinds as the kernel does; `refuses` is the driver whose probe fails.
    pub(crate) fn kernel(&self, refuses: Option<&'static str>) -> Kernel {
        let root = self.directory.path().to_path_buf();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                serve(&root, refuses);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Kernel {
            stop,
            thread: Some(thread),
        }
    }
}

pub(crate) struct Kernel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Takes what was written into a file of requests.
fn take(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path)
        .ok()
        .filter(|text| !text.is_empty())?;
    fs::write(path, "").unwrap();
    Some(text)
}

fn serve(root: &Path, refuses: Option<&str>) {
    let bus = root.join("sys/bus/pci");
    // Looked for first, though carried out last: whoever asks for it has asked for the rest before, which is there to be seen then.
    let probed = take(&bus.join("drivers_probe"));
    for driver in ["nvme", "vfio-pci"] {
        if let Some(address) = take(&bus.join("drivers").join(driver).join("unbind")) {
            fs::remove_file(bus.join("devices").join(address).join("driver")).unwrap();
        }
    }
    let Some(address) = probed else {
        return;
    };
    let function = bus.join("devices").join(&address);
    if function.join("driver").exists() {
        return;
    }
    let overridden = fs::read_to_string(function.join("driver_override")).unwrap();
    let driver = match overridden.as_str() {
        "vfio-pci" => "vfio-pci",
        _ => "nvme",
    };
    if refuses == Some(driver) {
        return;
    }
    if driver == "vfio-pci" {
        let group = fs::read_link(function.join("iommu_group")).unwrap();
        fs::write(root.join("dev/vfio").join(group.file_name().unwrap()), "").unwrap();
    }
    symlink(format!("../../drivers/{driver}"), function.join("driver")).unwrap();
}
