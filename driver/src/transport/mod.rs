//! How a controller is reached: registers, doorbells, configuration space and reset, whatever carries them.
#![allow(unsafe_code)] // declares what whoever commands a controller answers for; nothing unsafe is done here

use std::fmt::Debug;

use nvme_vfio_dma::AddressSpace;
use nvme_vfio_queues::ring::Doorbell;

use crate::Error;

#[cfg(feature = "emulated")]
mod emulated;
mod vfio;
mod vfio_user;

#[cfg(feature = "emulated")]
pub use emulated::EmulatedTransport;
pub use vfio::VfioTransport;
pub use vfio_user::VfioUserTransport;

/// The seam between the driver and what carries it to a controller. Crossed when a controller or queue is set up and on
/// slow paths; the hot path crosses nothing but the [`Doorbell`]s that it gave out.
pub trait Transport: Send + Sync + Debug {
    /// Where memory is mapped so that this controller sees it. Functions of one group share one.
    fn address_space(&self) -> &AddressSpace;

    /// Reads a 32-bit register at `offset` bytes in BAR 0. All ones where the controller is gone.
    fn read32(&self, offset: usize) -> u32;

    /// Reads a 64-bit register at `offset` bytes in BAR 0. All ones where the controller is gone.
    fn read64(&self, offset: usize) -> u64;

    /// Writes a 32-bit register at `offset` bytes in BAR 0.
    ///
    /// # Safety
    /// Registers tell the controller where its queues are, and to begin. The caller answers for it that the controller touches no memory
    /// because of it but what was lent to it.
    unsafe fn write32(&self, offset: usize, value: u32);

    /// Writes a 64-bit register at `offset` bytes in BAR 0.
    ///
    /// # Safety
    /// As for [`write32`](Self::write32).
    unsafe fn write64(&self, offset: usize, value: u64);

    /// The doorbell register at `offset` bytes in BAR 0; `None` where BAR 0 does not reach that far.
    ///
    /// # Safety
    /// It is rung only by the owner of its queue: what was in a ring before is commanded again by a wrong value.
    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell>;

    /// Lets the function reach memory, or not (PCI command register, bit 2).
    ///
    /// # Errors
    /// Where configuration space cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<(), Error>;

    /// Reads `data.len()` bytes of configuration space from `offset` on.
    ///
    /// # Errors
    /// Where configuration space cannot be read or ends before.
    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error>;

    /// Resets the function. Its registers are as after power-on then, and it reaches no memory.
    ///
    /// # Errors
    /// Where the function cannot be reset.
    fn reset(&self) -> Result<(), Error>;

    /// Whether it is certain that the function touches no memory any more, though nobody has stopped it: the process that served it has ended.
    /// Asked where the controller is gone.
    fn has_let_go(&self) -> bool {
        false
    }

    /// Whether the system has asked for the function to be given back, which was unplugged, or is to be unbound from its driver: whoever asked waits until it is closed.
    /// True from then on.
    fn is_wanted_back(&self) -> bool {
        false
    }

    /// Called in every round of a wait. A controller that has no thread of its own does its work here.
    fn relax(&self) {
        std::thread::yield_now();
    }

    /// Where it is, in words for a log line.
    fn name(&self) -> String;
}
