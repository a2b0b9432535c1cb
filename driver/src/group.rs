//! A VFIO group: one domain, and the functions that share it.

use std::sync::{Arc, Mutex, PoisonError};

use nvme_vfio_dma::{AddressSpace, IommuDomain};
use nvme_vfio_pci::{GroupError, PciAddress, Sysfs};

use crate::transport::VfioTransport;
use crate::{Controller, Error, Options};

/// A VFIO group that this process owns. Its controllers share one IOMMU domain, so a buffer of one can be used with another;
/// two groups share nothing.
///
/// A handle: cloning it is cheap. The group is given back when the last handle, controller and queue are gone.
///
/// ```no_run
/// use nvme_vfio::{Group, Options};
///
/// let group = Group::open(13)?;
/// let first = group.controller("0000:05:00.0".parse()?, Options::default())?;
/// let second = group.controller("0000:05:00.1".parse()?, Options::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Group {
    group: nvme_vfio_pci::Group,
    space: AddressSpace,
    /// Functions that are open, so that none is opened twice.
    open: Arc<Mutex<Vec<PciAddress>>>,
}

impl Group {
    /// Opens group `number`, as `/dev/vfio/<number>` names it.
    ///
    /// # Errors
    /// [`Error::Group`], which tells apart what can stand in the way: no such group, no permission, in use (and by whom), not viable (and
    /// because of which function).
    pub fn open(number: u32) -> Result<Self, Error> {
        let group = nvme_vfio_pci::Group::open(&Sysfs::system(), number)?;
        let domain: Arc<dyn IommuDomain> = group.domain();
        Ok(Self {
            group,
            space: AddressSpace::new(domain),
            open: Arc::default(),
        })
    }

    /// Opens the group that a function is in.
    ///
    /// # Errors
    /// As [`open`](Self::open), and where there is no such function.
    pub fn of(function: PciAddress) -> Result<Self, Error> {
        Self::open(Sysfs::system().group_of(function)?).map_err(|error| match error {
            Error::Group(GroupError::NotBound { group, mut members }) => {
                // The remedy names the first: let that be the one asked for.
                members.sort_by_key(|member| member.address() != Some(function));
                GroupError::NotBound { group, members }.into()
            }
            other => other,
        })
    }

    /// Opens a controller of the group.
    ///
    /// # Errors
    /// As [`Controller::open`].
    pub fn controller(&self, function: PciAddress, options: Options) -> Result<Controller, Error> {
        let claim = Claim::new(&self.open, function)?;
        let transport = VfioTransport::open(&self.group, self.space.clone(), function, claim)?;
        Controller::with_transport(Arc::new(transport), options)
    }

    /// The group itself, for what is not about NVMe.
    #[must_use]
    pub fn pci(&self) -> &nvme_vfio_pci::Group {
        &self.group
    }

    /// The memory that the group's functions see, and what is mapped there.
    #[must_use]
    pub fn address_space(&self) -> &AddressSpace {
        &self.space
    }
}

/// A function that is open, until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    open: Arc<Mutex<Vec<PciAddress>>>,
    function: PciAddress,
}

impl Claim {
    fn new(open: &Arc<Mutex<Vec<PciAddress>>>, function: PciAddress) -> Result<Self, Error> {
        let mut functions = open.lock().unwrap_or_else(PoisonError::into_inner);
        if functions.contains(&function) {
            return Err(Error::AlreadyOpen {
                address: function.to_string(),
            });
        }
        functions.push(function);
        Ok(Self {
            open: Arc::clone(open),
            function,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|function| *function != self.function);
    }
}
