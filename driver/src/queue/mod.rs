//! An I/O queue pair: the way of a read or write through the driver.
//!
//! | file | holds |
//! |---|---|
//! | `submit` | the hot way in: checks, slot, PRPs, entry |
//! | `poll` | the hot way out: entry, slot, completion |
//! | `repeat` | out and in again in one step, in place |
//! | `large` | I/O that one command cannot carry, cut into commands |
//! | `deadline` | commands that do not end in time |
//! | `delete` | a queue that its owner has deleted, and commands whose end becomes certain late |
//! | `lost` | what happens to a queue whose controller was reset, and to one that is dropped |
//! | `blocking` | one I/O at a time, waited for |

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio_dma::{Buffer, DomainId, SharedMemory};
use nvme_vfio_queues::prp::{self, PageSize, PrpListMemory};
use nvme_vfio_queues::ring::{CompletionRing, SubmissionRing};
use nvme_vfio_queues::slots::{MAX_SLOTS, SlotTable};

use crate::Error;
use crate::controller::{GONE, Inner, NotCreated, Shared};
use crate::options::QueueOptions;
use crate::rings::{QueueMemory, doorbells};

mod blocking;
mod completion;
mod deadline;
mod delete;
mod large;
mod lost;
mod poll;
mod repeat;
mod submit;

pub use completion::{Completion, Outcome};
pub use repeat::{Again, Ended, Polled};

use large::Large;

/// The epoch that no controller ever has: `IoQueue::expected` is set to it to lead the hot path to the cold one, and `Cold::made_in` for a queue
/// that was deleted.
const ATTENTION: u32 = u32::MAX - 1;

/// By how many entries a completion queue is longer than its submission queue, where that one is short.
const SPARE_COMPLETIONS: u32 = 64;

/// The most memory pages that one command may carry: as many as one page of PRP list describes, whatever the alignment.
const MAX_PAGES: usize = 512;

/// What is remembered of a command in flight.
///
/// A slot whose `large` or `state` is not the default is marked, so that the way out knows all others by one comparison. A free
/// slot has the default in both.
#[derive(Debug, Default)]
struct Slot {
    token: u64,
    buffer: Option<Buffer>,
    /// Nanoseconds since the queue was made; 0 where no deadline was set yet.
    deadline: u64,
    /// One more than the index of the large I/O that the command is a part of; 0 where it is none.
    large: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Its first deadline has not passed.
    #[default]
    InTime,
    /// An Abort was sent for it.
    Aborting,
    /// Reported as timed out. The controller may still touch its memory.
    TimedOut,
}

/// The PRP list pages of the slots, one each.
#[derive(Debug)]
struct Lists {
    /// The bits of an address inside a memory page.
    page_mask: usize,
    memory: Arc<SharedMemory>,
    first: usize,
    page: PageSize,
}

impl Lists {
    /// PRP2 of `length` bytes (not zero) that the controller sees at `iova`, a multiple of four, with the list of `slot` where there must
    /// be one. (PRP1 is `iova` itself.) `None` where the data is more than a list describes.
    #[inline(always)]
    fn prp2(&self, slot: usize, iova: u64, length: usize) -> Option<u64> {
        if (iova as usize & self.page_mask) + (length - 1) <= self.page_mask {
            return Some(0);
        }
        self.prp2_of_several(slot, iova, length)
    }

    /// Makes the list of `slot` zeros.
    fn clear(&self, slot: usize) {
        let mut list = SlotList { lists: self, slot };
        for entry in 0..self.page.bytes() / size_of::<u64>() {
            list.write(0, entry, 0);
        }
    }

    #[inline(never)]
    fn prp2_of_several(&self, slot: usize, iova: u64, length: usize) -> Option<u64> {
        let pointer = prp::build(iova, length, self.page, &mut SlotList { lists: self, slot });
        Some(pointer.ok()?.prp2)
    }
}

/// The list page of one slot.
struct SlotList<'a> {
    lists: &'a Lists,
    slot: usize,
}

impl SlotList<'_> {
    fn offset(&self) -> usize {
        self.lists.first + self.slot * self.lists.page.bytes()
    }
}

impl PrpListMemory for SlotList<'_> {
    fn pages(&self) -> usize {
        1
    }

    fn page_iova(&self, _page: usize) -> u64 {
        self.lists.memory.iova().0 + self.offset() as u64
    }

    fn write(&mut self, _page: usize, entry: usize, value: u64) {
        // `prp::build` stays inside the page, and the page inside the memory.
        let written = self
            .lists
            .memory
            .write_u64(self.offset() + entry * size_of::<u64>(), value);
        debug_assert!(written.is_ok());
    }
}

/// What the hot path does not need.
#[derive(Debug)]
struct Cold {
    inner: Arc<Inner>,
    id: u16,
    made: Instant,
    /// When the controller's status was looked at last, since the queue was made.
    looked: Duration,
    /// The epoch in which the queue was created on the controller.
    made_in: u32,
    /// The epoch in which the controller may know it although it could not be made.
    left_in: Option<u32>,
    /// The controller was reset or has gone since, or the queue was deleted.
    lost: bool,
    /// The submission queue was deleted, so that the controller has let go of everything that the queue lent it.
    deleted: bool,
    /// The controller has answered for a command that was not in flight.
    distrusted: bool,
    /// What is to be reported before anything new.
    reports: VecDeque<Completion>,
    large: Vec<Option<Large>>,
    reclaimed: Vec<(u64, Buffer)>,
    /// Tokens of commands without a buffer that were reported as timed out and have ended since.
    let_go: Vec<u64>,
    memory: QueueMemory,
}

/// An I/O submission queue and its completion queue.
///
/// One owner: it may be moved to another thread, but not shared. No call takes a lock or allocates on the way of an I/O that
/// fits one command; doorbells are rung in batches: when [`poll`](Self::poll) finds nothing, when [`ring`](Self::ring) is called,
/// or when [`QueueOptions::doorbell_batch`] entries have gathered.
///
/// Every I/O that was accepted is reported exactly once by `poll`. Deadlines are watched when the owner calls
/// [`check_deadlines`](Self::check_deadlines); nothing here has a thread or a clock of its own.
///
/// ```
/// use nvme_vfio::{Controller, QueueOptions};
///
/// let controller = Controller::open(&"emulated:size=64M".parse::<nvme_vfio::Address>()?)?;
/// let namespace = controller.only_namespace()?;
/// let mut queue = controller.io_queue(QueueOptions::with_depth(8))?;
/// for token in 0..8 {
///     queue.read(&namespace, token * 8, controller.allocate(4096)?, token)?;
/// }
/// let mut seen = 0;
/// while seen < 8 {
///     if let Some(completion) = queue.poll() {
///         completion.result()?;
///         seen += 1;
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IoQueue {
    /// The epoch in which the queue is good, or [`ATTENTION`].
    expected: u32,
    /// How many more submissions may gather before the controller is told of them.
    room: u32,
    batch: u32,
    /// How many completions may be taken before the controller must be told of them, lest it have no room for others.
    spare: u32,
    controller: u32,
    domain: DomainId,
    /// The largest transfer of one command in bytes.
    limit: usize,
    page: PageSize,
    /// How many I/Os were accepted and not reported.
    waiting: u32,
    shared: Arc<Shared>,
    submission: SubmissionRing,
    completion: CompletionRing,
    slots: SlotTable<Slot>,
    lists: Lists,
    cold: Box<Cold>,
    /// One owner: `Send`, not `Sync`.
    _owner: PhantomData<Cell<()>>,
}

impl IoQueue {
    pub(crate) fn create(inner: Arc<Inner>, options: QueueOptions) -> Result<Self, Error> {
        let depth = options
            .depth
            .clamp(1, MAX_SLOTS)
            .min(inner.cap.mqes().saturating_sub(1))
            .max(1);
        let entries = depth + 1;
        // Room for completions that the controller has not been told of: it need not be told after each.
        let spare = depth.max(SPARE_COMPLETIONS).min(inner.cap.mqes() - entries);
        let page = inner.page;
        let (memory, submission, completion) = QueueMemory::new(
            &inner.space,
            entries,
            entries + spare,
            depth as usize * page.bytes(),
            page.bytes(),
        )?;

        let id = inner.take_queue_id()?;
        let Some([tail, head]) = doorbells(inner.transport.as_ref(), inner.cap, id) else {
            inner.give_back_queue_id(id);
            return Err(Error::Capabilities {
                reason: format!("BAR 0 does not hold the doorbells of queue {id}"),
            });
        };
        let made_in = match inner.create_queue_pair(id, &submission, &completion) {
            Ok(epoch) => epoch,
            Err(NotCreated { error, left_in }) => {
                // A reset says that the queues do not exist. Else their rings may still be used by the controller.
                let epoch = inner.shared.epoch();
                if left_in.is_some_and(|left_in| left_in == epoch || epoch == GONE) {
                    inner.leave_queue_id(id);
                    let mut quarantine = inner.lock_quarantine();
                    for memory in memory.both() {
                        quarantine.hold(0, memory);
                    }
                } else {
                    inner.give_back_queue_id(id);
                }
                return Err(error);
            }
        };

        let wanted = (options.max_transfer as usize)
            .min(inner.mdts.unwrap_or(usize::MAX))
            .min(MAX_PAGES * page.bytes());
        let capacity = depth as usize;
        Ok(Self {
            expected: made_in,
            room: options.doorbell_batch.max(1),
            batch: options.doorbell_batch.max(1),
            spare,
            controller: inner.number,
            domain: inner.space.id(),
            limit: wanted,
            page,
            waiting: 0,
            shared: Arc::clone(&inner.shared),
            submission: SubmissionRing::new(submission, tail),
            completion: CompletionRing::new(completion, head),
            slots: SlotTable::new(depth),
            lists: Lists {
                page_mask: page.bytes() - 1,
                memory: Arc::clone(&memory.read_by_device),
                first: memory.lists_at,
                page,
            },
            cold: Box::new(Cold {
                id,
                made: Instant::now(),
                looked: Duration::ZERO,
                made_in,
                left_in: None,
                lost: false,
                deleted: false,
                distrusted: false,
                reports: VecDeque::with_capacity(capacity),
                large: Vec::with_capacity(capacity),
                reclaimed: Vec::new(),
                let_go: Vec::new(),
                memory,
                inner,
            }),
            _owner: PhantomData,
        })
    }

    /// The queue identifier on the controller.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.cold.id
    }

    /// How many commands can be in flight.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.slots.capacity()
    }

    /// The largest transfer of one command in bytes. Larger I/O is split.
    #[must_use]
    pub fn max_transfer(&self) -> usize {
        self.limit
    }

    /// How many I/Os were accepted and not yet reported by [`poll`](Self::poll).
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting as usize
    }

    /// Whether no command can be submitted before one has been polled.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.slots.is_full()
    }
}

impl fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoQueue")
            .field("controller", &self.cold.inner.name)
            .field("id", &self.cold.id)
            .field("depth", &self.depth())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
