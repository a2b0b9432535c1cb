//! Virtual machine tests as a test program: see the [module](super).

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

use super::Kernel;
use crate::packages::{self, Need};

/// Set by `cargo xtask` when it has seen to it that machines boot: a test that cannot boot one fails then, instead of being ignored.
pub const REQUIRED: &str = "NVME_VFIO_VM_REQUIRED";

/// Makes a file in `xtask/tests` a test program: its arguments are the names of the test functions, each without parameters. It
/// becomes the file's `main`; the file has `harness = false` in `xtask/Cargo.toml`. `vfio_user:` before the names says that the machines have a
/// device behind a vfio-user server: where no QEMU has that, the tests are reported as ignored, also when machines must boot.
#[macro_export]
macro_rules! vm_tests {
    (vfio_user: $($name:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::vm::run_suite(&[$((stringify!($name), $name as fn())),+], $crate::vm::missing_vfio_user)
        }
    };
    ($($name:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::vm::run_suite(&[$((stringify!($name), $name as fn())),+], || None)
        }
    };
}

/// Runs the tests with the usual arguments of a test program, two at a time unless told otherwise; `optional` says why something is missing that
/// [`REQUIRED`] does not promise.
pub fn run_suite(
    tests: &[(&'static str, fn())],
    optional: impl FnOnce() -> Option<String>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let reason = if env::var_os(REQUIRED).is_some() {
        None
    } else {
        missing()
    };
    let reason = reason.or_else(optional);
    if let Some(reason) = &reason {
        eprintln!("No machine can be booted here, so no test in this program is run: {reason}");
    }
    let trials = tests
        .iter()
        .map(|&(name, test)| {
            let reason = reason.clone();
            Trial::ignorable_test(name, move || match reason {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => {
                    test();
                    Ok(Completion::Completed)
                }
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why the virtual machine tests cannot be run right now, or `None`.
pub fn missing() -> Option<String> {
    let packages = packages::missing(&[needs(&Kernel::ALL), packages::PEERS.to_vec()].concat());
    let what = if !packages.is_empty() {
        format!("not installed: {}", packages.join(", "))
    } else if !Kernel::ALL.iter().all(|kernel| kernel.is_ready()) {
        "no kernel to boot yet".to_owned()
    } else {
        return None;
    };
    Some(format!("{what}; run: cargo xtask vm prepare"))
}

/// What must be installed before machines with these kernels can be booted: only QEMU and busybox where the kernels are there.
pub fn needs(kernels: &[Kernel]) -> Vec<Need> {
    let mut needs = packages::MACHINE.to_vec();
    for kernel in kernels.iter().filter(|kernel| !kernel.is_ready()) {
        match kernel {
            Kernel::Small => needs.extend(packages::SMALL_KERNEL),
            Kernel::Debian => needs.extend(packages::DEBIAN_KERNEL),
        }
    }
    needs
}

/// Sees to it that machines with these kernels boot: installs what is missing where it may, and builds or fetches the kernels.
///
/// # Errors
/// When something is missing that cannot be installed: with the command to type.
pub fn prepare(kernels: &[Kernel]) -> Result<()> {
    packages::ensure_installed(&needs(kernels))?;
    for kernel in kernels {
        kernel.files()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// With the standard harness, a file whose tests are in its `main` would pass without running any.
    #[test]
    fn every_vm_test_program_has_its_own_harness() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = fs::read_to_string(own.join("Cargo.toml")).unwrap();
        let mut seen = 0;
        for entry in fs::read_dir(own.join("tests")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if path.extension().is_some_and(|e| e == "rs") && name.starts_with("vm_") {
                let line = format!("name = \"{name}\"\nharness = false\n");
                assert!(
                    manifest.contains(&line),
                    "xtask/Cargo.toml needs:\n[[test]]\n{line}"
                );
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}
