//! `admin-passthru` and `io-passthru`, run as a user runs them, on a controller that another process serves.

mod served;

use std::fs;
use std::process::Command;

use serde_json::Value;

use served::{Server, text};

#[test]
fn scripts_of_nvme_cli_need_no_change() {
    let server = Server::start("size=16M");
    // The example of its manual page, and with -o for the opcode.
    let whole = server.good("id-ctrl", "-b");
    for arguments in [
        "--opcode=06 --data-len=4096 --cdw10=1 -r -b",
        "-o 0x06 -l 4096 -4 1 -r -b",
        "-O 6 --cdw10=1 --raw-binary",
    ] {
        assert_eq!(
            server.good("admin-passthru", arguments),
            whole,
            "{arguments}"
        );
    }
    // Bytes that the controller leaves alone keep what the buffer was filled with.
    let longer = server.good("admin-passthru", "-o 6 -4 1 -l 4100 -p 0xa5 -b");
    assert_eq!(
        (&longer[..4096], &longer[4096..]),
        (&*whole, &[0xa5; 4][..])
    );

    let dump = server.run_with("admin-passthru", "--opcode=6 --cdw10=1 -T", &[]);
    assert!(text(&dump.stdout).contains("\n0000: "), "{dump:?}");
    let said = text(&dump.stderr);
    assert!(
        said.contains("Admin Command Identify is Success and result: 0x00000000")
            && said.contains("Admin Command Identify latency: "),
        "{said}"
    );

    let written: Vec<u8> = (0..4096_u32).map(|at| (at % 251) as u8).collect();
    let output = server.run_with(
        "io-passthru",
        "--opcode=1 --namespace-id=1 --data-len=4096 --write --cdw10=16 --cdw12=7 --force",
        &written,
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let read =
        "--opcode=2 --namespace-id=1 --data-len=4096 --read --cdw10=16 --cdw12=0x7 --raw-binary";
    assert_eq!(server.good("io-passthru", read), written);
    // Nothing but the opcode and the range is needed.
    assert_eq!(server.good("io-passthru", "-o 2 -4 16 -6 7 -b"), written);
    // And a file takes the data as well as it gives it.
    server.good("io-passthru", "-o 2 -4 16 -6 7 -i {}/out");
    assert_eq!(fs::read(server.path("out")).unwrap(), written);
    server.good("io-passthru", "-o 1 -4 32 -6 7 -i {}/out --force");
    assert_eq!(server.good("read", "-s 32 -c 7"), written);
}

#[test]
fn a_command_is_shown_and_in_a_dry_run_not_sent() {
    let server = Server::start("size=16M");
    fs::write(server.path("data"), [1; 512]).unwrap();
    let shown = server.good(
        "io-passthru",
        "-o 1 -4 5 --dry-run --show-command -i {}/data -t 5000",
    );
    for line in [
        "opcode       : 01",
        "nsid         : 00000001",
        "data_len     : 00000200",
        "cdw10        : 00000005",
        "timeout_ms   : 00001388",
    ] {
        assert!(text(&shown).contains(line), "{}", text(&shown));
    }
    let shown = server.json("io-passthru", "-o 1 -4 5 -d -i {}/data");
    assert_eq!(
        (&shown["opcode"], &shown["cdw10"], &shown["data_len"]),
        (&1.into(), &5.into(), &512.into())
    );
    assert_eq!(server.good("read", "-s 5"), [0; 512]);
    let both = server.good("io-passthru", "-o 2 -4 5 -s");
    assert!(text(&both).contains("cdw10") && text(&both).contains("0000:"));
}

#[test]
fn json_tells_result_and_data() {
    let server = Server::start("size=16M");
    let value = server.json("admin-passthru", "-o 0x0a --cdw10=7");
    assert_eq!(value["name"], "Get Features");
    assert!(value["result"].as_u64().unwrap() > 0 && value["data"].is_null());
    let value = server.json("io-passthru", "-O 2 -s");
    assert_eq!(value["data"].as_str().unwrap().len(), 1024);
    assert_eq!(
        (&value["data_len"], &value["entry"]["nsid"]),
        (&512.into(), &1.into())
    );
}

#[test]
fn wrong_usage_is_told_before_anything_is_sent() {
    let server = Server::start("size=16M");
    fs::write(server.path("short"), [1; 100]).unwrap();
    for (command, arguments, kind) in [
        ("admin-passthru", "", "usage"),
        ("admin-passthru", "--opcode=0x100", "usage"),
        ("admin-passthru", "-o 6 -O 6", "usage"),
        ("admin-passthru", "-o six", "usage"),
        ("admin-passthru", "-o 6 -4 1 --rsvd=1", "usage"),
        ("admin-passthru", "-o 6 -4 1 -r -w", "usage"),
        ("admin-passthru", "-o 6 -4 1 -w", "usage"),
        ("admin-passthru", "-o 6 -4 1 -l 4095", "buffer-too-small"),
        ("admin-passthru", "-o 6 -4 1 -l 2000000000", "usage"),
        (
            "admin-passthru",
            "-o 6 -4 1 --metadata {}/short",
            "unsupported",
        ),
        ("io-passthru", "-o 1 -r -i {}/short", "usage"),
        ("io-passthru", "-o 1 -i {}/short", "file"),
        ("io-passthru", "-o 1 -i {}/nothing", "file"),
        ("io-passthru", "-o 1", "file"),
        ("io-passthru", "-o 2 -6 7 -l 4092", "buffer-too-small"),
        ("io-passthru", "-o 8 -l 512", "usage"),
        (
            "io-passthru",
            "-o 9 -4 1 -5 4 -l 16 -i {}/short",
            "buffer-too-small",
        ),
        ("io-passthru", "-o 0x81 -l 4 -r --force", "usage"),
    ] {
        server.bad(command, arguments, 2, kind);
    }
    // A short file is sent where it is said what comes behind it.
    server.good("io-passthru", "-o 1 -p 0x77 -i {}/short --force");
    let block = server.good("read", "");
    assert_eq!((block[99], block[100], block[511]), (1, 0x77, 0x77));
}

#[test]
fn refusals_say_what_a_client_would_be_told() {
    let server = Server::start("size=16M");
    for (command, arguments, kind) in [
        ("admin-passthru", "-o 0x01 -4 0xf0001 -5 1", "refused"),
        ("admin-passthru", "-o 0x00 -4 1", "refused"),
        ("admin-passthru", "-o 0x7c", "refused"),
        ("admin-passthru", "-o 0x09 -4 0x0d -5 1 -7 4096", "refused"),
        ("admin-passthru", "-o 0x03", "refused"),
        ("admin-passthru", "-o 6 -4 1 -f 1", "refused"),
        ("admin-passthru", "-o 6 -4 1 -m 8", "refused"),
        ("io-passthru", "-o 2 -f 0x40", "refused"),
        ("io-passthru", "-o 2 -4 32768", "lba-out-of-range"),
        ("io-passthru", "-o 2 -n 2", "no-namespace"),
        (
            "io-passthru",
            "-o 0x19 -6 0x100 -l 40 -i {}/nothing",
            "refused",
        ),
    ] {
        let error = server.bad(command, arguments, 1, kind);
        assert!(error["nvme_status"]["sc"].is_u64(), "{error}");
    }
    // The controller's own answer: a log page that it does not have.
    let error = server.bad("admin-passthru", "-o 2 -4 0x7f0009", 1, "command");
    assert_eq!(error["nvme_status"]["sct"], 1, "{error}");
}

#[test]
fn what_destroys_is_asked_for_and_recorded() {
    let server = Server::start("size=16M");
    fs::write(server.path("data"), [0x5a; 512]).unwrap();
    server.good("io-passthru", "-o 1 -i {}/data");
    // Nobody can be asked here.
    let error = server.bad(
        "admin-passthru",
        "-o 0x80 -n 1 --audit {}/log",
        3,
        "holds-data",
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("Format NVM")
            && message.contains("namespace 1")
            && message.contains("serial"),
        "{message}"
    );
    assert!(error["remedy"].as_str().unwrap().contains("--force"));
    server.bad("admin-passthru", "-o 0xc0", 3, "holds-data");
    server.bad("admin-passthru", "-o 0x84 -4 2", 3, "holds-data");
    assert_eq!(server.good("read", ""), [0x5a; 512]);
    server.good("admin-passthru", "-o 0x80 -n 1 --force --audit {}/log");
    assert_eq!(server.good("read", ""), [0; 512]);
    server.bad("admin-passthru", "-o 0x7c --audit {}/log", 1, "refused");

    let lines = fs::read_to_string(server.path("log")).unwrap();
    let records: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let has = |word: &str| {
        records
            .iter()
            .filter(|record| record.to_string().contains(word))
            .count()
    };
    assert_eq!(
        (has("\"Format NVM\""), has("never-passes")),
        (1, 1),
        "{lines}"
    );
    let shown = Command::new(env!("CARGO_BIN_EXE_nvme-vfio"))
        .arg("audit")
        .arg(server.path("log"))
        .output()
        .unwrap();
    assert!(text(&shown.stdout).contains("Format NVM"), "{shown:?}");

    // Where nothing can be recorded nothing is sent.
    server.bad(
        "io-passthru",
        "-o 1 -i {}/data --force --audit {}/nowhere/log",
        2,
        "file",
    );
    assert_eq!(server.good("read", ""), [0; 512]);
}

#[test]
fn a_file_system_is_not_written_over_unasked() {
    let server = Server::start("size=16M");
    // The end of a master boot record.
    let mut block = [0_u8; 512];
    block[510] = 0x55;
    block[511] = 0xaa;
    block[450] = 0x83;
    block[454] = 1;
    block[458] = 100;
    fs::write(server.path("mbr"), block).unwrap();
    server.good("io-passthru", "-o 1 -i {}/mbr");
    for arguments in ["-o 1 -4 900 -i {}/mbr", "-o 8 -4 900", "-o 4 -4 900"] {
        server.bad("io-passthru", arguments, 3, "holds-data");
    }
    server.good("io-passthru", "-o 8 -4 900 --force");
    server.good("io-passthru", "-o 2 -4 900");
}
