//! Regions, as servers describe them and as they are mapped.

use super::wrong::{reason, wrong};
use super::*;

fn memory(length: i64, sealed: bool) -> OwnedFd {
    let file = memfd_create(
        c"region",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .unwrap();
    ftruncate(&file, length).unwrap();
    if sealed {
        let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK;
        nix::fcntl::fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    file
}

/// Maps region 0 as a server describes it.
fn map(info: RegionInfo, descriptor: Option<OwnedFd>) -> Result<MappedRegion, ClientError> {
    let (client, server) = agreed(FAR, move |fake| {
        let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        fake.answer(
            Command::DEVICE_GET_REGION_INFO,
            &Reply::DeviceGetRegionInfo(info),
            &descriptors,
        );
    });
    let mapped = client.map_region(0);
    server.join().unwrap();
    assert!(!client.is_lost());
    mapped
}

fn region() -> RegionInfo {
    RegionInfo {
        flags: RegionFlags::READ | RegionFlags::WRITE | RegionFlags::MMAP,
        index: 0,
        size: 0x4000,
        offset: 0x1000,
        areas: Some(vec![SparseArea {
            offset: 0x1000,
            size: 0x2000,
        }]),
    }
}

#[test]
fn regions_are_mapped_where_they_can_be() {
    let file = memory(0x4000, true);
    let mapped = map(region(), Some(file.try_clone().unwrap())).unwrap();
    assert!(mapped.is_writable() && mapped.is_sealed());
    for (offset, length) in [
        (0, 4),
        (0xffc, 8),
        (0x2ffd, 4),
        (0x3000, 1),
        (u64::MAX, 1),
        (0x1000, usize::MAX),
    ] {
        assert!(
            mapped.pointer_at(offset, length).is_none(),
            "{offset:#x} {length}"
        );
    }
    let pointer = mapped.pointer_at(0x2ffc, 4).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: four mapped bytes, which nobody else uses.
    unsafe {
        pointer.cast::<[u8; 4]>().write_volatile([1, 2, 3, 4]);
    }
    let mut read = [0; 4];
    nix::sys::uio::pread(&file, &mut read, 0x1000 + 0x2ffc).unwrap();
    assert_eq!(read, [1, 2, 3, 4]);
    // The whole region, not sealed and read-only.
    let whole = RegionInfo {
        areas: None,
        size: 0x3000,
        flags: RegionFlags::READ | RegionFlags::MMAP,
        ..region()
    };
    let mapped = map(whole, Some(memory(0x4000, false))).unwrap();
    assert!(!mapped.is_writable() && !mapped.is_sealed());
    assert!(mapped.pointer_at(0, 0x3000).is_some());
}

#[test]
fn regions_that_cannot_be_mapped_safely_are_refused() {
    let refused = |info, descriptor| {
        let error = map(info, descriptor).unwrap_err();
        assert!(
            matches!(error, ClientError::Region { index: 0, .. }),
            "{error}"
        );
    };
    let file = || Some(memory(0x4000, true));
    let areas = |offset, size| RegionInfo {
        areas: Some(vec![SparseArea { offset, size }]),
        ..region()
    };
    refused(
        RegionInfo {
            flags: RegionFlags::READ,
            ..region()
        },
        file(),
    );
    refused(
        RegionInfo {
            flags: RegionFlags::MMAP,
            ..region()
        },
        file(),
    );
    refused(region(), None);
    // A file that is too short by a byte would raise SIGBUS.
    refused(region(), Some(memory(0x3fff, true)));
    refused(
        RegionInfo {
            offset: 0x2000,
            ..region()
        },
        file(),
    );
    refused(
        RegionInfo {
            offset: 0x800,
            ..region()
        },
        file(),
    );
    refused(areas(0x800, 0x1000), file());
    refused(areas(0x1000, 0x800), file());
    refused(areas(0x1000, 0), file());
    refused(
        RegionInfo {
            areas: Some(vec![
                SparseArea {
                    offset: 0,
                    size: 0x1000
                };
                65
            ]),
            ..region()
        },
        file(),
    );
    refused(region(), Some(File::open("/dev/zero").unwrap().into()));
    refused(region(), Some(nix::unistd::pipe().unwrap().0));
}

#[test]
fn a_region_is_asked_for_again_with_more_room_and_no_more_than_once_each() {
    let areas: Vec<_> = (0..200)
        .map(|n| SparseArea {
            offset: n * 0x1000,
            size: 0x1000,
        })
        .collect();
    let info = RegionInfo {
        size: 0x100_0000,
        offset: 0,
        areas: Some(areas),
        ..region()
    };
    let expected = info.clone();
    let (client, server) = agreed(FAR, move |fake| {
        for _ in 0..2 {
            let message = fake.next();
            let Ok(Request::DeviceGetRegionInfo { argsz, index: 0 }) =
                Request::decode(message.header.command, &message.payload)
            else {
                panic!("{message:?}");
            };
            let mut out = Vec::new();
            Reply::DeviceGetRegionInfo(info.clone()).encode_for(&message.header, argsz, &mut out);
            fake.send(&out);
        }
    });
    assert_eq!(client.region_info(0).unwrap(), expected);
    server.join().unwrap();
    let error = wrong(
        |fake, message| {
            let mut payload = vec![0; 32];
            payload[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
            fake.send(&[&message.header.reply(32).encode()[..], &payload].concat());
        },
        |client| client.region_info(0),
    );
    assert_eq!(reason(&error), AnswerError::TooLong(u32::MAX));
}

/// Every request ends in its own time; what matters is that they are few.
#[test]
fn a_server_that_never_has_enough_room_is_asked_twice() {
    let (client, server) = agreed(FAR, |fake| {
        for more in 1.. {
            let Ok(message) = fake.reader.wait(&fake.socket, Fake::far()) else {
                return more - 1;
            };
            let mut payload = vec![0; 32];
            payload[..4].copy_from_slice(&(2048_u32 + more).to_ne_bytes());
            fake.send(&[&message.header.reply(32).encode()[..], &payload].concat());
        }
        u32::MAX
    });
    let error = client.region_info(0).unwrap_err();
    assert_eq!(reason(&error), AnswerError::TooLong(2050));
    drop(client);
    assert_eq!(server.join().unwrap(), 2);
}
