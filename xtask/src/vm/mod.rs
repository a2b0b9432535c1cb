//! Virtual machines with a real IOMMU and QEMU's NVMe controller; no KVM, no SSD, no privileges needed.
//!
//! A [`Machine`] says what the machine has; [`Machine::run`] boots it, runs one command in it as root, and gives back the command's
//! status, its standard output and standard error byte for byte, and the drive's image. [`Machine::start`] does the same while
//! the test goes on: it can read the output line by line and talk to QEMU's monitor.
//!
//! # Writing a test
//! A virtual machine test is a function without arguments in `xtask/tests/vm_*.rs`, named in that file's [`vm_tests!`](crate::vm_tests):
//!
//! ```no_run
//! use xtask::vm::Machine;
//!
//! fn lists_the_controller() {
//!     let output = Machine::standard().run(["nvme-vfio", "list"]).unwrap();
//!     assert!(output.success().stdout_text().contains("QEMU NVMe Ctrl"));
//! }
//!
//! xtask::vm_tests!(lists_the_controller);
//! ```
//!
//! Each test boots what it needs (about two seconds), two at a time. Where a machine cannot be booted, the test is reported as ignored with
//! the reason; `cargo xtask test` and `cargo xtask vm test` first see to it that it can be, and then a machine that does not boot
//! is a failure.

mod closing;
mod contents;
mod initramfs;
mod kernel;
mod machine;
mod monitor;
mod output;
mod program;
mod qemu;
mod running;
mod spec;
mod suite;

pub use kernel::Kernel;
pub use machine::{Drive, Machine};
pub use monitor::Monitor;
pub use output::{End, Output};
pub use program::{build_binary, find as find_program, workspace};
pub use qemu::{missing_vfio_user, prepare_vfio_user};
pub use running::Running;
pub use suite::{REQUIRED, missing, needs, prepare, run_suite};
