//! The one way of a command from its entry to the controller.

use std::sync::Arc;
use std::time::Instant;

use nvme_vfio_queues::Status;

use crate::audit::{ClientAudit, Started, Unended};
use crate::client::{Client, Identity};
use crate::command::{Class, DecodedCommand, Geometry, QueueKind};
use crate::decode::Decoder;
use crate::policy::GroupPolicy;
use crate::reason::Refusal;
use crate::verdict::{Policy, Verdict};

/// What every command of one client goes through: it is decoded, judged and counted, in this order, by one function, [`check`](Self::check), which alone makes
/// a [`Passed`]. What builds commands for a real controller takes nothing else.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Instant;
///
/// use nvme_vfio_passthrough::audit::ClientAudit;
/// use nvme_vfio_passthrough::policy::OwnerPolicy;
/// use nvme_vfio_passthrough::{
///     Class, Client, ClientId, Decoder, Gate, Identity, QueueKind, Reason,
/// };
///
/// let owner = Client { id: ClientId(0), name: "owner".into(), identity: Identity::default() };
/// let mut gate = Gate::new(
///     Arc::new(OwnerPolicy), owner, Decoder::for_owner(), ClientAudit::detached("owner"));
/// let mut identify = [0; 16];
/// (identify[0], identify[10]) = (0x06, 1);
/// let passed = gate.check(QueueKind::Admin, None, &identify, &[], Instant::now()).unwrap();
/// assert_eq!(passed.command().class, Class::Information);
/// let doorbell_buffer_config = [0x7c, 0, 0, 0, 0, 0, 0x1000, 0, 0x2000, 0, 0, 0, 0, 0, 0, 0];
/// let refusal = gate
///     .check(QueueKind::Admin, None, &doorbell_buffer_config, &[], Instant::now())
///     .unwrap_err();
/// assert_eq!(refusal.reason, Reason::NeverPasses);
/// ```
#[derive(Debug)]
pub struct Gate<P: Policy + ?Sized = GroupPolicy> {
    decoder: Decoder,
    client: Client,
    audit: ClientAudit,
    policy: Arc<P>,
}

/// A command that has passed the [`Gate`]. Nothing else makes one.
///
/// ```compile_fail,E0451
/// # use nvme_vfio_passthrough::{DecodedCommand, Passed};
/// fn forged<'a>(command: DecodedCommand<'a>) -> Passed<'a> {
///     Passed { command, started: None }
/// }
/// ```
#[derive(Debug)]
#[must_use = "a command that has passed is carried out, and its end reported to the audit"]
pub struct Passed<'a> {
    command: DecodedCommand<'a>,
    started: Option<Started>,
}

impl<'a> Passed<'a> {
    /// What the command means: all that a real command may be built from.
    #[inline]
    #[must_use]
    pub fn command(&self) -> &DecodedCommand<'a> {
        &self.command
    }

    /// What the audit waits for: give it to [`Gate::end`] when the command has ended. `None` where it does not wait, and after the first call.
    #[inline]
    pub fn take_started(&mut self) -> Option<Started> {
        self.started.take()
    }
}

impl<P: Policy + ?Sized> Gate<P> {
    /// A gate for the commands of `client`, under `policy`.
    #[must_use]
    pub fn new(policy: Arc<P>, client: Client, decoder: Decoder, audit: ClientAudit) -> Self {
        Self {
            decoder,
            client,
            audit,
            policy,
        }
    }

    /// Whose gate it is.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Somebody else is connected from now on.
    pub fn identify(&mut self, identity: Identity) {
        self.client.identity = identity;
        self.audit.identify(identity);
    }

    /// Another policy from the next command on, and another decoder: what is behind the client's namespaces has changed.
    pub fn replace(&mut self, policy: Arc<P>, decoder: Decoder) {
        self.policy = policy;
        self.decoder = decoder;
    }

    /// Decodes a command, judges it, and counts it.
    ///
    /// `entry` and `list` are copies that the client cannot change any more: of the submission queue entry, and of its range list
    /// ([`Decoder::list_bytes`] tells how long). `geometry` is that of the namespace that the entry names (its second dword) as this client sees it; `None`
    /// where it sees none. `now` is the time of the batch.
    ///
    /// # Errors
    /// The command must not be carried out: what the client is told, and why. The audit has it already.
    #[inline]
    pub fn check(
        &mut self,
        queue: QueueKind,
        geometry: Option<&Geometry>,
        entry: &[u32; 16],
        list: &[u8],
        now: Instant,
    ) -> Result<Passed<'_>, Refusal> {
        // Looked at where it lies, and moved once: it is large, and most commands pass.
        let decoded = self.decoder.decode(queue, geometry, entry, list);
        let command = match &decoded {
            Ok(command) => command,
            Err(refusal) => {
                self.audit.refused(queue, entry, *refusal, now);
                return Err(*refusal);
            }
        };
        let verdict = self.policy.authorize(command, &self.client);
        let started = self.audit.begin(command, &verdict, now);
        match verdict {
            Verdict::Allow | Verdict::Observe(_) => {
                decoded.map(|command| Passed { command, started })
            }
            Verdict::Deny(refusal) => Err(refusal),
        }
    }

    /// Whether a command without a range list would pass, for what the server would do for a client that has not asked for it: nothing is counted or recorded. It
    /// has to be [`check`](Self::check)ed all the same.
    pub fn would_pass(
        &mut self,
        queue: QueueKind,
        geometry: Option<&Geometry>,
        entry: &[u32; 16],
    ) -> bool {
        let decoded = self.decoder.decode(queue, geometry, entry, &[]);
        decoded.is_ok_and(|command| {
            !matches!(
                self.policy.authorize(&command, &self.client),
                Verdict::Deny(_)
            )
        })
    }

    /// A command was refused where [`check`](Self::check) could not be asked: its range list could not be copied.
    pub fn refused(&mut self, queue: QueueKind, entry: &[u32; 16], refusal: Refusal, now: Instant) {
        self.audit.refused(queue, entry, refusal, now);
    }

    /// A command that had passed was stopped before it reached a controller. `command` is its class and length as they were decoded, `entry` its queue and its copied entry.
    pub fn stopped(
        &mut self,
        started: Option<Started>,
        command: (Class, u64),
        entry: (QueueKind, &[u32; 16]),
        refusal: Refusal,
        now: Instant,
    ) {
        self.audit.stopped(started, command, entry, refusal, now);
    }

    /// A command that the audit does not wait for has ended, and not with success.
    pub fn failed(&mut self) {
        self.audit.failed();
    }

    /// A command of an operator's was not sent to a controller, and ends with that status.
    pub fn not_sent(&mut self, started: Started, status: Status, now: Instant) {
        self.audit.not_sent(started, status, now);
    }

    /// Whether the record of another operator's command would be written.
    #[must_use]
    pub fn has_room_for_operator(&self) -> bool {
        self.audit.has_room_for_operator()
    }

    /// Another thread will learn how a command ends that the audit waits for.
    #[must_use]
    pub fn hand_over(&mut self, started: Started) -> Option<Unended> {
        self.audit.hand_over(started)
    }

    /// A command that the audit waits for has ended, with that status.
    #[inline]
    pub fn end(&mut self, started: Started, status: Status, now: Instant) {
        self.audit.end(started, status, now);
    }
}

#[cfg(test)]
mod tests;
