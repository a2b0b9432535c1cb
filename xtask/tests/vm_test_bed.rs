//! The test machine itself: what it promises to every other virtual machine test.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use std::{fs, iter};

use serde_json::json;
use xtask::vm::{Drive, End, Kernel, Machine, Running};

/// A machine without `nvme-vfio`: nothing here needs it.
fn machine() -> Machine {
    Machine::bare()
}

/// Bytes that look like noise, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let next = |state: &u64| {
        Some(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    };
    iter::successors(Some(1), next)
        .map(|state| (state >> 56) as u8)
        .take(length)
        .collect()
}

/// Shell commands that end when the test calls [`go_on`]. The standard controller's first block tells.
const UNTIL_TOLD: &str = "until dd if=/dev/nvme0n1 bs=512 count=1 iflag=direct 2>/dev/null | grep -q 'go on'; do usleep 10000; done";

fn go_on(running: &Running) {
    let image = File::options().write(true).open(running.image()).unwrap();
    image.write_all_at(b"go on\n", 0).unwrap();
}

fn output_comes_apart_and_byte_for_byte() {
    let noise = noise(4096);
    let script = "for i in $(seq 256); do cat /noise; cat /noise /noise >&2; done; printf 'end\\r\\n\\0\\377 no newline'";
    for kernel in Kernel::ALL {
        let output = machine()
            .kernel(kernel)
            .file("/noise", noise.clone(), 0o644)
            .run(["sh", "-c", script])
            .unwrap()
            .success();
        let mut expected = noise.repeat(256);
        expected.extend_from_slice(b"end\r\n\0\xff no newline");
        assert!(
            output.stdout == expected,
            "{} bytes on standard output, {kernel:?}",
            output.stdout.len()
        );
        assert!(
            output.stderr == noise.repeat(512),
            "{} bytes on standard error, {kernel:?}",
            output.stderr.len()
        );
    }
}

fn output_of_a_process_left_behind_does_not_hold_up_the_end() {
    // It never ends, so whoever waits for it is ended by the time limit.
    let script = "(while :; do echo left behind; done) & echo first; exit 4";
    let output = machine().run(["sh", "-c", script]).unwrap().exited(4);
    assert!(output.stdout_text().contains("first\n"));
}

fn the_streams_can_be_opened_again() {
    let script =
        "echo out >/dev/stdout; echo err >/dev/stderr; echo user | su user -c 'tee /dev/stderr'";
    let output = machine().run(["sh", "-c", script]).unwrap().success();
    assert_eq!(
        (&*output.stdout_text(), &*output.stderr_text()),
        ("out\nuser\n", "err\nuser\n")
    );
}

fn standard_input_is_empty() {
    let output = machine().run(["wc", "-c"]).unwrap().success();
    assert_eq!(output.stdout_text().trim(), "0");
}

fn the_exit_status_is_the_commands() {
    for status in [1, 124, 125, 255] {
        machine()
            .run(["sh", "-c", &format!("exit {status}")])
            .unwrap()
            .exited(status);
    }
    machine()
        .run(["sh", "-c", "kill -9 $$"])
        .unwrap()
        .exited(128 + 9);
    machine().run(["/no/such/command"]).unwrap().exited(127);
}

fn the_time_limit_ends_the_machine() {
    // Boots within it, also where booting takes long today.
    let boot = machine().run(["true"]).unwrap().success().boot_time;
    let limit = Duration::from_secs(10) + boot * 5;
    let started = Instant::now();
    let output = machine()
        .timeout(limit)
        .run(["sh", "-c", "echo begun; sleep 1000"])
        .unwrap();
    assert_eq!((&output.end, output.end.code()), (&End::TimedOut, 124));
    assert_eq!(output.stdout_text(), "begun\n");
    let took = started.elapsed();
    assert!(
        took >= limit && took < limit + Duration::from_secs(120),
        "{took:?} with a limit of {limit:?}"
    );
}

fn a_panic_is_the_machines_failure() {
    for kernel in Kernel::ALL {
        let output = machine()
            .kernel(kernel)
            .run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"])
            .unwrap();
        assert_eq!(output.end.code(), 125, "{output}");
        assert!(
            matches!(&output.end, End::Failed(what) if what.contains("Kernel panic")),
            "{output}"
        );
    }
}

fn a_guest_that_powers_off_is_the_machines_failure() {
    let script = format!("echo begun; {UNTIL_TOLD}; poweroff -f; sleep 1000");
    let mut running = machine().start(["sh", "-c", &script]).unwrap();
    // What is on its way when the power goes is lost.
    let begun = running.line(Duration::from_secs(120)).unwrap();
    assert_eq!(begun.as_deref(), Some("begun"));
    go_on(&running);
    let output = running.wait().unwrap();
    assert!(matches!(output.end, End::Failed(_)), "{output}");
    assert_eq!(output.stdout_text(), "begun\n");
}

fn a_device_that_qemu_does_not_know_is_the_machines_failure() {
    let output = machine().device("no-such-device").run(["true"]).unwrap();
    assert!(
        matches!(&output.end, End::Failed(what) if what.contains("no-such-device")),
        "{output}"
    );
}

fn too_little_memory_is_the_machines_failure() {
    let output = machine().memory("16M").run(["true"]).unwrap();
    assert!(matches!(output.end, End::Failed(_)), "{output}");
}

/// Binds the standard controller to vfio-pci by hand, and opens its group.
const BIND: &str = "
    set -e
    cd /sys/bus/pci/devices/0000:00:01.0
    test $(ls iommu_group/devices | wc -l) = 1
    echo vfio-pci >driver_override
    echo 0000:00:01.0 >driver/unbind
    echo 0000:00:01.0 >/sys/bus/pci/drivers_probe
    group=$(basename $(readlink iommu_group))
    exec 7<>/dev/vfio/$group
    ls -d /dev/vfio/$group /proc/self/fd/7
    if (exec 8<>/dev/vfio/$group) 2>/tmp/second; then exit 9; fi
    grep -q busy /tmp/second";

fn the_controller_is_alone_in_its_group_and_can_be_taken() {
    for kernel in Kernel::ALL {
        machine()
            .kernel(kernel)
            .run(["sh", "-c", BIND])
            .unwrap()
            .success();
    }
}

fn the_small_kernel_has_iommufd() {
    let script = format!("{BIND}; test -c /dev/iommu; exec 7<&-; ls /dev/vfio/devices");
    let output = machine().run(["sh", "-c", &script]).unwrap().success();
    assert!(output.stdout_text().ends_with("vfio0\n"), "{output}");
}

fn each_controller_without_a_drive_gets_one() {
    // By their place: the kernel looks at them side by side, and numbers them as they come.
    let script = "for c in /sys/bus/pci/devices/*/nvme/*; do cat $c/serial $c/*n1/size; done";
    let machine = machine()
        .device("nvme,serial=second")
        .device("nvme")
        .device("driver=nvme,serial=a,,b,mdts=1");
    let output = machine.run(["sh", "-c", script]).unwrap().success();
    let words: Vec<_> = output
        .stdout_text()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let size = "2097152";
    assert_eq!(
        words,
        [
            "vm-standard",
            size,
            "second",
            size,
            "vm-2",
            size,
            "a,b",
            size
        ]
    );
}

fn functions_of_one_device_share_a_group() {
    let script = "ls /sys/bus/pci/devices/0000:00:05.0/iommu_group/devices";
    let machine = machine()
        .device("nvme,serial=a,addr=5.0,multifunction=on")
        .device("nvme,serial=b,addr=5.1");
    let output = machine.run(["sh", "-c", script]).unwrap().success();
    assert_eq!(output.stdout_text(), "0000:00:05.0\n0000:00:05.1\n");
}

fn the_drive_image_holds_what_the_guest_wrote() {
    let noise = noise(1 << 20);
    let machine = machine().file("/noise", noise.clone(), 0o644);
    let output = machine
        .run(["dd", "if=/noise", "of=/dev/nvme0n1", "bs=4k", "seek=3"])
        .unwrap()
        .success();
    let image = fs::read(output.image()).unwrap();
    assert_eq!(image.len(), 1 << 30);
    assert!(image[3 << 12..].starts_with(&noise));

    let output = Machine::bare()
        .drive(Drive::Image(output.image().to_owned()))
        .run(["dd", "if=/dev/nvme0n1", "bs=4k", "skip=3", "count=256"])
        .unwrap()
        .success();
    assert!(output.stdout == noise);
}

fn a_file_system_can_be_mounted() {
    let script = "mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && cp /bin/busybox /mnt && df /mnt | grep nvme0n1";
    for kernel in Kernel::ALL {
        machine()
            .kernel(kernel)
            .host_program("mkfs.ext4")
            .run(["sh", "-c", script])
            .unwrap()
            .success();
    }
}

fn programs_of_the_host_bring_their_libraries() {
    let script = "nvme id-ctrl /dev/nvme0 -o json && \
                  fio --name=r --filename=/dev/nvme0n1 --rw=randread --ioengine=io_uring --direct=1 --size=1M --output-format=json";
    let machine = machine().host_program("nvme").host_program("fio");
    let output = machine.run(["sh", "-c", script]).unwrap().success();
    assert!(
        output.stdout_text().contains("\"vm-standard")
            && output.stdout_text().contains("\"jobname\""),
        "{output}"
    );
}

fn a_copied_file_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("run me");
    fs::write(&script, "#!/bin/sh\npwd; cat data\n").unwrap();
    let data = directory.path().join("data");
    fs::write(&data, "content").unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let output = machine()
        .copy(&script)
        .copy(&data)
        .run(["run me"])
        .unwrap()
        .success();
    assert_eq!(output.stdout_text(), "/root\ncontent");
}

fn an_unprivileged_user_is_there() {
    let output = machine()
        .run([
            "sh",
            "-c",
            "ulimit -l 65536; su user -c 'id -u; ulimit -l; cat /root/x'",
        ])
        .unwrap()
        .exited(1);
    assert_eq!(output.stdout_text(), "1000\n65536\n");
    assert!(output.stderr_text().contains("Permission denied"));
}

/// A read that is held in QEMU ends when the monitor lets it go.
fn the_monitor_holds_and_resumes_a_read() {
    let drive = Drive::Spec(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image}"
            .to_owned(),
    );
    let script = format!("echo reading; {UNTIL_TOLD}; echo told");
    let mut running = machine().drive(drive).start(["sh", "-c", &script]).unwrap();
    let patience = Duration::from_secs(120);
    running.line_with("reading", patience).unwrap();
    let said = running
        .monitor()
        .unwrap()
        .human("qemu-io drive0 \"break read_aio A\"")
        .unwrap();
    assert!(!said.contains("rror"), "{said}");
    // The next read is held, and no other follows it, so that nobody is told. One that was under way has had its time.
    running.line(Duration::from_secs(3)).unwrap_err();
    go_on(&running);
    running.line(Duration::from_secs(5)).unwrap_err();
    let said = running
        .monitor()
        .unwrap()
        .human("qemu-io drive0 \"resume A\"")
        .unwrap();
    assert!(!said.contains("rror"), "{said}");
    assert_eq!(running.line(patience).unwrap().as_deref(), Some("told"));
    running.wait().unwrap().success();
}

fn the_monitor_unplugs_a_controller() {
    let script = "echo here; while [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do usleep 50000; done; echo gone";
    let machine = machine()
        .device("pcie-root-port,id=port1,slot=1")
        .device("nvme,id=plugged,serial=p,bus=port1");
    let mut running = machine.start(["sh", "-c", script]).unwrap();
    running.line_with("here", Duration::from_secs(120)).unwrap();
    let monitor = running.monitor().unwrap();
    assert!(
        monitor
            .execute("device_del", json!({ "id": "nothing" }))
            .is_err()
    );
    monitor
        .execute("device_del", json!({ "id": "plugged" }))
        .unwrap();
    monitor
        .event("DEVICE_DELETED", Duration::from_secs(120))
        .unwrap();
    assert_eq!(
        running.line(Duration::from_secs(120)).unwrap().as_deref(),
        Some("gone")
    );
    assert_eq!(running.line(Duration::from_secs(120)).unwrap(), None);
    running.wait().unwrap().success();
}

fn the_iommu_can_be_shaped() {
    // The 39-bit IOMMU of the standard machine has three page-table levels; one of 48 bits has four.
    let script = "cat /sys/class/iommu/dmar0/intel-iommu/cap";
    let bits = |output: xtask::vm::Output| {
        let cap = u64::from_str_radix(output.stdout_text().trim(), 16).unwrap();
        (cap >> 16 & 0x3f) + 1
    };
    assert_eq!(
        bits(machine().run(["sh", "-c", script]).unwrap().success()),
        39
    );
    assert_eq!(
        bits(
            machine()
                .iommu("aw-bits=48")
                .run(["sh", "-c", script])
                .unwrap()
                .success()
        ),
        48
    );
}

xtask::vm_tests!(
    output_comes_apart_and_byte_for_byte,
    output_of_a_process_left_behind_does_not_hold_up_the_end,
    the_streams_can_be_opened_again,
    standard_input_is_empty,
    the_exit_status_is_the_commands,
    the_time_limit_ends_the_machine,
    a_panic_is_the_machines_failure,
    a_guest_that_powers_off_is_the_machines_failure,
    a_device_that_qemu_does_not_know_is_the_machines_failure,
    too_little_memory_is_the_machines_failure,
    the_controller_is_alone_in_its_group_and_can_be_taken,
    the_small_kernel_has_iommufd,
    each_controller_without_a_drive_gets_one,
    functions_of_one_device_share_a_group,
    the_drive_image_holds_what_the_guest_wrote,
    a_file_system_can_be_mounted,
    programs_of_the_host_bring_their_libraries,
    a_copied_file_keeps_its_mode,
    an_unprivileged_user_is_there,
    the_monitor_holds_and_resumes_a_read,
    the_monitor_unplugs_a_controller,
    the_iommu_can_be_shaped,
);
