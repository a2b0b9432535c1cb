//! Saved features, namespace features, and the features whose value is data.

use crate::host::*;

const SAVE: u32 = 1 << 31;
const TIMESTAMP: u32 = 0x0e;
const HOST_BEHAVIOR: u32 = 0x16;

fn set(feature: u32, value: u32) -> Dwords {
    with(with(command(9, 0), 10, feature), 11, value)
}

fn get(select: u32, feature: u32, dword11: u32) -> Dwords {
    with(
        with(command(0x0a, 1), 10, select << 8 | feature),
        11,
        dword11,
    )
}

/// Current, default and saved value.
fn values(host: &mut Host, feature: u32, dword11: u32) -> [u32; 3] {
    [0, 1, 2].map(|select| host.admin(get(select, feature, dword11)))
}

#[test]
fn saved_values_come_back_after_a_reset() {
    let mut host = Host::enabled("queues=2");
    for (feature, dword11, saved, later) in [
        (0x01, 0, 0x0102_0304, 0x0203_0405),
        (0x02, 0, 0x20, 0x40),
        (0x04, 0, 350, 360),
        (0x04, 1 << 20, 1 << 20 | 200, 1 << 20 | 210),
        (0x05, 0, 0x1234, 0x2345),
        (0x06, 0, 0, 1),
        (0x08, 0, 0x0203, 0x0304),
        (0x09, 2, 1 << 16 | 2, 2),
        (0x0a, 0, 1, 0),
        (0x0b, 0, 0x102, 0x104),
    ] {
        let told = |value: u32| {
            if feature == 0x04 {
                value & 0xffff
            } else {
                value
            }
        };
        let of = |entry| with(entry, 1, u32::from(feature == 5));
        let [_, default, _] = values(&mut host, feature, dword11);
        host.admin(of(set(SAVE | feature, saved)));
        let saved = told(saved);
        assert_eq!(
            values(&mut host, feature, dword11),
            [saved, default, saved],
            "{feature:#x}"
        );
        host.admin(of(set(feature, later)));
        let expected = [told(later), default, saved];
        assert_eq!(values(&mut host, feature, dword11), expected);
        host.write(CC, 0);
        host.enable();
        let expected = [saved, default, saved];
        assert_eq!(values(&mut host, feature, dword11), expected);
        host.emulator.reset();
        host.emulator.config_write(4, &[6, 0]);
        host.enable();
        assert_eq!(values(&mut host, feature, dword11), expected);
    }
    for feature in [0x07, TIMESTAMP, HOST_BEHAVIOR] {
        assert_eq!(host.refused(0, set(SAVE | feature, 0)), 0x10d);
        assert_eq!(host.admin(get(3, feature, 0)), 0b100, "changeable only");
    }
}

#[test]
fn a_value_that_is_refused_is_not_saved() {
    let mut host = Host::enabled("");
    for (feature, value) in [(0x02, 1), (0x04, 1 << 16), (0x09, 99)] {
        assert_eq!(host.refused(0, set(SAVE | feature, value)), 0x002);
    }
    let recovery = with(set(SAVE | 0x05, 1 << 16), 1, 1);
    assert_eq!(host.refused(0, recovery), 0x002);
    assert_eq!(values(&mut host, 0x05, 0), [0, 0, 0]);
    for select in 4..8 {
        assert_eq!(host.refused(0, get(select, 1, 0)), 0x002);
    }
    assert_eq!(host.refused(0, get(0, 0x04, 1 << 16)), 0x002);
    assert_eq!(host.refused(0, get(0, 0x09, 99)), 0x002);
}

#[test]
fn features_know_whose_they_are() {
    let mut host = Host::enabled("nsids=1:3,nn=5");
    for (nsid, status) in [(0, 0), (u32::MAX, 0), (1, 0x10f), (2, 0x10f), (6, 0x00b)] {
        assert_eq!(host.run(0, with(set(1, 4), 1, nsid)).status, status);
    }
    for (nsid, status) in [(1, 0), (3, 0), (0, 0x00b), (2, 0x002), (6, 0x00b)] {
        let entry = with(set(5, nsid + 10), 1, nsid);
        assert_eq!(host.run(0, entry).status, status, "{nsid}");
        let entry = with(get(0, 5, 0), 1, nsid);
        assert_eq!(host.run(0, entry).status, status, "{nsid}");
    }
    assert_eq!(host.refused(0, with(get(0, 5, 0), 1, u32::MAX)), 0x00b);
    let of = |nsid| with(get(0, 5, 0), 1, nsid);
    assert_eq!([host.admin(of(1)), host.admin(of(3))], [11, 13]);
    host.admin(with(set(5, 9), 1, u32::MAX));
    assert_eq!([host.admin(of(1)), host.admin(of(3))], [9, 9]);
}

#[test]
fn a_new_namespace_begins_with_the_defaults() {
    let mut host = Host::enabled("size=1M,nn=2,capacity=2M");
    let mut create = vec![0; 4096];
    (create[0], create[8]) = (8, 8);
    let recreate = |host: &mut Host| {
        assert_eq!(host.run_with(0, command(0x0d, 0), &create).result, 2);
        let attach = command(0x15, 2);
        assert_eq!(host.run_with(0, attach, &[1, 0, 1, 0]).status, 0);
    };
    recreate(&mut host);
    host.admin(with(set(SAVE | 5, 77), 1, 2));
    host.admin(with(with(command(0x0d, 2), 10, 1), 1, 2));
    recreate(&mut host);
    for select in 0..3 {
        assert_eq!(host.admin(with(get(select, 5, 0), 1, 2)), 0);
    }
}

fn timestamp(host: &mut Host, select: u32) -> u64 {
    let memory = host.memory(4096);
    host.admin(with_prps(get(select, TIMESTAMP, 0), memory.iova().0, 0));
    u64_at(&bytes(&memory, 8), 0)
}

#[test]
fn timestamps_count_and_repeat_when_stepped() {
    let run = || {
        let mut host = Host::enabled("stepped,latency.step=1ms");
        let begin = timestamp(&mut host, 0);
        assert_eq!(begin >> 48, 0, "counts from the reset");
        let set_to = |host: &mut Host, value: u64| {
            let entry = with(command(9, 0), 10, TIMESTAMP);
            assert_eq!(host.run_with(0, entry, &value.to_le_bytes()).status, 0);
        };
        set_to(&mut host, 0xffff_0000_0001_0000);
        let first = timestamp(&mut host, 0);
        assert_eq!(first >> 48, 0b010, "counts from what the host set");
        assert!((0x1_0000..0x1_0010).contains(&(first & 0xffff_ffff_ffff)));
        for _ in 0..100 {
            host.emulator.step();
        }
        let later = timestamp(&mut host, 0);
        assert_eq!(later - first, 101);
        assert_eq!(timestamp(&mut host, 1), 0, "the default");
        set_to(&mut host, 0xffff_ffff_ffff);
        host.emulator.step();
        assert!(timestamp(&mut host, 0) & 0xffff_ffff_ffff < 16, "wraps");
        host.write(CC, 0);
        host.enable();
        let again = timestamp(&mut host, 0);
        assert_eq!(again >> 48, 0, "a reset starts anew");
        assert!(again < 16, "{again}");
        (begin, first, later, again)
    };
    assert_eq!(run(), run());
}

#[test]
fn host_behavior_support_is_checked() {
    let mut host = Host::enabled("");
    let behavior = |host: &mut Host, select| {
        let memory = host.memory(4096);
        memory.write_bytes(0, &[9; 512]).unwrap();
        host.admin(with_prps(get(select, HOST_BEHAVIOR, 0), memory.iova().0, 0));
        bytes(&memory, 512)
    };
    let entry = with(command(9, 0), 10, HOST_BEHAVIOR);
    let mut data = [0; 512];
    assert_eq!(behavior(&mut host, 0), data);
    data[..5].copy_from_slice(&[1, 1, 1, 0, 0b1100]);
    assert_eq!(host.run_with(0, entry, &data).status, 0);
    assert_eq!(behavior(&mut host, 0), data);
    assert_eq!(behavior(&mut host, 1), [0; 512]);
    assert_eq!(behavior(&mut host, 2), [0; 512]);
    for (place, value) in [(0, 2), (1, 2), (2, 0xff), (3, 2), (4, 1), (4, 0x10), (5, 1)] {
        let mut bad = data;
        bad[place] = value;
        assert_eq!(host.run_with(0, entry, &bad).status, 0x002, "{place}");
    }
    assert_eq!(host.refused(0, with_prps(entry, 0x7000_0000, 0)), 0x004);
    assert_eq!(behavior(&mut host, 0), data);
    host.write(CC, 0);
    host.enable();
    assert_eq!(behavior(&mut host, 0), [0; 512]);
}

#[test]
fn interrupt_vectors_are_those_that_there_are() {
    for (config, vectors) in [("queues=8,vectors=2", 2), ("queues=1,vectors=5", 5)] {
        let mut host = Host::enabled(config);
        for vector in 0..vectors {
            host.admin(set(9, 1 << 16 | vector));
            assert_eq!(host.admin(get(0, 9, vector)), 1 << 16 | vector);
        }
        assert_eq!(host.refused(0, set(9, vectors)), 0x002, "{config}");
        assert_eq!(host.refused(0, get(0, 9, vectors)), 0x002, "{config}");
    }
}
