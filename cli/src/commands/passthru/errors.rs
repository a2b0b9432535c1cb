//! Errors of the gate and of the audit as the user's.

use nvme_vfio::CommandError;
use nvme_vfio_passthrough::{PassthroughError, Reason, audit::AuditError};

use crate::{
    convert::nvme_status,
    error::{Error, Kind},
};

impl From<PassthroughError> for Error {
    fn from(error: PassthroughError) -> Self {
        let text = error.to_string();
        match error {
            PassthroughError::Refused { refusal } => {
                let kind = match refusal.reason {
                    Reason::OutOfRange => Kind::LbaOutOfRange,
                    Reason::NamespaceNotGranted | Reason::AllNamespaces => Kind::NoNamespace,
                    _ => Kind::Refused,
                };
                let error = Error::new(kind, text).nvme_status(nvme_status(refusal.status));
                match remedy(refusal.reason) {
                    Some(remedy) => error.remedy(remedy),
                    None => error,
                }
            }
            PassthroughError::BufferTooSmall { needed, .. } => {
                Error::new(Kind::BufferTooSmall, text).remedy(format!("Use: --data-len={needed}"))
            }
            PassthroughError::Direction { .. } => Error::new(Kind::Usage, text),
            PassthroughError::Driver(nvme_vfio::Error::Status { status, .. }) => {
                CommandError::Status(status).into()
            }
            PassthroughError::Driver(error) => error.into(),
            PassthroughError::Command(error) => error.into(),
            _ => Error::new(Kind::Unsupported, text),
        }
    }
}

/// What can be done about a refusal.
fn remedy(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NeverPasses | Reason::FeatureNotOffered => {
            "It would give the controller addresses, or take away what the driver uses; no option sends it"
        }
        Reason::UnknownOpcode => "Vendors' opcodes are 0xc0 to 0xff (admin) and 0x80 to 0xff (I/O)",
        Reason::ReservedBit | Reason::IllegalValue => {
            "Look at the command's fields with --show-command --dry-run"
        }
        Reason::Fused | Reason::ScatterGatherList => "Leave --flags out",
        Reason::Metadata => "Leave --metadata-len out: metadata is not transferred by this version",
        Reason::NamespaceNotGranted => "Run: nvme-vfio list-ns ADDRESS",
        _ => return None,
    })
}

impl From<AuditError> for Error {
    fn from(error: AuditError) -> Self {
        let kind = match &error {
            AuditError::Open { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Kind::Permission
            }
            AuditError::InUse { .. } => Kind::Busy,
            AuditError::Thread(_) => Kind::Environment,
            _ => Kind::File,
        };
        let source = std::error::Error::source(&error).map(ToString::to_string);
        match source {
            Some(source) => Error::new(kind, format!("{error}: {source}")),
            None => Error::new(kind, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nvme_vfio_passthrough::Direction;

    use super::*;

    #[test]
    fn refusals_keep_their_status_and_their_exit_status() {
        for (reason, kind, status) in [
            (Reason::OutOfRange, Kind::LbaOutOfRange, 1),
            (Reason::NamespaceNotGranted, Kind::NoNamespace, 1),
            (Reason::NeverPasses, Kind::Refused, 1),
            (Reason::ReservedBit, Kind::Refused, 1),
        ] {
            let error = Error::from(PassthroughError::from(reason.refusal()));
            assert_eq!((error.kind(), error.exit_status()), (kind, status));
            assert!(error.to_string().contains(reason.text()), "{error}");
            assert!(error.render(true).contains("nvme_status"));
        }
        let error = Error::from(PassthroughError::BufferTooSmall {
            name: "Read",
            needed: 4096,
            given: 512,
        });
        assert_eq!(
            (error.kind(), error.exit_status()),
            (Kind::BufferTooSmall, 2)
        );
        let error = Error::from(PassthroughError::Direction {
            name: "Read",
            direction: Direction::FromController,
        });
        assert_eq!(error.exit_status(), 2);
    }
}
