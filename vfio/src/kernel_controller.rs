//! [`KernelController`]: what sysfs tells about an NVMe controller that the kernel's driver holds.

use std::path::Path;

use crate::sysfs::{names_in, read_text};
use crate::{PciAddress, Sysfs};

/// An NVMe controller in the hands of the kernel's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelController {
    /// The kernel's name for it: `nvme0`.
    pub name: String,
    /// Model number, trimmed.
    pub model: String,
    /// Serial number, trimmed.
    pub serial: String,
    /// Firmware revision, trimmed.
    pub firmware: String,
    /// Its namespaces, by block device name.
    pub namespaces: Vec<KernelNamespace>,
}

/// A namespace that the kernel shows as a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelNamespace {
    /// The block device: `nvme0n1`.
    pub name: String,
    /// The namespace identifier, where the kernel tells it.
    pub nsid: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block, where the kernel tells.
    pub block_size: Option<u32>,
}

impl Sysfs {
    /// What the kernel's NVMe driver tells about the controller at `address`; `None` when it does not hold it.
    ///
    /// A field that cannot be read is empty.
    #[must_use]
    pub fn kernel_controller(&self, address: PciAddress) -> Option<KernelController> {
        let above = self.function_path(address).join("nvme");
        let name = names_in(&above)
            .ok()?
            .into_iter()
            .find(|name| name.starts_with("nvme"))?;
        let directory = above.join(&name);
        let text = |file: &str| read_text(&directory.join(file)).unwrap_or_default();
        let mut namespaces: Vec<_> = names_in(&directory)
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| self.kernel_namespace(&directory, entry))
            .collect();
        // nvme0n10 comes after nvme0n9.
        namespaces.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
        Some(KernelController {
            model: text("model"),
            serial: text("serial"),
            firmware: text("firmware_rev"),
            namespaces,
            name,
        })
    }

    fn kernel_namespace(&self, controller: &Path, entry: &str) -> Option<KernelNamespace> {
        let name = block_device_name(entry)?;
        let here = controller.join(entry);
        let head = self.path("sys/class/block").join(&name);
        // With native multipath the controller's directory has only the hidden path (`nvme0c0n1`); the block device that
        // people see hangs off the subsystem.
        let read = |file: &str| {
            read_text(&head.join(file))
                .or_else(|_| read_text(&here.join(file)))
                .ok()
        };
        let sectors: u64 = read("size")?.parse().ok()?;
        Some(KernelNamespace {
            nsid: read("nsid").and_then(|text| text.parse().ok()),
            // The kernel counts in sectors of 512 bytes, whatever the logical block size.
            size: sectors.checked_mul(512)?,
            block_size: read("queue/logical_block_size").and_then(|text| text.parse().ok()),
            name,
        })
    }
}

/// `nvme0n1` for `nvme0n1` and for the multipath's path `nvme0c3n1`; `None` for anything else (`nvme0`, `ng0n1`, `power`).
fn block_device_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme")?;
    let (front, namespace) = rest.rsplit_once('n')?;
    let subsystem = front
        .split_once('c')
        .map_or(front, |(subsystem, _)| subsystem);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let controller = front
        .split_once('c')
        .is_none_or(|(_, controller)| digits(controller));
    (digits(subsystem) && digits(namespace) && controller)
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

#[cfg(test)]
mod tests {
    use super::block_device_name;

    #[test]
    fn names_of_block_devices() {
        for (entry, want) in [
            ("nvme0n1", Some("nvme0n1")),
            ("nvme12n345", Some("nvme12n345")),
            ("nvme0c3n1", Some("nvme0n1")),
            ("nvme0", None),
            ("ng0n1", None),
            ("nvme0n1p1", None),
            ("nvme0cn1", None),
            ("nvmen1", None),
            ("hwmon1", None),
        ] {
            assert_eq!(block_device_name(entry).as_deref(), want, "{entry}");
        }
    }
}
