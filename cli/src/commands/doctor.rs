//! `doctor`: what is missing, and how to get it.

use nvme_vfio_pci::{
    Sysfs,
    checks::{self, Check, Verdict},
};
use serde::Serialize;

use super::{counted, group::function};
use crate::{
    args::{DoctorArgs, Format},
    error::{Error, Kind},
    output::{print_json, print_text},
};

#[derive(Serialize)]
struct Report {
    healthy: bool,
    checks: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    subject: String,
    verdict: &'static str,
    finding: String,
    remedy: Option<String>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Error> {
    let sysfs = Sysfs::system();
    let mut found = checks::machine(&sysfs);
    match &args.address {
        Some(address) => found.extend(checks::function(&sysfs, function(address)?)),
        None => {
            let functions = sysfs.nvme_functions()?;
            for function in &functions {
                found.extend(overview(&sysfs, function));
            }
            if functions.is_empty() {
                found.push(Check {
                    subject: "controllers".into(),
                    verdict: Verdict::Warning,
                    finding: "this machine has no NVMe controller on PCI".into(),
                    remedy: None,
                });
            }
        }
    }
    let faults: Vec<&Check> = found
        .iter()
        .filter(|check| check.verdict == Verdict::Fault)
        .collect();
    let outcome = match faults.first() {
        None => Ok(()),
        Some(first) => {
            let error = Error::new(
                Kind::Fault,
                format!(
                    "{} found, the first: {}: {}",
                    counted(faults.len(), "fault"),
                    first.subject,
                    first.finding
                ),
            );
            Err(match &first.remedy {
                Some(remedy) => error.remedy(remedy.clone()),
                None => error,
            })
        }
    };
    match args.output.output_format {
        Format::Json => print_json(&Report {
            healthy: faults.is_empty(),
            checks: found.iter().map(Line::new).collect(),
        })?,
        Format::Normal => print_text(&render(&found))?,
    }
    outcome
}

/// A controller that nobody asked about may stay with the kernel: most of them hold the machine's own files.
fn overview(sysfs: &Sysfs, function: &nvme_vfio_pci::PciFunction) -> Vec<Check> {
    let mut found = checks::function(sysfs, function.address);
    if !function.is_on_vfio() && function.iommu_group.is_some() {
        for check in &mut found {
            check.verdict = check.verdict.min(Verdict::Warning);
        }
    }
    found
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Warning => "warning",
        Verdict::Fault => "fault",
    }
}

impl Line {
    fn new(check: &Check) -> Self {
        Self {
            subject: check.subject.clone(),
            verdict: word(check.verdict),
            finding: check.finding.clone(),
            remedy: check.remedy.clone(),
        }
    }
}

fn render(found: &[Check]) -> String {
    let width = found
        .iter()
        .map(|check| check.subject.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in found {
        text += &format!(
            "{:<7}  {:width$}  {}\n",
            word(check.verdict),
            check.subject,
            check.finding
        );
        if let Some(remedy) = &check.remedy {
            text += &format!("{:<7}  {:width$}  -> {remedy}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_stands_with_its_remedy() {
        let found = [
            Check {
                subject: "iommu".into(),
                verdict: Verdict::Good,
                finding: "on".into(),
                remedy: None,
            },
            Check {
                subject: "vfio-pci".into(),
                verdict: Verdict::Fault,
                finding: "not loaded".into(),
                remedy: Some("modprobe vfio-pci".into()),
            },
        ];
        assert_eq!(
            render(&found),
            "good     iommu     on\nfault    vfio-pci  not loaded\n                   -> modprobe vfio-pci\n"
        );
        assert_eq!(
            serde_json::to_value(Line::new(&found[1])).unwrap()["verdict"],
            "fault"
        );
    }
}
