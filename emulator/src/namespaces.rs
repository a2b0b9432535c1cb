//! The namespaces as the controller keeps them: what exists, how it is formatted, what is wrong with its blocks.

mod ranges;

pub(crate) use ranges::Ranges;

use nvme_vfio_queues::Status;

use crate::config::{BackendKind, Config, LbaFormats, NamespaceConfig};

/// NSID FFFFFFFFh: all namespaces.
pub(crate) const BROADCAST: u32 = 0xffff_ffff;

/// Most ranges of uncorrectable blocks that a namespace keeps: a host cannot make the controller's memory grow without end.
const UNCORRECTABLE_RANGES_MAX: usize = 16_384;

/// A namespace that was allocated.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    /// NVMCAP.
    pub(crate) bytes: u64,
    /// NSZE: logical blocks.
    pub(crate) blocks: u64,
    /// LBADS: a logical block has `1 << shift` bytes.
    pub(crate) shift: u8,
    /// Index of the LBA format in use.
    pub(crate) format: u8,
    /// Whether it is attached to the controller.
    pub(crate) attached: bool,
    /// NMIC bit 0: it may be attached to several controllers, as whoever created it asked.
    pub(crate) shared: bool,
    /// It differs from what every other namespace with this identifier had: how many were created before it.
    pub(crate) generation: u32,
    /// Blocks that Write Uncorrectable marked: reading them fails until they are written.
    uncorrectable: Ranges,
    /// Blocks that are deallocated or were never written, where that is kept account of.
    holes: Option<Ranges>,
    /// A format or deletion waits for the commands in flight; new ones are refused.
    pub(crate) busy: bool,
}

impl Namespace {
    fn new(
        nsid: u32,
        bytes: u64,
        (format, lba): (u8, u32),
        attached: bool,
        generation: u32,
    ) -> Namespace {
        let shift = lba.trailing_zeros() as u8;
        Namespace {
            nsid,
            bytes,
            blocks: bytes >> shift,
            shift,
            format,
            attached,
            shared: false,
            generation,
            uncorrectable: Ranges::default(),
            holes: None,
            busy: false,
        }
    }

    /// Keeps account of deallocated blocks; it begins with all or none of them.
    fn with_holes(mut self, all: bool) -> Namespace {
        let mut holes = Ranges::default();
        if all {
            holes.insert(0, self.blocks);
        }
        self.holes = Some(holes);
        self
    }

    /// NUSE: blocks that are not known to be deallocated.
    pub(crate) fn used(&self) -> u64 {
        self.blocks - self.holes.as_ref().map_or(0, Ranges::count)
    }

    /// Blocks inside are about to get contents.
    pub(crate) fn write(&mut self, first: u64, count: u64) {
        self.uncorrectable.remove(first, count);
        if let Some(holes) = &mut self.holes {
            holes.remove(first, count);
        }
    }

    /// Blocks inside are about to lose their contents.
    pub(crate) fn deallocate(&mut self, first: u64, count: u64) {
        self.uncorrectable.remove(first, count);
        if let Some(holes) = &mut self.holes {
            holes.insert(first, count);
        }
    }

    /// Blocks inside become such that reading them fails; false, with nothing done, when too many ranges are so already.
    pub(crate) fn make_uncorrectable(&mut self, first: u64, count: u64) -> bool {
        if self.uncorrectable.ranges() >= UNCORRECTABLE_RANGES_MAX {
            return false;
        }
        self.write(first, count);
        self.uncorrectable.insert(first, count);
        true
    }

    /// The first block that cannot be read, and why; of deallocated ones only where those are to be errors.
    pub(crate) fn unreadable(&self, first: u64, count: u64, holes: bool) -> Option<(u64, Status)> {
        let uncorrectable = self.uncorrectable.first_of(first, count);
        let uncorrectable = uncorrectable.map(|lba| (lba, Status::UNRECOVERED_READ_ERROR));
        let hole = self.holes.as_ref().filter(|_| holes);
        let hole = hole.and_then(|holes| holes.first_of(first, count));
        let hole = hole.map(|lba| (lba, Status::DEALLOCATED_OR_UNWRITTEN_BLOCK));
        uncorrectable
            .into_iter()
            .chain(hole)
            .min_by_key(|(lba, _)| *lba)
    }

    /// Whether commands have to look closer: it is busy, may have blocks that cannot be read, or keeps account of those that were written.
    #[inline]
    pub(crate) fn marked(&self) -> bool {
        self.busy || !self.uncorrectable.is_empty() || self.holes.is_some()
    }

    /// Whether `count` blocks from `first` on are all inside.
    pub(crate) fn holds(&self, first: u64, count: u64) -> bool {
        first
            .checked_add(count)
            .is_some_and(|end| end <= self.blocks)
    }
}

/// What a namespace identifier names.
#[derive(Debug)]
pub(crate) enum Named<'a> {
    /// A namespace that is attached to the controller.
    Active(&'a Namespace),
    /// A namespace that exists, but is not attached.
    Allocated(&'a Namespace),
    /// Nothing now, but a namespace could have it.
    Unallocated,
    /// Nothing ever: 0, or more than NN.
    Invalid,
}

/// All namespaces of the subsystem. There is one controller, so that attached means attached to it.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// By identifier less one; NN of them.
    slots: Vec<Option<Namespace>>,
    capacity: u64,
    formats: LbaFormats,
    created: u32,
    /// Whether account is kept of deallocated blocks.
    holes: bool,
}

impl Namespaces {
    pub(crate) fn new(config: &Config) -> Namespaces {
        let mut slots: Vec<_> = (0..config.nn()).map(|_| None).collect();
        for wanted in &config.namespaces {
            if let Some(slot) = slots.get_mut(wanted.nsid as usize - 1) {
                let NamespaceConfig { nsid, size, lba } = *wanted;
                let format = config.lba_formats.index_of(lba).unwrap_or(0);
                let mut namespace = Namespace::new(nsid, size, (format, lba), true, 0);
                if config.dulbe {
                    // Only this back end is known to begin with nothing.
                    namespace = namespace.with_holes(config.backend == BackendKind::Memory);
                }
                *slot = Some(namespace);
            }
        }
        Namespaces {
            slots,
            capacity: config.total_capacity(),
            formats: config.lba_formats.clone(),
            created: 0,
            holes: config.dulbe,
        }
    }

    /// An attached namespace.
    #[inline]
    pub(crate) fn active(&self, nsid: u32) -> Option<&Namespace> {
        let slot = self.slots.get((nsid as usize).wrapping_sub(1))?.as_ref();
        slot.filter(|namespace| namespace.attached)
    }

    pub(crate) fn get_mut(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.slots
            .get_mut((nsid as usize).wrapping_sub(1))?
            .as_mut()
    }

    pub(crate) fn named(&self, nsid: u32) -> Named<'_> {
        match self.slots.get((nsid as usize).wrapping_sub(1)) {
            None => Named::Invalid,
            Some(None) => Named::Unallocated,
            Some(Some(namespace)) if namespace.attached => Named::Active(namespace),
            Some(Some(namespace)) => Named::Allocated(namespace),
        }
    }

    /// Those that exist, ascending.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Namespace> {
        self.slots.iter().flatten()
    }

    /// NN.
    pub(crate) fn highest(&self) -> u32 {
        self.slots.len() as u32
    }

    /// TNVMCAP, in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// UNVMCAP, in bytes.
    pub(crate) fn unallocated(&self) -> u64 {
        let taken = self.all().fold(0u64, |taken, namespace| {
            taken.saturating_add(namespace.bytes)
        });
        self.capacity.saturating_sub(taken)
    }

    /// The lowest identifier that is free.
    pub(crate) fn free_identifier(&self) -> Option<u32> {
        let place = self.slots.iter().position(Option::is_none)?;
        Some(place as u32 + 1)
    }

    /// Allocates a namespace with a free identifier; it is not attached.
    pub(crate) fn create(&mut self, nsid: u32, bytes: u64, format: u8, shared: bool) {
        let lba = self.formats.get(format).unwrap_or(512);
        if let Some(slot) = self.slots.get_mut((nsid as usize).wrapping_sub(1)) {
            self.created = self.created.wrapping_add(1);
            let mut namespace = Namespace::new(nsid, bytes, (format, lba), false, self.created);
            namespace.shared = shared;
            *slot = Some(if self.holes {
                namespace.with_holes(true)
            } else {
                namespace
            });
        }
    }

    pub(crate) fn delete(&mut self, nsid: u32) {
        if let Some(slot) = self.slots.get_mut((nsid as usize).wrapping_sub(1)) {
            *slot = None;
        }
    }

    /// Gives a namespace an LBA format, with nothing wrong with any block; it has as many as its bytes allow.
    pub(crate) fn reformat(&mut self, nsid: u32, format: u8) {
        let holes = self.holes;
        if let Some(lba) = self.formats.get(format)
            && let Some(namespace) = self.get_mut(nsid)
        {
            let (bytes, attached) = (namespace.bytes, namespace.attached);
            let mut new =
                Namespace::new(nsid, bytes, (format, lba), attached, namespace.generation);
            new.shared = namespace.shared;
            *namespace = if holes { new.with_holes(true) } else { new };
        }
    }
}
