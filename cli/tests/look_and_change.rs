//! The commands that read logs and features, change blocks, format and reset, run as a user runs them on a served controller.

mod served;

use std::fs;

use served::{Server, text};

/// Writes blocks that all hold `byte`.
#[track_caller]
fn fill(server: &Server, lba: u64, blocks: usize, byte: u8) {
    fs::write(server.path("fill"), vec![byte; blocks * 512]).unwrap();
    server.good("write", &format!("-s {lba} -d {{}}/fill --force"));
}

#[track_caller]
fn holds(server: &Server, lba: u64, blocks: usize, byte: u8) {
    let data = server.good("read", &format!("-s {lba} -c {}", blocks - 1));
    assert!(data.len() == blocks * 512 && data.iter().all(|one| *one == byte));
}

#[test]
fn blocks_become_zeroes_are_let_go_and_are_copied() {
    let server = Server::start("size=16M");
    fill(&server, 100, 100, 7);
    let done = server.json("write-zeroes", "-s 110 -c 4 -f");
    assert_eq!(done["ranges"][0]["blocks"], 5);
    holds(&server, 109, 1, 7);
    holds(&server, 110, 5, 0);
    holds(&server, 115, 1, 7);
    server.good("write-zeroes", "-s 116 --deac -l");
    holds(&server, 116, 1, 0);

    let done = server.json("dsm", "-s 120,130 -b 2,3 --ad");
    assert_eq!(
        (&done["ranges"][1]["slba"], &done["ranges"][1]["blocks"]),
        (&130.into(), &3.into())
    );
    holds(&server, 120, 2, 0);
    holds(&server, 122, 8, 7);
    holds(&server, 130, 3, 0);
    holds(&server, 133, 1, 7);
    // A hint changes nothing.
    server.good("dsm", "-s 150 -b 10 -a 1 -r -w");
    server.good("dsm", "-s 160 -b 1 -c 4");
    holds(&server, 150, 10, 7);
    holds(&server, 160, 1, 0);

    fill(&server, 300, 4, 3);
    server.good("copy", "-d 1000 -s 300,150 -b 3,1");
    holds(&server, 1000, 4, 3);
    holds(&server, 1004, 2, 7);
    holds(&server, 1006, 1, 0);

    server.good("verify", "-s 100 -c 99");
    server.good("write-uncor", "-s 170 -c 1");
    server.bad("verify", "-s 100 -c 99", 1, "command");
    server.bad("read", "-s 171", 1, "command");
    holds(&server, 172, 1, 7);
    let said = server.run_with("write-zeroes", "-s 170 -c 1", &[]);
    assert!(
        text(&said.stderr).contains("NVME Write Zeroes Success"),
        "{said:?}"
    );
    holds(&server, 170, 2, 0);
}

#[test]
fn wrong_ranges_change_nothing() {
    let server = Server::start("size=16M");
    fill(&server, 0, 16, 5);
    for (command, arguments, status, kind) in [
        ("write-zeroes", "-s 32768", 1, "lba-out-of-range"),
        ("write-zeroes", "-s 32767 -c 1", 1, "lba-out-of-range"),
        (
            "write-zeroes",
            "-s 0xffffffffffffffff",
            1,
            "lba-out-of-range",
        ),
        ("write-zeroes", "-c 65536", 2, "usage"),
        ("write-zeroes", "-p 1", 1, "refused"),
        ("write-zeroes", "-r 1", 1, "refused"),
        ("write-zeroes", "-S 1", 1, "refused"),
        ("write-zeroes", "-C", 1, "refused"),
        ("write-zeroes", "-n 2", 1, "no-namespace"),
        ("write-uncor", "-n 0xffffffff", 1, "no-namespace"),
        ("verify", "-s 32768", 1, "lba-out-of-range"),
        ("verify", "-a 1", 1, "refused"),
        ("dsm", "--ad", 2, "usage"),
        ("dsm", "-s 0,32768 -b 4,1 --ad", 1, "lba-out-of-range"),
        ("dsm", "-s 0 -b 4 -c 8", 1, "refused"),
        ("dsm", "-s 0 -b 4 -c 4 --ad", 2, "usage"),
        ("dsm", "-s 0,x -b 4", 2, "usage"),
        ("dsm", "-s 0,8 -b 4 --ad", 2, "usage"),
        ("dsm", "-b 4 --ad", 2, "usage"),
        ("dsm", "-s 0 -b 4 -a 1,2", 2, "usage"),
        ("copy", "-d 0", 2, "usage"),
        ("copy", "-d 0 -s 8,16 -b 1", 2, "usage"),
        ("copy", "-d 0 -s 8 -b 1 -R 0,0", 2, "usage"),
        ("copy", "-d 32767 -s 8 -b 1", 1, "lba-out-of-range"),
        ("copy", "-d 0 -s 32767 -b 1", 1, "lba-out-of-range"),
        ("copy", "-d 0 -s 8 -b 0 -F 1", 1, "refused"),
        ("copy", "-d 0 -s 8 -b 0 -T 1", 1, "refused"),
        ("copy", "-d 0 -s 8 -b 0 -R 1", 1, "refused"),
    ] {
        server.bad(command, arguments, status, kind);
    }
    let many = vec!["0"; 257].join(",");
    server.bad("dsm", &format!("-s {many} --ad"), 2, "usage");
    holds(&server, 0, 16, 5);
}

#[test]
fn what_is_recognised_is_not_changed_unasked() {
    let server = Server::start("size=16M");
    let mut block = [0_u8; 512];
    (block[450], block[454], block[458]) = (0x83, 1, 100);
    (block[510], block[511]) = (0x55, 0xaa);
    fs::write(server.path("mbr"), block).unwrap();
    server.good("write", "-d {}/mbr");
    fill(&server, 900, 8, 9);
    for (command, arguments) in [
        ("write-zeroes", "-s 900"),
        ("write-uncor", "-s 900"),
        ("dsm", "-s 900 -b 1 --ad"),
        ("copy", "-d 900 -s 0 -b 0"),
    ] {
        server.bad(command, arguments, 3, "holds-data");
    }
    holds(&server, 900, 8, 9);
    // What changes nothing is not asked for.
    server.good("verify", "-s 900");
    server.good("dsm", "-s 900 -b 1 --idr");
    server.good("write-zeroes", "-s 900 --force --audit {}/log");
    holds(&server, 900, 1, 0);
    assert!(
        fs::read_to_string(server.path("log"))
            .unwrap()
            .contains("Write Zeroes")
    );
}

#[test]
fn a_format_asks_takes_a_size_and_a_reset_brings_the_controller_back() {
    let server = Server::start("size=16M");
    fill(&server, 0, 8, 1);
    server.bad("format", "", 3, "holds-data");
    for (arguments, status, kind) in [
        ("--ses=3 --force", 2, "usage"),
        ("--pi=4 --force", 2, "usage"),
        ("--lbaf=64 --force", 2, "usage"),
        ("--lbaf=1 --block-size=512 --force", 2, "usage"),
        ("--block-size=12345 --force", 2, "usage"),
        ("-n 7 --force", 1, "no-namespace"),
        ("--lbaf=15 --force", 1, "command"),
    ] {
        server.bad("format", arguments, status, kind);
    }
    holds(&server, 0, 8, 1);
    let done = server.json("format", "--block-size=4096 --force --reset");
    assert_eq!(done["nsid"], 1);
    let identify = server.json("id-ns", "");
    assert_eq!(identify["nsze"], 4096);
    assert_eq!(server.good("read", ""), [0; 4096]);
    // The present format is kept where none is named.
    server.good("format", "--ses=1 --force");
    assert_eq!(server.json("id-ns", "")["nsze"], 4096);
    assert_eq!(server.json("reset", "")["command"], "reset");
    assert_eq!(server.good("read", ""), [0; 4096]);
}

#[test]
fn logs_have_nvme_clis_keys() {
    let server = Server::start("size=16M,serial=LOG");
    // An error of the controller's own, to be found in its log.
    server.bad("admin-passthru", "-o 2 -4 0x7f0009", 1, "command");
    let log = server.json("error-log", "");
    let errors = log["errors"].as_array().unwrap();
    assert!(errors.len() <= 64 && !errors.is_empty());
    for key in [
        "error_count",
        "sqid",
        "cmdid",
        "status_field",
        "phase_tag",
        "parm_error_location",
        "lba",
        "nsid",
        "vs",
        "trtype",
        "cs",
        "trtype_spec_info",
    ] {
        assert!(errors[0][key].is_u64(), "{key}: {}", errors[0]);
    }
    assert_eq!(errors[0]["error_count"], 1);
    // Invalid Log Page (1/09h), whatever stands above it in the field.
    assert_eq!(errors[0]["status_field"].as_u64().unwrap() & 0x7ff, 0x109);
    assert_eq!(
        server.json("error-log", "-e 2")["errors"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(server.good("error-log", "-e 1 -b").len(), 64);
    assert!(text(&server.good("error-log", "-e 1")).contains("error_count\t: 1"));

    let log = server.json("fw-log", "");
    let slots = log.as_object().unwrap().values().next().unwrap();
    assert_eq!(slots["Active Firmware Slot (afi)"], 1);
    assert!(slots["Firmware Rev Slot 1"].as_str().unwrap().contains('('));
    assert!(text(&server.good("fw-log", "")).contains("frs1 : 0x"));

    let log = server.json("effects-log", "");
    assert_eq!(log[0]["command_set_identifier"], 0);
    assert!(log[0]["admin_cmd_set"]["ACS_6 (Identify)"].is_u64());
    assert!(log[0]["io_cmd_set"]["IOCS_1 (Write)"].as_u64().unwrap() & 3 == 3);
    assert!(text(&server.good("effects-log", "-H")).contains("CSUPP+"));
    assert_eq!(server.good("effects-log", "-b").len(), 4096);

    let smart = server.good("smart-log", "-b");
    let log = server.good("get-log", "-i 2 -l 512 -b");
    assert_eq!(log.len(), smart.len());
    assert_eq!(
        server.good("get-log", "--log-id=2 --log-len=256 --lpo=256 -b"),
        log[256..]
    );
    assert_eq!(server.good("get-log", "-i 2 -l 256 -o 256 -b"), log[256..]);
    // In pieces.
    assert_eq!(server.good("get-log", "-i 5 -l 4096 -b").len(), 4096);
    let value = server.json("get-log", "-i 2 -l 512");
    assert_eq!(value["data"].as_str().unwrap().len(), 1024);
    assert!(text(&server.good("get-log", "-i 2 -l 16")).starts_with("Device:"));
    for (arguments, status, kind) in [
        ("-l 512", 2, "usage"),
        ("-i 2", 2, "usage"),
        ("-i 2 -l 510", 2, "usage"),
        ("-i 2 -l 512 -s 128", 2, "usage"),
        ("-i 0x7f -l 512", 1, "refused"),
        ("-i 0x09 -l 512", 1, "command"),
    ] {
        let output = server.run_with("get-log", &format!("{arguments} --output-format=json"), &[]);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments}: {output:?}"
        );
        assert!(
            text(&output.stderr).contains(kind),
            "{arguments}: {output:?}"
        );
    }

    let descriptors = server.json("ns-descs", "");
    let list = descriptors["ns-descs"].as_array().unwrap();
    assert!(!list.is_empty(), "{descriptors}");
    for one in list {
        let name = one["type"].as_str().unwrap();
        assert!(
            one[name].is_string() && one["nidl"].as_u64().unwrap() > 0,
            "{one}"
        );
    }
    assert_eq!(list[0]["loc"], 0);
    assert!(
        text(&server.good("ns-descs", ""))
            .starts_with("NVME Namespace Identification Descriptors NS 1:")
    );
    assert_eq!(server.good("ns-descs", "-b").len(), 4096);
    server.bad("ns-descs", "-n 9", 1, "command");
    assert_eq!(
        server.json("list-ns", "--csi=0"),
        server.json("list-ns", "")
    );
}

#[test]
fn features_are_read_and_set() {
    let server = Server::start("size=16M");
    let said = server.good("get-feature", "-f 4");
    assert!(
        text(&said).starts_with("get-feature:0x04 (Temperature Threshold), Current value:0x"),
        "{said:?}"
    );
    let told = server.json("get-feature", "-f 7");
    assert_eq!(
        (&told["name"], &told["feature"]),
        (&"Number of Queues".into(), &7.into())
    );
    let all = server.json("get-feature", "");
    assert!(all.as_array().unwrap().len() > 5, "{all}");
    let stamp = server.json("get-feature", "-f 0x0e");
    assert_eq!(stamp["data"].as_str().unwrap().len(), 16);
    assert_eq!(server.good("get-feature", "-f 0x0e -b").len(), 8);
    assert_eq!(server.good("get-feature", "-f 4 -s 3 -b").len(), 4);

    // Within one connection: a command of its own would find the controller reset.
    let set = server.json("set-feature", "-f 4 -v 0x150");
    assert_eq!(
        (&set["value"], &set["save"]),
        (&0x150.into(), &false.into())
    );
    server.good("set-feature", "-f 0x0e -v 1234567890123");
    for (command, arguments, status, kind) in [
        ("set-feature", "-f 4", 2, "usage"),
        ("set-feature", "-v 4", 2, "usage"),
        ("set-feature", "-f 4 -v 0x100000000", 2, "usage"),
        ("set-feature", "-f 0x0d -v 1", 1, "refused"),
        ("set-feature", "-f 7 -v 1", 1, "refused"),
        ("set-feature", "-f 0x0e -l 4 -v 1", 2, "buffer-too-small"),
        ("set-feature", "-f 0x0e -d {}/nothing", 2, "file"),
        ("get-feature", "-f 4 -s 4", 2, "usage"),
        ("get-feature", "-f 0x0e -l 4", 2, "buffer-too-small"),
        ("get-feature", "-f 0x77", 1, "refused"),
    ] {
        server.bad(command, arguments, status, kind);
    }
}
