//! Discovery, viability, holders, binding and checks on trees that look like the kernel's.

mod bind;
mod checks;
mod discovery;
mod fake;
mod holders;
