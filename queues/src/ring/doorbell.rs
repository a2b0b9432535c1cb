//! Doorbell registers, mapped or sent by message.
#![allow(unsafe_code)] // a mapped doorbell is a pointer to a device register

use core::fmt;
use core::ptr::NonNull;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::DoorbellWrite;

/// Where doorbells are not mapped: somebody who carries the value to the controller.
pub trait DoorbellMessage: Send + Sync {
    /// Writes `value` to the doorbell register at `offset` bytes from the start of BAR 0.
    fn ring(&self, offset: usize, value: u32);
}

enum Way {
    Mapped {
        register: NonNull<AtomicU32>,
        /// Whatever keeps `register` mapped.
        _keep: Arc<dyn Any + Send + Sync>,
    },
    Message {
        carrier: Arc<dyn DoorbellMessage>,
        offset: usize,
    },
}

/// One doorbell register (NVMe over PCIe transport 1.0, section 3.1.2).
///
/// Which way it is reached is one predictable branch per write, and writes are batched.
pub struct Doorbell(Way);

impl Doorbell {
    /// A doorbell register that is mapped at `register`.
    ///
    /// # Safety
    /// `register` is valid for 32-bit writes as long as `keep` lives.
    #[must_use]
    pub unsafe fn mapped(register: NonNull<AtomicU32>, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Way::Mapped {
            register,
            _keep: keep,
        })
    }

    /// A doorbell register at `offset` bytes from the start of BAR 0 that `carrier` writes.
    #[must_use]
    pub fn message(carrier: Arc<dyn DoorbellMessage>, offset: usize) -> Self {
        Self(Way::Message { carrier, offset })
    }
}

impl DoorbellWrite for Doorbell {
    #[inline]
    fn write(&self, value: u32) {
        match &self.0 {
            Way::Mapped { register, .. } => {
                // SAFETY: `mapped` was promised that the register stays valid while `_keep` lives, and it lives in `self`.
                unsafe { register.as_ref() }.store(value, Ordering::Relaxed);
            }
            Way::Message { carrier, offset } => carrier.ring(*offset, value),
        }
    }
}

// SAFETY: a device register may be written from any thread; a doorbell is owned by one ring, and `_keep` and `carrier` are
// `Send + Sync` themselves.
unsafe impl Send for Doorbell {}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Way::Mapped { register, .. } => write!(f, "Doorbell(mapped at {register:p})"),
            Way::Message { offset, .. } => write!(f, "Doorbell(message to {offset:#x})"),
        }
    }
}
