//! Binding and unbinding.

use std::time::{Duration, Instant};

use nvme_vfio_pci::bind::{BindError, BindOptions, Step, bind, plan_bind, plan_unbind, unbind};
use nvme_vfio_pci::{GroupError, SysfsError};

use crate::fake::{BRIDGE, Fake, NVME};

const ADDRESS: &str = "0000:01:00.0";

fn texts(fake: &Fake, steps: &[Step]) -> Vec<String> {
    let root = format!("{}/", fake.path("").display()).replace("//", "/");
    steps
        .iter()
        .map(|step| step.to_string().replace(&root, "/"))
        .collect()
}

fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

#[test]
fn the_plan_is_what_one_would_type() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    let other = uid() + 1;
    let options = BindOptions {
        user: Some(other.to_string()),
        ..BindOptions::default()
    };
    let plan = plan_bind(&fake.sysfs(), address, &options).unwrap();
    let steps = texts(&fake, &plan.steps);
    assert_eq!(
        steps[..4],
        [
            "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override",
            "echo 0000:01:00.0 > /sys/bus/pci/drivers/nvme/unbind",
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe",
            "until [ -e /dev/vfio/7 ]; do sleep 0.01; done",
        ]
    );
    // The container's node was made with the permissions of an ordinary file.
    assert!(
        steps[4..].contains(&"chmod 0666 /dev/vfio/vfio".into()),
        "{steps:?}"
    );
    assert_eq!(
        fake.read(format!("sys/bus/pci/devices/{ADDRESS}/driver_override")),
        "(null)\n"
    );
}

#[test]
fn binds_and_returns() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    let _kernel = fake.kernel(None);
    let options = BindOptions {
        user: Some(uid().to_string()),
        ..BindOptions::default()
    };
    let bound = bind(&fake.sysfs(), address, &options).unwrap();
    assert_eq!(bound.node, fake.path("dev/vfio/7"));
    assert!(bound.group.is_viable());
    assert_eq!(fake.driver_of(address).as_deref(), Some("vfio-pci"));
    assert_eq!(
        plan_bind(&fake.sysfs(), address, &BindOptions::default())
            .unwrap()
            .steps,
        []
    );

    assert_eq!(unbind(&fake.sysfs(), address).unwrap(), "nvme");
    assert_eq!(fake.driver_of(address).as_deref(), Some("nvme"));
    assert_eq!(
        unbind(&fake.sysfs(), address).unwrap(),
        "nvme",
        "again does nothing"
    );
}

#[test]
fn the_bound_group_tells_of_its_other_members() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    fake.function("0000:01:00.1", NVME, Some("nvme"), Some(7));
    let _kernel = fake.kernel(None);
    let bound = bind(&fake.sysfs(), address, &BindOptions::default()).unwrap();
    assert!(!bound.group.is_viable());
}

#[test]
fn a_function_that_vfio_does_not_take_goes_back() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    let kernel = fake.kernel(Some("vfio-pci"));
    let error = bind(&fake.sysfs(), address, &BindOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::NotTaken { .. }), "{error:?}");
    let start = Instant::now();
    while fake.driver_of(address).is_none() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(kernel);
    assert_eq!(fake.driver_of(address).as_deref(), Some("nvme"));
    let overridden = fake.read(format!("sys/bus/pci/devices/{ADDRESS}/driver_override"));
    assert!(overridden.starts_with('\n'), "{overridden:?}");
}

#[test]
fn a_step_that_fails_undoes_the_others() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    std::fs::remove_file(fake.path("sys/bus/pci/drivers/nvme/unbind")).unwrap();
    let error = bind(&fake.sysfs(), address, &BindOptions::default()).unwrap_err();
    assert!(
        matches!(&error, BindError::Step { step: Step::Write { path, .. }, .. } if path.ends_with("unbind")),
        "{error:?}"
    );
    let overridden = fake.read(format!("sys/bus/pci/devices/{ADDRESS}/driver_override"));
    assert!(overridden.starts_with('\n'), "{overridden:?}");
    assert_eq!(fake.driver_of(address).as_deref(), Some("nvme"));
}

#[test]
fn a_function_in_use_is_refused_unless_forced() {
    let fake = Fake::new();
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    fake.mount("259:0", "/dev/nvme0n1", "/data");
    let mut options = BindOptions::default();
    let error = plan_bind(&fake.sysfs(), address, &options).unwrap_err();
    assert!(matches!(&error, BindError::Held { holders, .. } if holders.len() == 1));
    assert!(
        error.to_string().contains("nvme0n1 is mounted at /data"),
        "{error}"
    );
    options.force = true;
    assert_eq!(
        plan_bind(&fake.sysfs(), address, &options)
            .unwrap()
            .steps
            .len(),
        4
    );
}

#[test]
fn what_cannot_be_bound_is_refused_before_anything_is_done() {
    let fake = Fake::new();
    let sysfs = fake.sysfs();
    let plan = |address, options: &BindOptions| plan_bind(&sysfs, address, options).unwrap_err();
    let plain = BindOptions::default();
    let alone = fake.function("0000:02:00.0", NVME, Some("nvme"), None);
    assert!(matches!(
        plan(alone, &plain),
        BindError::Sysfs(SysfsError::NoIommu { .. })
    ));
    let bridge = fake.function("0000:03:00.0", BRIDGE, Some("pcieport"), Some(3));
    assert!(matches!(plan(bridge, &plain), BindError::Bridge { .. }));
    let address = fake.kernel_nvme(ADDRESS, "nvme0");
    let nobody = BindOptions {
        user: Some("no such user".into()),
        ..BindOptions::default()
    };
    assert!(matches!(plan(address, &nobody), BindError::NoUser { .. }));
    std::fs::remove_dir_all(fake.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = plan(address, &plain);
    assert!(matches!(error, BindError::DriverMissing));
    assert!(error.to_string().ends_with("Run: modprobe vfio-pci"));
    let nowhere = "0000:09:00.0".parse().unwrap();
    assert!(matches!(
        plan(nowhere, &plain),
        BindError::Sysfs(SysfsError::NoFunction { .. })
    ));
}

#[test]
fn a_function_of_no_driver_is_bound_and_returned_too() {
    let fake = Fake::new();
    let address = fake.function(ADDRESS, NVME, None, Some(7));
    let plan = plan_bind(&fake.sysfs(), address, &BindOptions::default()).unwrap();
    assert_eq!(plan.steps.len(), 3, "nothing to unbind: {plan:?}");
    let plan = plan_unbind(&fake.sysfs(), address).unwrap();
    assert_eq!(
        texts(&fake, &plan.steps),
        ["echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"]
    );
}

#[test]
fn a_function_driven_by_a_process_is_not_taken_from_it() {
    let fake = Fake::new();
    let address = fake.function(ADDRESS, NVME, Some("vfio-pci"), Some(7));
    fake.file("dev/vfio/7", "");
    fake.process(50, "bench", "dev/vfio/7");
    let error = plan_unbind(&fake.sysfs(), address).unwrap_err();
    assert!(
        matches!(&error, BindError::Open { processes, .. } if processes[0].pid == 50),
        "{error:?}"
    );
    assert!(error.to_string().contains("process 50 (bench)"), "{error}");

    let fake = Fake::new();
    let address = fake.function(ADDRESS, NVME, Some("vfio-pci"), Some(7));
    fake.file("dev/vfio/7", "");
    fake.directory(format!("sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio2"));
    fake.process(51, "vmm", "dev/vfio/devices/vfio2");
    assert!(matches!(
        plan_unbind(&fake.sysfs(), address),
        Err(BindError::Open { .. })
    ));
}

#[test]
fn without_its_kernel_driver_a_function_stays_free_and_says_so() {
    let fake = Fake::new();
    let address = fake.function(ADDRESS, NVME, Some("vfio-pci"), Some(7));
    fake.file("dev/vfio/7", "");
    std::fs::remove_dir_all(fake.path("sys/bus/pci/drivers/nvme")).unwrap();
    let _kernel = fake.kernel(Some("nvme"));
    let error = unbind(&fake.sysfs(), address).unwrap_err();
    assert!(
        matches!(
            &error,
            BindError::NotReturned {
                driver: None,
                module: "nvme",
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn errors_of_groups_name_the_remedy_for_each_culprit() {
    let fake = Fake::new();
    fake.function("0000:05:00.0", NVME, Some("vfio-pci"), Some(14));
    fake.function("0000:05:00.1", NVME, Some("nvme"), Some(14));
    let culprits = fake
        .sysfs()
        .group(14)
        .unwrap()
        .culprits()
        .cloned()
        .collect();
    let error = GroupError::NotViable {
        group: 14,
        culprits,
    };
    assert_eq!(
        error.to_string(),
        "IOMMU group 14 is not viable: 0000:05:00.1 (NVMe controller 1b36:0010) is bound to nvme. Run: nvme-vfio bind 0000:05:00.1"
    );
}
