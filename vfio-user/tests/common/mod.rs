//! A device to serve, and a client that says whatever it likes.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_user::device::{
    Device, DeviceFlags, DeviceInfo, DmaAccess, Errno, Irq, IrqAction, IrqData, IrqFlags, Progress,
    Region, RegionFlags, RegionMapping, SparseArea,
};
use nvme_vfio_user::message::{Command, DmaMap, DmaUnmap, Header, Kind, Request, Version};
use nvme_vfio_user::socket::{Message, SocketError};
use nvme_vfio_user::{ClientMemory, Deadline, Eventfd, MessageReader, Socket, Stop};

/// One page, and a multiple of every page that these tests may meet.
pub const PAGE: u64 = 64 << 10;
pub const BOTH: DmaAccess = DmaAccess::READ.union(DmaAccess::WRITE);
/// A BAR, of which the second half can be mapped.
pub const BAR: u32 = 0;
/// A region that can only be read.
pub const ROM: u32 = 6;
pub const CONFIG: u32 = 7;
pub const MSIX: u32 = 2;
pub const VECTORS: u32 = 40;

/// Writing there in the configuration space makes the device touch every page of all memory that was lent to it.
pub const TOUCH: u64 = 0x100;

/// Writing there in the configuration space begins a reset.
pub const RESET: u64 = 0x200;

/// Storage with interrupts. Writing to its BAR at 0 triggers vector 0; offsets of 8 to 15 are refused.
pub struct TestDevice {
    state: Mutex<State>,
    doorbells: File,
    areas: [SparseArea; 1],
}

#[derive(Default)]
pub struct State {
    pub bar: Vec<u8>,
    pub vectors: BTreeMap<u32, Eventfd>,
    pub maps: BTreeMap<u64, (u64, DmaAccess, Option<ClientMemory>)>,
    /// The device panics over the next write.
    pub panics: bool,
    /// The device does not let go.
    pub hold: bool,
    /// The device does not know what it does any more.
    pub broken: bool,
    /// Resets take until this is false: those by message, and those that a write to the configuration space at `RESET` begins.
    pub slow_resets: bool,
    /// A reset is under way.
    pub resetting: bool,
    /// What `unmapping` answers instead, once.
    pub fail: Option<Errno>,
    pub resets: usize,
    pub disconnects: usize,
    pub writes: Vec<(u32, u64, Vec<u8>)>,
    pub masked: Vec<(Range<u32>, bool)>,
}

impl State {
    #[expect(unsafe_code, reason = "reaches into the memory of clients")]
    fn touch(&self) {
        for (_, access, memory) in self.maps.values() {
            let Some(memory) = memory else { continue };
            for offset in (0..memory.len()).step_by(4096) {
                // SAFETY: inside the mapping, which this handle keeps and nobody refers to.
                unsafe {
                    let place = memory.pointer().add(offset);
                    let value = place.read_volatile();
                    if access.contains(DmaAccess::WRITE) {
                        place.write_volatile(value.wrapping_add(1));
                    }
                }
            }
        }
    }
}

impl TestDevice {
    pub fn new() -> Self {
        let doorbells = memfd(2);
        Self {
            state: Mutex::new(State {
                bar: vec![0; 2 * PAGE as usize],
                ..State::default()
            }),
            doorbells,
            areas: [SparseArea {
                offset: PAGE,
                size: PAGE,
            }],
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for TestDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            flags: DeviceFlags::PCI | DeviceFlags::RESET,
            regions: 9,
            irqs: 5,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        let both = RegionFlags::READ | RegionFlags::WRITE;
        match index {
            BAR => Some(Region {
                size: 2 * PAGE,
                flags: both,
                mapping: Some(RegionMapping {
                    descriptor: self.doorbells.as_fd(),
                    offset: 0,
                    areas: &self.areas,
                }),
            }),
            ROM => Some(Region {
                size: 16,
                flags: RegionFlags::READ,
                mapping: None,
            }),
            CONFIG => Some(Region {
                size: 4096,
                flags: both,
                mapping: None,
            }),
            _ => None,
        }
    }

    fn irq(&self, index: u32) -> Option<Irq> {
        match index {
            0 => Some(Irq {
                flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
                count: 1,
            }),
            MSIX => Some(Irq {
                flags: IrqFlags::EVENTFD,
                count: VECTORS,
            }),
            4 => Some(Irq {
                flags: IrqFlags::empty(),
                count: 1,
            }),
            _ => None,
        }
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let state = self.state();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match index {
                BAR => state.bar[at as usize],
                _ => at as u8,
            };
        }
        Ok(())
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.state();
        assert!(!std::mem::take(&mut state.panics), "as it was told to");
        if index == BAR && (8..16).contains(&offset) {
            return Err(Errno::EIO);
        }
        if index == BAR {
            let start = offset as usize;
            state.bar[start..start + data.len()].copy_from_slice(data);
            if offset == 0
                && let Some(eventfd) = state.vectors.get(&0)
            {
                eventfd.signal().expect("signalled");
            }
        }
        if index == CONFIG && offset == TOUCH {
            state.touch();
        }
        if index == CONFIG && offset == RESET {
            state.resetting = true;
        }
        if state.writes.len() < 1000 {
            state.writes.push((index, offset, data.to_vec()));
        }
        Ok(())
    }

    fn set_irqs(
        &self,
        index: u32,
        range: Range<u32>,
        action: IrqAction,
        data: IrqData,
    ) -> Result<(), Errno> {
        let mut state = self.state();
        match (action, data) {
            (IrqAction::Trigger, IrqData::Eventfds(eventfds)) if index == MSIX => {
                assert_eq!(eventfds.len(), range.len());
                for (vector, eventfd) in range.zip(eventfds) {
                    match eventfd {
                        Some(eventfd) => state.vectors.insert(vector, eventfd),
                        None => state.vectors.remove(&vector),
                    };
                }
            }
            (IrqAction::Trigger, IrqData::None) if range.is_empty() => state.vectors.clear(),
            (IrqAction::Trigger, data) => {
                let asked: Vec<bool> = match data {
                    IrqData::None => range.clone().map(|_| true).collect(),
                    IrqData::Bool(asked) => asked,
                    IrqData::Eventfds(_) => return Err(Errno::EINVAL),
                };
                assert_eq!(asked.len(), range.len());
                for (vector, _) in range.zip(asked).filter(|(_, asked)| *asked) {
                    if let Some(eventfd) = state.vectors.get(&vector) {
                        eventfd.signal()?;
                    }
                }
            }
            (action, _) => state.masked.push((range, action == IrqAction::Mask)),
        }
        Ok(())
    }

    fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno> {
        if let Some(memory) = &memory {
            assert_eq!((memory.len() as u64, memory.access()), (length, access));
        }
        let before = self.state().maps.insert(iova, (length, access, memory));
        assert!(before.is_none(), "mapped twice");
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.unmapping(iova, length)
    }

    fn unmapping(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        let mut state = self.state();
        assert_eq!(state.maps.get(&iova).map(|map| map.0), Some(length));
        if let Some(errno) = state.fail.take() {
            return Err(errno);
        }
        if state.hold {
            return Ok(Progress::Pending);
        }
        state.maps.remove(&iova);
        Ok(Progress::Done)
    }

    fn reset(&self) -> Result<(), Errno> {
        let mut state = self.state();
        state.resets += 1;
        state.resetting = true;
        Ok(())
    }

    fn settling(&self) -> Progress {
        let mut state = self.state();
        if state.resetting && state.slow_resets {
            return Progress::Pending;
        }
        state.resetting = false;
        Progress::Done
    }

    fn disconnected(&self) -> Progress {
        let mut state = self.state();
        if state.hold {
            return Progress::Pending;
        }
        state.disconnects += 1;
        state.maps.clear();
        state.vectors.clear();
        Progress::Done
    }

    fn is_broken(&self) -> bool {
        self.state().broken
    }
}

/// Memory of so many pages.
pub fn memfd(pages: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("lent", flags).expect("a memfd"));
    file.set_len(pages * PAGE).expect("a length");
    file
}

/// A client that checks nothing.
pub struct Client {
    pub socket: Socket,
    reader: MessageReader,
    next: u16,
}

/// What a reply said: its payload with its descriptors, or its error.
pub type Answer = Result<(Vec<u8>, Vec<OwnedFd>), Errno>;

impl Client {
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            reader: MessageReader::new(4 << 20, 16),
            next: 0,
        }
    }

    pub fn connect(path: &Path) -> Self {
        Self::new(Socket::connect(path, patience()).expect("connected"))
    }

    /// The bytes of a request, and its identifier.
    pub fn encode(&mut self, request: &Request<'_>, no_reply: bool) -> (Vec<u8>, u16) {
        self.next = self.next.wrapping_add(1);
        let mut bytes = Vec::new();
        request.encode(self.next, no_reply, &mut bytes);
        (bytes, self.next)
    }

    pub fn send(&mut self, request: &Request<'_>, descriptors: &[BorrowedFd<'_>]) -> u16 {
        let (bytes, id) = self.encode(request, false);
        self.socket
            .send_all(&bytes, descriptors, patience())
            .expect("sent");
        id
    }

    pub fn send_bytes(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        self.socket.send_all(bytes, descriptors, patience())
    }

    /// A payload that may be wrong, under a header that is right.
    pub fn send_payload(
        &mut self,
        command: Command,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> u16 {
        self.next = self.next.wrapping_add(1);
        let header = Header::request(self.next, command, payload.len() as u32, false);
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.socket
            .send_all(&bytes, descriptors, patience())
            .expect("sent");
        self.next
    }

    /// The next message, if it is there.
    pub fn try_receive(&mut self) -> Result<Option<Message>, SocketError> {
        self.reader.receive(&self.socket)
    }

    /// The next message.
    pub fn receive(&mut self) -> Result<Message, SocketError> {
        self.reader.wait(&self.socket, patience())
    }

    /// The reply to `id`.
    pub fn answer(&mut self, id: u16) -> Answer {
        answer(self.receive().expect("a reply"), id)
    }

    /// Asks, and waits for the reply of a server that runs by itself.
    pub fn ask(&mut self, request: &Request<'_>, descriptors: &[BorrowedFd<'_>]) -> Answer {
        let id = self.send(request, descriptors);
        self.answer(id)
    }
}

pub fn answer(message: Message, id: u16) -> Answer {
    assert_eq!(message.header.id, id);
    match message.header.kind {
        Kind::Reply => Ok((message.payload, message.descriptors)),
        Kind::Error { errno } => Err(Errno::from_raw(errno as i32)),
        Kind::Command { .. } => panic!("a request of the server"),
    }
}

/// Stops a server when it is dropped, also by a test that fails: whoever waits for the server would wait for ever.
pub struct StopAtEnd<'a>(pub &'a Stop);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

pub fn patience() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

pub const VERSION: Request<'static> = Request::Version(Version {
    major: 0,
    minor: 1,
    data: br#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}"#,
});

pub fn map(address: u64, length: u64) -> Request<'static> {
    Request::DmaMap(DmaMap {
        access: BOTH,
        offset: 0,
        address,
        length,
    })
}

pub fn unmap(address: u64, length: u64) -> Request<'static> {
    Request::DmaUnmap(DmaUnmap::Region { address, length })
}
