//! What `doctor` finds.

use nvme_vfio_pci::checks::{self, Check, Verdict};

use crate::fake::{Fake, NVME};

fn of<'a>(checks: &'a [Check], subject: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.subject == subject)
        .unwrap_or_else(|| panic!("no {subject} in {checks:?}"))
}

#[test]
fn a_machine_that_is_ready() {
    let fake = Fake::new();
    fake.function("0000:01:00.0", NVME, Some("vfio-pci"), Some(7));
    fake.file(
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "8\n",
    );
    fake.file(
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
        "5\n",
    );
    let checks = checks::machine(&fake.sysfs());
    for subject in [
        "iommu",
        "vfio-pci",
        "vfio_iommu_type1",
        "container",
        "hugepages",
    ] {
        assert_eq!(of(&checks, subject).verdict, Verdict::Good, "{checks:?}");
    }
    assert!(of(&checks, "hugepages").finding.starts_with("5 of 8"));
}

#[test]
fn a_machine_that_lacks_everything() {
    let fake = Fake::new();
    for gone in [
        "sys/bus/pci/drivers/vfio-pci",
        "sys/module/vfio_iommu_type1",
    ] {
        std::fs::remove_dir_all(fake.path(gone)).unwrap();
    }
    std::fs::remove_file(fake.path("dev/vfio/vfio")).unwrap();
    fake.file(
        "sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
        "Y\n",
    );
    fake.file("proc/cpuinfo", "vendor_id : GenuineIntel\n");
    fake.file("proc/cmdline", "quiet\n");
    let checks = checks::machine(&fake.sysfs());
    for (subject, verdict, remedy) in [
        ("iommu", Verdict::Fault, "intel_iommu=on"),
        ("vfio-pci", Verdict::Fault, "modprobe vfio-pci"),
        (
            "vfio_iommu_type1",
            Verdict::Fault,
            "modprobe vfio_iommu_type1",
        ),
        ("container", Verdict::Fault, "modprobe vfio"),
        ("hugepages", Verdict::Warning, "nr_hugepages"),
        ("no-IOMMU mode", Verdict::Warning, "echo N"),
    ] {
        let check = of(&checks, subject);
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.remedy.as_ref().unwrap().contains(remedy), "{check:?}");
    }
    fake.file("proc/cmdline", "quiet intel_iommu=on\n");
    let iommu = checks::machine(&fake.sysfs()).swap_remove(0);
    assert!(iommu.remedy.unwrap().contains("firmware"));
}

#[test]
fn functions() {
    let fake = Fake::new();
    let sysfs = fake.sysfs();
    let verdicts = |address| -> Vec<Verdict> {
        let checks = checks::function(&sysfs, address);
        checks.iter().map(|check| check.verdict).collect()
    };
    let nowhere = "0000:09:00.0".parse().unwrap();
    assert_eq!(verdicts(nowhere), [Verdict::Fault]);
    let alone = fake.function("0000:02:00.0", NVME, None, None);
    assert_eq!(verdicts(alone), [Verdict::Fault]);

    let kernels = fake.kernel_nvme("0000:01:00.0", "nvme0");
    fake.mount("259:0", "/dev/nvme0n1", "/data");
    let checks = checks::function(&sysfs, kernels);
    let [driver, group] = checks.as_slice() else {
        panic!("{checks:?}");
    };
    assert_eq!(
        driver.finding,
        "is bound to nvme, and in use: nvme0n1 is mounted at /data"
    );
    assert_eq!(group.remedy.as_deref(), Some("nvme-vfio bind 0000:01:00.0"));

    let ready = fake.function("0000:03:00.0", NVME, Some("vfio-pci"), Some(9));
    assert_eq!(
        verdicts(ready),
        [Verdict::Good, Verdict::Good, Verdict::Fault],
        "no node"
    );
    fake.file("dev/vfio/9", "");
    assert_eq!(verdicts(ready), [Verdict::Good; 3]);
    fake.process(60, "bench", "dev/vfio/9");
    let last = checks::function(&sysfs, ready).pop().unwrap();
    assert_eq!(
        (last.verdict, last.finding.as_str()),
        (Verdict::Warning, "is in use by process 60 (bench)")
    );
}
