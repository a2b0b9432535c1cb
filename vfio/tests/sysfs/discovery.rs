//! Functions, groups, viability.

use nvme_vfio_pci::{
    Group, GroupError, KernelController, KernelNamespace, PciAddress, Sysfs, SysfsError,
};

use crate::fake::{BRIDGE, Fake, NETWORK, NVME};

#[test]
fn finds_functions_in_the_order_of_addresses() {
    let fake = Fake::new();
    fake.function("0000:05:00.1", NVME, Some("vfio-pci"), Some(14));
    fake.function("0000:05:00.0", NETWORK, None, None);
    fake.directory("sys/bus/pci/devices/not-an-address");
    fake.file("sys/bus/pci/devices/0000:05:00.1/numa_node", "1\n");
    let functions = fake.sysfs().functions().unwrap();
    let [network, nvme] = functions.as_slice() else {
        panic!("{functions:?}");
    };
    assert_eq!(
        (network.is_nvme(), network.numa_node, network.iommu_group),
        (false, None, None)
    );
    assert_eq!(
        (nvme.vendor, nvme.device, nvme.class),
        (0x1b36, 0x10, 0x01_0802)
    );
    assert_eq!(
        (nvme.driver.as_deref(), nvme.iommu_group, nvme.numa_node),
        (Some("vfio-pci"), Some(14), Some(1))
    );
    assert!(nvme.is_on_vfio() && !network.is_on_vfio());
    assert_eq!(
        fake.sysfs().nvme_functions().unwrap(),
        std::slice::from_ref(nvme)
    );
}

#[test]
fn a_machine_without_pci_has_no_functions() {
    let empty = tempfile::tempdir().unwrap();
    assert!(Sysfs::at(empty.path()).functions().unwrap().is_empty());
}

#[test]
fn absent_functions_and_groups_are_told_apart() {
    let fake = Fake::new();
    let alone = fake.function("0000:05:00.0", NVME, None, None);
    let nowhere: PciAddress = "0000:09:00.0".parse().unwrap();
    let sysfs = fake.sysfs();
    assert!(
        matches!(sysfs.group_of(nowhere), Err(SysfsError::NoFunction { address }) if address == nowhere)
    );
    assert!(
        matches!(sysfs.group_of(alone), Err(SysfsError::NoIommu { address }) if address == alone)
    );
    assert!(matches!(
        sysfs.group(3),
        Err(SysfsError::NoGroup { group: 3 })
    ));
    assert!(matches!(
        sysfs.reserved_regions(3),
        Err(SysfsError::NoGroup { group: 3 })
    ));
}

#[test]
fn a_file_that_holds_nonsense_is_an_error() {
    let fake = Fake::new();
    let address = fake.function("0000:05:00.0", "junk", None, None);
    assert!(
        matches!(fake.sysfs().function(address), Err(SysfsError::File { path, .. }) if path.ends_with("class"))
    );
    assert!(fake.sysfs().functions().unwrap().is_empty());
    fake.function("0000:06:00.0", NVME, None, Some(2));
    fake.file("sys/kernel/iommu_groups/2/reserved_regions", "0x0 0x1\n");
    assert!(matches!(
        fake.sysfs().reserved_regions(2),
        Err(SysfsError::File { .. })
    ));
}

#[test]
fn reserved_regions_of_a_group() {
    let fake = Fake::new();
    fake.function("0000:05:00.0", NVME, None, Some(2));
    let regions = fake.sysfs().reserved_regions(2).unwrap();
    assert_eq!(regions.len(), 1);
    assert_eq!(regions[0].range, 0xfee0_0000..=0xfeef_ffff);
}

#[test]
fn what_the_kernel_tells_of_its_controllers() {
    let fake = Fake::new();
    let address = fake.kernel_nvme("0000:01:00.0", "nvme3");
    fake.directory("sys/bus/pci/devices/0000:01:00.0/nvme/nvme3/power");
    assert_eq!(
        fake.sysfs().kernel_controller(address),
        Some(KernelController {
            name: "nvme3".into(),
            model: "Example Disk".into(),
            serial: "S123".into(),
            firmware: "1.0".into(),
            namespaces: vec![KernelNamespace {
                name: "nvme3n1".into(),
                nsid: Some(1),
                size: 1 << 30,
                block_size: Some(4096),
            }],
        })
    );
    let other = fake.function("0000:02:00.0", NVME, Some("vfio-pci"), Some(8));
    assert_eq!(fake.sysfs().kernel_controller(other), None);
}

#[test]
fn multipath_namespaces_are_named_as_people_see_them() {
    let fake = Fake::new();
    let address = fake.kernel_nvme("0000:01:00.0", "nvme3");
    let controller = "sys/bus/pci/devices/0000:01:00.0/nvme/nvme3";
    std::fs::remove_dir(fake.path(format!("{controller}/nvme3n1"))).unwrap();
    fake.directory(format!("{controller}/nvme0c3n2"));
    fake.block("nvme0n2", "259:5");
    let found = fake.sysfs().kernel_controller(address).unwrap();
    assert_eq!(found.namespaces[0].name, "nvme0n2");
}

#[test]
fn only_drivers_that_do_dma_spoil_a_group() {
    let fake = Fake::new();
    fake.function("0000:05:00.0", NVME, Some("vfio-pci"), Some(14));
    fake.function("0000:05:00.1", NVME, Some("nvme"), Some(14));
    fake.function("0000:05:00.2", NETWORK, Some("pci-stub"), Some(14));
    fake.function("0000:05:00.3", NETWORK, None, Some(14));
    fake.function("0000:05:00.4", NETWORK, Some("mlx5_vfio_pci"), Some(14));
    fake.function("0000:04:00.0", BRIDGE, Some("pcieport"), Some(14));
    let report = fake.sysfs().group(14).unwrap();
    assert_eq!(report.members.len(), 6);
    assert!(!report.is_viable() && report.is_on_vfio());
    let culprits: Vec<String> = report.culprits().map(ToString::to_string).collect();
    assert_eq!(
        culprits,
        ["0000:05:00.1 (NVMe controller 1b36:0010) is bound to nvme"]
    );
}

#[test]
fn members_that_are_no_pci_functions_count() {
    let fake = Fake::new();
    fake.function("0000:05:00.0", NVME, Some("vfio-pci"), Some(14));
    fake.link(
        "../../../../bus/platform/drivers/uart",
        "sys/kernel/iommu_groups/14/devices/serial0/driver",
    );
    let report = fake.sysfs().group(14).unwrap();
    let culprits: Vec<String> = report.culprits().map(ToString::to_string).collect();
    assert_eq!(culprits, ["serial0 is bound to uart"]);
}

#[test]
fn groups_that_cannot_be_opened_say_why() {
    let fake = Fake::new();
    let open = |number| Group::open(&fake.sysfs(), number).unwrap_err();
    assert!(matches!(open(14), GroupError::NoIommu));

    fake.function("0000:05:00.0", NVME, Some("nvme"), Some(14));
    assert!(matches!(open(15), GroupError::NoSuchGroup { group: 15 }));
    let error = open(14);
    assert!(matches!(&error, GroupError::NotBound { members, .. } if members.len() == 1));
    assert!(
        error
            .to_string()
            .ends_with("Run: nvme-vfio bind 0000:05:00.0"),
        "{error}"
    );

    std::fs::remove_dir_all(fake.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = open(14);
    assert!(matches!(
        &error,
        GroupError::ModuleMissing {
            module: "vfio-pci",
            ..
        }
    ));
    assert!(
        error.to_string().ends_with("Run: modprobe vfio-pci"),
        "{error}"
    );

    fake.function("0000:06:00.0", NVME, Some("vfio-pci"), Some(16));
    assert!(matches!(open(16), GroupError::ModuleMissing { .. }));
    fake.file("dev/vfio/16", "");
    assert!(
        matches!(open(16), GroupError::Os { source, .. } if source.raw_os_error() == Some(libc::ENOTTY))
    );
    fake.file("dev/vfio/noiommu-16", "");
    assert!(matches!(open(16), GroupError::NoIommuMode { group: 16 }));
    std::fs::remove_file(fake.path("dev/vfio/noiommu-16")).unwrap();
    fake.file("sys/kernel/iommu_groups/16/name", "vfio-noiommu\n");
    assert!(matches!(open(16), GroupError::NoIommuMode { group: 16 }));
}
