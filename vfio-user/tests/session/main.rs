//! The session of one client, step by step.

#[path = "../common/mod.rs"]
mod common;
mod ending;
mod interrupts;
mod memory;
mod regions;
mod version;
mod wire;

use std::os::fd::{AsFd, OwnedFd};

use common::*;
use nvme_vfio_user::device::{Errno, IrqAction};
use nvme_vfio_user::message::{
    Command, IrqSetData, RegionAccess, Reply, Request, SetIrqs, Version,
};
use nvme_vfio_user::{Session, SessionOptions, SessionState, Socket};

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
