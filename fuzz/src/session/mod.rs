//! A vfio-user server's session with one client.
//!
//! An input is a client: requests with fields of its choice, bytes without any sense, descriptors of every kind, in any order; it reads replies when it
//! likes, and goes when it likes. The device behind the session holds it to what the trait promises.

mod checked;
mod descriptors;
mod lent;
mod served;

use std::collections::VecDeque;
use std::fs;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use nvme_vfio_user::device::Device;

use nvme_vfio_user::message::{Command, Header, Kind, Reply};
use nvme_vfio_user::{
    MessageReader, Session, SessionEnd, SessionOptions, SessionState, Socket, SocketError,
};

use crate::input::Input;
use checked::Checked;

pub use served::served;

/// What is behind a session.
trait Behind {
    fn device(&self) -> &dyn Device;

    /// An act of the input that is not the client's alone; messages that the client shall send. `None` at the input's end.
    fn act(&mut self, input: &mut Input<'_>) -> Option<Vec<Message>>;

    /// The client says nothing more, and waits for its replies.
    fn settle(&mut self);

    /// The client goes.
    fn leave(&mut self) {}

    /// Time passes while the session is waited for.
    fn pass(&mut self) {}

    /// The session has ended.
    fn check_end(&self);
}

/// A request with one descriptor beside it, or none.
struct Message {
    command: Command,
    payload: Vec<u8>,
    descriptor: Option<BorrowedFd<'static>>,
}

/// Mappings that a client may have.
const MAPS_MAX: u32 = 8;
/// How long threads may take to close what is theirs to close.
const PATIENCE: Duration = Duration::from_secs(60);
/// Polls after which a session must have answered everything, and one whose client is gone must have ended.
const END: usize = 2000;
/// Polls that a session has at least before its client goes.
const LAST: usize = 8;

struct Client<'a, B> {
    input: Input<'a>,
    socket: Socket,
    reader: MessageReader,
    session: Session,
    behind: B,
    /// What has no reply yet, oldest first.
    waiting: VecDeque<(u16, Command)>,
    /// Whether all that was sent were whole messages, so that it is known what must be answered.
    whole: bool,
    id: u16,
}

/// Runs an input on a session with a device that checks it.
///
/// # Panics
/// When the session did wrong.
pub fn session(data: &[u8]) {
    run(data, Checked::new);
}

fn run<B: Behind>(data: &[u8], behind: impl FnOnce() -> B) {
    // Made by whoever comes first, and kept.
    descriptors::of_kind(0);
    let before = open_descriptors();
    let mut input = Input::new(data);
    let Some(shape) = input.u8() else { return };
    let (socket, server) = Socket::pair().expect("two sockets");
    let mut options = SessionOptions::default();
    options.capabilities.max_dma_maps = MAPS_MAX;
    options.max_lent = 24 * 4096;
    // Closing is others' work, and replies are not to depend on how fast they are.
    options.max_unclosed = usize::MAX;
    options.sealed_memory = shape & 2 != 0;
    let session = Session::new(server, options).expect("a session");
    let mut client = Client {
        input,
        socket,
        reader: MessageReader::new(4 << 20, 16),
        session,
        behind: behind(),
        waiting: VecDeque::new(),
        whole: true,
        id: 0,
    };
    if shape & 1 == 0 {
        client.send(Command::VERSION, &version(shape), &[], false);
    }
    while client.act().is_some() {}
    client.end();
    settle(before);
    assert_eq!(before, open_descriptors(), "descriptors are left open");
}

/// VERSION with capabilities of several kinds.
fn version(shape: u8) -> Vec<u8> {
    let text: &[u8] = match shape >> 2 & 3 {
        0 => b"",
        1 => b"{\"capabilities\":{}}\0",
        2 => b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":4096,\"twin_socket\":{\"supported\":true}}}\0",
        _ => b"{\"capabilities\":{\"max_msg_fds\":0,\"write_multiple\":true}}\0",
    };
    [&[0, 0, 1, 0], text].concat()
}

impl<B: Behind> Client<'_, B> {
    /// One act of the input; `None` at its end.
    fn act(&mut self) -> Option<()> {
        match self.input.below(8)? {
            0 | 1 => {
                let (command, payload) = self.request()?;
                let (mut count, mut kinds, mut no_reply) = (0, 0, false);
                let extra = self.input.u8()?;
                if extra & 1 != 0 {
                    (count, kinds) = (extra >> 2 & 0xf, self.input.u8()?);
                }
                if extra & 2 != 0 {
                    no_reply = true;
                }
                let descriptors = beside(count, kinds);
                self.send(command, &payload, &descriptors, no_reply);
            }
            2 => {
                let (length, kinds) = (self.input.u8()?, self.input.u8()?);
                let bytes = self.input.bytes(length.into())?;
                let descriptors = beside(kinds & 3, kinds >> 2);
                self.whole = false;
                // The session may have gone.
                let _ = self.socket.try_send(bytes, &descriptors);
            }
            3 | 4 => {
                self.session.poll(self.behind.device());
            }
            5 => self.receive(),
            6 => {
                for message in self.behind.act(&mut self.input)? {
                    let beside = message.descriptor.as_slice();
                    self.send(message.command, &message.payload, beside, false);
                }
            }
            _ => self.socket.end(),
        }
        Some(())
    }

    /// A number that often means something.
    fn number(&mut self) -> Option<u64> {
        let byte = self.input.u8()?;
        Some(match byte {
            0..0x60 => byte.into(),
            0x60..0x90 => u64::from(byte - 0x60) * 4096,
            0x90..0xa0 => 0x1_0000_0000 + u64::from(byte - 0x90) * 4096,
            0xa0..0xb0 => (u64::from(byte - 0xa0) * 4096).wrapping_neg(),
            0xb0..0xc0 => u64::from(u32::MAX) - u64::from(byte - 0xb0),
            0xc0..0xe0 => u64::from(self.input.u16()?),
            _ => self.input.u64()?,
        })
    }

    fn number32(&mut self) -> Option<u32> {
        // The low half is what a field of four bytes keeps.
        Some(self.number()? as u32)
    }

    /// A request whose fixed part has the right length.
    fn request(&mut self) -> Option<(Command, Vec<u8>)> {
        let which = self.input.u8()?;
        let mut payload = Vec::new();
        let put32 = |payload: &mut Vec<u8>, values: &[u32]| {
            payload.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        };
        let command = match which % 16 {
            0 => {
                put32(&mut payload, &[32, self.number32()?]);
                for _ in 0..3 {
                    payload.extend(self.number()?.to_le_bytes());
                }
                Command::DMA_MAP
            }
            1 => {
                put32(&mut payload, &[24, self.number32()?]);
                for _ in 0..2 {
                    payload.extend(self.number()?.to_le_bytes());
                }
                Command::DMA_UNMAP
            }
            2 => {
                put32(&mut payload, &[16, 0, 0, 0]);
                Command::DEVICE_GET_INFO
            }
            3 => {
                put32(
                    &mut payload,
                    &[self.number32()?, 0, self.number32()?, 0, 0, 0, 0, 0],
                );
                payload.resize(payload.len() + usize::from(self.input.u8()?), 0);
                Command::DEVICE_GET_REGION_INFO
            }
            4 => {
                put32(&mut payload, &[self.number32()?, 0, self.number32()?, 0]);
                Command::DEVICE_GET_REGION_IO_FDS
            }
            5 => {
                put32(&mut payload, &[16, 0, self.number32()?, 0]);
                Command::DEVICE_GET_IRQ_INFO
            }
            6 | 7 => {
                let data = usize::from(self.input.below(64)?);
                let flags = 1 << self.input.below(3)? | 8 << self.input.below(3)?;
                let (index, start, count) = (self.number32()?, self.number32()?, self.number32()?);
                put32(
                    &mut payload,
                    &[20 + data as u32, flags, index, start, count],
                );
                payload.extend(self.input.bytes(data)?);
                Command::DEVICE_SET_IRQS
            }
            8 => {
                payload.extend(self.number()?.to_le_bytes());
                put32(&mut payload, &[self.number32()?, self.number32()?]);
                Command::REGION_READ
            }
            9 => {
                payload.extend(self.number()?.to_le_bytes());
                let length = self.input.u8()?;
                put32(&mut payload, &[self.number32()?, length.into()]);
                payload.extend(self.input.bytes(length.into())?);
                Command::REGION_WRITE
            }
            10 => Command::DEVICE_RESET,
            11 => {
                let count = self.input.below(8)?;
                payload.extend(u64::from(count).to_le_bytes());
                for _ in 0..count {
                    payload.extend(self.number()?.to_le_bytes());
                    put32(&mut payload, &[self.number32()?, self.number32()?]);
                    payload.extend(self.number()?.to_le_bytes());
                }
                Command::REGION_WRITE_MULTI
            }
            12 => {
                payload.extend(version(self.input.u8()?));
                Command::VERSION
            }
            13 => {
                let length = self.input.u8()?;
                payload.extend(self.input.bytes(length.into())?);
                Command(self.input.u16()?)
            }
            _ => {
                let command = Command(self.input.below(20)?.into());
                let length = self.input.u8()?;
                payload.extend(self.input.bytes(length.into())?);
                command
            }
        };
        Some((command, payload))
    }

    fn send(
        &mut self,
        command: Command,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
        no_reply: bool,
    ) {
        self.id = self.id.wrapping_add(1);
        let header = Header::request(self.id, command, payload.len() as u32, no_reply);
        let bytes = [&header.encode(), payload].concat();
        match self.socket.try_send(&bytes, descriptors) {
            Ok(Some(sent)) if sent == bytes.len() => {
                if !no_reply {
                    self.waiting.push_back((self.id, command));
                }
            }
            // No room, or the session has gone.
            _ => self.whole = false,
        }
    }

    /// Reads what replies there are, and holds them against the requests.
    fn receive(&mut self) {
        loop {
            let message = match self.reader.receive(&self.socket) {
                Ok(Some(message)) => message,
                Ok(None) | Err(SocketError::Closed) => return,
                Err(error) => panic!("the session sent no message: {error}"),
            };
            let header = message.header;
            if let Kind::Command { .. } = header.kind {
                panic!("a request from the session: {header:?}");
            }
            if !self.whole {
                continue;
            }
            let asked = self.waiting.pop_front();
            assert_eq!(
                Some((header.id, header.command)),
                asked,
                "a reply to something else"
            );
            if header.kind == Kind::Reply {
                let reply = Reply::decode(header.command, &message.payload);
                assert!(reply.is_ok(), "{header:?}: {reply:?}");
            }
            let passed = message.descriptors.len();
            let most = usize::from(header.command == Command::DEVICE_GET_REGION_INFO);
            assert!(passed <= most, "{passed} descriptors with {header:?}");
        }
    }

    /// Whether something that must be answered has not been.
    fn awaits_replies(&self) -> bool {
        self.whole && self.session.state() == SessionState::Open && !self.waiting.is_empty()
    }

    /// Lets the session answer everything, and goes.
    fn end(mut self) {
        self.behind.settle();
        for poll in 1..=END {
            self.behind.pass();
            self.session.poll(self.behind.device());
            self.receive();
            // A poll handles some messages at most, and none behind one whose reply waits for the device.
            if poll >= LAST && !self.awaits_replies() {
                break;
            }
        }
        assert!(!self.awaits_replies(), "no reply to {:?}", self.waiting);
        drop(self.socket);
        self.behind.leave();
        let ended = (0..END).any(|_| {
            self.behind.pass();
            self.session.poll(self.behind.device()) == SessionState::Ended
        });
        assert!(ended, "it does not end");
        // A panic ends a session as a client's going does; here it is what is looked for.
        let end = self.session.end_reason();
        assert!(!matches!(end, Some(SessionEnd::Panicked)), "it panicked");
        self.behind.check_end();
    }
}

/// Descriptors of these kinds.
fn beside(count: u8, kinds: u8) -> Vec<BorrowedFd<'static>> {
    (0..count)
        .map(|index| descriptors::of_kind(kinds.wrapping_add(index * (kinds >> 4 & 1))))
        .collect()
}

/// Waits until no more descriptors are open than there were: what came from a client, and eventfds, are closed by threads of their own.
///
/// The threads themselves cannot be waited for: a list of them that one leaves while it is read may end there.
fn settle(before: Option<usize>) {
    let end = Instant::now() + PATIENCE;
    while open_descriptors().is_none_or(|now| Some(now) > before) && Instant::now() < end {
        thread::yield_now();
    }
}

/// How many open descriptors this process has; `None` where it has so many that it cannot look.
fn open_descriptors() -> Option<usize> {
    fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
}
