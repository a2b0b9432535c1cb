//! What a maintainer of nvme-vfio runs, as `cargo xtask …`, and the virtual machines that the tests in `xtask/tests` boot.
//!
//! - `cargo xtask test` runs everything: format, lints, unit, property and documentation tests, licences, and the virtual
//!   machine tests. It installs what is missing where it may, and says what it could not run and why.
//! - `cargo xtask vm run -- COMMAND…` boots a machine with a real IOMMU and an NVMe controller and runs a command in it;
//!   `vm shell` gives a shell; `vm test` runs the virtual machine tests; `vm prepare` installs and builds what they need.
//!
//! - `cargo xtask bench-instructions` counts what an I/O costs in instructions; `cargo xtask vm bench` compares with the kernel's driver.
//! - `cargo xtask fuzz NAME --time SECONDS` runs a fuzzer; `cargo xtask soak` runs all of them long, and the long counts of tests.
//!
//! [`vm`] is the library behind it: a [`vm::Machine`] describes a machine, and runs a command in it.

mod cache;
pub mod check;
pub mod fuzz;
pub mod instructions;
pub mod packages;
pub mod vm;
pub mod vm_bench;
