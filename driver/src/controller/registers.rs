//! Enabling, disabling and shutting down, by the specification (NVMe base 2.0, sections 3.5.1 and 3.6).

#![allow(unsafe_code)] // writes the registers that make a controller run

use std::time::{Duration, Instant};

use nvme_vfio_queues::registers::offset::{ACQ, AQA, ASQ, CAP, CC, CSTS};
use nvme_vfio_queues::registers::{Aqa, Cc, Csts};

use super::Inner;
use super::admin::{ADMIN_ENTRIES, AdminQueue};
use crate::error::{NotReady, RegisterDump};
use crate::{Error, RecoveryLimit};

/// CC.IOSQES: 64-byte entries.
const IOSQES: u8 = 6;
/// CC.IOCQES: 16-byte entries.
const IOCQES: u8 = 4;

impl Inner {
    /// What the registers say, for an error.
    pub(super) fn dump(&self) -> RegisterDump {
        let transport = &self.transport;
        RegisterDump {
            cap: transport.read64(CAP),
            cc: transport.read32(CC),
            csts: transport.read32(CSTS),
            aqa: transport.read32(AQA),
            asq: transport.read64(ASQ),
            acq: transport.read64(ACQ),
        }
    }

    /// CSTS.
    pub(crate) fn status(&self) -> Csts {
        Csts::from_bits(self.transport.read32(CSTS))
    }

    pub(super) fn not_ready(&self, what: NotReady) -> Error {
        Error::NotReady {
            what,
            registers: self.dump(),
        }
    }

    /// Waits until `done` says so of CSTS.
    fn wait_status(
        &self,
        timeout: Duration,
        late: NotReady,
        done: impl Fn(Csts) -> bool,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            // Looked at before the status is read, so that a thread that was not scheduled for long still gets its last look.
            let over = start.elapsed() >= timeout;
            let csts = self.status();
            // All ones mean that the controller is gone, never that it is ready.
            if csts.is_gone() && self.is_gone() {
                return Err(Error::Gone);
            }
            if !csts.is_gone() && done(csts) {
                return Ok(());
            }
            if over {
                return Err(self.not_ready(late));
            }
            self.transport.relax();
        }
    }

    /// Writes CC.
    fn configure(&self, cc: Cc) {
        // SAFETY: `enable` alone sets CC.EN, after the admin queue was programmed; the rest commands no access to memory.
        unsafe { self.transport.write32(CC, cc.into_bits()) };
    }

    /// Clears CC.EN and waits until the controller has stopped. When this succeeds the controller has let go of all memory.
    pub(super) fn disable(&self) -> Result<(), Error> {
        let mut cc = Cc::from_bits(self.transport.read32(CC));
        if cc.is_gone() && !self.is_gone() {
            cc = Cc::from_bits(self.transport.read32(CC));
        }
        if cc.is_gone() {
            return Err(Error::Gone);
        }
        if cc.en() {
            self.configure(cc.with_en(false).with_shn(Cc::SHN_NONE));
        }
        self.wait_disabled()
    }

    fn wait_disabled(&self) -> Result<(), Error> {
        let timeout = self.ready_timeout;
        self.wait_status(timeout, NotReady::Disable(timeout), |csts| {
            csts.is_disabled()
        })
    }

    /// Disables the controller, or resets the function where that fails and may be done. When this succeeds the controller
    /// has let go of all memory.
    pub(super) fn stop(&self) -> Result<(), Error> {
        match self.disable() {
            Ok(()) => Ok(()),
            Err(Error::Gone) => Err(Error::Gone),
            Err(error) if self.options.recovery >= RecoveryLimit::Function => {
                tracing::warn!(controller = %self.name, %error, "resetting the function");
                self.transport.reset()?;
                self.wait_disabled()
            }
            Err(error) => Err(error),
        }
    }

    /// Programs the admin queue, lets the function reach memory, and enables the controller, which is disabled.
    pub(super) fn enable(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        admin.restart();
        let (asq, acq) = admin.bases();
        // All three are written at every enable: a function-level reset keeps AQA and clears nothing else reliably.
        let transport = &self.transport;
        let attributes = Aqa::of(ADMIN_ENTRIES, ADMIN_ENTRIES)
            .ok_or_else(|| Error::Length("the admin queues are too long".to_owned()))?;
        // SAFETY: the admin queue's rings, which stay until the controller was stopped or are never freed.
        unsafe {
            transport.write32(AQA, attributes.into_bits());
            transport.write64(ASQ, asq);
            transport.write64(ACQ, acq);
        }
        transport.set_bus_master(true)?;
        let css = if self.cap.supports_nvm_command_set() {
            Cc::CSS_NVM
        } else {
            Cc::CSS_ALL
        };
        let cc = Cc::new()
            .with_iosqes(IOSQES)
            .with_iocqes(IOCQES)
            .with_page_size(self.page)
            .with_css(css)
            .with_en(true);
        self.configure(cc);
        // CFS is looked at together with RDY: a controller that dislikes its configuration reports it instead of becoming ready.
        self.wait_status(
            self.ready_timeout,
            NotReady::Enable(self.ready_timeout),
            |csts| csts.is_ready() || csts.is_fatal(),
        )?;
        if self.status().is_fatal() {
            return Err(self.not_ready(NotReady::Fatal));
        }
        Ok(())
    }

    /// Enables the controller, which is disabled; where it does not become ready and that may be done, once more after a reset of the
    /// function.
    pub(super) fn start(&self, admin: &mut AdminQueue) -> Result<(), Error> {
        match self.enable(admin) {
            Err(error @ Error::NotReady { .. })
                if self.options.recovery >= RecoveryLimit::Function =>
            {
                tracing::warn!(controller = %self.name, %error, "resetting the function");
                if let Err(reset) = self.transport.reset() {
                    tracing::warn!(controller = %self.name, error = %reset, "the function could not be reset");
                    return Err(error);
                }
                self.wait_disabled()?;
                self.enable(admin)
            }
            other => other,
        }
    }

    /// Tells the controller of the shutdown and waits until it has written back what it caches.
    pub(super) fn notify_shutdown(&self) -> Result<(), Error> {
        let cc = Cc::from_bits(self.transport.read32(CC));
        if cc.is_gone() {
            return Err(Error::Gone);
        }
        if !cc.en() {
            return Ok(());
        }
        self.configure(cc.with_shn(Cc::SHN_NORMAL));
        let timeout = self.options.shutdown_timeout;
        self.wait_status(timeout, NotReady::Disable(timeout), |csts| {
            csts.is_shut_down() || csts.is_fatal()
        })
    }
}
