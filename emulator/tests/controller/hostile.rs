//! Hostile hosts: random commands, registers, doorbells and configuration writes. Nothing panics, and nothing outside the mappings is
//! touched.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use nvme_vfio_dma::{Access, IommuDomain, Iova, MapRegion};
use nvme_vfio_emulator::FaultReason;
use proptest::prelude::*;

use crate::host::*;

/// Mostly small values, some at the edges, some anything.
fn dword() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..16u32,
        2 => (0..16u32, 0..16u32).prop_map(|(high, low)| high << 16 | low),
        1 => Just(u32::MAX),
        1 => Just(0x8000_0000),
        2 => any::<u32>(),
    ]
}

/// Addresses near the host's memory and anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..128u64, prop_oneof![Just(0u64), 0..4096u64]).prop_map(|(page, offset)| 0x10_0000 + page * 4096 + offset),
        1 => Just(0xfee0_0000),
        1 => Just(u64::MAX - 7),
        1 => any::<u64>(),
    ]
}

fn entry() -> impl Strategy<Value = Dwords> {
    let opcode = prop_oneof![5 => 0..0x10u32, 1 => 0..0x100u32, 1 => any::<u32>()];
    (
        opcode,
        dword(),
        address(),
        address(),
        prop::array::uniform6(dword()),
    )
        .prop_map(|(opcode, nsid, prp1, prp2, rest)| {
            let mut dwords = with_prps(command(0, nsid), prp1, prp2);
            dwords[0] = opcode;
            dwords[10..].copy_from_slice(&rest);
            dwords
        })
}

/// Three pages of which the middle one is mapped: the outer ones must stay as they are.
struct Canary {
    words: Vec<u64>,
}

impl Canary {
    const IOVA: Iova = Iova(0x10_0000 + 120 * 4096);
    const WORD: u64 = 0xc0ff_ee00_c0ff_ee00;

    fn new(host: &Host) -> Canary {
        let mut canary = Canary {
            words: vec![Self::WORD; 4 * 512],
        };
        let first = canary.first();
        let middle = canary.words[first + 512..].as_mut_ptr().cast();
        let region = MapRegion {
            pointer: NonNull::new(middle).unwrap(),
            length: 4096,
            descriptor: None,
            access: Access::READ_WRITE,
        };
        // SAFETY: the page is unmapped by `check`, before the vector goes.
        #[allow(unsafe_code)]
        unsafe { host.emulator.iommu().map(&region, Self::IOVA) }.unwrap();
        canary
    }

    /// The first word of the three pages.
    fn first(&self) -> usize {
        self.words.as_ptr().addr().wrapping_neg() % 4096 / 8
    }

    fn check(self, host: &Host) {
        host.emulator.iommu().unmap(Self::IOVA, 4096).unwrap();
        let outer = self
            .words
            .iter()
            .enumerate()
            .filter(|(index, _)| index.wrapping_sub(self.first() + 512) >= 512);
        assert!(outer.map(|(_, word)| *word).all(|word| word == Self::WORD));
    }
}

/// Every fault lies outside the mappings, or goes against their access: one inside would be a false alarm.
fn check_faults(host: &Host) {
    let iommu = host.emulator.iommu();
    let mappings = iommu.mappings();
    for fault in iommu.faults() {
        let mapped = mappings
            .iter()
            .any(|(start, length)| fault.iova >= *start && fault.iova.0 - start.0 < *length as u64);
        match fault.reason {
            FaultReason::Unmapped => assert!(!mapped, "{fault:?}"),
            FaultReason::AccessDenied => assert!(mapped, "{fault:?}"),
            FaultReason::BusMasterOff => {}
            FaultReason::Leaving | FaultReason::NoMemory => {
                unreachable!("{fault:?}: nobody asked for that")
            }
        }
    }
    iommu.clear_faults();
}

fn attack(config: &str, qid: u16, entries: &[Dwords]) {
    let mut host = Host::with_queue(config, 8);
    let _data = host.memory(64 << 10);
    let canary = Canary::new(&host);
    for &entry in entries {
        if host.read(CSTS) != RDY {
            host.write(CC, 0);
            host.enable();
            host.create_queue(1, 8);
        }
        let invalid = host.emulator.statistics().invalid_doorbells;
        host.submit_raw(qid, entry);
        // Queues that a command has made anywhere in memory are used.
        host.ring_doorbell(2 + (entry[15] & 1) as u16, false, entry[14] & 7);
        host.emulator.step();
        host.emulator.step();
        while host.take(qid).is_some() {}
        check_faults(&host);
        host.emulator.step();
        // A command may have written over the completion queue, so that the host lost its place there.
        if host.emulator.statistics().invalid_doorbells > invalid {
            host.write(CC, 0);
        }
    }
    assert!(host.emulator.statistics().commands > entries.len() as u64);
    canary.check(&host);
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(160))]

    #[test]
    fn random_admin_commands(entries in prop::collection::vec(entry(), 64)) {
        attack("size=1M,mdts=0", 0, &entries);
    }

    #[test]
    fn random_io_commands(entries in prop::collection::vec(entry(), 64), large in any::<bool>()) {
        attack(if large { "size=64M,mdts=0,lba=4096,backend=null" } else { "size=1M,mdts=2,nsids=1:3" }, 1, &entries);
    }

    #[test]
    fn random_registers_doorbells_and_configuration(
        acts in prop::collection::vec((0..7u8, prop_oneof![0..0x70u32, Just(0x14u32), any::<u32>()], dword(), any::<u64>()), 200)
    ) {
        let mut host = Host::with_queue("queues=4,dstrd=1", 8);
        for (act, offset, value, wide) in acts {
            match act {
                0 => host.emulator.register_write(offset & !3, 4, value.into()),
                1 => host.emulator.register_write(offset, 8, wide),
                2 => {
                    let _ = host.emulator.register_read(offset, (value & 0xf) as usize);
                }
                3 => {
                    let doorbells = host.emulator.doorbells();
                    doorbells[offset as usize % doorbells.len().min(24)].store(value, Ordering::Release);
                }
                4 => host.emulator.config_write(offset.into(), &value.to_le_bytes()),
                5 => {
                    host.emulator.config_read(offset.into(), &mut [0; 8]);
                    host.emulator.step();
                }
                _ => {
                    host.emulator.step();
                }
            }
        }
        check_faults(&host);
        // However it was left, it can be brought back.
        host.emulator.reset();
        host.emulator.config_write(4, &[6, 0]);
        host.enable();
        prop_assert_eq!(host.read(CSTS), RDY);
        host.create_queue(1, 8);
        prop_assert_eq!(host.run(1, command(0, 1)).status, 0);
    }
}

#[test]
fn a_list_that_chains_to_itself_ends() {
    let mut host = Host::with_queue("size=1G,mdts=0,lba=4096,backend=null", 8);
    let list = host.memory(4096);
    for slot in 0..512 {
        list.write_u64(slot * 8, list.iova().0).unwrap();
    }
    // 256 MiB: 65,536 pages of data, all the same.
    assert_eq!(
        host.run(1, Host::transfer(2, 0, 65536, list.iova().0, list.iova().0))
            .status,
        0
    );
}
