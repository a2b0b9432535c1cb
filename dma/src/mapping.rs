//! Memory mapped into a domain, until dropped.
#![allow(unsafe_code)] // hands memory to a domain, and lets go of it in the order that the domain's contract asks for

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Weak};

use crate::domain::{Access, DomainId, IommuDomain, Iova, MapRegion};
use crate::error::MapError;
use crate::ledger::Ledger;
use crate::memory::Memory;

/// One mapping and the memory behind it.
///
/// It holds the domain weakly: a buffer that an application keeps, or that was leaked, must not keep a VFIO group open. When the domain is
/// gone the mapping is too, and the memory can go.
pub(crate) struct Mapping {
    memory: ManuallyDrop<Memory>,
    domain: Weak<dyn IommuDomain>,
    domain_id: DomainId,
    ledger: Arc<Ledger>,
    iova: Iova,
    access: Access,
}

impl Mapping {
    /// Maps memory at an address that the ledger has set aside for it; the address is returned to the ledger when the mapping ends, or if it fails.
    pub(crate) fn new(
        domain: &Arc<dyn IommuDomain>,
        ledger: &Arc<Ledger>,
        memory: Memory,
        iova: Iova,
        access: Access,
    ) -> Result<Self, (MapError, Memory)> {
        let region = MapRegion {
            pointer: memory.pointer(),
            length: memory.len(),
            descriptor: memory.file(),
            access,
        };
        // SAFETY: the memory is moved into the mapping, whose drop frees it only after `unmap` succeeded or the domain is gone, and leaks it
        // otherwise. Until then it is reached by pointer and atomics only, or through a `Buffer`, which a queue owns while its device uses it.
        if let Err(error) = unsafe { domain.map(&region, iova) } {
            ledger.give_back(iova, memory.len());
            return Err((error, memory));
        }
        ledger.mapped(iova, memory.len());
        Ok(Self {
            memory: ManuallyDrop::new(memory),
            domain: Arc::downgrade(domain),
            domain_id: domain.id(),
            ledger: Arc::clone(ledger),
            iova,
            access,
        })
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) const fn iova(&self) -> Iova {
        self.iova
    }

    pub(crate) const fn access(&self) -> Access {
        self.access
    }

    pub(crate) const fn domain_id(&self) -> DomainId {
        self.domain_id
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let length = self.memory.len();
        let ended = self
            .domain
            .upgrade()
            .map_or(Ok(()), |domain| domain.unmap(self.iova, length));
        match ended {
            Ok(()) => {
                self.ledger.unmapped(self.iova, length);
                // SAFETY: dropped once, here, and the device cannot reach it any more.
                unsafe { ManuallyDrop::drop(&mut self.memory) };
            }
            Err(error) => {
                // Neither the memory nor its address may be used for anything else: the device may still reach it.
                self.ledger.leaked(length);
                tracing::error!(iova = %self.iova, length, %error, "memory could not be unmapped; it is leaked");
            }
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("iova", &self.iova)
            .field("memory", &*self.memory)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
