//! The client against a server that does as it is told, wrong things above all.

use std::fs::File;
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::fcntl::FcntlArg;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::*;
use crate::message::{
    DecodeError, DeviceFlags, DeviceInfo, DmaAccess, DmaUnmap, IrqAction, IrqFlags, IrqInfo,
    IrqSetData, RegionAccess, RegionFlags, RegionInfo, SetIrqs, SparseArea,
};

/// A server that is written down step by step.
struct Fake {
    socket: Socket,
    reader: MessageReader,
}

impl Fake {
    fn far() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    fn next(&mut self) -> Message {
        self.reader.wait(&self.socket, Self::far()).unwrap()
    }

    /// Takes the next request, which must be `command`, and answers it with `reply` and descriptors.
    fn answer(
        &mut self,
        command: Command,
        reply: &Reply<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Message {
        let message = self.next();
        assert_eq!(message.header.command, command);
        let mut out = Vec::new();
        reply.encode(&message.header, &mut out);
        self.socket
            .send_all(&out, descriptors, Self::far())
            .unwrap();
        message
    }

    fn send(&self, bytes: &[u8]) {
        self.socket.send_all(bytes, &[], Self::far()).unwrap();
    }

    fn version(&mut self, text: &str) {
        let version = Version {
            major: 0,
            minor: 1,
            data: text.as_bytes(),
        };
        self.answer(Command::VERSION, &Reply::Version(version), &[]);
    }
}

/// A short wait, for servers that do not answer; long enough for those that do, on a busy machine.
const SHORT: Duration = Duration::from_millis(300);

/// A client that connects to what `script` makes of its end.
fn start<T: Send + 'static>(
    timeout: Duration,
    script: impl FnOnce(&mut Fake) -> T + Send + 'static,
) -> (Result<Client, ClientError>, JoinHandle<T>) {
    let (ours, theirs) = Socket::pair().unwrap();
    let server = thread::spawn(move || {
        let mut fake = Fake {
            socket: theirs,
            reader: MessageReader::new(2 << 20, 16),
        };
        script(&mut fake)
    });
    (Client::over(ours, &ClientOptions { timeout }), server)
}

/// A client whose server has agreed on a version and goes on with `script`.
fn agreed<T: Send + 'static>(
    timeout: Duration,
    script: impl FnOnce(&mut Fake) -> T + Send + 'static,
) -> (Client, JoinHandle<T>) {
    let (client, server) = start(timeout, |fake| {
        fake.version(r#"{"capabilities":{"max_msg_fds":3,"max_data_xfer_size":1000}}"#);
        script(fake)
    });
    (client.unwrap(), server)
}

const FAR: Duration = Duration::from_secs(20);

fn lost(client: &Client) {
    assert!(client.is_lost());
    let start = Instant::now();
    assert!(matches!(client.device_info(), Err(ClientError::Lost)));
    assert!(matches!(
        client.region_write_posted(0, 0, &[0]),
        Err(ClientError::Lost)
    ));
    assert!(
        start.elapsed() < SHORT,
        "a lost connection is not waited for"
    );
}

#[test]
fn agrees_on_capabilities() {
    let (client, server) = agreed(FAR, |_| ());
    assert_eq!(client.capabilities().max_msg_fds, 3);
    assert_eq!(client.capabilities().max_dma_maps, 65535);
    assert!(!client.is_lost());
    // The server is this process, which lives.
    server.join().unwrap();
    assert!(!client.server_has_ended(SHORT));
}

#[test]
fn other_versions_and_capabilities_that_are_none_are_refused() {
    let with = |major, minor, data: &'static str| {
        let (client, server) = start(FAR, move |fake| {
            let version = Version {
                major,
                minor,
                data: data.as_bytes(),
            };
            fake.answer(Command::VERSION, &Reply::Version(version), &[]);
        });
        server.join().unwrap();
        client.map(drop)
    };
    assert!(with(0, 0, "").is_ok());
    assert!(matches!(
        with(1, 0, ""),
        Err(ClientError::Version { major: 1, minor: 0 })
    ));
    assert!(matches!(with(0, 2, ""), Err(ClientError::Version { .. })));
    assert!(matches!(
        with(0, 1, "nonsense"),
        Err(ClientError::Capabilities(_))
    ));
    let twin = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#;
    let error = with(0, 1, twin).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Answer {
                reason: AnswerError::NotProposed,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_server_that_is_taken_says_so() {
    let (client, server) = start(FAR, |fake| {
        let message = fake.next();
        fake.send(&message.header.error(Errno::EBUSY as u32).encode());
    });
    let error = client.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY));
    assert!(error.to_string().contains("VERSION"), "{error}");
    server.join().unwrap();
}

#[test]
fn refusals_keep_their_errno_and_the_connection() {
    let (client, server) = agreed(FAR, |fake| {
        for errno in [Errno::EEXIST as u32, 0, 99_999, u32::MAX] {
            let message = fake.next();
            fake.send(&message.header.error(errno).encode());
        }
        fake.answer(Command::DEVICE_RESET, &Reply::DeviceReset, &[]);
    });
    let map = || client.dma_map(0, 4096, DmaAccess::READ, None).unwrap_err();
    assert_eq!(map().errno(), Some(Errno::EEXIST));
    assert!(map().to_string().contains("no reason"));
    assert!(map().to_string().contains("99999"));
    assert!(matches!(
        map(),
        ClientError::Refused {
            errno: u32::MAX,
            ..
        }
    ));
    client.reset().unwrap();
    server.join().unwrap();
}

#[test]
fn data_goes_in_pieces_of_the_servers_size() {
    let (client, server) = agreed(FAR, |fake| {
        let mut whole = Vec::new();
        for (offset, count) in [(10, 1000), (1010, 1000), (2010, 5)] {
            let access = RegionAccess {
                offset,
                region: 2,
                count,
            };
            let data: Vec<u8> = (0..count).map(|n| (n + offset as u32) as u8).collect();
            let message = fake.answer(Command::REGION_READ, &Reply::RegionRead(access, &data), &[]);
            assert_eq!(
                Request::decode(Command::REGION_READ, &message.payload),
                Ok(Request::RegionRead(access))
            );
            whole.extend(data);
        }
        for (offset, count) in [(0, 1000), (1000, 1000), (2000, 5)] {
            let access = RegionAccess {
                offset,
                region: 7,
                count,
            };
            let message = fake.answer(Command::REGION_WRITE, &Reply::RegionWrite(access), &[]);
            let data = &whole[offset as usize..][..count as usize];
            assert_eq!(
                Request::decode(Command::REGION_WRITE, &message.payload),
                Ok(Request::RegionWrite(access, data))
            );
        }
        let posted = fake.next();
        assert_eq!(posted.header.kind, Kind::Command { no_reply: true });
        // What is asked next is answered, and was asked with another number.
        let next = fake.answer(Command::DEVICE_RESET, &Reply::DeviceReset, &[]);
        assert_ne!(next.header.id, posted.header.id);
    });
    let mut data = vec![0; 2005];
    client.region_read(2, 10, &mut data).unwrap();
    client.region_write(7, 0, &data).unwrap();
    client
        .region_write_posted(0, 0x1000, &[1, 2, 3, 4])
        .unwrap();
    client.reset().unwrap();
    assert!(matches!(
        client.region_write_posted(0, 0, &[0; 1001]),
        Err(ClientError::Region { .. })
    ));
    assert!(matches!(
        client.region_read(0, u64::MAX, &mut [0; 2]),
        Err(ClientError::Region { .. })
    ));
    server.join().unwrap();
}

#[test]
fn memory_goes_with_its_descriptor() {
    let (client, server) = agreed(FAR, |fake| {
        let message = fake.answer(Command::DMA_MAP, &Reply::DmaMap, &[]);
        assert_eq!(message.descriptors.len(), 1);
        let message = fake.answer(Command::DMA_MAP, &Reply::DmaMap, &[]);
        assert_eq!(message.descriptors.len(), 0);
        let region = DmaUnmap::Region {
            address: 0x1000,
            length: 4096,
        };
        fake.answer(Command::DMA_UNMAP, &Reply::DmaUnmap(region), &[]);
        fake.answer(Command::DMA_UNMAP, &Reply::DmaUnmap(region), &[]);
    });
    let file = File::open("/dev/null").unwrap();
    client
        .dma_map(0x1000, 4096, DmaAccess::all(), Some((file.as_fd(), 0)))
        .unwrap();
    client.dma_map(0x2000, 4096, DmaAccess::READ, None).unwrap();
    client.dma_unmap(0x1000, 4096).unwrap();
    // It answers for another region than asked.
    let error = client.dma_unmap(0x2000, 4096).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Answer {
                reason: AnswerError::Differs,
                ..
            }
        ),
        "{error}"
    );
    lost(&client);
    server.join().unwrap();
}

#[test]
fn eventfds_go_in_chunks() {
    let (client, server) = agreed(FAR, |fake| {
        for (start, count, descriptors) in [(4, 3, 3), (7, 1, 1), (8, 2, 0), (10, 1, 1)] {
            let message = fake.answer(Command::DEVICE_SET_IRQS, &Reply::DeviceSetIrqs, &[]);
            let expected = SetIrqs {
                index: 2,
                start,
                count,
                action: IrqAction::Trigger,
                data: IrqSetData::Eventfd,
            };
            assert_eq!(
                Request::decode(message.header.command, &message.payload),
                Ok(Request::DeviceSetIrqs(expected))
            );
            assert_eq!(message.descriptors.len(), descriptors);
        }
        fake.answer(Command::DEVICE_SET_IRQS, &Reply::DeviceSetIrqs, &[]);
    });
    let file = File::open("/dev/null").unwrap();
    let (some, none) = (Some(file.as_fd()), None);
    client
        .set_irq_eventfds(2, 4, &[some, some, some, some, none, none, some])
        .unwrap();
    let off = SetIrqs {
        index: 2,
        start: 0,
        count: 0,
        action: IrqAction::Trigger,
        data: IrqSetData::None,
    };
    client.set_irqs(&off).unwrap();
    let wrong = SetIrqs {
        count: 1,
        data: IrqSetData::Eventfd,
        ..off
    };
    assert!(matches!(
        client.set_irqs(&wrong),
        Err(ClientError::Descriptors { .. })
    ));
    server.join().unwrap();
}

#[test]
fn requests_of_the_server_are_refused_and_not_waited_for() {
    let (client, server) = agreed(FAR, |fake| {
        let reset = fake.next();
        for (id, command) in [
            (77, Command::DMA_READ),
            (78, Command::DMA_WRITE),
            (79, Command(4711)),
        ] {
            fake.send(&Header::request(id, command, 0, false).encode());
            let refusal = fake.next();
            assert_eq!(
                refusal.header,
                Header::request(id, command, 0, false).error(Errno::ENOTSUP as u32)
            );
        }
        // One that wants no answer gets none.
        fake.send(&Header::request(80, Command::DMA_READ, 0, true).encode());
        fake.send(&reset.header.reply(0).encode());
        // One that comes while nothing is asked is answered when somebody attends to it.
        fake.send(&Header::request(81, Command::DMA_READ, 0, false).encode());
        assert_eq!(fake.next().header.id, 81);
    });
    client.reset().unwrap();
    while !server.is_finished() {
        client.attend();
        thread::sleep(Duration::from_millis(1));
    }
    server.join().unwrap();
    // The server is gone: found out without a request.
    client.attend();
    lost(&client);
}

/// What the client makes of one answer to `ask`.
fn wrong<R: std::fmt::Debug>(
    script: impl FnOnce(&mut Fake, Message) + Send + 'static,
    ask: impl FnOnce(&Client) -> Result<R, ClientError>,
) -> ClientError {
    let (client, server) = agreed(SHORT, |fake| {
        let message = fake.next();
        script(fake, message);
        // Waits until the client has gone away, so that what it sees is the answer and not the end.
        while fake.reader.wait(&fake.socket, Fake::far()).is_ok() {}
    });
    let start = Instant::now();
    let error = ask(&client).unwrap_err();
    assert!(start.elapsed() < FAR / 2, "{error}");
    lost(&client);
    drop(client);
    server.join().unwrap();
    error
}

fn reason(error: &ClientError) -> AnswerError {
    match error {
        ClientError::Answer { reason, .. } => *reason,
        other => panic!("{other}"),
    }
}

fn source(error: &ClientError) -> &SocketError {
    match error {
        ClientError::Socket { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn answers_to_other_questions_are_refused() {
    let error = wrong(
        |fake, message| {
            fake.send(
                &Header {
                    id: message.header.id.wrapping_add(1),
                    ..message.header.reply(0)
                }
                .encode(),
            )
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Foreign { .. }));
    let error = wrong(
        |fake, message| {
            fake.send(
                &Header {
                    command: Command::DMA_MAP,
                    ..message.header.reply(0)
                }
                .encode(),
            )
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Foreign { .. }));
    // Twice the same answer: the second answers the next question.
    let (client, server) = agreed(SHORT, |fake| {
        let reset = fake.answer(Command::DEVICE_RESET, &Reply::DeviceReset, &[]);
        fake.send(&reset.header.reply(0).encode());
        let _ = fake.reader.wait(&fake.socket, Fake::far());
    });
    client.reset().unwrap();
    assert!(matches!(
        reason(&client.reset().unwrap_err()),
        AnswerError::Foreign { .. }
    ));
    lost(&client);
    server.join().unwrap();
}

#[test]
fn short_long_and_differing_answers_are_refused() {
    let short = wrong(
        |fake, message| fake.send(&[&message.header.reply(4).encode()[..], &[0; 4]].concat()),
        Client::device_info,
    );
    assert!(
        matches!(
            reason(&short),
            AnswerError::Decode(DecodeError::Length { .. })
        ),
        "{short}"
    );
    let payload = wrong(
        |fake, message| fake.send(&[&message.header.reply(4).encode()[..], &[0; 4]].concat()),
        Client::reset,
    );
    assert!(
        matches!(reason(&payload), AnswerError::Decode(_)),
        "{payload}"
    );

    fn reading(done: RegionAccess, data: &'static [u8]) -> ClientError {
        wrong(
            move |fake, message| {
                let mut out = Vec::new();
                Reply::RegionRead(done, data).encode(&message.header, &mut out);
                fake.send(&out);
            },
            |client| client.region_read(1, 8, &mut [0; 4]),
        )
    }
    let asked = RegionAccess {
        offset: 8,
        region: 1,
        count: 4,
    };
    let fewer = reading(RegionAccess { count: 2, ..asked }, &[1; 2]);
    assert_eq!(reason(&fewer), AnswerError::Differs);
    let more = reading(RegionAccess { count: 8, ..asked }, &[1; 8]);
    assert_eq!(reason(&more), AnswerError::Differs);
    let none = reading(asked, &[]);
    assert!(matches!(reason(&none), AnswerError::Decode(_)));
    for done in [
        RegionAccess { offset: 9, ..asked },
        RegionAccess { region: 0, ..asked },
    ] {
        assert_eq!(reason(&reading(done, &[1; 4])), AnswerError::Differs);
    }
}

#[test]
fn huge_answers_are_refused_before_they_come() {
    let error = wrong(
        |fake, message| fake.send(&message.header.reply(u32::MAX - 16).encode()),
        Client::reset,
    );
    assert!(matches!(source(&error), SocketError::TooLong { .. }));
    let counts = wrong(
        |fake, message| {
            let info = DeviceInfo {
                flags: DeviceFlags::PCI,
                regions: u32::MAX,
                irqs: 5,
            };
            let mut out = Vec::new();
            Reply::DeviceGetInfo(info).encode(&message.header, &mut out);
            fake.send(&out);
        },
        Client::device_info,
    );
    assert_eq!(reason(&counts), AnswerError::Differs);
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused() {
    let with = |count: usize| {
        wrong(
            move |fake, message| {
                let file = File::open("/dev/null").unwrap();
                let reply = message.header.reply(0).encode();
                fake.socket
                    .send_all(&reply, &vec![file.as_fd(); count], Fake::far())
                    .unwrap();
            },
            Client::reset,
        )
    };
    assert_eq!(reason(&with(1)), AnswerError::Descriptors(1));
    assert!(matches!(
        source(&with(100)),
        SocketError::TooManyDescriptors { .. }
    ));
}

#[test]
fn nonsense_silence_and_the_end_are_told_apart() {
    let error = wrong(|fake, _| fake.send(&[0xff; 16]), Client::reset);
    assert!(matches!(source(&error), SocketError::Header(_)));
    let error = wrong(|_, _| (), Client::reset);
    assert!(matches!(source(&error), SocketError::TimedOut));
    let error = wrong(
        |fake, message| fake.send(&message.header.reply(0).encode()[..9]),
        Client::reset,
    );
    assert!(matches!(source(&error), SocketError::TimedOut));
    let (client, server) = agreed(FAR, |fake| drop(fake.next()));
    assert!(matches!(
        source(&client.reset().unwrap_err()),
        SocketError::Closed
    ));
    server.join().unwrap();
    lost(&client);
}

#[test]
fn a_server_that_only_asks_is_given_up() {
    let error = wrong(
        |fake, _| {
            for id in 0..2000 {
                let request = Header::request(id, Command::DMA_READ, 0, true).encode();
                if fake.socket.send_all(&request, &[], Fake::far()).is_err() {
                    break;
                }
            }
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Flood));
}

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

#[test]
fn interrupts_are_described() {
    let (client, server) = agreed(FAR, |fake| {
        let info = IrqInfo {
            flags: IrqFlags::EVENTFD,
            index: 2,
            count: 9,
        };
        fake.answer(
            Command::DEVICE_GET_IRQ_INFO,
            &Reply::DeviceGetIrqInfo(info),
            &[],
        );
        fake.answer(
            Command::DEVICE_GET_IRQ_INFO,
            &Reply::DeviceGetIrqInfo(info),
            &[],
        );
    });
    assert_eq!(client.irq_info(2).unwrap().count, 9);
    assert_eq!(
        reason(&client.irq_info(1).unwrap_err()),
        AnswerError::Differs
    );
    server.join().unwrap();
}

/// Requests of many threads do not get each other's answers.
#[test]
fn threads_take_turns() {
    let (client, server) = agreed(FAR, |fake| {
        while let Ok(message) = fake.reader.wait(&fake.socket, Fake::far()) {
            let Ok(Request::RegionRead(access)) =
                Request::decode(message.header.command, &message.payload)
            else {
                panic!("{message:?}");
            };
            let mut out = Vec::new();
            Reply::RegionRead(access, &access.offset.to_ne_bytes())
                .encode(&message.header, &mut out);
            fake.send(&out);
        }
    });
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..500 {
                    let offset = thread << 32 | round;
                    let mut data = [0; 8];
                    client.region_read(0, offset, &mut data).unwrap();
                    assert_eq!(u64::from_ne_bytes(data), offset);
                }
            });
        }
    });
    drop(client);
    server.join().unwrap();
}

/// A server in a process of its own that is killed has ended; one that only closed the connection has not, and neither has one that was stopped.
#[test]
fn only_the_end_of_the_process_is_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // A process that listens, accepts, and then does nothing: the shell's `read` waits on the socket's file as its input.
    let mut child = match fork_listener(&path) {
        Ok(child) => child,
        Err(why) => panic!("no server process: {why}"),
    };
    let socket = Socket::connect(&path, Deadline::after(FAR)).unwrap();
    let peer = Peer::of(&socket);
    assert!(!peer.has_ended(&socket, Deadline::at(Instant::now())));
    nix::sys::signal::kill(child.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert!(!peer.has_ended(&socket, Deadline::at(Instant::now())));
    child.kill();
    let start = Instant::now();
    while !peer.has_ended(&socket, Deadline::at(Instant::now())) {
        assert!(start.elapsed() < FAR, "the end of the process was not seen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// This test program again, as a server: see `listener_process`.
struct Listener(std::process::Child);

impl Listener {
    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0.id() as i32)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LISTEN: &str = "NVME_VFIO_USER_TEST_LISTEN";

fn fork_listener(path: &Path) -> std::io::Result<Listener> {
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["client::tests::listener_process", "--exact", "--nocapture"])
        .env(LISTEN, path)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let listener = Listener(child);
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < FAR, "the server process does not listen");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(listener)
}

/// Not a test by itself: what `fork_listener` runs.
#[test]
fn listener_process() {
    let Ok(path) = std::env::var(LISTEN) else {
        return;
    };
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let _connection = listener.accept().unwrap();
    thread::sleep(FAR);
}
