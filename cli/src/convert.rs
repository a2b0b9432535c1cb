//! The libraries' errors as the user's: which kind each is, and so which exit status.

use std::{error::Error as StdError, io};

use nvme_vfio::{CommandError, DmaError, SubmitError};
use nvme_vfio_dma::MapError;
use nvme_vfio_emulator::ConfigError;
use nvme_vfio_pci::{DeviceError, GroupError, Process, SysfsError, bind::BindError};
use nvme_vfio_queues::Status;
use nvme_vfio_user::{ClientError, SocketError, device::Errno};

use crate::error::{Error, Kind, NvmeStatus};

/// What stands before the remedy in the libraries' messages.
const REMEDY: &str = "Run: ";

/// The message of an error and all its sources, and the remedy in it, if any.
fn describe(error: &(dyn StdError + 'static)) -> (String, Option<String>) {
    let mut message = error.to_string();
    let mut source = error.source();
    let mut remedy = None;
    loop {
        if let Some((front, behind)) = message.rsplit_once(REMEDY) {
            remedy = Some(format!("{REMEDY}{behind}"));
            message = front.trim_end_matches([' ', '.']).to_owned();
        }
        let Some(next) = source else { break };
        let text = next.to_string();
        // Transparent errors repeat their source.
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = next.source();
    }
    (message, remedy)
}

fn build(kind: Kind, error: &(dyn StdError + 'static)) -> Error {
    let (message, remedy) = describe(error);
    let built = Error::new(kind, message);
    match remedy {
        Some(remedy) => built.remedy(remedy),
        None => built,
    }
}

fn os(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::NotFound => Kind::NotFound,
        _ => Kind::Environment,
    }
}

impl From<SysfsError> for Error {
    fn from(error: SysfsError) -> Self {
        let kind = match &error {
            SysfsError::NoFunction { .. } | SysfsError::NoGroup { .. } => Kind::NotFound,
            SysfsError::NoIommu { .. } => Kind::NoIommu,
            SysfsError::File { source, .. } => os(source),
            _ => Kind::Environment,
        };
        let built = build(kind, &error);
        match error {
            SysfsError::NoFunction { .. } => built.remedy("Run: nvme-vfio list"),
            SysfsError::NoGroup { .. } => built.remedy("Run: nvme-vfio group --all"),
            SysfsError::NoIommu { .. } => built.remedy("Run: nvme-vfio doctor"),
            _ => built,
        }
    }
}

impl From<GroupError> for Error {
    fn from(error: GroupError) -> Self {
        let kind = match error {
            GroupError::Sysfs(error) => return error.into(),
            GroupError::NoSuchGroup { .. } => Kind::NotFound,
            GroupError::NoIommu
            | GroupError::NoIommuMode { .. }
            | GroupError::ModuleMissing { .. }
            | GroupError::NoType1v2 => Kind::NoIommu,
            GroupError::NotBound { .. } => Kind::NotBound,
            GroupError::NoPermission { .. } => Kind::Permission,
            GroupError::Busy { .. } => Kind::Busy,
            GroupError::NotViable { .. } => Kind::NotViable,
            GroupError::Os { ref source, .. } => os(source),
            _ => Kind::Environment,
        };
        let built = build(kind, &error);
        match error {
            GroupError::Busy { ref holders, .. } => built.remedy(end_of(holders)),
            _ => built,
        }
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        let kind = match &error {
            DeviceError::NotInGroup { .. } => Kind::NotBound,
            DeviceError::Open { source, .. } | DeviceError::Os { source, .. } => os(source),
            _ => Kind::Environment,
        };
        build(kind, &error)
    }
}

impl From<BindError> for Error {
    fn from(error: BindError) -> Self {
        let kind = match error {
            BindError::Sysfs(error) => return error.into(),
            BindError::Bridge { .. } => Kind::Usage,
            BindError::DriverMissing => Kind::NoIommu,
            BindError::Held { .. } | BindError::Open { .. } => Kind::Busy,
            BindError::NoUser { .. } => Kind::NotFound,
            BindError::NotRoot { .. } => Kind::Permission,
            BindError::Step { ref source, .. } => os(source),
            _ => Kind::Environment,
        };
        let built = build(kind, &error);
        match error {
            BindError::Held { .. } => built.remedy("End what uses it (umount, swapoff, vgchange -an, …), or add --force, and it is lost to them"),
            BindError::Open { ref processes, .. } => built.remedy(end_of(processes)),
            BindError::NotRoot { .. } => built.remedy("Run the same command with sudo"),
            _ => built,
        }
    }
}

/// What to type to end processes.
fn end_of(processes: &[Process]) -> String {
    if processes.is_empty() {
        return "Look for the process as root: fuser -v /dev/vfio/*".to_owned();
    }
    let pids: Vec<String> = processes
        .iter()
        .map(|process| process.pid.to_string())
        .collect();
    format!("Wait until it ends, or run: kill {}", pids.join(" "))
}

impl From<DmaError> for Error {
    fn from(error: DmaError) -> Self {
        let kind = match &error {
            DmaError::Map(MapError::MemlockLimit { .. }) => Kind::Memlock,
            DmaError::Map(MapError::TooManyMappings) => Kind::DmaEntryLimit,
            _ => Kind::Environment,
        };
        let built = build(kind, &error);
        match error {
            DmaError::Map(MapError::MemlockLimit { .. }) => {
                let raise = built.remedy_text().unwrap_or_default().to_owned();
                built.remedy(format!("{raise} (as root, or after raising the hard limit in /etc/security/limits.conf)"))
            }
            DmaError::Map(MapError::TooManyMappings) => {
                built.remedy(
                    "With VFIO, run as root: modprobe -r vfio_iommu_type1 && modprobe vfio_iommu_type1 dma_entry_limit=65535. \
                     With vfio-user, raise limits = { memory = …, mappings = … } in the policy of nvme-vfio serve",
                )
            }
            _ => built,
        }
    }
}

/// The controller's error status as data.
#[must_use]
pub(crate) fn nvme_status(status: Status) -> NvmeStatus {
    NvmeStatus {
        sct: status.sct(),
        sc: status.sc(),
        name: status.to_string(),
    }
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        let kind = match error {
            SubmitError::OutOfRange { .. } => Kind::LbaOutOfRange,
            SubmitError::Gone => return build(Kind::Gone, &error).remedy(GONE),
            SubmitError::Reset | SubmitError::Deleted => Kind::Reset,
            SubmitError::Length { .. } | SubmitError::TooLong { .. } => Kind::Usage,
            _ => Kind::Environment,
        };
        build(kind, &error)
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Status(status) => {
                let built = Self::new(Kind::Command, format!("the controller answered: {status}"))
                    .nvme_status(nvme_status(status));
                if status.is(Status::OPERATION_DENIED) || status.is(Status::ACCESS_DENIED) {
                    built.remedy(DENIED)
                } else {
                    built
                }
            }
            CommandError::TimedOut => build(Kind::Timeout, &error),
            CommandError::Gone => build(Kind::Gone, &error).remedy(GONE),
            _ => build(Kind::Reset, &error),
        }
    }
}

/// Where to look when a command is not allowed.
const DENIED: &str =
    "If nvme-vfio serve lends it, its policy does not allow this; its audit says what is missing";

/// What to look at when a controller is gone.
const GONE: &str = "See whether the SSD is still there (nvme-vfio list) or, behind vfio-user, its server, which may have sent this client away";

/// What kind of failure a file behind a namespace is.
pub(crate) fn medium(source: &io::Error) -> Kind {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::ResourceBusy => Kind::Busy,
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::Other => Kind::File,
        _ => Kind::Environment,
    }
}

/// What can be done about a vfio-user server.
fn served(error: &ClientError, built: Error) -> Error {
    let of = |kind| build(kind, error);
    match error {
        ClientError::Connect { source, .. } => match source {
            SocketError::Os { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                of(Kind::NotFound)
                    .remedy("Start the server: nvme-vfio serve --policy FILE, nvme-vfio emulate --socket PATH, or another")
            }
            SocketError::Os { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                of(Kind::Permission).remedy(
                    "Connect as the user that the socket belongs to: uid in the policy of nvme-vfio serve, --mode of nvme-vfio emulate",
                )
            }
            SocketError::Os { source, .. } => of(os(source)),
            SocketError::TimedOut => of(Kind::Timeout),
            _ => built,
        },
        ClientError::Socket {
            source: SocketError::TimedOut,
            ..
        } => of(Kind::Timeout),
        ClientError::Socket { .. } | ClientError::Lost => of(Kind::Gone).remedy(GONE),
        refused if refused.errno() == Some(Errno::EACCES) => of(Kind::Permission)
            .remedy("Connect as a user whom the server admits: uid in the policy of nvme-vfio serve"),
        refused if refused.errno() == Some(Errno::EBUSY) => of(Kind::Busy)
            .remedy("End the program that uses it: a served controller takes one at a time"),
        _ => built,
    }
}

impl From<nvme_vfio::Error> for Error {
    fn from(error: nvme_vfio::Error) -> Self {
        use nvme_vfio::Error as Driver;
        let kind = match error {
            Driver::Group(error) => return error.into(),
            Driver::Device(error) => return error.into(),
            Driver::Sysfs(error) => return error.into(),
            Driver::Dma(error) => return error.into(),
            Driver::Submit(error) => return error.into(),
            Driver::Command(error) => return error.into(),
            Driver::Emulated(ConfigError::Medium { ref source, .. }) => {
                return build(medium(source), &error).remedy(
                    "Name a file that you may write and that nothing else uses: backend=file:PATH",
                );
            }
            Driver::Address(_) | Driver::Emulated(_) => {
                return build(Kind::Usage, &error).remedy("Run: nvme-vfio --help");
            }
            Driver::NotOneGroup { .. } => {
                return build(Kind::Usage, &error).remedy("Run: nvme-vfio group");
            }
            Driver::Unsupported { .. } => {
                return build(Kind::Unsupported, &error)
                    .remedy("Use an address such as 0000:01:00.0 or emulated");
            }
            Driver::Status { status, .. } => {
                return build(Kind::Command, &error).nvme_status(nvme_status(status));
            }
            Driver::VfioUser(ref error) => return served(error, build(Kind::Environment, error)),
            Driver::Namespace { .. } => Kind::NoNamespace,
            Driver::NotNvme { .. } => Kind::Usage,
            Driver::Gone => return build(Kind::Gone, &error).remedy(GONE),
            Driver::AlreadyOpen { .. } | Driver::NoQueue { .. } => Kind::Busy,
            Driver::TimedOut { .. } => Kind::Timeout,
            Driver::NotReady { what, .. } => match what {
                nvme_vfio::NotReady::Fatal => Kind::Reset,
                _ => Kind::Timeout,
            },
            Driver::Cancelled(_) | Driver::OutOfService(_) | Driver::RecoveryLimit(_) => {
                Kind::Reset
            }
            Driver::Length(_) => Kind::Usage,
            _ => Kind::Environment,
        };
        build(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_inside_a_message_is_taken_out() {
        let error = Error::from(GroupError::NotViable {
            group: 14,
            culprits: Vec::new(),
        });
        assert_eq!(error.kind(), Kind::NotViable);
        assert_eq!(error.remedy_text(), Some("Run: nvme-vfio group"));
        assert!(
            !error.to_string().contains("Run:")
                && error
                    .to_string()
                    .starts_with("IOMMU group 14 is not viable"),
            "{error}"
        );
    }

    #[test]
    fn sources_are_told_once() {
        let source = io::Error::from_raw_os_error(libc_eperm());
        let error = Error::from(nvme_vfio::Error::Group(GroupError::Os {
            group: 3,
            step: "VFIO_GROUP_GET_STATUS",
            source,
        }));
        assert_eq!(
            error.to_string(),
            "IOMMU group 3: VFIO_GROUP_GET_STATUS failed: Operation not permitted (os error 1)"
        );
        assert_eq!(error.exit_status(), 3);
    }

    fn libc_eperm() -> i32 {
        nix::errno::Errno::EPERM as i32
    }

    #[test]
    fn memlock_says_how_much_is_needed() {
        let error = Error::from(nvme_vfio::Error::Dma(DmaError::Map(
            MapError::MemlockLimit {
                needed: 3 << 20,
                limit: 65536,
            },
        )));
        assert_eq!((error.kind(), error.exit_status()), (Kind::Memlock, 3));
        assert!(
            error.to_string().contains("3145728") && error.to_string().contains("65536"),
            "{error}"
        );
        assert!(
            error
                .remedy_text()
                .is_some_and(|remedy| remedy.starts_with("Run: ulimit -l 65536 "))
        );
    }

    #[test]
    fn statuses_keep_their_numbers() {
        let error = Error::from(CommandError::Status(Status::LBA_OUT_OF_RANGE));
        assert_eq!(error.exit_status(), 1);
        let json: serde_json::Value = serde_json::from_str(&error.render(true)).unwrap();
        assert_eq!(
            json["error"]["nvme_status"],
            serde_json::json!({"sct": 0, "sc": 0x80, "name": "LBA Out of Range (0/80h)"})
        );
    }

    #[test]
    fn what_a_server_refuses_names_who_may_connect() {
        for (errno, kind, remedy) in [
            (Errno::EACCES, Kind::Permission, "uid in the policy"),
            (Errno::EBUSY, Kind::Busy, "one at a time"),
        ] {
            let error = Error::from(nvme_vfio::Error::VfioUser(ClientError::Refused {
                command: nvme_vfio_user::message::Command::VERSION,
                errno: errno as u32,
            }));
            assert_eq!((error.kind(), error.exit_status()), (kind, 3));
            let told = error.remedy_text().unwrap_or_default();
            assert!(told.contains(remedy), "{told}");
        }
        for gone in [
            nvme_vfio::Error::Gone,
            nvme_vfio::Error::Command(CommandError::Gone),
            nvme_vfio::Error::Submit(SubmitError::Gone),
            nvme_vfio::Error::VfioUser(ClientError::Lost),
        ] {
            let error = Error::from(gone);
            assert_eq!(
                (error.kind(), error.remedy_text()),
                (Kind::Gone, Some(GONE))
            );
        }
    }

    #[test]
    fn limits_and_rights_of_a_lent_controller_are_named() {
        let full = Error::from(nvme_vfio::Error::Dma(DmaError::Map(
            MapError::TooManyMappings,
        )));
        assert_eq!(full.kind(), Kind::DmaEntryLimit);
        let remedy = full.remedy_text().unwrap_or_default();
        assert!(
            remedy.contains("dma_entry_limit") && remedy.contains("mappings = "),
            "{remedy}"
        );
        let denied = Error::from(CommandError::Status(Status::OPERATION_DENIED.with_dnr()));
        assert_eq!(
            (denied.exit_status(), denied.remedy_text()),
            (1, Some(DENIED))
        );
        let other = Error::from(CommandError::Status(Status::LBA_OUT_OF_RANGE));
        assert_eq!(other.remedy_text(), None);
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_status() {
        for (error, status) in [
            (nvme_vfio::Error::Gone, 3),
            (
                nvme_vfio::Error::VfioUser(ClientError::Socket {
                    command: nvme_vfio_user::message::Command::REGION_READ,
                    source: SocketError::TimedOut,
                }),
                4,
            ),
            (nvme_vfio::Error::VfioUser(ClientError::Lost), 3),
            (
                nvme_vfio::Error::Submit(SubmitError::OutOfRange {
                    lba: 1,
                    blocks: 1,
                    size: 1,
                }),
                1,
            ),
            (
                nvme_vfio::Error::Namespace {
                    nsid: 7,
                    reason: "it is not active".into(),
                },
                1,
            ),
            (
                nvme_vfio::Error::Unsupported {
                    address: "iommufd:0000:01:00.0".into(),
                    what: "iommufd",
                },
                2,
            ),
            (
                nvme_vfio::Error::TimedOut {
                    command: "Identify",
                    timeout: std::time::Duration::from_secs(1),
                },
                4,
            ),
            (nvme_vfio::Error::Cancelled("the I/O"), 4),
            (nvme_vfio::Error::Command(CommandError::TimedOut), 4),
            (nvme_vfio::Error::Command(CommandError::Deleted), 4),
            (nvme_vfio::Error::Submit(SubmitError::Deleted), 4),
            (
                nvme_vfio::Error::NotOneGroup {
                    address: "emulated".into(),
                    reason: "it is a group of its own".into(),
                },
                2,
            ),
            (
                nvme_vfio::Error::Address("nvme0".parse::<nvme_vfio::Address>().unwrap_err()),
                2,
            ),
        ] {
            assert_eq!(Error::from(error).exit_status(), status);
        }
    }
}
