//! A policy against the real controllers.

use std::collections::HashMap;

use super::document::Place;
use super::error::{Fault, PolicyError};
use super::facts::{Budget, ControllerFacts};
use super::names::{ControllerNames, NamespaceNames};
use super::plain::{ClientPolicy, Isolation, Limits, NamespacePolicy, PolicyFile};
use super::real::{device, inside, usable};
use super::{classes, quantity, rules};
use crate::client::ClientId;
use crate::command::ClassSet;

/// Blocks of a real namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealExtent {
    /// The real namespace.
    pub nsid: u32,
    /// First block.
    pub first: u64,
    /// How many, at least 1.
    pub blocks: u64,
}

/// A namespace that a client sees, with what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedNamespace {
    /// Its identifier, as the client sees it.
    pub nsid: u32,
    /// Index of its controller.
    pub controller: usize,
    /// Its blocks in order: block 0 is the first of the first extent.
    pub extents: Vec<RealExtent>,
    /// Blocks altogether.
    pub blocks: u64,
    /// Bytes of a block, as a power of two.
    pub block_shift: u8,
    /// What the client may do to it.
    pub allow: ClassSet,
    /// What of it the controller has commands for.
    pub offered: ClassSet,
    /// Whether its blocks may be other clients' too.
    pub shared: bool,
    /// Its identifiers.
    pub names: NamespaceNames,
}

/// A client, with what is behind what it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedClient {
    /// Its place in the policy.
    pub id: ClientId,
    /// What the file says of it.
    pub policy: ClientPolicy,
    /// Its limits, as far as the controllers can give them.
    pub limits: Limits,
    /// What its controller is called.
    pub names: ControllerNames,
    /// Whether it may format all active namespaces of its controller, which is one.
    pub formats_all: bool,
    /// What it sees, in ascending order of NSID.
    pub namespaces: Vec<ResolvedNamespace>,
}

/// Something that the policy's author should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A short name that never changes.
    pub kind: &'static str,
    /// The client that it is about; `None`: all.
    pub client: Option<String>,
    /// The namespace that it is about, as the client sees it.
    pub nsid: Option<u32>,
    /// In words.
    pub text: String,
}

/// A policy that fits the controllers that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPolicy {
    /// The clients; their index is their [`ClientId`].
    pub clients: Vec<ResolvedClient>,
    /// What its author should know.
    pub warnings: Vec<Warning>,
}

struct Resolver<'a> {
    policy: &'a PolicyFile,
    facts: &'a [ControllerFacts],
    warnings: Vec<Warning>,
}

impl PolicyFile {
    /// Checks the policy against the controllers that it is for, in the order of [`controllers`](Self::controllers): that the namespaces exist and can be lent, that the
    /// slices lie inside, that there are queues for all clients, and that what all of them may use together is there.
    ///
    /// # Errors
    /// What does not fit, with its place in the file.
    pub fn resolve(
        &self,
        facts: &[ControllerFacts],
        budget: &Budget,
    ) -> Result<ResolvedPolicy, PolicyError> {
        let mut resolver = Resolver {
            policy: self,
            facts,
            warnings: self.warnings(),
        };
        let resolved = resolver.run(budget);
        let clients = resolved.map_err(|error| match &self.file {
            Some(file) => error.in_file(file),
            None => error,
        })?;
        Ok(ResolvedPolicy {
            clients,
            warnings: resolver.warnings,
        })
    }
}

impl<'a> Resolver<'a> {
    fn run(&mut self, budget: &Budget) -> Result<Vec<ResolvedClient>, PolicyError> {
        let policy = self.policy;
        let mut clients = Vec::with_capacity(policy.clients.len());
        for (index, client) in policy.clients.iter().enumerate() {
            let mut namespaces = Vec::new();
            for namespace in &client.namespaces {
                namespaces.push(self.namespace(client, namespace)?);
            }
            namespaces.sort_by_key(|namespace| namespace.nsid);
            self.operators(client)?;
            clients.push(ResolvedClient {
                id: ClientId(u16::try_from(index).unwrap_or(u16::MAX)),
                policy: client.clone(),
                limits: self.limits(client),
                names: policy.controller_names(client),
                formats_all: self.formats_all(client),
                namespaces,
            });
        }
        self.media()?;
        self.queues()?;
        self.budget(budget)?;
        Ok(clients)
    }

    fn warn(&mut self, kind: &'static str, client: &ClientPolicy, nsid: Option<u32>, text: String) {
        self.warnings.push(Warning {
            kind,
            client: Some(client.name.clone()),
            nsid,
            text,
        });
    }

    fn facts(&self, index: usize, place: Place) -> Result<&'a ControllerFacts, PolicyError> {
        self.facts
            .get(index)
            .ok_or_else(|| device(place, "the controller has not been asked".to_owned()))
    }

    fn address(&self, index: usize) -> String {
        let address = self.policy.controllers.get(index);
        address.map_or_else(String::new, ToString::to_string)
    }

    fn namespace(
        &mut self,
        client: &ClientPolicy,
        namespace: &NamespacePolicy,
    ) -> Result<ResolvedNamespace, PolicyError> {
        let address = self.address(namespace.controller);
        let mut extents = Vec::with_capacity(namespace.source.len());
        let mut blocks = 0u64;
        let mut size: Option<(u32, u32)> = None;
        let mut remembers = false;
        let mut protected = false;
        for source in &namespace.source {
            let facts = self.facts(namespace.controller, source.place)?;
            let real = usable(facts, source, &address)?;
            match size {
                Some((bytes, nsid)) if bytes != real.block_size => {
                    return Err(device(
                        source.place,
                        format!(
                            "namespace {} has blocks of {} bytes and namespace {nsid} of {bytes}; slices of both cannot be one namespace",
                            source.nsid, real.block_size
                        ),
                    ));
                }
                _ => size = Some((real.block_size, source.nsid)),
            }
            let count = inside(real, source)?;
            blocks = blocks
                .checked_add(count)
                .filter(|blocks| *blocks <= u64::MAX / u64::from(real.block_size))
                .ok_or_else(|| {
                    device(
                        source.place,
                        "the slices are more than 2^64 bytes together".to_owned(),
                    )
                })?;
            extents.push(RealExtent {
                nsid: source.nsid,
                first: source.start,
                blocks: count,
            });
            remembers |= !real.forgets();
            protected |= real.write_protected;
        }
        let facts = self.facts(namespace.controller, namespace.place)?;
        let offered = namespace.allow & facts.classes();
        let several = extents
            .iter()
            .any(|extent| Some(extent.nsid) != extents.first().map(|first| first.nsid));
        if several && namespace.allow.contains(ClassSet::COPY) {
            return Err(device(
                namespace.place,
                "\"copy\" cannot be granted on a namespace that is put together from several real ones: the controller copies within one".to_owned(),
            ));
        }
        let nsid = Some(namespace.nsid);
        let missing = namespace.allow.difference(offered);
        if !missing.is_empty() {
            self.warn(
                "not-supported",
                client,
                nsid,
                format!(
                    "the controller {address} has no commands for {}: the grant has no effect",
                    classes::words(missing).join(", ")
                ),
            );
        }
        if remembers {
            self.warn(
                "earlier-data",
                client,
                nsid,
                "the device does not say that blocks which are deallocated forget what they held (DLFEAT), so that deallocating a slice does not clear it: overwrite it before it is granted to somebody else".to_owned(),
            );
        }
        if protected {
            self.warn(
                "write-protected",
                client,
                nsid,
                "a real namespace behind it is write protected: writes will end with the device's own error".to_owned(),
            );
        }
        let (size, _) = size.unwrap_or((512, 0));
        Ok(ResolvedNamespace {
            nsid: namespace.nsid,
            controller: namespace.controller,
            extents,
            blocks,
            block_shift: u8::try_from(size.trailing_zeros()).unwrap_or(9),
            allow: namespace.allow,
            offered,
            shared: namespace.shared,
            names: self.policy.namespace_names(client, namespace.nsid),
        })
    }

    /// A real namespace of a controller on which the client was not granted these classes as a whole.
    fn foreign(&self, client: &ClientPolicy, controller: usize, classes: ClassSet) -> Option<u32> {
        let granted = |nsid: u32| {
            client.namespaces.iter().any(|own| {
                own.controller == controller
                    && own.allow.contains(classes)
                    && matches!(own.source.as_slice(), [source] if source.nsid == nsid && source.is_whole())
            })
        };
        let mut real = self.facts.get(controller)?.namespaces.iter();
        real.find(|real| !granted(real.nsid)).map(|real| real.nsid)
    }

    fn formats_all(&self, client: &ClientPolicy) -> bool {
        let mut controllers = client.namespaces.iter().map(|one| one.controller);
        let first = controllers.next();
        first.is_some_and(|first| {
            controllers.all(|other| other == first)
                && self.foreign(client, first, ClassSet::FORMAT).is_none()
        })
    }

    /// Operator classes that reach every namespace of a controller take all of them.
    fn operators(&mut self, client: &ClientPolicy) -> Result<(), PolicyError> {
        let mut firmware = None;
        for namespace in &client.namespaces {
            let facts = self.facts(namespace.controller, namespace.place)?;
            let reaches_all = |class: ClassSet| {
                class == ClassSet::SECURITY
                    || class == ClassSet::NAMESPACE_MANAGEMENT
                    || class == ClassSet::FORMAT && facts.formats_all()
            };
            for class in namespace.allow.intersection(ClassSet::OPERATOR).iter() {
                let word = classes::words(class).first().copied().unwrap_or_default();
                let Some(foreign) = self.foreign(client, namespace.controller, class) else {
                    continue;
                };
                if reaches_all(class) {
                    let because = if class == ClassSet::FORMAT {
                        "a format on this controller is of all its namespaces (FNA)"
                    } else {
                        "it reaches all namespaces of the controller"
                    };
                    return Err(PolicyError::at(
                        namespace.place,
                        Fault::Operator {
                            class: word,
                            reason: format!(
                                "{because}, and on namespace {foreign} it is not granted"
                            ),
                        },
                    ));
                }
                if class == ClassSet::FIRMWARE {
                    firmware = Some(foreign);
                }
            }
        }
        if let Some(foreign) = firmware {
            self.warn(
                "firmware-reach",
                client,
                None,
                format!("new firmware is of the whole controller, also of namespace {foreign}, on which it is not granted"),
            );
        }
        Ok(())
    }

    /// What the real queues can hold.
    fn limits(&mut self, client: &ClientPolicy) -> Limits {
        let mut limits = client.limits;
        let entries = client
            .namespaces
            .iter()
            .filter_map(|namespace| self.facts.get(namespace.controller))
            .map(|facts| facts.queue_entries)
            .min();
        // A queue of n entries holds n - 1 commands.
        let most = entries.map_or(u32::MAX, |entries| entries.saturating_sub(1).max(1));
        if u32::from(limits.outstanding) > most {
            limits.outstanding = u16::try_from(most).unwrap_or(limits.outstanding);
            self.warn(
                "fewer-outstanding",
                client,
                None,
                format!(
                    "the controller's queues hold {most} commands: outstanding is {most} instead of {}",
                    client.limits.outstanding
                ),
            );
        }
        limits
    }

    /// Slices that two controllers of one subsystem show of one medium.
    fn media(&self) -> Result<(), PolicyError> {
        let mut known: Vec<(usize, u32)> = Vec::new();
        let mut numbers: HashMap<(usize, u32), usize> = HashMap::new();
        rules::overlaps(self.policy, |controller, nsid| {
            *numbers.entry((controller, nsid)).or_insert_with(|| {
                let alike = |(other, other_nsid): &(usize, u32)| {
                    let pair = (self.facts.get(controller), self.facts.get(*other));
                    matches!(pair, (Some(one), Some(two)) if *other != controller && one.same_medium(nsid, two, *other_nsid))
                };
                known.iter().position(alike).unwrap_or_else(|| {
                    known.push((controller, nsid));
                    known.len() - 1
                })
            })
        })
    }

    /// Each client has a queue pair of its own on each controller that it uses.
    fn queues(&self) -> Result<(), PolicyError> {
        let mut users = vec![0u32; self.facts.len()];
        for client in &self.policy.clients {
            let mut used: Vec<usize> = client.namespaces.iter().map(|one| one.controller).collect();
            used.sort_unstable();
            used.dedup();
            for controller in used {
                let place = client.place;
                let facts = self.facts(controller, place)?;
                let Some(count) = users.get_mut(controller) else {
                    continue;
                };
                *count += 1;
                if *count > u32::from(facts.io_queues) {
                    return Err(device(
                        place,
                        format!(
                            "the controller {} has {} I/O queue pairs, and each client needs one of its own: there are too many clients",
                            self.address(controller),
                            facts.io_queues
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// What all clients may use together.
    fn budget(&self, budget: &Budget) -> Result<(), PolicyError> {
        let (mut memory, mut mappings) = (0u64, 0u64);
        for client in &self.policy.clients {
            if client.isolation == Isolation::Bounce {
                // Its memory is not lent to the device.
                continue;
            }
            memory = memory.saturating_add(client.limits.memory);
            mappings = mappings.saturating_add(client.limits.mappings.into());
            if let Some(limit) = budget.locked_memory.filter(|limit| memory > *limit) {
                return Err(device(
                    client.place,
                    format!(
                        "the clients up to this one may lend {} to the device, and this process may lock {} into memory; raise its limit (ulimit -l, LimitMEMLOCK=) or lower limits.memory",
                        quantity::show(memory, "B"),
                        quantity::show(limit, "B")
                    ),
                ));
            }
            if let Some(limit) = budget.mappings.filter(|limit| mappings > u64::from(*limit)) {
                return Err(device(
                    client.place,
                    format!(
                        "the clients up to this one may make {mappings} mappings, and the IOMMU takes {limit}; lower limits.mappings"
                    ),
                ));
            }
        }
        Ok(())
    }
}
