//! No client displaces another's records, and whatever is left out is counted.

use std::collections::HashSet;

use nvme_vfio_queues::Status;

use super::*;
use crate::reason::Reason;

/// Numbers that are told of in the stream for one ring: those written, and those said to be dropped. Each exactly once, or this panics.
pub(super) fn accounted(lines: &[Value], client: &str, ring: &str) -> (HashSet<u64>, u64) {
    let mut written = HashSet::new();
    let mut dropped = HashSet::new();
    for line in lines
        .iter()
        .filter(|line| line["client"] == client && line["ring"] == ring)
    {
        if line["kind"] == "dropped" {
            let first = line["first"].as_u64().unwrap();
            for number in first..first + line["records"].as_u64().unwrap() {
                assert!(dropped.insert(number), "{line}");
            }
        } else {
            assert!(written.insert(line["number"].as_u64().unwrap()), "{line}");
        }
    }
    assert!(written.is_disjoint(&dropped));
    let all: HashSet<u64> = written.union(&dropped).copied().collect();
    let count = all.len() as u64;
    assert_eq!(
        all,
        (0..count).collect(),
        "a number is neither written nor said to be dropped"
    );
    (written, dropped.len() as u64)
}

fn refuse(audit: &mut ClientAudit, reason: Reason) {
    audit.refused(
        QueueKind::Io,
        &[0xffff_ffff; 16],
        reason.refusal(),
        Instant::now(),
    );
}

#[test]
fn a_flood_of_refusals_leaves_all_other_records_in_place() {
    let paper = Paper::default();
    let options = AuditOptions {
        ring: 1 << 18,
        sample_allowed_io: 1,
        refusals_per_second: 100,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut loud = client(&auditor, 0, "loud");
    let mut quiet = client(&auditor, 1, "quiet");
    let flood = 200_000;
    let began = Instant::now();
    for index in 0..flood {
        refuse(&mut loud, Reason::OutOfRange);
        if index % 2000 == 0 {
            // Its own are not displaced either.
            for audit in [&mut loud, &mut quiet] {
                let started = read_once(audit).unwrap();
                audit.end(started, Status::SUCCESS, Instant::now());
            }
            refuse(&mut quiet, Reason::ReservedBit);
            // Time for the other thread, on a machine with one processor.
            std::thread::yield_now();
        }
    }
    let counts = loud.counts();
    auditor.finish().unwrap();
    let lines = paper.lines();
    for name in ["loud", "quiet"] {
        let (written, dropped) = accounted(&lines, name, "commands");
        assert_eq!((written.len(), dropped), (100, 0), "{name}");
    }
    let (written, dropped) = accounted(&lines, "quiet", "refusals");
    assert_eq!((written.len(), dropped), (100, 0));
    // Each of the flood is written, said to be dropped, or counted.
    let (written, dropped) = accounted(&lines, "loud", "refusals");
    let counted: u64 = of_kind(&lines, "counted")
        .iter()
        .filter(|line| line["client"] == "loud")
        .map(|line| line["refused"]["out-of-range"].as_u64().unwrap())
        .sum();
    assert_eq!(written.len() as u64 + dropped + counted, flood);
    assert_eq!(counts.refused, flood);
    assert_eq!(counts.refused_counted, counted);
    // Ten seconds' worth at once.
    let most = 100 * (began.elapsed().as_secs() as usize + 2 + 10);
    assert!(
        (100..=most).contains(&written.len()),
        "{} of {most}",
        written.len()
    );
}

#[test]
fn a_full_ring_counts_what_it_drops_exactly() {
    let paper = Paper::default();
    paper.shut(true);
    let options = AuditOptions {
        ring: 1 << 14,
        sample_allowed_io: 1,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut client = client(&auditor, 0, "a");
    for _ in 0..5000 {
        let started = read_once(&mut client).unwrap();
        client.end(started, Status::SUCCESS, Instant::now());
    }
    let until = Instant::now() + PATIENCE;
    while !auditor.is_failing() {
        assert!(Instant::now() < until, "nobody tries to write");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    paper.shut(false);
    // More, after the file takes lines again.
    let mut sent = 5000;
    let more = || {
        let started = read_once(&mut client).unwrap();
        client.end(started, Status::SUCCESS, Instant::now());
        sent += 1;
        sent - 1
    };
    let last = until_written(more, || paper.lines());
    auditor.finish().unwrap();
    let lines = paper.lines();
    let (written, dropped) = accounted(&lines, "a", "commands");
    assert_eq!(written.len() as u64 + dropped, last + 1);
    assert!(dropped > 1000, "{dropped}");
}

#[test]
fn commands_beyond_the_promised_depth_are_missed_not_lost() {
    let paper = Paper::default();
    let options = AuditOptions {
        sample_allowed_io: 1,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut audit = auditor.client(ClientId(3), "a", 2);
    let now = Instant::now();
    let first = read_once(&mut audit).unwrap();
    let second = read_once(&mut audit).unwrap();
    assert!(read_once(&mut audit).is_none());
    audit.end(second, Status::SUCCESS, now);
    audit.end(first, Status::SUCCESS, now);
    assert!(read_once(&mut audit).is_some());
    auditor.finish().unwrap();
    let (written, dropped) = accounted(&paper.lines(), "a", "commands");
    assert_eq!((written.len(), dropped), (2, 1));
}

#[test]
fn of_allowed_reads_and_writes_one_in_so_many_is_recorded() {
    let paper = Paper::default();
    let options = AuditOptions {
        sample_allowed_io: 10,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut client = client(&auditor, 0, "a");
    let writes = [extent(0, 2, Access::Write)];
    let write = block_command(Class::Write, "Write", &writes);
    let flush = block_command(Class::Flush, "Flush", &[]);
    let now = Instant::now();
    let mut recorded = 0;
    for _ in 0..500 {
        for started in [
            read_once(&mut client),
            client.begin(&write, &Verdict::Allow, now),
        ]
        .into_iter()
        .flatten()
        {
            client.end(started, Status::SUCCESS, now);
            recorded += 1;
        }
    }
    // What is neither is recorded always.
    let started = client.begin(&flush, &Verdict::Allow, now).unwrap();
    client.end(started, Status::SUCCESS, now);
    let counts = client.counts();
    auditor.finish().unwrap();
    assert_eq!(recorded, 100, "exactly one in ten");
    assert_eq!(counts.reads + counts.writes, 900);
    let lines = paper.lines();
    let counted = of_kind(&lines, "counted");
    assert_eq!(sum(&counted, "a", "reads"), counts.reads);
    assert_eq!(sum(&counted, "a", "read_bytes"), counts.reads * 8 * 512);
    assert_eq!(sum(&counted, "a", "writes"), counts.writes);
    assert_eq!(sum(&counted, "a", "write_bytes"), counts.writes * 2 * 512);
    let commands = of_kind(&lines, "command");
    assert_eq!(commands.len(), 101);
    // Which ones cannot be foreseen: not all of them are reads, or all writes, as every tenth would be.
    for name in ["Read", "Write"] {
        let some = commands.iter().filter(|line| line["command"] == name);
        assert!((1..100).contains(&some.count()), "{name}");
    }
}

#[test]
fn a_sample_of_nothing_records_nothing() {
    let mut client = ClientAudit::detached("a");
    for _ in 0..10_000 {
        assert!(read_once(&mut client).is_none());
    }
    assert_eq!(client.counts().reads, 10_000);
    assert_eq!(client.counts().read_bytes, 10_000 * 8 * 512);
}

#[test]
fn what_the_virtual_controller_answers_cannot_flood_the_file() {
    let paper = Paper::default();
    let options = AuditOptions {
        answered_per_second: 10,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut client = client(&auditor, 0, "a");
    let mut identify = block_command(Class::Virtual, "Identify", &[]);
    identify.scope = Scope::VirtualController;
    for _ in 0..10_000 {
        let started = client.begin(&identify, &Verdict::Allow, Instant::now());
        assert!(started.is_none());
    }
    auditor.finish().unwrap();
    let lines = paper.lines();
    let written = of_kind(&lines, "command").len() as u64;
    assert!((10..1000).contains(&written), "{written}");
    assert_eq!(
        written + sum(&of_kind(&lines, "counted"), "a", "answered"),
        10_000
    );
}

/// The counts of a field that holds them by name, in all lines of that client.
fn named(lines: &[&Value], client: &str, field: &str, name: &str) -> u64 {
    let of_client = lines.iter().filter(|line| line["client"] == client);
    let counts = of_client.map(|line| line[field][name].as_u64().unwrap_or(0));
    counts.sum()
}

#[test]
fn a_flood_of_allowed_commands_is_counted_exactly_and_hides_no_format() {
    const FLOOD: u64 = 100_000;
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let mut client = client(&auditor, 0, "a");
    let flush = block_command(Class::Flush, "Flush", &[]);
    let verify = block_command(Class::Verify, "Verify", &[]);
    let reads = [extent(0, 2, Access::Read)];
    let read = block_command(Class::Read, "Read", &reads);
    let observed = Verdict::Observe(Reason::ClassNotGranted.refusal());
    let mut format = block_command(Class::Format, "Format NVM", &[]);
    (format.direction, format.scope) = (Direction::None, Scope::Namespace);
    let mut receive = block_command(Class::Security, "Security Receive", &[]);
    receive.scope = Scope::Controller;
    let began = Instant::now();
    for index in 0..FLOOD {
        let now = Instant::now();
        for (command, verdict) in [
            (&flush, Verdict::Allow),
            (&verify, Verdict::Allow),
            (&read, observed),
            (&receive, Verdict::Allow),
        ] {
            if let Some(started) = client.begin(command, &verdict, now) {
                client.end(started, Status::SUCCESS, now);
            }
        }
        if index % 1000 == 999 {
            let started = client.begin(&format, &Verdict::Allow, now).unwrap();
            client.hand_over(started).unwrap().end(Status::SUCCESS);
            // Time for the other thread, on a machine with one processor.
            std::thread::yield_now();
        }
        // What is not sent anywhere has no such right.
        let started = client.begin(&format, &Verdict::Allow, now).unwrap();
        client.not_sent(started, Status::INVALID_FORMAT, now);
    }
    let most = 100 * (began.elapsed().as_secs() + 2 + 10);
    let counts = client.counts();
    auditor.finish().unwrap();
    let lines = paper.lines();
    let (operators, dropped) = accounted(&lines, "a", "operators");
    assert_eq!((operators.len() as u64, dropped), (FLOOD / 1000, 0));
    let counted = of_kind(&lines, "counted");
    let by_class = |class| named(&counted, "a", "others", class);
    let others = by_class("flush") + by_class("verify") + by_class("security") + by_class("format");
    let by_reason = named(&counted, "a", "observed", "class-not-granted");
    assert_eq!((counts.others, counts.observed), (others, by_reason));
    let (written, dropped) = accounted(&lines, "a", "commands");
    assert_eq!(
        written.len() as u64 + dropped + others + by_reason,
        5 * FLOOD
    );
    assert!(FLOOD - by_reason <= most, "{by_reason} of {FLOOD}, {most}");
    assert!(4 * FLOOD - others <= most, "{others} of {FLOOD}, {most}");
    for class in ["flush", "verify", "security", "format"] {
        assert!((FLOOD - most..=FLOOD).contains(&by_class(class)), "{class}");
    }
}

#[test]
fn a_command_that_was_counted_and_stopped_is_a_refusal_alone() {
    let paper = Paper::default();
    let options = AuditOptions {
        others_per_second: 0,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut client = client(&auditor, 0, "a");
    let now = Instant::now();
    let extents = [extent(0, 2, Access::Read)];
    let observed = Verdict::Observe(Reason::ClassNotGranted.refusal());
    for (class, verdict) in [
        (Class::Read, Verdict::Allow),
        (Class::Compare, Verdict::Allow),
        (Class::Read, observed),
        (Class::Read, Verdict::Allow),
    ] {
        // One of each is carried out.
        for stop in [false, true] {
            let command = block_command(class, "Some", &extents);
            assert!(client.begin(&command, &verdict, now).is_none());
            if stop {
                let refusal = Reason::OutsideMemory.refusal();
                let entry = (QueueKind::Io, &[0; 16]);
                client.stopped(None, (class, command.length), entry, refusal, now);
            }
        }
    }
    let counts = client.counts();
    assert_eq!((counts.reads, counts.read_bytes), (2, 2 * 2 * 512));
    assert_eq!((counts.others, counts.observed, counts.refused), (1, 1, 4));
}

#[test]
fn every_class_has_the_place_of_its_number() {
    for (place, class) in Class::ALL.iter().enumerate() {
        assert_eq!(*class as usize, place);
    }
}

#[test]
fn connecting_in_a_loop_displaces_nothing_of_the_others() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let _loud = client(&auditor, 0, "loud");
    let _quiet = client(&auditor, 1, "quiet");
    let server = auditor.server();
    for index in 0..5000 {
        server.record(Event::ConnectionRefused {
            client: ClientId(0),
            identity: WHO,
            cause: "uid 7 may not connect".into(),
        });
        if index % 100 == 0 {
            for client in [ClientId(0), ClientId(1)] {
                server.record(Event::Connected {
                    client,
                    identity: WHO,
                });
            }
        }
    }
    server.record(Event::ControllerReset {
        controller: "emulated".into(),
        cause: "a command did not end".into(),
    });
    auditor.finish().unwrap();
    let lines = paper.lines();
    let (written, dropped) = accounted(&lines, "quiet", "connections");
    assert_eq!((written.len(), dropped), (50, 0));
    let (written, dropped) = accounted(&lines, "loud", "connections");
    let counted = sum(&of_kind(&lines, "counted"), "loud", "connections");
    assert_eq!(written.len() as u64 + dropped + counted, 5050);
    assert!(counted > 0);
    // Who was let in is not hidden by those who were not.
    let connected = lines
        .iter()
        .filter(|line| line["client"] == "loud" && line["event"] == "connected");
    assert_eq!(connected.count(), 50);
    assert!(
        lines
            .iter()
            .any(|line| line["event"] == "controller-reset" && line["client"].is_null())
    );
}

#[test]
fn memory_that_is_refused_in_a_loop_hides_nobody_who_comes_later() {
    let paper = Paper::default();
    let auditor = audit(&paper, AuditOptions::default());
    let _loud = client(&auditor, 0, "loud");
    let server = auditor.server();
    for index in 0..5000 {
        server.record(Event::MemoryRefused {
            client: ClientId(0),
            identity: WHO,
            address: index << 12,
            bytes: 4096,
            cause: "EPERM".into(),
        });
    }
    server.record(Event::Connected {
        client: ClientId(0),
        identity: WHO,
    });
    auditor.finish().unwrap();
    let lines = paper.lines();
    assert!(lines.iter().any(|line| line["event"] == "connected"));
}

#[test]
fn counts_that_were_told_are_not_told_again_by_an_older_end() {
    let options = AuditOptions::default();
    let shared = std::sync::Arc::new(shared::Shared::new(ClientId(0), "a".into(), &options, None));
    let mut reader = reader::Reader::new(std::sync::Arc::clone(&shared));
    let paper = Paper::default();
    let mut scribe = scribe::Scribe::new(Box::new(paper.clone()));
    let client = ClientId(0);
    for _ in 0..2 {
        shared.connection(Event::Connected {
            client,
            identity: WHO,
        });
        shared.count(Class::Read, 512);
        shared.connection(Event::Disconnected {
            client,
            identity: WHO,
            cause: "closed".into(),
        });
    }
    // Both ends wait in the ring when it is time to tell of counts; then one of these is taken back.
    reader.tell_counts(&mut scribe);
    shared.count(Class::Read, 512);
    shared.uncount(Class::Read, 512);
    shared.uncount(Class::Read, 512);
    while !reader.turn(&mut scribe) {}
    shared.count(Class::Read, 512);
    reader.tell_counts(&mut scribe);
    scribe.write().unwrap();
    let lines = paper.lines();
    let counted = of_kind(&lines, "counted");
    assert_eq!(sum(&counted, "a", "reads"), 2, "{counted:?}");
}

#[test]
fn what_is_counted_is_ascribed_to_nobody_who_may_not_have_done_it() {
    let paper = Paper::default();
    let options = AuditOptions {
        sample_allowed_io: 0,
        connections_per_second: 3,
        ..AuditOptions::default()
    };
    // Without a thread, for which a second may be over that has three more records.
    let shared = Arc::new(shared::Shared::new(ClientId(0), "a".into(), &options, None));
    let mut client = ClientAudit::new(Arc::clone(&shared), &options, 256);
    let mut reader = reader::Reader::new(Arc::clone(&shared));
    let mut scribe = scribe::Scribe::new(Box::new(paper.clone()));
    let (id, other) = (ClientId(0), Identity { uid: 7, ..WHO });
    let mut session = |identity| {
        shared.connection(Event::Connected {
            client: id,
            identity,
        });
        read_once(&mut client);
        shared.connection(Event::Disconnected {
            client: id,
            identity,
            cause: "closed".into(),
        });
    };
    session(WHO);
    // Of the second the end is only counted, of the third the beginning too.
    session(WHO);
    session(other);
    while !reader.turn(&mut scribe) {}
    reader.tell_counts(&mut scribe);
    scribe.write().unwrap();
    let lines = paper.lines();
    let counted = of_kind(&lines, "counted");
    assert_eq!(sum(&counted, "a", "reads"), 3);
    assert_eq!(counted.len(), 2, "{counted:?}");
    assert_eq!(
        (&counted[0]["uid"], &counted[0]["reads"]),
        (&WHO.uid.into(), &1.into())
    );
    assert!(counted[1]["uid"].is_null(), "{}", counted[1]);
}

#[test]
fn a_command_that_was_stopped_is_a_refusal_and_no_longer_counted_as_allowed() {
    let paper = Paper::default();
    let options = AuditOptions {
        sample_allowed_io: 2,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut client = client(&auditor, 0, "a");
    let now = Instant::now();
    let mut entry = [0; 16];
    (entry[0], entry[1], entry[10], entry[12]) = (2, 1, 1000, 7);
    for _ in 0..10 {
        let started = read_once(&mut client);
        let refusal = Reason::OutsideMemory.refusal();
        let read = (Class::Read, 8 * 512);
        client.stopped(started, read, (QueueKind::Io, &entry), refusal, now);
    }
    // One that is carried out, and fails.
    while let Some(started) = read_once(&mut client) {
        client.end(started, Status::SUCCESS, now);
    }
    client.failed();
    let counts = client.counts();
    auditor.finish().unwrap();
    assert_eq!(
        (counts.reads, counts.read_bytes, counts.failed),
        (1, 4096, 1)
    );
    let lines = paper.lines();
    let refused: Vec<_> = of_kind(&lines, "command")
        .into_iter()
        .filter(|line| line["verdict"] == "refused")
        .collect();
    assert_eq!(refused.len(), 10);
    for line in refused {
        assert_eq!(line["reason"], "outside-memory");
        assert_eq!(line["status"]["name"], "Data Transfer Error");
        assert_eq!(line["extents"][0]["first"], 1000);
    }
    assert_eq!(sum(&of_kind(&lines, "counted"), "a", "failed"), 1);
}

#[test]
fn a_mebibyte_has_room_for_some_thousand_records() {
    let bytes = size_of::<(u64, crate::audit::record::Record)>();
    assert!((200..=320).contains(&bytes), "{bytes}");
}
