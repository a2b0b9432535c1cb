//! Every key and every name is read, and every mistake has its line.

use super::*;
use crate::fault::{
    CommandFault, ControllerFault, Matcher, MediaFault, MediaOperation, MediaUntil, OnAbort,
    QueueKind, Until,
};
use nvme_vfio_queues::Status;

fn one(body: &str) -> (When, Fault) {
    let script = FaultScript::parse(&format!("[[fault]]\n{body}")).unwrap();
    assert_eq!(script.faults().len(), 1);
    script.faults()[0].clone()
}

fn does(body: &str) -> CommandFault {
    match one(body) {
        (When::Now, Fault::Command(matcher, fault)) => {
            assert_eq!(matcher, Matcher::default());
            fault
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_that_can_be_done() {
    for (body, fault) in [
        ("do = 'hang'", CommandFault::Hang(OnAbort::NotAborted)),
        (
            "do = 'hang'\non_abort = 'aborted'",
            CommandFault::Hang(OnAbort::Aborted),
        ),
        (
            "do = 'hang'\non_abort = 'data-later'",
            CommandFault::Hang(OnAbort::AbortedDataLater),
        ),
        ("do = 'delay'\nsteps = 5", CommandFault::Delay(5)),
        ("do = 'lose-completion'", CommandFault::LostCompletion),
        (
            "do = 'late-completion'\nsteps = 6",
            CommandFault::LateCompletion(6),
        ),
        ("do = 'reorder'\nbehind = 2", CommandFault::Reorder(2)),
        (
            "do = 'duplicate-completion'",
            CommandFault::DuplicateCompletion,
        ),
        ("do = 'stale-phase'", CommandFault::StalePhase),
        ("do = 'no-effect'", CommandFault::NoEffect),
        (
            "do = 'wrong-cid'\nvalue = 0xffff",
            CommandFault::WrongCid(0xffff),
        ),
        ("do = 'wrong-sqid'\nvalue = 1", CommandFault::WrongSqid(1)),
        (
            "do = 'wrong-sq-head'\nvalue = 2",
            CommandFault::WrongSqHead(2),
        ),
        (
            "do = 'wrong-result'\nvalue = 0xffff_ffff",
            CommandFault::WrongResult(u32::MAX),
        ),
        (
            "do = 'flip-status'\nbits = 0x7fff",
            CommandFault::FlipStatus(0x7fff),
        ),
        (
            "do = 'status'\nsct = 2\nsc = 0x81",
            CommandFault::Status(Status::UNRECOVERED_READ_ERROR),
        ),
        (
            "do = 'status'\nsct = 2\nsc = 0x81\ndnr = true",
            CommandFault::Status(Status::UNRECOVERED_READ_ERROR.with_dnr()),
        ),
        (
            "do = 'junk-data'\ndata = 'ones'",
            CommandFault::JunkData(vec![0xff]),
        ),
        (
            "do = 'junk-data'\ndata = 'zeroes'",
            CommandFault::JunkData(vec![0]),
        ),
        (
            "do = 'junk-data'\ndata = 'random'\nseed = 9",
            CommandFault::RandomData(9),
        ),
        (
            "do = 'junk-data'\ndata = [1, 0xff]",
            CommandFault::JunkData(vec![1, 0xff]),
        ),
    ] {
        assert_eq!(does(body), fault, "{body}");
    }
    for (name, fault) in [
        ("gone", ControllerFault::Gone),
        ("all-ones", ControllerFault::AllOnes),
        ("never-ready", ControllerFault::NeverReady),
        ("never-disabled", ControllerFault::NeverDisabled),
        ("lost-interrupts", ControllerFault::LostInterrupts),
        (
            "shutdown-never-completes",
            ControllerFault::ShutdownNeverCompletes,
        ),
        ("queue-grant'\npairs = '3", ControllerFault::QueueGrant(3)),
        (
            "cap'\nvalue = '18446744073709551615",
            ControllerFault::Cap(u64::MAX),
        ),
    ] {
        for (until, expected) in [
            ("", Until::FunctionReset),
            ("until = 'function-reset'", Until::FunctionReset),
            ("until = 'cleared'", Until::Cleared),
        ] {
            let expected = Fault::Controller(fault, expected);
            assert_eq!(one(&format!("do = '{name}'\n{until}")).1, expected);
        }
    }
    assert_eq!(
        one("do = 'fatal'").1,
        Fault::of_controller(ControllerFault::Fatal)
    );
    assert_eq!(
        one("do = 'media-error'\nlba = 7").1,
        Fault::unreadable(7..=7)
    );
    let media = Fault::Media(MediaFault {
        nsid: Some(2),
        lbas: 0..=u64::MAX,
        operation: MediaOperation::Write,
        until: MediaUntil::Cleared,
    });
    let body = "do = 'media-error'\nlba = [0, 18446744073709551615]\nnsid = 2\nfails = 'write'\nuntil = 'cleared'";
    assert_eq!(one(body).1, media);
}

#[test]
fn everything_that_can_be_chosen() {
    let (when, fault) = one(
        "do = 'no-effect'\nqueue = 3\nopcode = 'read'\nnsid = 1\nlba = [5, 6]\ndword10 = 5\nnth = 4\ntimes = 2\nat_step = 9",
    );
    let matcher = Matcher {
        queue: Some(QueueKind::Io),
        ..Matcher::default()
    };
    let matcher = matcher
        .sqid(3)
        .opcode(2)
        .nsid(1)
        .lbas(5..=6)
        .dword10(5)
        .nth(4)
        .times(2);
    assert_eq!(
        (when, fault),
        (When::Step(9), Fault::on(matcher, CommandFault::NoEffect))
    );
    let (when, fault) = one("do = 'no-effect'\nqueue = 'admin'\nopcode = 0xc0\nafter_commands = 7");
    let matcher = Matcher::admin().opcode(0xc0);
    assert_eq!(
        (when, fault),
        (
            When::Commands(7),
            Fault::on(matcher, CommandFault::NoEffect)
        )
    );
    let (_, fault) = one("do = 'no-effect'\nopcode = 'identify'");
    assert_eq!(
        fault,
        Fault::on(Matcher::admin().opcode(6), CommandFault::NoEffect)
    );
    assert_eq!(FaultScript::parse("").unwrap(), FaultScript::default());
}

#[test]
fn mistakes_have_their_line() {
    for (text, line, word) in [
        ("colour = 1", 1, "colour"),
        ("fault = 1", 1, "[[fault]]"),
        ("fault = [1]", 1, "[[fault]]"),
        ("[fault]\ndo = 'fatal'", 1, "[[fault]]"),
        ("[[fault]]\n", 1, "'do' is one of"),
        ("[[fault]]\ndo = 'explode'", 2, "'do' is one of"),
        ("[[fault]]\ndo = 1", 2, "'do' is one of"),
        (
            "[[fault]]\ndo = 'fatal'\n[[fault]]\ndo = 'delay'",
            3,
            "'steps' is missing",
        ),
        (
            "[[fault]]\ndo = 'delay'\nsteps = -1",
            3,
            "'steps' is a number",
        ),
        (
            "[[fault]]\ndo = 'delay'\nsteps = 1.5",
            3,
            "'steps' is a number",
        ),
        (
            "[[fault]]\ndo = 'delay'\nsteps = 99999999999999",
            3,
            "'steps' is a number",
        ),
        (
            "[[fault]]\ndo = 'hang'\nsteps = 1",
            3,
            "unknown key 'steps' of hang",
        ),
        (
            "[[fault]]\ndo = 'hang'\non_abort = 'maybe'",
            3,
            "'on_abort' is one of",
        ),
        ("[[fault]]\ndo = 'hang'\nqueue = 'fast'", 3, "'queue' is"),
        ("[[fault]]\ndo = 'hang'\nqueue = 65536", 3, "'queue' is"),
        ("[[fault]]\ndo = 'hang'\nopcode = 256", 3, "'opcode' is"),
        ("[[fault]]\ndo = 'hang'\nopcode = 'eat'", 3, "'opcode' is"),
        (
            "[[fault]]\ndo = 'hang'\nqueue = 'admin'\nopcode = 'read'",
            4,
            "not of that queue",
        ),
        (
            "[[fault]]\ndo = 'hang'\nqueue = 0\nopcode = 'read'",
            4,
            "not of that queue",
        ),
        ("[[fault]]\ndo = 'hang'\nlba = [1]", 3, "[first, last]"),
        (
            "[[fault]]\ndo = 'hang'\nlba = [2,\n'x']",
            4,
            "'lba' is a number",
        ),
        (
            "[[fault]]\ndo = 'hang'\nlba = [2, 1]",
            3,
            "before the first",
        ),
        ("[[fault]]\ndo = 'hang'\nnth = 0", 3, "'nth' is"),
        ("[[fault]]\ndo = 'hang'\ntimes = 0", 3, "'times' is"),
        ("[[fault]]\ndo = 'hang'\nnsid = 4294967296", 3, "'nsid' is"),
        (
            "[[fault]]\ndo = 'hang'\nat_step = 1\nafter_commands = 1",
            1,
            "either",
        ),
        ("[[fault]]\ndo = 'status'\nsct = 8\nsc = 0", 3, "'sct' is"),
        ("[[fault]]\ndo = 'flip-status'\nbits = 0", 3, "'bits' is"),
        (
            "[[fault]]\ndo = 'wrong-cid'\nvalue = 65536",
            3,
            "'value' is",
        ),
        ("[[fault]]\ndo = 'junk-data'", 1, "'data' is missing"),
        ("[[fault]]\ndo = 'junk-data'\ndata = []", 3, "'data' is"),
        ("[[fault]]\ndo = 'junk-data'\ndata = [256]", 3, "'data' is"),
        (
            "[[fault]]\ndo = 'junk-data'\ndata = 'ones'\nseed = 1",
            4,
            "unknown key 'seed'",
        ),
        ("[[fault]]\ndo = 'media-error'", 1, "'lba' is missing"),
        (
            "[[fault]]\ndo = 'media-error'\nlba = 1\nnth = 2",
            4,
            "unknown key 'nth'",
        ),
        (
            "[[fault]]\ndo = 'gone'\nopcode = 'read'",
            3,
            "unknown key 'opcode' of gone",
        ),
        (
            "[[fault]]\ndo = 'fatal'\nuntil = 'cleared'",
            3,
            "unknown key 'until'",
        ),
        ("[[fault]]\ndo = = 'gone'", 2, ""),
    ] {
        let error = FaultScript::parse(text).unwrap_err();
        assert!(
            error.line == line && error.message.contains(word),
            "{text:?}: {error}"
        );
    }
    let many = "[[fault]]\ndo = 'fatal'\n".repeat(FAULTS_MAX + 1);
    let error = FaultScript::parse(&many).unwrap_err();
    assert_eq!(error.line, 2 * FAULTS_MAX + 1);
    assert!(FaultScript::parse(&"#".repeat(BYTES_MAX + 1)).is_err());
}
