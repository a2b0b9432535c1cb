//! Commands whose PRPs name memory that the controller was never lent.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nvme_vfio::{Buffer, Controller, Outcome, QueueOptions};
use nvme_vfio_pci::PciAddress;
use nvme_vfio_queues::{BlockCount, Command, DataPointer};

use crate::pattern::{Random, vfio};

/// Far above everything that is allocated here, and inside the 39 bits that the IOMMU translates.
const NOWHERE: u64 = 0x40_0000_0000;
/// What the memory that must not be touched holds.
const CANARY: u8 = 0xc5;

pub(crate) fn stray(address: PciAddress, other: PciAddress) -> Result<()> {
    let controller = Controller::open(&vfio(address))?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(8))?;
    let bystander = Controller::open(&vfio(other))?;
    let theirs = bystander.only_namespace()?;
    let mut their_queue = bystander.io_queue(QueueOptions::with_depth(8))?;

    // The drive holds something, so that a stray write would be seen.
    let mut data = controller.allocate(64 << 10)?;
    Random::new(1).fill(&mut data);
    let expected = data.to_vec();
    let data = queue.write_blocking(&namespace, 0, data)?;
    their_queue.write_blocking(&theirs, 0, {
        let mut data = bystander.allocate(64 << 10)?;
        data.copy_from_slice(&expected);
        data
    })?;

    let canary = |controller: &Controller| -> Result<Buffer> {
        let mut canary = controller.allocate(1 << 20)?;
        canary.fill(CANARY);
        Ok(canary)
    };
    let canaries = [
        canary(&controller)?,
        canary(&controller)?,
        canary(&bystander)?,
    ];
    let plain = vec![CANARY; 1 << 20];
    let is_nowhere = controller
        .address_space()
        .mappings()
        .iter()
        .all(|(iova, length)| iova.0 + (*length as u64) <= NOWHERE);
    ensure!(is_nowhere, "something is mapped at {NOWHERE:#x}");

    // A list page whose first entry is right and whose second is wrong, for a read of three pages.
    let mut pages = controller.allocate(4096)?;
    let mut list = controller.allocate(4096)?;
    pages.fill(0);
    list.fill(0);
    list[..8].copy_from_slice(&pages.iova().0.to_le_bytes());
    list[8..16].copy_from_slice(&(NOWHERE + 0x20_0000).to_le_bytes());
    let mut head = controller.allocate(4096)?;
    head.fill(0);
    let blocks = |bytes: u32| BlockCount::new(bytes / namespace.block_size()).context("no blocks");
    let strays = [
        // The data itself.
        (
            4096,
            DataPointer {
                prp1: NOWHERE,
                prp2: 0,
            },
        ),
        // The PRP list.
        (
            3 * 4096,
            DataPointer {
                prp1: head.iova().0,
                prp2: NOWHERE + 0x10_0000,
            },
        ),
        // An entry of the list.
        (
            3 * 4096,
            DataPointer {
                prp1: head.iova().0,
                prp2: list.iova().0,
            },
        ),
    ];
    for (token, (bytes, pointer)) in (1..).zip(strays) {
        let command = Command::read(namespace.id(), 0, blocks(bytes)?, pointer);
        // SAFETY: not sound, and meant not to be: what is not memory of this function is mapped nowhere in its domain, so the
        // IOMMU stops the access. The rest lives to the end of the function and is not looked at before the completion.
        #[allow(unsafe_code)]
        unsafe { queue.submit_raw(command, token) }?;
        let completion = queue.wait()?.context("nothing was in flight")?;
        ensure!(completion.token == token && completion.outcome == Outcome::Done);
        println!("stray {token}: {}", completion.entry.status());
        // The kernel writes at most ten lines about faults in five seconds, and leaves the rest out.
        sleep(Duration::from_secs(6));
        // The other controller goes on meanwhile.
        let buffer = their_queue.read_blocking(&theirs, 0, bystander.allocate(64 << 10)?)?;
        ensure!(
            buffer[..] == expected,
            "the other controller's data differs"
        );
    }
    for canary in &canaries {
        ensure!(
            canary[..] == plain,
            "memory was touched at {}",
            canary.iova()
        );
    }
    ensure!(
        data[..] == expected,
        "memory was touched at {}",
        data.iova()
    );
    // And so does this one.
    let buffer = queue.read_blocking(&namespace, 0, controller.allocate(64 << 10)?)?;
    ensure!(buffer[..] == expected, "the controller's data differs");
    println!("nothing was touched");
    Ok(())
}
