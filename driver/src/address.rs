//! One string names a controller.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use nvme_vfio_pci::PciAddress;
use thiserror::Error;

/// Which of the kernel's two interfaces lends a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// Whichever can be used; today that is always the VFIO group.
    Auto,
    /// The VFIO group and a type 1 container.
    Vfio,
    /// The device's own node and iommufd. Parsed, but not supported by this version.
    Iommufd,
}

/// Where a controller is.
///
/// | text | means |
/// |---|---|
/// | `0000:01:00.0`, `01:00.0` | that PCI function |
/// | `vfio:0000:01:00.0`, `iommufd:0000:01:00.0` | the same, the way forced |
/// | `vfio-user:/run/x.sock` | a controller served on that socket |
/// | `emulated`, `emulated:size=1G,lba=4096` | a software controller in this process |
///
/// ```
/// use nvme_vfio::Address;
/// let address: Address = "01:00.0".parse()?;
/// assert_eq!(address.to_string(), "0000:01:00.0");
/// # Ok::<(), nvme_vfio::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A PCI function that is bound to `vfio-pci`.
    Pci {
        /// Which function.
        function: PciAddress,
        /// Through which interface of the kernel.
        way: Way,
    },
    /// A vfio-user server's socket.
    VfioUser(PathBuf),
    /// A software controller in this process, with its configuration as text (empty for the default).
    Emulated(String),
}

/// A text that names no controller.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{text:?} names no controller: {reason}")]
pub struct AddressError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |reason: &str| AddressError {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let function = |address: &str, way| match address.parse() {
            Ok(function) => Ok(Self::Pci { function, way }),
            Err(_) => Err(error(
                "expected a PCI address like 0000:01:00.0, or vfio:ADDRESS, iommufd:ADDRESS, vfio-user:PATH, emulated or emulated:KEY=VALUE,...",
            )),
        };
        match text.split_once(':') {
            _ if text == "emulated" => Ok(Self::Emulated(String::new())),
            Some(("emulated", config)) => Ok(Self::Emulated(config.to_owned())),
            Some(("vfio-user", "")) => Err(error("vfio-user: is followed by the path of a socket")),
            Some(("vfio-user", path)) => Ok(Self::VfioUser(path.into())),
            Some(("vfio", address)) => function(address, Way::Vfio),
            Some(("iommufd", address)) => function(address, Way::Iommufd),
            _ => function(text, Way::Auto),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci {
                function,
                way: Way::Auto,
            } => write!(f, "{function}"),
            Self::Pci {
                function,
                way: Way::Vfio,
            } => write!(f, "vfio:{function}"),
            Self::Pci {
                function,
                way: Way::Iommufd,
            } => write!(f, "iommufd:{function}"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
            Self::Emulated(config) if config.is_empty() => f.write_str("emulated"),
            Self::Emulated(config) => write!(f, "emulated:{config}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_a_round_trip() {
        for (text, shown) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("vfio:01:00.0", "vfio:0000:01:00.0"),
            ("iommufd:0001:ff:1f.7", "iommufd:0001:ff:1f.7"),
            ("vfio-user:/run/x.sock", "vfio-user:/run/x.sock"),
            ("emulated", "emulated"),
            ("emulated:size=1G,lba=4096", "emulated:size=1G,lba=4096"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "nvme0",
            "01:00",
            "01:00.8",
            "vfio:",
            "vfio-user:",
            "vfio:emulated",
            "0000:01:20.0",
            "emulate",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
