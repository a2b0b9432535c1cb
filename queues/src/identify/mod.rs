//! Identify data structures (Base Specification 2.0, 5.17.2; NVM Command Set
//! Specification 1.0, 4.1.5).
//!
//! Each is 4096 bytes of alignment 1, read in place from what the controller
//! returned: `IdentifyController::ref_from_bytes(bytes)` (zerocopy's `FromBytes`). Fields are raw,
//! under the specification's names in lower case; methods check and convert.

mod controller;
mod lists;
mod namespace;
mod power;
mod text;

pub use controller::IdentifyController;
pub use lists::{ControllerList, DescriptorList, Descriptors, NamespaceIdentifier, NamespaceList};
pub use namespace::{IdentifyNamespace, LbaFormat};
pub use power::PowerState;
pub use text::Ascii;

/// The size of every Identify data structure in bytes.
pub const IDENTIFY_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
