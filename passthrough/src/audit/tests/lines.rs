//! What stands in a line.

use std::time::Duration;

use nvme_vfio_queues::Status;
use proptest::prelude::*;

use super::*;
use crate::reason::Reason;

/// No line says anything to a terminal, or ends before its end.
fn assert_harmless(text: &str) {
    assert!(
        text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')),
        "{text:?}"
    );
}

#[test]
fn a_record_answers_who_what_where_verdict_status_and_latency() {
    let paper = Paper::default();
    let auditor = audit(
        &paper,
        AuditOptions {
            sample_allowed_io: 1,
            ..AuditOptions::default()
        },
    );
    let mut client = client(&auditor, 0, "vm-a");
    let extents = [extent(1000, 8, Access::Read)];
    let mut command = block_command(Class::Read, "Read", &extents);
    command.flags = Flags::FORCE_UNIT_ACCESS;
    let now = Instant::now();
    let started = client.begin(&command, &Verdict::Allow, now).unwrap();
    client.end(
        started,
        Status::LBA_OUT_OF_RANGE.with_dnr(),
        now + Duration::from_nanos(1234),
    );
    auditor.finish().unwrap();
    let lines = paper.lines();
    assert_eq!(lines.len(), 1);
    let mut line = lines[0].clone();
    let time = line["time"].take();
    let time = humantime::parse_rfc3339(time.as_str().unwrap()).unwrap();
    // The clock that people read may be set meanwhile, to and fro.
    let since = time.elapsed().unwrap_or_else(|error| error.duration());
    assert!(since < Duration::from_secs(24 * 3600));
    assert_eq!(
        line,
        serde_json::json!({
            "seq": 0, "time": null, "kind": "command", "client": "vm-a", "ring": "commands", "number": 0,
            "uid": 1000, "gid": 100, "pid": 4242, "start_time": 987_654,
            "queue": "io", "opcode": 2, "command": "Read", "words": "Read: read blocks 1000 to 1007 of namespace 1",
            "nsid": 1, "extents": [{"nsid": 1, "first": 1000, "blocks": 8, "access": "read"}],
            "class": "read", "direction": "from-controller", "scope": "extents", "persistence": "none",
            "ranges": 1, "blocks": 8, "bytes": 4096, "flags": ["force-unit-access"],
            "selector": 0, "detail": "", "operands": null,
            "verdict": "allowed", "reason": null, "reason_text": null,
            "status": {"sct": 0, "sc": 0x80, "dnr": true, "name": "LBA Out of Range"}, "latency_ns": 1234,
        })
    );
}

#[test]
fn a_refusal_says_why_and_shows_the_entry() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let mut client = client(&auditor, 0, "vm-a");
    let mut entry = [0; 16];
    (entry[0], entry[1]) = (0x0001_0001, 7);
    (entry[10], entry[11], entry[12]) = (5, 1, 3);
    client.refused(
        QueueKind::Io,
        &entry,
        Reason::OutOfRange.refusal(),
        Instant::now(),
    );
    auditor.finish().unwrap();
    let lines = paper.lines();
    let line = &lines[0];
    assert_eq!(line["verdict"], "refused");
    assert_eq!(line["reason"], "out-of-range");
    assert_eq!(line["ring"], "refusals");
    assert_eq!(line["nsid"], 7);
    assert_eq!(
        line["extents"],
        serde_json::json!([{"nsid": 7, "first": (1_u64 << 32) + 5, "blocks": 4, "access": "write"}])
    );
    assert_eq!(
        line["words"],
        "Write (opcode 01h) on an I/O queue: write blocks 4294967301 to 4294967304 of namespace 7"
    );
    assert_eq!(line["status"]["name"], "LBA Out of Range");
    assert_eq!(
        line["entry"].as_str().unwrap().split(' ').next(),
        Some("00010001")
    );
    assert_eq!(line["entry"].as_str().unwrap().split(' ').count(), 16);
}

#[test]
fn what_is_only_observed_says_what_it_would_have_been_refused_for() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let mut client = client(&auditor, 0, "vm-a");
    let extents = [extent(0, 1, Access::Write)];
    let command = block_command(Class::Write, "Write", &extents);
    let verdict = Verdict::Observe(Reason::ClassNotGranted.refusal());
    let now = Instant::now();
    let started = client.begin(&command, &verdict, now).unwrap();
    client.end(started, Status::SUCCESS, now);
    auditor.finish().unwrap();
    let line = &paper.lines()[0];
    assert_eq!(line["verdict"], "observed");
    assert_eq!(line["reason"], "class-not-granted");
    assert_eq!(line["status"]["name"], "Successful Completion");
}

#[test]
fn many_ranges_are_told_by_the_first_and_their_number() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let mut client = client(&auditor, 0, "vm-a");
    let extents: Vec<Extent> = (0..256)
        .map(|at| extent(at * 16, 2, Access::Deallocate))
        .collect();
    let command = block_command(Class::Deallocate, "Dataset Management", &extents);
    let now = Instant::now();
    let started = client.begin(&command, &Verdict::Allow, now).unwrap();
    client.end(started, Status::SUCCESS, now);
    auditor.finish().unwrap();
    let line = &paper.lines()[0];
    assert_eq!(line["extents"].as_array().unwrap().len(), 4);
    assert_eq!(line["ranges"], 256);
    assert_eq!(line["blocks"], 512);
    assert_eq!(
        line["words"],
        "Dataset Management: deallocate blocks 0 to 1 of namespace 1, deallocate blocks 16 to 17 of namespace 1, \
         deallocate blocks 32 to 33 of namespace 1, deallocate blocks 48 to 49 of namespace 1, and 252 more ranges, 512 blocks in all"
    );
}

#[test]
fn a_command_that_chooses_says_what_and_how() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let mut client = client(&auditor, 0, "owner");
    let mut command = block_command(Class::Owner, "Set Features", &[]);
    command.queue = QueueKind::Admin;
    (command.scope, command.persistence) = (Scope::Controller, Persistence::Permanent);
    (command.selector, command.detail) = (0x84, "Namespace Write Protection Config");
    command.operands[2] = 0x84;
    let now = Instant::now();
    let started = client.begin(&command, &Verdict::Allow, now).unwrap();
    client.end(started, Status::SUCCESS, now);
    auditor.finish().unwrap();
    let line = &paper.lines()[0];
    assert_eq!(
        line["words"],
        "Set Features (Namespace Write Protection Config); reaches the controller; cannot be undone"
    );
    assert_eq!(line["selector"], 0x84);
    assert_eq!(
        line["operands"],
        "00000000 00000000 00000084 00000000 00000000 00000000 00000000 00000000"
    );
}

fn nasty() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\r\n{\"seq\":0}".to_vec()),
        Just(b"\x1b]0;title\x07\x1b[2J".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"\\".to_vec()),
        Just(b"\\\"}".to_vec()),
        Just(vec![0xff, 0xfe, 0xc0, 0x80]),
        Just(vec![0xed, 0xa0, 0x80]),
        Just("\u{9b}31m\u{7f}\u{0}".as_bytes().to_vec()),
        Just(
            "\u{202e}\u{2028}\u{2029}\u{feff}\u{1f600}"
                .as_bytes()
                .to_vec()
        ),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    prop::collection::vec(pieces, 0..64).prop_map(|pieces| pieces.concat())
}

fn events(cause: &Text) -> Vec<Event> {
    let client = ClientId(0);
    let identity = WHO;
    let cause = cause.clone();
    vec![
        Event::ServerStarted {
            version: cause.clone(),
            pid: 1,
            controllers: vec![cause.clone(), cause.clone()],
        },
        Event::PolicyLoaded {
            path: cause.clone(),
            sha256: cause.clone(),
        },
        Event::PrivilegesDropped {
            summary: cause.clone(),
        },
        Event::Connected { client, identity },
        Event::ConnectionRefused {
            client,
            identity,
            cause: cause.clone(),
        },
        Event::MemoryRefused {
            client,
            identity,
            address: u64::MAX,
            bytes: u64::MAX,
            cause: cause.clone(),
        },
        Event::NotScrubbed { client, nsid: 1 },
        Event::QueueDeleted {
            client,
            controller: cause.clone(),
            cause: cause.clone(),
        },
        Event::Disconnected {
            client,
            identity,
            cause: cause.clone(),
        },
        Event::ControllerReset {
            controller: cause.clone(),
            cause: cause.clone(),
        },
        Event::ControllerRecovered {
            controller: cause.clone(),
            usable: false,
            cause: cause.clone(),
        },
        Event::ServerStopping { cause },
    ]
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(64))]

    #[test]
    fn whatever_a_client_can_name_comes_out_as_one_line_of_json(name in nasty(), cause in nasty()) {
        let paper = Paper::default();
        let auditor = audit(&paper, AuditOptions::default());
        let name = Text::new(&name);
        let cause = Text::new(&cause);
        let _client = auditor.client(ClientId(0), name.as_str(), 1);
        let events = events(&cause);
        for event in &events {
            auditor.server().record(event.clone());
        }
        auditor.finish().unwrap();
        assert_harmless(&paper.text());
        let lines = paper.lines();
        prop_assert_eq!(lines.len(), events.len());
        for line in &lines {
            // What was escaped comes back as it was.
            if let Some(written) = line["cause"].as_str() {
                prop_assert_eq!(written, cause.as_str());
            }
            if let Some(written) = line["client"].as_str() {
                prop_assert_eq!(written, name.as_str());
            }
        }
    }

    #[test]
    fn whatever_an_entry_holds_comes_out_as_one_line_of_json(
        entries in prop::collection::vec(any::<[u32; 16]>(), 1..64),
        admin in any::<bool>(),
    ) {
        let paper = Paper::default();
        let auditor = audit(&paper, AuditOptions::default());
        let mut client = client(&auditor, 0, "x");
        let queue = if admin { QueueKind::Admin } else { QueueKind::Io };
        for (index, entry) in entries.iter().enumerate() {
            let reason = Reason::ALL[index % Reason::ALL.len()];
            client.refused(queue, entry, reason.refusal(), Instant::now());
        }
        auditor.finish().unwrap();
        assert_harmless(&paper.text());
        let lines = paper.lines();
        prop_assert_eq!(lines.len(), entries.len());
        for (line, entry) in lines.iter().zip(&entries) {
            let dwords = line["entry"].as_str().unwrap().split(' ').map(|word| u32::from_str_radix(word, 16).unwrap());
            prop_assert!(dwords.eq(entry.iter().copied()));
        }
    }

    #[test]
    fn a_text_is_bounded_and_keeps_what_is_valid(bytes in prop::collection::vec(any::<u8>(), 0..3000), text in ".{0,200}") {
        let bounded = Text::new(&bytes);
        prop_assert!(bounded.as_str().len() <= 1100);
        let kept = Text::new(&text);
        prop_assert_eq!(kept.as_str(), text);
    }
}
