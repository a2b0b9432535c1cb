//! Buffers cut out of few large mappings.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::Buffer;
use crate::domain::{Access, DomainId, Iova};
use crate::error::DmaError;
use crate::free_list::FreeList;
use crate::mapping::Mapping;
use crate::memory::Pages;
use crate::page::{HUGE_PAGE_SIZE, page_size};
use crate::space::AddressSpace;

/// The pool grows by doubling, but never by more than this at once unless one buffer needs it.
const LARGEST_STEP: usize = 1 << 30;

/// How a pool gets its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// What devices may do with its buffers. [`Access::DEVICE_READ`] for data that is only written to a drive.
    pub access: Access,
    /// Take 2 MiB hugepages where the system has enough free ones; small pages otherwise.
    pub hugepages: bool,
    /// Bytes that are mapped first; rounded up to whole 2 MiB.
    pub arena: usize,
    /// Most bytes that the pool maps, in whole 2 MiB; `None` leaves it to the system's limits.
    pub limit: Option<usize>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            access: Access::READ_WRITE,
            hugepages: true,
            arena: HUGE_PAGE_SIZE,
            limit: None,
        }
    }
}

/// Hands out page-aligned [`Buffer`]s without mapping each: the domain sees a mapping per arena, of 2 MiB or more. Clones are the same pool.
///
/// It grows when it must, each time by as much as it has. Buffers come back to it by being dropped, on any thread. The memory stays mapped until
/// the pool and all its buffers are gone, or [`trim`](Self::trim).
///
/// Allocation takes a lock and is meant for set-up: a queue reuses the buffers that it gets back.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    space: AddressSpace,
    options: PoolOptions,
    arenas: Mutex<Vec<Arc<Arena>>>,
}

/// One mapping, cut into pages.
#[derive(Debug)]
pub(crate) struct Arena {
    mapping: Mapping,
    /// IOVAs, so that alignment is alignment for the device.
    free: Mutex<FreeList>,
}

impl Arena {
    fn new(mapping: Mapping) -> Self {
        let mut free = FreeList::default();
        let first = mapping.iova().0;
        free.add(first..=first + (mapping.memory().len() as u64 - 1));
        Self {
            mapping,
            free: Mutex::new(free),
        }
    }

    fn take(&self, length: usize, alignment: usize) -> Option<Iova> {
        self.lock()
            .allocate(length as u64, alignment as u64, &[])
            .map(Iova)
    }

    pub(crate) fn give_back(&self, first: Iova, length: usize) {
        self.lock().add(first.0..=first.0 + (length as u64 - 1));
    }

    pub(crate) const fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn lock(&self) -> MutexGuard<'_, FreeList> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool without memory yet.
    #[must_use]
    pub fn new(space: &AddressSpace, options: PoolOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                space: space.clone(),
                options,
                arenas: Mutex::default(),
            }),
        }
    }

    /// A buffer of exactly `length` bytes that begins on a page of the system.
    ///
    /// # Errors
    /// [`DmaError`]: zero or more than [`Buffer::MAX_LENGTH`] bytes, the pool's limit, or no memory to grow by. What was handed out stays good.
    pub fn allocate(&self, length: usize) -> Result<Buffer, DmaError> {
        self.allocate_aligned(length, page_size())
    }

    /// As [`allocate`](Self::allocate), with the device address a multiple of `alignment`, a power of two of at most 2 MiB. The address in this
    /// process is still a multiple of the page size only.
    ///
    /// # Errors
    /// As for [`allocate`](Self::allocate), and [`DmaError::Alignment`].
    pub fn allocate_aligned(&self, length: usize, alignment: usize) -> Result<Buffer, DmaError> {
        if !alignment.is_power_of_two() || alignment > HUGE_PAGE_SIZE {
            return Err(DmaError::Alignment {
                alignment,
                limit: HUGE_PAGE_SIZE,
            });
        }
        Buffer::check_length(length)?;
        let alignment = alignment.max(page_size());
        let taken = length.next_multiple_of(page_size());
        let mut arenas = self.arenas();
        for arena in arenas.iter() {
            if let Some(first) = arena.take(taken, alignment) {
                return Ok(Buffer::of_pages(Arc::clone(arena), first, length, taken));
            }
        }
        let arena = self.grow(&mut arenas, taken)?;
        // A fresh arena begins on 2 MiB unless the IOMMU's addresses are too broken up for that.
        let first = arena.take(taken, alignment);
        let first = first.ok_or(DmaError::OutOfIova {
            length: taken as u64,
            alignment: alignment as u64,
        })?;
        Ok(Buffer::of_pages(arena, first, length, taken))
    }

    /// The address space that it maps its memory in.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.inner.space
    }

    /// The domain that its buffers are mapped in.
    #[must_use]
    pub fn domain_id(&self) -> DomainId {
        self.inner.space.id()
    }

    /// How it was made.
    #[must_use]
    pub fn options(&self) -> &PoolOptions {
        &self.inner.options
    }

    /// Bytes mapped, handed out or not.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        Self::total(&self.arenas())
    }

    /// Whether all memory that it has is hugepages; false while it has none.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        let arenas = self.arenas();
        !arenas.is_empty()
            && arenas
                .iter()
                .all(|arena| arena.mapping.memory().page_size() >= HUGE_PAGE_SIZE)
    }

    /// Unmaps arenas of which no buffer is left.
    pub fn trim(&self) {
        // Buffers are made under this lock, so an arena that only the pool holds stays so.
        self.arenas().retain(|arena| Arc::strong_count(arena) > 1);
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<Arena>>> {
        self.inner
            .arenas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn total(arenas: &[Arc<Arena>]) -> usize {
        arenas
            .iter()
            .map(|arena| arena.mapping.memory().len())
            .sum()
    }

    /// Maps another arena with room for `needed` bytes: as much again as is there, or, when that is refused, no more than must be.
    fn grow(&self, arenas: &mut Vec<Arc<Arena>>, needed: usize) -> Result<Arc<Arena>, DmaError> {
        let options = &self.inner.options;
        let total = Self::total(arenas);
        let least = needed.next_multiple_of(HUGE_PAGE_SIZE);
        let room = options
            .limit
            .map_or(usize::MAX, |limit| limit.saturating_sub(total))
            & !(HUGE_PAGE_SIZE - 1);
        if least > room {
            return Err(DmaError::PoolLimit {
                needed: total.saturating_add(least),
                limit: options.limit.unwrap_or(usize::MAX),
            });
        }
        let wanted = options
            .arena
            .max(total.min(LARGEST_STEP))
            .checked_next_multiple_of(HUGE_PAGE_SIZE)
            .unwrap_or(least);
        let wanted = wanted.clamp(least, room);
        let arena = match self.arena(wanted) {
            Err(error) if wanted > least => {
                tracing::debug!(wanted, least, %error, "the pool grows by less than it would like to");
                self.arena(least)?
            }
            other => other?,
        };
        if options.hugepages
            && arena.mapping.memory().page_size() < HUGE_PAGE_SIZE
            && arenas.is_empty()
        {
            tracing::warn!("no free hugepages; buffers are made of small pages");
        }
        arenas.push(Arc::clone(&arena));
        Ok(arena)
    }

    fn arena(&self, length: usize) -> Result<Arc<Arena>, DmaError> {
        let pages = if self.inner.options.hugepages {
            Pages::PreferHuge
        } else {
            Pages::Small
        };
        let memory = self.inner.space.memory(length, pages)?;
        Ok(Arc::new(Arena::new(
            self.inner
                .space
                .mapping(memory, self.inner.options.access)?,
        )))
    }
}
