//! What the attacks on a lent controller send, for tests: those in one process and those in a virtual machine.
//!
//! A [`client::Client`] writes its rings, entries and doorbells itself, right or wrong, in [`memory`] that it lends in runs, with guards inside and canaries around. It reaches its
//! controller by a [`way::Way`]: an emulated one in this process, or a vfio-user socket. [`bodies::Bodies`] makes the commands that nobody should send, [`honest::Honest`] does what an
//! ordinary client does and checks what it gets. [`siege`] says which commands may succeed, [`state`] asks for all that a client can see, and [`learned`] looks through its
//! memory for what it must never see.
//!
//! Nothing here uses a decoder, a policy or an entry builder of the project: submission entries are 16 numbers. No library depends on this but for its tests. It panics where what it
//! looks at is wrong.

pub mod bodies;
pub mod client;
mod entry;
pub mod honest;
pub mod learned;
pub mod memory;
pub mod random;
mod served;
pub mod siege;
pub mod state;
pub mod way;

pub use entry::{Dwords, command, with, with_blocks, with_prps};
pub use served::Served;
