//! Recovery and shutdown: what is done when a controller does not do what it should, and when it is no longer needed.

#![allow(unsafe_code)] // states the proofs that the controller has let go of memory

use std::sync::PoisonError;

use nvme_vfio_dma::{LetGo, Proof};
use nvme_vfio_queues::registers::offset::CAP;

use super::shared::Counters;
use super::{GONE, Inner};
use crate::{Error, NotReady, RecoveryLimit};

impl Inner {
    /// Disables and enables the controller, unless somebody has done so since `seen`, the epoch at which the need arose.
    pub(crate) fn recover(&self, seen: u32) -> Result<(), Error> {
        let mut admin = self.lock_admin();
        match self.shared.epoch() {
            GONE => return Err(Error::Gone),
            epoch if epoch != seen => return Ok(()),
            _ => {}
        }
        if self.options.recovery < RecoveryLimit::Controller {
            return Err(Error::RecoveryLimit(self.options.recovery));
        }
        tracing::warn!(controller = %self.name, registers = %self.dump(), "resetting the controller");
        Counters::count(&self.shared.counters.resets);
        let result = self.stop_itself().and_then(|()| {
            // Stopped: nothing is touched by the controller any more, so whoever sees the new epoch may have its memory back.
            self.shared.raise();
            // SAFETY: `stop` has just seen CSTS.RDY at 0, or the function reset, and the registers are this controller's; whatever
            // is in the quarantine was submitted before.
            drop(
                self.lock_quarantine()
                    .release(unsafe { Proof::new(LetGo::Disabled) }),
            );
            admin.ids.take_back();
            self.start(&mut admin.queue)?;
            self.ask_for_queues(&mut admin)
        });
        if let Err(error) = &result {
            tracing::error!(controller = %self.name, %error, "the controller did not come back and is given up");
            self.shared.give_up();
        }
        result
    }

    /// Stops the controller. Registers that no longer say what they said when it was opened do not prove that it has stopped.
    fn stop_itself(&self) -> Result<(), Error> {
        self.stop()?;
        // While somebody else resets the function its registers may read as zero, which looks stopped, too. Configuration space answers when that is
        // over.
        if !self.is_itself() && !self.is_pulled_out() {
            self.stop()?;
        }
        if self.is_itself() {
            Ok(())
        } else {
            Err(Error::Gone)
        }
    }

    /// Whether the registers are those of the controller that was opened.
    fn is_itself(&self) -> bool {
        self.transport.read64(CAP) == self.cap.into_bits()
    }

    /// Whether the controller is gone: its status reads all ones, also after configuration space has answered. While somebody else
    /// resets the function its registers read so, too, and the kernel lets accesses to configuration space wait for the end of it.
    pub(super) fn is_gone(&self) -> bool {
        self.status().is_gone() && (self.is_pulled_out() || self.status().is_gone())
    }

    /// Whether configuration space reads as it does where there is no function: all ones. The class code is looked at, since
    /// the kernel answers for the vendor from memory.
    fn is_pulled_out(&self) -> bool {
        const CLASS_CODE: u64 = 9;
        let mut class = [0; 3];
        self.transport.config_read(CLASS_CODE, &mut class).is_ok() && class == [0xff; 3]
    }

    /// Gives the controller up where its registers read all ones, as a queue's owner saw them do in epoch `seen`.
    ///
    /// # Errors
    /// [`Error::Gone`] where that is so.
    pub(crate) fn confirm_gone(&self, seen: u32) -> Result<(), Error> {
        // A function that another thread resets may read as all ones meanwhile: look again when nobody does.
        let _admin = self.lock_admin();
        if self.shared.epoch() == seen && self.is_gone() {
            tracing::error!(controller = %self.name, "the controller is gone");
            self.shared.give_up();
            return Err(Error::Gone);
        }
        Ok(())
    }

    /// What CSTS says, where nobody resets the controller.
    pub(super) fn check_status(&self) -> Result<(), Error> {
        let _admin = self.lock_admin();
        self.in_service()?;
        let csts = self.status();
        if csts.is_gone() && self.is_gone() {
            tracing::error!(controller = %self.name, "the controller is gone");
            self.shared.give_up();
            return Err(Error::Gone);
        }
        if csts.is_fatal() && !csts.is_gone() {
            return Err(self.not_ready(NotReady::Fatal));
        }
        if !csts.is_ready() {
            return Err(self.not_ready(NotReady::Stopped));
        }
        Ok(())
    }

    /// Stops the controller for good. True where it has provably let go of all memory.
    fn shut_down(&self) -> bool {
        if self.shared.epoch() != GONE
            && let Err(error) = self.notify_shutdown()
        {
            tracing::warn!(controller = %self.name, %error, "the shutdown notification failed");
        }
        let stopped = self.disable().is_ok() && self.is_itself();
        if let Err(error) = self.transport.set_bus_master(false) {
            tracing::warn!(controller = %self.name, %error, "bus mastering could not be switched off");
        }
        // A reset is not recovery here but the end, and the last way to a proof. For a function that was pulled out the kernel
        // would wait over a minute.
        stopped
            || self.transport.has_let_go()
            || !self.is_pulled_out() && self.transport.reset().is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let stopped = self.shut_down();
        let admin = self.admin.get_mut().unwrap_or_else(PoisonError::into_inner);
        let quarantine = self
            .quarantine
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if stopped {
            // SAFETY: `shut_down` has seen CSTS.RDY at 0, the function reset, or its server's end, and nobody else is left to submit anything.
            drop(quarantine.release(unsafe { Proof::new(LetGo::Disabled) }));
        } else {
            // No proof: the memory of the admin queue joins the rest, which is never unmapped by this process.
            tracing::error!(controller = %self.name, "the controller could not be stopped; its memory is not freed");
            for buffer in admin.queue.take_held() {
                quarantine.hold(0, buffer);
            }
            for memory in admin.queue.memory.both() {
                quarantine.hold(0, memory);
            }
        }
    }
}
