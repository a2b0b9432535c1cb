use clap::CommandFactory as _;

use std::time::Duration;

use super::*;

fn parse(text: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(std::iter::once("nvme-vfio").chain(text.split_whitespace()))
        .map(|cli| cli.command)
}

#[test]
fn the_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn bench_defaults_are_the_documented_ones() {
    let Ok(Command::Bench(args)) = parse("bench") else {
        panic!("bench does not parse")
    };
    assert_eq!(
        (args.address.as_str(), args.rw, args.bs),
        ("emulated", Rw::RandRead, 4096)
    );
    assert_eq!(
        (args.iodepth, args.numjobs, args.runtime, args.size),
        (32, 1, None, None)
    );
}

#[test]
fn bench_takes_both_spellings_of_fio() {
    for text in [
        "bench 01:00.0 --rw=randwrite --bs=128k --iodepth=7 --numjobs=2 --runtime=1m --size=1G --output-format=json",
        "bench 01:00.0 --rw randwrite --bs 128k --iodepth 7 --numjobs 2 --runtime 60 --size 1024M --output-format json",
        "bench --readwrite=randwrite --blocksize=0x20000 --iodepth=7 --numjobs=2 --runtime=60s --time_based --size=1g -o json 01:00.0",
    ] {
        let Ok(Command::Bench(args)) = parse(text) else {
            panic!("{text} does not parse")
        };
        assert_eq!(
            (args.address.as_str(), args.rw, args.bs, args.iodepth),
            ("01:00.0", Rw::RandWrite, 128 << 10, 7)
        );
        assert_eq!(
            (args.numjobs, args.runtime, args.size),
            (2, Some(Duration::from_secs(60)), Some(1 << 30))
        );
        assert_eq!(args.output.output_format, Format::Json);
    }
}

#[test]
fn read_takes_the_letters_of_nvme_cli() {
    let Ok(Command::Read(args)) = parse("read 01:00.0 -n 1 -s 0x10 -c 7 -z 4k -d out.bin -t -w")
    else {
        panic!("read does not parse")
    };
    assert_eq!(
        (
            args.range.namespace_id,
            args.range.start_block,
            args.range.block_count
        ),
        (Some(1), 16, Some(7))
    );
    assert_eq!(
        (args.range.data_size, args.data),
        (Some(4096), Some(PathBuf::from("out.bin")))
    );
    assert!(args.range.latency && args.range.dry_run);
}

#[test]
fn identify_takes_the_letters_of_nvme_cli() {
    let Ok(Command::IdNs(args)) = parse("id-ns emulated -n 0xffffffff -H -v --force -b") else {
        panic!("id-ns does not parse")
    };
    assert_eq!(args.namespace_id, Some(u32::MAX));
    assert_eq!(args.output.format(), RawFormat::Binary);
    assert!(args.force && args.vendor_specific && args.output.human_readable);
    assert!(
        matches!(parse("id-ctrl emulated -o binary"), Ok(Command::IdCtrl(args)) if args.output.format() == RawFormat::Binary)
    );
}

#[test]
fn every_command_takes_o_json() {
    for text in [
        "list",
        "group",
        "bind 01:00.0",
        "unbind 01:00.0",
        "doctor",
        "show-regs emulated",
        "id-ctrl emulated",
        "id-ns emulated",
        "list-ns emulated",
        "smart-log emulated",
        "read emulated",
        "write emulated",
        "flush emulated",
        "bench",
    ] {
        assert!(!parse(text).unwrap().wants_json(), "{text}");
        for form in [
            "-o json",
            "-ojson",
            "--output-format=json",
            "--output-format json",
        ] {
            let text = format!("{text} {form}");
            assert!(parse(&text).unwrap().wants_json(), "{text}");
            let words: Vec<_> = text.split_whitespace().map(Into::into).collect();
            assert!(mentions_json(&words), "{text}");
        }
    }
}

#[test]
fn wrong_usage_is_refused() {
    for text in [
        "",
        "frobnicate",
        "list --frobnicate",
        "bind",
        "read",
        "read emulated -s x",
        "bench --rw=trim",
        "bench --bs=0",
        "bench --iodepth=0",
        "bench --iodepth=65536",
        "bench --numjobs=0",
        "bench --runtime=0",
        "bench --time_based",
        "group 3 --all",
        "id-ns emulated -n 0x100000000",
    ] {
        let error = parse(text).expect_err(text);
        let error = crate::error::Error::from(error);
        assert_eq!(error.exit_status(), 2, "{text}");
        assert!(!error.to_string().is_empty());
    }
}
