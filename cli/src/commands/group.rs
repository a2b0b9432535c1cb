//! `group`: who shares an IOMMU group, and whether it can be lent.

use nvme_vfio_pci::{GroupReport, PciAddress, PciFunction, Sysfs};
use serde::Serialize;

use super::{cell, counted};
use crate::{
    args::{Format, GroupArgs},
    error::{Error, Kind},
    output::{print_json, print_text, table},
};

#[derive(Serialize)]
struct Listing {
    groups: Vec<Group>,
}

#[derive(Debug, Serialize)]
struct Group {
    group: u32,
    viable: bool,
    on_vfio: bool,
    members: Vec<Member>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Member {
    address: String,
    description: Option<String>,
    driver: Option<String>,
    spoils: bool,
}

pub(super) fn run(args: &GroupArgs) -> Result<(), Error> {
    let sysfs = Sysfs::system();
    let groups = chosen(&sysfs, args)?
        .into_iter()
        .map(|number| Ok(Group::new(&sysfs.group(number)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    match args.output.output_format {
        Format::Json => print_json(&Listing { groups }),
        Format::Normal if groups.is_empty() => {
            eprintln!("No NVMe controller is in an IOMMU group. Run: nvme-vfio doctor");
            Ok(())
        }
        Format::Normal => print_text(
            &groups
                .iter()
                .map(Group::render)
                .collect::<Vec<_>>()
                .join("\n"),
        ),
    }
}

fn chosen(sysfs: &Sysfs, args: &GroupArgs) -> Result<Vec<u32>, Error> {
    if let Some(text) = &args.group {
        let number = match text.parse::<u32>() {
            Ok(number) => number,
            Err(_) => sysfs.group_of(function(text)?)?,
        };
        return Ok(vec![number]);
    }
    if args.all {
        return Ok(sysfs.groups());
    }
    let mut groups: Vec<u32> = sysfs
        .nvme_functions()?
        .iter()
        .filter_map(|function| function.iommu_group)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// The PCI function that a command is about. The prefixes of a controller's address are taken as well.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub(super) fn function(text: &str) -> Result<PciAddress, Error> {
    let bare = text
        .strip_prefix("vfio:")
        .or_else(|| text.strip_prefix("iommufd:"))
        .unwrap_or(text);
    bare.parse()
        .map_err(|error: nvme_vfio_pci::ParsePciAddressError| {
            Error::new(Kind::Usage, error.to_string()).remedy("Run: nvme-vfio list")
        })
}

impl Group {
    fn new(report: &GroupReport) -> Self {
        let culprits: Vec<String> = report
            .culprits()
            .filter_map(nvme_vfio_pci::Member::address)
            .map(|address| format!("nvme-vfio bind {address}"))
            .collect();
        Self {
            group: report.number,
            viable: report.is_viable(),
            on_vfio: report.is_on_vfio(),
            members: report
                .members
                .iter()
                .map(|member| Member {
                    address: member.name.clone(),
                    description: member.function.as_ref().map(PciFunction::description),
                    driver: member.driver.clone(),
                    spoils: member.spoils(),
                })
                .collect(),
            remedy: (!culprits.is_empty()).then(|| culprits.join(" && ")),
        }
    }

    fn render(&self) -> String {
        let state = match (self.viable, self.on_vfio) {
            (true, true) => "viable, on VFIO",
            (true, false) => "viable, no member on VFIO",
            (false, _) => "not viable",
        };
        let mut text = format!(
            "IOMMU group {}: {state}, {}\n",
            self.group,
            counted(self.members.len(), "member")
        );
        let rows = self.members.iter().map(|member| {
            let mark = if member.spoils {
                "keeps the group from being viable"
            } else {
                ""
            };
            [
                format!("  {}", member.address),
                cell(member.description.as_ref()),
                cell(member.driver.as_ref()),
                mark.to_owned(),
            ]
        });
        text += &table(["  Address", "Device", "Driver", ""], rows);
        if let Some(remedy) = &self.remedy {
            text += &format!("  Run: {remedy}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(drivers: [Option<&str>; 2]) -> GroupReport {
        let members = drivers.iter().enumerate().map(|(index, driver)| {
            let address: PciAddress = format!("0000:05:00.{index}").parse().unwrap();
            let driver = driver.map(str::to_owned);
            nvme_vfio_pci::Member {
                name: address.to_string(),
                driver: driver.clone(),
                function: Some(PciFunction {
                    address,
                    vendor: 0x1b36,
                    device: 0x10,
                    class: nvme_vfio_pci::CLASS_NVME,
                    driver,
                    iommu_group: Some(14),
                    numa_node: None,
                }),
            }
        });
        GroupReport {
            number: 14,
            members: members.collect(),
        }
    }

    #[test]
    fn the_culprit_is_named_with_its_remedy() {
        let group = Group::new(&report([Some("vfio-pci"), Some("nvme")]));
        let text = group.render();
        assert!(
            text.starts_with("IOMMU group 14: not viable, 2 members\n"),
            "{text}"
        );
        assert!(
            text.contains("0000:05:00.1")
                && text.contains("keeps the group")
                && text.contains("Run: nvme-vfio bind 0000:05:00.1"),
            "{text}"
        );
        let value = serde_json::to_value(&group).unwrap();
        assert_eq!(
            (
                &value["viable"],
                &value["members"][1]["spoils"],
                &value["members"][0]["spoils"]
            ),
            (&false.into(), &true.into(), &false.into())
        );
    }

    #[test]
    fn a_viable_group_needs_nothing() {
        let group = Group::new(&report([Some("vfio-pci"), None]));
        assert!(group.viable && group.on_vfio && group.remedy.is_none());
        assert!(!group.render().contains("Run:"));
    }

    #[test]
    fn an_address_may_have_its_prefix() {
        assert_eq!(
            function("vfio:01:00.0").unwrap(),
            function("0000:01:00.0").unwrap()
        );
        assert_eq!(function("emulated").unwrap_err().exit_status(), 2);
    }
}
