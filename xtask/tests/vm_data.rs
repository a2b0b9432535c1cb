//! Data: the same through this driver and the kernel's, and after a process was killed.

mod common;

use std::time::Duration;

use common::{Drives, STANDARD, machine, run};
use xtask::vm::{Drive, End};

/// What one driver wrote the other reads, on blocks of 512 and of 4096 bytes.
fn data_is_the_same_through_the_kernels_driver() {
    let mut drives = Drives::new();
    let machine = drives.add(
        machine(),
        "addr=4.0,logical_block_size=4096,physical_block_size=4096",
    );
    let machine = machine.timeout(Duration::from_secs(600));
    let steps = run(
        &machine,
        "
        for address in $A 0000:00:04.0; do
            nvme-vfio bind $address || exit 1
            step $address-write nvme-vfio-guest write $address --seed 1
            nvme-vfio unbind $address || exit 1
            disk=$(disk $address) || exit 1
            step $address-check-by-kernel nvme-vfio-guest check $disk --seed 1
            step $address-wrong-seed nvme-vfio-guest check $disk --seed 2
            step $address-write-by-kernel nvme-vfio-guest write $disk --seed 2
            nvme-vfio bind $address || exit 1
            step $address-check nvme-vfio-guest check $address --seed 2
        done",
    );
    for (address, powers) in [("0000:00:01.0", 43), ("0000:00:04.0", 34)] {
        for (step, what) in [
            ("write", "wrote"),
            ("check-by-kernel", "compared"),
            ("write-by-kernel", "wrote"),
            ("check", "compared"),
        ] {
            let step = &steps[&*format!("{address}-{step}")];
            let expected = format!("{what} {} pieces", powers + 200);
            assert!(step.done().text().contains(&expected), "{step}");
        }
        // The comparison sees a difference.
        let wrong = &steps[&*format!("{address}-wrong-seed")];
        assert_eq!(wrong.status, 1, "{wrong}");
        assert!(wrong.stderr.contains("differs"), "{wrong}");
    }
}

/// `kill -9` in the middle of writes at depth 128, a hundred times; each time the controller opens at once and reads well.
fn a_killed_process_leaves_a_controller_that_opens_at_once() {
    const TIMES: usize = 100;
    let drive = tempfile::NamedTempFile::new().unwrap();
    drive.as_file().set_len(1 << 30).unwrap();
    let machine = machine()
        .drive(Drive::Image(drive.path().to_owned()))
        .timeout(Duration::from_secs(600));
    let mut survived = 0;
    // The reset that the kernel does under load makes QEMU 7.2 itself crash now and then. Kills that were survived before stay
    // counted, and the next machine goes on with the same drive.
    for _ in 0..20 {
        let script = format!(
            "
            nvme-vfio bind {STANDARD} >&2 || exit 1
            nvme-vfio-guest kill {STANDARD} --from {survived} --to {TIMES} || exit 1
            nvme-vfio unbind {STANDARD} >&2 || exit 1
            dmesg >&2"
        );
        let output = machine.run(["sh", "-c", &script]).unwrap();
        survived += output.stdout_text().matches(" is survived").count();
        if matches!(&output.end, End::Failed(what) if what.contains("QEMU: signal: 11")) {
            println!("QEMU crashed after kill {survived}");
            continue;
        }
        let output = output.success();
        assert_eq!(survived, TIMES, "{output}");
        // The kernel takes the function from a dead process before its memory: no access went astray.
        assert!(!output.stderr_text().contains("DMAR: [DMA"), "{output}");
        return;
    }
    panic!("QEMU crashes every time");
}

xtask::vm_tests!(
    data_is_the_same_through_the_kernels_driver,
    a_killed_process_leaves_a_controller_that_opens_at_once,
);
