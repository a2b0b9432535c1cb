//! A controller: opened, initialised, asked, recovered and shut down.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvme_vfio_dma::{AddressSpace, Buffer, Held, Pool, Quarantine};
use nvme_vfio_queues::prp::PageSize;
use nvme_vfio_queues::registers::offset::VS;
use nvme_vfio_queues::registers::{Cap, Version};
use nvme_vfio_queues::{Command, CompletionEntry, IdentifyController};
use nvme_vfio_user::ClientOptions;

use crate::address::{Address, Way};
use crate::options::{Options, QueueOptions, RecoveryLimit};
use crate::queue::IoQueue;
use crate::transport::{Transport, VfioUserTransport};
use crate::{Error, Group};

mod admin;
mod claim;
mod commands;
mod init;
mod queues;
mod recover;
mod registers;
mod shared;

pub use admin::AdminData;
pub use shared::Events;
pub(crate) use shared::{Counters, GONE, Shared};

pub(crate) use queues::NotCreated;

use admin::AdminQueue;
use claim::Claim;
use queues::QueueIds;

/// What the admin lock guards.
#[derive(Debug)]
struct Admin {
    queue: AdminQueue,
    ids: QueueIds,
}

/// What all handles and queues of one controller share.
pub(crate) struct Inner {
    _claim: Claim,
    /// Tells controllers apart within the process.
    pub(crate) number: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: Options,
    pub(crate) page: PageSize,
    pub(crate) cap: Cap,
    pub(crate) space: AddressSpace,
    pub(crate) pool: Pool,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) name: String,
    /// The largest transfer of one command that the controller allows, in bytes; `None` where it sets no limit.
    pub(crate) mdts: Option<usize>,
    ready_timeout: Duration,
    identify: Box<IdentifyController>,
    admin: Mutex<Admin>,
    /// Memory of queues that are no more, which the controller may still touch.
    quarantine: Mutex<Quarantine>,
}

/// An NVMe controller that this process runs.
///
/// A handle: cloning it is cheap, and it may be used from any thread. The controller is shut down in an orderly way when the
/// last handle and the last [`IoQueue`] are gone.
///
/// ```
/// use nvme_vfio::{Address, Controller};
///
/// let controller = Controller::open(&"emulated:size=64M".parse::<Address>()?)?;
/// let namespace = controller.only_namespace()?;
/// let mut queue = controller.io_queue(Default::default())?;
/// let mut buffer = controller.allocate(4096)?;
/// buffer.fill(7);
/// let buffer = queue.write_blocking(&namespace, 0, buffer)?;
/// let buffer = queue.read_blocking(&namespace, 0, buffer)?;
/// assert!(buffer.iter().all(|byte| *byte == 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Controller(pub(crate) Arc<Inner>);

impl Controller {
    /// Opens the controller at `address` with the default options.
    ///
    /// # Errors
    /// Everything that [`Error`] tells apart. The device is left as it was found, or disabled.
    pub fn open(address: &Address) -> Result<Self, Error> {
        Self::open_with(address, Options::default())
    }

    /// Opens the controller at `address`. A PCI function's whole group is opened with it, and is the controller's
    /// alone; [`Group`] opens several functions of one group.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(address: &Address, options: Options) -> Result<Self, Error> {
        let unsupported = |what| Error::Unsupported {
            address: address.to_string(),
            what,
        };
        match address {
            Address::Pci {
                way: Way::Iommufd, ..
            } => Err(unsupported("iommufd")),
            Address::Pci { function, .. } => Group::of(*function)?.controller(*function, options),
            Address::VfioUser(path) => Self::with_transport(
                Arc::new(VfioUserTransport::open(path, &ClientOptions::default())?),
                options,
            ),
            #[cfg(feature = "emulated")]
            Address::Emulated(config) => Self::with_transport(
                Arc::new(crate::transport::EmulatedTransport::open(config)?),
                options,
            ),
            #[cfg(not(feature = "emulated"))]
            Address::Emulated(_) => {
                Err(unsupported("the emulated controller (feature `emulated`)"))
            }
        }
    }

    /// Initialises the controller behind `transport`, which may still be running from an earlier owner.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::AlreadyOpen`] while another controller runs on it.
    pub fn with_transport(transport: Arc<dyn Transport>, options: Options) -> Result<Self, Error> {
        init::open(transport, options)
    }

    /// Identify Controller data (NVMe base 2.0, section 5.17.2.1), as read when the controller was opened.
    #[must_use]
    pub fn identify(&self) -> &IdentifyController {
        &self.0.identify
    }

    /// Controller Capabilities (CAP), as read when the controller was opened.
    #[must_use]
    pub fn capabilities(&self) -> Cap {
        self.0.cap
    }

    /// The version that the controller complies with, as the VS register has it.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_bits(self.0.transport.read32(VS))
    }

    /// How the controller is reached, for registers and configuration space.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    /// The memory page size in use, in bytes (CC.MPS).
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.0.page.bytes()
    }

    /// The largest transfer of one command that the controller allows, in bytes; `None` where it sets no limit.
    #[must_use]
    pub fn max_transfer(&self) -> Option<usize> {
        self.0.mdts
    }

    /// The memory that this controller sees, and what is mapped there.
    #[must_use]
    pub fn address_space(&self) -> &AddressSpace {
        &self.0.space
    }

    /// Where buffers come from.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// A page-aligned buffer of `length` bytes that the controller sees.
    ///
    /// # Errors
    /// [`Error::Dma`] where there is no more memory, or the kernel maps no more.
    pub fn allocate(&self, length: usize) -> Result<Buffer, Error> {
        Ok(self.0.pool.allocate(length)?)
    }

    /// How many I/O queue pairs the controller granted.
    #[must_use]
    pub fn io_queues(&self) -> u16 {
        self.0.lock_admin().ids.granted()
    }

    /// Makes an I/O queue pair. It belongs to the caller, on whichever thread.
    ///
    /// # Errors
    /// [`Error::NoQueue`] where all granted queues are in use; else as the admin commands.
    pub fn io_queue(&self, options: QueueOptions) -> Result<IoQueue, Error> {
        // Memory for it may not be had any more either, and that would be the lesser reason.
        self.0.in_service()?;
        IoQueue::create(Arc::clone(&self.0), options)
    }

    /// Sends an admin command as it is, with the data pointer filled in for `data`, and waits for its end.
    ///
    /// # Safety
    /// Some admin commands carry addresses outside the data pointer (queues, doorbell buffers, the host memory buffer) or
    /// take queues and namespaces away. The caller answers for it that the command makes the controller touch no memory
    /// but `data`, and that it leaves the driver's own queues alone.
    ///
    /// # Errors
    /// [`Error::Status`] for the controller's own error, [`Error::TimedOut`] after recovery, and so on.
    #[allow(unsafe_code)] // declares what the caller answers for
    pub unsafe fn admin_raw(
        &self,
        command: Command,
        data: AdminData<'_>,
    ) -> Result<CompletionEntry, Error> {
        self.0.admin("admin command", command, data)
    }

    /// Whether the system has asked for the function to be given back: it was unplugged, or is to be unbound from `vfio-pci`, and whoever asked waits until this controller and
    /// all of its queues and buffers are dropped. True from then on. A system call: to be asked now and then, not for each I/O.
    #[must_use]
    pub fn is_wanted_back(&self) -> bool {
        self.0.transport.is_wanted_back()
    }

    /// What has happened out of the ordinary since the controller was opened.
    #[must_use]
    pub fn events(&self) -> Events {
        self.0.shared.counters.read()
    }

    /// Disables the controller and enables it again. Every command in flight ends with a
    /// [`Reset`](crate::CommandError::Reset) when its queue's owner polls next, and each queue is then the owner's to
    /// [`rebuild`](IoQueue::rebuild). May be called from any thread, at any time.
    ///
    /// # Errors
    /// Where the controller does not come back, or recovery may not go as far as is needed. Then all queues end with
    /// [`Gone`](crate::CommandError::Gone).
    pub fn recover(&self) -> Result<(), Error> {
        self.0.recover(self.0.shared.epoch())
    }

    /// Looks at the controller's status (CSTS), when nobody is resetting it.
    ///
    /// # Errors
    /// [`Error::Gone`] where its registers read all ones or it was given up, [`Error::NotReady`] where it reports a fatal status or has stopped: it then
    /// answers nothing before it is [recovered](Self::recover).
    pub fn check_status(&self) -> Result<(), Error> {
        self.0.check_status()
    }

    /// Whether it is certain, of a controller that is gone, that it touches no memory any more: the process that served it has ended. Of one that does
    /// not answer otherwise nothing is certain.
    #[must_use]
    pub fn has_let_go(&self) -> bool {
        self.0.transport.has_let_go()
    }

    /// Keeps memory that the controller may still touch, until it has provably let go of all that it was lent: at its next reset, or when it is shut down.
    /// Should it then not stop, the memory stays mapped for good.
    pub fn keep(&self, memory: impl Into<Held>) {
        self.0.lock_quarantine().hold(0, memory);
    }

    /// Bytes of memory that are kept because the controller may still touch them.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.0.lock_quarantine().bytes()
    }
}

impl Inner {
    fn lock_admin(&self) -> MutexGuard<'_, Admin> {
        // A panic of another thread leaves the rings as they are; what is in flight is known by its slot.
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an admin command, waits for it, and recovers the controller where it does not end.
    pub(crate) fn admin(
        &self,
        name: &'static str,
        command: Command,
        data: AdminData<'_>,
    ) -> Result<CompletionEntry, Error> {
        let mut admin = self.lock_admin();
        self.in_service()?;
        let epoch = self.shared.epoch();
        let result = self.execute(
            &mut admin.queue,
            name,
            command,
            data,
            self.options.admin_timeout,
        );
        drop(admin);
        self.recover_from(result, epoch)
    }

    /// Recovers the controller where an admin command, sent in epoch `epoch`, did not end.
    fn recover_from<T>(&self, result: Result<T, Error>, epoch: u32) -> Result<T, Error> {
        if let Err(Error::TimedOut { .. } | Error::NotReady { .. }) = result
            && self.options.recovery >= RecoveryLimit::Controller
        {
            self.recover(epoch)?;
        }
        result
    }

    fn in_service(&self) -> Result<(), Error> {
        if self.shared.epoch() == GONE {
            Err(Error::Gone)
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Controller").field(&self.0.name).finish()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
