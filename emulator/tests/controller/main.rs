//! The emulated controller, driven by hand: registers, rings and doorbells, without a driver.

mod admin;
mod bends;
mod blocks;
mod copy;
mod events;
mod fault_storm;
mod faults;
mod features;
mod firmware;
mod handler;
mod hardware;
mod host;
mod hostile;
mod interrupts;
mod io;
mod iommu;
mod model;
mod namespaces;
mod personality;
mod quick;
mod registers;
mod shadow;
mod thread;
mod trace;
