//! The controllers of a policy, opened and asked.

use std::sync::Arc;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, Controller, Error, Group, Options};
use nvme_vfio_emulator::{Config, Emulator};

use super::error::ServeError;
use super::options::ServeOptions;
use crate::command::ClassSet;
use crate::policy::{Budget, ControllerFacts, Isolation, PolicyFile, ResolvedPolicy};
use crate::trust;

/// The addresses of a policy in words.
fn addresses(policy: &PolicyFile) -> String {
    let all: Vec<String> = policy.controllers.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Controllers that were opened for a policy, and what they are.
#[derive(Debug)]
pub struct OpenedGroup {
    pub(super) group: Option<Group>,
    pub(super) controllers: Vec<Controller>,
    pub(super) facts: Vec<ControllerFacts>,
    /// Those of the controllers that the thread that polls has to do the work of.
    pub(super) emulated: Vec<Arc<Emulator>>,
}

impl OpenedGroup {
    /// Opens the controllers of a policy. To open one can be to make a file, to take a function over or to connect to a socket, so that root does none of it where somebody else could have a say in
    /// what is opened.
    ///
    /// # Errors
    /// [`ServeError::Controller`], and [`ServeError::Policy`] and [`ServeError::ForeignController`] where this process is root's and the policy, or what it names, is not root's alone.
    pub fn open(policy: &PolicyFile, options: &ServeOptions) -> Result<OpenedGroup, ServeError> {
        policy.check_foreign()?;
        check_ways(policy)?;
        let driver = driver_options(policy, options);
        let failed = |source| ServeError::Controller {
            address: addresses(policy),
            source,
        };
        if let [Address::Emulated(config)] = policy.controllers.as_slice() {
            let (controller, emulator) = emulated(config, driver).map_err(failed)?;
            return OpenedGroup::of(policy, vec![controller]).map(|group| OpenedGroup {
                emulated: vec![emulator],
                ..group
            });
        }
        let opened = Controller::open_together(&policy.controllers, &driver).map_err(failed)?;
        OpenedGroup::of(policy, opened.controllers).map(|group| OpenedGroup {
            group: opened.group,
            ..group
        })
    }

    /// Takes controllers that are open already, in the order of the policy's. They share one address space.
    ///
    /// # Errors
    /// [`ServeError::Controller`].
    pub fn of(
        policy: &PolicyFile,
        controllers: Vec<Controller>,
    ) -> Result<OpenedGroup, ServeError> {
        let facts = controllers.iter().map(ControllerFacts::read);
        let facts = facts
            .collect::<Result<_, _>>()
            .map_err(|source| ServeError::Controller {
                address: addresses(policy),
                source,
            })?;
        Ok(OpenedGroup {
            group: None,
            controllers,
            facts,
            emulated: Vec::new(),
        })
    }

    /// What the controllers are.
    #[must_use]
    pub fn facts(&self) -> &[ControllerFacts] {
        &self.facts
    }

    /// What this process may use for all clients.
    #[must_use]
    pub fn budget(&self) -> Budget {
        let space = self.controllers.first().map(Controller::address_space);
        Budget {
            locked_memory: self.group.as_ref().and_then(|_| lockable()),
            mappings: space.and_then(|space| space.domain().limits().mappings),
        }
    }
}

/// An emulated controller without a thread of its own: what it does is done in turn with all else, so that it takes no processor from whoever waits for it.
fn emulated(config: &str, options: Options) -> Result<(Controller, Arc<Emulator>), Error> {
    let emulator = Emulator::new(config.parse::<Config>()?)?;
    let transport = EmulatedTransport::polled(Arc::clone(&emulator));
    let controller = Controller::with_transport(Arc::new(transport), options)?;
    Ok((controller, emulator))
}

/// Refuses files and sockets of controllers that others could put others in the place of, where this process is root's.
fn check_ways(policy: &PolicyFile) -> Result<(), ServeError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    for address in &policy.controllers {
        let ways = match address {
            // What cannot be read is told of when it is opened.
            Address::Emulated(config) => config
                .parse::<Config>()
                .map_or_else(|_| Vec::new(), |config| config.files()),
            Address::VfioUser(socket) => vec![socket.clone()],
            _ => Vec::new(),
        };
        for way in ways {
            let found = trust::look_before_making(&way).map_err(|source| ServeError::System {
                what: "looking at the way to the controller",
                source,
            })?;
            if let Some(foreign) = found {
                return Err(ServeError::ForeignController { path: way, foreign });
            }
        }
    }
    Ok(())
}

/// Bytes that this process may lock into memory; `None` for no limit.
fn lockable() -> Option<u64> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// How the controllers are opened.
fn driver_options(policy: &PolicyFile, options: &ServeOptions) -> Options {
    let operator = policy
        .clients
        .iter()
        .any(|client| client.classes().intersects(ClassSet::OPERATOR));
    Options {
        admin_timeout: match operator {
            // Of a client that is alone: what it formats takes the time that it takes.
            true => options.admin_timeout.max(options.operator_timeout),
            false => options.admin_timeout,
        },
        io_timeout: options.io_timeout,
        abort_grace: options.times.abort_grace,
        // A pair for each client.
        io_queues: u16::try_from(policy.clients.len())
            .unwrap_or(u16::MAX)
            .max(1),
        // The server itself needs little memory: hugepages are left to clients.
        hugepages: false,
        ..Options::default()
    }
}

/// Refuses what else would only show when the first client lends its memory.
pub(super) fn check_lendable(
    policy: &PolicyFile,
    resolved: &ResolvedPolicy,
) -> Result<(), ServeError> {
    let distant = policy
        .controllers
        .iter()
        .find(|address| matches!(address, Address::VfioUser(_)));
    let lending = resolved
        .clients
        .iter()
        .find(|client| client.policy.isolation == Isolation::Shared);
    match (distant, lending) {
        (Some(address), Some(client)) => Err(ServeError::NotLendable {
            client: client.policy.name.clone(),
            address: address.to_string(),
        }),
        _ => Ok(()),
    }
}
