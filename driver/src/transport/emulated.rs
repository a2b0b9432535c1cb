//! A software controller in this process.
#![allow(unsafe_code)] // passes on register writes, hands out doorbells, which are pointers into the emulator's doorbell page

use std::ptr::NonNull;
use std::sync::Arc;

use nvme_vfio_dma::{AddressSpace, IommuDomain};
use nvme_vfio_emulator::{Config, Emulator, EmulatorThread};
use nvme_vfio_queues::registers::offset::DOORBELLS;
use nvme_vfio_queues::ring::Doorbell;

use super::Transport;
use crate::Error;

/// An emulated controller, run by a thread of its own or of its owner's, or stepped by whoever waits.
#[derive(Debug)]
pub struct EmulatedTransport {
    /// Stops before the emulator goes.
    thread: Option<EmulatorThread>,
    emulator: Arc<Emulator>,
    space: AddressSpace,
}

impl EmulatedTransport {
    /// A controller with the configuration `config` (empty for the default), with a thread of its own unless `stepped`
    /// is in it.
    ///
    /// # Errors
    /// [`Error::Emulated`] where the configuration is wrong.
    pub fn open(config: &str) -> Result<Self, Error> {
        let config: Config = config.parse()?;
        let stepped = config.stepped;
        let emulator = Emulator::new(config)?;
        if stepped {
            Ok(Self::stepped(emulator))
        } else {
            Self::running(emulator)
        }
    }

    /// A controller that works in every round of a wait, and whenever its owner calls [`Emulator::step`].
    #[must_use]
    pub fn stepped(emulator: Arc<Emulator>) -> Self {
        let domain: Arc<dyn IommuDomain> = emulator.iommu();
        Self {
            thread: None,
            space: AddressSpace::new(domain),
            emulator,
        }
    }

    /// A controller that works whenever its owner calls [`Emulator::work`], which a thread does all the time that has other things to do as well. Whoever waits steps it, too.
    /// Latencies are in the time of the clock, unless `stepped` is in its configuration.
    #[must_use]
    pub fn polled(emulator: Arc<Emulator>) -> Self {
        emulator.tell_time(!emulator.config().stepped);
        Self::stepped(emulator)
    }

    /// A controller with a thread of its own.
    ///
    /// # Errors
    /// [`Error::Thread`] where it cannot be started.
    pub fn running(emulator: Arc<Emulator>) -> Result<Self, Error> {
        let thread = emulator.spawn().map_err(Error::Thread)?;
        Ok(Self {
            thread: Some(thread),
            ..Self::stepped(emulator)
        })
    }

    /// The emulator, for stepping it, looking into it, and making it fail.
    #[must_use]
    pub fn emulator(&self) -> &Arc<Emulator> {
        &self.emulator
    }
}

/// The emulator counts in 32 bits; what is past that is past its registers.
fn register(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

impl Transport for EmulatedTransport {
    fn address_space(&self) -> &AddressSpace {
        &self.space
    }

    fn read32(&self, offset: usize) -> u32 {
        self.emulator.register_read(register(offset), 4) as u32
    }

    fn read64(&self, offset: usize) -> u64 {
        self.emulator.register_read(register(offset), 8)
    }

    unsafe fn write32(&self, offset: usize, value: u32) {
        self.emulator
            .register_write(register(offset), 4, u64::from(value));
    }

    unsafe fn write64(&self, offset: usize, value: u64) {
        self.emulator.register_write(register(offset), 8, value);
    }

    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        let doorbells = self.emulator.doorbells();
        let register = doorbells.get(offset.checked_sub(DOORBELLS)? / size_of::<u32>())?;
        // SAFETY: the register is an atomic inside the array, which the clone of its `Arc` keeps alive.
        Some(unsafe { Doorbell::mapped(NonNull::from(register), Arc::new(Arc::clone(&doorbells))) })
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        const COMMAND: u64 = 4;
        const BUS_MASTER: u8 = 1 << 2;
        let mut command = [0; 2];
        self.config_read(COMMAND, &mut command)?;
        command[0] = if on {
            command[0] | BUS_MASTER
        } else {
            command[0] & !BUS_MASTER
        };
        self.emulator.config_write(COMMAND, &command);
        Ok(())
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.emulator.config_read(offset, data);
        Ok(())
    }

    fn reset(&self) -> Result<(), Error> {
        self.emulator.reset();
        Ok(())
    }

    fn relax(&self) {
        // Where there was nothing to do, whoever else may have something is let run.
        if self.thread.is_some() || self.emulator.step() == 0 {
            std::thread::yield_now();
        }
    }

    fn name(&self) -> String {
        "emulated".to_owned()
    }
}
