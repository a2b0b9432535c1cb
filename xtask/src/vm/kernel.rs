//! The guest's kernel: the small one, built once from Debian's source package, or the distribution's own with its modules.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{cache, packages};

/// Which kernel a machine boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Linux 6.12 with what the tests need and nothing else: boots in about a second, has legacy VFIO groups and iommufd.
    #[default]
    Small,
    /// The distribution's stock kernel with its modules: what users run; no iommufd on Debian 12.
    Debian,
}

/// A kernel on disk, ready to boot.
#[derive(Debug)]
pub(super) struct KernelFiles {
    /// What QEMU's `-kernel` takes.
    pub(super) image: PathBuf,
    /// Modules in the order in which they load; guest paths, relative to the root directory.
    pub(super) modules: Vec<String>,
    /// Where `modules` and `modules.dep` stand on the host.
    pub(super) module_root: PathBuf,
}

const SOURCE_PACKAGE: &str = "linux-source-6.12";
const CONFIG: &str = include_str!("kernel.config");
/// Raised when the way the kernel is built changes.
const RECIPE: u32 = 1;
/// Lines that `make bzImage` prints with this configuration; only the progress bar depends on it.
const BUILD_LINES: u64 = 1_850;

const IMAGE_PACKAGE: &str = "linux-image-amd64";
/// What the init script loads where it is not built in, dependencies left out. (ext4 asks for crc32c by name at mount time, which
/// no dependency list tells.)
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_console",
    "nvme",
    "vfio-pci",
    "vfio_iommu_type1",
    "crc32c_generic",
    "ext4",
    "loop",
];

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 2] = [Self::Small, Self::Debian];

    /// Finds the kernel in the cache, or makes it: minutes for the small one, seconds for the distribution's.
    pub(super) fn files(self) -> Result<KernelFiles> {
        let directory = cache::find_or_make(&self.suffix(), |work| match self {
            Self::Small => build_small(work),
            Self::Debian => unpack_debian(work),
        })?;
        let modules = match fs::read_to_string(directory.join("modules.load")) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(_) => Vec::new(),
        };
        Ok(KernelFiles {
            image: directory.join("image"),
            modules,
            module_root: directory,
        })
    }

    /// Whether the kernel is in the cache.
    pub(super) fn is_ready(self) -> bool {
        cache::find(&self.suffix()).is_ok_and(|found| found.is_some())
    }

    /// The end of the cache entry's name: all that this project decides. The package's version stands before it. A newer package
    /// alone is no reason to build again, so that a working machine does not stop for minutes after each security update.
    fn suffix(self) -> String {
        let mut hash = Sha256::new();
        hash.update(RECIPE.to_le_bytes());
        match self {
            Self::Small => hash.update(CONFIG),
            Self::Debian => hash.update(MODULES.join("\n")),
        }
        let hash = hash.finalize();
        let name = if self == Self::Small {
            "small"
        } else {
            "debian"
        };
        format!(
            "-{name}-{:02x}{:02x}{:02x}{:02x}",
            hash[0], hash[1], hash[2], hash[3]
        )
    }
}

fn build_small(work: &Path) -> Result<String> {
    let package = download(SOURCE_PACKAGE, work)?;
    eprintln!(
        "Building the small kernel from {package}: once, about seven minutes of processor time."
    );
    let archive = work.join(format!("x/usr/src/{SOURCE_PACKAGE}.tar.xz"));
    quiet(
        Command::new("tar")
            .arg("xf")
            .arg(&archive)
            .arg("-C")
            .arg(work),
    )?;
    let source = work.join(SOURCE_PACKAGE);
    let fragment = work.join("fragment");
    fs::write(&fragment, CONFIG)?;
    quiet(
        make(&source)
            .arg("allnoconfig")
            .env("KCONFIG_ALLCONFIG", &fragment),
    )?;
    let config = fs::read_to_string(source.join(".config"))?;
    let dropped: Vec<&str> = CONFIG
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !config.lines().any(|l| l == *line))
        .collect();
    ensure!(
        dropped.is_empty(),
        "{package} does not take these options: {}",
        dropped.join(" ")
    );
    with_progress(make(&source).arg("bzImage"))?;
    fs::rename(source.join("arch/x86/boot/bzImage"), work.join("image"))?;
    fs::rename(source.join(".config"), work.join("config"))?;
    fs::remove_dir_all(&source)?;
    fs::remove_dir_all(work.join("x"))?;
    Ok(format!("{package}{}", Kernel::Small.suffix()))
}

fn make(source: &Path) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("nice");
    command
        .args(["make", &format!("-j{jobs}"), "ARCH=x86_64", "-C"])
        .arg(source);
    // cargo's make variables are not for this make.
    command
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env_remove("CARGO_MAKEFLAGS");
    command
}

fn unpack_debian(work: &Path) -> Result<String> {
    // The package of that name is empty and depends on the newest kernel's.
    let name = with_fresh_lists(|| {
        let depends = output(Command::new("apt-cache").args(["depends", IMAGE_PACKAGE]))?;
        let names = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        names
            .map(str::to_owned)
            .find(|name| name.starts_with("linux-image-"))
            .context("it depends on no kernel")
    })
    .with_context(|| unknown_package(IMAGE_PACKAGE))?;
    let package = download(&name, work)?;
    let root = work.join("x");
    let version = single_entry(&root.join("lib/modules"))?;
    quiet(Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
    let base = root.join("lib/modules").join(&version);
    let dependencies = fs::read_to_string(base.join("modules.dep"))?;
    let built_in = fs::read_to_string(base.join("modules.builtin"))?;
    let load = load_order(&MODULES, &dependencies, &built_in)?;

    let guest = format!("lib/modules/{version}");
    let mut list = String::new();
    for module in &load {
        let place = work.join(&guest).join(module);
        fs::create_dir_all(place.parent().context("a module has a directory")?)?;
        fs::rename(base.join(module), &place)?;
        list += &format!("{guest}/{module}\n");
    }
    let kept: String = dependencies
        .lines()
        .filter(|line| {
            line.split_once(':')
                .is_some_and(|(module, _)| load.iter().any(|l| l == module))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(work.join(&guest).join("modules.dep"), kept)?;
    fs::write(work.join("modules.load"), list)?;
    fs::rename(
        root.join(format!("boot/vmlinuz-{version}")),
        work.join("image"),
    )?;
    fs::remove_dir_all(root)?;
    Ok(format!("{package}{}", Kernel::Debian.suffix()))
}

/// The modules of `wanted` that are not built in, each after all that it depends on, as paths relative to the modules' directory.
fn load_order(wanted: &[&str], dependencies: &str, built_in: &str) -> Result<Vec<String>> {
    let stem = |path: &str| {
        Path::new(path)
            .file_stem()
            .map(|s| s.to_string_lossy().replace('-', "_"))
            .unwrap_or_default()
    };
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let Some((module, needs)) = dependencies
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(m, _)| stem(m) == name)
        else {
            ensure!(
                built_in.lines().any(|line| stem(line) == name),
                "the kernel has no module {name}"
            );
            continue;
        };
        // depmod lists the closure, the module that must load first last.
        for path in needs.split_whitespace().rev().chain([module]) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// Fetches a Debian package and unpacks it into `work/x`; returns its name with its version.
fn download(package: &str, work: &Path) -> Result<String> {
    with_fresh_lists(|| {
        output(
            Command::new("apt-get")
                .args(["download", "-qq", package])
                .current_dir(work),
        )
    })
    .with_context(|| unknown_package(package))?;
    let file = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package")?;
    quiet(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&file)
            .arg(work.join("x")),
    )?;
    let name = output(
        Command::new("dpkg-deb")
            .args(["-f"])
            .arg(&file)
            .arg("Version"),
    )?;
    fs::remove_file(&file)?;
    // A version may hold a colon and a tilde: no harm in a file name.
    Ok(format!("{package}_{}", name.trim()))
}

/// Does what reads the package lists; where that fails, once more with new lists: they may be missing, or name a version that is
/// no longer there.
fn with_fresh_lists(act: impl Fn() -> Result<String>) -> Result<String> {
    match act() {
        Err(_) if packages::update_lists() => act(),
        first => first,
    }
}

fn unknown_package(package: &str) -> String {
    format!("Debian's package {package} cannot be fetched. Run: apt-get update")
}

fn single_entry(directory: &Path) -> Result<String> {
    let entry = fs::read_dir(directory)?
        .next()
        .with_context(|| format!("{} is empty", directory.display()))??;
    entry
        .file_name()
        .into_string()
        .ok()
        .context("a kernel version that is not UTF-8")
}

/// Runs a command whose output matters only when it fails.
fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!(
            "{name} failed with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&text).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `make` with a bar on a terminal; elsewhere a line every half a minute shows that it lives.
fn with_progress(command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run make")?;
    let errors = child.stderr.take().context("no pipe")?;
    let errors = std::thread::spawn(move || std::io::read_to_string(errors).unwrap_or_default());
    let bar = ProgressBar::new(BUILD_LINES);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {percent:>3} % {elapsed_precise} {wide_msg}",
    )?);
    let terminal = std::io::stderr().is_terminal();
    let mut next = Duration::from_secs(30);
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        let line = line?;
        bar.inc(1);
        bar.set_message(line.trim().to_owned());
        if !terminal && bar.elapsed() >= next {
            next = bar.elapsed() + Duration::from_secs(30);
            let done = (bar.position() * 100 / BUILD_LINES).min(99);
            eprintln!("  kernel: {done} % after {} s", bar.elapsed().as_secs());
        }
    }
    bar.finish_and_clear();
    let status = child.wait()?;
    let text = errors.join().unwrap_or_default();
    ensure!(
        status.success(),
        "building the kernel failed:\n{}",
        text.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_their_dependencies() {
        let dependencies = "k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\nk/d-e.ko: k/c.ko\n";
        let order = load_order(&["d_e", "a", "x"], dependencies, "kernel/x.ko\n").unwrap();
        assert_eq!(order, ["k/c.ko", "k/d-e.ko", "k/b.ko", "k/a.ko"]);
    }

    #[test]
    fn an_unknown_module_is_an_error() {
        assert!(load_order(&["nope"], "k/a.ko:\n", "").is_err());
    }

    #[test]
    fn each_kernel_has_its_own_cache_name() {
        assert_ne!(Kernel::Small.suffix(), Kernel::Debian.suffix());
    }
}
