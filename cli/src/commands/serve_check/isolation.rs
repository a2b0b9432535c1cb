//! What keeps the device and the clients apart, in words.

use nvme_vfio::Address;
use nvme_vfio_passthrough::policy::{Isolation, PolicyFile};
use nvme_vfio_pci::{PciAddress, PciFunction, Sysfs};

/// What hardware protects, what the server protects, and what nothing does.
pub(super) fn words(policy: &PolicyFile, sysfs: &Sysfs) -> Vec<String> {
    let mut words = hardware(policy, sysfs);
    words.push(
        "Blocks: only the server keeps a client to its slices. It copies each command once, decodes and judges the copy, and builds the real command from what was decoded; the device checks nothing but the size of its namespaces.".to_owned(),
    );
    let named = |isolation: Isolation| -> Vec<&str> {
        let those = policy.clients.iter();
        those
            .filter(|client| client.isolation == isolation)
            .map(|client| client.name.as_str())
            .collect()
    };
    let shared = named(Isolation::Shared);
    if !shared.is_empty() {
        words.push(format!(
            "Memory of {} (isolation = \"shared\"): lent to the device, which reads and writes it without a copy. All clients of a controller share its one address space, so that the IOMMU cannot tell their commands apart: only the server keeps one client's commands out of another's memory.",
            shared.join(", ")
        ));
    }
    let bounced = named(Isolation::Bounce);
    if !bounced.is_empty() {
        words.push(format!(
            "Memory of {} (isolation = \"bounce\"): never lent to the device, which sees only the server's own buffers; the server copies.",
            bounced.join(", ")
        ));
    }
    words.push(
        "Not protected: what the device itself does with its clients' data and timing, and anything against root or the kernel.".to_owned(),
    );
    words
}

fn hardware(policy: &PolicyFile, sysfs: &Sysfs) -> Vec<String> {
    let functions: Vec<PciAddress> = policy
        .controllers
        .iter()
        .filter_map(|address| match address {
            Address::Pci { function, .. } => Some(*function),
            _ => None,
        })
        .collect();
    match (functions.first(), policy.controllers.first()) {
        (Some(first), _) => group(*first, &functions, sysfs),
        (None, Some(Address::VfioUser(path))) => vec![format!(
            "Hardware: none that this process can see. The controller is what the process behind {} makes of it, and that process sees all data.",
            path.display()
        )],
        (None, _) => vec![
            "Hardware: none. The controller is software in this process; an IOMMU in software keeps it to the memory that is lent to it.".to_owned(),
        ],
    }
}

fn group(first: PciAddress, functions: &[PciAddress], sysfs: &Sysfs) -> Vec<String> {
    let number = match sysfs.group_of(first) {
        Ok(number) => number,
        Err(error) => return vec![format!("Hardware: not known: {error}")],
    };
    let mut words = vec![format!(
        "Hardware: IOMMU group {number}. The IOMMU keeps its functions to the memory that is lent to them: they reach neither the rest of the host nor other groups."
    )];
    let strangers = functions
        .iter()
        .filter(|one| sysfs.group_of(**one).ok() != Some(number));
    for stranger in strangers {
        words.push(format!(
            "Function {stranger} is not in this group: it cannot be served with the others. Run: nvme-vfio group {stranger}"
        ));
    }
    let report = match sysfs.group(number) {
        Ok(report) => report,
        Err(error) => {
            words.push(format!(
                "The group's other functions are not known: {error}"
            ));
            return words;
        }
    };
    let others: Vec<String> = report
        .members
        .iter()
        .filter(|member| {
            let function = member.function.as_ref();
            let bridge = function.is_some_and(PciFunction::is_bridge);
            !bridge && !functions.iter().any(|own| own.to_string() == member.name)
        })
        .map(|member| member.name.clone())
        .collect();
    if !others.is_empty() {
        words.push(format!(
            "Also in the group: {}. Functions of one group can exchange data without the IOMMU seeing it, and whoever holds the group holds them too.",
            others.join(", ")
        ));
    }
    words
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// A machine with these functions, each with its class and group.
    fn machine(root: &Path, functions: &[(&str, &str, u32)]) -> Sysfs {
        for (address, class, group) in functions {
            let function = root.join("sys/bus/pci/devices").join(address);
            let number = root.join(format!("sys/kernel/iommu_groups/{group}"));
            fs::create_dir_all(&function).unwrap();
            fs::create_dir_all(number.join("devices")).unwrap();
            for (file, text) in [("vendor", "0x1b36"), ("device", "0x0010"), ("class", class)] {
                fs::write(function.join(file), text).unwrap();
            }
            symlink(&number, function.join("iommu_group")).unwrap();
            symlink(&function, number.join("devices").join(address)).unwrap();
        }
        Sysfs::at(root)
    }

    fn said(controllers: &str, functions: &[(&str, &str, u32)]) -> String {
        let root = tempfile::tempdir().unwrap();
        let policy = format!(
            "controller = {controllers}\ndirectory = '/r'\naudit = {{ path = 'a' }}\n[[client]]\nname = 'a'\nuid = [1]\n\
             [[client.namespace]]\nnsid = 1\ncontroller = '01:00.0'\nsource = [{{ nsid = 1 }}]\nallow = ['read']\n"
        );
        let policy = PolicyFile::parse(&policy, Path::new("/")).unwrap();
        words(&policy, &machine(root.path(), functions)).join("\n")
    }

    const NVME: &str = "0x010802";
    const BRIDGE: &str = "0x060400";

    #[test]
    fn a_group_is_named_with_all_that_is_in_it() {
        let alone = said(
            "['01:00.0']",
            &[("0000:01:00.0", NVME, 13), ("0000:00:01.0", BRIDGE, 13)],
        );
        assert!(alone.starts_with("Hardware: IOMMU group 13."), "{alone}");
        assert!(!alone.contains("Also in the group"), "{alone}");
        let company = said(
            "['01:00.0']",
            &[("0000:01:00.0", NVME, 13), ("0000:01:00.1", NVME, 13)],
        );
        assert!(
            company.contains("Also in the group: 0000:01:00.1."),
            "{company}"
        );
        let both = said(
            "['01:00.0', '01:00.1']",
            &[("0000:01:00.0", NVME, 13), ("0000:01:00.1", NVME, 13)],
        );
        assert!(!both.contains("Also in the group"), "{both}");
    }

    #[test]
    fn a_function_of_another_group_is_told() {
        let text = said(
            "['01:00.0', '02:00.0']",
            &[("0000:01:00.0", NVME, 13), ("0000:02:00.0", NVME, 14)],
        );
        assert!(
            text.contains("Function 0000:02:00.0 is not in this group"),
            "{text}"
        );
        let nothing = said("['01:00.0']", &[]);
        assert!(
            nothing.starts_with("Hardware: not known: there is no PCI function"),
            "{nothing}"
        );
    }
}
