//! The policy of a group that is lent to clients.

use super::plain::Mode;
use super::resolve::{ResolvedClient, ResolvedPolicy};
use crate::client::Client;
use crate::command::{Access, Class, ClassSet, DecodedCommand, Scope};
use crate::reason::Reason;
use crate::verdict::{Policy, Verdict};

/// What a client was granted on one namespace.
#[derive(Debug, Clone, Copy, Default)]
struct Grant {
    /// Blocks of the namespace; 0: there is no such namespace.
    blocks: u64,
    classes: ClassSet,
}

#[derive(Debug)]
struct Rules {
    observe: bool,
    /// All operator classes that it was granted.
    operator: ClassSet,
    /// Whether it may format all namespaces of its controller.
    formats_all: bool,
    /// By namespace identifier.
    grants: Box<[Grant]>,
}

/// The policy of a policy file.
#[derive(Debug)]
pub struct GroupPolicy {
    clients: Box<[Rules]>,
}

/// What the client must be granted to touch blocks in that way. To learn anything of a block takes the right to read it.
const fn right(access: Access) -> ClassSet {
    match access {
        Access::Read | Access::Probe => ClassSet::READ,
        Access::Write => ClassSet::WRITE,
        Access::Zero => ClassSet::WRITE_ZEROES,
        Access::Deallocate | Access::Hint => ClassSet::DEALLOCATE,
        Access::Poison => ClassSet::POISON,
    }
}

/// The classes of commands on blocks that have a word of their own in `allow`.
const BLOCKS: ClassSet = ClassSet::all().difference(ClassSet::OPERATOR);

/// The bit that grants a class, in a set of those that have a word of their own.
#[inline(always)]
const fn own_bit(class: Class) -> ClassSet {
    ClassSet::from_bits_retain(1 << class as u32)
}

impl GroupPolicy {
    /// Makes the policy of what was found to fit the controllers.
    #[must_use]
    pub fn new(policy: &ResolvedPolicy) -> Self {
        Self {
            clients: policy.clients.iter().map(Rules::new).collect(),
        }
    }
}

impl Rules {
    fn new(client: &ResolvedClient) -> Self {
        let highest = client.namespaces.iter().map(|one| one.nsid).max();
        let mut grants = vec![Grant::default(); highest.map_or(0, |nsid| nsid as usize + 1)];
        for namespace in &client.namespaces {
            if let Some(grant) = grants.get_mut(namespace.nsid as usize) {
                *grant = Grant {
                    blocks: namespace.blocks,
                    classes: namespace.allow,
                };
            }
        }
        Self {
            observe: client.policy.mode == Mode::Observe,
            operator: client.policy.classes() & ClassSet::OPERATOR,
            formats_all: client.formats_all,
            grants: grants.into(),
        }
    }

    #[inline(always)]
    fn grant(&self, nsid: u32) -> Option<&Grant> {
        self.grants
            .get(nsid as usize)
            .filter(|grant| grant.blocks != 0)
    }

    /// A command that lacks its class or the right to touch its blocks so, and nothing else.
    fn lacking(&self, reason: Reason) -> Verdict {
        if self.observe {
            Verdict::Observe(reason.refusal())
        } else {
            Verdict::Deny(reason.refusal())
        }
    }

    /// Whether it is what nearly all commands are: of one extent, and granted. What is not is [judged](Self::judge), with the reason.
    #[inline(always)]
    fn plainly_allow(&self, command: &DecodedCommand<'_>) -> bool {
        let class = own_bit(command.class);
        let (Some(grant), [extent]) = (self.grant(command.nsid), command.extents) else {
            return false;
        };
        let Some(end) = extent.first.checked_add(extent.blocks) else {
            return false;
        };
        BLOCKS.intersects(class)
            && matches!(command.scope, Scope::Extents | Scope::Namespace)
            && extent.nsid == command.nsid
            && end <= grant.blocks
            && grant.classes.contains(class | right(extent.access))
    }

    #[inline(never)]
    fn judge(&self, command: &DecodedCommand<'_>) -> Verdict {
        let class = own_bit(command.class);
        if BLOCKS.intersects(class) {
            self.blocks(command, class)
        } else {
            self.other(command)
        }
    }

    /// Commands on blocks, of a class that must be granted.
    fn blocks(&self, command: &DecodedCommand<'_>, class: ClassSet) -> Verdict {
        let deny = |reason: Reason| Verdict::Deny(reason.refusal());
        let Some(grant) = self.grant(command.nsid) else {
            return deny(Reason::NamespaceNotGranted);
        };
        if !matches!(command.scope, Scope::Extents | Scope::Namespace) {
            return deny(Reason::OwnerOnly);
        }
        // The reach comes first: no mode lets a command out of its slice.
        let mut needed = class;
        for extent in command.extents {
            if extent.nsid != command.nsid {
                return deny(Reason::NamespaceNotGranted);
            }
            match extent.first.checked_add(extent.blocks) {
                Some(end) if end <= grant.blocks => {}
                _ => return deny(Reason::OutOfRange),
            }
            needed |= right(extent.access);
        }
        if grant.classes.contains(needed) {
            Verdict::Allow
        } else if grant.classes.contains(class) {
            self.lacking(Reason::AccessNotGranted)
        } else {
            self.lacking(Reason::ClassNotGranted)
        }
    }

    /// All others.
    fn other(&self, command: &DecodedCommand<'_>) -> Verdict {
        let deny = |reason: Reason| Verdict::Deny(reason.refusal());
        match command.class {
            // What is known of blocks is for those who may read them.
            Class::BlockStatus => self.blocks(command, ClassSet::READ),
            // The virtual controller answers it out of what it keeps for this client alone.
            Class::Virtual if command.scope == Scope::VirtualController => Verdict::Allow,
            class if ClassSet::OPERATOR.has(class) => {
                if !self.operator.has(class) {
                    return deny(Reason::ClassNotGranted);
                }
                match command.scope {
                    // A format of one namespace that is one of all, on such a controller.
                    Scope::AllNamespaces if !self.formats_all => deny(Reason::AllNamespaces),
                    // Of a namespace that is not active yet nothing can be granted.
                    Scope::Subsystem if class == Class::NamespaceManagement => Verdict::Allow,
                    Scope::Controller | Scope::Subsystem if command.nsid == 0 => Verdict::Allow,
                    // Not by the union: what was granted on one namespace does not reach another.
                    _ => match self.grant(command.nsid) {
                        None => deny(Reason::NamespaceNotGranted),
                        Some(grant) if !grant.classes.has(class) => deny(Reason::ClassNotGranted),
                        Some(_) => Verdict::Allow,
                    },
                }
            }
            _ => deny(Reason::OwnerOnly),
        }
    }
}

impl Policy for GroupPolicy {
    #[inline]
    fn authorize(&self, command: &DecodedCommand<'_>, client: &Client) -> Verdict {
        match self.clients.get(usize::from(client.id.0)) {
            Some(rules) if rules.plainly_allow(command) => Verdict::Allow,
            Some(rules) => rules.judge(command),
            None => Verdict::Deny(Reason::ClassNotGranted.refusal()),
        }
    }
}
