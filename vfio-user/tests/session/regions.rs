//! What a client learns of the device, and its regions.

use crate::common::*;
use nvme_vfio_user::SessionOptions;
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::message::{Command, RegionWrites, Reply, Request, SmallWrite};

use super::*;

#[test]
fn tells_of_device_regions_and_interrupts() {
    let mut rig = Rig::open();
    let answer = rig.ask(&Request::DeviceGetInfo);
    let Reply::DeviceGetInfo(info) = decode(Command::DEVICE_GET_INFO, &answer) else {
        panic!("another reply");
    };
    assert_eq!((info.regions, info.irqs, info.flags.bits()), (9, 5, 3));

    for (index, size) in [(1, 0), (ROM, 16), (CONFIG, 4096), (8, 0)] {
        let answer = rig.ask(&Request::DeviceGetRegionInfo { argsz: 32, index });
        let Reply::DeviceGetRegionInfo(info) = decode(Command::DEVICE_GET_REGION_INFO, &answer)
        else {
            panic!("another reply");
        };
        assert_eq!(
            (info.index, info.size, info.offset, info.areas),
            (index, size, 0, None)
        );
        assert!(answer.expect("a reply").1.is_empty());
    }
    assert_eq!(
        rig.errno(&Request::DeviceGetRegionInfo {
            argsz: 32,
            index: 9
        }),
        Errno::EINVAL
    );

    for (index, count) in [(0, 1), (1, 0), (MSIX, VECTORS)] {
        let answer = rig.ask(&Request::DeviceGetIrqInfo { index });
        let Reply::DeviceGetIrqInfo(info) = decode(Command::DEVICE_GET_IRQ_INFO, &answer) else {
            panic!("another reply");
        };
        assert_eq!((info.index, info.count), (index, count));
    }
    assert_eq!(
        rig.errno(&Request::DeviceGetIrqInfo { index: 5 }),
        Errno::EINVAL
    );

    let answer = rig.ask(&Request::DeviceGetRegionIoFds {
        argsz: 16,
        index: BAR,
    });
    let Reply::DeviceGetRegionIoFds(fds) = decode(Command::DEVICE_GET_REGION_IO_FDS, &answer)
    else {
        panic!("another reply");
    };
    assert!(fds.parts.is_empty());
    assert_eq!(
        rig.errno(&Request::DeviceGetRegionIoFds {
            argsz: 16,
            index: 9
        }),
        Errno::EINVAL
    );
}

#[test]
fn a_region_is_mapped_where_the_whole_answer_fits() {
    let mut rig = Rig::open();
    // The client learns how much room it takes.
    let short = rig.ask(&Request::DeviceGetRegionInfo {
        argsz: 63,
        index: BAR,
    });
    let Reply::DeviceGetRegionInfoShort { needed: 64 } =
        decode(Command::DEVICE_GET_REGION_INFO, &short)
    else {
        panic!("another reply");
    };
    let (payload, descriptors) = short.expect("a reply");
    assert_eq!((payload.len(), descriptors.len()), (32, 0));
    assert_eq!(payload[4] & 12, 4, "mappable, and no capabilities here");
    let answer = rig.ask(&Request::DeviceGetRegionInfo {
        argsz: 64,
        index: BAR,
    });
    let Reply::DeviceGetRegionInfo(info) = decode(Command::DEVICE_GET_REGION_INFO, &answer) else {
        panic!("another reply");
    };
    let areas = info.areas.expect("areas");
    assert_eq!(
        (areas.len(), areas[0].offset, areas[0].size),
        (1, PAGE, PAGE)
    );
    let (_, mut descriptors) = answer.expect("a reply");
    assert_eq!(descriptors.len(), 1);
    let file = std::fs::File::from(descriptors.remove(0));
    assert_eq!(file.metadata().expect("a file").len(), 2 * PAGE);

    // As long a request as SPDK sends.
    let mut long = [0; 4064];
    long[..4].copy_from_slice(&4064_u32.to_ne_bytes());
    let (_, descriptors) = rig
        .ask_bytes(Command::DEVICE_GET_REGION_INFO, &long)
        .expect("answered");
    assert_eq!(descriptors.len(), 1);

    // A client that takes no descriptors cannot map.
    let mut rig = Rig::with(SessionOptions::default());
    rig.ask(&version(0, 1, br#"{"capabilities":{"max_msg_fds":0}}"#))
        .expect("agreed");
    let answer = rig.ask(&Request::DeviceGetRegionInfo {
        argsz: 4096,
        index: BAR,
    });
    let Reply::DeviceGetRegionInfo(info) = decode(Command::DEVICE_GET_REGION_INFO, &answer) else {
        panic!("another reply");
    };
    assert_eq!((info.flags.bits(), info.areas), (3, None));
}

#[test]
fn regions_are_read_and_written_inside_their_bounds() {
    let mut rig = Rig::open();
    rig.ask(&write(BAR, 20, &[1, 2, 3, 4])).expect("written");
    let answer = rig.ask(&read(BAR, 21, 2));
    let Reply::RegionRead(access, data) = decode(Command::REGION_READ, &answer) else {
        panic!("another reply");
    };
    assert_eq!((access.offset, access.count, data), (21, 2, &[2, 3][..]));
    let end = 2 * PAGE;
    rig.ask(&read(BAR, end - 4, 4)).expect("the last bytes");
    rig.ask(&read(BAR, 0, end as u32)).expect("all of it");
    for request in [
        read(BAR, end - 3, 4),
        read(BAR, end, 1),
        read(BAR, 0, 0),
        read(BAR, 0, u32::MAX),
        read(BAR, u64::MAX, 1),
        read(BAR, 1 << 63, 4),
        read(1, 0, 4),
        read(8, 0, 1),
        read(9, 0, 1),
        read(u32::MAX, 0, 1),
        write(BAR, end - 3, &[0; 4]),
        write(BAR, 0, &[]),
        write(9, 0, &[0]),
    ] {
        assert_eq!(rig.errno(&request), Errno::EINVAL, "{request:?}");
    }
    assert_eq!(rig.errno(&write(ROM, 0, &[1])), Errno::EACCES);
    // The device's own error.
    assert_eq!(rig.errno(&write(BAR, 8, &[1])), Errno::EIO);
    assert_eq!(rig.device.state().writes.len(), 1);
}

#[test]
fn a_transfer_longer_than_agreed_is_refused() {
    let mut options = SessionOptions::default();
    options.capabilities.max_data_xfer_size = 64;
    let mut rig = Rig::open_with(options);
    rig.ask(&read(BAR, 0, 64)).expect("read");
    assert_eq!(rig.errno(&read(BAR, 0, 65)), Errno::EINVAL);
    rig.ask(&write(BAR, 16, &[1; 64])).expect("written");
    assert_eq!(rig.errno(&write(BAR, 16, &[1; 65])), Errno::EINVAL);
}

#[test]
fn no_reply_means_none() {
    let mut rig = Rig::open();
    for request in [
        write(BAR, 16, &[7]),
        write(BAR, 8, &[7]),
        write(9, 0, &[7]),
        Request::DeviceReset,
        read(BAR, 0, 1),
    ] {
        let (bytes, _) = rig.client.encode(&request, true);
        rig.client.send_bytes(&bytes, &[]).expect("sent");
    }
    // The next reply is that of the next request.
    rig.ask(&read(BAR, 16, 1)).expect("read");
    assert_eq!(rig.device.state().bar[16], 7);
    assert_eq!(rig.device.state().resets, 1);
}

#[test]
fn writes_come_in_bundles_where_agreed() {
    let writes = [
        SmallWrite::new(BAR, 16, &[1]).expect("a write"),
        SmallWrite::new(BAR, 17, &[2, 3]).expect("a write"),
        SmallWrite::new(BAR, 8, &[9]).expect("a write that the device refuses"),
        SmallWrite::new(BAR, 20, &[4]).expect("a write"),
    ];
    let count = |answer: &Answer| match decode(Command::REGION_WRITE_MULTI, answer) {
        Reply::RegionWriteMulti { count } => count,
        other => panic!("{other:?}"),
    };
    let mut rig = Rig::open();
    let entries = RegionWrites::encode_all(&writes);
    let bundle = Request::RegionWriteMulti(RegionWrites::new(&entries).expect("writes"));
    assert_eq!(count(&rig.ask(&bundle)), 2);
    assert_eq!(rig.device.state().bar[16..21], [1, 2, 3, 0, 0]);
    let entries = RegionWrites::encode_all(&writes[2..]);
    let bundle = Request::RegionWriteMulti(RegionWrites::new(&entries).expect("writes"));
    assert_eq!(rig.errno(&bundle), Errno::EIO);
    let entries =
        RegionWrites::encode_all(&[SmallWrite::new(BAR, 2 * PAGE - 1, &[1, 1]).expect("a write")]);
    let bundle = Request::RegionWriteMulti(RegionWrites::new(&entries).expect("writes"));
    assert_eq!(rig.errno(&bundle), Errno::EINVAL);
    assert_eq!(
        rig.ask_bytes(Command::REGION_WRITE_MULTI, &[255; 32])
            .expect_err("refused"),
        Errno::EINVAL
    );

    let mut rig = Rig::with(SessionOptions::default());
    rig.ask(&version(0, 1, b"{}")).expect("agreed");
    assert_eq!(rig.errno(&bundle), Errno::ENOTSUP);
}
