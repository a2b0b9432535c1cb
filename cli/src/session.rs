//! Opening the controller that an address names, and finding the namespace that was meant.

use nvme_vfio::{Address, Controller, Namespace, Options};

use crate::error::{Error, Kind};

/// A controller and the address that it was opened by.
#[derive(Debug)]
pub struct Session {
    /// The controller.
    pub controller: Controller,
    /// Its address, parsed.
    pub address: Address,
}

impl Session {
    /// Opens the controller at `address`.
    ///
    /// # Errors
    /// Whatever keeps it from being opened, with its remedy.
    pub fn open(address: &str) -> Result<Self, Error> {
        Self::open_with(address, Options::default())
    }

    /// Opens the controller at `address` with other options than the default.
    ///
    /// # Errors
    /// Whatever keeps it from being opened, with its remedy.
    pub fn open_with(address: &str, options: Options) -> Result<Self, Error> {
        let address: Address = address.parse().map_err(nvme_vfio::Error::from)?;
        let controller = Controller::open_with(&address, options)?;
        Ok(Self {
            controller,
            address,
        })
    }

    /// The identifier that was given, or that of the only active namespace.
    ///
    /// # Errors
    /// [`Kind::NoNamespace`] where none is active, [`Kind::Usage`] where several are and none was named.
    pub fn nsid(&self, given: Option<u32>) -> Result<u32, Error> {
        if let Some(nsid) = given {
            return Ok(nsid);
        }
        match self.controller.namespaces()?.as_slice() {
            [nsid] => Ok(*nsid),
            [] => Err(Error::new(
                Kind::NoNamespace,
                format!("{} has no active namespace", self.address),
            )
            .remedy(format!("Run: nvme-vfio list-ns --all {}", self.address))),
            several => {
                let list: Vec<String> = several.iter().take(16).map(u32::to_string).collect();
                let more = if several.len() > list.len() {
                    ", …"
                } else {
                    ""
                };
                Err(Error::usage(
                    format!(
                        "{} has {} active namespaces ({}{more}), and none was named",
                        self.address,
                        several.len(),
                        list.join(", ")
                    ),
                    format!("Name one: -n {}", several.first().copied().unwrap_or(1)),
                ))
            }
        }
    }

    /// The namespace that was given, or the only active one.
    ///
    /// # Errors
    /// As [`nsid`](Self::nsid), and [`Kind::NoNamespace`] where it is not active or cannot be used.
    pub fn namespace(&self, given: Option<u32>) -> Result<Namespace, Error> {
        let nsid = self.nsid(given)?;
        self.controller
            .namespace(nsid)
            .map_err(|error| Error::from(error).context(&self.address))
            .map_err(|error| {
                if error.kind() == Kind::NoNamespace {
                    error.remedy(format!("Run: nvme-vfio list-ns {}", self.address))
                } else {
                    error
                }
            })
    }
}
