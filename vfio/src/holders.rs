//! [`Holder`]: who uses a controller that the kernel's driver holds.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::processes::Process;
use crate::sysfs::{names_in, read_text};
use crate::{PciAddress, Sysfs};

/// Something that would lose its data or its device if the controller were taken from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A file system on it is mounted.
    Mounted {
        /// The block device: `nvme0n1p2`, or one that is built on it, such as `dm-0`.
        device: String,
        /// Where.
        at: String,
    },
    /// It is used as swap space.
    Swap {
        /// The block device.
        device: String,
    },
    /// Another block device is built on it: device mapper (LVM, encryption), RAID, loop.
    Stacked {
        /// The block device below.
        device: String,
        /// The block device above.
        by: String,
    },
    /// A process has it open.
    Open {
        /// The node.
        node: PathBuf,
        /// The process.
        process: Process,
    },
    /// The kernel says that it is claimed, and nothing above tells by whom: a mount of another mount namespace, ZFS, a
    /// process that this user may not see.
    Claimed {
        /// The block device.
        device: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Stacked { device, by } => write!(f, "{by} is built on {device}"),
            Self::Open { node, process } => write!(f, "{process} has {} open", node.display()),
            Self::Claimed { device } => write!(
                f,
                "{device} is claimed by somebody that cannot be seen from here (another mount namespace, ZFS)"
            ),
        }
    }
}

impl Sysfs {
    /// Everything that uses the namespaces of a controller that the kernel's driver holds: mounts, swap, block devices built on them
    /// (followed to any depth), processes. Empty when the kernel's driver does not hold it.
    ///
    /// Not seen: other hosts that share the namespace, and processes of others when not run by root.
    #[must_use]
    pub fn holders(&self, address: PciAddress) -> Vec<Holder> {
        let Some(controller) = self.kernel_controller(address) else {
            return Vec::new();
        };
        let disks: Vec<String> = controller
            .namespaces
            .into_iter()
            .map(|ns| ns.name)
            .collect();
        let mut holders = Vec::new();
        let blocks = self.blocks_above(&disks, &mut holders);
        self.add_mounts(&blocks, &mut holders);
        self.add_swaps(&blocks, &mut holders);
        let mut nodes: Vec<PathBuf> = blocks.iter().map(|block| self.node(block)).collect();
        nodes.push(self.node(&controller.name));
        // The generic character device of a namespace: ng0n1 beside nvme0n1.
        let generic = disks.iter().filter_map(|disk| disk.strip_prefix("nvme"));
        nodes.extend(generic.map(|rest| self.node(&format!("ng{rest}"))));
        self.add_processes(&nodes, &mut holders);
        if holders.is_empty() {
            let claimed = blocks.into_iter().filter(|block| self.is_claimed(block));
            holders.extend(claimed.map(|device| Holder::Claimed { device }));
        }
        holders
    }

    fn node(&self, name: &str) -> PathBuf {
        self.path("dev").join(name)
    }

    /// The disks, their partitions, and every block device built on one of those; each once.
    fn blocks_above(&self, disks: &[String], holders: &mut Vec<Holder>) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut blocks = Vec::new();
        let mut todo: Vec<String> = disks.iter().rev().cloned().collect();
        while let Some(block) = todo.pop() {
            if !seen.insert(block.clone()) {
                continue;
            }
            let directory = self.path("sys/class/block").join(&block);
            let inside = names_in(&directory).unwrap_or_default();
            let partitions = inside
                .into_iter()
                .filter(|name| directory.join(name).join("partition").exists());
            todo.extend(partitions);
            let mut above = names_in(&directory.join("holders")).unwrap_or_default();
            above.extend(self.loops_on(&block));
            for by in above {
                holders.push(Holder::Stacked {
                    device: block.clone(),
                    by: by.clone(),
                });
                todo.push(by);
            }
            blocks.push(block);
        }
        blocks
    }

    /// Loop devices whose backing file is this block device; they are not among its `holders`.
    fn loops_on(&self, block: &str) -> Vec<String> {
        let class = self.path("sys/class/block");
        let mut loops = names_in(&class).unwrap_or_default();
        loops.retain(|name| {
            name.starts_with("loop")
                && read_text(&class.join(name).join("loop/backing_file"))
                    .is_ok_and(|file| self.is_block(&file, block))
        });
        loops
    }

    /// Whether a path such as `/dev/nvme0n1` or `/dev/mapper/home` (a link) names this block device.
    fn is_block(&self, path: &str, block: &str) -> bool {
        let Some(below) = path.strip_prefix("/dev/") else {
            return false;
        };
        let node = self.path("dev").join(below);
        let resolved = node.canonicalize().unwrap_or(node);
        resolved.file_name().is_some_and(|name| name == block)
    }

    fn add_mounts(&self, blocks: &[String], holders: &mut Vec<Holder>) {
        let mounts = read_text(&self.path("proc/self/mountinfo")).unwrap_or_default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            // By number, and by name for file systems with a number of their own (btrfs).
            let device = blocks.iter().find(|block| {
                let number = read_text(&self.path("sys/class/block").join(block).join("dev"));
                number.is_ok_and(|number| number == mount.number)
                    || self.is_block(&mount.source, block)
            });
            holders.extend(device.map(|device| Holder::Mounted {
                device: device.clone(),
                at: mount.at.clone(),
            }));
        }
    }

    fn add_swaps(&self, blocks: &[String], holders: &mut Vec<Holder>) {
        let swaps = read_text(&self.path("proc/swaps")).unwrap_or_default();
        for path in swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_ascii_whitespace().next())
        {
            let path = unescape(path);
            let device = blocks.iter().find(|block| self.is_block(&path, block));
            holders.extend(device.map(|device| Holder::Swap {
                device: device.clone(),
            }));
        }
    }

    fn add_processes(&self, nodes: &[PathBuf], holders: &mut Vec<Holder>) {
        for node in nodes {
            let processes = self.processes_with_open(std::slice::from_ref(node));
            holders.extend(processes.into_iter().map(|process| Holder::Open {
                node: node.clone(),
                process,
            }));
        }
    }

    /// Whether the kernel refuses an exclusive opening. For a block device, `O_EXCL` asks exactly that.
    fn is_claimed(&self, block: &str) -> bool {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
            .open(self.node(block));
        opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }
}

/// What of a line of `/proc/self/mountinfo` matters here.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// `major:minor`.
    number: String,
    at: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        // Optional fields of any number end with a dash.
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let number = front.next()?.to_string();
        let at = unescape(front.nth(1)?);
        let source = unescape(back.split(' ').nth(1)?);
        Some(Self { number, at, source })
    }
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.first_chunk::<3>()).flatten();
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_mount() {
        let line = r"36 35 259:2 / /mnt/my\040disk rw,noatime master:1 shared:2 - ext4 /dev/nvme0n1p2 rw,errors=continue";
        assert_eq!(
            Mount::parse(line),
            Some(Mount {
                number: "259:2".into(),
                at: "/mnt/my disk".into(),
                source: "/dev/nvme0n1p2".into(),
            })
        );
        for bad in [
            "",
            "36 35",
            "36 35 0:1 / - x",
            "a - b c",
            "1 2 3:4 / /x rw - ext4",
        ] {
            assert_eq!(Mount::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn unescapes() {
        assert_eq!(unescape(r"a\040b\134c\0"), r"a b\c\0");
        assert_eq!(unescape(r"\999\777"), r"\999\777");
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn any_text_is_answered(text: String) {
            unescape(&text);
            Mount::parse(&text);
        }
    }
}
