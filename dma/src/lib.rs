//! Memory that a device may touch, and where the device sees it.

mod domain;
mod error;
mod page;

pub use domain::{Access, DomainId, DomainLimits, IommuDomain, Iova, MapRegion, check_region};
pub use error::{DmaError, MapError, UnmapError};
pub use page::{HUGE_PAGE_SIZE, page_size};
