//! Commands that no driver should send: each is answered with the status that the specification gives it, reaches no memory that it should not,
//! and nothing else suffers.

use nvme_vfio::{CommandError, RecoveryLimit};
use nvme_vfio_queues::{BlockCount, Command, DataPointer, Status};

use crate::bench::*;

ways![malformed_commands_end_with_their_status_and_nothing_else];

/// Where nothing is mapped.
const NOWHERE: u64 = 0x7_0000_0000;

fn malformed_commands_end_with_their_status_and_nothing_else(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(8);
    let mut memory = bench.controller.allocate(4096).unwrap();
    memory.fill(0x5a);
    let here = memory.iova().0;
    let data = |prp1, prp2| DataPointer { prp1, prp2 };
    let read = |prp1, prp2, blocks| {
        let blocks = BlockCount::new(blocks).unwrap();
        Command::read(1, 0, blocks, data(prp1, prp2))
    };
    let good = read(here, 0, 8);
    let with = |change: fn(&mut Command)| {
        let mut command = good;
        change(&mut command);
        command
    };
    let size = bench.namespace.blocks();
    let one = BlockCount::ONE;
    for (what, command, status, faults) in [
        (
            "an opcode that is not implemented",
            with(|it| it.opcode = 0x7f),
            Status::INVALID_OPCODE,
            0,
        ),
        (
            "a vendor's opcode",
            with(|it| it.opcode = 0xff),
            Status::INVALID_OPCODE,
            0,
        ),
        ("SGLs", with(|it| it.flags = 0x40), Status::INVALID_FIELD, 0),
        (
            "a reserved PSDT",
            with(|it| it.flags = 0xc0),
            Status::INVALID_FIELD,
            0,
        ),
        (
            "a fused command",
            with(|it| it.flags = 0x01),
            Status::INVALID_FIELD,
            0,
        ),
        (
            "namespace 0",
            with(|it| it.nsid = 0),
            Status::INVALID_NAMESPACE_OR_FORMAT,
            0,
        ),
        (
            "a namespace that is not there",
            with(|it| it.nsid = 2),
            Status::INVALID_NAMESPACE_OR_FORMAT,
            0,
        ),
        (
            "all namespaces",
            with(|it| it.nsid = u32::MAX),
            Status::INVALID_NAMESPACE_OR_FORMAT,
            0,
        ),
        (
            "a block past the end",
            Command::read(1, size, one, data(here, 0)),
            Status::LBA_OUT_OF_RANGE,
            0,
        ),
        (
            "an LBA that wraps",
            Command::write(1, u64::MAX, one, data(here, 0)),
            Status::LBA_OUT_OF_RANGE,
            0,
        ),
        (
            "more than MDTS",
            with(|it| it.cdw12 = 0xffff),
            Status::INVALID_FIELD,
            0,
        ),
        (
            "a directive",
            Command {
                opcode: 1,
                cdw12: 7 | 1 << 20,
                ..good
            },
            Status::INVALID_FIELD,
            0,
        ),
        (
            "a PRP1 that is not aligned",
            read(here + 2, 0, 1),
            Status::PRP_OFFSET_INVALID,
            0,
        ),
        (
            "a PRP2 with an offset",
            read(here, here + 512, 9),
            Status::PRP_OFFSET_INVALID,
            0,
        ),
        (
            "a PRP list that is not aligned",
            read(here, here + 4, 64),
            Status::PRP_OFFSET_INVALID,
            0,
        ),
        (
            "data that is not mapped",
            read(NOWHERE, 0, 8),
            Status::DATA_TRANSFER_ERROR,
            1,
        ),
        (
            "a second page that is not mapped",
            read(here, NOWHERE, 16),
            Status::DATA_TRANSFER_ERROR,
            1,
        ),
        (
            "a PRP list that is not mapped",
            read(here, NOWHERE, 64),
            Status::DATA_TRANSFER_ERROR,
            1,
        ),
    ] {
        let before = bench.emulator.iommu().fault_count();
        // SAFETY: the only memory that is mapped is `memory`, which is kept and not touched until the command has ended; what lies
        // elsewhere is refused by the software IOMMU.
        #[allow(unsafe_code)]
        unsafe { queue.submit_raw(command, 1) }.unwrap();
        let (_, result, _) = result_of(&mut queue);
        let Err(CommandError::Status(answer)) = result else {
            panic!("{what}: {result:?}")
        };
        assert!(answer.is(status), "{what}: {answer}");
        let after = bench.emulator.iommu().fault_count();
        assert_eq!(after - before, faults, "{what}");
        assert!(
            memory.iter().all(|byte| *byte == 0x5a),
            "{what}: nothing moved"
        );
    }
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(&mut queue);
}
