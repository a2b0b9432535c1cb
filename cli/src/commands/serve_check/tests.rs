use nvme_vfio_passthrough::server::ServeOptions;
use serde_json::Value;

use super::*;

const POLICY: &str = r#"
controller = ["emulated:size=1M"]
directory = "/run/nvme-vfio/0"
audit = { path = "/var/log/a.jsonl" }

[[client]]
name = "vm-a"
uid = [1000, 1001]
limits = { iops = 50000, bandwidth = "200MiB/s" }

[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 1000, blocks = 24 }, { nsid = 1, start = 2000 }]
allow = ["read", "write", "deallocate"]

[[client]]
name = "vm-b"
uid = [1002]
mode = "observe"
isolation = "bounce"

[[client.namespace]]
nsid = 7
source = [{ nsid = 1, start = 0, blocks = 1000 }]
allow = ["read"]
"#;

fn policy(text: &str) -> PolicyFile {
    PolicyFile::parse(text, Path::new("/")).unwrap()
}

fn report(policy: &PolicyFile) -> Report {
    let opened = OpenedGroup::open(policy, &ServeOptions::default());
    Report::new(policy, &opened).unwrap()
}

#[test]
fn people_read_what_each_client_gets() {
    let text = text::render(&report(&policy(POLICY)));
    for line in [
        // 1 MiB are 2048 blocks of 512 bytes; 24 and 48 of them are the first client's.
        "vm-a    1     36KiB (72 blocks of 512)     1: 1000 to 1023, 1: 2000 to 2047  read, write, deallocate",
        "vm-b    7     500KiB (1000 blocks of 512)  1: 0 to 999                       read",
        "vm-a  1000, 1001  enforce  shared, 2GiB in 64 regions  4 of 256  256 commands  50000 commands, 200MiB",
        "vm-b  1002        observe  bounce, 2GiB in 64 regions  4 of 256  256 commands  no ceiling",
        "read                  vm-a, vm-b  Read (02h), Get LBA Status (admin 86h)",
        "deallocate            vm-a        Dataset Management (09h)",
        "firmware              nobody      Firmware Commit (admin 10h), Firmware Image Download (admin 11h)",
        "- Hardware: none. The controller is software in this process;",
        "- vm-b: it is only observed:",
        "Audit: /var/log/a.jsonl; one in 1000 allowed reads and writes is recorded, the rest counted",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let prose = text
        .lines()
        .filter(|line| line.starts_with("- ") || line.starts_with("  "));
    for line in prose {
        assert!(line.chars().count() <= 130, "{line}");
    }
}

#[test]
fn programs_read_the_same() {
    let policy = policy(POLICY);
    let json = serde_json::to_value(report(&policy)).unwrap();
    assert_eq!(json["controllers"][0]["namespaces"][0]["blocks"], 2048);
    let namespace = &json["clients"][0]["namespaces"][0];
    assert_eq!(
        (
            namespace["blocks"].as_u64(),
            namespace["block_size"].as_u64()
        ),
        (Some(72), Some(512))
    );
    assert_eq!(namespace["source"][1]["blocks"], 48);
    assert_eq!(namespace["nguid"].as_str().unwrap().len(), 32);
    let names = policy.controller_names(&policy.clients[1]);
    assert_eq!(json["clients"][1]["serial"], names.serial);
    assert_eq!(json["clients"][1]["subnqn"], names.subnqn);
    assert_eq!(json["clients"][1]["limits"]["iops"], Value::Null);
    let read = &json["classes"][0];
    assert_eq!(read["class"], "read");
    assert_eq!(read["commands"][0]["opcode"], 2);
    assert_eq!(read["clients"][1], "vm-b");
    let kinds: Vec<&str> = json["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["kind"].as_str())
        .collect();
    assert!(
        kinds.contains(&"observe") && kinds.contains(&"shared-memory"),
        "{kinds:?}"
    );
    assert_eq!(json.get("not_asked"), None);
}

#[test]
fn a_controller_that_cannot_be_asked_leaves_what_the_file_says() {
    let policy = policy(&POLICY.replace("emulated:size=1M", "vfio-user:/nowhere/x.sock"));
    let report = report(&policy);
    let text = text::render(&report);
    assert!(text.contains("The controllers were not asked"), "{text}");
    assert!(
        text.contains("1: 1000 to 1023, 1: 2000 to the end"),
        "{text}"
    );
    assert!(text.contains("to be asked"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert!(
        json["not_asked"]
            .as_str()
            .unwrap()
            .contains("/nowhere/x.sock")
    );
    assert_eq!(json["clients"][0]["namespaces"][0]["blocks"], Value::Null);
}

#[test]
fn a_policy_that_does_not_fit_is_an_error() {
    let policy = policy(&POLICY.replace("start = 2000", "start = 2048"));
    let opened = OpenedGroup::open(&policy, &ServeOptions::default());
    let error = Report::new(&policy, &opened).unwrap_err();
    assert_eq!(error.place().line, 13);
}
