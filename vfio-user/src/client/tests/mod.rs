//! The client against a server that does as it is told, wrong things above all.

mod end;
mod regions;
mod wrong;

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
        Deadline::after(FAR)
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

/// A short wait, for servers that do not answer.
const SHORT: Duration = Duration::from_millis(300);
/// For what comes, however busy the machine is.
const FAR: Duration = Duration::from_secs(60);

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

fn lost(client: &Client) {
    assert!(client.is_lost());
    let start = Instant::now();
    assert!(matches!(client.device_info(), Err(ClientError::Lost)));
    assert!(matches!(
        client.region_write_posted(0, 0, &[0]),
        Err(ClientError::Lost)
    ));
    assert!(
        start.elapsed() < FAR / 2,
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
    // The server is gone: found out without a request. (Not at once: a process that another test is just starting has its end, too, until it runs its program.)
    let start = Instant::now();
    while !client.is_lost() {
        assert!(start.elapsed() < FAR, "its end was not seen");
        client.attend();
    }
    lost(&client);
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
        wrong::reason(&client.irq_info(1).unwrap_err()),
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

/// The time that a thread waits for its turn is not taken from its request.
#[test]
fn each_request_has_its_own_time() {
    let (mut client, server) = agreed(FAR, |fake| {
        // The answer is there before the question is: that takes none of its time.
        let reset = Header::request(1, Command::DEVICE_RESET, 0, false);
        fake.send(&reset.reply(0).encode());
        fake.next()
    });
    let timeout = Duration::from_secs(5);
    client.timeout = timeout;
    let turn = client.lock();
    let begun = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            begun.wait();
            client.reset()
        });
        begun.wait();
        // Longer than the request may take.
        thread::sleep(timeout + SHORT);
        assert!(!waiting.is_finished());
        drop(turn);
        waiting.join().unwrap().unwrap();
    });
    server.join().unwrap();
}
