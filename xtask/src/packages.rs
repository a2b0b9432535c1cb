//! The programs that tests and machines need, and the Debian packages that bring them.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::vm;

/// Something that must be installed: how to see that it is, and the Debian package that brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    presence: Presence,
    package: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Program(&'static str),
    File(&'static str),
}

pub(crate) const fn program(name: &'static str, package: &'static str) -> Need {
    Need {
        presence: Presence::Program(name),
        package,
    }
}

pub(crate) const fn file(path: &'static str, package: &'static str) -> Need {
    Need {
        presence: Presence::File(path),
        package,
    }
}

/// What boots a machine.
pub const MACHINE: [Need; 3] = [
    program("qemu-system-x86_64", "qemu-system-x86"),
    program("busybox", "busybox-static"),
    program("setpriv", "util-linux"),
];

/// What builds the small kernel.
pub const SMALL_KERNEL: [Need; 11] = [
    program("apt-get", "apt"),
    program("gcc", "gcc"),
    program("make", "make"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("xz", "xz-utils"),
    program("tar", "tar"),
    program("dpkg-deb", "dpkg"),
    file("/usr/include/libelf.h", "libelf-dev"),
    file("/usr/include/openssl/opensslv.h", "libssl-dev"),
];

/// What takes the distribution's kernel apart.
pub const DEBIAN_KERNEL: [Need; 3] = [
    program("apt-get", "apt"),
    program("depmod", "kmod"),
    program("dpkg-deb", "dpkg"),
];

/// The kernel's own driver and its tools, as oracle and as rival.
pub const PEERS: [Need; 3] = [
    program("fio", "fio"),
    program("nvme", "nvme-cli"),
    program("mkfs.ext4", "e2fsprogs"),
];

/// What counts instructions.
pub const VALGRIND: [Need; 1] = [program("valgrind", "valgrind")];

/// What builds the fuzzing engine.
pub const FUZZ: [Need; 2] = [program("c++", "g++"), program("setpriv", "util-linux")];

impl Need {
    fn is_there(self) -> bool {
        match self.presence {
            Presence::Program(name) => vm::find_program(name).is_some(),
            Presence::File(path) => Path::new(path).exists(),
        }
    }
}

/// The packages of `needs` that are not installed.
pub fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|need| !need.is_there())
        .map(|need| need.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The command that installs packages.
pub fn install_command(packages: &[&str]) -> String {
    format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Sees to it that all is installed: on Debian as root by installing it.
///
/// # Errors
/// Elsewhere, when something is missing: with the command that installs it. Or when the installation fails.
pub fn ensure_installed(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let command = install_command(&packages);
    if !may_install() {
        bail!(
            "not installed: {}. Run: sudo {command}",
            packages.join(", ")
        );
    }
    eprintln!("Installing {}", packages.join(", "));
    // The package lists of a fresh system are empty or old.
    update_lists();
    let status = apt(&[
        &["install", "-qq", "-y", "--no-install-recommends"],
        packages.as_slice(),
    ]
    .concat())?;
    ensure!(
        status.status.success(),
        "{command} failed:\n{}",
        String::from_utf8_lossy(&status.stderr).trim()
    );
    let left = missing(needs);
    ensure!(
        left.is_empty(),
        "still missing after the installation: {}",
        left.join(", ")
    );
    Ok(())
}

/// Whether this process may install packages: root on Debian.
fn may_install() -> bool {
    geteuid().is_root() && Path::new("/etc/debian_version").exists()
}

/// Fetches new package lists where this process may, and says whether it did. Without a network, what needs them tells.
pub(crate) fn update_lists() -> bool {
    may_install() && apt(&["update", "-qq"]).is_ok_and(|output| output.status.success())
}

/// How long others who change the system's packages are waited for. A system that has just booted may be updating itself.
const OTHERS_TIME: Duration = Duration::from_secs(600);

/// Runs apt-get; once nobody else does, which it waits for by itself only where it installs, and not even there from the beginning.
fn apt(arguments: &[&str]) -> Result<Output> {
    let deadline = Instant::now() + OTHERS_TIME;
    let mut told = false;
    loop {
        let output = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        let is_busy = String::from_utf8_lossy(&output.stderr).contains("Could not get lock");
        if output.status.success() || !is_busy || Instant::now() >= deadline {
            return Ok(output);
        }
        if !told {
            told = true;
            eprintln!("Waiting for another process that installs or updates packages.");
        }
        thread::sleep(Duration::from_secs(2));
    }
}
