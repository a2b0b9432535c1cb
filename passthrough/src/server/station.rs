//! A client's virtual controller, its socket, and the thread that answers it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use nvme_vfio::{AddressSpace, Controller};
use nvme_vfio_emulator::{Emulator, Patience, ServedController, served_domain};
use nvme_vfio_user::{Server as Listener, ServerOptions, SignalThreads, Stop};

use super::door::Door;
use super::error::ServeError;
use super::front;
use super::loans::Loans;
use super::mender::Mender;
use super::options::ServeOptions;
use super::poller::Seat;
use crate::audit::{Auditor, ServerAudit};
use crate::client::{Client, Holder, Identity};
use crate::command::ClassSet;
use crate::controller::{
    Ceilings, Clock, Health, Isolated, LentNamespaceConfig, Personality, Slice, UnderWay,
    VirtualConfig, VirtualController,
};
use crate::decode::Decoder;
use crate::gate::Gate;
use crate::policy::{Isolation, PolicyFile, ResolvedClient};
use crate::verdict::Policy;

/// One client's socket and the thread that answers it.
#[derive(Debug)]
pub(super) struct Station {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) stop: Arc<Stop>,
    pub(super) thread: Option<JoinHandle<()>>,
    pub(super) emulator: Arc<Emulator>,
    /// Of an operator: its command that is under way.
    pub(super) under_way: Option<UnderWay>,
    panicked: Arc<AtomicBool>,
}

impl Station {
    /// Whether what it holds can still be let go of in order: neither its thread, nor that for its operator's commands, nor whoever had its virtual controller has panicked in the middle of
    /// something. (A panic over a message of the client's ends that client's session alone.)
    pub(super) fn is_sound(&self) -> bool {
        let its_operator = self.under_way.as_ref();
        !self.panicked.load(Ordering::Acquire)
            && !self.emulator.is_broken()
            && !its_operator.is_some_and(UnderWay::is_lost)
    }
}

/// Tells that a client's thread has ended, however it did.
struct Farewell {
    index: usize,
    tell: mpsc::Sender<usize>,
    panicked: Arc<AtomicBool>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.panicked.store(thread::panicking(), Ordering::Release);
        // Nobody may listen any more.
        let _ = self.tell.send(self.index);
    }
}

/// What all clients' front ends are made of.
pub(super) struct Builder<'a, P: ?Sized> {
    pub(super) policy: &'a PolicyFile,
    pub(super) options: &'a ServeOptions,
    /// How many descriptors of each client may wait to be closed.
    pub(super) max_unclosed: usize,
    pub(super) controllers: &'a [Controller],
    pub(super) rules: Arc<P>,
    pub(super) clock: Clock,
    pub(super) mender: Mender,
    pub(super) auditor: &'a Auditor,
    pub(super) server_audit: &'a ServerAudit,
    pub(super) poller: Arc<OnceLock<thread::Thread>>,
}

/// A client's virtual controller, not served yet.
#[derive(Debug)]
pub(super) struct Front {
    name: String,
    served: ServedController,
    listener: Listener,
    under_way: Option<UnderWay>,
    pub(super) seat: Arc<Seat>,
}

impl<P: Policy + ?Sized + 'static> Builder<'_, P> {
    pub(super) fn front(&self, client: &ResolvedClient) -> Result<Front, ServeError> {
        let name = client.policy.name.clone();
        let holder = Holder::default();
        let (handler, config, health) = self.handler(client, &holder)?;
        let under_way = handler.under_way();
        let domain = served_domain(config.mappings);
        let emulator =
            Emulator::with_handler(config, Box::new(handler), domain).map_err(|source| {
                ServeError::Front {
                    client: name.clone(),
                    source,
                }
            })?;
        // It is given turns all the time, however many those are: its Timestamp counts milliseconds.
        emulator.tell_time(true);
        health.told_by(&emulator);
        let served = self.served(client, &emulator)?;
        let seat = Seat::new(Arc::clone(&emulator));
        let door = Door {
            client: client.id,
            users: client.policy.uid.clone(),
            holder,
            seat: Arc::clone(&seat),
            audit: self.server_audit.clone(),
            poller: Arc::clone(&self.poller),
        };
        let options = ServerOptions {
            doorkeeper: Some(Arc::new(door)),
            ..socket_options(client, self.max_unclosed)
        };
        let listener =
            Listener::bind(&self.policy.socket(&client.policy), options).map_err(|source| {
                ServeError::Socket {
                    client: name.clone(),
                    source,
                }
            })?;
        Ok(Front {
            name,
            served,
            listener,
            under_way,
            seat,
        })
    }

    fn handler(
        &self,
        client: &ResolvedClient,
        holder: &Holder,
    ) -> Result<(VirtualController<P>, nvme_vfio_emulator::Config, Health), ServeError> {
        let limits = &client.limits;
        let used = client.namespaces.iter().map(|one| one.controller);
        let allowed = used
            .filter_map(|index| self.controllers.get(index)?.max_transfer())
            .min();
        let max_transfer = front::max_transfer(allowed);
        let audit = self.auditor.client(
            client.id,
            &client.policy.name,
            u32::from(limits.outstanding),
        );
        let gate = Gate::new(
            Arc::clone(&self.rules),
            Client {
                id: client.id,
                name: client.policy.name.as_str().into(),
                identity: Identity::default(),
            },
            self.decoder(client),
            audit,
        );
        let namespaces = client
            .namespaces
            .iter()
            .map(|namespace| LentNamespaceConfig {
                nsid: namespace.nsid,
                slices: namespace
                    .extents
                    .iter()
                    .map(|extent| Slice {
                        target: u16::try_from(namespace.controller).unwrap_or(u16::MAX),
                        nsid: extent.nsid,
                        start: extent.first,
                        blocks: extent.blocks,
                    })
                    .collect(),
            });
        let config = VirtualConfig {
            controllers: self.controllers.to_vec(),
            namespaces: namespaces.collect(),
            ceilings: Ceilings {
                outstanding: limits.outstanding,
                operations: limits.iops.map(u64::from),
                bandwidth: limits.bandwidth,
            },
            isolated: match client.policy.isolation {
                Isolation::Shared => Isolated::Shared,
                Isolation::Bounce => Isolated::Bounce,
            },
            timeout: self.options.io_timeout,
            mender: Some(self.mender.clone()),
            max_transfer,
            holder: holder.clone(),
            clock: self.clock.clone(),
        };
        let wrong = |source| ServeError::Virtual {
            client: client.policy.name.clone(),
            source,
        };
        let handler = VirtualController::new(config, gate).map_err(wrong)?;
        let personality =
            Personality::of(client, self.controllers).map_err(|error| wrong(error.into()))?;
        let health = personality.health().clone();
        if let Some(first) = client.namespaces.first() {
            self.mender.keep_fresh(first.controller, &health);
        }
        let mut handler = handler.with_personality(personality);
        if client.policy.classes().intersects(ClassSet::OPERATOR) {
            handler = handler
                .with_operator()
                .map_err(|error| wrong(error.into()))?;
        }
        Ok((handler, front::config(client, max_transfer), health))
    }

    /// Of a client that may format only what is its own altogether: what a format reaches is what its controllers say.
    fn decoder(&self, client: &ResolvedClient) -> Decoder {
        let used = client.namespaces.iter().map(|one| one.controller);
        let attributes = used
            .filter_map(|index| self.controllers.get(index))
            .fold(0, |all, controller| all | controller.identify().fna);
        Decoder::new().with_format_attributes(attributes)
    }

    fn served(
        &self,
        client: &ResolvedClient,
        emulator: &Arc<Emulator>,
    ) -> Result<ServedController, ServeError> {
        let patience = Patience {
            abort: self.options.unmap_patience,
            // Memory is let go of with a proof, or never.
            fatal: None,
        };
        let emulator = Arc::clone(emulator);
        let space = self.controllers.first().map(Controller::address_space);
        let served = match (client.policy.isolation, space) {
            (Isolation::Shared, Some(space)) => {
                let loans = Arc::new(Loans::new(AddressSpace::clone(space)));
                ServedController::with_lender(emulator, patience, loans)
            }
            _ => ServedController::new(emulator, patience),
        };
        served.map_err(|source| ServeError::System {
            what: "making a client's doorbells",
            source,
        })
    }
}

/// How a client's socket is made: for its user alone where there is one, and this process may give it away. Who connects is looked at in any case.
pub(super) fn socket_options(client: &ResolvedClient, max_unclosed: usize) -> ServerOptions {
    let me = nix::unistd::geteuid();
    let (mode, owner) = match client.policy.uid.as_slice() {
        [user] if *user == me.as_raw() => (0o600, None),
        [user] if me.is_root() => (0o600, Some(*user)),
        _ => (0o666, None),
    };
    let mut options = ServerOptions {
        mode,
        owner,
        ..ServerOptions::default()
    };
    let limits = &client.limits;
    options.session.sealed_memory = !client.policy.unsealed_memory;
    options.session.max_lent = limits.memory;
    options.session.max_unclosed = max_unclosed;
    // For each vector, and for as many of a session before that have not ended yet.
    options.session.signal_threads = SignalThreads::new(2 * usize::from(front::vectors(client)));
    let maps = &mut options.session.capabilities.max_dma_maps;
    *maps = (*maps).min(limits.mappings);
    options
}

impl Front {
    /// Starts the thread that answers the socket. `tell` gets `index` when it has ended.
    pub(super) fn serve(
        self,
        index: usize,
        tell: mpsc::Sender<usize>,
    ) -> Result<Station, ServeError> {
        let stop = Stop::new().map_err(|errno| ServeError::System {
            what: "making an eventfd",
            source: errno.into(),
        })?;
        let stop = Arc::new(stop);
        let socket = self.listener.path().to_owned();
        let (served, listener, its) = (self.served, self.listener, Arc::clone(&stop));
        let name = self.name.clone();
        let emulator = Arc::clone(served.emulator());
        let panicked = Arc::<AtomicBool>::default();
        let farewell = Farewell {
            index,
            tell,
            panicked: Arc::clone(&panicked),
        };
        let thread = thread::Builder::new()
            .name(format!("nvme-c{index}"))
            .spawn(move || {
                // Dropped after all else, also in a panic.
                let _farewell = farewell;
                // And this first.
                let (served, listener) = (served, listener);
                if let Err(error) = listener.run(&served, &its) {
                    tracing::error!(client = name, %error, "a client's socket has failed");
                }
            })
            .map_err(ServeError::no_thread)?;
        Ok(Station {
            name: self.name,
            socket,
            stop,
            thread: Some(thread),
            emulator,
            under_way: self.under_way,
            panicked,
        })
    }
}
