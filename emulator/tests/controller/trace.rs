//! A trace tells all that the controller did, and the same twice.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvme_vfio_emulator::{
    CommandFault, DmaDirection, Fault, FaultReason, Matcher, TraceEvent, TracePurpose,
};

use crate::host::*;

/// A run with a bit of everything, and its trace as JSON lines.
fn run() -> String {
    let mut host = Host::new("size=1M,latency.read=exp:3us,latency.admin=1us..3us");
    let trace = host.emulator.trace(1 << 16).unwrap();
    host.enable();
    host.create_queue(1, 8);
    let memory = host.memory(8192);
    for (fault, lba) in [
        (CommandFault::Delay(3), 1),
        (CommandFault::Reorder(1), 2),
        (CommandFault::WrongCid(0xfff0), 3),
        (CommandFault::DuplicateCompletion, 4),
        (CommandFault::RandomData(7), 5),
    ] {
        host.emulator
            .inject(Fault::on(Matcher::io().times(1), fault));
        host.submit(1, Host::transfer(1, lba, 8, memory.iova().0, 0));
        host.submit(1, Host::transfer(2, lba, 8, memory.iova().0, 0));
        for _ in 0..5 {
            host.emulator.step();
        }
        while host.take(1).is_some() {}
    }
    host.emulator.reset();
    let mut text = Vec::new();
    assert!(trace.write_json(&mut text).unwrap() > 50);
    assert_eq!(trace.lost(), 0);
    String::from_utf8(text).unwrap()
}

#[test]
fn two_stepped_runs_have_the_same_trace_byte_by_byte() {
    let (first, second) = (run(), run());
    assert!(first == second, "{first}\n----\n{second}");
    for line in first.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            value["event"].is_string() && value["sequence"].is_u64(),
            "{line}"
        );
        assert!(value.get("time").is_none(), "time differs from run to run");
    }
}

#[test]
fn one_read_is_told_from_its_doorbell_to_its_completion() {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(4096);
    let iova = memory.iova().0;
    let trace = host.emulator.trace(1000).unwrap();
    assert!(host.emulator.trace(1000).is_none(), "one reader at a time");
    let cid = host.submit(1, Host::transfer(2, 0, 8, iova, 0));
    host.emulator.step();
    let entry = host.take(1).unwrap();
    let records = trace.take();
    let sequences: Vec<u64> = records.iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, (0..records.len() as u64).collect::<Vec<_>>());
    let ring = &host.rings[&1];
    let (submission, completion) = (ring.submission.iova().0, ring.completion.iova().0);
    let events: Vec<TraceEvent> = records.into_iter().map(|record| record.event).collect();
    let dwords = match &events[2] {
        TraceEvent::Command { dwords, .. } => *dwords,
        other => panic!("{other:?}"),
    };
    assert_eq!((dwords[6], dwords[12]), (iova as u32, 7));
    assert_eq!(
        events,
        [
            TraceEvent::Doorbell {
                qid: 1,
                completion: false,
                value: 1
            },
            TraceEvent::Dma {
                iova: submission,
                length: 64,
                direction: DmaDirection::FromHost,
                purpose: TracePurpose::SubmissionFetch { sqid: 1 },
            },
            TraceEvent::Command {
                sqid: 1,
                cid,
                opcode: 2,
                nsid: 1,
                dwords
            },
            TraceEvent::Dma {
                iova,
                length: 4096,
                direction: DmaDirection::ToHost,
                purpose: TracePurpose::Data { sqid: 1, cid },
            },
            TraceEvent::Dma {
                iova: completion,
                length: 16,
                direction: DmaDirection::ToHost,
                purpose: TracePurpose::CompletionPost { cqid: 1 },
            },
            TraceEvent::Completion {
                cqid: 1,
                sqid: 1,
                cid,
                status: 0,
                result: 0,
                sq_head: entry.sq_head,
            },
        ]
    );
    drop(trace);
    host.run(1, Host::transfer(2, 0, 8, iova, 0));
    let again = host.emulator.trace(1000).unwrap();
    assert!(
        again.take().is_empty(),
        "nothing was written down in between"
    );
}

#[test]
fn faults_registers_and_unknown_commands_are_told() {
    let mut host = Host::with_queue("size=1M", 8);
    let trace = host.emulator.trace(1000).unwrap();
    host.write(AQA, 5);
    host.emulator.config_write(4, &[6]);
    host.emulator.inject(Fault::on(
        Matcher::io().opcode(0).times(1),
        CommandFault::NoEffect,
    ));
    let flush = host.submit(1, command(0, 1));
    let unknown = host.submit(1, command(0xc5, 1));
    let lost = host.submit(1, Host::transfer(2, 0, 1, 0x7_0000_0000, 0));
    host.emulator.step();
    host.emulator.reset();
    let events: Vec<TraceEvent> = trace
        .take()
        .into_iter()
        .map(|record| record.event)
        .collect();
    let has = |what: &TraceEvent| assert!(events.contains(what), "{what:?} in {events:#?}");
    has(&TraceEvent::RegisterWrite {
        offset: AQA,
        bytes: 4,
        value: 5,
    });
    has(&TraceEvent::ConfigWrite {
        offset: 4,
        data: vec![6],
    });
    has(&TraceEvent::Fault {
        sqid: 1,
        cid: flush,
        fault: "NoEffect".into(),
    });
    has(&TraceEvent::Unimplemented {
        sqid: 1,
        cid: unknown,
        opcode: 0xc5,
    });
    has(&TraceEvent::IommuFault {
        iova: 0x7_0000_0000,
        length: 512,
        direction: DmaDirection::ToHost,
        purpose: TracePurpose::Data { sqid: 1, cid: lost },
        reason: FaultReason::Unmapped,
    });
    has(&TraceEvent::Reset { function: true });
    let armed = |event: &TraceEvent| matches!(event, TraceEvent::FaultArmed { fault } if fault.contains("NoEffect"));
    assert!(events.iter().any(armed));
}

#[test]
fn the_oldest_records_are_lost_where_nobody_takes_them() {
    let host = Host::enabled("size=1M");
    let trace = host.emulator.trace(4).unwrap();
    for value in 0..10 {
        host.write(AQA, value);
    }
    let kept: Vec<u64> = trace.take().iter().map(|record| record.sequence).collect();
    assert_eq!((kept, trace.lost()), (vec![6, 7, 8, 9], 6));
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_thread_writes_the_trace_to_its_end() {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(4096);
    let written = Shared::default();
    let trace = host.emulator.trace(1 << 16).unwrap();
    let writer = trace.write_to(written.clone()).unwrap();
    let thread = host.emulator.spawn().unwrap();
    for lba in 0..100 {
        host.submit(1, Host::transfer(2, lba, 1, memory.iova().0, 0));
        while host.take(1).is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    drop(thread);
    writer.end().unwrap();
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let reads = text
        .lines()
        .filter(|line| line.contains(r#""event":"completion""#));
    assert_eq!(reads.count(), 100);
    assert!(text.lines().next().unwrap().contains(r#""time":"#));
}
