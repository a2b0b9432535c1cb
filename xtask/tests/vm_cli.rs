//! The command `nvme-vfio` in a machine: what it says of real devices, as an ordinary user, and how it refuses.

mod common;

use common::{STANDARD, run, run_resets};
use serde_json::{Value, json};
use xtask::vm::Machine;

/// The sizes of blocks and of the standard drive.
const BLOCK: u64 = 512;
const BLOCKS: u64 = (1 << 30) / BLOCK;

/// Everything that an ordinary user may do, and what must be done for him before.
const AS_USER: &str = r#"
    ulimit -l 65536
    step hugepages cat /proc/sys/vm/nr_hugepages
    step list-kernel nvme-vfio list -o json
    as_user doctor-kernel "nvme-vfio doctor $A -o json"
    step dry-run nvme-vfio bind --dry-run $A -o json
    step still-kernel readlink /sys/bus/pci/devices/$A/driver
    as_user bind-as-user "nvme-vfio bind $A -o json"

    step bind-for-root nvme-vfio bind $A -o json
    as_user denied "nvme-vfio id-ctrl $A -o json"
    as_user doctor-denied "nvme-vfio doctor $A -o json"
    step no-such-user nvme-vfio bind --user nobody-at-all $A -o json
    step bind nvme-vfio bind --user user $A -o json

    as_user who 'id -u; ulimit -l'
    as_user doctor "nvme-vfio doctor $A -o json"
    as_user list 'nvme-vfio list -o json'
    as_user list-text 'nvme-vfio list'
    as_user group "nvme-vfio group $A -o json"
    as_user show-regs "nvme-vfio show-regs $A -o json"
    as_user id-ctrl "nvme-vfio id-ctrl $A -o json"
    as_user id-ctrl-raw "nvme-vfio id-ctrl $A -b"
    as_user id-ns "nvme-vfio id-ns $A -o json"
    as_user list-ns "nvme-vfio list-ns $A -o json"
    as_user smart-log "nvme-vfio smart-log $A -o json"

    head -c 1048064 /dev/urandom >/tmp/data
    as_user write "nvme-vfio write $A -s 3 -d /tmp/data -o json"
    as_user flush "nvme-vfio flush $A -o json"
    as_user read "nvme-vfio read $A -s 3 -c 2046 -d /tmp/back -o json"
    step same cmp /tmp/data /tmp/back
    as_user read-one "nvme-vfio read $A -s 4"
    step one dd if=/tmp/data bs=512 skip=1 count=1
    as_user before "nvme-vfio read $A -s 2"
    as_user after "nvme-vfio read $A -s 2050"

    as_user bench "nvme-vfio bench $A --runtime 2 -o json"
    as_user bench-size "nvme-vfio bench $A --size 8M -o json"
    as_user bench-write "nvme-vfio bench $A --rw randwrite --bs 16k --iodepth 128 --numjobs 2 --offset 512M --size 64M --runtime 1 -o json"
    as_user bench-low "ulimit -l 1024; nvme-vfio bench $A --runtime 1 -o json"
    needed=$(sed -n 's/.*ulimit -l \([0-9]*\).*/\1/p' /tmp/step.err)
    as_user bench-told "ulimit -l ${needed:-0}; nvme-vfio bench $A --size 1M -o json"
    as_user doctor-low "ulimit -l 1024; nvme-vfio doctor $A -o json"
    as_user after-low "nvme-vfio id-ctrl $A"

    step unbind nvme-vfio unbind $A -o json
    disk=$(disk $A) || exit 1
    step kernel-reads dd if=$disk bs=512 skip=3 count=2047
"#;

fn field<'a>(value: &'a Value, key: &str) -> &'a Value {
    value
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// An ordinary user with 64 MiB of locked memory, no hugepages, and an IOMMU of 39 bits.
fn an_unprivileged_user_does_everything() {
    let steps = run(&Machine::standard(), AS_USER);

    // While the kernel has it: sysfs tells what it is, and nothing is changed without being asked.
    let row = |step: &str| steps[step].json()["Devices"][0].clone();
    let kernel = row("list-kernel");
    assert_eq!(
        (&kernel["Driver"], &kernel["DevicePath"]),
        (&json!("nvme"), &json!("/dev/nvme0n1"))
    );
    assert_eq!(
        steps["doctor-kernel"].status, 3,
        "{}",
        steps["doctor-kernel"]
    );
    assert_eq!(steps["dry-run"].json()["dry_run"], true);
    assert!(steps["still-kernel"].text().ends_with("/nvme\n"));
    steps["bind-as-user"].error(3, "permission");

    // Bound for root only, the user may not open it, and is told so.
    let bound = steps["bind-for-root"].json();
    assert_eq!(bound["devices"][0]["driver"], "vfio-pci");
    let node = bound["devices"][0]["node"].as_str().unwrap().to_owned();
    let denied = steps["denied"].error(3, "permission");
    assert!(
        denied["message"].as_str().unwrap().contains(&node),
        "{denied}"
    );
    assert!(
        denied["remedy"]
            .as_str()
            .is_some_and(|remedy| remedy.contains("--user")),
        "{denied}"
    );
    assert_eq!(steps["doctor-denied"].status, 3);
    assert!(steps["doctor-denied"].text().contains(&node));
    steps["no-such-user"].error(3, "not-found");
    assert_eq!(steps["bind"].json()["devices"][0]["viable"], true);

    // The user, 64 MiB of locked memory, no hugepages; the IOMMU of the machine has 39 bits.
    assert_eq!(steps["who"].done().text(), "1000\n65536\n");
    assert_eq!(steps["hugepages"].done().text(), "0\n");
    assert_eq!(
        steps["doctor"].json()["healthy"],
        true,
        "{}",
        steps["doctor"]
    );
    let ours = row("list");
    assert_eq!(ours["Driver"], "vfio-pci");
    for key in [
        "ModelNumber",
        "SerialNumber",
        "Firmware",
        "PhysicalSize",
        "SectorSize",
        "NameSpace",
        "MaximumLBA",
        "Address",
        "IommuGroup",
    ] {
        assert_eq!(field(&ours, key), field(&kernel, key), "{key}");
    }
    assert_eq!(ours["PhysicalSize"], BLOCKS * BLOCK);
    let text = steps["list-text"].done().text();
    for word in [STANDARD, "vm-standard", "QEMU NVMe Ctrl", "vfio-pci"] {
        assert!(text.contains(word), "{text}");
    }
    let group = &steps["group"].json()["groups"][0];
    assert_eq!(
        (&group["viable"], &group["group"]),
        (&json!(true), &ours["IommuGroup"])
    );
    assert_eq!(group["members"].as_array().map(Vec::len), Some(1));

    for (step, key, value) in [
        ("id-ctrl", "sn", json!("vm-standard")),
        ("id-ns", "nsze", json!(BLOCKS)),
        ("list-ns", "nsid_list", json!([{"nsid": 1}])),
        ("smart-log", "spare_thresh", json!(0)),
    ] {
        assert_eq!(field(&steps[step].json(), key), &value, "{step}");
    }
    let raw = &steps["id-ctrl-raw"].done().stdout;
    assert_eq!(raw.len(), 4096);
    assert!(raw[4..24].starts_with(b"vm-standard "));
    let registers = steps["show-regs"].json();
    // QEMU 7.2's controller is of version 1.4, ready and enabled here, with queues of 2048 entries.
    assert_eq!(field(&registers, "vs"), 0x0001_0400);
    assert_eq!(field(&registers, "csts"), 1);
    assert_eq!(field(&registers, "cc").as_u64().unwrap() & 1, 1);
    assert_eq!(field(&registers, "cap").as_u64().unwrap() & 0xffff, 2047);

    // Data: what was written is what is read, by us and by the kernel, and its neighbours are as before.
    assert_eq!(steps["write"].json()["blocks"], 2047);
    assert_eq!(steps["flush"].json()["nsids"], json!([1]));
    assert_eq!(steps["read"].json()["bytes"], 2047 * BLOCK);
    steps["same"].done();
    assert_eq!(steps["read-one"].done().stdout, steps["one"].done().stdout);
    for neighbour in ["before", "after"] {
        assert_eq!(steps[neighbour].done().stdout, [0; BLOCK as usize]);
    }
    let data = &steps["kernel-reads"].done().stdout;
    assert!(data.len() == 2047 * 512 && data[512..1024] == steps["one"].stdout);
    assert_eq!(steps["unbind"].json()["devices"][0]["driver"], "nvme");

    // The benchmark, in fio's layout.
    let bench = steps["bench"].json();
    let job = &bench["jobs"][0];
    assert_eq!(job["error"], 0);
    assert_eq!(job["job options"]["iodepth"], "32");
    let read = &job["read"];
    let ios = read["total_ios"].as_u64().unwrap();
    // How many a busy machine does in two seconds nobody knows, but it begins with the whole depth; and what is limited by its size is exact.
    assert!(ios >= 32, "{ios} reads in two seconds");
    let bench = steps["bench-size"].json();
    assert_eq!(bench["jobs"][0]["read"]["total_ios"], 2048);
    assert_eq!(read["io_bytes"].as_u64(), Some(ios * 4096));
    assert_eq!(read["clat_ns"]["N"].as_u64(), Some(ios));
    assert!(read["clat_ns"]["percentile"]["99.000000"].as_u64() > Some(0));
    assert_eq!(job["write"]["total_ios"], 0);
    let jobs = steps["bench-write"].json()["jobs"].clone();
    assert_eq!(jobs.as_array().map(Vec::len), Some(2));
    assert!(jobs[1]["write"]["total_ios"].as_u64() > Some(100));

    // Too little locked memory: how much is needed and how to get it, and with that much it works.
    let low = steps["bench-low"].error(3, "memlock");
    let message = low["message"].as_str().unwrap();
    assert!(message.contains("1048576"), "{message}");
    let told = &steps["bench-told"];
    assert_eq!(told.json()["jobs"][0]["read"]["total_ios"], 256, "{told}");
    assert!(
        steps["doctor-low"].text().contains("memlock"),
        "{}",
        steps["doctor-low"]
    );
    steps["after-low"].done();
}

const REFUSED: &str = r#"
    # With the kernel's driver, with none, and absent.
    step on-nvme nvme-vfio id-ctrl $A -o json
    step on-nvme-text nvme-vfio id-ctrl $A
    echo $A >/sys/bus/pci/drivers/nvme/unbind
    step on-nothing nvme-vfio id-ctrl $A -o json
    step list-nothing nvme-vfio list -o json
    step absent nvme-vfio id-ctrl 0000:42:00.0 -o json
    step absent-bind nvme-vfio bind 0000:42:00.0 -o json
    step two-one-absent nvme-vfio bind $A 0000:42:00.0 -o json
    step untouched ls /sys/bus/pci/devices/$A/driver
    step not-nvme nvme-vfio id-ctrl 0000:00:00.0 -o json
    step bind nvme-vfio bind $A -o json
    step works nvme-vfio id-ctrl $A

    # In use.
    nvme-vfio bench $A --runtime 3600 >/dev/null 2>&1 &
    pid=$!
    node=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/$A/iommu_group))
    tries=0
    until ls -l /proc/$pid/fd 2>/dev/null | grep -q "$node\$"; do
        tries=$((tries + 1)); [ $tries -gt 3000 ] && exit 1
        usleep 20000
    done
    step pid echo $pid
    step in-use nvme-vfio id-ctrl $A -o json
    step in-use-unbind nvme-vfio unbind $A -o json
    step in-use-list nvme-vfio list -o json
    kill -9 $pid; wait $pid
    step free-again nvme-vfio id-ctrl $A

    # Ranges, files, words.
    head -c 1000 /dev/zero >/root/short
    step past-read nvme-vfio read $A -s 2097152 -o json
    step past-count nvme-vfio read $A -s 2097151 -c 1 -o json
    step last nvme-vfio read $A -s 2097151
    step past-write nvme-vfio write $A -s 2097152 -d /root/short -z 512 -o json
    step past-bench nvme-vfio bench $A --offset 1G --size 4k --runtime 1 -o json
    step short-file nvme-vfio write $A -c 1 -d /root/short -o json
    step no-file nvme-vfio write $A -d /root/nothing -o json
    step odd-file nvme-vfio write $A -d /root/short -o json
    step small-buffer nvme-vfio read $A -c 7 -z 512 -d /root/never -o json
    step never ls /root/never
    step unchanged nvme-vfio read $A -c 1
    step option nvme-vfio read $A --no-such-option -o json
    step command nvme-vfio no-such-command
    step address nvme-vfio id-ctrl nvme0 -o json
    step iommufd nvme-vfio id-ctrl iommufd:$A -o json
    step no-namespace nvme-vfio id-ns $A -n 7 -o json
    step read-namespace nvme-vfio read $A -n 7 -o json
    step jobs nvme-vfio bench $A --numjobs 65 --runtime 1 -o json

    # Without namespaces, and with one that is not attached.
    for empty in 0000:00:04.0 0000:00:05.0; do
        nvme-vfio bind $empty || exit 1
        step $empty-list-ns nvme-vfio list-ns $empty -o json
        step $empty-all nvme-vfio list-ns $empty --all -o json
        step $empty-id-ctrl nvme-vfio id-ctrl $empty -o json
        step $empty-read nvme-vfio read $empty -o json
        step $empty-read-1 nvme-vfio read $empty -n 1 -o json
        step $empty-bench nvme-vfio bench $empty --runtime 1 -o json
    done
    step list-empty nvme-vfio list -o json
    step end nvme-vfio id-ctrl $A
"#;

fn wrong_input_is_refused_with_its_status() {
    let machine = Machine::standard()
        .qemu_arguments(["-device", "nvme,serial=empty,addr=4.0"])
        .qemu_arguments(["-device", "nvme-subsys,id=subsystem"])
        .qemu_arguments([
            "-device",
            "nvme,id=detached,serial=detached,subsys=subsystem,addr=5.0",
        ])
        .qemu_arguments(["-drive", "if=none,id=null,driver=null-co,size=1G"])
        .qemu_arguments([
            "-device",
            "nvme-ns,drive=null,bus=detached,nsid=3,detached=on",
        ]);
    let steps = run_resets(&machine, REFUSED);
    let remedy = |error: &Value| error["remedy"].as_str().unwrap_or_default().to_owned();

    let error = steps["on-nvme"].error(3, "not-bound");
    assert_eq!(remedy(&error), format!("Run: nvme-vfio bind {STANDARD}"));
    assert!(error["message"].as_str().unwrap().contains("nvme"));
    let text = &steps["on-nvme-text"];
    assert_eq!(text.status, 3);
    assert!(
        text.stderr.starts_with("error: ") && text.stderr.contains(&remedy(&error)),
        "{text}"
    );
    let error = steps["on-nothing"].error(3, "not-bound");
    assert_eq!(remedy(&error), format!("Run: nvme-vfio bind {STANDARD}"));
    assert_eq!(
        steps["list-nothing"].json()["Devices"][0]["Driver"],
        Value::Null
    );
    for absent in ["absent", "absent-bind", "two-one-absent"] {
        let error = steps[absent].error(3, "not-found");
        assert!(
            error["message"].as_str().unwrap().contains("0000:42:00.0"),
            "{error}"
        );
    }
    assert_ne!(
        steps["untouched"].status, 0,
        "one was bound although the other is absent"
    );
    assert_eq!(steps["not-nvme"].status, 3, "{}", steps["not-nvme"]);
    steps["bind"].done();
    steps["works"].done();

    let pid = steps["pid"].text();
    for step in ["in-use", "in-use-unbind"] {
        let error = steps[step].error(3, "busy");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(pid.trim()) && message.contains("nvme-vfio"),
            "{message}"
        );
    }
    let note = steps["in-use-list"].json()["Devices"][0]["Note"].clone();
    assert!(note.as_str().unwrap().contains(pid.trim()), "{note}");
    steps["free-again"].done();

    for step in ["past-read", "past-count", "past-write", "past-bench"] {
        steps[step].error(1, "lba-out-of-range");
    }
    assert_eq!(steps["last"].done().stdout.len() as u64, BLOCK);
    for step in ["short-file", "no-file"] {
        steps[step].error(2, "file");
    }
    steps["odd-file"].error(2, "usage");
    let error = steps["small-buffer"].error(2, "buffer-too-small");
    assert!(remedy(&error).contains("4096"), "{error}");
    assert_ne!(
        steps["never"].status, 0,
        "a file was made for a read that was refused"
    );
    assert_eq!(steps["unchanged"].done().stdout, [0; 1024]);
    for step in ["option", "address", "jobs"] {
        steps[step].error(2, "usage");
    }
    assert_eq!(steps["command"].status, 2);
    steps["iommufd"].error(2, "unsupported");
    assert_eq!(steps["no-namespace"].status, 1, "{}", steps["no-namespace"]);
    steps["read-namespace"].error(1, "no-namespace");

    for (address, serial, all) in [
        ("0000:00:04.0", "empty", json!([])),
        ("0000:00:05.0", "detached", json!([{"nsid": 3}])),
    ] {
        let step = |what: &str| &steps[&*format!("{address}-{what}")];
        assert_eq!(step("list-ns").json()["nsid_list"], json!([]));
        if serial == "detached" {
            assert_eq!(step("all").json()["nsid_list"], all);
        }
        assert!(
            step("id-ctrl").json()["sn"]
                .as_str()
                .unwrap()
                .starts_with(serial)
        );
        for what in ["read", "read-1", "bench"] {
            step(what).error(1, "no-namespace");
        }
    }
    let rows = steps["list-empty"].json()["Devices"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1]["NameSpace"], Value::Null);
    steps["end"].done();
}

xtask::vm_tests!(
    an_unprivileged_user_does_everything,
    wrong_input_is_refused_with_its_status,
);
