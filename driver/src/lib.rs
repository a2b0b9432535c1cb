//! A user-space NVMe driver: it takes a controller from the kernel through VFIO (or makes one in software), and runs its admin
//! and I/O queues in this process, with no system call, lock, copy or allocation on the way of an I/O.
//!
//! ```
//! use nvme_vfio::{Address, Controller, QueueOptions};
//!
//! // "0000:01:00.0" for an SSD that `nvme-vfio bind` has taken from the kernel.
//! let controller = Controller::open(&"emulated:size=64M".parse::<Address>()?)?;
//! let namespace = controller.only_namespace()?;
//! let mut queue = controller.io_queue(QueueOptions::with_depth(32))?;
//!
//! let mut buffer = controller.allocate(4096)?;
//! buffer[..5].copy_from_slice(b"hello");
//! queue.write(&namespace, 0, buffer, 1)?; // the buffer is the controller's now
//! let completion = queue.wait()?.ok_or("nothing was in flight")?;
//! completion.result()?;
//! let buffer = completion.buffer.ok_or("no buffer came back")?; // and now it is ours again
//! queue.read(&namespace, 0, buffer, 2)?;
//! # assert_eq!(&queue.wait()?.unwrap().buffer.unwrap()[..5], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | type | is |
//! |---|---|
//! | [`Address`] | the string that names a controller |
//! | [`Controller`] | a handle to an open controller, for any thread: identify, logs, features, queues, recovery |
//! | [`Group`] | a VFIO group, for several functions that share one IOMMU domain ([`Controller::open_together`]) |
//! | [`Namespace`] | blocks of a size |
//! | [`IoQueue`] | a queue pair with one owner: submit, poll, deadlines |
//! | [`Buffer`] | memory that the controller sees; it moves into the queue with a submission and comes back with the [`Completion`] |
//! | [`Transport`] | what carries registers and doorbells: VFIO, or the emulated controller |
//!
//! # When things go wrong
//! Every I/O that was accepted is reported once, whatever happens: with the controller's answer, as
//! [`TimedOut`](Outcome::TimedOut), [`Reset`](Outcome::Reset), [`Gone`](Outcome::Gone) or, where the owner has deleted the queue,
//! [`Deleted`](Outcome::Deleted). After a reset each queue is its owner's to [`rebuild`](IoQueue::rebuild). Memory that the controller may still touch is not given back before it has provably let go
//! of it. What a hostile device can do in spite of all that is to write any memory that is mapped for it, at any time, also a buffer that
//! the application has in hand.

mod address;
mod controller;
mod error;
mod group;
mod namespace;
mod options;
mod queue;
#[cfg(doctest)]
mod readme;
mod rings;
mod together;
pub mod transport;

pub use address::{Address, AddressError, Way};
pub use controller::{AdminData, Controller, Events};
pub use error::{CommandError, Error, NotReady, Refused, RegisterDump, SubmitError};
pub use group::Group;
pub use namespace::Namespace;
pub use nvme_vfio_dma::{Access, AddressSpace, Buffer, DmaError, Memory, Pool, SharedMemory};
pub use options::{Options, QueueOptions, RecoveryLimit};
pub use queue::{Again, Completion, Ended, IoQueue, Outcome, Polled};
pub use together::Opened;
pub use transport::Transport;
