//! vfio-user: VFIO's view of a PCI device, spoken over a Unix socket between two processes, version 0.1.
//!
//! A *server* has a device; a *client* uses it, as it would use one of the kernel's VFIO. The client lends memory by passing its
//! descriptors, maps what the server lets it map of the device's regions, and reads and writes the rest by message.
//! This crate knows nothing of NVMe.
//!
//! | module | is |
//! |---|---|
//! | [`message`] | every message of the protocol, decoded and encoded strictly; pure |
//! | [`capabilities`] | what both sides tell each other in VERSION, as JSON |
//! | [`socket`] | messages with descriptors over a socket that never blocks, waits that end |
//! | [`device`] | what a server serves: the trait that a device implements |
//! | [`Client`], [`MappedRegion`] | a device that another process serves |
//! | [`Server`] | a device on a socket, one client after the other |
//! | [`Session`] | the connection of one client, on the server's side: a state machine that never blocks |
//! | [`ClientMemory`] | memory that a client lends, mapped; [`sigbus`] lets a server outlive a client that truncates it |
//! | [`Eventfd`] | a client's eventfd, signalled without ever waiting for the client |
//!
//! Neither side trusts the other: lengths, counts, flags and descriptors of every message are checked before anything is done with them,
//! what one side can make the other keep is bounded, and every wait has a deadline.

pub mod capabilities;
mod client;
mod closer;
pub mod device;
mod error;
mod eventfd;
mod memory;
pub mod message;
mod process;
mod server;
mod session;
pub mod sigbus;
pub mod socket;

pub use capabilities::{Capabilities, CapabilitiesError};
pub use client::{Client, ClientOptions, MappedRegion};
pub use device::Device;
pub use error::{AnswerError, ClientError};
pub use eventfd::{Eventfd, SignalThreads};
pub use memory::{ClientMemory, MemoryError};
pub use server::{Doorkeeper, Peer, Refused, Server, ServerError, ServerOptions, Stop};
pub use session::{RefusedMap, Session, SessionEnd, SessionOptions, SessionState};
pub use socket::{Deadline, MessageReader, Socket, SocketError};
