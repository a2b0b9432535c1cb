//! A group served to clients: their blocks, their ends, and what becomes of commands that hang.

mod basics;
mod lifecycle;
mod limits;
mod place;
mod raw;
#[path = "../../src/scratch.rs"]
mod scratch;
