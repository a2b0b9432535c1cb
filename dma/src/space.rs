//! The addresses of one domain, and what is mapped at them.
#![allow(unsafe_code)] // declares the two ways to lend memory that a caller keeps; the promises are passed on, not made

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::buffer::Buffer;
use crate::domain::{Access, DomainId, IommuDomain, Iova, MapRegion, check_region};
use crate::error::{DmaError, MapError};
use crate::ledger::Ledger;
use crate::mapping::Mapping;
use crate::memory::{Memory, Pages};
use crate::page::page_size;
use crate::shared::SharedMemory;

/// Memory that was not mapped is given back with the reason.
#[derive(Debug, Error)]
#[error("memory was not mapped for the device")]
pub struct Rejected {
    /// Why.
    #[source]
    pub error: DmaError,
    /// As it was given.
    pub memory: Memory,
}

impl From<Rejected> for DmaError {
    /// Drops the memory.
    fn from(rejected: Rejected) -> Self {
        rejected.error
    }
}

/// Chooses addresses in a domain and maps memory at them. Clones are the same address space.
///
/// Make one per domain: two would not know of each other's addresses, and the domain would refuse the second to use one
/// ([`MapError::Overlap`]).
///
/// Addresses are chosen lowest first among the ranges that the domain maps, never in the first mebibyte nor among x86's interrupt addresses,
/// and aligned to the largest power of two in the region's length, so that the IOMMU can use its large pages.
#[derive(Clone)]
pub struct AddressSpace {
    domain: Arc<dyn IommuDomain>,
    ledger: Arc<Ledger>,
    page_size: u64,
}

impl AddressSpace {
    /// The addresses of a domain in which nothing is mapped yet.
    #[must_use]
    pub fn new(domain: Arc<dyn IommuDomain>) -> Self {
        let limits = domain.limits();
        Self {
            domain,
            ledger: Arc::new(Ledger::new(&limits)),
            page_size: limits.page_size(),
        }
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &Arc<dyn IommuDomain> {
        &self.domain
    }

    /// The domain's identity, which buffers carry.
    #[inline]
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.domain.id()
    }

    /// Zeroed memory of at least `length` bytes, in whole pages, to be shared with the device for good: rings, PRP lists.
    ///
    /// # Errors
    /// [`DmaError`]: no memory, no address, or the domain refuses.
    pub fn shared(&self, length: usize, access: Access) -> Result<SharedMemory, DmaError> {
        Ok(self.map(self.memory(length, Pages::Small)?, access)?)
    }

    /// Maps memory at an address of this value's choice, to be reached by pointer and atomics only.
    ///
    /// # Errors
    /// The memory, and why it was not mapped.
    pub fn map(&self, memory: Memory, access: Access) -> Result<SharedMemory, Rejected> {
        self.mapping(memory, access).map(SharedMemory::new)
    }

    /// Maps memory where the caller wants it: guest-physical addresses of a virtual machine.
    ///
    /// # Errors
    /// The memory, and why it was not mapped: [`MapError::Overlap`] when part of the range is in use,
    /// [`MapError::OutsideIovaRanges`] when the IOMMU does not map it, or the other reasons of [`DmaError::Map`].
    pub fn map_at(
        &self,
        memory: Memory,
        iova: Iova,
        access: Access,
    ) -> Result<SharedMemory, Rejected> {
        let length = memory.len();
        if let Err(error) = self.check(&memory, iova, access) {
            return Err(Rejected {
                error: error.into(),
                memory,
            });
        }
        if !self.ledger.claim(iova, length) {
            return Err(Rejected {
                error: MapError::Overlap { iova, length }.into(),
                memory,
            });
        }
        self.finish(memory, iova, access).map(SharedMemory::new)
    }

    /// Makes one buffer of memory that the application has, and takes it over: [`Memory::from_owned`].
    ///
    /// # Errors
    /// The memory, and why it was not mapped. Memory that does not begin and end on a page is refused, since the device would reach what lies
    /// beside it.
    pub fn register_owned(&self, memory: Memory, access: Access) -> Result<Buffer, Rejected> {
        if let Err(error) = Buffer::check_length(memory.len()) {
            return Err(Rejected { error, memory });
        }
        self.mapping(memory, access).map(Buffer::of_mapping)
    }

    /// Makes a buffer of whole pages that stay the caller's.
    ///
    /// # Safety
    /// See [`Memory::from_raw_parts`]: until every part of the buffer has been dropped and [`leaked_bytes`](Self::leaked_bytes) has not grown by it, the bytes stay
    /// valid and nothing else accesses them.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is lent then.
    pub unsafe fn register(
        &self,
        pointer: NonNull<u8>,
        length: usize,
        access: Access,
    ) -> Result<Buffer, DmaError> {
        // SAFETY: the caller's promise, word for word.
        let memory = unsafe { Memory::from_raw_parts(pointer, length, page_size()) };
        Ok(self.register_owned(memory, access)?)
    }

    /// As [`register`](Self::register), of bytes that begin and end anywhere: the pages that they lie in are mapped whole.
    ///
    /// # Safety
    /// As of [`register`](Self::register) for the bytes themselves. Of the pages that they lie in, *all* bytes stay mapped in this process for as long, and the caller
    /// accepts that the device can read them, and write them if `access` says so, at any time: no reference to them may live.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is lent then.
    pub unsafe fn register_outer(
        &self,
        pointer: NonNull<u8>,
        length: usize,
        access: Access,
    ) -> Result<Buffer, DmaError> {
        if length == 0 {
            return Err(DmaError::ZeroLength);
        }
        let page = self.page_size();
        let before = pointer.addr().get() % page;
        let outer = before
            .checked_add(length)
            .and_then(|length| length.checked_next_multiple_of(page));
        let outer = outer.ok_or(MapError::PointerWraps {
            pointer: pointer.addr().get(),
            length,
        })?;
        Buffer::check_length(outer)?;
        // `wrapping`: the page begins outside of what the caller's pointer was made for, and only the device goes there.
        let first = pointer.as_ptr().wrapping_sub(before);
        let first = NonNull::new(first).ok_or(MapError::NoMemoryBehind {
            pointer: 0,
            length: outer,
        })?;
        // SAFETY: the caller promised it for the pages whole.
        let memory = unsafe { Memory::from_raw_parts(first, outer, page_size()) };
        let mapping = self.mapping(memory, access)?;
        Ok(Buffer::inside_mapping(
            mapping,
            pointer,
            before as u64,
            length,
        ))
    }

    /// What is mapped, ascending: address and bytes. Pools show one entry per arena.
    #[must_use]
    pub fn mappings(&self) -> Vec<(Iova, usize)> {
        self.ledger.mappings()
    }

    /// Bytes given up for good because the device may still reach them: a quarantine was dropped without proof, or the domain refused to unmap. Zero in a
    /// program without faults.
    #[must_use]
    pub fn leaked_bytes(&self) -> u64 {
        self.ledger.leaked_bytes()
    }

    /// Smallest page of the domain; what addresses and lengths are multiples of.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size as usize
    }

    /// Memory that fits the domain's pages.
    pub(crate) fn memory(&self, length: usize, pages: Pages) -> Result<Memory, DmaError> {
        let rounded = length.checked_next_multiple_of(self.page_size());
        Memory::new(
            rounded.ok_or(DmaError::TooLong {
                length,
                limit: isize::MAX as usize,
            })?,
            pages,
        )
    }

    /// Maps at an address of this value's choice.
    pub(crate) fn mapping(&self, memory: Memory, access: Access) -> Result<Mapping, Rejected> {
        // What is wrong with the memory itself, or with the domain, is told before an address is looked for; address 0 stands for one.
        match self.check(&memory, Iova(0), access) {
            Ok(()) | Err(MapError::OutsideIovaRanges { .. }) => {}
            Err(error) => {
                return Err(Rejected {
                    error: error.into(),
                    memory,
                });
            }
        }
        let length = memory.len() as u64;
        match self.ledger.choose(length, self.page_size) {
            Some(iova) => self.finish(memory, iova, access),
            None => Err(Rejected {
                error: DmaError::OutOfIova {
                    length,
                    alignment: self.page_size,
                },
                memory,
            }),
        }
    }

    fn check(&self, memory: &Memory, iova: Iova, access: Access) -> Result<(), MapError> {
        let region = MapRegion {
            pointer: memory.pointer(),
            length: memory.len(),
            descriptor: None,
            access,
        };
        check_region(&self.domain.limits(), &region, iova)
    }

    fn finish(&self, memory: Memory, iova: Iova, access: Access) -> Result<Mapping, Rejected> {
        Mapping::new(&self.domain, &self.ledger, memory, iova, access).map_err(|(error, memory)| {
            Rejected {
                error: error.into(),
                memory,
            }
        })
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("domain", &self.domain)
            .field("mappings", &self.mappings())
            .finish_non_exhaustive()
    }
}
