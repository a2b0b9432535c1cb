//! A controller behind a vfio-user socket.
#![allow(unsafe_code)] // rings doorbells, which are pointers into what the server lets be mapped

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nvme_vfio_dma::Access;
use nvme_vfio_user::message::DmaAccess;
use nvme_vfio_user::{Client, ClientOptions, MappedRegion};

use crate::memory::GuestMemory;
use crate::way::Way;

/// BAR 0: the controller's registers.
const REGISTERS: u32 = 0;
/// Configuration space.
const CONFIG: u32 = 7;
const DOORBELLS: u64 = 0x1000;

/// A connection to a server. Doorbells are mapped where the server offers it, and sent by message where not.
#[derive(Debug)]
pub struct Served {
    client: Client,
    doorbells: Option<MappedRegion>,
    /// Bytes from one doorbell to the next.
    stride: u64,
}

impl Served {
    /// Connects to the server that listens at `path`, and waits for a client before to be gone.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn connect(path: &Path) -> Served {
        let options = ClientOptions {
            timeout: Duration::from_secs(3600),
        };
        let client = Client::connect(path, &options).expect("a connection");
        let doorbells = client
            .map_region(REGISTERS)
            .ok()
            .filter(MappedRegion::is_writable);
        let mut served = Served {
            client,
            doorbells,
            stride: 4,
        };
        let strides = served.register_read(4, 4) & 0xf;
        served.stride = 4 << strides;
        served
    }

    /// Lends all runs of a client's memory.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn lend(&self, memory: &GuestMemory) {
        for run in &memory.runs {
            let mut access = DmaAccess::READ;
            access.set(DmaAccess::WRITE, run.access == Access::READ_WRITE);
            let file = Some((memory.file(), run.offset as u64));
            self.client
                .dma_map(run.guest, run.length as u64, access, file)
                .expect("memory that is taken");
        }
    }
}

impl Way for Served {
    fn register_read(&self, offset: u32, bytes: usize) -> u64 {
        let mut value = [0; 8];
        // As halves: not every server takes an access of 64 bits.
        for half in (0..bytes).step_by(4) {
            self.client
                .region_read(
                    REGISTERS,
                    u64::from(offset) + half as u64,
                    &mut value[half..half + 4],
                )
                .expect("a register");
        }
        u64::from_le_bytes(value)
    }

    fn register_write(&self, offset: u32, bytes: usize, value: u64) {
        for half in (0..bytes).step_by(4) {
            let at = u64::from(offset) + half as u64;
            self.client
                .region_write(REGISTERS, at, &value.to_le_bytes()[half..half + 4])
                .expect("a register that is written");
        }
    }

    fn config_read(&self, offset: u64, into: &mut [u8]) {
        self.client
            .region_read(CONFIG, offset, into)
            .expect("configuration space");
    }

    fn config_write(&self, offset: u64, from: &[u8]) {
        self.client
            .region_write(CONFIG, offset, from)
            .expect("configuration space that is written");
    }

    fn doorbell(&self, index: usize, value: u32) {
        let offset = DOORBELLS + index as u64 * self.stride;
        let mapped = self
            .doorbells
            .as_ref()
            .and_then(|mapped| mapped.pointer_at(offset, size_of::<u32>()));
        match mapped {
            Some(register) => {
                let register = register.cast::<AtomicU32>();
                assert!(register.is_aligned());
                // SAFETY: four mapped, writable bytes, aligned as just asserted, which stay mapped as long as `self`; everybody reaches them by atomics.
                unsafe { register.as_ref() }.store(value, Ordering::Release);
            }
            None => self
                .client
                .region_write_posted(REGISTERS, offset, &value.to_le_bytes())
                .expect("a doorbell that is rung"),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}
