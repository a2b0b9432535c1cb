use proptest::collection::vec;
use proptest::prelude::*;

use super::bytes::Put;
use super::*;

/// The message's header and payload, checked to belong together.
fn split(message: &[u8]) -> (Header, &[u8]) {
    let (head, payload) = message.split_first_chunk::<HEADER_LENGTH>().unwrap();
    let header = Header::decode(head).unwrap();
    assert_eq!(header.payload as usize, payload.len());
    (header, payload)
}

fn request_survives(request: &Request<'_>) {
    let mut message = vec![0xee; 3];
    request.encode(7, true, &mut message);
    let (header, payload) = split(&message[3..]);
    assert_eq!(
        header,
        Header::request(7, request.command(), payload.len() as u32, true)
    );
    assert_eq!(
        Request::decode(header.command, payload).as_ref(),
        Ok(request)
    );
    for short in 0..payload.len().min(200) {
        let cut = Request::decode(header.command, &payload[..short]);
        // Data at the end may be cut where nothing else tells its length.
        let open = matches!(request, Request::Version(_) | Request::DeviceFeature(_));
        assert!(
            open || cut.is_err(),
            "{request:?} cut to {short} bytes: {cut:?}"
        );
    }
    let longer = [payload, &[0]].concat();
    // A request for a region may be as long as the reply that it has room for.
    let roomy = matches!(request, Request::DeviceGetRegionInfo { argsz, .. } if *argsz as usize >= longer.len());
    let open = roomy || matches!(request, Request::Version(_) | Request::DeviceFeature(_));
    assert!(
        open || Request::decode(header.command, &longer).is_err(),
        "{request:?}"
    );
}

fn reply_survives(command: Command, reply: &Reply<'_>) {
    let request = Header::request(9, command, 0, false);
    let mut message = Vec::new();
    reply.encode(&request, &mut message);
    let (header, payload) = split(&message);
    assert_eq!(header, request.reply(payload.len() as u32));
    assert_eq!(Reply::decode(command, payload).as_ref(), Ok(reply));
}

/// Where a range begins and how long it is, without wrapping.
fn range() -> impl Strategy<Value = (u64, u64)> {
    (any::<u64>(), 1u64..).prop_map(|(start, length)| (start, length.min(u64::MAX - start).max(1)))
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(256))]

    #[test]
    fn headers_survive(id: u16, command: u16, payload in 0..u32::MAX - 16, kind in 0..4, errno: u32) {
        let kind = match kind {
            0 => Kind::Command { no_reply: false },
            1 => Kind::Command { no_reply: true },
            2 => Kind::Reply,
            _ => Kind::Error { errno },
        };
        let payload = if matches!(kind, Kind::Error { .. }) { 0 } else { payload };
        let header = Header { id, command: Command(command), payload, kind };
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn dma_survives((address, length) in range(), offset in 0u64..1 << 40, access in 0u32..4, bytes in data()) {
        let length = length.min(u64::MAX - offset);
        let access = DmaAccess::from_bits(access).unwrap();
        request_survives(&Request::DmaMap(DmaMap { access, offset, address, length }));
        let unmap = DmaUnmap::Region { address, length };
        request_survives(&Request::DmaUnmap(unmap));
        request_survives(&Request::DmaUnmap(DmaUnmap::All));
        reply_survives(Command::DMA_MAP, &Reply::DmaMap);
        reply_survives(Command::DMA_UNMAP, &Reply::DmaUnmap(unmap));
        request_survives(&Request::DmaRead(DmaTransfer { address, count: length }));
        let transfer = DmaTransfer { address: offset, count: bytes.len() as u64 };
        request_survives(&Request::DmaWrite(transfer, &bytes));
        reply_survives(Command::DMA_READ, &Reply::DmaRead(transfer, &bytes));
        reply_survives(Command::DMA_WRITE, &Reply::DmaWrite(transfer));
    }

    #[test]
    fn regions_survive(offset in 0u64..1 << 60, region: u32, count: u32, bytes in data(), small in vec((any::<u32>(), 0u64..1 << 60, vec(any::<u8>(), 1..=8)), 0..9)) {
        request_survives(&Request::RegionRead(RegionAccess { offset, region, count }));
        let access = RegionAccess { offset, region, count: bytes.len() as u32 };
        request_survives(&Request::RegionWrite(access, &bytes));
        reply_survives(Command::REGION_READ, &Reply::RegionRead(access, &bytes));
        reply_survives(Command::REGION_WRITE, &Reply::RegionWrite(access));
        let writes: Vec<_> = small.iter().map(|(region, offset, data)| SmallWrite::new(*region, *offset, data).unwrap()).collect();
        let entries = RegionWrites::encode_all(&writes);
        let all = RegionWrites::new(&entries).unwrap();
        prop_assert_eq!(all.len(), writes.len());
        prop_assert_eq!(all.iter().collect::<Vec<_>>(), writes);
        request_survives(&Request::RegionWriteMulti(all));
        reply_survives(Command::REGION_WRITE_MULTI, &Reply::RegionWriteMulti { count: offset });
    }

    #[test]
    fn information_survives(
        flags: u32, index: u32, count: u32, argsz in 32u32.., size in 0u64..1 << 40, offset in 0u64..1 << 40,
        areas in proptest::option::of(vec((0u64..1 << 40, 0u64..1 << 40), 0..20)), parts in vec(any::<(u64, u64, u32, u32, u32, u64)>(), 0..5),
    ) {
        request_survives(&Request::DeviceGetInfo);
        request_survives(&Request::DeviceGetRegionInfo { argsz, index });
        request_survives(&Request::DeviceGetRegionIoFds { argsz, index });
        request_survives(&Request::DeviceGetIrqInfo { index });
        let info = DeviceInfo { flags: DeviceFlags::from_bits_retain(flags), regions: index, irqs: count };
        reply_survives(Command::DEVICE_GET_INFO, &Reply::DeviceGetInfo(info));
        let irq = IrqInfo { flags: IrqFlags::from_bits_retain(flags), index, count };
        reply_survives(Command::DEVICE_GET_IRQ_INFO, &Reply::DeviceGetIrqInfo(irq));
        let areas = areas.map(|areas| areas.into_iter().map(|(offset, length)| {
            let offset = offset.min(size);
            SparseArea { offset, size: length.min(size - offset) }
        }).collect());
        let flags = RegionFlags::from_bits_retain(flags) - RegionFlags::CAPS;
        let region = RegionInfo { flags, index, size, offset, areas };
        reply_survives(Command::DEVICE_GET_REGION_INFO, &Reply::DeviceGetRegionInfo(region.clone()));
        // Asked with too little room, the reply says how much it needs.
        let mut message = Vec::new();
        let request = Header::request(1, Command::DEVICE_GET_REGION_INFO, 32, false);
        Reply::DeviceGetRegionInfo(region.clone()).encode_for(&request, region.needed() - 1, &mut message);
        let short = Reply::decode(request.command, split(&message).1).unwrap();
        let expected = if region.areas.is_some() {
            Reply::DeviceGetRegionInfoShort { needed: region.needed() }
        } else {
            Reply::DeviceGetRegionInfo(region)
        };
        prop_assert_eq!(short, expected);
        let parts = parts.into_iter().map(|(offset, size, fd_index, kind, flags, data)| IoFd { offset, size, fd_index, kind, flags, data }).collect();
        reply_survives(Command::DEVICE_GET_REGION_IO_FDS, &Reply::DeviceGetRegionIoFds(RegionIoFds { index, parts }));
    }

    #[test]
    fn interrupts_survive(index: u32, start in 0u32..1 << 31, count in 1u32..1 << 31, action in 0..3, bools in vec(any::<u8>(), 1..50)) {
        let action = [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger][action as usize];
        for data in [IrqSetData::None, IrqSetData::Eventfd] {
            request_survives(&Request::DeviceSetIrqs(SetIrqs { index, start, count, action, data }));
        }
        let count = bools.len() as u32;
        request_survives(&Request::DeviceSetIrqs(SetIrqs { index, start, count, action, data: IrqSetData::Bool(&bools) }));
        let none = SetIrqs { index, start: 0, count: 0, action: IrqAction::Trigger, data: IrqSetData::None };
        prop_assert!(none.disables_all());
        request_survives(&Request::DeviceSetIrqs(none));
        reply_survives(Command::DEVICE_SET_IRQS, &Reply::DeviceSetIrqs);
    }

    #[test]
    fn the_rest_survives(major: u16, minor: u16, text in "[a-z{}\":]{0,40}", size in 0..u32::MAX - 8, index: u16, bytes in data()) {
        let version = Version { major, minor, data: text.as_bytes() };
        request_survives(&Request::Version(version));
        reply_survives(Command::VERSION, &Reply::Version(version));
        request_survives(&Request::DeviceReset);
        reply_survives(Command::DEVICE_RESET, &Reply::DeviceReset);
        request_survives(&Request::MigDataRead { size });
        request_survives(&Request::MigDataWrite(&bytes));
        reply_survives(Command::MIG_DATA_READ, &Reply::MigDataRead(&bytes));
        reply_survives(Command::MIG_DATA_WRITE, &Reply::MigDataWrite);
        let feature = Feature { argsz: 8 + bytes.len() as u32, index, methods: FeatureMethods::SET, data: &bytes };
        request_survives(&Request::DeviceFeature(feature));
        reply_survives(Command::DEVICE_FEATURE, &Reply::DeviceFeature(feature));
    }

    /// Whatever comes is refused or understood, and what is understood can be said again.
    #[test]
    fn junk_is_refused_or_understood(command in 0u16..20, mut payload in vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..120), argsz in proptest::option::of(any::<u8>())) {
        if let (Some(argsz), Some(head)) = (argsz, payload.first_chunk_mut::<4>()) {
            *head = u32::from(argsz).to_ne_bytes();
        }
        let command = Command(command);
        if let Ok(request) = Request::decode(command, &payload) {
            let mut message = Vec::new();
            request.encode(1, false, &mut message);
            prop_assert_eq!(Request::decode(command, split(&message).1), Ok(request));
        }
        if let Ok(reply) = Reply::decode(command, &payload) && !matches!(reply, Reply::DeviceGetRegionInfoShort { .. }) {
            let mut message = Vec::new();
            reply.encode(&Header::request(1, command, 0, false), &mut message);
            prop_assert_eq!(Reply::decode(command, split(&message).1), Ok(reply));
        }
    }

    #[test]
    fn junk_headers_are_refused_or_understood(bytes: [u8; HEADER_LENGTH], flags in 0u32..64, plain: bool) {
        let mut bytes = bytes;
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        if plain {
            bytes[12..].fill(0);
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let bytes = |length: u32, flags: u32, errno: u32| {
        let mut bytes = Vec::new();
        bytes.put16(1);
        bytes.put16(1);
        bytes.put32(length);
        bytes.put32(flags);
        bytes.put32(errno);
        Header::decode(bytes.first_chunk().unwrap())
    };
    assert!(bytes(16, 0, 0).is_ok());
    assert!(bytes(u32::MAX, 0x10, 0).is_ok());
    for length in [0, 1, 15] {
        assert_eq!(bytes(length, 0, 0), Err(HeaderError::Short(length)));
    }
    for flags in [2, 3, 0xf, 0x11, 0x20, 0x30, 0x31, 0x40, 1 << 31] {
        assert_eq!(bytes(16, flags, 0), Err(HeaderError::Flags(flags)));
    }
    assert_eq!(bytes(16, 0, 5), Err(HeaderError::Errno(5)));
    assert_eq!(bytes(16, 1, 5), Err(HeaderError::Errno(5)));
    assert_eq!(bytes(20, 0x21, 5), Err(HeaderError::ErrorPayload(4)));
    assert_eq!(bytes(16, 0x21, 0).unwrap().kind, Kind::Error { errno: 0 });
}

/// A payload of 32-bit words.
fn words(words: &[u32]) -> Vec<u8> {
    let mut payload = Vec::new();
    words.iter().for_each(|word| payload.put32(*word));
    payload
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let refused = |command, payload: &[u32]| Request::decode(command, &words(payload)).unwrap_err();
    let map = |argsz, flags, offset, address, size| {
        let mut payload = words(&[argsz, flags]);
        payload.put64(offset);
        payload.put64(address);
        payload.put64(size);
        Request::decode(Command::DMA_MAP, &payload).map(|_| ())
    };
    assert!(map(32, 3, 0, 0x1000, 0x1000).is_ok());
    assert!(matches!(
        map(31, 3, 0, 0, 1),
        Err(DecodeError::ArgumentSize {
            argsz: 31,
            least: 32
        })
    ));
    assert!(matches!(
        map(32, 4, 0, 0, 1),
        Err(DecodeError::Flags { flags: 4 })
    ));
    assert!(matches!(
        map(32, 3, 0, 0, 0),
        Err(DecodeError::Count { .. })
    ));
    assert!(matches!(
        map(32, 3, 0, u64::MAX, 2),
        Err(DecodeError::Range { .. })
    ));
    assert!(matches!(
        map(32, 3, u64::MAX, 0, 2),
        Err(DecodeError::Range { .. })
    ));
    assert!(map(32, 3, 0, u64::MAX, 1).is_ok(), "the last byte is one");

    assert!(matches!(
        refused(Command::DMA_UNMAP, &[24, 1, 0, 0, 1, 0]),
        DecodeError::Flags { flags: 1 }
    ));
    assert!(matches!(
        refused(Command::DMA_UNMAP, &[24, 2, 0, 0, 1, 0]),
        DecodeError::Reserved { field: "size", .. }
    ));
    assert!(matches!(
        refused(Command::DMA_UNMAP, &[24, 2, 1, 0, 0, 0]),
        DecodeError::Reserved {
            field: "address",
            ..
        }
    ));
    assert!(matches!(
        refused(Command::DEVICE_GET_INFO, &[15, 0, 0, 0]),
        DecodeError::ArgumentSize { .. }
    ));
    for place in 1..4 {
        let mut payload = [16, 0, 0, 0];
        payload[place] = 1;
        assert!(matches!(
            refused(Command::DEVICE_GET_INFO, &payload),
            DecodeError::Reserved { .. }
        ));
    }
    for place in [1, 3, 4, 5, 6, 7] {
        let mut payload = [32, 0, 9, 0, 0, 0, 0, 0];
        payload[place] = 1;
        assert!(matches!(
            refused(Command::DEVICE_GET_REGION_INFO, &payload),
            DecodeError::Reserved { .. }
        ));
    }
    for place in [1, 3] {
        let mut payload = [16, 0, 2, 0];
        payload[place] = 1;
        assert!(matches!(
            refused(Command::DEVICE_GET_IRQ_INFO, &payload),
            DecodeError::Reserved { .. }
        ));
        assert!(matches!(
            refused(Command::DEVICE_GET_REGION_IO_FDS, &payload),
            DecodeError::Reserved { .. }
        ));
    }
    // No data flag, two, no action, two, an undefined bit.
    for flags in [0x20, 0x23, 0x06 | 0x20, 0x01, 0x31, 0x18 | 1, 0x61] {
        assert_eq!(
            refused(Command::DEVICE_SET_IRQS, &[20, flags, 2, 0, 1]),
            DecodeError::Flags { flags }
        );
    }
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[19, 0x24, 2, 0, 1]),
        DecodeError::ArgumentSize { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[20, 0x24, 2, 0, 0]),
        DecodeError::Count { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[20, 0x21, 2, 1, 0]),
        DecodeError::Count { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[20, 0x09, 2, 0, 0]),
        DecodeError::Count { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[20, 0x24, 2, 1, u32::MAX]),
        DecodeError::Range { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[20, 0x22, 2, 0, 1]),
        DecodeError::Length { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_SET_IRQS, &[24, 0x21, 2, 0, 1, 0]),
        DecodeError::Length { .. }
    ));
    assert!(matches!(
        refused(Command::REGION_READ, &[u32::MAX, u32::MAX, 0, 2]),
        DecodeError::Range { .. }
    ));
    assert!(matches!(
        refused(Command::REGION_WRITE, &[0, 0, 0, 8, 1]),
        DecodeError::Length {
            expected: 24,
            actual: 20
        }
    ));
    assert!(matches!(
        refused(Command::REGION_WRITE_MULTI, &[u32::MAX, u32::MAX]),
        DecodeError::Count { .. }
    ));
    for count in [0, 9] {
        let entry = [1, 0, 0, 0, 0, count, 0, 0];
        assert!(matches!(
            refused(Command::REGION_WRITE_MULTI, &entry),
            DecodeError::Count { .. }
        ));
    }
    // Neither getting nor setting; both without probing; an undefined method; data with a probe.
    for flags in [1, 3 << 16 | 1, 1 << 19] {
        assert!(matches!(
            refused(Command::DEVICE_FEATURE, &[8, flags]),
            DecodeError::Flags { .. }
        ));
    }
    assert!(matches!(
        refused(Command::DEVICE_FEATURE, &[12, 7 << 16, 0]),
        DecodeError::Length { .. }
    ));
    assert!(matches!(
        refused(Command::DEVICE_FEATURE, &[7, 1 << 16]),
        DecodeError::ArgumentSize { .. }
    ));
    assert!(matches!(
        refused(Command::MIG_DATA_READ, &[8, 1]),
        DecodeError::ArgumentSize { .. }
    ));
    for text in [&b"\0\0\0\0{}"[..], b"\0\0\0\0{\0}\0", b"\0\0\0\0\0\0"] {
        assert_eq!(
            Request::decode(Command::VERSION, text),
            Err(DecodeError::Text)
        );
    }
    let long = vec![b' '; MAX_VERSION_DATA + 5];
    assert!(matches!(
        Request::decode(Command::VERSION, &long),
        Err(DecodeError::Length { .. })
    ));
    for command in [0, 14, 19, 0xffff] {
        let error = refused(Command(command), &[]);
        assert_eq!(error, DecodeError::UnknownCommand(Command(command)));
        assert_eq!(error.errno(), nix::errno::Errno::ENOTSUP);
    }
}

/// The reply about a region of 0x4000 bytes with one chain of capabilities.
fn region_reply(cap_offset: u32, chain: &[u32]) -> Result<Reply<'static>, DecodeError> {
    let mut payload = words(&[
        32 + chain.len() as u32 * 4,
        0xf,
        0,
        cap_offset,
        0x4000,
        0,
        0,
        0,
    ]);
    payload.extend(words(chain));
    match Reply::decode(Command::DEVICE_GET_REGION_INFO, &payload)? {
        Reply::DeviceGetRegionInfo(info) => Ok(Reply::DeviceGetRegionInfo(info)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn chains_of_capabilities_are_walked_with_care() {
    let sparse = 1 | 1 << 16;
    let area = [1, 0, 0x1000, 0, 0x1000, 0];
    let with = |head: [u32; 2], rest: &[u32]| [&head[..], rest].concat();
    let found = |reply| match reply {
        Ok(Reply::DeviceGetRegionInfo(info)) => info.areas,
        other => panic!("{other:?}"),
    };
    let one = Some(vec![SparseArea {
        offset: 0x1000,
        size: 0x1000,
    }]);
    assert_eq!(found(region_reply(32, &with([sparse, 0], &area))), one);
    // A capability that is not known, then the one that is; or that one in a version that is not known.
    assert_eq!(
        found(region_reply(
            32,
            &[&[9, 40][..], &with([sparse, 0], &area)].concat()
        )),
        one
    );
    assert_eq!(
        found(region_reply(32, &with([1 | 2 << 16, 0], &area))),
        None
    );

    let broken = |cap_offset, chain: &[u32]| {
        assert!(
            matches!(
                region_reply(cap_offset, chain),
                Err(DecodeError::Chain { .. })
            ),
            "{cap_offset} {chain:?}"
        );
    };
    for cap_offset in [0, 31, 64, u32::MAX] {
        broken(cap_offset, &with([sparse, 0], &area));
    }
    broken(32, &with([9, 32], &[0; 6])); // To itself.
    broken(32, &with([9, 33], &[0; 6])); // Into itself.
    broken(32, &with([9, 1000], &[]));
    broken(
        32,
        &[&with([sparse, 64], &area)[..], &with([sparse, 0], &area)].concat(),
    ); // Twice.
    let long: Vec<u32> = (1..=40).flat_map(|link| [9, 32 + link * 8]).collect();
    broken(32, &long);
    // More areas than there are bytes, and areas that reach out of the region.
    let areas = |area: &[u32]| region_reply(32, &with([sparse, 0], area)).unwrap_err();
    for count in [2, u32::MAX] {
        assert!(matches!(
            areas(&[count, 0, 0, 0, 1, 0]),
            DecodeError::Count { .. }
        ));
    }
    for area in [
        [0x4000, 0, 1, 0],
        [0x3000, 0, 0x1001, 0],
        [u32::MAX, u32::MAX, 1, 0],
        [1, 0, u32::MAX, u32::MAX],
    ] {
        assert!(
            matches!(
                areas(&[&[1, 0], &area[..]].concat()),
                DecodeError::Range { .. }
            ),
            "{area:?}"
        );
    }
}
