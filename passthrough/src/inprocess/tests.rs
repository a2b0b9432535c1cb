use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{AdminData, CommandError, Controller, Options};
use nvme_vfio_emulator::{CommandFault, Emulator, Fault, Matcher, TraceEvent};
use nvme_vfio_queues::Status;
use nvme_vfio_queues::command::{Cns, Identify};

use super::*;
use crate::audit::{AuditOptions, Auditor};
use crate::client::{Client, ClientId};
use crate::command::{Class, DecodedCommand, Direction, Persistence, QueueKind, Scope};
use crate::reason::Reason;
use crate::verdict::Verdict;

mod anew;

const BLOCK: usize = 512;

struct Bench {
    emulator: Arc<Emulator>,
    controller: Controller,
}

impl Bench {
    fn new() -> Bench {
        let emulator = Emulator::new("size=16M".parse().unwrap()).unwrap();
        let transport = EmulatedTransport::stepped(Arc::clone(&emulator));
        let controller =
            Controller::with_transport(Arc::new(transport), Options::default()).unwrap();
        Bench {
            emulator,
            controller,
        }
    }
}

fn block(opcode: u8, lba: u32, blocks: u32) -> RawCommand {
    RawCommand {
        opcode,
        nsid: 1,
        cdw10: lba,
        cdw12: blocks - 1,
        ..RawCommand::default()
    }
}

fn write<P: Policy + ?Sized>(to: &mut InProcess<P>, lba: u32, data: &[u8]) {
    let command = block(0x01, lba, (data.len() / BLOCK) as u32);
    to.io_passthru(&command, AdminData::ToController(data))
        .unwrap();
}

fn read<P: Policy + ?Sized>(from: &mut InProcess<P>, lba: u32, blocks: u32) -> Vec<u8> {
    let mut data = vec![0xee; blocks as usize * BLOCK];
    from.io_passthru(
        &block(0x02, lba, blocks),
        AdminData::FromController(&mut data),
    )
    .unwrap();
    data
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, PassthroughError>) -> Reason {
    match result {
        Err(PassthroughError::Refused { refusal }) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_on_blocks_do_what_they_say() {
    let bench = Bench::new();
    let mut through = bench.controller.passthrough();
    // More than two pages, so that there is a PRP list.
    let data: Vec<u8> = (0..40 * BLOCK).map(|at| (at / BLOCK) as u8 + 1).collect();
    write(&mut through, 100, &data);
    assert_eq!(read(&mut through, 100, 40), data);

    let same = block(0x05, 100, 40);
    through
        .io_passthru(&same, AdminData::ToController(&data))
        .unwrap();
    let mut other = data.clone();
    other[7] ^= 1;
    let error = through
        .io_passthru(&same, AdminData::ToController(&other))
        .unwrap_err();
    assert!(
        matches!(&error, PassthroughError::Command(CommandError::Status(status)) if status.is(Status::COMPARE_FAILURE)),
        "{error}"
    );

    // Copy blocks 100 and 105 to 110 to block 200.
    let mut list = Vec::new();
    for (first, blocks) in [(100_u64, 1_u16), (105, 5)] {
        let mut source = [0; 32];
        source[8..16].copy_from_slice(&first.to_le_bytes());
        source[16..18].copy_from_slice(&(blocks - 1).to_le_bytes());
        list.extend(source);
    }
    let copy = RawCommand {
        cdw12: 1,
        ..block(0x19, 200, 1)
    };
    through
        .io_passthru(&copy, AdminData::ToController(&list))
        .unwrap();
    let copied = read(&mut through, 200, 6);
    assert_eq!(
        copied
            .chunks(BLOCK)
            .map(|block| block[0])
            .collect::<Vec<_>>(),
        [1, 6, 7, 8, 9, 10]
    );

    through
        .io_passthru(&block(0x08, 100, 2), AdminData::None)
        .unwrap();
    assert!(read(&mut through, 100, 2).iter().all(|byte| *byte == 0));
    assert_eq!(read(&mut through, 102, 1), data[2 * BLOCK..3 * BLOCK]);

    // Two ranges: 4 blocks from 110, 1 from 120.
    let mut ranges = Vec::new();
    for (first, blocks) in [(110_u64, 4_u32), (120, 1)] {
        ranges.extend([0; 4]);
        ranges.extend(blocks.to_le_bytes());
        ranges.extend(first.to_le_bytes());
    }
    let deallocate = RawCommand {
        cdw10: 1,
        cdw11: 4,
        cdw12: 0,
        ..block(0x09, 0, 1)
    };
    through
        .io_passthru(&deallocate, AdminData::ToController(&ranges))
        .unwrap();
    for (lba, gone) in [
        (109, false),
        (110, true),
        (113, true),
        (114, false),
        (120, true),
    ] {
        let zero = read(&mut through, lba, 1).iter().all(|byte| *byte == 0);
        assert_eq!(zero, gone, "block {lba}");
    }

    through
        .io_passthru(&block(0x0c, 100, 40), AdminData::None)
        .unwrap();
    through
        .io_passthru(&block(0x04, 130, 1), AdminData::None)
        .unwrap();
    let mut data = vec![0; BLOCK];
    let error = through
        .io_passthru(&block(0x02, 130, 1), AdminData::FromController(&mut data))
        .unwrap_err();
    assert!(
        matches!(&error, PassthroughError::Command(CommandError::Status(status)) if status.is(Status::UNRECOVERED_READ_ERROR)),
        "{error}"
    );
    let flush = RawCommand {
        opcode: 0,
        nsid: 1,
        ..RawCommand::default()
    };
    through.io_passthru(&flush, AdminData::None).unwrap();
    assert_eq!(bench.emulator.iommu().fault_count(), 0);
}

#[test]
fn admin_commands_bring_their_data_and_their_result() {
    let bench = Bench::new();
    let mut through = bench.controller.passthrough();
    let identify = RawCommand {
        opcode: 0x06,
        nsid: 1,
        ..RawCommand::default()
    };
    let mut data = vec![0x77; 8192];
    through
        .admin_passthru(&identify, AdminData::FromController(&mut data))
        .unwrap();
    let expected = bench
        .controller
        .identify_raw(Identify::new(Cns::NAMESPACE, 1))
        .unwrap();
    assert_eq!(data[..4096], expected);
    assert!(
        data[4096..].iter().all(|byte| *byte == 0x77),
        "nothing was moved there"
    );

    let get = |select: u32| RawCommand {
        opcode: 0x0a,
        cdw10: 4 | select << 8,
        ..RawCommand::default()
    };
    let set = RawCommand {
        opcode: 0x09,
        cdw10: 4,
        cdw11: 300,
        ..RawCommand::default()
    };
    through.admin_passthru(&set, AdminData::None).unwrap();
    let ended = through.admin_passthru(&get(0), AdminData::None).unwrap();
    assert_eq!(ended.result(), 300);

    let format = RawCommand {
        opcode: 0x80,
        nsid: 1,
        ..RawCommand::default()
    };
    write(&mut through, 0, &[1; BLOCK]);
    through.admin_passthru(&format, AdminData::None).unwrap();
    assert!(read(&mut through, 0, 1).iter().all(|byte| *byte == 0));

    let wrong = RawCommand {
        cdw10: 0x77,
        opcode: 0x80,
        nsid: 1,
        ..RawCommand::default()
    };
    let needs = through.needs(QueueKind::Admin, &format, &[]).unwrap();
    assert_eq!(
        (needs.class, needs.direction, needs.length),
        (Class::Format, Direction::None, Some(0))
    );
    let error = through.admin_passthru(&wrong, AdminData::None).unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[test]
fn what_carries_addresses_or_belongs_to_the_driver_never_passes() {
    let bench = Bench::new();
    let trace = bench.emulator.trace(1024).unwrap();
    let mut through = bench.controller.passthrough();
    drop(trace.take());
    for opcode in [
        0x00, 0x01, 0x04, 0x05, 0x0c, 0x7c, 0x45, 0x1c, 0x42, 0x7f, 0x03,
    ] {
        let command = RawCommand {
            opcode,
            cdw10: 1,
            ..RawCommand::default()
        };
        let reason = refused(through.admin_passthru(&command, AdminData::None));
        assert!(
            matches!(
                reason,
                Reason::NeverPasses
                    | Reason::UnknownOpcode
                    | Reason::ReservedBit
                    | Reason::IllegalValue
            ),
            "{opcode:#x}: {reason:?}"
        );
    }
    // Host memory buffer, number of queues, controller data queue.
    for fid in [0x0d, 0x07, 0x21] {
        let command = RawCommand {
            opcode: 0x09,
            cdw10: fid,
            cdw11: 1,
            ..RawCommand::default()
        };
        refused(through.admin_passthru(&command, AdminData::ToController(&[0; 4096])));
    }
    for command in [
        RawCommand {
            flags: 0x40,
            ..block(0x02, 0, 1)
        },
        RawCommand {
            flags: 0x01,
            ..block(0x02, 0, 1)
        },
        RawCommand {
            metadata_length: 8,
            ..block(0x02, 0, 1)
        },
        RawCommand {
            nsid: 0,
            ..block(0x02, 0, 1)
        },
        block(0x02, 32_768, 1),
        block(0x02, 32_767, 2),
    ] {
        let mut data = [0; 2 * BLOCK];
        refused(through.io_passthru(&command, AdminData::FromController(&mut data)));
        assert_eq!(data, [0; 2 * BLOCK]);
    }
    // The looks at the namespace alone reached the controller: two structures and its descriptors, at most, for each of the six.
    let sent: Vec<u8> = trace
        .take()
        .iter()
        .filter_map(|record| match record.event {
            TraceEvent::Command { opcode, .. } => Some(opcode),
            _ => None,
        })
        .collect();
    assert!(
        !sent.is_empty() && sent.iter().all(|opcode| *opcode == 0x06),
        "{sent:x?}"
    );
}

#[test]
fn a_buffer_of_another_length_or_direction_reaches_nobody() {
    let bench = Bench::new();
    let mut through = bench.controller.passthrough();
    let before = read(&mut through, 0, 2);
    let short = vec![9; 2 * BLOCK - 4];
    let error = through
        .io_passthru(&block(0x01, 0, 2), AdminData::ToController(&short))
        .unwrap_err();
    assert!(
        matches!(
            error,
            PassthroughError::BufferTooSmall {
                needed: 1024,
                given: 1020,
                ..
            }
        ),
        "{error}"
    );
    for data in [
        AdminData::ToController(&[9; 1024]),
        AdminData::FromController(&mut [9; 1024]),
    ] {
        let to_controller = matches!(data, AdminData::ToController(_));
        let opcode = if to_controller { 0x02 } else { 0x01 };
        let error = through.io_passthru(&block(opcode, 0, 2), data).unwrap_err();
        assert!(
            matches!(error, PassthroughError::Direction { .. }),
            "{error}"
        );
    }
    let error = through
        .io_passthru(&block(0x08, 0, 2), AdminData::ToController(&[9; 4]))
        .unwrap_err();
    assert!(
        matches!(error, PassthroughError::Direction { .. }),
        "{error}"
    );
    let ranges = RawCommand {
        cdw10: 3,
        cdw11: 4,
        cdw12: 0,
        ..block(0x09, 0, 1)
    };
    let error = through
        .io_passthru(&ranges, AdminData::ToController(&[0; 48]))
        .unwrap_err();
    assert!(
        matches!(
            error,
            PassthroughError::BufferTooSmall {
                needed: 64,
                given: 48,
                ..
            }
        ),
        "{error}"
    );
    let error = through
        .admin_passthru(
            &RawCommand {
                opcode: 0x06,
                cdw10: 1,
                ..RawCommand::default()
            },
            AdminData::None,
        )
        .unwrap_err();
    assert!(
        matches!(error, PassthroughError::BufferTooSmall { needed: 4096, .. }),
        "{error}"
    );
    assert_eq!(read(&mut through, 0, 2), before);
}

#[test]
fn the_data_of_a_command_that_does_not_tell_its_length_begins_as_zeros() {
    let bench = Bench::new();
    let mut through = bench.controller.passthrough();
    let vendor = RawCommand {
        opcode: 0xc2,
        ..RawCommand::default()
    };
    let mut data = [0xff; 8192];
    let error = through
        .admin_passthru(&vendor, AdminData::FromController(&mut data))
        .unwrap_err();
    assert!(
        matches!(&error, PassthroughError::Driver(nvme_vfio::Error::Status { status, .. }) if status.is(Status::INVALID_OPCODE)),
        "{error}"
    );
    assert_eq!(data, [0; 8192]);
}

#[test]
fn blocks_with_metadata_are_refused_before_they_are_moved() {
    let bench = Bench::new();
    let mut through = bench.controller.passthrough();
    // The namespace says that each block has eight bytes of metadata.
    let mut identify = bench
        .controller
        .identify_raw(Identify::new(Cns::NAMESPACE, 1))
        .unwrap();
    identify[128..130].copy_from_slice(&8_u16.to_le_bytes());
    bench.emulator.inject(Fault::on(
        Matcher::admin().opcode(0x06).dword10(0),
        CommandFault::JunkData(identify),
    ));
    let mut data = [0; BLOCK];
    let error = through
        .io_passthru(&block(0x02, 0, 1), AdminData::FromController(&mut data))
        .unwrap_err();
    assert!(
        matches!(&error, PassthroughError::Unsupported { what } if what.contains("8 bytes")),
        "{error}"
    );
    through
        .io_passthru(&block(0x08, 0, 1), AdminData::None)
        .unwrap();
}

/// Refuses one class, and keeps what it was asked.
#[derive(Debug)]
struct NoWrites(Mutex<Vec<Class>>);

impl Policy for NoWrites {
    fn authorize(&self, command: &DecodedCommand<'_>, client: &Client) -> Verdict {
        assert_eq!(&*client.name, "owner");
        self.0.lock().unwrap().push(command.class);
        match command.class {
            Class::Write => Verdict::Deny(Reason::ClassNotGranted.refusal()),
            _ => Verdict::Allow,
        }
    }
}

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn another_policy_decides_and_the_audit_has_every_command() {
    let bench = Bench::new();
    let kept = Kept::default();
    let options = AuditOptions {
        sample_allowed_io: 1,
        ..AuditOptions::default()
    };
    let auditor = Auditor::start(kept.clone(), options).unwrap();
    let policy = Arc::new(NoWrites(Mutex::default()));
    let gate = Gate::new(
        Arc::clone(&policy),
        owner(),
        Decoder::for_owner(),
        auditor.client(ClientId(0), "owner", 1),
    );
    let mut through = bench.controller.passthrough_by(gate);
    let before = read(&mut through, 5, 1);
    let result = through.io_passthru(&block(0x01, 5, 1), AdminData::ToController(&[1; BLOCK]));
    assert_eq!(refused(result), Reason::ClassNotGranted);
    assert_eq!(read(&mut through, 5, 1), before);
    let queue = RawCommand {
        opcode: 0x01,
        cdw10: 1,
        ..RawCommand::default()
    };
    refused(through.admin_passthru(&queue, AdminData::None));
    assert_eq!(
        *policy.0.lock().unwrap(),
        [Class::Read, Class::Write, Class::Read]
    );
    drop(through);
    auditor.finish().unwrap();
    let lines = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let commands: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line.to_string().contains("opcode"))
        .collect();
    assert_eq!(commands.len(), 4, "{lines}");
    assert!(
        lines.contains("class-not-granted") && lines.contains("never-passes"),
        "{lines}"
    );
}

#[test]
fn what_a_command_needs_is_told_without_it() {
    let bench = Bench::new();
    let through = bench.controller.passthrough();
    let before = bench.emulator.statistics().commands;
    let needs = through
        .needs(QueueKind::Io, &block(0x01, 7, 3), &[])
        .unwrap();
    assert_eq!(
        (needs.name, needs.class, needs.direction, needs.length),
        ("Write", Class::Write, Direction::ToController, Some(1536))
    );
    assert_eq!((needs.extents[0].first, needs.extents[0].blocks), (7, 3));
    assert_eq!(needs.persistence, Persistence::Media);
    assert_eq!(needs.scope, Scope::Extents);
    // A vendor's command does not tell.
    let vendor = RawCommand {
        opcode: 0xc2,
        ..RawCommand::default()
    };
    let needs = through.needs(QueueKind::Admin, &vendor, &[]).unwrap();
    assert_eq!(
        (needs.class, needs.direction, needs.length),
        (Class::Vendor, Direction::FromController, None)
    );
    assert_eq!(
        InProcess::<OwnerPolicy>::list_bytes(
            QueueKind::Io,
            &RawCommand {
                cdw10: 3,
                cdw12: 0,
                ..block(0x09, 0, 1)
            }
        )
        .unwrap(),
        64
    );
    // Looks at the namespace, and nothing else.
    assert!(bench.emulator.statistics().commands - before <= 4);
}
