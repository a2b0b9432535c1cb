//! Fuzzers of what strangers talk to. Each is a function of bytes that panics when what it fuzzes did wrong.
//!
//! - [`lent`]: a controller that is lent to a client, from the client's entries to what the real controller does.
//! - [`registers`]: the emulated controller's registers, doorbells and configuration space.
//! - [`commands`]: its handling of commands: random entries, PRP lists and data.
//! - [`served`]: a served controller, by messages, descriptors and memory that is lent and taken back; also one whose commands a handler keeps, and whose memory is lent on.
//! - [`session`]: a vfio-user server's session with a client that sends anything.
//!
//! `cargo xtask fuzz NAME --time SECONDS` runs one under libFuzzer, which mutates inputs and keeps those that reach new code, on the stable compiler;
//! `cargo xtask fuzz NAME --input FILE` runs one input again. `seeds/NAME.hex` has the inputs to start from, one a line; an ordinary
//! `cargo test` runs each of them.
//!
//! # What is looked for, besides panics
//! - An access of the controller outside what was mapped for it, or against its direction: mapped pages stand between guard pages whose content is
//!   known, and known nowhere else.
//! - A command that is completed twice, never, or on the wrong queue; a success of what cannot succeed.
//! - A controller that cannot be brought back by a reset.
//! - Memory that is given back while a handler has a command that names it.
//!
//! The addresses of the queues and the content of guard pages come from a hash of the input: a mutation cannot guess them.

mod commands;
mod controller;
mod input;
mod lent;
mod memory;
mod registers;
mod session;

pub use commands::commands;
pub use lent::lent;
pub use registers::registers;
pub use session::{served, session};

/// A fuzzer: bytes to a verdict, which is a panic or none.
pub type Fuzzer = fn(&[u8]);

/// All fuzzers by name.
pub const FUZZERS: [(&str, Fuzzer); 5] = [
    ("commands", commands),
    ("lent", lent),
    ("registers", registers),
    ("served", served),
    ("session", session),
];

/// Makes a program of a fuzzer: with the engine when `cargo xtask fuzz` compiles it, else one that runs the inputs in the files it is
/// given.
#[macro_export]
macro_rules! program {
    ($fuzzer:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $fuzzer(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for path in std::env::args_os().skip(1) {
                $fuzzer(&std::fs::read(path)?);
            }
            Ok(())
        }
    };
}
