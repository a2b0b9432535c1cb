//! Binds, opens and releases a function through VFIO, and shows how each can be refused.
//!
//! `group bind [--force] [--dry-run] [--user NAME] ADDRESS`, `group unbind [--dry-run] ADDRESS`, `group open ADDRESS` (opens its group and
//! the function, and resets it), `group hold ADDRESS SECONDS`, `group check ADDRESS`.

use std::error::Error;
use std::time::Duration;

use nvme_vfio_pci::bind::{BindOptions, Plan, bind, plan_bind, plan_unbind, unbind};
use nvme_vfio_pci::{Group, PciAddress, Sysfs, checks};

fn main() {
    if let Err(error) = run() {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            text += &format!(": {source}");
            cause = source.source();
        }
        eprintln!("{text}");
        std::process::exit(3);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut options = BindOptions::default();
    let mut dry_run = false;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--force" => options.force = true,
            "--dry-run" => dry_run = true,
            "--user" => options.user = arguments.next(),
            _ => words.push(argument),
        }
    }
    let [command, address, rest @ ..] = words.as_slice() else {
        return Err("usage: group bind|unbind|open|hold|check ADDRESS".into());
    };
    let address: PciAddress = address.parse()?;
    let sysfs = Sysfs::system();
    match command.as_str() {
        "bind" if dry_run => show(&plan_bind(&sysfs, address, &options)?),
        "bind" => {
            let bound = bind(&sysfs, address, &options)?;
            let viable = if bound.group.is_viable() {
                "viable"
            } else {
                "not viable"
            };
            println!("{address} is bound; {} ({viable})", bound.node.display());
        }
        "unbind" if dry_run => show(&plan_unbind(&sysfs, address)?),
        "unbind" => println!("{address} is back with {}", unbind(&sysfs, address)?),
        "open" => {
            let group = Group::open(&sysfs, sysfs.group_of(address)?)?;
            let device = group.device(address)?;
            device.reset()?;
            println!(
                "{address} was opened and reset; hot reset reaches {:?}",
                device.hot_reset_info()?
            );
        }
        "hold" => {
            let _group = Group::open(&sysfs, sysfs.group_of(address)?)?;
            println!("held");
            let seconds = rest.first().map_or(Ok(1), |text| text.parse())?;
            std::thread::sleep(Duration::from_secs(seconds));
        }
        "check" => {
            for check in checks::machine(&sysfs)
                .into_iter()
                .chain(checks::function(&sysfs, address))
            {
                println!(
                    "{:?}\t{}\t{}\t{}",
                    check.verdict,
                    check.subject,
                    check.finding,
                    check.remedy.unwrap_or_default()
                );
            }
        }
        _ => return Err(format!("unknown command {command:?}").into()),
    }
    Ok(())
}

fn show(plan: &Plan) {
    for step in &plan.steps {
        println!("{step}");
    }
}
