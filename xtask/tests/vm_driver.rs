//! The driver on real VFIO, a real IOMMU and QEMU's controller: conformance, isolation, recovery.

mod common;

use std::time::Duration;

use common::{Drives, STANDARD, machine, run, run_resets};
use serde_json::json;
use xtask::vm::{Drive, Machine};

/// The driver's conformance tests, on controllers of several shapes.
fn the_driver_conforms_on_controllers_of_many_shapes() {
    let mut drives = Drives::new();
    let mut machine = Machine::standard()
        .test_program("nvme-vfio", "conformance")
        .timeout(Duration::from_secs(600));
    for (slot, shape) in (4..).zip([
        "logical_block_size=4096,physical_block_size=4096",
        "mdts=0",
        "mdts=1",
        "max_ioqpairs=1",
    ]) {
        machine = drives.add(machine, &format!("{shape},addr={slot:x}.0"));
    }
    let steps = run_resets(
        &machine,
        "
        conformance=$(echo /usr/local/bin/conformance*)
        for slot in 01 04 05 06 07; do
            address=0000:00:$slot.0
            nvme-vfio bind $address || exit 1
            step $slot env NVME_VFIO_TEST_ADDRESS=$address $conformance --test-threads=1
            step identify-$slot nvme-vfio id-ctrl $address -o json
            step namespace-$slot nvme-vfio id-ns $address -o json
        done",
    );
    for slot in ["01", "04", "05", "06", "07"] {
        let text = steps[slot].done().text();
        let result = text
            .lines()
            .find(|line| line.starts_with("test result: "))
            .unwrap_or_default();
        println!("{slot}: {result}");
        assert!(
            result.starts_with("test result: ok. ") && !result.contains(" 0 passed"),
            "{text}"
        );
    }
    // The shapes were what they should be.
    assert_eq!(steps["identify-05"].json()["mdts"], 0);
    assert_eq!(steps["identify-06"].json()["mdts"], 1);
    let lbads = |slot: &str| {
        let namespace = steps[&*format!("namespace-{slot}")].json();
        let format = namespace["flbas"].as_u64().unwrap() as usize & 0xf;
        namespace["lbafs"][format]["ds"].clone()
    };
    assert_eq!((lbads("01"), lbads("04")), (9.into(), 12.into()));
}

/// Two groups share nothing; two functions of one group share their domain; a wrong address ends in the IOMMU.
fn controllers_are_apart_by_group() {
    let mut drives = Drives::new();
    let machine = drives.add(machine(), "addr=4.0");
    let machine = drives.add(machine, "addr=5.0,multifunction=on");
    let machine = drives.add(machine, "addr=5.1");
    let steps = run(
        &machine,
        r#"
        # The kernel's log, once it tells of faults at these addresses: an interrupt has it written, maybe after the command's end.
        faults() {
            for address; do
                tries=0
                until dmesg | grep -q "fault addr $address " || [ $tries -ge 600 ]; do tries=$((tries + 1)); usleep 100000; done
            done
            dmesg -c
        }
        nvme-vfio bind $A 0000:00:04.0 0000:00:05.0 0000:00:05.1 || exit 1
        step one-group nvme-vfio-guest one-group 0000:00:05.0 0000:00:05.1
        dmesg -c | grep -q 'DMAR.*fault' && exit 9
        step two-groups nvme-vfio-guest two-groups $A 0000:00:04.0
        step two-groups-log faults $(sed -n 's/^stray .* at //p' /tmp/step.out)
        sleep 6
        step stray nvme-vfio-guest stray $A 0000:00:04.0
        step stray-log faults 0x4000000000 0x4000100000 0x4000200000
        step again nvme-vfio-guest two-groups $A 0000:00:04.0"#,
    );
    steps["one-group"].done();
    steps["again"].done();

    // The kernel's log names the controller and the address that the program says it used.
    let fault = |log: &str, device: &str, address: u64| {
        let (log, device) = (steps[log].text(), format!("device [{device}]"));
        let address = format!("fault addr {address:#x} ");
        assert!(
            log.lines().any(|line| line.contains("DMAR")
                && line.contains(&device)
                && line.contains(&address)),
            "no fault of {device} at {address}\n{log}"
        );
    };
    let text = steps["two-groups"].done().text();
    let (_, address) = text.split_once("stray 0000:00:04.0 at 0x").unwrap();
    let address = address.lines().next().unwrap();
    fault(
        "two-groups-log",
        "00:04.0",
        u64::from_str_radix(address, 16).unwrap(),
    );
    assert!(steps["stray"].done().text().contains("nothing was touched"));
    for address in [0x40_0000_0000, 0x40_0010_0000, 0x40_0020_0000] {
        fault("stray-log", "00:01.0", address);
    }
}

/// A read that QEMU holds back times out, cannot be aborted, and lands late in memory that nobody else has got meanwhile.
fn a_read_that_never_ends_lands_in_quarantine() {
    let drive = Drive::Spec(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image}"
            .to_owned(),
    );
    let script = format!("nvme-vfio bind {STANDARD} >&2 && nvme-vfio-guest hung {STANDARD}");
    let mut running = machine().drive(drive).start(["sh", "-c", &script]).unwrap();
    let patience = Duration::from_secs(120);
    running.line_with("reading", patience).unwrap();
    let tell = |running: &mut xtask::vm::Running, what: &str| {
        let said = running
            .monitor()
            .unwrap()
            .human(&format!("qemu-io drive0 \"{what}\""))
            .unwrap();
        assert!(!said.contains("rror"), "{said}");
    };
    tell(&mut running, "break read_aio A");
    running.line_with("timed out", patience).unwrap();
    // Nothing lands before the read is let go.
    running.line(Duration::from_secs(1)).unwrap_err();
    tell(&mut running, "resume A");
    running.line_with("reclaimed", patience).unwrap();
    running.wait().unwrap().success();
}

/// `recover()`, a function reset behind the driver's back, and a controller that fails: under load, and cured.
fn a_controller_taken_down_under_load_works_again() {
    let steps = run_resets(
        &machine(),
        "
        nvme-vfio bind $A || exit 1
        step recover nvme-vfio-guest disturb $A --how recover --times 10
        step bus-master nvme-vfio-guest disturb $A --how bus-master --times 2
        step function-reset nvme-vfio-guest disturb $A --how function-reset --times 2
        step open nvme-vfio id-ctrl $A",
    );
    for step in ["recover", "bus-master", "function-reset", "open"] {
        steps[step].done();
        println!(
            "{step}: {}",
            steps[step].text().lines().next().unwrap_or_default()
        );
    }
}

/// A controller that is pulled out ends every command, and the process ends in order.
fn a_controller_that_is_pulled_out_is_gone() {
    let machine = machine()
        .device("pcie-root-port,id=port1,slot=1,addr=3.0")
        .device("nvme,id=plugged,serial=plugged,bus=port1");
    let steps = run(
        &machine,
        "
        nvme-vfio bind 0000:01:00.0 || exit 1
        step unplug nvme-vfio-guest unplug 0000:01:00.0 0000:00:03.0
        tries=0
        while [ -e /sys/bus/pci/devices/0000:01:00.0 ] && [ $tries -lt 3000 ]; do
            usleep 20000
            tries=$((tries + 1))
        done
        step absent nvme-vfio id-ctrl 0000:01:00.0 -o json
        step other nvme-vfio bind $A
        step alive nvme-vfio id-ctrl $A",
    );
    assert!(steps["unplug"].done().text().contains("gone"));
    steps["absent"].error(3, "not-found");
    steps["other"].done();
    steps["alive"].done();
}

/// Asked to let a controller go that is in use, the kernel waits for the process, which is not disturbed.
fn an_unplug_waits_for_the_process_that_uses_it() {
    let script = "
        nvme-vfio bind 0000:01:00.0 >&2 || exit 1
        nvme-vfio bench 0000:01:00.0 --runtime 3600 -o json >&2 &
        pid=$!
        until ls -l /proc/$pid/fd | grep -q /dev/vfio/; do usleep 20000; done
        echo running
        until dmesg | grep -q 'Relaying device request to user'; do usleep 50000; done
        sleep 2
        kill -0 $pid && echo asked
        kill -TERM $pid
        wait $pid; echo status $?
        while [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do usleep 50000; done
        echo removed";
    let machine = Machine::standard()
        .device("pcie-root-port,id=port1,slot=1,addr=3.0")
        .device("nvme,id=plugged,serial=plugged,bus=port1");
    let mut running = machine.start(["sh", "-c", script]).unwrap();
    let patience = Duration::from_secs(120);
    running.line_with("running", patience).unwrap();
    let monitor = running.monitor().unwrap();
    monitor
        .execute("device_del", json!({ "id": "plugged" }))
        .unwrap();
    for line in ["asked", "status 0", "removed"] {
        running.line_with(line, patience).unwrap();
    }
    let monitor = running.monitor().unwrap();
    monitor.event("DEVICE_DELETED", patience).unwrap();
    running.wait().unwrap().success();
}

/// Asked to let a controller go that is lent, the server ends in order, although a client is at work.
fn a_lent_controller_is_given_back_when_it_is_asked_for() {
    const POLICY: &str = r#"
controller = ["0000:00:01.0"]
directory = "/tmp/lent"
audit = { path = "/tmp/audit.jsonl" }
[[client]]
name = "a"
uid = [0]
[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 0, blocks = 1000 }]
allow = ["read"]
"#;
    let steps = run_resets(
        &machine().file("/etc/policy.toml", POLICY, 0o644),
        "
        nvme-vfio bind $A >&2 || exit 1
        mkdir -p /tmp/lent
        nvme-vfio serve --policy /etc/policy.toml -o json >/tmp/served 2>/tmp/said &
        server=$!
        tries=0
        until [ -S /tmp/lent/a.sock ] || [ $tries -gt 3000 ]; do tries=$((tries + 1)); usleep 20000; done
        nvme-vfio bench vfio-user:/tmp/lent/a.sock --runtime 3600 >/tmp/bench 2>&1 &
        client=$!
        until grep -q '\"connected\"' /tmp/audit.jsonl; do kill -0 $client || exit 1; usleep 20000; done
        sleep 2
        step unbind sh -c 'echo 0000:00:01.0 > /sys/bus/pci/drivers/vfio-pci/unbind'
        wait $server
        step served sh -c \"exit $?\"
        step said cat /tmp/served /tmp/said
        wait $client
        step client sh -c \"exit $?\"
        step bench cat /tmp/bench
        step audit grep server-stopping /tmp/audit.jsonl
        step again nvme-vfio bind $A
        step alive nvme-vfio id-ctrl $A",
    );
    for step in ["unbind", "served", "again", "alive"] {
        steps[step].done();
    }
    let wanted = "the system wants 0000:00:01.0 back";
    for step in ["said", "audit"] {
        assert!(steps[step].text().contains(wanted), "{}", steps[step]);
    }
    // The client is told, and does not hang.
    assert_ne!(steps["client"].status, 0, "{}", steps["bench"]);
}

xtask::vm_tests!(
    the_driver_conforms_on_controllers_of_many_shapes,
    controllers_are_apart_by_group,
    a_read_that_never_ends_lands_in_quarantine,
    a_controller_taken_down_under_load_works_again,
    a_controller_that_is_pulled_out_is_gone,
    an_unplug_waits_for_the_process_that_uses_it,
    a_lent_controller_is_given_back_when_it_is_asked_for,
);
