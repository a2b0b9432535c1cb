//! `bench`: fio's words and report, our queues.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what is to be done, checked against the namespace |
//! | `worker` | the loop of one job |
//! | `clock`, `pattern`, `latency` | when and where its I/Os go, and how long they take |
//! | `statistics` | what it measured |
//! | `progress`, `interrupt` | what happens meanwhile |
//! | `report`, `summary`, `civil` | the result for programs and for people |
//! | `signature` | what a drive holds that would be destroyed |

pub mod civil;
pub mod clock;
mod interrupt;
pub mod latency;
pub mod pattern;
pub mod plan;
mod progress;
pub mod report;
mod run;
pub mod signature;
pub mod statistics;
pub mod summary;
pub mod worker;

pub use plan::{Limit, Plan};
pub use run::run;
