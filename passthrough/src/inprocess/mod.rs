//! Commands of the process that holds the controller, by the same gate as everybody's.
//!
//! | file | holds |
//! |---|---|
//! | `command` | [`RawCommand`]: an entry as people with nvme-cli habits write it |
//! | `geometry` | what the decoder has to know of the namespace that an entry names |
//! | `identity` | who the process is, for the audit |
//! | `build` | the entry that the controller gets, made of what was decoded |
//! | `run` | [`InProcess`]: the way of one command |
//! | `error` | why one was not carried out |

mod build;
mod command;
mod error;
mod geometry;
mod identity;
mod run;
#[cfg(test)]
mod tests;

pub use command::{Needs, RawCommand};
pub use error::PassthroughError;
pub use identity::owner;
pub use run::{Ended, InProcess};

use nvme_vfio::Controller;

use crate::audit::ClientAudit;
use crate::decode::Decoder;
use crate::gate::Gate;
use crate::policy::OwnerPolicy;
use crate::verdict::Policy;

/// Passthrough for the process that holds a controller: an extension of [`Controller`].
///
/// ```
/// use nvme_vfio::{Address, AdminData, Controller};
/// use nvme_vfio_passthrough::{Passthrough, PassthroughError, RawCommand, Reason};
///
/// let controller = Controller::open(&"emulated:size=16M".parse::<Address>()?)?;
/// let mut passthrough = controller.passthrough();
/// let mut data = [0; 4096];
/// let identify = RawCommand { opcode: 0x06, cdw10: 1, ..RawCommand::default() };
/// passthrough.admin_passthru(&identify, AdminData::FromController(&mut data))?;
/// assert_eq!(&data[..2], controller.identify().vid.get().to_le_bytes());
///
/// // Whatever carries an address of its own is refused, also where the process holds the controller: no `unsafe` is needed.
/// let create_queue = RawCommand { opcode: 0x01, cdw10: 0x3f_0001, cdw11: 1, ..RawCommand::default() };
/// let error = passthrough.admin_passthru(&create_queue, AdminData::None).unwrap_err();
/// assert!(matches!(error, PassthroughError::Refused { refusal, .. } if refusal.reason == Reason::NeverPasses));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Passthrough {
    /// Under [`OwnerPolicy`], which grants everything that has a decoder. Nothing is recorded.
    #[must_use]
    fn passthrough(&self) -> InProcess<OwnerPolicy>;

    /// Through a gate of the caller's: with a policy and an audit of its choice.
    #[must_use]
    fn passthrough_by<P: Policy + ?Sized>(&self, gate: Gate<P>) -> InProcess<P>;
}

impl Passthrough for Controller {
    fn passthrough(&self) -> InProcess<OwnerPolicy> {
        self.passthrough_by(owner_gate(self, ClientAudit::detached("owner")))
    }

    fn passthrough_by<P: Policy + ?Sized>(&self, gate: Gate<P>) -> InProcess<P> {
        InProcess::new(self.clone(), gate)
    }
}

/// The gate of the process that holds `controller`: everything that has a decoder passes, and `audit` records it.
#[must_use]
pub fn owner_gate(controller: &Controller, audit: ClientAudit) -> Gate<OwnerPolicy> {
    let decoder = Decoder::for_owner().with_format_attributes(controller.identify().fna);
    Gate::new(std::sync::Arc::new(OwnerPolicy), owner(), decoder, audit)
}
