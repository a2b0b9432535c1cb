//! The binary, run as a user runs it, on the emulated controller: what it prints where, and its exit status.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"));
    command
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn run(arguments: &str) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard output of a command that must succeed.
#[track_caller]
fn good(arguments: &str) -> Vec<u8> {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments}: {}",
        text(&output.stderr)
    );
    output.stdout
}

#[track_caller]
fn json(arguments: &str) -> Value {
    serde_json::from_slice(&good(arguments)).unwrap()
}

/// Runs a command that must fail with this status and kind, with a message and a remedy, and nothing on standard output.
#[track_caller]
fn bad(arguments: &str, status: i32, kind: &str) -> Value {
    let output = run(&format!("{arguments} -o json"));
    let error: Value = serde_json::from_slice(&output.stderr)
        .unwrap_or_else(|_| panic!("{arguments}: {output:?}"));
    let body = &error["error"];
    assert_eq!(
        (output.status.code(), body["kind"].as_str()),
        (Some(status), Some(kind)),
        "{arguments}: {error}"
    );
    assert_eq!(body["status"], status, "{arguments}");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{arguments}"
    );
    assert!(
        output.stdout.is_empty(),
        "{arguments} printed {}",
        text(&output.stdout)
    );

    let plain = run(arguments);
    assert_eq!(plain.status.code(), Some(status), "{arguments}");
    assert!(
        text(&plain.stderr).contains("error"),
        "{arguments}: {}",
        text(&plain.stderr)
    );
    body.clone()
}

#[track_caller]
fn bad_with_remedy(arguments: &str, status: i32, kind: &str, remedy: &str) {
    let body = bad(arguments, status, kind);
    assert!(
        body["remedy"]
            .as_str()
            .is_some_and(|text| text.contains(remedy)),
        "{arguments}: {body}"
    );
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        "frobnicate",
        "list --frobnicate",
        "read",
        "read emulated -s twelve",
        "bench --rw trim",
        "bench --bs=0",
        "bench --bs=1000",
        "bench emulated:lba=4096 --bs=512",
        "bench --numjobs=17 --size=1M",
        "bench --time_based",
        "read emulated:colour=red",
        "read emulated:lba=513",
        "read nvme0n1",
        "read 01:00.8",
        "bind emulated",
        "unbind nvme0",
        "doctor emulated",
    ] {
        bad(arguments, 2, "usage");
    }
}

#[test]
fn what_is_not_there_yet_says_so() {
    bad_with_remedy("id-ctrl iommufd:0000:01:00.0", 2, "unsupported", "emulated");
}

#[test]
fn a_server_that_is_not_there_is_status_3() {
    bad_with_remedy(
        "id-ctrl vfio-user:/nowhere/x.sock",
        3,
        "not-found",
        "emulate",
    );
}

#[test]
fn a_function_that_is_not_there_is_status_3() {
    for arguments in [
        "id-ctrl ffff:ff:1f.7",
        "bench vfio:ffff:ff:1f.7 --runtime=1",
        "bind ffff:ff:1f.7",
        "unbind ffff:ff:1f.7",
        "group ffff:ff:1f.7",
    ] {
        bad_with_remedy(arguments, 3, "not-found", "nvme-vfio list");
    }
    bad_with_remedy("group 4294967295", 3, "not-found", "nvme-vfio group --all");
    let found = run("doctor ffff:ff:1f.7 -o json");
    assert_eq!(found.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(report["healthy"], false);
}

#[test]
fn blocks_past_the_end_are_status_1_and_touch_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out");
    let file = file.display();
    bad_with_remedy(
        &format!("read emulated:size=1M -s 2048 -d {file}"),
        1,
        "lba-out-of-range",
        "last block is 2047",
    );
    bad(
        &format!("read emulated:size=1M -s 2047 -c 1 -d {file}"),
        1,
        "lba-out-of-range",
    );
    bad(
        "read emulated -s 0xffffffffffffffff -c 0xffffffff",
        1,
        "lba-out-of-range",
    );
    bad(
        &format!(
            "write emulated:size=1M -s 2048 -z 512 -d {}",
            env!("CARGO_BIN_EXE_nvme-vfio")
        ),
        1,
        "lba-out-of-range",
    );
    bad("bench emulated:size=1M --size=2M", 1, "lba-out-of-range");
    bad("bench emulated:size=1M --bs=2M", 1, "lba-out-of-range");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_buffer_that_is_too_small_is_refused() {
    bad_with_remedy(
        "read emulated -c 7 -z 512",
        2,
        "buffer-too-small",
        "--data-size=4096",
    );
    bad_with_remedy(
        "read emulated:lba=4096 -z 512",
        2,
        "buffer-too-small",
        "--data-size=4096",
    );
    bad("read emulated -z 700", 2, "usage");
}

#[test]
fn a_file_that_is_too_short_is_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[1; 1000]).unwrap();
    let path = file.path().display();
    bad_with_remedy(
        &format!("write emulated -c 1 -d {path}"),
        2,
        "file",
        "Nothing was written",
    );
    bad(&format!("write emulated -z 1024 -d {path}"), 2, "file");
    bad("write emulated -c 0", 2, "file");
    bad("write emulated -c 0 -d /nonexistent/file", 2, "file");
    bad("write emulated -c 0 -d /", 2, "file");
    bad("read emulated -c 0 -d /nonexistent/file", 2, "file");
}

#[test]
fn namespaces_are_found_or_missed() {
    bad_with_remedy("read emulated:namespaces=0", 1, "no-namespace", "list-ns");
    bad("bench emulated:namespaces=0 --runtime=1", 1, "no-namespace");
    bad_with_remedy("read emulated:namespaces=3,size=1M", 2, "usage", "-n 1");
    bad_with_remedy("read emulated -n 9", 1, "no-namespace", "list-ns");
    bad("id-ns emulated:nsids=1:5,size=1M -n 3", 1, "no-namespace");
    assert!(good("list-ns emulated:namespaces=0").is_empty());
    assert_eq!(
        json("list-ns emulated:nsids=1:5:200,size=1M -o json"),
        serde_json::json!({"nsid_list": [{"nsid": 1}, {"nsid": 5}, {"nsid": 200}]})
    );
    assert_eq!(
        json("list-ns emulated:nsids=1:5:200,size=1M -n 5 -o json"),
        serde_json::json!({"nsid_list": [{"nsid": 5}, {"nsid": 200}]})
    );
    assert_eq!(text(&good("list-ns emulated")), "[   0]:0x1\n");
}

#[test]
fn what_the_controller_refuses_is_status_1_with_its_status() {
    // No namespace can have this identifier, and the controller says so.
    let body = bad("id-ns emulated -n 0xfffffffe", 1, "command");
    assert!(
        body["nvme_status"]["sc"].is_u64() && body["nvme_status"]["name"].is_string(),
        "{body}"
    );
}

#[test]
fn identify_is_decoded_in_every_format() {
    let controller = json("id-ctrl emulated:serial=ABC,mdts=3 -o json");
    assert_eq!(
        (&controller["sn"], &controller["mdts"], &controller["sqes"]),
        (&"ABC".into(), &3.into(), &0x66.into())
    );
    let raw = good("id-ctrl emulated:serial=ABC --raw-binary");
    assert_eq!((raw.len(), &raw[4..7]), (4096, b"ABC".as_slice()));
    assert_eq!(good("id-ctrl emulated:serial=ABC -o binary"), raw);
    let human = good("id-ctrl emulated -H -v");
    assert!(text(&human).contains("Write Zeroes") && text(&human).contains("vs[]"));

    let namespace = json("id-ns emulated:lba=4096,size=64M -o json");
    assert_eq!(
        (&namespace["nsze"], &namespace["flbas"]),
        (&16384.into(), &1.into())
    );
    assert_eq!(namespace["lbafs"][1]["ds"], 12);
    assert_eq!(good("id-ns emulated -b").len(), 4096);
    assert!(text(&good("id-ns emulated")).contains("(in use)"));
}

#[test]
fn logs_and_registers_are_decoded() {
    let smart = json("smart-log emulated -o json");
    assert_eq!(smart["avail_spare"], 100);
    assert!(
        smart["temperature"]
            .as_u64()
            .is_some_and(|kelvin| kelvin > 273)
    );
    assert_eq!(good("smart-log emulated -b").len(), 512);
    let registers = json("show-regs emulated:mqes=8 -o json");
    assert_eq!(registers["cap"].as_u64().map(|cap| cap & 0xffff), Some(7));
    assert_eq!(registers["csts"], 1);
    assert!(text(&good("show-regs emulated -H")).contains("MQES, Maximum Queue Entries Supported"));
}

#[test]
fn read_writes_data_to_standard_output_and_words_to_standard_error() {
    let output = run("read emulated:size=1M -c 7 -t");
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), [0; 4096].as_slice())
    );
    assert!(
        text(&output.stderr).contains("read: Success")
            && text(&output.stderr).contains("latency: read:")
    );
    // A buffer larger than the blocks is filled up with zeros.
    assert_eq!(good("read emulated:size=1M -c 0 -z 1000").len(), 1000);
    assert_eq!(good("read emulated:size=1M -z 1M").len(), 1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    let done = json(&format!(
        "read emulated:size=32M -z 20M -d {} -o json",
        file.display()
    ));
    assert_eq!(
        (&done["blocks"], &done["bytes"]),
        (&40960.into(), &(20 << 20).into())
    );
    assert_eq!(file.metadata().unwrap().len(), 20 << 20);
}

#[test]
fn a_dry_run_shows_the_command_only() {
    let shown = json("read emulated -s 0x10 -c 7 --dry-run -o json");
    assert_eq!(
        shown,
        serde_json::json!({"opcode": 2, "nsid": 1, "slba": 16, "nblocks": 7, "bytes": 4096})
    );
    let shown = json(&format!(
        "write emulated -c 0 -d {} -w -o json",
        env!("CARGO_BIN_EXE_nvme-vfio")
    ));
    assert_eq!(
        (&shown["opcode"], &shown["nblocks"]),
        (&1.into(), &0.into())
    );
}

#[test]
fn write_takes_a_file_or_standard_input() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[5; 3 * 512]).unwrap();
    let path = file.path().display();
    // Without a size, the file is written whole.
    assert_eq!(
        json(&format!("write emulated -d {path} -o json"))["blocks"],
        3
    );
    assert_eq!(
        json(&format!("write emulated -c 1 -d {path} -o json"))["blocks"],
        2
    );

    let mut child = command("write emulated -c 1 -o json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[6; 1024]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["bytes"],
        1024
    );
}

#[test]
fn flush_reaches_one_namespace_or_all() {
    assert_eq!(
        json("flush emulated -o json")["nsids"],
        serde_json::json!([1])
    );
    assert_eq!(
        json("flush emulated:namespaces=2,size=1M -n 0xffffffff -o json")["nsids"],
        serde_json::json!([1, 2])
    );
    assert!(text(&run("flush emulated").stderr).contains("flush: Success"));
    bad("flush emulated:namespaces=2,size=1M", 2, "usage");
}

#[test]
fn a_controller_that_cannot_be_driven_says_why() {
    let body = bad("id-ctrl emulated:mpsmin=1", 3, "environment");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|message| message.contains("8192")),
        "{body}"
    );
}

#[test]
fn odd_controllers_work() {
    for config in [
        "mdts=0",
        "mdts=1",
        "queues=1",
        "mqes=4",
        "lba=4096",
        "mqes=2,queues=1,mdts=1",
        "dstrd=3",
    ] {
        let report = json(&format!(
            "bench emulated:size=64M,{config} --size=4M --bs=64k --rw=randwrite -o json"
        ));
        assert_eq!(report["jobs"][0]["write"]["total_ios"], 64, "{config}");
        assert_eq!(
            good(&format!("read emulated:size=64M,{config} -z 1M")).len(),
            1 << 20,
            "{config}"
        );
    }
}

#[test]
fn bench_reports_each_job_in_the_layout_of_fio() {
    let report = json(
        "bench --size=2M --numjobs=3 --iodepth=4 --rw=randread --name=trial --output-format=json",
    );
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 3);
    for job in jobs {
        assert_eq!(
            (
                &job["jobname"],
                &job["read"]["total_ios"],
                &job["read"]["io_bytes"]
            ),
            (&"trial".into(), &512.into(), &(2 << 20).into())
        );
        assert_eq!(job["read"]["clat_ns"]["N"], 512);
        assert!(
            job["read"]["clat_ns"]["percentile"]["99.990000"].as_u64()
                >= job["read"]["clat_ns"]["percentile"]["50.000000"].as_u64()
        );
        assert_eq!(job["error"], 0);
    }
    let merged = json("bench --size=2M --numjobs=3 --iodepth=4 --group_reporting -o json");
    assert_eq!(merged["jobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(merged["jobs"][0]["read"]["total_ios"], 1536);
}

#[test]
fn bench_keeps_its_time_and_prints_a_summary() {
    let start = std::time::Instant::now();
    let output = run("bench --runtime=700ms --rw=write --bs=8k");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(start.elapsed() >= std::time::Duration::from_millis(700));
    let summary = text(&output.stdout);
    for words in [
        "rw=write, bs=8192, iodepth=32, 1 job",
        "write: IOPS=",
        "lat (",
        "50.00th=[",
        "stdev=",
    ] {
        assert!(summary.contains(words), "{words} not in:\n{summary}");
    }
    // No progress line where standard error is no terminal.
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

/// What a bench has had of processors, in hundredths of a second, once it catches the signal.
fn ticks_since_it_listens(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let caught = lines.find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // User and system time.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
    let signal = nix::sys::signal::Signal::SIGINT as i32;
    (caught & 1 << (signal - 1) != 0).then_some(ticks)
}

#[test]
fn an_interrupted_bench_reports_what_it_has() {
    let child = command("bench --runtime=600 -o json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let mut since = None;
    // It listens before it measures, and has measured for most of these. It takes no more where others want the processor: it yields.
    while ticks_since_it_listens(pid).is_none_or(|now| now < *since.get_or_insert(now) + 5) {
        assert!(std::time::Instant::now() < end, "it does not begin");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["jobs"][0]["read"]["total_ios"]
            .as_u64()
            .is_some_and(|ios| ios > 0)
    );
}

#[test]
fn lists_are_json_on_any_machine() {
    assert!(json("list -o json")["Devices"].is_array());
    assert!(json("group -o json")["groups"].is_array());
    let output = run("doctor -o json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["healthy"].as_bool(),
        Some(output.status.code() == Some(0))
    );
    let subjects: Vec<_> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|check| check["subject"].as_str())
        .collect();
    for subject in ["iommu", "vfio-pci", "memlock", "hugepages"] {
        assert!(subjects.contains(&subject), "{subject} not in {subjects:?}");
    }
    for check in report["checks"].as_array().unwrap() {
        assert!(
            check["verdict"] != "fault" || check["remedy"].is_string(),
            "{check}"
        );
    }
}

#[test]
fn a_full_or_closed_standard_output_is_no_panic() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    for arguments in [
        "list -o json",
        "id-ctrl emulated",
        "read emulated -z 1M",
        "bench --size=1M",
    ] {
        let output = command(arguments)
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains("standard output"),
            "{arguments}"
        );
    }
    let mut child = command("id-ctrl emulated -H -v")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        !text(&output.stderr).contains("panicked"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = good("--help");
    for words in ["Exit status:", "Addresses:", "bench", "smart-log"] {
        assert!(text(&help).contains(words), "{words}");
    }
    assert!(text(&good("--version")).starts_with("nvme-vfio "));
    assert!(text(&good("bench --help")).contains("--iodepth"));
}
