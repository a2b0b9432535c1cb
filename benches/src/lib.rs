//! What each thing costs.
//!
//! | where | what |
//! |---|---|
//! | `src/bin/instructions.rs` | loops for `cargo xtask bench-instructions`, which counts their instructions with callgrind |
//! | `src/bin/doorbell.rs` | how many entries should gather before a doorbell is rung |
//! | `instructions.json` | the counts that were committed last; growth beyond 3 % fails |
//! | `benches/queue.rs` | submit and poll, in time (criterion) |
//! | `benches/prp.rs` | building PRP entries and lists, in time |
//! | `benches/buffer.rs` | allocating, splitting and joining buffers, in time |
//!
//! Times differ from machine to machine and from minute to minute; instruction counts repeat exactly.

mod broker;
mod gate;
mod rig;

pub use broker::BrokerRig;
pub use gate::GateRig;
pub use rig::Rig;
