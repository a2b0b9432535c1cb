//! Doorbells are mapped.

#[path = "../conformance/cases.rs"]
mod cases;

use nvme_vfio::Options;

use crate::served::Doorbells;
use crate::{Opened, common};

fn open() -> Opened {
    open_with(Options::default())
}

fn open_with(options: Options) -> Opened {
    crate::opened(options, Doorbells::Mapped)
}
