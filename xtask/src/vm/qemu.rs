//! Which QEMU runs a machine: the installed one, or, for a device behind a vfio-user server, one that is a vfio-user client.
//!
//! QEMU is a client (`vfio-user-pci`) since 10.1, which is newer than what stable distributions carry. Where the installed one has no such
//! device, Debian's newest package is fetched with all that it depends on and unpacked into the cache, by apt's and dpkg's own programs. Nothing
//! of it is installed, and it needs no privileges: it is started by its own dynamic linker, with its own libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::program;
use crate::cache;
use crate::packages::{self, Need};

/// The installed QEMU's program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// The end of the cache entry's name; the package's version stands before it.
const SUFFIX: &str = "-qemu-vfio-user-1";
const PACKAGE: &str = "qemu-system-x86";
/// Debian's suite with the newest QEMU.
const SUITE: &str = "sid";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The libraries' place under the unpacked root.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A QEMU that has the device `vfio-user-pci`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Qemu {
    /// The one in `PATH`.
    Installed,
    /// The one that is unpacked in this directory.
    Unpacked(PathBuf),
}

impl Qemu {
    /// The installed one where it will do, else the one in the cache.
    pub(super) fn vfio_user() -> Result<Self> {
        find()?.with_context(|| missing_vfio_user().unwrap_or_default())
    }

    /// Adds the program, and what it must be told to run where it stands.
    pub(super) fn arguments(&self, command: &mut Command) {
        match self {
            Self::Installed => {
                command.arg(PROGRAM);
            }
            Self::Unpacked(root) => {
                let libraries = root.join(LIBRARIES);
                command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
                command.arg(root.join("usr/lib64/ld-linux-x86-64.so.2"));
                command.arg("--library-path").arg(libraries);
                command.arg(root.join("usr/bin").join(PROGRAM));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(data));
                }
            }
        }
    }

    /// Whether it runs here and is a vfio-user client.
    fn has_the_device(&self) -> bool {
        // `env` takes the program and its environment as `setpriv` does for a machine.
        let mut command = Command::new("env");
        self.arguments(&mut command);
        command
            .args(["-machine", "q35", "-device", "vfio-user-pci,help"])
            .stdin(Stdio::null())
            .output()
            // The status is 0 for an unknown device too.
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("socket"))
    }
}

fn find() -> Result<Option<Qemu>> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let installed = *INSTALLED
        .get_or_init(|| program::find(PROGRAM).is_some() && Qemu::Installed.has_the_device());
    if installed {
        return Ok(Some(Qemu::Installed));
    }
    Ok(cache::find(SUFFIX)?.map(Qemu::Unpacked))
}

/// Why machines with a device behind a vfio-user server cannot be booted right now, or `None`.
pub fn missing_vfio_user() -> Option<String> {
    match find() {
        Ok(Some(_)) => None,
        Ok(None) => Some(
            "no QEMU with vfio-user-pci (10.1 or newer); run: cargo xtask vm prepare".to_owned(),
        ),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// What fetches and unpacks QEMU's packages.
const NEEDS: [Need; 3] = [
    packages::program("apt-get", "apt"),
    packages::program("dpkg-deb", "dpkg"),
    packages::file(KEYRING, "debian-archive-keyring"),
];

/// Sees to it that there is a QEMU that is a vfio-user client: about 50 MB to fetch, in seconds, where none is installed.
///
/// # Errors
/// When something is missing that cannot be installed, or the packages cannot be fetched.
pub fn prepare_vfio_user() -> Result<()> {
    if find()?.is_some() {
        return Ok(());
    }
    packages::ensure_installed(&NEEDS)?;
    cache::find_or_make(SUFFIX, unpack).map(drop)
}

/// Fetches the packages with a package database of their own, in which nothing is installed yet, and unpacks them into `root`.
fn unpack(root: &Path) -> Result<String> {
    eprintln!("Fetching QEMU from Debian {SUITE}, into the cache: nothing is installed.");
    let work = tempfile::tempdir()?;
    let apt = Apt::new(work.path())?;
    apt.run(&["update"])?;
    apt.run(&["install", "-y", "--download-only", PACKAGE])?;
    let mut version = None;
    for entry in fs::read_dir(apt.archives())? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let unpacked = Command::new("dpkg-deb")
            .arg("-x")
            .args([&file, root])
            .status()?;
        ensure!(unpacked.success(), "cannot unpack {}", file.display());
        // apt calls a file PACKAGE_VERSION_ARCHITECTURE.deb.
        let name = file.file_stem().and_then(|name| name.to_str());
        if let Some(found) = name.and_then(|name| name.strip_prefix("qemu-system-x86_")) {
            // The epoch would put a colon into the path, where the linker's list of directories is cut.
            let whole = found.split('_').next().unwrap_or(found);
            version = Some(whole.rsplit("%3a").next().unwrap_or(whole).to_owned());
        }
    }
    let version = version.with_context(|| format!("apt-get fetched no {PACKAGE}"))?;
    for unneeded in ["usr/share/doc", "usr/share/man", "usr/share/locale"] {
        // What cannot be removed only takes space.
        let _ = fs::remove_dir_all(root.join(unneeded));
    }
    ensure!(
        Qemu::Unpacked(root.to_owned()).has_the_device(),
        "QEMU {version} was fetched but does not run here, or is no vfio-user client"
    );
    Ok(format!("qemu_{version}{SUFFIX}"))
}

/// apt-get with sources, lists and a database of its own.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: &Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("status"), "")?;
        let sources = format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()?);
        fs::write(directory.join("sources.list"), sources)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn archives(&self) -> PathBuf {
        self.directory.join("archives")
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", path("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={}", path("")),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("")),
            format!("Dir::Cache::archives={}", path("archives")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            // The directory is this process's alone, and other users cannot enter it.
            "Debug::NoLocking=1".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Install-Recommends=0".to_owned(),
        ];
        let mut command = Command::new("apt-get");
        command.arg("-qq");
        for option in options {
            command.args(["-o", &option]);
        }
        let output = command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        ensure!(
            output.status.success(),
            "apt-get {} failed:\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

/// The Debian mirror that apt uses on this system.
fn mirror() -> Result<String> {
    let format = "$(ORIGIN) $(REPO_URI) $(SUITE)";
    let list = || -> Result<String> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut found = debian_mirror(&list()?);
    if found.is_none() && packages::update_lists() {
        found = debian_mirror(&list()?);
    }
    found.context("apt knows no Debian mirror, or has no package lists. Run: apt-get update")
}

/// The mirror in lines of origin, address and suite. The security archive has another layout, and no unstable suite.
fn debian_mirror(list: &str) -> Option<String> {
    list.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (origin, address, suite) = (words.next()?, words.next()?, words.next()?);
            let ours = origin == "Debian" && !suite.contains("security");
            ours.then(|| address.trim_end_matches('/').to_owned())
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own() {
        let list = "Google https://packages.example/apt/ stable\n\
                    Debian http://mirror.example/debian-security/ oldstable-security\n\
                    Debian http://mirror.example/debian/ oldstable\n";
        assert_eq!(
            debian_mirror(list).as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            debian_mirror("Ubuntu http://mirror.example/ubuntu/ noble\n"),
            None
        );
    }

    #[test]
    fn an_unpacked_qemu_is_told_where_it_stands() {
        let mut command = Command::new("env");
        Qemu::Unpacked("/c/q".into()).arguments(&mut command);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(arguments[0], "/c/q/usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(
            arguments[1..3],
            ["--library-path", "/c/q/usr/lib/x86_64-linux-gnu"]
        );
        assert_eq!(arguments[3], "/c/q/usr/bin/qemu-system-x86_64");
        assert!(arguments.contains(&"/c/q/usr/share/qemu"), "firmware");
    }
}
