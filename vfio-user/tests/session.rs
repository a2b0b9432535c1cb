//! The session of one client, step by step.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_user::device::{DmaAccess, Errno, IrqAction};
use nvme_vfio_user::message::{
    Command, DmaMap, DmaUnmap, Header, IrqSetData, RegionAccess, RegionWrites, Reply, Request,
    SetIrqs, SmallWrite, Version,
};
use nvme_vfio_user::{Capabilities, Session, SessionEnd, SessionOptions, SessionState, Socket};

/// A session with its device and its client, polled by the test.
struct Rig {
    device: TestDevice,
    session: Session,
    client: Client,
}

impl Rig {
    fn with(options: SessionOptions) -> Self {
        let (client, server) = Socket::pair().expect("sockets");
        Self {
            device: TestDevice::new(),
            session: Session::new(server, options).expect("a session"),
            client: Client::new(client),
        }
    }

    /// A session that is open.
    fn open() -> Self {
        Self::open_with(SessionOptions::default())
    }

    fn open_with(options: SessionOptions) -> Self {
        let mut rig = Self::with(options);
        rig.ask(&VERSION).expect("agreed");
        rig
    }

    fn poll(&mut self) -> SessionState {
        self.session.poll(&self.device)
    }

    fn answer(&mut self, id: u16) -> Answer {
        self.poll();
        answer(
            self.client
                .try_receive()
                .expect("a connection")
                .expect("a reply"),
            id,
        )
    }

    fn ask(&mut self, request: &Request<'_>) -> Answer {
        let id = self.client.send(request, &[]);
        self.answer(id)
    }

    fn ask_with(&mut self, request: &Request<'_>, descriptors: &[&OwnedFd]) -> Answer {
        let borrowed: Vec<_> = descriptors
            .iter()
            .map(|descriptor| descriptor.as_fd())
            .collect();
        let id = self.client.send(request, &borrowed);
        self.answer(id)
    }

    fn ask_bytes(&mut self, command: Command, payload: &[u8]) -> Answer {
        let id = self.client.send_payload(command, payload, &[]);
        self.answer(id)
    }

    /// The session must have ended, with the client's memory given back.
    fn ended(&mut self) -> String {
        assert_eq!(self.poll(), SessionState::Ended);
        assert_eq!(self.device.state().disconnects, 1);
        self.session.end_reason().expect("a reason").to_string()
    }

    fn errno(&mut self, request: &Request<'_>) -> Errno {
        self.ask(request).expect_err("refused")
    }
}

fn decode<'a>(command: Command, answer: &'a Answer) -> Reply<'a> {
    Reply::decode(command, &answer.as_ref().expect("a reply").0).expect("a whole reply")
}

fn read(region: u32, offset: u64, count: u32) -> Request<'static> {
    Request::RegionRead(RegionAccess {
        offset,
        region,
        count,
    })
}

fn write(region: u32, offset: u64, data: &[u8]) -> Request<'_> {
    let access = RegionAccess {
        offset,
        region,
        count: data.len() as u32,
    };
    Request::RegionWrite(access, data)
}

fn version(major: u16, minor: u16, data: &[u8]) -> Request<'_> {
    Request::Version(Version { major, minor, data })
}

#[test]
fn version_is_agreed_on() {
    for (minor, answered) in [(0, 0), (1, 1), (9, 1)] {
        let mut rig = Rig::with(SessionOptions::default());
        let answer = rig.ask(&version(0, minor, b""));
        let Reply::Version(version) = decode(Command::VERSION, &answer) else {
            panic!("another reply");
        };
        // A client that proposes nothing is told nothing.
        assert_eq!(
            (version.major, version.minor, version.data),
            (0, answered, &b""[..])
        );
    }
    let mut rig = Rig::with(SessionOptions::default());
    let answer = rig.ask(&version(
        0,
        1,
        br#"{"capabilities":{"max_msg_fds":1,"max_dma_maps":9}}"#,
    ));
    let Reply::Version(version) = decode(Command::VERSION, &answer) else {
        panic!("another reply");
    };
    let text = std::str::from_utf8(version.data).expect("text");
    assert!(
        text.contains("max_msg_fds") && text.contains("4096") && !text.contains("write_multiple"),
        "{text}"
    );
}

#[test]
fn version_comes_first_and_once() {
    let mut rig = Rig::with(SessionOptions::default());
    assert_eq!(rig.errno(&Request::DeviceGetInfo), Errno::EINVAL);
    assert!(rig.ended().contains("first message was DEVICE_GET_INFO"));
    // Second: refused, and the session goes on.
    let mut rig = Rig::open();
    assert_eq!(rig.errno(&VERSION), Errno::EINVAL);
    rig.ask(&Request::DeviceGetInfo).expect("still there");
}

#[test]
fn versions_that_cannot_be_agreed_on_end_the_session() {
    let mut rig = Rig::with(SessionOptions::default());
    assert_eq!(rig.errno(&version(1, 0, b"")), Errno::EPROTONOSUPPORT);
    assert!(rig.ended().contains("version 1"));
    for payload in [
        &b""[..],
        b"\0\0\x01",
        b"\0\0\x01\0{",
        b"\0\0\x01\0[]\0",
        b"\0\0\x01\0{\"capabilities\":7}\0",
        b"\0\0\x01\0{}\0{}\0",
    ] {
        let mut rig = Rig::with(SessionOptions::default());
        assert_eq!(
            rig.ask_bytes(Command::VERSION, payload)
                .expect_err("refused"),
            Errno::EINVAL,
            "{payload:?}"
        );
        rig.ended();
    }
    // With a descriptor, or without wanting a reply.
    let mut rig = Rig::with(SessionOptions::default());
    let descriptor = memfd(1).into();
    assert_eq!(
        rig.ask_with(&VERSION, &[&descriptor]).expect_err("refused"),
        Errno::EINVAL
    );
    rig.ended();
    let mut rig = Rig::with(SessionOptions::default());
    let (bytes, _) = rig.client.encode(&VERSION, true);
    rig.client.send_bytes(&bytes, &[]).expect("sent");
    rig.ended();
}

#[test]
fn tells_who_the_client_is() {
    let rig = Rig::open();
    assert_eq!(rig.session.peer().pid() as u32, std::process::id());
    assert_eq!(rig.session.peer().uid(), nix::unistd::getuid().as_raw());
}

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

fn irqs(
    index: u32,
    start: u32,
    count: u32,
    action: IrqAction,
    data: IrqSetData<'_>,
) -> Request<'_> {
    Request::DeviceSetIrqs(SetIrqs {
        index,
        start,
        count,
        action,
        data,
    })
}

#[test]
fn interrupts_are_set_up_in_chunks_and_signalled() {
    use IrqAction::Trigger;
    let mut rig = Rig::open();
    let eventfds: Vec<EventFd> = (0..16)
        .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"))
        .collect();
    for (chunk, start) in eventfds.chunks(8).zip([0, 8]) {
        let descriptors: Vec<_> = chunk.iter().map(|eventfd| eventfd.as_fd()).collect();
        let id = rig.client.send(
            &irqs(MSIX, start, 8, Trigger, IrqSetData::Eventfd),
            &descriptors,
        );
        rig.answer(id).expect("set up");
    }
    assert_eq!(rig.device.state().vectors.len(), 16);
    rig.ask(&write(BAR, 0, &[1])).expect("written");
    assert_eq!(eventfds[0].read(), Ok(1));
    // Some of a range, all of one, and what has no eventfd.
    rig.ask(&irqs(MSIX, 7, 3, Trigger, IrqSetData::Bool(&[1, 0, 2])))
        .expect("triggered");
    rig.ask(&irqs(MSIX, 14, 4, Trigger, IrqSetData::None))
        .expect("triggered");
    for (vector, eventfd) in eventfds.iter().enumerate() {
        let expected = if [7, 9, 14, 15].contains(&vector) {
            Ok(1)
        } else {
            Err(Errno::EAGAIN)
        };
        assert_eq!(eventfd.read(), expected, "{vector}");
    }
    // Taken away: some, then all.
    rig.ask(&irqs(MSIX, 0, 4, Trigger, IrqSetData::Eventfd))
        .expect("taken away");
    assert_eq!(rig.device.state().vectors.len(), 12);
    rig.ask(&irqs(MSIX, 0, 0, Trigger, IrqSetData::None))
        .expect("disabled");
    assert!(rig.device.state().vectors.is_empty());
    rig.ask(&irqs(0, 0, 1, IrqAction::Mask, IrqSetData::None))
        .expect("masked");
    assert_eq!(rig.device.state().masked, [(0..1, true)]);
}

#[test]
fn interrupts_that_are_not_there_are_refused() {
    use IrqAction::{Mask, Trigger};
    let mut rig = Rig::open();
    let eventfd = || -> OwnedFd { EventFd::new().expect("an eventfd").into() };
    let (one, two) = (eventfd(), eventfd());
    let not: OwnedFd = memfd(1).into();
    let none = IrqSetData::None;
    let by_eventfd = IrqSetData::Eventfd;
    for (request, descriptors) in [
        (irqs(5, 0, 1, Trigger, none), &[][..]),
        (irqs(1, 0, 1, Trigger, none), &[]),
        (irqs(MSIX, VECTORS, 1, Trigger, none), &[]),
        (irqs(MSIX, VECTORS - 1, 2, Trigger, none), &[]),
        (irqs(MSIX, 0, u32::MAX, Trigger, none), &[]),
        (irqs(MSIX, u32::MAX, 1, Trigger, none), &[]),
        (irqs(MSIX, 0, 1, Mask, none), &[]),
        (irqs(MSIX, 0, 1, Trigger, none), &[&one]),
        (
            irqs(MSIX, 0, 2, Trigger, IrqSetData::Bool(&[1, 1])),
            &[&one, &two],
        ),
        (irqs(MSIX, 0, 2, Trigger, by_eventfd), &[&one]),
        (irqs(MSIX, 0, 1, Trigger, by_eventfd), &[&one, &two]),
        (irqs(MSIX, 0, 2, Trigger, by_eventfd), &[&one, &not]),
        (irqs(4, 0, 1, Trigger, by_eventfd), &[&one]),
    ] {
        assert_eq!(
            rig.ask_with(&request, descriptors).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    assert!(rig.device.state().vectors.is_empty());
}

#[test]
fn memory_is_mapped_and_unmapped() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(0x10_0000, 4 * PAGE), &[&file])
        .expect("mapped");
    // Without a descriptor: it is remembered.
    rig.ask(&map(0x80_0000, PAGE)).expect("mapped");
    {
        let state = rig.device.state();
        assert_eq!(state.maps[&0x10_0000].0, 4 * PAGE);
        assert!(state.maps[&0x10_0000].2.is_some());
        assert!(state.maps[&0x80_0000].2.is_none());
    }
    for (address, length) in [
        (0x10_0000, PAGE),
        (0x10_0000, 5 * PAGE),
        (0x10_0000 + PAGE, 3 * PAGE),
        (0, PAGE),
    ] {
        assert_eq!(rig.errno(&unmap(address, length)), Errno::ENOENT);
    }
    let answer = rig.ask(&unmap(0x10_0000, 4 * PAGE));
    let Reply::DmaUnmap(DmaUnmap::Region { address, length }) = decode(Command::DMA_UNMAP, &answer)
    else {
        panic!("another reply");
    };
    assert_eq!((address, length), (0x10_0000, 4 * PAGE));
    // With the memory's descriptor, as SPDK sends it.
    rig.ask_with(&unmap(0x80_0000, PAGE), &[&file])
        .expect("unmapped");
    assert!(rig.device.state().maps.is_empty());
    assert_eq!(rig.errno(&unmap(0x80_0000, PAGE)), Errno::ENOENT);
    // The top of the address space.
    rig.ask(&map(u64::MAX - PAGE + 1, PAGE)).expect("mapped");
    rig.ask(&map(0, PAGE)).expect("mapped");
    let answer = rig.ask(&Request::DmaUnmap(DmaUnmap::All));
    assert_eq!(
        decode(Command::DMA_UNMAP, &answer),
        Reply::DmaUnmap(DmaUnmap::All)
    );
    assert!(rig.device.state().maps.is_empty());
    rig.ask(&Request::DmaUnmap(DmaUnmap::All))
        .expect("nothing to do");
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(16 * PAGE, 4 * PAGE), &[&file])
        .expect("mapped");
    for (first, pages) in [(16, 4), (16, 1), (19, 1), (15, 2), (19, 4), (0, 100)] {
        assert_eq!(
            rig.ask_with(&map(first * PAGE, pages * PAGE), &[&file])
                .expect_err("refused"),
            Errno::EEXIST
        );
        assert_eq!(rig.errno(&map(first * PAGE, pages * PAGE)), Errno::EEXIST);
    }
    rig.ask(&map(15 * PAGE, PAGE)).expect("before");
    rig.ask(&map(20 * PAGE, PAGE)).expect("behind");
    let with = |access, offset, length| {
        Request::DmaMap(DmaMap {
            access,
            offset,
            address: 0,
            length,
        })
    };
    for request in [
        with(BOTH, 0, 1),
        with(BOTH, 0, PAGE + 1),
        with(BOTH, 1, PAGE),
        with(BOTH, 0, 5 * PAGE),
        with(BOTH, 4 * PAGE, PAGE),
        with(BOTH, u64::MAX - PAGE + 1, PAGE),
        with(BOTH, 1 << 63, PAGE),
        with(DmaAccess::empty(), 0, PAGE),
        map(1, PAGE),
    ] {
        assert_eq!(
            rig.ask_with(&request, &[&file]).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    // An offset without a file; two files; a size of nothing, or past the end of all addresses.
    assert_eq!(rig.errno(&with(BOTH, PAGE, PAGE)), Errno::EINVAL);
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&file, &file])
            .expect_err("refused"),
        Errno::EINVAL
    );
    assert_eq!(rig.errno(&map(0, 0)), Errno::EINVAL);
    assert_eq!(
        rig.errno(&map(u64::MAX - PAGE + 1, 2 * PAGE)),
        Errno::EINVAL
    );
    assert_eq!(rig.device.state().maps.len(), 3);
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let mut rig = Rig::open();
    let folder = tempfile::tempdir().expect("a directory");
    let directory: OwnedFd = std::fs::File::open(folder.path()).expect("open").into();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let eventfd: OwnedFd = EventFd::new().expect("an eventfd").into();
    for descriptor in [&directory, &socket.into(), &eventfd] {
        assert_eq!(
            rig.ask_with(&map(0, PAGE), &[descriptor])
                .expect_err("refused"),
            Errno::ENODEV
        );
    }
    let path = folder.path().join("file");
    std::fs::write(&path, vec![0; PAGE as usize]).expect("written");
    let read_only: OwnedFd = std::fs::File::open(&path).expect("open").into();
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&read_only])
            .expect_err("refused"),
        Errno::EACCES
    );
    assert_eq!(
        rig.ask_with(&map(0, 2 * PAGE), &[&read_only])
            .expect_err("refused"),
        Errno::EINVAL
    );
    let only_read = Request::DmaMap(DmaMap {
        access: DmaAccess::READ,
        offset: 0,
        address: 0,
        length: PAGE,
    });
    rig.ask_with(&only_read, &[&read_only])
        .expect("mapped for reading");
    assert_eq!(rig.device.state().maps[&0].1, DmaAccess::READ);
}

#[test]
fn no_more_is_mapped_than_was_offered() {
    let mut options = SessionOptions::default();
    options.capabilities.max_dma_maps = 3;
    options.max_lent = 4 * PAGE;
    let mut rig = Rig::open_with(options);
    let file: OwnedFd = memfd(4).into();
    rig.ask_with(&map(0, 3 * PAGE), &[&file]).expect("mapped");
    assert_eq!(
        rig.ask_with(&map(64 * PAGE, 2 * PAGE), &[&file])
            .expect_err("too much"),
        Errno::ENOSPC
    );
    // What is not lent is not counted so.
    rig.ask(&map(64 * PAGE, 100 * PAGE)).expect("mapped");
    rig.ask_with(&map(32 * PAGE, PAGE), &[&file])
        .expect("mapped");
    assert_eq!(rig.errno(&map(1 << 40, PAGE)), Errno::ENOSPC);
    rig.ask(&unmap(0, 3 * PAGE)).expect("unmapped");
    rig.ask_with(&map(0, 3 * PAGE), &[&file])
        .expect("mapped again");
}

#[test]
fn unsealed_memory_is_refused_where_asked() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let options = SessionOptions {
        sealed_memory: true,
        ..SessionOptions::default()
    };
    let mut rig = Rig::open_with(options);
    let file: OwnedFd = memfd(1).into();
    assert_eq!(
        rig.ask_with(&map(0, PAGE), &[&file]).expect_err("refused"),
        Errno::EPERM
    );
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("sealed");
    rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
}

#[test]
fn the_reply_of_an_unmap_waits_for_the_device() {
    let mut rig = Rig::open();
    let file: OwnedFd = memfd(1).into();
    rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
    rig.device.state().hold = true;
    let unmapped = rig.client.send(&unmap(0, PAGE), &[]);
    let next = rig.client.send(&Request::DeviceReset, &[]);
    for _ in 0..3 {
        rig.poll();
        assert!(rig.client.try_receive().expect("a connection").is_none());
        // What comes later waits, and the session wants to be polled again soon.
        assert_eq!(rig.device.state().resets, 0);
        let soon = Instant::now() + Duration::from_millis(100);
        assert!(
            rig.session
                .deadline()
                .is_some_and(|deadline| deadline < soon)
        );
        assert!(
            rig.session
                .interest()
                .is_some_and(|interest| interest.is_empty())
        );
    }
    rig.device.state().hold = false;
    rig.answer(unmapped).expect("unmapped");
    assert_eq!(rig.device.state().resets, 1);
    rig.answer(next).expect("reset");
    rig.ask_with(&map(0, PAGE), &[&file]).expect("free again");
}

#[test]
fn an_unmap_that_fails_leaves_the_mapping() {
    let mut rig = Rig::open();
    for address in [0, PAGE, 2 * PAGE] {
        rig.ask(&map(address, PAGE)).expect("mapped");
    }
    rig.device.state().fail = Some(Errno::EIO);
    assert_eq!(rig.errno(&unmap(PAGE, PAGE)), Errno::EIO);
    assert_eq!(rig.errno(&map(PAGE, PAGE)), Errno::EEXIST);
    // All of them: the first fails, later ones are let go of, some after a while.
    {
        let mut state = rig.device.state();
        state.hold = true;
        state.fail = Some(Errno::EIO);
    }
    let id = rig.client.send(&Request::DmaUnmap(DmaUnmap::All), &[]);
    rig.poll();
    assert!(rig.client.try_receive().expect("a connection").is_none());
    rig.device.state().hold = false;
    assert_eq!(rig.answer(id).expect_err("one failed"), Errno::EIO);
    assert_eq!(rig.device.state().maps.len(), 1);
    rig.ask(&unmap(0, PAGE)).expect("the one that failed");
}

#[test]
fn a_client_that_dies_is_waited_for_until_the_device_let_go() {
    for holding in [false, true] {
        let mut rig = Rig::open();
        let file: OwnedFd = memfd(1).into();
        rig.ask_with(&map(0, PAGE), &[&file]).expect("mapped");
        rig.device.state().hold = true;
        if holding {
            rig.client.send(&unmap(0, PAGE), &[]);
            rig.poll();
        }
        let memory = rig.device.state().maps[&0].2.clone().expect("memory");
        let (_, other) = Socket::pair().expect("sockets");
        drop(std::mem::replace(&mut rig.client, Client::new(other)));
        for _ in 0..3 {
            assert_eq!(rig.poll(), SessionState::Ending);
            assert!(matches!(rig.session.end_reason(), Some(SessionEnd::Closed)));
            assert!(rig.session.interest().is_none());
            assert!(rig.session.deadline().is_some());
            // Still mapped.
            assert!(is_mapped(&memory));
        }
        rig.device.state().hold = false;
        rig.ended();
        let address = memory.pointer().as_ptr().addr();
        assert!(is_mapped(&memory));
        drop(memory);
        assert!(!lent_at(address));
        assert_eq!(rig.session.deadline(), None);
    }
}

fn is_mapped(memory: &nvme_vfio_user::ClientMemory) -> bool {
    lent_at(memory.pointer().as_ptr().addr())
}

fn lent_at(address: usize) -> bool {
    std::fs::read_to_string("/proc/self/maps")
        .expect("this process's mappings")
        .lines()
        .any(|line| line.starts_with(&format!("{address:x}-")) && line.contains("lent"))
}

#[test]
fn messages_come_in_pieces() {
    let mut rig = Rig::with(SessionOptions::default());
    let mut bytes = rig.client.encode(&VERSION, false).0;
    bytes.extend(rig.client.encode(&write(BAR, 32, &[9; 5]), false).0);
    let (last, id) = rig.client.encode(&read(BAR, 32, 5), false);
    bytes.extend(last);
    for byte in &bytes {
        rig.client.send_bytes(&[*byte], &[]).expect("sent");
        assert_eq!(rig.poll(), SessionState::Open);
    }
    for _ in 0..2 {
        rig.client
            .try_receive()
            .expect("a connection")
            .expect("a reply");
    }
    let answer = rig.answer(id);
    assert!(matches!(
        decode(Command::REGION_READ, &answer),
        Reply::RegionRead(_, [9, 9, 9, 9, 9])
    ));
}

#[test]
fn waits_have_an_end() {
    let short = Duration::from_millis(30);
    let options = SessionOptions {
        version_timeout: short,
        message_timeout: short,
        reply_timeout: short,
        ..SessionOptions::default()
    };
    let wait = |rig: &mut Rig| {
        let begun = Instant::now();
        while rig.poll() == SessionState::Open {
            assert!(begun.elapsed() < Duration::from_secs(20));
            let until = rig.session.deadline().expect("a deadline");
            assert!(until < Instant::now() + 2 * short);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        rig.ended()
    };
    let mut rig = Rig::with(options.clone());
    assert!(wait(&mut rig).contains("version in time"));

    let mut rig = Rig::open_with(options.clone());
    assert_eq!(
        (rig.poll(), rig.session.deadline()),
        (SessionState::Open, None)
    );
    rig.client.send_bytes(&[0; 3], &[]).expect("sent");
    rig.poll();
    assert!(wait(&mut rig).contains("end its message"));

    // Progress is not enough: the whole message counts.
    let mut rig = Rig::open_with(options.clone());
    let header = Header::request(1, Command::REGION_WRITE, 1000, false).encode();
    rig.client.send_bytes(&header, &[]).expect("sent");
    let begun = Instant::now();
    while rig.poll() == SessionState::Open {
        assert!(begun.elapsed() < Duration::from_secs(20));
        let _ = rig.client.send_bytes(&[0], &[]);
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(rig.ended().contains("end its message"));

    // A client that asks and does not read.
    let mut rig = Rig::open_with(options);
    let (request, _) = rig.client.encode(&read(BAR, 0, 2 * PAGE as u32), false);
    let mut sent = 0;
    while rig.session.interest() != Some(nix::poll::PollFlags::POLLOUT) {
        rig.client.send_bytes(&request, &[]).expect("sent");
        rig.poll();
        sent += 1;
        assert!(sent < 100);
    }
    assert!(wait(&mut rig).contains("read its reply"));
}

#[test]
fn a_client_that_does_not_read_costs_one_reply() {
    let mut rig = Rig::open();
    let (request, id) = rig.client.encode(&read(BAR, 0, 2 * PAGE as u32), false);
    // More than the sockets hold, in requests that they do hold.
    let mut sent = 0_u64;
    while sent < 100 {
        if rig
            .client
            .socket
            .try_send(&request, &[])
            .expect("a connection")
            .is_none()
        {
            break;
        }
        sent += 1;
        rig.poll();
    }
    assert_eq!(rig.session.interest(), Some(nix::poll::PollFlags::POLLOUT));
    for _ in 0..sent {
        let message = loop {
            match rig.client.try_receive().expect("a connection") {
                Some(message) => break message,
                None => assert_eq!(rig.poll(), SessionState::Open),
            };
        };
        assert_eq!(
            answer(message, id).expect("read").0.len() as u64,
            16 + 2 * PAGE
        );
    }
}

#[test]
fn what_is_no_message_ends_the_session() {
    let command = |length: u32, flags: u32, errno: u32| {
        let mut bytes = vec![1, 0, 4, 0];
        for word in [length, flags, errno] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    };
    for bytes in [
        vec![0xff; 64],
        vec![0; 64],
        command(15, 0, 0),
        command(0, 0, 0),
        command(32, 2, 0),
        command(32, 0x40, 0),
        command(32, 0x20, 0),
        command(32, 0, 1),
        command(u32::MAX, 0, 0),
        command(2 << 20, 0, 0),
        // Replies to nothing.
        command(16, 1, 0),
        command(16, 0x21, 5),
    ] {
        let mut rig = Rig::open();
        rig.client.send_bytes(&bytes, &[]).expect("sent");
        rig.ended();
        // The client sees the end once the session is dropped.
        let Rig {
            session,
            mut client,
            ..
        } = rig;
        drop(session);
        assert!(client.try_receive().is_err(), "{bytes:?}");
    }
    let mut rig = Rig::open();
    rig.client
        .send_bytes(&command(32, 0, 0)[..7], &[])
        .expect("sent");
    rig.poll();
    let (_, other) = Socket::pair().expect("sockets");
    drop(std::mem::replace(&mut rig.client, Client::new(other)));
    assert!(rig.ended().contains("inside a message"));
}

#[test]
fn payloads_that_are_none_are_refused_one_by_one() {
    let mut rig = Rig::open();
    for command in 0..30 {
        for length in [0, 1, 7, 15, 17, 31, 33, 100] {
            let payload = vec![0xa5; length];
            // DEVICE_RESET alone has none.
            if Command(command) == Command::DEVICE_RESET && length == 0 {
                continue;
            }
            let errno = rig
                .ask_bytes(Command(command), &payload)
                .expect_err("refused");
            assert!(
                [Errno::EINVAL, Errno::ENOTSUP].contains(&errno),
                "{command}, {length}: {errno}"
            );
        }
    }
    // What a server asks its client, and what is not offered.
    for (command, payload) in [
        (Command::DMA_READ, &[0; 16][..]),
        (Command::DMA_WRITE, &[0; 16]),
        (Command::DEVICE_FEATURE, &[8, 0, 0, 0, 1, 0, 4, 0]),
        (Command::MIG_DATA_READ, &[16, 0, 0, 0, 8, 0, 0, 0]),
        (Command::MIG_DATA_WRITE, &[8, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(
            rig.ask_bytes(command, payload).expect_err("refused"),
            Errno::ENOTSUP
        );
    }
    assert_eq!(rig.poll(), SessionState::Open);
}

#[test]
fn descriptors_where_none_belong_are_refused_and_closed() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let writer = OwnedFd::from(writer);
    let mut rig = Rig::open();
    for request in [
        Request::DeviceGetInfo,
        read(BAR, 0, 4),
        Request::DeviceReset,
        map(0, PAGE),
        unmap(0, PAGE),
    ] {
        let two = [&writer, &writer];
        assert_eq!(
            rig.ask_with(&request, &two).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    // More than were offered end the session.
    let nine: Vec<_> = (0..9).map(|_| writer.as_fd()).collect();
    rig.client.send(
        &irqs(MSIX, 0, 9, IrqAction::Trigger, IrqSetData::Eventfd),
        &nine,
    );
    assert!(rig.ended().contains("descriptors"));
    drop(writer);
    // None is left: the pipe has no writer.
    let mut end = [nix::poll::PollFd::new(
        reader.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut end, nix::poll::PollTimeout::ZERO).expect("polled");
    assert!(
        end[0]
            .revents()
            .is_some_and(|events| events.contains(nix::poll::PollFlags::POLLHUP))
    );
}

#[test]
fn a_client_that_takes_memory_away_is_sent_away() {
    nvme_vfio_user::sigbus::install().expect("installed");
    let mut rig = Rig::open();
    let file = memfd(2);
    let descriptor: OwnedFd = file.try_clone().expect("a duplicate").into();
    rig.ask_with(&map(0, 2 * PAGE), &[&descriptor])
        .expect("mapped");
    // It can happen at any time, so the session looks now and then.
    assert!(rig.session.deadline().is_some());
    file.set_len(PAGE).expect("truncated");
    assert_eq!(rig.poll(), SessionState::Open);
    let memory = rig.device.state().maps[&0].2.clone().expect("memory");
    fault(&memory, PAGE as usize);
    assert!(memory.is_lost());
    assert!(rig.ended().contains("took memory away"));
    // Others go on.
    let mut other = Rig::open();
    other.ask(&Request::DeviceGetInfo).expect("answered");
}

#[expect(unsafe_code, reason = "touches the memory")]
fn fault(memory: &nvme_vfio_user::ClientMemory, offset: usize) {
    // SAFETY: inside the mapping, which nobody refers to.
    unsafe { memory.pointer().add(offset).write_volatile(1) };
}

#[test]
fn the_server_can_send_a_client_away() {
    let mut rig = Rig::open();
    rig.session.end(SessionEnd::Stopped);
    assert!(rig.ended().contains("sent the client away"));
    assert_eq!(rig.poll(), SessionState::Ended);
    assert_eq!(rig.device.state().disconnects, 1);
}

#[test]
fn the_offer_by_default_is_what_clients_take() {
    let offer = SessionOptions::default().capabilities;
    // QEMU takes at most 16 descriptors, 65535 mappings, and page sizes of at least 4 KiB.
    assert!((1..=16).contains(&offer.max_msg_fds) && offer.max_dma_maps <= 65535);
    assert_eq!(
        offer.max_data_xfer_size,
        Capabilities::default().max_data_xfer_size
    );
    assert!(offer.pgsizes.is_power_of_two() && offer.pgsizes >= 4096);
}
