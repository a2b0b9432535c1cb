//! Taking a function from its driver for VFIO, and giving it back.
//!
//! Both are first a [`Plan`], a list of steps that can be shown, and then the doing of it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::holders::Holder;
use crate::processes::{Process, phrase};
use crate::sysfs::{SysfsError, VFIO_PCI, is_vfio_driver, read_text};
use crate::{GroupReport, PciAddress, PciFunction, Sysfs};

/// How long it is from one look for what is waited for to the next.
const INTERVAL: Duration = Duration::from_millis(10);
/// How many looks a driver that probes in the background and a node are waited for: ten seconds, and longer on a machine that stands still meanwhile.
const PATIENCE: u32 = 1000;
/// How many a driver is waited for that has probed when the write that asks for it returns: a second.
const PROBING: u32 = 100;

/// How to bind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Take the function even from those who use it.
    pub force: bool,
    /// The user (name or number) who is to own the nodes.
    pub user: Option<String>,
}

/// What is going to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps; none when everything is as it should be.
    pub steps: Vec<Step>,
}

/// One step. It prints as the shell command that does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes a text into a file of sysfs.
    Write {
        /// The file.
        path: PathBuf,
        /// What is written.
        text: String,
    },
    /// Waits until a node is there.
    AwaitNode {
        /// The node.
        path: PathBuf,
    },
    /// Gives a node to a user.
    Chown {
        /// The node.
        path: PathBuf,
        /// The user's number.
        uid: u32,
    },
    /// Sets the permissions of a node.
    Chmod {
        /// The node.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, text } if text.trim().is_empty() => {
                write!(f, "echo > {}", path.display())
            }
            Self::Write { path, text } => write!(f, "echo {text} > {}", path.display()),
            Self::AwaitNode { path } => {
                write!(f, "until [ -e {} ]; do sleep 0.01; done", path.display())
            }
            Self::Chown { path, uid } => write!(f, "chown {uid} {}", path.display()),
            Self::Chmod { path, mode } => write!(f, "chmod {mode:04o} {}", path.display()),
        }
    }
}

/// A function in VFIO's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The function.
    pub address: PciAddress,
    /// The node of its group.
    pub node: PathBuf,
    /// Its group. It may still not be viable: other members are the user's to bind.
    pub group: GroupReport,
}

/// Why a function was not bound or not given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The function or its group could not be looked at.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Bridges stay with the kernel.
    #[error("{address} is a {description}; bridges stay with the kernel and spoil no group")]
    Bridge {
        /// The function.
        address: PciAddress,
        /// What it is.
        description: String,
    },
    /// The kernel has no vfio-pci.
    #[error("the driver vfio-pci is not loaded. Run: modprobe vfio-pci")]
    DriverMissing,
    /// Somebody uses it.
    #[error("{address} is in use: {}", holder_list(holders))]
    Held {
        /// The function.
        address: PciAddress,
        /// Who.
        holders: Vec<Holder>,
    },
    /// A process drives it through VFIO.
    #[error(
        "{address} is in use through {} by {}: end that first", node.display(),
        if processes.is_empty() { "a process that this user may not see".to_string() } else { phrase(processes) }
    )]
    Open {
        /// The function.
        address: PciAddress,
        /// The node of its group.
        node: PathBuf,
        /// Who, as far as this user may see.
        processes: Vec<Process>,
    },
    /// There is no such user.
    #[error("there is no user {name:?}")]
    NoUser {
        /// As given.
        name: String,
    },
    /// Only root may do that.
    #[error("{} may only be changed by root. Run the command with sudo", path.display())]
    NotRoot {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step failed. What was done before it was undone.
    #[error("this failed: {step}")]
    Step {
        /// The step.
        step: Step,
        /// What the kernel said.
        source: io::Error,
    },
    /// vfio-pci did not take it; the kernel log tells why. It is back with its driver.
    #[error(
        "vfio-pci did not take {address}, {}; the kernel log (dmesg) tells why",
        driver.as_deref().map_or("which has no driver now".into(), |driver| format!("which is with {driver}"))
    )]
    NotTaken {
        /// The function.
        address: PciAddress,
        /// The driver that it has now.
        driver: Option<String>,
    },
    /// No driver of the kernel took it back.
    #[error(
        "{address} is free, but {}. Run: modprobe {module} && echo {address} > /sys/bus/pci/drivers_probe",
        driver.as_deref().map_or("no driver took it".into(), |driver| format!("{driver} took it again"))
    )]
    NotReturned {
        /// The function.
        address: PciAddress,
        /// The driver that it has now.
        driver: Option<String>,
        /// The module that would be right.
        module: &'static str,
    },
}

fn holder_list(holders: &[Holder]) -> String {
    let phrases: Vec<String> = holders.iter().map(ToString::to_string).collect();
    phrases.join(", ")
}

/// What [`bind`] would do.
///
/// # Errors
///
/// See [`BindError`]: everything that can be known beforehand.
pub fn plan_bind(
    sysfs: &Sysfs,
    address: PciAddress,
    options: &BindOptions,
) -> Result<Plan, BindError> {
    let function = sysfs.function(address)?;
    let group = function
        .iommu_group
        .ok_or(SysfsError::NoIommu { address })?;
    if function.is_bridge() {
        return Err(BindError::Bridge {
            address,
            description: function.description(),
        });
    }
    let user = options.user.as_deref().map(user_number).transpose()?;
    let node = sysfs.group_node(group);
    let mut steps = Vec::new();
    if !function.is_on_vfio() {
        if !sysfs.has_driver(VFIO_PCI) {
            return Err(BindError::DriverMissing);
        }
        if !options.force {
            let holders = sysfs.holders(address);
            if !holders.is_empty() {
                return Err(BindError::Held { address, holders });
            }
        }
        steps.push(write_override(sysfs, address, VFIO_PCI));
        steps.extend(unbind_step(sysfs, &function));
        steps.push(probe_step(sysfs, address));
        steps.push(Step::AwaitNode { path: node.clone() });
    }
    if let Some(uid) = user {
        steps.extend(chown_step(&node, uid));
        steps.extend(container_step(&sysfs.path("dev/vfio/vfio")));
    }
    Ok(Plan { steps })
}

/// Takes a function from its driver and gives it to vfio-pci.
///
/// When a step fails, the function goes back to the kernel's driver before this returns.
///
/// # Errors
///
/// See [`BindError`].
pub fn bind(sysfs: &Sysfs, address: PciAddress, options: &BindOptions) -> Result<Bound, BindError> {
    let plan = plan_bind(sysfs, address, options)?;
    let before = sysfs.function(address)?;
    let taken = || match await_driver(sysfs, address, PROBING, PciFunction::is_on_vfio)? {
        Ok(_) => Ok(()),
        Err(driver) => Err(BindError::NotTaken { address, driver }),
    };
    // The node comes with the driver: without the one, waiting for the other is in vain.
    let (writes, rest): (Vec<Step>, Vec<Step>) = plan
        .steps
        .into_iter()
        .partition(|step| matches!(step, Step::Write { .. }));
    let outcome = carry_out(&writes)
        .and_then(|()| taken())
        .and_then(|()| carry_out(&rest));
    if let Err(error) = outcome {
        if !before.is_on_vfio() {
            give_back(sysfs, &before);
        }
        return Err(match error {
            BindError::NotTaken { .. } => BindError::NotTaken {
                address,
                driver: sysfs.function(address)?.driver,
            },
            error => error,
        });
    }
    let group = sysfs.group_of(address)?;
    Ok(Bound {
        address,
        node: sysfs.group_node(group),
        group: sysfs.group(group)?,
    })
}

/// What [`unbind`] would do.
///
/// # Errors
///
/// See [`BindError`]: everything that can be known beforehand.
pub fn plan_unbind(sysfs: &Sysfs, address: PciAddress) -> Result<Plan, BindError> {
    let function = sysfs.function(address)?;
    let mut steps = Vec::new();
    let overridden =
        read_text(&override_path(sysfs, address)).is_ok_and(|name| is_vfio_driver(&name));
    if overridden {
        steps.push(write_override(sysfs, address, "\n"));
    }
    if function.is_on_vfio() {
        refuse_open(sysfs, &function)?;
        steps.extend(unbind_step(sysfs, &function));
    }
    if function.is_on_vfio() || function.driver.is_none() {
        steps.push(probe_step(sysfs, address));
    }
    Ok(Plan { steps })
}

/// Gives a function back to the kernel's driver, and returns that driver's name.
///
/// # Errors
///
/// See [`BindError`].
pub fn unbind(sysfs: &Sysfs, address: PciAddress) -> Result<String, BindError> {
    let plan = plan_unbind(sysfs, address)?;
    carry_out(&plan.steps)?;
    let function = sysfs.function(address)?;
    let patience = match may_still_come(sysfs, &function) {
        true => PATIENCE,
        false => PROBING,
    };
    let kernels = |function: &PciFunction| function.driver.is_some() && !function.is_on_vfio();
    match await_driver(sysfs, address, patience, kernels)? {
        Ok(driver) => Ok(driver),
        Err(driver) => Err(BindError::NotReturned {
            address,
            driver,
            module: if function.is_nvme() { "nvme" } else { "MODULE" },
        }),
    }
}

/// Waits until the function's driver is a wanted one: its name, or that of the driver it has in the end.
fn await_driver(
    sysfs: &Sysfs,
    address: PciAddress,
    patience: u32,
    wanted: impl Fn(&PciFunction) -> bool,
) -> Result<Result<String, Option<String>>, BindError> {
    let mut left = patience;
    loop {
        let function = sysfs.function(address)?;
        match function.driver.clone() {
            Some(driver) if wanted(&function) => return Ok(Ok(driver)),
            driver if left == 0 => return Ok(Err(driver)),
            _ => std::thread::sleep(INTERVAL),
        }
        left -= 1;
    }
}

/// Without the NVMe driver in the kernel nobody comes for an NVMe controller.
fn may_still_come(sysfs: &Sysfs, function: &PciFunction) -> bool {
    !function.is_nvme() || sysfs.has_driver("nvme")
}

/// The kernel would wait in the write to `unbind` for as long as a process drives the function.
fn refuse_open(sysfs: &Sysfs, function: &PciFunction) -> Result<(), BindError> {
    let Some(group) = function.iommu_group else {
        return Ok(());
    };
    let address = function.address;
    let node = sysfs.group_node(group);
    let nodes = [vec![node.clone()], sysfs.device_nodes(address)].concat();
    let processes = sysfs.processes_with_open(&nodes);
    // A second opening is refused by the kernel, whoever did the first.
    let opened = OpenOptions::new().read(true).write(true).open(&node);
    let busy = opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY));
    if busy || !processes.is_empty() {
        return Err(BindError::Open {
            address,
            node,
            processes,
        });
    }
    Ok(())
}

/// Undoes a half-done [`bind`], as far as it goes.
fn give_back(sysfs: &Sysfs, before: &PciFunction) {
    let address = before.address;
    let mut steps = vec![write_override(sysfs, address, "\n")];
    if let Ok(now) = sysfs.function(address) {
        if now.is_on_vfio() {
            steps.extend(unbind_step(sysfs, &now));
        }
        if now.driver != before.driver && before.driver.is_some() {
            steps.push(probe_step(sysfs, address));
        }
    }
    for step in steps {
        if let Err(error) = step.carry_out() {
            tracing::warn!(%step, %error, "undoing failed");
        }
    }
}

fn override_path(sysfs: &Sysfs, address: PciAddress) -> PathBuf {
    sysfs.function_path(address).join("driver_override")
}

fn write_override(sysfs: &Sysfs, address: PciAddress, text: &str) -> Step {
    Step::Write {
        path: override_path(sysfs, address),
        text: text.into(),
    }
}

fn unbind_step(sysfs: &Sysfs, function: &PciFunction) -> Option<Step> {
    let driver = function.driver.as_ref()?;
    Some(Step::Write {
        path: sysfs
            .path("sys/bus/pci/drivers")
            .join(driver)
            .join("unbind"),
        text: function.address.to_string(),
    })
}

fn probe_step(sysfs: &Sysfs, address: PciAddress) -> Step {
    Step::Write {
        path: sysfs.path("sys/bus/pci/drivers_probe"),
        text: address.to_string(),
    }
}

fn chown_step(node: &Path, uid: u32) -> Option<Step> {
    let owned = node.metadata().is_ok_and(|metadata| metadata.uid() == uid);
    (!owned).then(|| Step::Chown {
        path: node.into(),
        uid,
    })
}

/// Everybody may have a container, which gives access to nothing until a group is put in: the kernel makes its node with mode 0666,
/// but a rule of the machine may have changed that.
fn container_step(node: &Path) -> Option<Step> {
    let mode = node.metadata().ok()?.mode() & 0o7777;
    (mode & 0o006 != 0o006).then(|| Step::Chmod {
        path: node.into(),
        mode: mode | 0o666,
    })
}

fn user_number(name: &str) -> Result<u32, BindError> {
    let unknown = || BindError::NoUser { name: name.into() };
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        _ => name.parse().map_err(|_| unknown()),
    }
}

fn carry_out(steps: &[Step]) -> Result<(), BindError> {
    for step in steps {
        tracing::debug!(%step);
        step.carry_out()
            .map_err(|source| match (source.kind(), step) {
                (
                    io::ErrorKind::PermissionDenied,
                    Step::Write { path, .. } | Step::Chown { path, .. } | Step::Chmod { path, .. },
                ) => BindError::NotRoot {
                    path: path.clone(),
                    source,
                },
                _ => BindError::Step {
                    step: step.clone(),
                    source,
                },
            })?;
    }
    Ok(())
}

impl Step {
    fn carry_out(&self) -> io::Result<()> {
        match self {
            // One write: sysfs takes each as a whole. Files are neither made nor cut.
            Self::Write { path, text } => OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all(text.as_bytes()),
            Self::AwaitNode { path } => await_node(path),
            Self::Chown { path, uid } => std::os::unix::fs::chown(path, Some(*uid), None),
            Self::Chmod { path, mode } => {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))
            }
        }
    }
}

fn await_node(path: &Path) -> io::Result<()> {
    let mut left = PATIENCE;
    while !path.exists() {
        if left == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        left -= 1;
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}
