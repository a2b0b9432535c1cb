//! Lends the controllers of one VFIO group to clients that are not trusted, each confined to what it was granted.
//!
//! Every command takes the same way: its 64 bytes are copied once, decoded once into a [`DecodedCommand`] that says all that the command can reach, handed to a
//! [`Policy`], counted in the audit, and only then rebuilt from what was decoded. What has no decoder is refused; so is every bit that the decoder does not know.
//!
//! - [`Decoder`]: from a submission queue entry to a [`DecodedCommand`]: class, direction, extents with the kind of access, scope, persistence and length of a command.
//! - [`Policy`]: the hook that says yes or no, [`Verdict`]; replaceable.
//! - [`Gate`]: the one function that decodes, asks and counts, and the only maker of [`Passed`], without which nothing is carried out.
//! - [`Client`]: who asks: the name that the policy gives it, and the identity that the kernel told.
//! - [`VirtualController`]: what a client's commands become on the real controllers.
//! - [`server`]: the sockets, threads and repairs around it; [`audit`]: what is recorded; [`privileges`]: what a server gives up.
//! - [`Passthrough`]: commands of the process that holds a controller, by the same gate.
//! - [`policy`]: the policy file, its checks, and what is made of it.
//! - [`Reason`]: why a command was refused, precisely; the client sees only a [`Status`](nvme_vfio_queues::Status).

pub mod audit;
mod client;
mod command;
mod controller;
mod decode;
mod gate;
mod inprocess;
pub mod policy;
pub mod privileges;
mod reason;
#[cfg(test)]
mod scratch;
pub mod server;
mod trust;
mod verdict;

pub use client::{Client, ClientId, Holder, Identity};
pub use command::{
    Access, Class, ClassSet, CommandSet, DecodedCommand, Direction, Extent, Flags, Geometry,
    Persistence, QueueKind, Scope,
};
pub use controller::{
    BuildError, Ceilings, Clock, CopyLimits, DeallocateLimits, Isolated, LentNamespaceConfig,
    Personality, Slice, SliceError, SliceMap, TargetLimits, VirtualConfig, VirtualController,
};
pub use decode::Decoder;
pub use gate::{Gate, Passed};
pub use inprocess::{
    Ended, InProcess, Needs, Passthrough, PassthroughError, RawCommand, owner, owner_gate,
};
pub use reason::{Reason, Refusal};
pub use trust::Foreign;
pub use verdict::{Policy, Verdict};
