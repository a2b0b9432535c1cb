//! What the driver's tests share.
#![allow(dead_code)] // each test binary uses its part of it

use std::sync::Arc;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, AddressSpace, Controller, Error, Options, Transport};
use nvme_vfio_queues::ring::Doorbell;

/// The controller under test: the one that `NVME_VFIO_TEST_ADDRESS` names, or an emulated one. Tests that name a real controller
/// are run one at a time (`--test-threads=1`).
pub(crate) fn address() -> Address {
    let address = std::env::var("NVME_VFIO_TEST_ADDRESS");
    address
        .as_deref()
        .unwrap_or("emulated:size=64M")
        .parse()
        .expect("NVME_VFIO_TEST_ADDRESS names a controller")
}

pub(crate) fn open() -> Controller {
    open_with(Options::default())
}

pub(crate) fn open_with(options: Options) -> Controller {
    Controller::open_with(&address(), options).expect("the controller under test opens")
}

/// A small seeded generator (xorshift64*), so that every run is the same one unless `NVME_VFIO_SEED` says otherwise.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(what: &str) -> Self {
        Self(nvme_vfio_seeded::seed(what, 0x5eed_0001) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Another way to the same emulated controller.
#[derive(Debug)]
pub(crate) struct Way(pub(crate) Arc<EmulatedTransport>);

#[allow(unsafe_code)] // passes on what the driver answers for
impl Transport for Way {
    fn address_space(&self) -> &AddressSpace {
        self.0.address_space()
    }

    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset)
    }

    unsafe fn write32(&self, offset: usize, value: u32) {
        // SAFETY: the caller answers for it.
        unsafe { self.0.write32(offset, value) };
    }

    unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: the caller answers for it.
        unsafe { self.0.write64(offset, value) };
    }

    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        // SAFETY: the caller answers for it.
        unsafe { self.0.doorbell(offset) }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        self.0.set_bus_master(on)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.0.config_read(offset, data)
    }

    fn reset(&self) -> Result<(), Error> {
        self.0.reset()
    }

    fn relax(&self) {
        self.0.relax();
    }

    fn name(&self) -> String {
        self.0.name()
    }
}
