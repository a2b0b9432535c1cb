//! What the driver's tests share.
#![allow(dead_code)] // each test binary uses its part of it

use nvme_vfio::{Address, Controller, Options};

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

/// A small seeded generator (xorshift64*), so that every run is the same one unless `NVME_VFIO_TEST_SEED` says otherwise.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(what: &str) -> Self {
        let seed = std::env::var("NVME_VFIO_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(0x5eed_0001);
        println!("{what}: NVME_VFIO_TEST_SEED={seed}");
        Self(seed | 1)
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
