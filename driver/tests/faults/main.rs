//! What the driver does when the controller misbehaves: on the emulated controller with injected faults, in this process and over
//! vfio-user.

#[macro_use]
#[path = "../common/way.rs"]
mod way;

mod bench;
mod commands;
mod completions;
mod controllers;
mod deletion;
mod identify;
mod lending;
mod malformed;
mod media;
mod scripts;
