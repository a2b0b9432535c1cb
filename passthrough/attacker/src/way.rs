//! How a client reaches its controller.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nvme_vfio_emulator::Emulator;

/// A controller as its host sees it.
pub trait Way: fmt::Debug + Send + Sync {
    /// Reads 4 or 8 bytes of BAR 0.
    fn register_read(&self, offset: u32, bytes: usize) -> u64;
    /// Writes 4 or 8 bytes of BAR 0.
    fn register_write(&self, offset: u32, bytes: usize, value: u64);
    /// Reads configuration space.
    fn config_read(&self, offset: u64, into: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u64, from: &[u8]);
    /// Rings a doorbell: twice the queue's number, and one more for the completion queue.
    fn doorbell(&self, index: usize, value: u32);
    /// How long what comes must be waited for at least, where more than the caller's steps moves the controller.
    fn patience(&self) -> Duration;
}

impl Way for Arc<Emulator> {
    fn register_read(&self, offset: u32, bytes: usize) -> u64 {
        Emulator::register_read(self, offset, bytes)
    }

    fn register_write(&self, offset: u32, bytes: usize, value: u64) {
        Emulator::register_write(self, offset, bytes, value);
    }

    fn config_read(&self, offset: u64, into: &mut [u8]) {
        Emulator::config_read(self, offset, into);
    }

    fn config_write(&self, offset: u64, from: &[u8]) {
        Emulator::config_write(self, offset, from);
    }

    fn doorbell(&self, index: usize, value: u32) {
        self.doorbells()[index << self.config().dstrd].store(value, Ordering::Release);
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }
}
