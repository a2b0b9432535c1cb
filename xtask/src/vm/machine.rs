//! The description of a machine, and the QEMU command line that it becomes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::contents::{self, Contents};
use super::kernel::Kernel;
use super::output::Output;
use super::qemu::{self, Qemu};
use super::running::{INITRAMFS, Running, Sockets};
use super::spec;

/// What stands behind the standard controller.
#[derive(Clone, Debug, Default)]
pub enum Drive {
    /// A fresh sparse file of 1 GiB, all zeroes, gone with the [`Output`].
    #[default]
    Fresh,
    /// 1 GiB that forgets what is written, and whose reads leave the buffer as it was: takes
    Null,
    /// This raw image, which the machine writes to.
    Image(PathBuf),
    /// The text of QEMU's `-drive` without `if` and `id`; `{image}` in it stands for the path of a fresh sparse file of 1 GiB.
    Spec(String),
}

/// A machine that can be started: see the [module](super).
#[derive(Clone, Debug)]
pub struct Machine {
    kernel: Kernel,
    memory: String,
    cpus: u32,
    iommu: String,
    nvme: Option<String>,
    drive: Drive,
    served: Vec<PathBuf>,
    devices: Vec<String>,
    kernel_arguments: String,
    qemu_arguments: Vec<OsString>,
    contents: Contents,
    timeout: Duration,
}

/// The standard controller's properties that never change.
const STANDARD_NVME: &str = "nvme,id=vm-nvme,serial=vm-standard,drive=drive0,addr=1.0";
/// The size of every drive that is not described further: 1 GiB.
const DRIVE_SIZE: u64 = 1 << 30;

impl Machine {
    /// The standard machine: q35 with an Intel IOMMU (39-bit addresses, interrupt remapping), two processors, 2 GiB of memory,
    /// the small kernel, the release build of `nvme-vfio` on `PATH`, and an NVMe controller with the serial number
    /// `vm-standard` and a fresh drive of 1 GiB, alone in its IOMMU group. Ten minutes' time.
    pub fn standard() -> Self {
        Self::bare().binary("nvme-vfio-cli", "nvme-vfio")
    }

    /// The standard machine without `nvme-vfio` in it, so that nothing needs to be built.
    pub fn bare() -> Self {
        Self {
            kernel: Kernel::default(),
            memory: "2G".to_owned(),
            cpus: 2,
            iommu: "intremap=on,caching-mode=on".to_owned(),
            nvme: Some(STANDARD_NVME.to_owned()),
            drive: Drive::default(),
            served: Vec::new(),
            devices: Vec::new(),
            kernel_arguments: String::new(),
            qemu_arguments: Vec::new(),
            contents: Contents::default(),
            timeout: Duration::from_secs(600),
        }
    }

    /// Boots this kernel.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Guest memory, in QEMU's notation (`1G`, `512M`).
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// The number of virtual processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// More properties of the IOMMU, for example `aw-bits=48`; a later one of the same name wins.
    #[must_use]
    pub fn iommu(mut self, properties: &str) -> Self {
        self.iommu = format!("{},{properties}", self.iommu);
        self
    }

    /// More properties of the standard controller, for example `mdts=1,max_ioqpairs=1`.
    #[must_use]
    pub fn nvme(mut self, properties: &str) -> Self {
        if let Some(nvme) = &mut self.nvme {
            *nvme = format!("{nvme},{properties}");
        }
        self
    }

    /// Leaves the standard controller out; its drive stays, as `drive0`.
    #[must_use]
    pub fn without_nvme(mut self) -> Self {
        self.nvme = None;
        self
    }

    /// What stands behind the standard controller.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drive = drive;
        self
    }

    /// Adds a device, in the text of QEMU's `-device`. An `nvme` without `drive=` gets a drive of its own that holds nothing
    /// (1 GiB, null), and without `serial=` a serial number. A text in JSON goes to QEMU as it is.
    #[must_use]
    pub fn device(mut self, spec: &str) -> Self {
        self.devices.push(spec.to_owned());
        self
    }

    /// Adds the PCI device that a vfio-user server has on this socket, the first at 0000:00:10.0, the next at 11.0 and so on. The server's side sees the guest's memory, so the machine has no IOMMU then,
    /// and it needs a QEMU that is a vfio-user client: [`missing_vfio_user`](super::missing_vfio_user).
    #[must_use]
    pub fn vfio_user(mut self, socket: impl Into<PathBuf>) -> Self {
        self.served.push(socket.into());
        self
    }

    /// More words on the kernel's command line.
    #[must_use]
    pub fn kernel_arguments(mut self, words: &str) -> Self {
        self.kernel_arguments = format!("{} {words}", self.kernel_arguments);
        self
    }

    /// More arguments for QEMU.
    #[must_use]
    pub fn qemu_arguments<S: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        self.qemu_arguments
            .extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Copies a file of the host into the guest, its permission bits kept: an executable file to `/usr/local/bin`, with the shared
    /// libraries it needs, any other to `/root`, where the command starts.
    #[must_use]
    pub fn copy(mut self, file: impl Into<PathBuf>) -> Self {
        self.contents.copy(file.into(), None);
        self
    }

    /// Copies a file of the host to this absolute path of the guest.
    #[must_use]
    pub fn copy_to(mut self, file: impl Into<PathBuf>, place: &str) -> Self {
        self.contents.copy(file.into(), Some(place.to_owned()));
        self
    }

    /// Puts a file with this content at this absolute path of the guest.
    #[must_use]
    pub fn file(mut self, place: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.contents.bytes(place.to_owned(), content.into(), mode);
        self
    }

    /// Copies a program that is installed on the host (`fio`, `nvme`) to the guest's `/usr/local/bin`, with the shared libraries it
    /// needs.
    #[must_use]
    pub fn host_program(mut self, name: &str) -> Self {
        self.contents.host_program(name.to_owned());
        self
    }

    /// Builds a binary of the workspace in release mode and copies it to the guest's `/usr/local/bin`.
    #[must_use]
    pub fn binary(mut self, package: &str, name: &str) -> Self {
        self.contents.build(package, "bin", name);
        self
    }

    /// Builds an example of the workspace in release mode and copies it to the guest's `/usr/local/bin`.
    #[must_use]
    pub fn example(mut self, package: &str, name: &str) -> Self {
        self.contents.build(package, "example", name);
        self
    }

    /// Builds a test program of the workspace in release mode and copies it to the guest's `/usr/local/bin`.
    #[must_use]
    pub fn test_program(mut self, package: &str, name: &str) -> Self {
        self.contents.build(package, "test", name);
        self
    }

    /// The hard time limit, from QEMU's start to its end.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Boots the machine, runs the command in it as root (standard input from `/dev/null`, in `/root`), and waits for the end.
    ///
    /// # Errors
    /// When the machine cannot be started at all. Everything after that is in [`Output::end`].
    pub fn run<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Result<Output> {
        self.start(command)?.wait()
    }

    /// Like [`run`](Self::run), but the command's output goes to this process's standard output and standard error while it runs.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_inherited<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        self.launch(&contents::script(command), true)?.wait()
    }

    /// Boots the machine and returns while it runs.
    ///
    /// # Errors
    /// When the machine cannot be started at all.
    pub fn start<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Result<Running> {
        self.launch(&contents::script(command), false)
    }

    /// Boots the machine with a shell on this terminal; without a time limit.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn shell(&self) -> Result<ExitStatus> {
        let directory = working_directory()?;
        let mut qemu = self.qemu(directory.path(), None)?;
        qemu.args([
            "-chardev",
            "stdio,id=console,mux=on,signal=off",
            "-serial",
            "chardev:console",
        ]);
        qemu.args(["-mon", "chardev=console"]);
        Ok(qemu.status()?)
    }

    fn launch(&self, script: &[u8], inherit: bool) -> Result<Running> {
        let directory = Rc::new(working_directory()?);
        let marker = contents::marker()?;
        let mut qemu = self.qemu(directory.path(), Some((script, &marker)))?;
        let sockets = Sockets::bind(directory.path())?;
        let console = directory.path().join("console");
        qemu.arg("-chardev")
            .arg(with_path("file,id=console,path=", &console));
        qemu.args(["-serial", "chardev:console"]);
        qemu.args(["-device", "virtio-serial-pci,id=vm-serial,addr=1e.0"]);
        for name in ["stdout", "stderr", "control"] {
            qemu.arg("-chardev").arg(with_path(
                &format!("socket,id=vm-{name},path="),
                &sockets.path(name),
            ));
            let port = format!("virtserialport,bus=vm-serial.0,chardev=vm-{name},name=vm.{name}");
            qemu.args(["-device", &port]);
        }
        qemu.arg("-chardev").arg(with_path(
            "socket,id=vm-monitor,path=",
            &sockets.path("monitor"),
        ));
        qemu.args(["-mon", "chardev=vm-monitor,mode=control"]);
        let log = File::create(directory.path().join("qemu"))?;
        qemu.stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let image = self.image(directory.path());
        Running::new(
            qemu,
            &sockets,
            directory,
            image,
            marker,
            self.timeout,
            inherit,
        )
    }

    fn image(&self, directory: &Path) -> PathBuf {
        match &self.drive {
            Drive::Image(path) => path.clone(),
            _ => directory.join("drive0"),
        }
    }

    /// QEMU with everything but its console and its channels; without a command, the guest runs a shell on the console.
    fn qemu(&self, directory: &Path, command: Option<(&[u8], &str)>) -> Result<Command> {
        super::prepare(&[self.kernel])?;
        let kernel = self.kernel.files()?;
        let initrd = directory.join(INITRAMFS);
        self.contents.write(&initrd, &kernel, command)?;

        // QEMU must not outlive this process, however this process ends.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]);
        if self.served.is_empty() {
            qemu.arg(qemu::PROGRAM);
        } else {
            Qemu::vfio_user()?.arguments(&mut qemu);
        }
        qemu.args([
            "-machine",
            "q35,kernel-irqchip=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        // Hot-unplug goes by PCI Express's own way, as with a real SSD, and not through ACPI.
        qemu.args([
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        ]);
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory]);
        qemu.arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd);
        // An oops must end the machine, as a panic does: panic=-1 restarts at once, which -no-reboot makes an end. The time-stamp
        // counter is the host's and steady, and the timer works: on a busy host, measuring them comes to other conclusions.
        let arguments =
            "console=ttyS0 quiet panic=-1 oops=panic tsc=reliable no_timer_check intel_iommu=on";
        qemu.arg("-append")
            .arg(format!("{arguments}{}", self.kernel_arguments));
        if self.served.is_empty() {
            qemu.args(["-device", &format!("intel-iommu,{}", self.iommu)]);
        } else {
            // The server maps what it may reach: all of the guest's memory.
            let memory = format!(
                "memory-backend-memfd,id=vm-memory,size={},share=on",
                self.memory
            );
            qemu.args(["-object", &memory, "-machine", "memory-backend=vm-memory"]);
        }
        qemu.arg("-drive").arg(self.drive_text(directory)?);
        if let Some(nvme) = &self.nvme {
            qemu.args(["-device", nvme]);
        }
        for (slot, socket) in (0x10..).zip(&self.served) {
            let path = socket.to_str().context("a path that is not UTF-8")?;
            let socket = json!({"type": "unix", "path": path});
            let device =
                json!({"driver": "vfio-user-pci", "addr": format!("{slot:x}.0"), "socket": socket});
            qemu.args(["-device", &device.to_string()]);
        }
        for (index, spec) in (1..).zip(&self.devices) {
            let mut spec = spec.clone();
            if spec::driver(&spec) == "nvme" && spec::value(&spec, "drive").is_none() {
                qemu.args([
                    "-drive",
                    &format!("driver=null-co,size={DRIVE_SIZE},if=none,id=drive{index}"),
                ]);
                spec += &format!(",drive=drive{index}");
            }
            if spec::driver(&spec) == "nvme" && spec::value(&spec, "serial").is_none() {
                spec += &format!(",serial=vm-{index}");
            }
            qemu.args(["-device", &spec]);
        }
        qemu.args(&self.qemu_arguments);
        Ok(qemu)
    }

    fn drive_text(&self, directory: &Path) -> Result<OsString> {
        let fresh = || -> Result<PathBuf> {
            let path = self.image(directory);
            File::create(&path)?.set_len(DRIVE_SIZE)?;
            Ok(path)
        };
        Ok(match &self.drive {
            Drive::Null => format!("driver=null-co,size={DRIVE_SIZE},if=none,id=drive0").into(),
            Drive::Fresh => with_path("format=raw,if=none,id=drive0,file=", &fresh()?),
            Drive::Image(path) => {
                ensure!(path.is_file(), "no drive image {}", path.display());
                with_path("format=raw,if=none,id=drive0,file=", path)
            }
            Drive::Spec(text) => {
                let text = if text.contains("{image}") {
                    let image = fresh()?;
                    text.replace(
                        "{image}",
                        &image
                            .to_str()
                            .context("a path that is not UTF-8")?
                            .replace(',', ",,"),
                    )
                } else {
                    text.clone()
                };
                format!("{text},if=none,id=drive0").into()
            }
        })
    }
}

/// A directory for one machine's files. Its path is short, because a socket's path has at most 107 bytes.
fn working_directory() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("vm-");
    let directory = builder.tempdir()?;
    Ok(if directory.path().as_os_str().len() < 90 {
        directory
    } else {
        builder.tempdir_in("/tmp")?
    })
}

/// A QEMU option that ends with a path; commas in it are doubled.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut text = option.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        text.push(byte);
        if byte == b',' {
            text.push(byte);
        }
    }
    OsString::from(OsStr::from_bytes(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(
            with_path("file=", Path::new("/a,b/c")),
            OsString::from("file=/a,,b/c")
        );
    }
}
