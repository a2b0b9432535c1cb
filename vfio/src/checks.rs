//! [`Check`]: whether the machine, a function and this user's rights allow to drive it, each finding with its remedy.

use std::path::Path;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

use crate::group::{ownership, permission_remedy};
use crate::memlock::Memlock;
use crate::processes::phrase;
use crate::sysfs::{VFIO_PCI, read_text};
use crate::{PciAddress, Sysfs};

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at: `iommu`, `memlock`, `0000:01:00.0`, ...
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could, or not for everything.
    Warning,
    /// It cannot work.
    Fault,
}

/// Below this many bytes of lockable memory not even queues and one buffer arena fit.
const MEMLOCK_LEAST: u64 = 4 << 20;
/// Below this many bytes deep queues with large blocks do not fit.
const MEMLOCK_COMFORTABLE: u64 = 64 << 20;

fn good(subject: &str, finding: impl Into<String>) -> Check {
    Check {
        subject: subject.into(),
        verdict: Verdict::Good,
        finding: finding.into(),
        remedy: None,
    }
}

fn bad(
    verdict: Verdict,
    subject: &str,
    finding: impl Into<String>,
    remedy: impl Into<String>,
) -> Check {
    Check {
        subject: subject.into(),
        verdict,
        finding: finding.into(),
        remedy: Some(remedy.into()),
    }
}

/// Looks at what every function needs: the IOMMU, VFIO's modules and container node, lockable memory, hugepages.
#[must_use]
pub fn machine(sysfs: &Sysfs) -> Vec<Check> {
    let mut checks = vec![
        iommu(sysfs),
        vfio_pci(sysfs),
        type1(sysfs),
        node(sysfs, "container", &sysfs.path("dev/vfio/vfio")),
        memlock(Memlock::of_this_process()),
        hugepages(sysfs),
    ];
    checks.extend(no_iommu_mode(sysfs));
    checks
}

/// Looks at one function: its driver, its group's viability, its node.
#[must_use]
pub fn function(sysfs: &Sysfs, address: PciAddress) -> Vec<Check> {
    let subject = address.to_string();
    let found = match sysfs.function(address) {
        Ok(found) => found,
        Err(error) => {
            return vec![bad(
                Verdict::Fault,
                &subject,
                error.to_string(),
                "nvme-vfio list",
            )];
        }
    };
    let Some(number) = found.iommu_group else {
        return vec![bad(
            Verdict::Fault,
            &subject,
            "is in no IOMMU group",
            "turn the IOMMU on (see iommu)",
        )];
    };
    let mut checks = Vec::new();
    let command = format!("nvme-vfio bind {address}");
    match found.driver.as_deref() {
        _ if found.is_on_vfio() => checks.push(good(&subject, "is bound to VFIO")),
        None => checks.push(bad(
            Verdict::Fault,
            &subject,
            "is bound to no driver",
            command,
        )),
        Some(driver) => {
            let holders: Vec<String> = sysfs
                .holders(address)
                .iter()
                .map(ToString::to_string)
                .collect();
            let (used, remedy) = match holders.is_empty() {
                true => (String::new(), command),
                false => (
                    format!(", and in use: {}", holders.join(", ")),
                    format!("end that, then: {command}"),
                ),
            };
            let finding = format!("is bound to {driver}{used}");
            checks.push(bad(Verdict::Fault, &subject, finding, remedy));
        }
    }
    checks.push(viability(sysfs, number));
    if found.is_on_vfio() {
        let path = sysfs.group_node(number);
        checks.push(node(sysfs, &format!("group {number} node"), &path));
        let nodes = [vec![path], sysfs.device_nodes(address)].concat();
        let processes = sysfs.processes_with_open(&nodes);
        if !processes.is_empty() {
            let finding = format!("is in use by {}", phrase(&processes));
            checks.push(bad(
                Verdict::Warning,
                &subject,
                finding,
                "end that first: a group can be open once",
            ));
        }
    }
    checks
}

fn viability(sysfs: &Sysfs, number: u32) -> Check {
    let subject = format!("group {number}");
    let report = match sysfs.group(number) {
        Ok(report) => report,
        Err(error) => {
            return bad(
                Verdict::Fault,
                &subject,
                error.to_string(),
                "nvme-vfio group",
            );
        }
    };
    let culprits: Vec<_> = report.culprits().collect();
    if culprits.is_empty() {
        let members = report.members.len();
        return good(
            &subject,
            format!(
                "is viable ({members} member{})",
                if members == 1 { "" } else { "s" }
            ),
        );
    }
    let phrases: Vec<String> = culprits.iter().map(ToString::to_string).collect();
    let commands: Vec<String> = culprits
        .iter()
        .map(|member| format!("nvme-vfio bind {}", member.name))
        .collect();
    bad(
        Verdict::Fault,
        &subject,
        format!("is not viable: {}", phrases.join(", ")),
        commands.join(" && "),
    )
}

fn iommu(sysfs: &Sysfs) -> Check {
    let groups = sysfs.groups().len();
    if groups > 0 {
        return good("iommu", format!("on, {groups} groups"));
    }
    let processor = read_text(&sysfs.path("proc/cpuinfo")).unwrap_or_default();
    let command_line = read_text(&sysfs.path("proc/cmdline")).unwrap_or_default();
    let intel = processor.contains("GenuineIntel");
    let remedy = if intel && !command_line.contains("intel_iommu=on") {
        "boot with intel_iommu=on on the kernel's command line, and turn VT-d on in the firmware"
    } else if intel {
        "turn VT-d on in the firmware: the kernel was told intel_iommu=on and found none"
    } else {
        "turn the IOMMU (AMD-Vi, SMMU) on in the firmware"
    };
    bad(
        Verdict::Fault,
        "iommu",
        "off: there are no IOMMU groups",
        remedy,
    )
}

fn vfio_pci(sysfs: &Sysfs) -> Check {
    match sysfs.has_driver(VFIO_PCI) {
        true => good("vfio-pci", "loaded"),
        false => bad(
            Verdict::Fault,
            "vfio-pci",
            "not loaded",
            "modprobe vfio-pci",
        ),
    }
}

fn type1(sysfs: &Sysfs) -> Check {
    let subject = "vfio_iommu_type1";
    match sysfs.path("sys/module/vfio_iommu_type1").is_dir() {
        true => good(subject, "loaded"),
        false => bad(
            Verdict::Fault,
            subject,
            "not loaded",
            "modprobe vfio_iommu_type1",
        ),
    }
}

fn no_iommu_mode(sysfs: &Sysfs) -> Option<Check> {
    let path = sysfs.path("sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    let on = read_text(&path).is_ok_and(|text| matches!(text.as_str(), "Y" | "1"));
    on.then(|| {
        bad(
            Verdict::Warning,
            "no-IOMMU mode",
            "enabled: the kernel lets devices that no IOMMU confines reach all memory; this program never uses it",
            format!("echo N > {}", path.display()),
        )
    })
}

fn node(sysfs: &Sysfs, subject: &str, path: &Path) -> Check {
    if !path.exists() {
        let module = if path == sysfs.path("dev/vfio/vfio") {
            "vfio"
        } else {
            "vfio-pci"
        };
        let finding = format!("{} is not there", path.display());
        return bad(
            Verdict::Fault,
            subject,
            finding,
            format!("modprobe {module}"),
        );
    }
    let (owner, mode) = ownership(path);
    let rights = AccessFlags::R_OK | AccessFlags::W_OK;
    match faccessat(nix::fcntl::AT_FDCWD, path, rights, AtFlags::AT_EACCESS) {
        Ok(()) => good(subject, format!("{} can be opened", path.display())),
        Err(_) => bad(
            Verdict::Fault,
            subject,
            format!(
                "{} belongs to {owner} with mode {mode:04o}: this user may not open it",
                path.display()
            ),
            permission_remedy(path),
        ),
    }
}

fn memlock(memlock: Memlock) -> Check {
    let subject = "memlock";
    let limit = match memlock.soft {
        _ if memlock.exempt => return good(subject, "no limit for this user (CAP_IPC_LOCK)"),
        None => return good(subject, "unlimited"),
        Some(limit) => limit,
    };
    let finding = format!(
        "{} KiB of memory may be locked, {} KiB are",
        limit / 1024,
        memlock.locked / 1024
    );
    let verdict = match limit.saturating_sub(memlock.locked) {
        0..MEMLOCK_LEAST => Verdict::Fault,
        MEMLOCK_LEAST..MEMLOCK_COMFORTABLE => Verdict::Warning,
        _ => return good(subject, finding),
    };
    let wanted = MEMLOCK_COMFORTABLE / 1024;
    let remedy = if memlock.hard.is_none_or(|hard| hard >= MEMLOCK_COMFORTABLE) {
        format!("ulimit -l {wanted}")
    } else {
        format!(
            "as root: echo \"$USER - memlock {wanted}\" >> /etc/security/limits.conf, then log in anew"
        )
    };
    bad(verdict, subject, finding, remedy)
}

fn hugepages(sysfs: &Sysfs) -> Check {
    let directory = sysfs.path("sys/kernel/mm/hugepages/hugepages-2048kB");
    let count = |file| {
        read_text(&directory.join(file))
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let (total, free) = (count("nr_hugepages"), count("free_hugepages"));
    let finding = format!("{free} of {total} hugepages of 2 MiB are free");
    if free > 0 {
        return good("hugepages", finding);
    }
    bad(
        Verdict::Warning,
        "hugepages",
        format!("{finding}; pages of the ordinary size are used"),
        format!("echo 64 > {}", directory.join("nr_hugepages").display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockable_memory() {
        let mut limits = Memlock {
            soft: Some(8 << 20),
            hard: Some(8 << 20),
            locked: 0,
            exempt: false,
        };
        assert_eq!(memlock(limits).verdict, Verdict::Warning);
        assert!(memlock(limits).remedy.unwrap().contains("limits.conf"));
        limits.hard = None;
        assert_eq!(memlock(limits).remedy.unwrap(), "ulimit -l 65536");
        limits.locked = 6 << 20;
        assert_eq!(memlock(limits).verdict, Verdict::Fault);
        limits.soft = Some(128 << 20);
        assert_eq!(memlock(limits).verdict, Verdict::Good);
        limits.soft = Some(0);
        limits.exempt = true;
        assert_eq!(memlock(limits).verdict, Verdict::Good);
        limits.exempt = false;
        limits.soft = None;
        assert_eq!(memlock(limits).verdict, Verdict::Good);
    }
}
