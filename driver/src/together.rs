//! Several controllers at once, which one process owns together: the functions of one group, or one controller of another kind.

use nvme_vfio_pci::{PciAddress, Sysfs};

use crate::address::{Address, Way};
use crate::{Controller, Error, Group, Options};

/// Controllers that were opened together.
#[derive(Debug)]
pub struct Opened {
    /// The group that they are functions of; `None` for a controller that is emulated or served by another process, which is a group of its own.
    pub group: Option<Group>,
    /// The controllers, in the order of their addresses. They share one address space.
    pub controllers: Vec<Controller>,
}

impl Controller {
    /// Opens several functions of one VFIO group, which then share its IOMMU domain, or one controller at an address of another kind.
    ///
    /// # Errors
    /// [`Error::NotOneGroup`] for functions of several groups, for an `emulated` or `vfio-user:` address that is not alone, and for no address at all;
    /// [`Error::AlreadyOpen`] for a function that is named twice; else as [`open`](Self::open). Nothing stays open then.
    pub fn open_together(addresses: &[Address], options: &Options) -> Result<Opened, Error> {
        let Some(functions) = functions(addresses, &Sysfs::system())? else {
            let controllers = addresses
                .iter()
                .map(|address| Self::open_with(address, options.clone()))
                .collect::<Result<_, _>>()?;
            return Ok(Opened {
                group: None,
                controllers,
            });
        };
        let Some(first) = functions.first() else {
            return Err(nothing());
        };
        let group = Group::of(*first)?;
        let controllers = functions
            .iter()
            .map(|function| group.controller(*function, options.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Opened {
            group: Some(group),
            controllers,
        })
    }
}

fn nothing() -> Error {
    Error::NotOneGroup {
        address: "nothing".to_owned(),
        reason: "at least one address is needed".to_owned(),
    }
}

/// The functions that the addresses name, which all are in one group; `None` for one address of another kind.
fn functions(addresses: &[Address], sysfs: &Sysfs) -> Result<Option<Vec<PciAddress>>, Error> {
    let mut functions = Vec::new();
    let mut group = None;
    for address in addresses {
        let function = match address {
            Address::Pci {
                way: Way::Iommufd, ..
            } => {
                return Err(Error::Unsupported {
                    address: address.to_string(),
                    what: "iommufd",
                });
            }
            Address::Pci { function, .. } => *function,
            Address::VfioUser(_) | Address::Emulated(_) if addresses.len() == 1 => {
                return Ok(None);
            }
            Address::VfioUser(_) | Address::Emulated(_) => {
                return Err(Error::NotOneGroup {
                    address: address.to_string(),
                    reason: "a controller that is emulated or served is a group of its own"
                        .to_owned(),
                });
            }
        };
        if functions.contains(&function) {
            return Err(Error::AlreadyOpen {
                address: address.to_string(),
            });
        }
        let its = sysfs.group_of(function)?;
        match group {
            None => group = Some((its, function)),
            Some((number, _)) if number == its => {}
            Some((number, first)) => {
                return Err(Error::NotOneGroup {
                    address: address.to_string(),
                    reason: format!(
                        "it is in IOMMU group {its}, and {first} in group {number}; each group needs a process of its own"
                    ),
                });
            }
        }
        functions.push(function);
    }
    if functions.is_empty() {
        return Err(nothing());
    }
    Ok(Some(functions))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Two functions in group 13, one in group 14, one in none.
    fn machine() -> (tempfile::TempDir, Sysfs) {
        let directory = tempfile::TempDir::new().unwrap();
        for (function, group) in [("00", 13), ("01", 13), ("02", 14), ("03", 0)] {
            let path = directory
                .path()
                .join(format!("sys/bus/pci/devices/0000:05:{function}.0"));
            fs::create_dir_all(&path).unwrap();
            for (file, text) in [
                ("class", "0x010802"),
                ("vendor", "0x1b36"),
                ("device", "0x0010"),
                ("subsystem_vendor", "0x1af4"),
                ("subsystem_device", "0x1100"),
                ("revision", "0x02"),
                ("resource", ""),
                ("config", ""),
            ] {
                fs::write(path.join(file), text).unwrap();
            }
            if group > 0 {
                let link = format!("../../../kernel/iommu_groups/{group}");
                symlink(link, path.join("iommu_group")).unwrap();
            }
        }
        let sysfs = Sysfs::at(directory.path());
        (directory, sysfs)
    }

    fn asked(sysfs: &Sysfs, addresses: &[&str]) -> Result<Option<Vec<PciAddress>>, Error> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        functions(&addresses, sysfs)
    }

    #[test]
    fn functions_of_one_group_go_together_and_others_do_not() {
        let (_directory, sysfs) = machine();
        let both = asked(&sysfs, &["05:00.0", "vfio:05:01.0"])
            .unwrap()
            .unwrap();
        assert_eq!(both.len(), 2);
        let error = asked(&sysfs, &["05:00.0", "05:02.0"]).unwrap_err();
        assert!(
            matches!(&error, Error::NotOneGroup { address, reason }
                if address == "0000:05:02.0" && reason.contains("14") && reason.contains("13")),
            "{error}"
        );
        for twice in [["05:00.0", "05:00.0"], ["05:00.0", "vfio:05:00.0"]] {
            let error = asked(&sysfs, &twice).unwrap_err();
            assert!(matches!(error, Error::AlreadyOpen { .. }), "{error}");
        }
        assert!(matches!(asked(&sysfs, &["05:03.0"]), Err(Error::Sysfs(_))));
        assert!(matches!(
            asked(&sysfs, &["iommufd:05:00.0"]),
            Err(Error::Unsupported { .. })
        ));
    }

    #[test]
    fn a_controller_of_another_kind_is_alone() {
        let (_directory, sysfs) = machine();
        for alone in ["emulated", "vfio-user:/run/x.sock"] {
            assert_eq!(asked(&sysfs, &[alone]).unwrap(), None);
            for together in [[alone, "05:00.0"], ["05:00.0", alone], [alone, alone]] {
                let error = asked(&sysfs, &together).unwrap_err();
                assert!(matches!(error, Error::NotOneGroup { .. }), "{error}");
            }
        }
        let error = asked(&sysfs, &[]).unwrap_err();
        assert!(matches!(error, Error::NotOneGroup { .. }), "{error}");
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn an_emulated_controller_is_opened() {
        let address = "emulated:size=16M".parse().unwrap();
        let opened = Controller::open_together(&[address], &Options::default()).unwrap();
        assert!(opened.group.is_none());
        assert_eq!(opened.controllers[0].namespaces().unwrap(), [1]);
        assert!(Controller::open_together(&[], &Options::default()).is_err());
    }
}
