//! What a virtual controller is made of.

use std::time::Duration;

use nvme_vfio::{Controller, Error};
use nvme_vfio_queues::IdentifyNamespace;
use nvme_vfio_queues::command::{Cns, Identify};
use thiserror::Error as ThisError;

use super::VirtualController;
use super::bounce::Buffers;
use super::bucket::Bucket;
use super::clock::Clock;
use super::engine::Engine;
use super::flight::MOST_BLOCKS;
use super::namespace::{LentNamespace, Whole};
use super::personality::Moved;
use super::ranges::{CopyLimits, DeallocateLimits};
use super::shutdown::Shutdown;
use super::slices::{Slice, SliceError, SliceMap};
use super::submit::COPY_RANGES_OF_PAGE;
use super::target::{Target, TargetLimits};
use super::watch::Watch;
use crate::client::Holder;
use crate::command::{CommandSet, Geometry};
use crate::gate::Gate;
use crate::server::Mender;
use crate::verdict::Policy;

/// Bytes of buffers that a client gets whose data is copied, unless one transfer needs more.
const BUFFER_BYTES: usize = 4 << 20;

/// What a client may use at once and in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// Commands in flight: 1 to 4,095.
    pub outstanding: u16,
    /// Commands in a second; `None` for no ceiling.
    pub operations: Option<u64>,
    /// Bytes in a second; `None` for no ceiling.
    pub bandwidth: Option<u64>,
}

/// Whether real controllers reach a client's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolated {
    /// They do: data is not copied.
    Shared,
    /// They do not: data is copied through buffers of the server.
    Bounce,
}

/// One of a client's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LentNamespaceConfig {
    /// As the client names it.
    pub nsid: u32,
    /// Its blocks. `target` counts the controllers of [`VirtualConfig::controllers`].
    pub slices: Vec<Slice>,
}

/// A client's virtual controller.
#[derive(Debug, Clone)]
pub struct VirtualConfig {
    /// The real controllers, all that the server has: those that hold the client's blocks get a queue. They share one address space.
    pub controllers: Vec<Controller>,
    /// Its namespaces.
    pub namespaces: Vec<LentNamespaceConfig>,
    /// What it may use.
    pub ceilings: Ceilings,
    /// The way of its data.
    pub isolated: Isolated,
    /// How long a command on a real controller may take before something is done about it.
    pub timeout: Duration,
    /// Who does it; without anybody, commands take the time that they take.
    pub mender: Option<Mender>,
    /// Bytes that one of its commands may move at most (2^n memory pages); what its controllers allow is less sometimes.
    pub max_transfer: u32,
    /// Who holds the client's connection.
    pub holder: Holder,
    /// The time. Whoever polls sets it.
    pub clock: Clock,
}

/// Why a virtual controller cannot be made.
#[derive(Debug, ThisError)]
pub enum BuildError {
    /// The slices of a namespace make none.
    #[error("namespace {nsid}: {source}")]
    Slices {
        /// As the client names it.
        nsid: u32,
        /// What is wrong.
        source: SliceError,
    },
    /// A real namespace cannot be lent.
    #[error("namespace {nsid}: {reason}")]
    Namespace {
        /// As the client names it.
        nsid: u32,
        /// Why.
        reason: String,
    },
    /// A real controller refused something.
    #[error(transparent)]
    Controller(#[from] Error),
}

/// 2^n memory pages, or no limit for 0, as Identify data has it.
fn power_of_pages(exponent: u8, page: usize, none: u64) -> u64 {
    match exponent {
        0 => none,
        _ => (page as u64)
            .checked_shl(u32::from(exponent))
            .unwrap_or(u64::MAX),
    }
}

/// Or no limit for 0.
fn or<T: PartialEq + From<u8>>(value: T, none: T) -> T {
    if value == T::from(0) { none } else { value }
}

impl TargetLimits {
    /// What a controller says it takes (Identify Controller of the NVM command set, CNS 06h), for blocks of `2^shift` bytes. A controller without that structure has no such limits.
    #[must_use]
    pub fn read(controller: &Controller, shift: u8) -> Self {
        let page = controller.capabilities().mpsmin().bytes();
        let most = MOST_BLOCKS as u32;
        let data = controller
            .identify_raw(Identify::new(Cns::IO_COMMAND_SET_CONTROLLER, 0))
            .unwrap_or_default();
        let byte = |at: usize| data.get(at).copied().unwrap_or(0);
        let number = |at: usize, count: usize| {
            (0..count).fold(0u64, |value, index| {
                value | u64::from(byte(at + index)) << (8 * index)
            })
        };
        let blocks = |exponent: u8| {
            let bytes = power_of_pages(exponent, page, u64::MAX);
            u32::try_from(bytes >> shift).unwrap_or(u32::MAX).min(most)
        };
        Self {
            transfer: controller.max_transfer().unwrap_or(usize::MAX),
            verify: blocks(byte(0)),
            write_zeroes: blocks(byte(1)),
            write_uncorrectable: blocks(byte(2)),
            deallocate: DeallocateLimits {
                ranges: or(u16::from(byte(3)), 256),
                range_blocks: or(number(4, 4) as u32, u32::MAX),
                blocks: or(number(8, 8), u64::MAX),
            },
        }
    }
}

impl CopyLimits {
    /// What a namespace says that a Copy may name.
    #[must_use]
    pub fn of(identify: &IdentifyNamespace) -> Self {
        Self {
            ranges: (u16::from(identify.msrc) + 1).min(COPY_RANGES_OF_PAGE),
            range_blocks: identify.mssrl.get(),
            blocks: identify.mcl.get(),
        }
    }
}

impl<P: Policy + ?Sized> VirtualController<P> {
    /// Makes the virtual controller of one client: a queue pair on each of its real controllers. `gate` is what its commands go through.
    ///
    /// # Errors
    /// [`BuildError`]
    pub fn new(config: VirtualConfig, gate: Gate<P>) -> Result<Self, BuildError> {
        let clock = config.clock;
        let mut namespaces = Vec::with_capacity(config.namespaces.len());
        for own in &config.namespaces {
            namespaces.push(lent(own, &config.controllers)?);
        }
        let outstanding = config.ceilings.outstanding.clamp(1, 4_095);
        let mut targets: Vec<Target> = Vec::new();
        let mut transfer = config.max_transfer as usize;
        for (number, controller) in config.controllers.iter().enumerate() {
            let uses = |namespace: &&LentNamespace| {
                let mut real = namespace.flush.iter();
                real.any(|(target, _)| usize::from(*target) == number)
            };
            // Limits are told in bytes, and counted in the largest blocks here, so that they hold for all.
            let Some(shift) = namespaces.iter().filter(uses).map(|own| own.shift).max() else {
                continue;
            };
            let limits = TargetLimits::read(controller, shift);
            let target = Target::new((number, controller), limits, outstanding)?;
            transfer = transfer.min(target.limits.transfer);
            let place = targets.len() as u16;
            for namespace in &mut namespaces {
                namespace.moved(number, place);
            }
            targets.push(target);
        }
        for namespace in &mut namespaces {
            namespace.geometry.max_transfer = u32::try_from(transfer).unwrap_or(u32::MAX);
        }
        let buffers = match (config.isolated, targets.first()) {
            (Isolated::Bounce, Some(first)) => {
                let bytes = BUFFER_BYTES.max(transfer);
                let flights = usize::from(outstanding);
                Some(Buffers::new(&first.controller, bytes, flights)?)
            }
            _ => None,
        };
        let now = clock.nanoseconds();
        let client = gate.client().id;
        Ok(Self {
            gate,
            engine: Engine::new(
                namespaces,
                targets,
                buffers,
                usize::from(outstanding),
                Watch::new(client, config.timeout, config.mender),
            ),
            now: clock.instant(now),
            clock,
            holder: config.holder,
            holders: 0,
            personality: None,
            moved: Moved::default(),
            operator: None,
            cancelled: Vec::new(),
            outstanding: u32::from(outstanding),
            operations: Bucket::new(config.ceilings.operations, now),
            bandwidth: Bucket::new(config.ceilings.bandwidth, now),
            shutdown: Shutdown::default(),
            list: Vec::new(),
            segments: Vec::new(),
        })
    }
}

/// A client's namespace, from what the real ones say of themselves.
fn lent(
    own: &LentNamespaceConfig,
    controllers: &[Controller],
) -> Result<LentNamespace, BuildError> {
    let nsid = own.nsid;
    let wrong = |reason: String| BuildError::Namespace { nsid, reason };
    let map = SliceMap::new(&own.slices).map_err(|source| BuildError::Slices { nsid, source })?;
    let mut shift = None;
    let mut copy: Option<CopyLimits> = None;
    let mut whole = None;
    for (target, real) in map.namespaces() {
        let controller = controllers
            .get(usize::from(target))
            .ok_or_else(|| wrong(format!("there is no controller {target}")))?;
        let identify = controller.identify_namespace(real)?;
        let blocks = identify.nsze.get();
        let outside = map.slices().iter().any(|slice| {
            (slice.target, slice.nsid) == (target, real)
                && slice.start.saturating_add(slice.blocks) > blocks
        });
        if outside {
            return Err(wrong(format!(
                "a slice reaches past namespace {real}'s {blocks} blocks"
            )));
        }
        let size = identify
            .block_size()
            .filter(|_| identify.metadata_size() == Some(0))
            .ok_or_else(|| wrong(format!("namespace {real} has a format that is not lent")))?;
        let its = size.trailing_zeros() as u8;
        if shift.is_some_and(|shift| shift != its) {
            return Err(wrong(
                "its slices have blocks of different sizes".to_owned(),
            ));
        }
        shift = Some(its);
        if let [only] = map.slices()
            && (only.start, only.blocks) == (0, blocks)
        {
            let index = identify.format_index() as u32;
            whole = Some(Whole {
                target,
                nsid: real,
                format: index & 0xf | (index >> 4 & 0b11) << 12,
            });
        }
        let limits = CopyLimits::of(&identify);
        copy = Some(copy.map_or(limits, |copy| CopyLimits {
            ranges: copy.ranges.min(limits.ranges),
            range_blocks: copy.range_blocks.min(limits.range_blocks),
            blocks: copy.blocks.min(limits.blocks),
        }));
    }
    let shift = shift.unwrap_or(9);
    let copy = copy.unwrap_or_default();
    Ok(LentNamespace {
        nsid,
        geometry: Geometry {
            command_set: CommandSet::NVM,
            blocks: map.blocks(),
            block_shift: shift,
            max_transfer: 0,
            max_blocks: MOST_BLOCKS as u32,
            copy_ranges: copy.ranges,
            copy_range_blocks: u32::from(copy.range_blocks),
            copy_blocks: copy.blocks,
        },
        shift,
        flush: map.namespaces(),
        whole,
        gone: false,
        map,
        copy,
    })
}
