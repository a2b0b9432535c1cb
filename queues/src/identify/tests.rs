mod positions;

use core::mem::offset_of;
use core::time::Duration;

use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::*;
use crate::prp::PageSize;
use crate::status::Status;

#[test]
fn power_state_positions_and_units() {
    for (offset, expected) in [
        (offset_of!(PowerState, flags), 3),
        (offset_of!(PowerState, enlat), 4),
        (offset_of!(PowerState, exlat), 8),
        (offset_of!(PowerState, rrt), 12),
        (offset_of!(PowerState, rwl), 15),
        (offset_of!(PowerState, idlp), 16),
        (offset_of!(PowerState, ips), 18),
        (offset_of!(PowerState, actp), 20),
        (offset_of!(PowerState, apws), 22),
    ] {
        assert_eq!(offset, expected);
    }
    let mut state = PowerState {
        mp: U16::new(900),
        ..PowerState::default()
    };
    assert_eq!(state.max_power_microwatts(), 9_000_000);
    assert!(!state.is_non_operational());
    assert_eq!(state.idle_power_microwatts(), None);
    state.flags = 0b11;
    state.idlp = U16::new(50);
    state.ips = 1 << 6;
    state.actp = U16::new(u16::MAX);
    state.apws = 2 << 6 | 1;
    assert_eq!(state.max_power_microwatts(), 90_000);
    assert!(state.is_non_operational());
    assert_eq!(state.idle_power_microwatts(), Some(5_000));
    assert_eq!(state.active_power_microwatts(), Some(655_350_000));
    assert_eq!(state.active_power_workload(), 1);
}

#[test]
fn text_is_trimmed_and_safe_to_print() {
    assert_eq!(
        Ascii::new(b"  QEMU NVMe Ctrl   \0\0").to_string(),
        "QEMU NVMe Ctrl"
    );
    assert_eq!(Ascii::new(b"    ").to_string(), "");
    assert!(Ascii::new(b"\0\0  ").is_empty());
    assert!(Ascii::new(b"").is_empty());
    assert_eq!(
        Ascii::new(b"a\x1b[2J\xff\\n").to_string(),
        r"a\x1b[2J\xff\\n"
    );
    assert_eq!(Ascii::new(b"a\0b").to_string(), r"a\x00b");
    assert_eq!(Ascii::zero_terminated(b"nqn.x\0junk").to_string(), "nqn.x");
    assert_eq!(Ascii::zero_terminated(b"nqn").as_bytes(), b"nqn");
    assert_eq!(format!("[{:>6}]", Ascii::new(b"ab ")), "[    ab]");
}

#[test]
fn controller_accessors() {
    let mut controller = IdentifyController::new_zeroed();
    controller.sn[..3].copy_from_slice(b"abc");
    controller.ieee = [0x75, 0xa0, 0x00];
    assert_eq!(controller.serial_number().to_string(), "abc");
    assert_eq!(controller.ieee_oui(), 0x00_a075);
    assert_eq!(controller.max_data_transfer(PageSize::KIB_4), None);
    controller.mdts = 1;
    assert_eq!(controller.max_data_transfer(PageSize::KIB_4), Some(8192));
    controller.mdts = 5;
    assert_eq!(
        controller.max_data_transfer(PageSize::new(65_536).unwrap()),
        Some(2 << 20)
    );
    for mdts in [52, 63, 64, 255] {
        controller.mdts = mdts;
        assert_eq!(
            controller.max_data_transfer(PageSize::KIB_4),
            None,
            "{mdts}"
        );
    }
    controller.crdt2 = U16::new(3);
    assert_eq!(
        controller.retry_delay(Status::from_raw(2 << 11 | 0x21)),
        Duration::from_millis(300)
    );
    assert_eq!(
        controller.retry_delay(Status::from_raw(0x21)),
        Duration::ZERO
    );
    assert_eq!(controller.power_states().len(), 1);
    controller.npss = 4;
    assert_eq!(controller.power_states().len(), 5);
    controller.npss = 255;
    assert_eq!(controller.power_states().len(), 32);
    controller.aerl = 255;
    assert_eq!(controller.async_event_limit(), 256);
    assert!(!controller.supports_standard_entry_sizes());
    (controller.sqes, controller.cqes) = (0x66, 0x44);
    assert!(controller.supports_standard_entry_sizes());
    controller.sqes = 0x77;
    assert!(!controller.supports_standard_entry_sizes());
    (controller.sqes, controller.cqes) = (0x76, 0x33);
    assert!(!controller.supports_standard_entry_sizes());
    controller.oacs = U16::new(0x100);
    assert!(controller.supports_doorbell_buffer());
    controller.vwc = 0b110;
    assert!(!controller.has_volatile_write_cache());
}

fn namespace(nlbaf: u8, flbas: u8) -> IdentifyNamespace {
    let mut namespace = IdentifyNamespace::new_zeroed();
    (namespace.nlbaf, namespace.flbas) = (nlbaf, flbas);
    for (index, format) in (0u16..).zip(&mut namespace.lbaf) {
        *format = LbaFormat {
            ms: U16::new(index),
            lbads: 9,
            rp: 0,
        };
    }
    namespace
}

#[test]
fn lbads_out_of_range_is_no_block_size() {
    let size = |lbads| {
        LbaFormat {
            lbads,
            ..LbaFormat::default()
        }
        .block_size()
    };
    for lbads in 0..=255 {
        let expected = (9..=16).contains(&lbads).then(|| 1 << lbads);
        assert_eq!(size(lbads), expected, "{lbads}");
    }
}

#[test]
fn flbas_beyond_nlbaf_is_no_format() {
    assert_eq!(namespace(0, 0).block_size(), Some(512));
    assert_eq!(namespace(0, 1).block_size(), None);
    assert_eq!(namespace(3, 3).metadata_size(), Some(3));
    assert_eq!(namespace(3, 4).metadata_size(), None);
    // Sixteen formats: the high bits mean nothing.
    assert_eq!(namespace(15, 0b110_0010).metadata_size(), Some(2));
    // Seventeen: they do.
    assert_eq!(namespace(16, 0b010_0000).metadata_size(), Some(16));
    assert_eq!(namespace(16, 0b010_0001).metadata_size(), None);
    assert_eq!(namespace(63, 0b110_1111).metadata_size(), Some(63));
    assert_eq!(namespace(63, 0b101_1111).metadata_size(), Some(47));
    assert!(namespace(63, 0b001_0000).metadata_extends_data());
    assert_eq!(namespace(255, 0).lba_formats().len(), 64);
    let mut unique = namespace(0, 2);
    unique.nulbaf = 2;
    assert_eq!(unique.metadata_size(), Some(2));
}

#[test]
fn namespace_accessors() {
    let mut namespace = namespace(0, 0);
    assert!(!namespace.is_active());
    namespace.nsze = U64::new(2048);
    assert!(namespace.is_active());
    assert_eq!(namespace.size_bytes(), Some(1 << 20));
    namespace.nsze = U64::new(u64::MAX);
    assert_eq!(namespace.size_bytes(), None);
    namespace.dps = 0b1011;
    assert_eq!(namespace.protection_type(), 3);
    namespace.nsattr = 0b11;
    assert!(namespace.is_write_protected());
}

#[test]
fn a_namespace_list_ends_where_it_stops_ascending() {
    let list = |head: &[u32]| {
        let mut list = NamespaceList::new_zeroed();
        for (entry, nsid) in list.nsid.iter_mut().zip(head) {
            *entry = U32::new(*nsid);
        }
        list
    };
    let after = |head: &[u32], after| list(head).iter_after(after).collect::<Vec<_>>();
    assert_eq!(after(&[], 0), []);
    assert_eq!(after(&[1, 2, 7], 0), [1, 2, 7]);
    assert_eq!(after(&[1, 0, 7], 0), [1]);
    assert_eq!(after(&[1, 1, 7], 0), [1]);
    assert_eq!(after(&[5, 4], 0), [5]);
    assert_eq!(after(&[5, 6], 5), []);
    assert_eq!(after(&[5, u32::MAX], 0), [5]);
    let full: Vec<u32> = (1..=1024).collect();
    assert!(list(&full).is_full(0));
    assert!(!list(&full[..1023]).is_full(0));
}

#[test]
fn a_controller_list_is_bounded() {
    let mut list = ControllerList::new_zeroed();
    assert_eq!(list.iter().count(), 0);
    list.num = U16::new(2);
    list.cntlid[1] = U16::new(9);
    assert_eq!(list.iter().collect::<Vec<_>>(), [0, 9]);
    list.num = U16::new(u16::MAX);
    assert_eq!(list.iter().count(), 2047);
}

#[test]
fn descriptors_decode_and_end() {
    let mut list = DescriptorList::new_zeroed();
    let mut bytes = vec![1, 8, 0, 0];
    bytes.extend([0xaa; 8]);
    bytes.extend([3, 16, 0, 0]);
    bytes.extend([0xbb; 16]);
    bytes.extend([4, 1, 0, 0, 2]);
    // Known type, wrong length; then an unknown type.
    bytes.extend([2, 1, 0, 0, 5]);
    bytes.extend([9, 2, 0, 0, 6, 7]);
    list.bytes[..bytes.len()].copy_from_slice(&bytes);
    let found: Vec<_> = list.iter().collect();
    assert_eq!(
        found,
        [
            NamespaceIdentifier::Eui64([0xaa; 8]),
            NamespaceIdentifier::Uuid([0xbb; 16]),
            NamespaceIdentifier::CommandSet(2),
            NamespaceIdentifier::Other { nidt: 2, nid: &[5] },
            NamespaceIdentifier::Other {
                nidt: 9,
                nid: &[6, 7]
            },
        ]
    );
    // A length of zero ends the list, whatever the type.
    let mut list = DescriptorList::new_zeroed();
    list.bytes[..9].copy_from_slice(&[1, 0, 0, 0, 4, 1, 0, 0, 2]);
    assert_eq!(list.iter().count(), 0);
    // 255-byte descriptors: the sixteenth would run past the end.
    let mut list = DescriptorList::new_zeroed();
    list.bytes.fill(0xff);
    assert_eq!(list.iter().count(), 4096 / 259);
}

/// Whatever a controller returns, no accessor panics, and what is bounded stays in bounds.
fn exercise(bytes: &[u8]) {
    let controller = IdentifyController::ref_from_bytes(bytes).unwrap();
    for text in [
        controller.serial_number(),
        controller.model_number(),
        controller.firmware_revision(),
        controller.subsystem_nqn(),
    ] {
        assert!(
            text.to_string()
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte))
        );
    }
    assert!((1..=32).contains(&controller.power_states().len()));
    for state in controller.power_states() {
        _ = (
            state.max_power_microwatts(),
            state.idle_power_microwatts(),
            state.active_power_microwatts(),
        );
    }
    for mps in 0..=15 {
        let page = PageSize::from_mps(mps).unwrap();
        assert!(
            controller
                .max_data_transfer(page)
                .is_none_or(|bytes| bytes >= 2 * page.bytes())
        );
    }
    for crd in 0..4 {
        _ = controller.retry_delay(Status::from_raw(crd << 11));
    }
    _ = (
        controller.ieee_oui(),
        controller.version().to_string(),
        controller.abort_limit(),
    );
    _ = (
        controller.async_event_limit(),
        controller.error_log_entries(),
    );
    _ = (
        controller.supports_standard_entry_sizes(),
        format!("{controller:?}"),
    );

    let namespace = IdentifyNamespace::ref_from_bytes(bytes).unwrap();
    assert!((1..=64).contains(&namespace.lba_formats().len()));
    assert!(namespace.format_index() < 64);
    assert!(
        namespace
            .block_size()
            .is_none_or(|size| (512..=65_536).contains(&size))
    );
    _ = (
        namespace.size_bytes(),
        namespace.metadata_size(),
        namespace.protection_type(),
    );
    _ = format!("{namespace:?}");

    let list = NamespaceList::ref_from_bytes(bytes).unwrap();
    assert!(list.iter_after(0).is_sorted_by(|a, b| a < b));
    let list = ControllerList::ref_from_bytes(bytes).unwrap();
    assert!(list.iter().count() <= 2047);
    let list = DescriptorList::ref_from_bytes(bytes).unwrap();
    assert!(list.iter().count() <= 4096 / 5);

    let log = crate::log::SmartLog::ref_from_bytes(&bytes[..512]).unwrap();
    _ = (
        log.critical_warning(),
        log.celsius(),
        log.sensors_celsius().count(),
    );
    let log = crate::log::FirmwareSlotLog::ref_from_bytes(&bytes[..512]).unwrap();
    for slot in 0..=255 {
        _ = log.revision(slot).map(|text| text.to_string());
    }
    _ = (log.active_slot(), log.next_slot());
    let entry = crate::log::ErrorLogEntry::ref_from_bytes(&bytes[..64]).unwrap();
    _ = (
        entry.is_valid(),
        format!("{:#} {}", entry.status(), entry.status()),
    );
    let log = crate::log::EffectsLog::ref_from_bytes(bytes).unwrap();
    for opcode in 0..=255 {
        assert!(log.io(crate::NvmOpcode(opcode)).submission_restriction() < 8);
        assert!(
            log.admin(crate::AdminOpcode(opcode))
                .submission_restriction()
                < 8
        );
    }
}

#[test]
fn uniform_bytes_are_values() {
    for byte in [0x00, 0x01, 0x20, 0x7f, 0x80, 0xff] {
        exercise(&[byte; 4096]);
    }
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(64))]

    #[test]
    fn any_bytes_are_values(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
        exercise(&bytes);
        let controller = IdentifyController::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(controller.as_bytes(), &bytes[..]);
    }
}
