//! The command `nvme-vfio` in a virtual machine: what it says and how it ends where an emulated controller cannot show it, and its JSON
//! beside that of nvme-cli and fio.

use serde_json::Value;
use xtask::vm::{End, Machine, Output};

/// The standard controller, alone in its group.
const ALONE: &str = "0000:00:01.0";

/// Runs a script in which `$A` is the standard controller. `try COMMAND…` prints its standard output, its standard error and
/// its status, each in brackets of its own. `marked NAME COMMAND…` prints what [`marked`] finds.
fn run(machine: &Machine, script: &str) -> Output {
    let script = format!(
        "A={ALONE}
         try() {{ \"$@\" >/tmp/out 2>/tmp/err; status=$?; echo \"[$*] [$(cat /tmp/out)] [$(cat /tmp/err)] status $status\"; }}
         marked() {{ name=$1; shift; echo \"<<$name\"; \"$@\"; echo \"$name>>\"; }}
         {script}"
    );
    // Rarely, QEMU 7.2 itself crashes when its controller is reset under load, as it is when its user is killed: once more, then.
    for _ in 0..2 {
        let output = machine.run(["sh", "-c", &script]).unwrap();
        match &output.end {
            End::Failed(what) if what.contains("QEMU: signal: 11") => println!("{output}"),
            _ => return output,
        }
    }
    machine.run(["sh", "-c", &script]).unwrap()
}

/// Fails unless the output has these parts in this order.
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

/// The JSON that a `marked` command printed.
#[track_caller]
fn marked(output: &Output, name: &str) -> Value {
    let text = output.stdout_text();
    let (start, end) = (format!("<<{name}\n"), format!("{name}>>"));
    let found = text
        .split_once(start.as_str())
        .and_then(|(_, rest)| rest.split_once(end.as_str()))
        .and_then(|(json, _)| serde_json::from_str(json).ok());
    found.unwrap_or_else(|| panic!("no JSON is marked {name}:\n{output}"))
}

fn the_way_of_an_ssd() {
    let script = "
        try nvme-vfio list
        try nvme-vfio doctor $A
        try nvme-vfio bind --dry-run $A
        ls -d /sys/bus/pci/drivers/nvme/$A
        try nvme-vfio bind $A
        try nvme-vfio doctor $A
        try nvme-vfio list
        dd if=/dev/urandom of=/tmp/data bs=1000 count=1000 2>/dev/null; truncate -s 1000448 /tmp/data
        try nvme-vfio write $A -s 7 -d /tmp/data
        try nvme-vfio flush $A
        try nvme-vfio read $A -s 7 -c 1953 -d /tmp/back
        cmp /tmp/data /tmp/back && echo read back equal
        try nvme-vfio unbind $A
        dd if=/dev/nvme0n1 of=/tmp/kernel bs=512 skip=7 count=1954 2>/dev/null
        cmp /tmp/data /tmp/kernel && echo equal for the kernel";
    let output = run(&Machine::standard(), script).success();
    expect(
        &output,
        &[
            "/dev/nvme0n1",
            "vm-standard",
            "QEMU NVMe Ctrl",
            "1.07GB",
            "nvme",
            "status 0",
            "is bound to nvme",
            "-> nvme-vfio bind 0000:00:01.0",
            "status 3",
            "driver_override",
            "status 0",
            "/sys/bus/pci/drivers/nvme/0000:00:01.0",
            "0000:00:01.0 is bound to vfio-pci: group 1, /dev/vfio/1] [] status 0",
            "is bound to VFIO",
            "status 0",
            "0000:00:01.0  vm-standard  QEMU NVMe Ctrl",
            "vfio-pci",
            "status 0",
            "[] [write: Success] status 0",
            "[] [flush: Success] status 0",
            "[] [read: Success] status 0",
            "read back equal",
            "0000:00:01.0 is bound to nvme] [] status 0",
            "equal for the kernel",
        ],
    );
}

/// Every key of nvme-cli is there with the same value, except where `differs` says so. Numbers of 128 bits are text in some of its versions.
#[track_caller]
fn same(theirs: &Value, ours: &Value, differs: &[&str], path: &str) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, value) in theirs {
                let path = format!("{path}.{key}");
                let ours = ours.get(key).unwrap_or_else(|| panic!("{path} is missing"));
                if !differs.contains(&key.as_str()) {
                    same(value, ours, differs, &path);
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            assert_eq!(theirs.len(), ours.len(), "{path}");
            for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                same(theirs, ours, differs, &format!("{path}[{index}]"));
            }
        }
        _ => {
            let text = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), |text| text.trim_end().to_owned())
            };
            assert_eq!(text(theirs), text(ours), "{path}");
        }
    }
}

fn the_json_is_that_of_nvme_cli() {
    let script = "
        for command in id-ctrl list-ns smart-log show-regs; do marked nvme.$command nvme $command /dev/nvme0 -o json; done
        marked nvme.id-ns nvme id-ns /dev/nvme0n1 -o json
        marked nvme.ns-descs nvme ns-descs /dev/nvme0n1 -o json
        for command in error-log fw-log; do marked nvme.$command nvme $command /dev/nvme0 -o json; done
        marked nvme.effects-log nvme effects-log /dev/nvme0 --csi=0 -o json
        nvme admin-passthru /dev/nvme0 --opcode=06 --data-len=4096 --cdw10=1 -r -b >/tmp/nvme.admin
        nvme io-passthru /dev/nvme0n1 --opcode=2 --namespace-id=1 --data-len=4096 --read --cdw10=0 --cdw11=0 --cdw12=7 --raw-binary >/tmp/nvme.io
        marked nvme.list nvme list -o json
        marked ours.list nvme-vfio list -o json
        nvme-vfio bind $A >/dev/null
        for command in id-ctrl id-ns list-ns smart-log show-regs; do marked ours.$command nvme-vfio $command $A -o json; done
        for command in ns-descs error-log fw-log effects-log; do marked ours.$command nvme-vfio $command $A -o json; done
        nvme-vfio admin-passthru $A --opcode=06 --data-len=4096 --cdw10=1 -r -b | cmp - /tmp/nvme.admin && echo admin equal
        nvme-vfio io-passthru $A --opcode=2 --namespace-id=1 --data-len=4096 --read --cdw10=0 --cdw11=0 --cdw12=7 --raw-binary | cmp - /tmp/nvme.io && echo io equal
        marked vfio.list nvme-vfio list -o json
        for command in id-ctrl id-ns smart-log; do nvme-vfio $command $A -b >/tmp/$command; done
        nvme-vfio unbind $A >/dev/null
        nvme id-ctrl /dev/nvme0 -b | cmp - /tmp/id-ctrl && nvme id-ns /dev/nvme0n1 -b | cmp - /tmp/id-ns && echo binary equal";
    let machine = Machine::standard()
        .nvme("mdts=4,max_ioqpairs=3")
        .host_program("nvme");
    let output = run(&machine, script).success();
    for (command, differs) in [
        ("id-ctrl", [].as_slice()),
        ("id-ns", &[]),
        ("list-ns", &[]),
        // Counters go on, and each owner sets up the controller in its own way.
        (
            "smart-log",
            &[
                "host_read_commands",
                "host_write_commands",
                "data_units_read",
                "data_units_written",
                "temperature",
                "power_on_hours",
            ],
        ),
        (
            "error-log",
            &[
                "error_count",
                "sqid",
                "cmdid",
                "status_field",
                "parm_error_location",
            ],
        ),
        ("ns-descs", &[]),
        ("effects-log", &[]),
        (
            "show-regs",
            &["cc", "csts", "aqa", "asq", "acq", "intms", "intmc"],
        ),
    ] {
        let theirs = marked(&output, &format!("nvme.{command}"));
        let ours = marked(&output, &format!("ours.{command}"));
        same(&theirs, &ours, differs, command);
    }
    let theirs = marked(&output, "nvme.list");
    same(
        &theirs,
        &marked(&output, "ours.list"),
        &["UsedBytes"],
        "list",
    );
    // In our hands only the path is another.
    same(
        &theirs,
        &marked(&output, "vfio.list"),
        &["DevicePath"],
        "list",
    );
    // Under the name of the device, which is ours.
    let inner = |name: &str| {
        let log = marked(&output, name);
        log.as_object().and_then(|log| log.values().next().cloned())
    };
    let (theirs, ours) = (inner("nvme.fw-log"), inner("ours.fw-log"));
    assert!(theirs.is_some());
    same(&theirs.into(), &ours.into(), &[], "fw-log");
    expect(&output, &["admin equal", "io equal", "binary equal"]);
}

/// The keys of an object and those below, but for the names of percentiles and classes.
fn keys(value: &Value, path: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = format!("{path}.{key}");
                into.push(path.clone());
                if key != "job options" {
                    keys(value, &path, into);
                }
            }
        }
        Value::Array(array) if path.ends_with("jobs") => {
            array.iter().for_each(|value| keys(value, path, into));
        }
        _ => {}
    }
}

fn the_layout_of_a_benchmark_is_that_of_fio() {
    let script = "
        options='--name=trial --rw=randread --bs=4k --iodepth=1 --size=1M'
        marked fio fio $options --filename=/dev/nvme0n1 --ioengine=psync --direct=1 --output-format=json
        nvme-vfio bind $A >/dev/null
        marked ours nvme-vfio bench $A $options --output-format=json";
    let output = run(&Machine::standard().host_program("fio"), script).success();
    let (theirs, ours) = (marked(&output, "fio"), marked(&output, "ours"));
    let all = |value: &Value| {
        let mut found = Vec::new();
        keys(value, "", &mut found);
        found
    };
    assert_eq!(all(&theirs), all(&ours), "{output}");
    for report in [&theirs, &ours] {
        let job = &report["jobs"][0];
        assert_eq!(job["jobname"], "trial");
        assert_eq!(
            (&job["read"]["total_ios"], &job["read"]["io_bytes"]),
            (&256.into(), &(1 << 20).into())
        );
        assert_eq!(job["read"]["clat_ns"]["N"], 256);
    }
}

fn what_stands_in_the_way_is_named_with_its_remedy() {
    let script = "
        try nvme-vfio id-ctrl $A -o json
        try nvme-vfio id-ctrl 0000:00:1f.7 -o json
        echo $A >/sys/bus/pci/drivers/nvme/unbind
        try nvme-vfio id-ctrl $A -o json
        try nvme-vfio bind $A
        try su user -c \"nvme-vfio id-ctrl $A -o json\"
        try su user -c \"nvme-vfio unbind $A -o json\"
        nvme-vfio bench $A --runtime=3600 >/dev/null 2>&1 & holder=$!
        until ls -l /proc/$holder/fd | grep -q /dev/vfio/1; do usleep 10000; done; echo \"holder $holder\"
        try nvme-vfio id-ctrl $A -o json
        try nvme-vfio list
        try nvme-vfio unbind $A -o json
        kill -9 $holder; wait $holder
        try nvme-vfio id-ns $A
        try nvme-vfio id-ctrl 0000:00:00.0 -o json";
    let output = run(&Machine::standard(), script).success();
    let text = output.stdout_text();
    let holder = text
        .lines()
        .find_map(|line| line.strip_prefix("holder "))
        .unwrap_or_default();
    let (kill, by) = (
        format!("kill {holder}"),
        format!("process {holder} (nvme-vfio)"),
    );
    expect(
        &output,
        &[
            "\"kind\":\"not-bound\"",
            "is bound to nvme",
            "Run: nvme-vfio bind 0000:00:01.0",
            "status 3",
            "\"kind\":\"not-found\"",
            "Run: nvme-vfio list",
            "status 3",
            "\"kind\":\"not-bound\"",
            "is bound to no driver",
            "Run: nvme-vfio bind 0000:00:01.0",
            "status 3",
            "is bound to vfio-pci",
            "status 0",
            "\"kind\":\"permission\"",
            "\"remedy\":\"Run: sudo chown",
            "status 3",
            "\"kind\":\"permission\"",
            "sudo",
            "status 3",
            "\"kind\":\"busy\"",
            &by,
            &kill,
            "status 3",
            &by,
            "status 0",
            "\"kind\":\"busy\"",
            &kill,
            "status 3",
            "NVME Identify Namespace 1",
            "status 0",
            "status 3",
        ],
    );
}

fn a_group_that_is_not_viable_names_the_culprit() {
    let machine = Machine::standard()
        .device("nvme,addr=5.0,multifunction=on")
        .device("nvme,addr=5.1");
    let script = "
        B=0000:00:05.0; C=0000:00:05.1
        try nvme-vfio bind $B
        try nvme-vfio id-ctrl $B -o json
        try nvme-vfio group $B
        try nvme-vfio doctor $B
        try nvme-vfio bind $C
        try nvme-vfio id-ctrl $B -b | wc -c
        try nvme-vfio group $B
        try nvme-vfio unbind $B $C";
    let output = run(&machine, script).success();
    expect(
        &output,
        &[
            "is not viable yet. Run: nvme-vfio bind 0000:00:05.1] status 0",
            "\"kind\":\"not-viable\"",
            "0000:00:05.1 (NVMe controller 1b36:0010) is bound to nvme",
            "\"remedy\":\"Run: nvme-vfio bind 0000:00:05.1\"",
            "status 3",
            "not viable, 2 members",
            "keeps the group from being viable",
            "Run: nvme-vfio bind 0000:00:05.1",
            "status 0",
            "is not viable",
            "-> nvme-vfio bind 0000:00:05.1",
            "status 3",
            "is bound to vfio-pci",
            "status 0",
            "viable, on VFIO, 2 members",
            "0000:00:05.0 is bound to nvme\n0000:00:05.1 is bound to nvme] [] status 0",
        ],
    );
}

fn a_controller_in_use_and_a_drive_with_data_are_refused() {
    let script = "
        mke2fs /dev/nvme0n1 >/dev/null; mount -t ext4 /dev/nvme0n1 /mnt
        try nvme-vfio bind $A -o json
        ls -d /mnt/lost+found; umount /mnt
        try nvme-vfio bind $A
        try nvme-vfio bench $A --rw=randwrite --runtime=1 -o json
        try nvme-vfio write $A -s 2 -d /bin/busybox -z 512 -o json
        try nvme-vfio bench $A --rw=randread --size=64k
        try nvme-vfio unbind $A
        e2fsck -fn /dev/nvme0n1 >/dev/null 2>&1; mount -t ext4 /dev/nvme0n1 /mnt && ls -d /mnt/lost+found && umount /mnt
        try nvme-vfio bind $A
        try nvme-vfio bench $A --rw=write --size=1M --force
        try nvme-vfio bench $A --rw=write --size=1M";
    let output = run(&Machine::standard(), script).success();
    expect(
        &output,
        &[
            "\"kind\":\"busy\"",
            "nvme0n1 is mounted at /mnt",
            "--force",
            "status 3",
            "/mnt/lost+found",
            "is bound to vfio-pci",
            "\"kind\":\"holds-data\"",
            "an ext2, ext3 or ext4 file system",
            "Add --force",
            "status 3",
            "\"kind\":\"holds-data\"",
            "status 3",
            "read: IOPS=",
            "status 0",
            "is bound to nvme",
            "/mnt/lost+found",
            "is bound to vfio-pci",
            "write: IOPS=",
            "status 0",
            // What was there is overwritten, so there is nothing left to ask about.
            "write: IOPS=",
            "status 0",
        ],
    );
}

fn limits_say_how_much_is_needed() {
    let script = "
        nvme-vfio bind --user user $A >/dev/null
        try su user -c \"ulimit -l 64; nvme-vfio bench $A --runtime=1 -o json\"
        ulimit -l 65536
        try su user -c \"nvme-vfio bench $A --size=16M\"
        try su user -c \"ulimit -l 8192; nvme-vfio read $A -z 16M -d /tmp/data\"; ls -l /tmp/data";
    let output = run(&Machine::standard(), script).success();
    expect(
        &output,
        &[
            "\"kind\":\"memlock\"",
            "RLIMIT_MEMLOCK is 65536",
            "\"remedy\":\"Run: ulimit -l ",
            "status 3",
            "read: IOPS=",
            "status 0",
            "read: Success] status 0",
            "16777216",
        ],
    );
    let script = "nvme-vfio bind $A >/dev/null; try nvme-vfio bench $A --runtime=1 -o json";
    let machine = Machine::standard().kernel_arguments("vfio_iommu_type1.dma_entry_limit=2");
    let output = run(&machine, script).success();
    expect(
        &output,
        &[
            "\"kind\":\"dma-entry-limit\"",
            "dma_entry_limit",
            "status 3",
        ],
    );
}

fn odd_controllers_are_driven() {
    for (properties, block) in [
        ("mdts=0", 512),
        ("mdts=1", 512),
        ("max_ioqpairs=1", 512),
        (
            "mdts=1,max_ioqpairs=1,logical_block_size=4096,physical_block_size=4096",
            4096,
        ),
    ] {
        let script = "
            nvme-vfio bind $A >/dev/null
            dd if=/dev/urandom of=/tmp/data bs=1M count=3 2>/dev/null
            try nvme-vfio write $A -s 3 -d /tmp/data
            try nvme-vfio read $A -s 3 -z 3M -d /tmp/back
            cmp /tmp/data /tmp/back && echo equal
            try nvme-vfio bench $A --bs=1M --iodepth=4 --size=32M
            try nvme-vfio bench $A --numjobs=200 -o json
            nvme-vfio id-ns $A";
        let output = run(&Machine::standard().nvme(properties), script).success();
        let in_use = format!("lbads:{} rp:0x0 (in use)", u32::trailing_zeros(block));
        expect(
            &output,
            &[
                "[write: Success] status 0",
                "[read: Success] status 0",
                "equal",
                "read: IOPS=",
                "status 0",
                "\"remedy\":\"Use: --numjobs=",
                "status 2",
                &in_use,
            ],
        );
    }
}

fn a_machine_without_iommu_says_so() {
    let machine = Machine::standard().kernel_arguments("intel_iommu=off");
    let script = "try nvme-vfio doctor; try nvme-vfio bind $A -o json; try nvme-vfio id-ctrl $A -o json; try nvme-vfio group";
    let output = run(&machine, script).success();
    expect(
        &output,
        &[
            "fault    iommu",
            "in the firmware",
            "status 3",
            "\"kind\":\"no-iommu\"",
            "status 3",
            "\"kind\":\"no-iommu\"",
            "status 3",
            "nvme-vfio doctor",
            "status 0",
        ],
    );
}

fn a_read_error_is_the_controllers_answer() {
    let drive = xtask::vm::Drive::Spec(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image},\
         file.inject-error.0.event=read_aio,file.inject-error.0.errno=5,file.inject-error.0.sector=64"
            .to_owned(),
    );
    let script = "
        nvme-vfio bind $A >/dev/null
        try nvme-vfio read $A -s 64 -c 0 -d /tmp/data -o json
        try nvme-vfio read $A -s 128 -c 0 -d /tmp/data
        ls /tmp/data
        try nvme-vfio bench $A --rw=read --bs=512 --size=64k -o json";
    let output = run(&Machine::standard().drive(drive), script).success();
    expect(
        &output,
        &[
            "\"kind\":\"command\"",
            "\"nvme_status\":{\"sct\":2,\"sc\":129",
            "status 1",
            "status 0",
            "/tmp/data",
            "\"kind\":\"command\"",
            "status 1",
        ],
    );
}

xtask::vm_tests!(
    the_way_of_an_ssd,
    the_json_is_that_of_nvme_cli,
    the_layout_of_a_benchmark_is_that_of_fio,
    what_stands_in_the_way_is_named_with_its_remedy,
    a_group_that_is_not_viable_names_the_culprit,
    a_controller_in_use_and_a_drive_with_data_are_refused,
    limits_say_how_much_is_needed,
    odd_controllers_are_driven,
    a_machine_without_iommu_says_so,
    a_read_error_is_the_controllers_answer,
);
