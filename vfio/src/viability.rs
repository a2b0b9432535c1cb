//! [`GroupReport`]: the members of an IOMMU group and what stands in the way of using it.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use crate::sysfs::{SysfsError, is_vfio_driver, link_name, names_in, read_text};
use crate::{PciAddress, PciFunction, Sysfs};

/// An IOMMU group as sysfs shows it.
///
/// Devices of one group can reach each other without the IOMMU in between, so the kernel gives a group to user space only
/// when none of its members is in the hands of another driver: then it is *viable*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupReport {
    /// The group's number.
    pub number: u32,
    /// Every member, by name.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name in sysfs: for a PCI function, its address.
    pub name: String,
    /// The PCI function; `None` for a device of another bus.
    pub function: Option<PciFunction>,
    /// The driver that holds it.
    pub driver: Option<String>,
}

impl Member {
    /// Whether this member keeps the group from being viable: another driver than VFIO's has it, and that driver may do DMA.
    ///
    /// Bridges and `pci-stub` do none, so they spoil nothing.
    #[must_use]
    pub fn spoils(&self) -> bool {
        let bridge = self.function.as_ref().is_some_and(PciFunction::is_bridge);
        match self.driver.as_deref() {
            None => false,
            Some(driver) => {
                !bridge
                    && driver != "pci-stub"
                    && !is_vfio_driver(driver)
                    && !driver.starts_with("vfio-")
            }
        }
    }

    /// The PCI address, when it is a PCI function.
    #[must_use]
    pub fn address(&self) -> Option<PciAddress> {
        self.function.as_ref().map(|function| function.address)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(function) = &self.function {
            write!(f, " ({})", function.description())?;
        }
        match &self.driver {
            Some(driver) => write!(f, " is bound to {driver}"),
            None => f.write_str(" is bound to no driver"),
        }
    }
}

impl GroupReport {
    /// The members that keep the group from being viable.
    pub fn culprits(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.spoils())
    }

    /// Whether the kernel will call the group viable, going by the members' drivers.
    #[must_use]
    pub fn is_viable(&self) -> bool {
        self.culprits().next().is_none()
    }

    /// Whether VFIO holds a member. Without one, the group has no node.
    #[must_use]
    pub fn is_on_vfio(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.driver.as_deref().is_some_and(is_vfio_driver))
    }
}

impl Sysfs {
    /// The members of a group.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoGroup`] when there is none of this number.
    pub fn group(&self, number: u32) -> Result<GroupReport, SysfsError> {
        let path = self.path(format!("sys/kernel/iommu_groups/{number}/devices"));
        let names = names_in(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SysfsError::NoGroup { group: number },
            _ => SysfsError::File {
                path: path.clone(),
                source,
            },
        })?;
        let members = names.into_iter().map(|name| {
            let function = name
                .parse()
                .ok()
                .and_then(|address| self.function(address).ok());
            let driver = link_name(&path.join(&name).join("driver"));
            Member {
                driver: driver.or_else(|| {
                    function
                        .as_ref()
                        .and_then(|function| function.driver.clone())
                }),
                name,
                function,
            }
        });
        Ok(GroupReport {
            number,
            members: members.collect(),
        })
    }

    /// The numbers of all IOMMU groups, in order; empty when the IOMMU is off.
    #[must_use]
    pub fn groups(&self) -> Vec<u32> {
        let names = names_in(&self.path("sys/kernel/iommu_groups")).unwrap_or_default();
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The IOVAs that a group cannot use for ordinary memory (`reserved_regions`): message-signalled interrupts, and what the
    /// firmware asked for.
    ///
    /// They are already left out of the ranges that an opened group's container tells. Before a group is open, a
    /// virtual-machine monitor lays out guest memory by them.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoGroup`], or a line that is no range.
    pub fn reserved_regions(&self, group: u32) -> Result<Vec<ReservedRegion>, SysfsError> {
        let path = self.path(format!("sys/kernel/iommu_groups/{group}/reserved_regions"));
        let text = read_text(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SysfsError::NoGroup { group },
            _ => SysfsError::File {
                path: path.clone(),
                source,
            },
        })?;
        let lines = text.lines().map(|line| {
            parse_reserved(line).ok_or_else(|| SysfsError::File {
                path: path.clone(),
                source: io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{line:?} is no reserved region"),
                ),
            })
        });
        lines.collect()
    }
}

/// A range of IOVAs that is not for ordinary memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedRegion {
    /// First and last address.
    pub range: RangeInclusive<u64>,
    /// The kernel's word for its kind: `msi`, `direct`, `direct-relaxable`, `reserved`.
    pub kind: String,
}

/// A line such as `0x00000000fee00000 0x00000000feefffff msi`.
fn parse_reserved(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_ascii_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (start, end) = (address()?, address()?);
    let kind = words.next()?.to_string();
    (start <= end && words.next().is_none()).then_some(ReservedRegion {
        range: start..=end,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_lines() {
        let good = parse_reserved("0x00000000fee00000 0x00000000feefffff msi").unwrap();
        assert_eq!(
            (good.range, good.kind.as_str()),
            (0xfee0_0000..=0xfeef_ffff, "msi")
        );
        for line in [
            "",
            "0x1 0x0 msi",
            "0x0 0x1",
            "0 1 msi",
            "0x0 0x1 msi more",
            "0xzz 0x1 msi",
        ] {
            assert!(parse_reserved(line).is_none(), "{line:?}");
        }
    }
}
