//! Entries made anew are those that were given.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::super::build::build;
use super::super::*;
use crate::command::{CommandSet, Geometry, QueueKind};

const GEOMETRY: Geometry = Geometry {
    command_set: CommandSet::NVM,
    blocks: 1 << 33,
    block_shift: 12,
    max_transfer: 1 << 20,
    max_blocks: 65_536,
    copy_ranges: 256,
    copy_range_blocks: u32::MAX,
    copy_blocks: u32::MAX,
};

fn words(command: &nvme_vfio_queues::Command) -> [u32; 8] {
    [
        command.cdw2,
        command.cdw3,
        command.cdw10,
        command.cdw11,
        command.cdw12,
        command.cdw13,
        command.cdw14,
        command.cdw15,
    ]
}

#[test]
fn block_status_is_made_anew_from_its_range() {
    let mut gate = Gate::new(
        Arc::new(OwnerPolicy),
        owner(),
        Decoder::for_owner(),
        ClientAudit::detached("owner"),
    );
    for (first, range) in [(5_u64, 7), (GEOMETRY.blocks - 70_000, 0), (0, 65_535)] {
        let raw = RawCommand {
            opcode: 0x86,
            nsid: 1,
            cdw10: first as u32,
            cdw11: (first >> 32) as u32,
            cdw12: 31,
            cdw13: 0x10 << 24 | range,
            ..RawCommand::default()
        };
        let passed = gate
            .check(
                QueueKind::Admin,
                Some(&GEOMETRY),
                &raw.entry(),
                &[],
                Instant::now(),
            )
            .unwrap();
        let built = build(&passed);
        let expected = [0, 0, raw.cdw10, raw.cdw11, raw.cdw12, raw.cdw13, 0, 0];
        assert_eq!(words(&built.command), expected);
    }
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(5_000))]

    /// What the controller gets says what was given, bit for bit, where it passes.
    #[test]
    fn an_entry_made_anew_is_the_one_that_was_given(
        admin: bool,
        opcode: u8,
        nsid in prop_oneof![Just(0), Just(1), Just(u32::MAX)],
        few in proptest::array::uniform8(prop_oneof![4 => 0_u32..256, 1 => any::<u32>()]),
        zero in proptest::array::uniform8(prop_oneof![3 => Just(0_u32), 1 => Just(u32::MAX)]),
    ) {
        let [cdw2, cdw3, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] =
            std::array::from_fn(|at| few[at] & zero[at]);
        let raw = RawCommand {
            opcode, flags: 0, nsid, cdw2, cdw3, metadata_length: 0, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15,
        };
        let kind = if admin { QueueKind::Admin } else { QueueKind::Io };
        let entry = raw.entry();
        let list: Vec<u8> = (0..Decoder::list_bytes(kind, CommandSet::NVM, &entry).unwrap_or(0))
            .map(|at| match at % if opcode == 0x19 { 32 } else { 16 } {
                8 => at as u8,
                4 if opcode == 0x09 => 3,
                _ => 0,
            })
            .collect();
        let mut gate = Gate::new(
            Arc::new(OwnerPolicy), owner(), Decoder::for_owner(), ClientAudit::detached("owner"));
        let geometry = (nsid == 1).then_some(&GEOMETRY);
        if let Ok(passed) = gate.check(kind, geometry, &entry, &list, Instant::now()) {
            let built = build(&passed);
            // The Dataset Management field of reads and writes says only how the data will be used, and is not passed on.
            let hints = if !admin && matches!(opcode, 0x01 | 0x02) { 0xff } else { 0 };
            prop_assert_eq!(built.command.opcode, opcode);
            prop_assert_eq!((built.command.flags, built.command.nsid), (0, nsid));
            prop_assert_eq!((built.command.mptr, built.command.prp1, built.command.prp2), (0, 0, 0));
            prop_assert_eq!(
                words(&built.command),
                [cdw2, cdw3, cdw10, cdw11, cdw12, cdw13 & !hints, cdw14, cdw15]
            );
            prop_assert_eq!(built.list, list);
        }
    }
}
