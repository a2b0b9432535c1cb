//! The way of a command from the command line to the controller: through the gate, and into the audit where one was asked for.

use std::path::Path;
use std::time::Duration;

use nvme_vfio::{AdminData, Options};
use nvme_vfio_passthrough::{
    ClientId, Ended, InProcess, Needs, Passthrough as _, PassthroughError, QueueKind, RawCommand,
    audit::{self, AuditOptions, Auditor, ClientAudit},
    owner_gate,
    policy::OwnerPolicy,
};

use crate::{error::Error, session::Session};

/// A controller whose commands pass the gate.
pub(crate) struct Sender {
    session: Session,
    through: InProcess<OwnerPolicy>,
    auditor: Option<Auditor>,
}

impl Sender {
    /// Opens the controller at `address`, and the audit's file. `timeout`: milliseconds that a command may take; 0 for the default.
    pub(crate) fn open(address: &str, audit: Option<&Path>, timeout: u32) -> Result<Self, Error> {
        let mut options = Options::default();
        if timeout > 0 {
            let timeout = Duration::from_millis(timeout.into());
            options.admin_timeout = timeout;
            options.io_timeout = timeout;
        }
        // First, so that nothing is opened where nothing can be recorded.
        let auditor = match audit {
            None => None,
            Some(path) => {
                let file = audit::open(path)?;
                let options = AuditOptions {
                    sample_allowed_io: 1,
                    ..AuditOptions::default()
                };
                Some(Auditor::start(file, options)?)
            }
        };
        let session = Session::open_with(address, options)?;
        let records = match &auditor {
            Some(auditor) => auditor.client(ClientId(0), "owner", 1),
            None => ClientAudit::detached("owner"),
        };
        let gate = owner_gate(&session.controller, records);
        let through = session.controller.passthrough_by(gate);
        Ok(Self {
            session,
            through,
            auditor,
        })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Bytes of the range list that goes with a command; 0 also where it will be refused.
    pub(crate) fn list_bytes(&self, kind: QueueKind, command: &RawCommand) -> usize {
        InProcess::<OwnerPolicy>::list_bytes(kind, command).unwrap_or(0)
    }

    /// What a command would do, and the data that it needs. One that will not pass is recorded.
    pub(crate) fn needs(
        &mut self,
        kind: QueueKind,
        command: &RawCommand,
        list: &[u8],
    ) -> Result<Needs, Error> {
        let needs = self.through.needs(kind, command, list);
        if let Err(PassthroughError::Refused { refusal }) = needs {
            self.through.refused(kind, command, refusal);
        }
        Ok(needs?)
    }

    /// Sends a command and waits for its end.
    pub(crate) fn send(
        &mut self,
        kind: QueueKind,
        command: &RawCommand,
        data: AdminData<'_>,
    ) -> Result<Ended, Error> {
        Ok(match kind {
            QueueKind::Admin => self.through.admin_passthru(command, data),
            QueueKind::Io => self.through.io_passthru(command, data),
        }?)
    }

    /// Waits until the audit has everything.
    pub(crate) fn finish(self) -> Result<(), Error> {
        // What it has still to tell goes first.
        drop(self.through);
        match self.auditor {
            Some(auditor) => Ok(auditor.finish().map(|_| ())?),
            None => Ok(()),
        }
    }
}
