//! Admin commands: Identify, queues, features, log pages.

use crate::host::*;

#[test]
fn identify_controller() {
    let mut host = Host::enabled("serial=S123,model=A model,mdts=4,nsids=1:5:200");
    let (status, page) = host.identify(1, 0);
    assert_eq!(status, 0);
    assert_eq!(&page[4..24], b"S123                ");
    assert_eq!(&page[24..64], format!("{:40}", "A model").as_bytes());
    assert_eq!(page[77], 4, "MDTS");
    assert_eq!(u32_at(&page, 80), 0x0002_0000, "VER");
    assert_eq!(page[111], 1, "CNTRLTYPE");
    assert_eq!((page[512], page[513]), (0x66, 0x44), "SQES, CQES");
    assert_eq!(u32_at(&page, 516), 200, "NN");
    assert_eq!(u16_at(&page, 520), 0x11df, "ONCS");
    assert_eq!(u16_at(&page, 256), 0b1_0000_1110, "OACS");
    assert_eq!(u32_at(&page, 92), 1 << 8, "OAES");
    assert_eq!(
        (page[260], page[524], page[534]),
        (0x17, 4, 0xf),
        "FRMW, FNA, OCFS"
    );
    assert_eq!(page[525], 0b111, "VWC");
    assert!(page[768..].starts_with(b"nqn."));
    let (_, page) = Host::enabled("vwc=off").identify(1, 0);
    assert_eq!(page[525], 0b100);
}

#[test]
fn identify_namespaces() {
    let mut host = Host::enabled("size=64M,lba=4096,nsids=1:5:200");
    let (status, page) = host.identify(0, 5);
    assert_eq!(status, 0);
    assert_eq!(
        (u64_at(&page, 0), u64_at(&page, 8), u64_at(&page, 16)),
        (16384, 16384, 16384)
    );
    assert_eq!(
        (page[25], page[26], page[130], page[134]),
        (7, 1, 9, 12),
        "NLBAF, FLBAS, LBADS"
    );
    let (status, page) = host.identify(0, 4);
    assert_eq!(
        (status, page.iter().all(|&byte| byte == 0)),
        (0, true),
        "inactive"
    );
    assert_eq!(host.identify(0, 201).0, 0x00b);
    assert_eq!(host.identify(0, 0).0, 0x00b);
    let list = |page: Vec<u8>| {
        page.chunks(4)
            .map(|id| u32_at(id, 0))
            .take_while(|&id| id != 0)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(host.identify(2, 0).1), [1, 5, 200]);
    assert_eq!(list(host.identify(2, 1).1), [5, 200]);
    assert!(list(host.identify(2, 200).1).is_empty());
    assert_eq!(host.identify(2, u32::MAX).0, 0x00b);
    let (_, first) = host.identify(3, 1);
    let (_, second) = host.identify(3, 5);
    assert_eq!(
        (
            first[0], first[1], first[12], first[13], first[32], first[33]
        ),
        (1, 8, 2, 16, 4, 1)
    );
    assert_ne!(first[4..12], second[4..12], "EUI64");
    assert_ne!(first[16..32], second[16..32], "NGUID");
    assert_eq!(host.identify(3, 4).0, 0x002);
    assert_eq!(host.identify(5, 1).0, 0);
    assert_eq!(host.identify(6, 0).0, 0);
    assert_eq!(host.identify(8, 1).1[14], 1);
    assert_eq!(host.identify(0x77, 1).0, 0x002);
}

#[test]
fn a_controller_without_namespaces_works() {
    let mut host = Host::with_queue("namespaces=0", 8);
    let (status, page) = host.identify(2, 0);
    assert_eq!((status, u32_at(&page, 0)), (0, 0));
    assert_eq!(u32_at(&host.identify(1, 0).1, 516), 0);
    assert_eq!(host.refused(1, Host::transfer(2, 0, 1, 0, 0)), 0x00b);
    assert_eq!(
        host.run(1, command(0, u32::MAX)).status,
        0,
        "flush of all of nothing"
    );
}

#[test]
fn completion_queue_statuses() {
    let mut host = Host::enabled("queues=4,mqes=64");
    let good = host.create_completion_queue(1, 64, 0x20_0000);
    let size = |host: &Host, size| host.create_completion_queue(1, size, 0x20_0000);
    for (what, dwords, status) in [
        (
            "identifier 0",
            host.create_completion_queue(0, 8, 0x20_0000),
            0x101,
        ),
        (
            "identifier 5",
            host.create_completion_queue(5, 8, 0x20_0000),
            0x101,
        ),
        ("size 1", size(&host, 1), 0x102),
        ("size 65", size(&host, 65), 0x102),
        ("not contiguous", with(good, 11, 0), 0x002),
        ("vector 5", with(good, 11, 5 << 16 | 1), 0x108),
        ("misaligned", with_prps(good, 0x20_0200, 0), 0x013),
    ] {
        assert_eq!(host.refused(0, dwords), status, "{what}");
    }
    host.admin(good);
    assert_eq!(host.refused(0, good), 0x101, "twice");
    let submission = host.create_submission_queue(2, 8, 0x21_0000, 1);
    host.admin(submission);
    let delete = with(command(4, 0), 10, 1);
    assert_eq!(host.refused(0, delete), 0x10c, "in use");
    assert_eq!(host.refused(0, with(command(4, 0), 10, 0)), 0x101);
    assert_eq!(host.refused(0, with(command(4, 0), 10, 2)), 0x101);
    assert_eq!(host.refused(0, with(command(4, 0), 10, 77)), 0x101);
    host.admin(with(command(0, 0), 10, 2));
    host.admin(delete);
    assert_eq!(host.refused(0, delete), 0x101, "deleted already");
}

#[test]
fn submission_queue_statuses() {
    let mut host = Host::enabled("queues=4,mqes=64");
    let completion = host.create_completion_queue(1, 64, 0x20_0000);
    host.admin(completion);
    let good = host.create_submission_queue(1, 64, 0x21_0000, 1);
    for (what, dwords, status) in [
        (
            "identifier 0",
            host.create_submission_queue(0, 8, 0x21_0000, 1),
            0x101,
        ),
        (
            "identifier 5",
            host.create_submission_queue(5, 8, 0x21_0000, 1),
            0x101,
        ),
        (
            "size 1",
            host.create_submission_queue(1, 1, 0x21_0000, 1),
            0x102,
        ),
        (
            "size 65",
            host.create_submission_queue(1, 65, 0x21_0000, 1),
            0x102,
        ),
        ("not contiguous", with(good, 11, 1 << 16), 0x002),
        ("misaligned", with_prps(good, 0x21_0008, 0), 0x013),
        (
            "completion queue 0",
            host.create_submission_queue(1, 8, 0x21_0000, 0),
            0x101,
        ),
        (
            "completion queue 5",
            host.create_submission_queue(1, 8, 0x21_0000, 5),
            0x101,
        ),
        (
            "completion queue that is not there",
            host.create_submission_queue(1, 8, 0x21_0000, 2),
            0x100,
        ),
    ] {
        assert_eq!(host.refused(0, dwords), status, "{what}");
    }
    host.admin(good);
    assert_eq!(host.refused(0, good), 0x101, "twice");
    for qid in [0, 2, 77] {
        assert_eq!(
            host.refused(0, with(command(0, 0), 10, qid)),
            0x101,
            "deleting {qid}"
        );
    }
    host.admin(with(command(0, 0), 10, 1));
    assert_eq!(
        host.refused(0, with(command(0, 0), 10, 1)),
        0x101,
        "deleted already"
    );
    host.admin(good);
}

#[test]
fn queues_come_and_go() {
    let mut host = Host::enabled("queues=3,mqes=4");
    for _ in 0..20 {
        for qid in [1, 2, 3] {
            host.create_queue(qid, 4);
        }
        for _ in 0..11 {
            for qid in [3, 1, 2] {
                assert_eq!(host.run(qid, command(0, 1)).status, 0);
            }
        }
        for qid in [2, 3, 1] {
            host.delete_queue(qid);
        }
    }
}

#[test]
fn number_of_queues() {
    let mut host = Host::enabled("queues=8");
    let set = |value| with(with(command(9, 0), 10, 7), 11, value);
    let get = with(command(0x0a, 0), 10, 7);
    assert_eq!(host.admin(get), 7 << 16 | 7);
    assert_eq!(host.refused(0, set(0xffff)), 0x002);
    assert_eq!(host.refused(0, set(0xffff_0000)), 0x002);
    assert_eq!(host.admin(set(100 << 16 | 100)), 7 << 16 | 7);
    assert_eq!(host.admin(set(2 << 16 | 2)), 2 << 16 | 2);
    assert_eq!(host.admin(get), 2 << 16 | 2);
    let beyond = host.create_completion_queue(4, 8, 0x20_0000);
    assert_eq!(host.refused(0, beyond), 0x101, "not granted");
    host.create_queue(3, 8);
    assert_eq!(host.refused(0, set(1)), 0x00c, "queues exist");
}

#[test]
fn features() {
    let mut host = Host::enabled("queues=2");
    // Error recovery belongs to a namespace, the others to the controller.
    let nsid = |feature| u32::from(feature & 0xff == 5);
    let set = |feature, value| with(with(command(9, nsid(feature)), 10, feature), 11, value);
    let get = |feature, dword11| with(with(command(0x0a, 1), 10, feature), 11, dword11);
    for (feature, value, expected) in [
        (0x01, 0x0102_0304, 0x0102_0304),
        (0x02, 0, 0),
        (0x04, 350, 350),
        (0x04, 1 << 20 | 200, 200),
        (0x05, 0x1234, 0x1234),
        (0x06, 0, 0),
        (0x08, 0x0203, 0x0203),
        (0x09, 1 << 16 | 2, 1 << 16 | 2),
        (0x0a, 1, 1),
        (0x0b, 0x02, 0x02),
    ] {
        let before = host.admin(get(1 << 8 | feature, value));
        host.admin(set(feature, value));
        assert_eq!(host.admin(get(feature, value)), expected, "{feature:#x}");
        assert_eq!(
            host.admin(get(1 << 8 | feature, value)),
            before,
            "the default of {feature:#x} stays"
        );
        assert_eq!(
            host.admin(get(2 << 8 | feature, value)),
            before,
            "the saved value of {feature:#x} stays"
        );
        let own = u32::from(feature == 5) << 1;
        assert_eq!(
            host.admin(get(3 << 8 | feature, value)),
            5 | own,
            "changeable and saveable"
        );
    }
    for (feature, value) in [
        (0x00, 0),
        (0x02, 1),
        (0x04, 5 << 16),
        (0x05, 1 << 16),
        (0x09, 3),
        (0x0d, 0),
        (0x0f, 0),
        (0xc0, 0),
    ] {
        assert_eq!(
            host.refused(0, set(feature, value)),
            0x002,
            "{feature:#x} = {value:#x}"
        );
    }
    for feature in [0x00, 0x0d, 0xff, 7 << 8 | 1] {
        assert_eq!(host.refused(0, get(feature, 0)), 0x002, "{feature:#x}");
    }
    assert_eq!(
        host.refused(0, with(get(0x05, 0), 1, 9)),
        0x00b,
        "error recovery of no namespace"
    );
    host.write(CC, 0);
    host.enable();
    assert_eq!(
        host.admin(get(0x01, 0)),
        0,
        "a reset brings the default back"
    );
    assert_eq!(Host::enabled("vwc=off").refused(0, get(0x06, 0)), 0x002);
}

#[test]
fn error_log_names_the_command() {
    let mut host = Host::with_queue("", 8);
    host.refused(1, Host::transfer(2, 1 << 40, 1, 0, 0));
    let cid = host.submit(1, command(0x7f, 1));
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().status, 0x001);
    let (status, log) = host.log(1, 256, 0, 0);
    assert_eq!(status, 0);
    assert_eq!(
        (u64_at(&log, 0), u64_at(&log, 64), u64_at(&log, 128)),
        (2, 1, 0),
        "latest first"
    );
    assert_eq!((u16_at(&log, 8), u16_at(&log, 10)), (1, cid));
    assert_eq!(u16_at(&log, 12) >> 1 & 0x7ff, 0x001);
    assert_eq!(u16_at(&log, 64 + 12) >> 1 & 0x7ff, 0x080);
    assert_eq!((u64_at(&log, 64 + 16), u32_at(&log, 64 + 24)), (1 << 40, 1));
    let (_, rest) = host.log(1, 64, 64, 0);
    assert_eq!(rest[..64], log[64..128], "from an offset");
    for _ in 0..100 {
        host.refused(1, command(0x7f, 1));
    }
    let (_, log) = host.log(1, 4096, 0, 0);
    assert_eq!((u64_at(&log, 0), u64_at(&log, 63 * 64)), (102, 39));
}

#[test]
fn smart_log_counts() {
    let mut host = Host::with_queue("lba=4096", 8);
    let memory = host.memory(4096);
    for _ in 0..126 {
        assert_eq!(
            host.run(1, Host::transfer(1, 3, 1, memory.iova().0, 0))
                .status,
            0
        );
    }
    assert_eq!(
        host.run(1, Host::transfer(2, 3, 1, memory.iova().0, 0))
            .status,
        0
    );
    host.refused(1, Host::transfer(2, 1 << 40, 1, memory.iova().0, 0));
    let (status, log) = host.log(2, 512, 0, u32::MAX);
    assert_eq!(status, 0);
    assert_eq!((log[0], u16_at(&log, 1)), (0, 310));
    assert_eq!(
        (u64_at(&log, 32), u64_at(&log, 48)),
        (1, 2),
        "data units: thousands of 512 bytes, rounded up"
    );
    assert_eq!((u64_at(&log, 64), u64_at(&log, 80)), (1, 126), "commands");
    assert_eq!(u64_at(&log, 176), 1, "errors");
    assert_eq!(host.log(2, 512, 0, 1).0, 0x002, "none per namespace");
    host.admin(with(with(command(9, 0), 10, 4), 11, 300));
    assert_eq!(host.log(2, 512, 0, 0).1[0], 2, "temperature warning");
}

#[test]
fn smart_log_counts_each_command_as_what_it_is() {
    let mut host = Host::with_queue("lba=512", 8);
    let counts = |host: &mut Host| {
        let (_, log) = host.log(2, 512, 0, 0);
        [32, 48, 64, 80].map(|offset| u64_at(&log, offset))
    };
    let verify = Host::transfer(0x0c, 0, 1000, 0, 0);
    assert_eq!(host.run(1, verify).status, 0);
    assert_eq!(counts(&mut host), [1, 0, 0, 0], "Verify reads data units");
    let mut sources = vec![0; 64];
    for (source, lba) in sources.chunks_exact_mut(32).zip([0u64, 5000]) {
        source[8..16].copy_from_slice(&lba.to_le_bytes());
        source[16..18].copy_from_slice(&999u16.to_le_bytes());
    }
    let copy = with(with(command(0x19, 1), 10, 10_000), 12, 1);
    assert_eq!(host.run_with(1, copy, &sources).status, 0);
    assert_eq!(
        counts(&mut host),
        [1, 2, 1, 1],
        "Copy is one command that reads and one that writes, and writes data units"
    );
    let zeroes = Host::transfer(0x08, 0, 1000, 0, 0);
    assert_eq!(host.run(1, zeroes).status, 0);
    let uncorrectable = Host::transfer(0x04, 0, 1000, 0, 0);
    assert_eq!(host.run(1, uncorrectable).status, 0);
    assert_eq!(
        counts(&mut host),
        [1, 2, 1, 1],
        "Write Zeroes counts nowhere"
    );
}

#[test]
fn identify_says_whether_flush_takes_all_namespaces() {
    for (config, vwc, status) in [("vwc=on", 0b111, 0), ("vwc=off", 0b100, 0x00b)] {
        let mut host = Host::with_queue(config, 8);
        assert_eq!(host.identify(1, 0).1[525], vwc);
        assert_eq!(host.run(1, command(0, u32::MAX)).status, status);
    }
}

#[test]
fn other_log_pages() {
    let mut host = Host::enabled("mdts=1");
    let (_, supported) = host.log(0, 1024, 0, 0);
    let pages: Vec<_> = (0..256)
        .filter(|log| u32_at(&supported, log * 4) & 1 != 0)
        .collect();
    assert_eq!(pages, [0, 1, 2, 3, 4, 5, 0x12]);
    let (_, features) = host.log(0x12, 1024, 0, 0);
    let (of_namespace, of_controller) = (1 << 20 | 1, 1 << 21 | 1);
    for feature in 0..256 {
        let expected = match feature {
            0x05 => of_namespace,
            0x01 | 0x02 | 0x04 | 0x06..=0x0b | 0x0e | 0x16 => of_controller,
            _ => 0,
        };
        assert_eq!(u32_at(&features, feature * 4), expected, "{feature:#x}");
    }
    let other_set = with(with(command(2, 0), 10, 0x12), 14, 1 << 24);
    assert_eq!(host.refused(0, other_set), 0x002, "another command set");
    for page in 0..=255u8 {
        let status = host.log(page, 64, 0, 0).0;
        assert_eq!(
            status,
            if pages.contains(&usize::from(page)) {
                0
            } else {
                0x109
            },
            "{page:#x}"
        );
    }
    assert_eq!(host.log(3, 512, 0, 0).1[0], 1);
    let (_, effects) = host.log(5, 4096, 0, 0);
    assert_eq!(u32_at(&effects, 6 * 4) & 1, 1, "Identify");
    assert_eq!(u32_at(&effects, 0x80 * 4), 0x2_0007, "Format");
    assert_eq!(u32_at(&effects, 0x0d * 4), 0x2_000b, "Namespace Management");
    assert_eq!(u32_at(&effects, 0x10 * 4), 0b1_0001, "Firmware Commit");
    assert_eq!(u32_at(&effects, 0x84 * 4), 0, "Sanitize");
    assert_eq!(u32_at(&effects, 1024 + 4), 0b11, "Write changes content");
    for opcode in 0..=255 {
        let expected = match opcode {
            0x00 | 0x02 | 0x05 | 0x0c => 0b01,
            0x01 | 0x04 | 0x08 | 0x09 | 0x19 => 0b11,
            _ => 0,
        };
        assert_eq!(u32_at(&effects, 1024 + opcode * 4), expected, "{opcode:#x}");
    }
    let other_set = with(with(command(2, 0), 10, 5), 14, 1 << 24);
    assert_eq!(host.refused(0, other_set), 0x002, "another command set");
    assert_eq!(
        host.log(2, 64, 2, 0).0,
        0x002,
        "offset not a multiple of four"
    );
    assert_eq!(host.log(2, 64, 516, 0).0, 0x002, "offset past the end");
    assert_eq!(
        host.log(1, 8192, 0, 0).0,
        0,
        "as much as MDTS allows; past the page the buffer is left alone"
    );
    let mut beyond = command(2, 0);
    beyond[10] = (8192 / 4) << 16 | 1;
    assert_eq!(host.refused(0, beyond), 0x002, "more than MDTS");
}

#[test]
fn what_is_not_implemented_says_so_and_counts() {
    let mut host = Host::with_queue("", 8);
    let admin = [
        0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x0d, 0x10, 0x11, 0x15, 0x7c,
        0x80,
    ];
    let io = [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0c, 0x19];
    let mut expected = 0;
    for opcode in 0..=255 {
        if !admin.contains(&opcode) {
            assert_eq!(host.refused(0, command(opcode, 1)), 0x001, "{opcode:#x}");
            expected += 1;
        }
        if !io.contains(&opcode) {
            assert_eq!(host.refused(1, command(opcode, 1)), 0x001, "{opcode:#x}");
            expected += 1;
        }
    }
    assert_eq!(host.emulator.statistics().unsupported_commands, expected);
}

#[test]
fn sgls_and_fused_commands_are_refused() {
    let mut host = Host::with_queue("", 8);
    for bits in [1 << 8, 2 << 8, 1 << 14, 2 << 14, 3 << 14] {
        assert_eq!(host.refused(0, with(command(6, 0), 0, 6 | bits)), 0x002);
        assert_eq!(host.refused(1, with(command(2, 1), 0, 2 | bits)), 0x002);
        // Whether there is such a command comes first.
        assert_eq!(
            host.refused(0, with(command(0x7f, 0), 0, 0x7f | bits)),
            0x001
        );
        assert_eq!(
            host.refused(1, with(command(0x0e, 1), 0, 0x0e | bits)),
            0x001
        );
    }
    assert_eq!(host.emulator.statistics().unsupported_commands, 10);
}

#[test]
fn abort_of_nothing_says_not_aborted() {
    let mut host = Host::with_queue("", 8);
    assert_eq!(host.admin(with(command(8, 0), 10, 7 << 16 | 1)), 1);
    assert_eq!(host.admin(with(command(8, 0), 10, 0xffff_ffff)), 1);
}

#[test]
fn identify_into_unmapped_memory_faults() {
    let mut host = Host::enabled("");
    let entry = with_prps(with(command(6, 0), 10, 1), 0x7000_0000, 0);
    assert_eq!(host.refused(0, entry), 0x004);
    let fault = host.emulator.iommu().faults()[0];
    assert_eq!((fault.iova.0, fault.length), (0x7000_0000, 4096));
    assert_eq!(fault.command.unwrap().opcode, 6);
    let memory = host.memory(8192);
    assert_eq!(
        host.refused(
            0,
            with_prps(with(command(6, 0), 10, 1), memory.iova().0 + 2, 0)
        ),
        0x013
    );
    // Across two pages: half by PRP1, half by PRP2.
    let split = with_prps(
        with(command(6, 0), 10, 1),
        memory.iova().0 + 2048,
        memory.iova().0 + 4096,
    );
    host.admin(split);
    assert_eq!(u32_at(&bytes(&memory, 8192), 2048 + 516), 1);
}
