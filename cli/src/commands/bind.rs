//! `bind` and `unbind`.

use nvme_vfio_pci::{
    PciAddress, Sysfs,
    bind::{self, BindOptions, Plan},
};
use serde::Serialize;

use super::group::function;
use crate::{
    args::{BindArgs, Format, UnbindArgs},
    error::Error,
    output::{print_json, print_text},
};

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    devices: Vec<Done>,
}

#[derive(Serialize)]
struct Done {
    address: String,
    /// The driver that has it now; in a dry run, the one that would.
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    viable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<String>>,
}

/// All addresses, so that a wrong one is found before anything is done.
fn addresses(sysfs: &Sysfs, texts: &[String]) -> Result<Vec<PciAddress>, Error> {
    let mut addresses = Vec::new();
    for text in texts {
        let address = function(text)?;
        sysfs.function(address)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

pub(super) fn bind(args: &BindArgs) -> Result<(), Error> {
    let sysfs = Sysfs::system();
    let options = BindOptions {
        force: args.force,
        user: args.user.clone(),
    };
    let addresses = addresses(&sysfs, &args.addresses)?;
    // Whatever would be refused is refused before the first function is touched.
    let plans = addresses
        .iter()
        .map(|address| Ok(bind::plan_bind(&sysfs, *address, &options)?))
        .collect::<Result<Vec<Plan>, Error>>()?;
    let mut devices = Vec::new();
    if args.dry_run {
        for (address, plan) in addresses.iter().zip(&plans) {
            devices.push(planned(*address, plan, Some("vfio-pci".to_owned())));
        }
        return report(args.output.output_format, true, devices);
    }
    for address in addresses {
        let bound = bind::bind(&sysfs, address, &options)?;
        devices.push(Done {
            address: address.to_string(),
            driver: sysfs.function(address)?.driver,
            group: Some(bound.group.number),
            viable: Some(bound.group.is_viable()),
            node: Some(bound.node.display().to_string()),
            steps: None,
        });
    }
    // Several functions of one group make it viable together, so it is looked at when all are bound.
    for device in &mut devices {
        if let Some(report) = device.group.and_then(|number| sysfs.group(number).ok()) {
            device.viable = Some(report.is_viable());
            let culprits: Vec<String> = report
                .culprits()
                .filter_map(nvme_vfio_pci::Member::address)
                .map(|address| address.to_string())
                .collect();
            if !culprits.is_empty() {
                eprintln!(
                    "IOMMU group {} is not viable yet. Run: nvme-vfio bind {}",
                    report.number,
                    culprits.join(" ")
                );
            }
        }
    }
    report(args.output.output_format, false, devices)
}

pub(super) fn unbind(args: &UnbindArgs) -> Result<(), Error> {
    let sysfs = Sysfs::system();
    let addresses = addresses(&sysfs, &args.addresses)?;
    let plans = addresses
        .iter()
        .map(|address| Ok(bind::plan_unbind(&sysfs, *address)?))
        .collect::<Result<Vec<Plan>, Error>>()?;
    let mut devices = Vec::new();
    if args.dry_run {
        for (address, plan) in addresses.iter().zip(&plans) {
            devices.push(planned(*address, plan, None));
        }
        return report(args.output.output_format, true, devices);
    }
    for address in addresses {
        let driver = bind::unbind(&sysfs, address)?;
        devices.push(Done {
            address: address.to_string(),
            driver: Some(driver),
            group: None,
            viable: None,
            node: None,
            steps: None,
        });
    }
    report(args.output.output_format, false, devices)
}

fn planned(address: PciAddress, plan: &Plan, driver: Option<String>) -> Done {
    let steps = plan.steps.iter().map(ToString::to_string).collect();
    Done {
        address: address.to_string(),
        driver,
        group: None,
        viable: None,
        node: None,
        steps: Some(steps),
    }
}

fn report(format: Format, dry_run: bool, devices: Vec<Done>) -> Result<(), Error> {
    match format {
        Format::Json => print_json(&Report { dry_run, devices }),
        Format::Normal => print_text(&devices.iter().map(Done::render).collect::<String>()),
    }
}

impl Done {
    fn render(&self) -> String {
        if let Some(steps) = &self.steps {
            if steps.is_empty() {
                return format!("# {}: nothing to do\n", self.address);
            }
            return format!("# {}\n{}\n", self.address, steps.join("\n"));
        }
        let driver = self.driver.as_deref().unwrap_or("no driver");
        match (&self.node, self.group) {
            (Some(node), Some(group)) => format!(
                "{} is bound to {driver}: group {group}, {node}\n",
                self.address
            ),
            _ => format!("{} is bound to {driver}\n", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use nvme_vfio_pci::bind::Step;

    use super::*;

    #[test]
    fn a_dry_run_prints_what_a_shell_would_do() {
        let plan = Plan {
            steps: vec![Step::Write {
                path: "/sys/bus/pci/drivers_probe".into(),
                text: "0000:01:00.0".into(),
            }],
        };
        let done = planned(
            "0000:01:00.0".parse().unwrap(),
            &plan,
            Some("vfio-pci".into()),
        );
        assert_eq!(
            done.render(),
            "# 0000:01:00.0\necho 0000:01:00.0 > /sys/bus/pci/drivers_probe\n"
        );
        let value = serde_json::to_value(Report {
            dry_run: true,
            devices: vec![done],
        })
        .unwrap();
        assert_eq!(
            value["devices"][0]["steps"][0],
            "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"
        );
        assert_eq!(
            planned("01:00.0".parse().unwrap(), &Plan::default(), None).render(),
            "# 0000:01:00.0: nothing to do\n"
        );
    }

    #[test]
    fn a_bound_device_tells_its_node() {
        let done = Done {
            address: "0000:01:00.0".into(),
            driver: Some("vfio-pci".into()),
            group: Some(14),
            viable: Some(true),
            node: Some("/dev/vfio/14".into()),
            steps: None,
        };
        assert_eq!(
            done.render(),
            "0000:01:00.0 is bound to vfio-pci: group 14, /dev/vfio/14\n"
        );
    }
}
