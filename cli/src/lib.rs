//! The command line `nvme-vfio`: claim an NVMe controller, look at it, move data, measure it, give it back.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the words: nvme-cli's where nvme-cli has the command, fio's for `bench` |
//! | `commands` | what each command does |
//! | [`mod@bench`] | the benchmark: plan, worker loop, statistics, report |
//! | [`decode`] | the controller's data structures, field by field, under nvme-cli's names |
//! | [`error`] | kinds of errors, their exit statuses and their JSON |
//! | [`guard`] | what stands between a write and a drive that holds something |
//! | [`session`] | opening the controller that an address names |
//! | `log` | warnings of the libraries, on standard error |
//! | [`output`], [`size`] | standard output; numbers with suffixes |
//!
//! Data goes to standard output, everything else to standard error. Exit statuses: 0 done, 1 the controller's answer was an
//! error status or would have been, 2 wrong usage or file, 3 the environment forbids it, 4 timeout or reset.

pub mod args;
pub mod bench;
mod commands;
mod convert;
pub mod decode;
mod entry;
pub mod error;
pub mod guard;
mod log;
pub mod output;
pub mod session;
pub mod size;

pub use entry::main;
