//! `list`: every NVMe controller of the machine, whoever drives it.

use std::time::Duration;

use nvme_vfio::{Address, Controller, Options, Way};
use nvme_vfio_pci::{KernelController, PciFunction, Sysfs};
use serde::Serialize;

use super::cell;
use crate::{
    args::{Format, ListArgs},
    decode::text,
    error::Error,
    output::{print_json, print_text, table},
    size::{binary, decimal},
};

/// How long a controller in the hands of VFIO may take to become ready: a list is no place to wait for a broken drive.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Listing {
    #[serde(rename = "Devices")]
    devices: Vec<Row>,
}

/// A namespace, or a controller of which no namespace is known. nvme-cli's keys come first.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "NameSpace")]
    namespace: Option<u32>,
    device_path: String,
    firmware: Option<String>,
    model_number: Option<String>,
    serial_number: Option<String>,
    used_bytes: Option<u64>,
    #[serde(rename = "MaximumLBA")]
    maximum_lba: Option<u64>,
    physical_size: Option<u64>,
    sector_size: Option<u32>,
    address: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Error> {
    let sysfs = Sysfs::system();
    let mut devices = Vec::new();
    for function in sysfs.nvme_functions()? {
        let rows = if function.is_on_vfio() {
            let address = Address::Pci {
                function: function.address,
                way: Way::Auto,
            };
            ours(&function, &address)
        } else {
            kernels(
                &function,
                sysfs.kernel_controller(function.address).as_ref(),
            )
        };
        devices.extend(rows);
    }
    let notes: Vec<String> = devices
        .iter()
        .filter_map(|row| {
            row.note
                .as_ref()
                .map(|note| format!("{}: {note}", row.address))
        })
        .collect();
    match args.output.output_format {
        Format::Json => print_json(&Listing { devices })?,
        Format::Normal if devices.is_empty() => eprintln!(
            "This machine has no NVMe controller on PCI. The address `emulated` needs none."
        ),
        Format::Normal => print_text(&render(&devices))?,
    }
    for note in notes {
        eprintln!("{note}");
    }
    Ok(())
}

fn bare(function: &PciFunction) -> Row {
    Row {
        namespace: None,
        device_path: function.address.to_string(),
        firmware: None,
        model_number: None,
        serial_number: None,
        used_bytes: None,
        maximum_lba: None,
        physical_size: None,
        sector_size: None,
        address: function.address.to_string(),
        driver: function.driver.clone(),
        iommu_group: function.iommu_group,
        numa_node: function.numa_node,
        note: None,
    }
}

/// What sysfs tells of a controller that the kernel holds, or nobody.
fn kernels(function: &PciFunction, controller: Option<&KernelController>) -> Vec<Row> {
    let Some(controller) = controller else {
        return vec![bare(function)];
    };
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let row = Row {
        device_path: format!("/dev/{}", controller.name),
        firmware: known(&controller.firmware),
        model_number: known(&controller.model),
        serial_number: known(&controller.serial),
        ..bare(function)
    };
    let namespaces: Vec<Row> = controller
        .namespaces
        .iter()
        .map(|namespace| Row {
            namespace: namespace.nsid,
            device_path: format!("/dev/{}", namespace.name),
            maximum_lba: namespace
                .block_size
                .filter(|size| *size > 0)
                .map(|size| namespace.size / u64::from(size)),
            physical_size: Some(namespace.size),
            sector_size: namespace.block_size,
            ..row.clone()
        })
        .collect();
    if namespaces.is_empty() {
        vec![row]
    } else {
        namespaces
    }
}

/// What the controller itself tells, where VFIO holds it and nobody else has it open.
fn ours(function: &PciFunction, address: &Address) -> Vec<Row> {
    let row = bare(function);
    match identify(&row, address) {
        Ok(rows) => rows,
        Err(error) => {
            let error = Error::from(error);
            let remedy = error
                .remedy_text()
                .map(|remedy| format!(". {remedy}"))
                .unwrap_or_default();
            vec![Row {
                note: Some(format!("{error}{remedy}")),
                ..row
            }]
        }
    }
}

fn identify(row: &Row, address: &Address) -> Result<Vec<Row>, nvme_vfio::Error> {
    let options = Options {
        ready_timeout: Some(PATIENCE),
        admin_timeout: PATIENCE,
        io_queues: 1,
        hugepages: false,
        ..Options::default()
    };
    let controller = Controller::open_with(address, options)?;
    let identify = controller.identify();
    let row = Row {
        firmware: Some(text(&identify.fr)),
        model_number: Some(text(&identify.mn)),
        serial_number: Some(text(&identify.sn)),
        ..row.clone()
    };
    let mut rows = Vec::new();
    for nsid in controller.namespaces()? {
        let data = controller.identify_namespace(nsid)?;
        let block_size = data.format().and_then(|format| format.block_size());
        let bytes = |blocks: u64| block_size.and_then(|size| blocks.checked_mul(u64::from(size)));
        rows.push(Row {
            namespace: Some(nsid),
            used_bytes: bytes(data.nuse.get()),
            maximum_lba: Some(data.nsze.get()),
            physical_size: bytes(data.nsze.get()),
            sector_size: block_size,
            ..row.clone()
        });
    }
    if rows.is_empty() {
        rows.push(row);
    }
    Ok(rows)
}

fn render(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.address.clone(),
            row.device_path.clone(),
            cell(row.serial_number.as_ref()),
            cell(row.model_number.as_ref()),
            cell(row.namespace),
            cell(row.physical_size.map(|size| decimal(size.into()))),
            cell(row.sector_size.map(|size| binary(size.into()))),
            cell(row.firmware.as_ref()),
            cell(row.driver.as_ref()),
            cell(row.iommu_group),
            cell(row.numa_node),
        ]
    });
    table(
        [
            "Address",
            "Node",
            "SN",
            "Model",
            "Namespace",
            "Size",
            "Block",
            "FW Rev",
            "Driver",
            "Group",
            "NUMA",
        ],
        cells,
    )
}

#[cfg(test)]
mod tests {
    use nvme_vfio_pci::KernelNamespace;

    use super::*;

    fn function() -> PciFunction {
        PciFunction {
            address: "0000:01:00.0".parse().unwrap(),
            vendor: 0x1b36,
            device: 0x10,
            class: nvme_vfio_pci::CLASS_NVME,
            driver: Some("nvme".into()),
            iommu_group: Some(14),
            numa_node: None,
        }
    }

    fn kernel(namespaces: Vec<KernelNamespace>) -> KernelController {
        KernelController {
            name: "nvme0".into(),
            model: "QEMU NVMe Ctrl".into(),
            serial: "S1".into(),
            firmware: "1.0".into(),
            namespaces,
        }
    }

    #[test]
    fn a_kernel_held_controller_shows_what_sysfs_tells() {
        let namespace = KernelNamespace {
            name: "nvme0n1".into(),
            nsid: Some(1),
            size: 1 << 30,
            block_size: Some(4096),
        };
        let rows = kernels(&function(), Some(&kernel(vec![namespace])));
        let value = serde_json::to_value(Listing {
            devices: rows.clone(),
        })
        .unwrap();
        assert_eq!(
            value["Devices"][0],
            serde_json::json!({
                "NameSpace": 1, "DevicePath": "/dev/nvme0n1", "Firmware": "1.0", "ModelNumber": "QEMU NVMe Ctrl", "SerialNumber": "S1",
                "UsedBytes": null, "MaximumLBA": 262_144, "PhysicalSize": 1 << 30, "SectorSize": 4096,
                "Address": "0000:01:00.0", "Driver": "nvme", "IommuGroup": 14, "NumaNode": null,
            })
        );
        let text = render(&rows);
        for word in [
            "0000:01:00.0",
            "/dev/nvme0n1",
            "S1",
            "QEMU NVMe Ctrl",
            "1.07GB",
            "4KiB",
            "nvme",
            "14",
        ] {
            assert!(text.contains(word), "{word} not in:\n{text}");
        }
    }

    #[test]
    fn without_namespaces_the_controller_has_its_row() {
        let rows = kernels(&function(), Some(&kernel(Vec::new())));
        assert_eq!(
            (rows.len(), rows[0].namespace, rows[0].device_path.as_str()),
            (1, None, "/dev/nvme0")
        );
        assert_eq!(kernels(&function(), None)[0].model_number, None);
    }

    #[test]
    fn our_controller_tells_itself() {
        let row = bare(&function());
        let address: Address = "emulated:size=64M,lba=4096,nsids=1:5,serial=XYZ"
            .parse()
            .unwrap();
        let rows = identify(&row, &address).unwrap();
        assert_eq!(
            rows.iter().map(|row| row.namespace).collect::<Vec<_>>(),
            [Some(1), Some(5)]
        );
        assert_eq!(
            (
                rows[0].serial_number.as_deref(),
                rows[0].physical_size,
                rows[0].sector_size
            ),
            (Some("XYZ"), Some(64 << 20), Some(4096))
        );
        let none: Address = "emulated:namespaces=0".parse().unwrap();
        assert_eq!(identify(&row, &none).unwrap().len(), 1);
    }
}
