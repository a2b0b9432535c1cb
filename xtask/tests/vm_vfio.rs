//! The VFIO crate on real VFIO: a real IOMMU, QEMU's devices, two kernels.

use xtask::vm::{Kernel, Machine, Output};

/// The standard controller, alone in its group.
const ALONE: &str = "0000:00:01.0";

/// A machine with the crate's examples.
fn machine() -> Machine {
    ["assign", "group", "interrupts", "limits"]
        .into_iter()
        .fold(Machine::bare(), |machine, example| {
            machine.example("nvme-vfio-pci", example)
        })
}

/// `hold ADDRESS` returns when another process has the function's group open, `release` when that process is killed and gone.
const HOLD: &str = "hold() { group hold $1 600 >/tmp/held & HOLDER=$!; until grep -q held /tmp/held; do usleep 10000; done; }
release() { kill -9 $HOLDER; wait $HOLDER; }";

/// Runs a script in which `$A` is the standard controller; standard error goes to standard output.
fn run(machine: &Machine, script: &str) -> Output {
    let script = format!("exec 2>&1; A={ALONE}; {HOLD}; {script}");
    machine.run(["sh", "-c", &script]).unwrap()
}

/// Fails unless the output has these lines, or parts of lines, in this order.
#[track_caller]
fn expect(output: &Output, parts: &[&str]) {
    let text = output.stdout_text();
    let mut rest = &*text;
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => panic!("{part:?} is missing, or not in its place:\n{output}"),
        }
    }
}

fn assign_does_what_a_virtual_machine_monitor_does() {
    for kernel in Kernel::ALL {
        let machine = machine().kernel(kernel);
        let output = run(
            &machine,
            "group bind $A && assign --write-rom $A && group unbind $A",
        )
        .success();
        expect(
            &output,
            &[
                "function: 0000:00:01.0, NVMe controller 1b36:0010",
                "reserved: 0xfee00000-0xfeefffff msi",
                "IOVA range: 0x0-0xfedfffff",
                "IOVA range: 0xfef00000-0x7fffffffff",
                "RAM: 0x1000000 bytes at 0x0",
                "ROM: 0x40000 bytes at 0xfffc0000",
                "function_level: true",
                "configuration space: [36, 1b, 10, 00",
                "capability: 0x11 at 0x40",
                "region 0: 0x4000 bytes",
                "region 7: 0x1",
                "BAR 0: 0x4000 bytes, RegionFlags(READ | WRITE | MMAP)",
                "MSI-X: 65 vectors",
                "MSI-X vector 0: fired by the device",
                "model: QEMU NVMe Ctrl",
                "ROM after a write by the device: untouched",
                "unmapped: 0 bytes are mapped",
                "is back with nvme",
            ],
        );
        let text = output.stdout_text();
        let reads: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("BAR 0 at 0: ")?.split(' ').next())
            .collect();
        assert!(
            matches!(reads[..], [called, mapped] if called == mapped && called != "0xffffffffffffffff"),
            "{output}"
        );
        assert!(
            output.console.contains("PTE Write access is not set"),
            "the IOMMU refused the write\n{output}"
        );
    }
}

fn a_device_that_is_no_nvme_controller_is_assigned_too() {
    let machine = machine().device("virtio-rng-pci,addr=4.0");
    let script = "group bind 0000:00:04.0 && assign 0000:00:04.0";
    let output = run(&machine, script).success();
    expect(
        &output,
        &[
            "function: 0000:00:04.0, 1af4:",
            "MSI-X vector 0: fired by a loop back through the kernel",
            "unmapped: 0 bytes are mapped",
        ],
    );
}

fn interrupts_in_every_order() {
    for kernel in Kernel::ALL {
        let machine = machine().kernel(kernel);
        let output = run(&machine, "group bind $A && interrupts $A").success();
        let fixed = output.stdout_text().contains("more can be added: false");
        expect(
            &output,
            &[
                "set past the last: IrqRange { index: 2, start: 65, end: 66, count: 65 }",
                "trigger before set: IrqNotEnabled { index: 2 }",
                "set 0: ()",
                "trigger 0: (), counted 1",
                if fixed {
                    "set 1: IrqNoResize { index: 2, enabled: 1, end: 2 }"
                } else {
                    "set 1: ()"
                },
                "INTx beside MSI-X: IrqKindInUse { index: 0, active: 2 }",
                "mask MSI-X: IrqNotAllowed { index: 2, how: \"masked\" }",
                "disable: ()",
                "trigger after disable: IrqNotEnabled { index: 2 }",
                "set 0 and 1: ()",
                "trigger 1 of them: ()",
                "counted 0 and 1",
                "take 0 away: ()",
                "trigger 0: (), counted 0",
                "after a reset, trigger 1: (), counted 1",
                "set INTx: ()",
                "mask INTx: ()",
                "unmask INTx: ()",
                "unmask INTx by eventfd: ()",
                "trigger INTx: (), counted 1",
                "disable INTx: ()",
                "set the kernel's request: ()",
                "trigger the request: (), counted 1",
            ],
        );
    }
}

fn mappings_that_are_refused_say_why() {
    for kernel in Kernel::ALL {
        let machine = machine().kernel(kernel);
        let output = run(&machine, "group bind $A && limits $A").success();
        expect(
            &output,
            &[
                "page sizes: 0x40201000",
                "ranges: [0..=fedfffff, fef00000..=7fffffffff]",
                "mappings: Some(65535)",
                "map good: done",
                "map same again: Overlap",
                "map overlap: Overlap",
                "map empty: ZeroLength",
                "map odd length: MisalignedLength",
                "map odd IOVA: MisalignedIova",
                "map odd pointer: MisalignedPointer",
                "map no access: NoAccess",
                "map interrupt addresses: OutsideIovaRanges",
                "map into the interrupt addresses: OutsideIovaRanges",
                "map past the width: OutsideIovaRanges",
                "map wrap: IovaWraps",
                "map read-only memory: ReadOnlyMemory",
                "map read-only memory, read only: done",
                "map no memory: NoMemoryBehind",
                "map too much: NoMemoryBehind",
                "unmap a hole: NotMapped",
                "unmap a part: PartOfMapping",
                "unmap too long: SizeDiffers { iova: 0x100000, length: 32768, unmapped: 16384 }",
                "unmap whole: NotMapped",
                "left mapped: 16384 bytes, locked: 16384",
                "domain dropped, locked: 0",
            ],
        );
    }
}

fn a_wider_iommu_maps_more() {
    let machine = machine().iommu("aw-bits=48");
    let output = run(&machine, "group bind $A && limits $A").success();
    expect(
        &output,
        &[
            "ranges: [0..=fedfffff, fef00000..=ffffffffffff]",
            "map good: done",
        ],
    );
}

fn the_budget_of_mappings_ends() {
    let machine = machine().kernel_arguments("vfio_iommu_type1.dma_entry_limit=16");
    let output = run(&machine, "group bind $A && limits $A fill").success();
    expect(
        &output,
        &[
            "mappings: Some(16)",
            "16 mappings, then: TooManyMappings",
            "one unmapped, one mapped again",
        ],
    );
}

fn lockable_memory_ends() {
    let script = "group bind --user user $A && su user -c \"ulimit -l 8192; assign $A\"";
    let output = run(&machine(), script).exited(1);
    expect(
        &output,
        &[
            "IOVA range",
            "mapping needs 16777216 bytes of locked memory, and RLIMIT_MEMLOCK is 8388608",
        ],
    );
    let script = "group bind --user user $A && ulimit -l 65536 && su user -c \"assign $A\"";
    expect(&run(&machine(), script).success(), &["fired by the device"]);
}

fn a_group_with_another_driver_in_it_is_not_viable() {
    let machine = machine()
        .device("nvme,addr=5.0,multifunction=on")
        .device("nvme,addr=5.1");
    let script = "B=0000:00:05.0; C=0000:00:05.1; group bind $B; group open $B; echo status $?; group check $B; \
                  group bind $C; group open $B; hold $B; group unbind $C; echo status $?; release; \
                  group unbind $C; group open $B; group unbind $B; group bind $A; group open $A";
    let output = run(&machine, script).success();
    let culprit = "0000:00:05.1 (NVMe controller 1b36:0010) is bound to nvme. Run: nvme-vfio bind 0000:00:05.1";
    expect(
        &output,
        &[
            "0000:00:05.0 is bound; /dev/vfio/",
            "(not viable)",
            "is not viable: ",
            culprit,
            "status 3",
            "Fault\tgroup",
            "is not viable: 0000:00:05.1",
            "0000:00:05.1 is bound",
            "(viable)",
            "0000:00:05.0 was opened and reset",
            "0000:00:05.1 is in use through /dev/vfio/",
            "(group): end that first",
            "status 3",
            "0000:00:05.1 is back with nvme",
            culprit,
            "0000:00:05.0 is back with nvme",
            "0000:00:01.0 was opened and reset",
        ],
    );
}

fn a_group_is_open_once() {
    let script = "group bind $A; hold $A; echo \"holder $HOLDER\"; \
                  group open $A; echo status $?; group unbind $A; echo status $?; release; group open $A";
    let output = run(&machine(), script).success();
    let text = output.stdout_text();
    let holder = text.lines().find_map(|line| line.strip_prefix("holder "));
    let process = format!("process {} (group)", holder.unwrap_or_default());
    let busy = format!("is in use by {process}: a group can be open once");
    let in_use = format!("by {process}: end that first");
    expect(
        &output,
        &[
            &busy,
            "status 3",
            &in_use,
            "status 3",
            "was opened and reset",
        ],
    );
}

fn what_stands_in_the_way_is_named() {
    let script = "group open $A; echo status $?; group open 0000:00:09.0; echo status $?; \
                  group bind --user nobodyhere $A; echo status $?; su user -c \"group bind $A\"; echo status $?; \
                  group bind $A; su user -c \"group open $A\"; echo status $?; su user -c \"group check $A\"; \
                  group bind --user user $A; su user -c \"group open $A\"; \
                  chmod 0600 /dev/vfio/vfio; su user -c \"group open $A\"; echo status $?; \
                  group bind --user user $A; su user -c \"group open $A\"";
    let output = run(&machine(), script).success();
    expect(
        &output,
        &[
            "has no member bound to vfio-pci: 0000:00:01.0 (NVMe controller 1b36:0010) is bound to nvme. Run: nvme-vfio bind 0000:00:01.0",
            "status 3",
            "there is no PCI function 0000:00:09.0",
            "status 3",
            "there is no user \"nobodyhere\"",
            "status 3",
            "may only be changed by root",
            "status 3",
            "is bound",
            "belongs to root:root with mode 0600, so this user may not open it. Run: sudo chown $USER /dev/vfio/",
            "status 3",
            "Fault\tgroup",
            "is bound",
            "was opened and reset",
            "/dev/vfio/vfio belongs to root:root with mode 0600, so this user may not open it. Run: sudo chmod 0666 /dev/vfio/vfio",
            "status 3",
            "was opened and reset",
        ],
    );
}

fn a_machine_without_iommu_says_so() {
    let machine = machine().kernel_arguments("intel_iommu=off");
    let output = run(&machine, "group bind $A; echo status $?; group check $A");
    expect(
        &output,
        &[
            "0000:00:01.0 is in no IOMMU group",
            "status 3",
            "Fault\tiommu\toff",
        ],
    );
}

fn a_controller_in_use_stays_with_the_kernel() {
    let script = "mke2fs /dev/nvme0n1 >/dev/null; mount -t ext4 /dev/nvme0n1 /mnt; group bind $A; echo status $?; \
                  ls /mnt; umount /mnt; sleep 600 </dev/nvme0n1 & until grep -q sleep /proc/$!/comm; do usleep 10000; done; \
                  group bind $A; echo status $?; kill $!; wait; \
                  unshare -m sh -c 'mount -t ext4 /dev/nvme0n1 /mnt; >/tmp/done; until [ -e /tmp/seen ]; do usleep 10000; done' & \
                  until [ -e /tmp/done ]; do usleep 10000; done; group bind $A; echo status $?; >/tmp/seen; wait; \
                  group bind --dry-run $A; ls /sys/block/nvme0n1/size; group bind $A; ls /sys/block; group unbind $A";
    let output = run(&machine(), script).success();
    expect(
        &output,
        &[
            "0000:00:01.0 is in use: nvme0n1 is mounted at /mnt",
            "status 3",
            "lost+found",
            "(sleep) has /dev/nvme0n1 open",
            "status 3",
            "nvme0n1 is claimed by somebody that cannot be seen from here",
            "status 3",
            "echo vfio-pci > /sys/bus/pci/devices/0000:00:01.0/driver_override",
            "/sys/block/nvme0n1/size",
            "is bound",
            "0000:00:01.0 is back with nvme",
        ],
    );
}

fn a_function_behind_a_port_tells_what_a_bus_reset_reaches() {
    let machine = machine()
        .device("pcie-root-port,id=root1,addr=6.0,chassis=1")
        .device("nvme,bus=root1,addr=0.0,multifunction=on")
        .device("nvme,bus=root1,addr=0.1");
    let script = "group bind 0000:01:00.0; group bind 0000:01:00.1; group open 0000:01:00.0";
    let output = run(&machine, script).success();
    expect(
        &output,
        &[
            "hot reset reaches Some([DependentFunction { address: 0000:01:00.0",
            "address: 0000:01:00.1",
        ],
    );
}

xtask::vm_tests!(
    assign_does_what_a_virtual_machine_monitor_does,
    a_device_that_is_no_nvme_controller_is_assigned_too,
    interrupts_in_every_order,
    mappings_that_are_refused_say_why,
    a_wider_iommu_maps_more,
    the_budget_of_mappings_ends,
    lockable_memory_ends,
    a_group_with_another_driver_in_it_is_not_viable,
    a_group_is_open_once,
    what_stands_in_the_way_is_named,
    a_machine_without_iommu_says_so,
    a_controller_in_use_stays_with_the_kernel,
    a_function_behind_a_port_tells_what_a_bus_reset_reaches,
);
