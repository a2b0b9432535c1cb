//! Connections, the file, and the end.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};

use nvme_vfio_queues::Status;

use super::*;
use crate::reason::Reason;

#[test]
fn a_thread_that_has_failed_is_seen() {
    struct Fault;
    impl Write for Fault {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("a fault of the writer");
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let auditor = Auditor::start(Fault, AuditOptions::default()).unwrap();
    assert!(auditor.is_running());
    auditor.server().record(Event::ServerStopping {
        cause: "a test".into(),
    });
    let until = Instant::now() + PATIENCE;
    while auditor.is_running() {
        assert!(Instant::now() < until, "it is still there");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(auditor.finish().is_err());
}

#[test]
fn a_connection_begins_before_its_commands_and_ends_after_them() {
    let paper = Paper::default();
    let options = AuditOptions {
        sample_allowed_io: 1,
        ring: 1 << 20,
        ..AuditOptions::default()
    };
    let auditor = audit(&paper, options);
    let mut audit = client(&auditor, 0, "a");
    let server = auditor.server();
    for pid in 1..4 {
        let identity = Identity { pid, ..WHO };
        let client = ClientId(0);
        server.record(Event::Connected { client, identity });
        audit.identify(identity);
        for _ in 0..1000 {
            let started = read_once(&mut audit).unwrap();
            audit.end(started, Status::SUCCESS, Instant::now());
            audit.refused(
                QueueKind::Io,
                &[0; 16],
                Reason::ReservedBit.refusal(),
                Instant::now(),
            );
        }
        server.record(Event::Disconnected {
            client,
            identity,
            cause: "it went".into(),
        });
        // The next comes when this one is gone.
        let end = Instant::now() + PATIENCE;
        while paper.text().matches("\"disconnected\"").count() < pid as usize {
            assert!(Instant::now() < end);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    auditor.finish().unwrap();
    let mut present = None;
    let mut commands = 0;
    for line in paper.lines() {
        let pid = line["pid"].as_i64();
        match line["event"].as_str() {
            Some("connected") => {
                assert_eq!(present, None);
                present = pid;
            }
            Some("disconnected") => {
                assert_eq!(present, pid);
                present = None;
            }
            _ => {
                if line["kind"] != "dropped" {
                    assert_eq!(pid, present, "{line}");
                    commands += u32::from(line["kind"] == "command");
                }
            }
        }
    }
    assert!(commands > 1000);
}

fn format() -> DecodedCommand<'static> {
    DecodedCommand {
        direction: Direction::None,
        ..block_command(Class::Format, "Format NVM", &[])
    }
}

#[test]
fn a_connection_ends_after_its_operators_commands_too() {
    // More than is written at once.
    const COMMANDS: usize = 250;
    let options = AuditOptions::default();
    let shared = Arc::new(shared::Shared::new(ClientId(0), "a".into(), &options, None));
    let mut audit = ClientAudit::new(Arc::clone(&shared), &options, 1);
    let mut reader = reader::Reader::new(Arc::clone(&shared));
    let paper = Paper::default();
    let mut scribe = scribe::Scribe::new(Box::new(paper.clone()));
    for _ in 0..COMMANDS {
        let started = audit.begin(&format(), &Verdict::Allow, Instant::now());
        audit
            .hand_over(started.unwrap())
            .unwrap()
            .end(Status::SUCCESS);
    }
    shared.connection(Event::Disconnected {
        client: ClientId(0),
        identity: WHO,
        cause: "it went".into(),
    });
    while !reader.turn(&mut scribe) {
        scribe.write().unwrap();
    }
    scribe.write().unwrap();
    let lines = paper.lines();
    let end = lines
        .iter()
        .position(|line| line["event"] == "disconnected");
    assert_eq!((lines.len(), end), (COMMANDS + 1, Some(COMMANDS)));
}

#[test]
fn who_writes_is_woken_when_operators_commands_fill_their_ring() {
    const REST: std::time::Duration = std::time::Duration::from_secs(60);
    let options = AuditOptions::default();
    let writer = std::thread::current();
    let shared = shared::Shared::new(ClientId(0), "a".into(), &options, Some(writer));
    let shared = Arc::new(shared);
    let mut audit = ClientAudit::new(Arc::clone(&shared), &options, 1);
    while audit.has_room_for_operator() {
        let started = audit.begin(&format(), &Verdict::Allow, Instant::now());
        audit
            .hand_over(started.unwrap())
            .unwrap()
            .end(Status::SUCCESS);
    }
    let began = Instant::now();
    std::thread::park_timeout(REST);
    assert!(began.elapsed() < REST, "nobody was woken");
}

#[test]
fn a_file_that_takes_little_at_a_time_gets_whole_lines() {
    let paper = Paper {
        mouthful: 7,
        ..Paper::default()
    };
    let auditor = audit(&paper, AuditOptions::default());
    for _ in 0..50 {
        auditor.server().record(Event::ServerStopping {
            cause: "a test".into(),
        });
    }
    let totals = auditor.finish().unwrap();
    assert_eq!(totals.lines, 50);
    assert_eq!(paper.lines().len(), 50);
}

#[test]
fn a_file_that_takes_nothing_at_the_end_is_an_error() {
    let paper = Paper::default();
    paper.shut(true);
    let auditor = audit(&paper, AuditOptions::default());
    auditor.server().record(Event::ServerStopping {
        cause: "a test".into(),
    });
    let error = auditor.finish().unwrap_err();
    assert!(
        matches!(error, AuditError::Write { lines: 1, .. }),
        "{error:?}"
    );
}

#[test]
fn the_file_is_ours_alone_and_is_appended_to() {
    let directory = crate::scratch::folder();
    let path = directory.path().join("audit.jsonl");
    for round in 0..2 {
        let auditor = Auditor::start(open(&path).unwrap(), AuditOptions::default()).unwrap();
        assert!(
            matches!(open(&path), Err(AuditError::InUse { .. })),
            "{round}"
        );
        auditor.server().record(Event::ServerStopping {
            cause: "a test".into(),
        });
        auditor.finish().unwrap();
    }
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn a_line_that_was_cut_by_a_crash_does_not_spoil_the_next() {
    let directory = crate::scratch::folder();
    let path = directory.path().join("audit.jsonl");
    let mut cut = std::fs::OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(&path)
        .unwrap();
    cut.write_all(b"{\"seq\":0}\n{\"seq\":1,\"ti").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    drop(cut);
    let auditor = Auditor::start(open(&path).unwrap(), AuditOptions::default()).unwrap();
    auditor.server().record(Event::ServerStopping {
        cause: "a test".into(),
    });
    auditor.finish().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let last = text.lines().nth(2).unwrap();
    assert!(serde_json::from_str::<Value>(last).is_ok(), "{last}");
}

#[test]
fn other_things_than_a_file_of_our_own_are_refused() {
    let directory = crate::scratch::folder();
    let target = directory.path().join("target");
    std::fs::write(&target, "").unwrap();
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(matches!(
        open(&target),
        Err(AuditError::NotOurs { mode: 0o666, .. })
    ));
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o600)).unwrap();
    let link = directory.path().join("link");
    symlink(&target, &link).unwrap();
    assert!(matches!(open(&link), Err(AuditError::NotAFile { .. })));
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(open(&pipe), Err(AuditError::NotAFile { .. })));
    assert!(open(directory.path()).is_err());
    assert!(open(&directory.path().join("no/such")).is_err());
}
