//! Memory that a device may touch, and the addresses at which it sees it.
//!
//! A device behind an IOMMU reaches only what was mapped for it, at I/O virtual addresses ([`Iova`]) that have nothing to do with the process's own. This
//! crate finds the memory, chooses the addresses, and sees to it that Rust's rules about references hold although hardware writes
//! behind the compiler's back. It knows nothing of NVMe or VFIO: whoever can map implements [`IommuDomain`].
//!
//! | type | is | reached by |
//! |---|---|---|
//! | [`Memory`] | zeroed, populated, sealed memory of the process (or some that the application had) | nobody yet |
//! | [`AddressSpace`] | the addresses of one domain; maps memory and unmaps it | |
//! | [`SharedMemory`] | rings, PRP lists, a guest's memory: the device may touch it at any time | atomics and pointers, never references |
//! | [`Pool`] | buffers cut out of few large mappings | |
//! | [`Buffer`] | data: the application's, or moved into a queue and the device's | `&[u8]` and `&mut [u8]` while the application has it |
//! | [`Quarantine`] | what a device may still write, because nothing has proven that it let go | nobody, until [`Proof`] |
//!
//! ```
//! # #[cfg(feature = "test-support")] {
//! use std::sync::Arc;
//! use nvme_vfio_dma::{Access, AddressSpace, FakeDomain, Pool, PoolOptions};
//!
//! // A VFIO group's domain in earnest; here one without hardware.
//! let space = AddressSpace::new(Arc::new(FakeDomain::new()));
//! let ring = space.shared(4096, Access::READ_WRITE)?;
//! ring.write_u32(0, 7)?;
//!
//! let pool = Pool::new(&space, PoolOptions::default());
//! let mut buffer = pool.allocate(8192)?;
//! buffer[..5].copy_from_slice(b"hello");
//! let (first, second) = buffer.split_at(4096);
//! assert_eq!(second.iova().0, first.iova().0 + 4096);
//! assert_eq!(space.mappings().len(), 2); // the ring and one arena
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Three things are worth knowing:
//! - **The domain is held weakly by what is mapped in it.** When a group closes, its mappings are gone, and a buffer that the application still has is plain
//!   memory that no queue accepts.
//! - **What cannot be proven safe is leaked.** A refused unmapping or a quarantine dropped without proof costs memory, never soundness;
//!   [`AddressSpace::leaked_bytes`] counts it.
//! - **A forked child has none of [`Memory`]'s mappings** (`MADV_DONTFORK`), so a page that a device writes is never copied away from under it.
//!
//! The feature `test-support` adds `FakeDomain`, which answers as the kernel does.

mod buffer;
mod domain;
mod error;
#[cfg(any(test, feature = "test-support"))]
mod fake;
mod free_list;
mod ledger;
mod mapping;
mod memory;
mod page;
mod pool;
mod quarantine;
mod shared;
mod space;

pub use buffer::Buffer;
pub use domain::{Access, DomainId, DomainLimits, IommuDomain, Iova, MapRegion, check_region};
pub use error::{DmaError, MapError, UnmapError};
#[cfg(any(test, feature = "test-support"))]
pub use fake::FakeDomain;
pub use memory::{Memory, OwnedMemory, Pages};
pub use page::{HUGE_PAGE_SIZE, page_size};
pub use pool::{Pool, PoolOptions};
pub use quarantine::{Held, LetGo, Proof, Quarantine};
pub use shared::{OutOfBounds, SharedMemory};
pub use space::{AddressSpace, Rejected};
